"""The same networks quantized by others: TFMOT, QKeras, larq, and LSQ and PACT in a few lines each.

QKeras, larq, LSQ and PACT leave the weights of the first and the last layer in float, as their authors do; TFMOT's
n-bit scheme quantizes all layers alike, the input included; ours gives the two layers 8 bits. Each quantizer starts
from the trained float network, with scales that suit its weights and, where it has a range of activations to choose,
the range that loses least on one batch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras

# Makes a trainable model from a float network and images.
Quantize = Callable[[keras.Model, np.ndarray], keras.Model]
LayerFor = Callable[[keras.layers.Layer, np.ndarray], keras.layers.Layer]


def tfmot_8bit(network: keras.Model, images: np.ndarray) -> keras.Model:
    """TFMOT's own path: 8 bits everywhere."""
    return tfmot.quantization.keras.quantize_model(network)


def tfmot_n_bit(network: keras.Model, images: np.ndarray, *, weight_bits: int, activation_bits: int) -> keras.Model:
    """TFMOT's experimental scheme for other widths."""
    scheme = tfmot.quantization.keras.experimental.default_n_bit.DefaultNBitQuantizeScheme(
        num_bits_weight=weight_bits, num_bits_activation=activation_bits
    )
    annotated = tfmot.quantization.keras.quantize_annotate_model(network)
    return tfmot.quantization.keras.quantize_apply(annotated, scheme)


def qkeras(network: keras.Model, images: np.ndarray, *, kernel: str, activation_bits: int) -> keras.Model:
    """QKeras with a scale per channel.

    Args:
        network: float.
        images: one batch, for the integer bits of the activations.
        kernel: a quantizer of weights as QKeras writes it.
        activation_bits: of quantized_relu.
    """
    package = importlib.import_module("qkeras")

    def conv(layer: keras.layers.Conv2D) -> keras.layers.Layer:
        return package.QConv2D(**layer.get_config(), kernel_quantizer=kernel)

    def relu(layer: keras.layers.Layer, outputs: np.ndarray) -> keras.layers.Layer:
        def lost(integer: int) -> float:
            return float(np.mean((package.quantized_relu(activation_bits, integer)(outputs) - outputs) ** 2))

        return package.QActivation(package.quantized_relu(activation_bits, min(range(5), key=lost)), name=layer.name)

    return _rebuilt(network, images, conv, relu)


def larq(network: keras.Model, images: np.ndarray, *, kernel: str, activation_bits: int) -> keras.Model:
    """larq: the quantizer of the inputs is DoReFa.

    Args:
        network: float.
        images: not used; DoReFa clips activations to 0 ... 1.
        kernel: "ste_sign" for binary weights, or "dorefa" for those with as many bits as the activations.
        activation_bits: of the activations.
    """
    package = importlib.import_module("larq")
    inputs = package.quantizers.DoReFa(k_bit=activation_bits, mode="activations")

    def conv(layer: keras.layers.Conv2D) -> keras.layers.Layer:
        weights = package.quantizers.DoReFa(k_bit=activation_bits, mode="weights") if kernel == "dorefa" else kernel
        constraint = "weight_clip" if kernel == "ste_sign" else None
        config = {**layer.get_config(), "kernel_constraint": constraint}
        return package.layers.QuantConv2D(**config, input_quantizer=inputs, kernel_quantizer=weights)

    return _rebuilt(network, images, conv, lambda layer, outputs: layer.__class__.from_config(layer.get_config()))


def lsq(network: keras.Model, images: np.ndarray, *, weight_bits: int, activation_bits: int) -> keras.Model:
    """LSQ (Esser et al., 2020): learned steps."""

    def conv(layer: keras.layers.Conv2D) -> keras.layers.Layer:
        return LSQConv2D(weight_bits, np.abs(layer.kernel.numpy()).mean(), **layer.get_config())

    def relu(layer: keras.layers.Layer, outputs: np.ndarray) -> keras.layers.Layer:
        return LSQReLU(activation_bits, np.abs(outputs).mean(), name=layer.name)

    return _rebuilt(network, images, conv, relu)


def pact(network: keras.Model, images: np.ndarray, *, weight_bits: int, activation_bits: int) -> keras.Model:
    """PACT (Choi et al., 2018): activations clipped at a learned level, weights of DoReFa (Zhou et al., 2016)."""

    def conv(layer: keras.layers.Conv2D) -> keras.layers.Layer:
        return DoReFaConv2D(weight_bits, **layer.get_config())

    def relu(layer: keras.layers.Layer, outputs: np.ndarray) -> keras.layers.Layer:
        return PACTReLU(activation_bits, outputs.max(), name=layer.name)

    return _rebuilt(network, images, conv, relu)


def _rebuilt(
    network: keras.Model, images: np.ndarray, conv: Callable[[Any], keras.layers.Layer], relu: LayerFor
) -> keras.Model:
    """The network with other convolutions, but for the first, and other ReLUs; weights that it has are kept."""
    relus = [layer for layer in network.layers if isinstance(layer, keras.layers.ReLU)]
    first = next(layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D))
    outputs = keras.Model(network.inputs, [layer.output for layer in relus]).predict(images, verbose=0)
    outputs_of = {layer.name: output for layer, output in zip(relus, outputs, strict=True)}

    def other(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer.name in outputs_of:
            return relu(layer, outputs_of[layer.name])
        if isinstance(layer, keras.layers.Conv2D) and layer is not first:
            return conv(layer)
        return layer.__class__.from_config(layer.get_config())

    model = keras.models.clone_model(network, clone_function=other)
    for layer in network.layers:
        values = layer.get_weights()
        found = model.get_layer(layer.name)
        if values:
            found.set_weights(values + found.get_weights()[len(values) :])
    return model


@tf.custom_gradient
def _rounded(x: tf.Tensor) -> Any:
    return tf.round(x), lambda upstream: upstream


@tf.custom_gradient
def _scaled_gradient(x: tf.Tensor, factor: tf.Tensor) -> Any:
    return tf.identity(x), lambda upstream: (upstream * factor, None)


def _lsq(x: tf.Tensor, step: tf.Tensor, low: float, high: float, count: int) -> tf.Tensor:
    """The step times the rounded and clipped x / step (equations 1 to 5), with g = 1 / sqrt(count high)."""
    step = _scaled_gradient(step, tf.constant(1 / np.sqrt(count * high), tf.float32))
    return _rounded(tf.clip_by_value(x / step, low, high)) * step


class LSQConv2D(keras.layers.Conv2D):
    """A convolution whose weights have a learned step."""

    def __init__(self, bits: int, mean: float, **config: Any):
        super().__init__(**config)
        self._low, self._high = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
        self._start = 2 * mean / np.sqrt(self._high)

    def build(self, input_shape: Any):
        super().build(input_shape)
        self.step = self.add_weight("step", initializer=keras.initializers.Constant(self._start))

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor):
        kernel = _lsq(kernel, self.step, self._low, self._high, kernel.shape.num_elements())
        return super().convolution_op(inputs, kernel)


class LSQReLU(keras.layers.Layer):
    """Activations from 0 with a learned step."""

    def __init__(self, bits: int, mean: float, name: str):
        super().__init__(name=name)
        self._high = 2.0**bits - 1
        self._start = 2 * mean / np.sqrt(self._high)

    def build(self, input_shape: Any):
        self.step = self.add_weight("step", initializer=keras.initializers.Constant(self._start))

    def call(self, inputs: tf.Tensor):
        return _lsq(inputs, self.step, 0.0, self._high, inputs.shape[1:].num_elements())


class DoReFaConv2D(keras.layers.Conv2D):
    """A convolution with weights 2 round(n (tanh w / (2 max|tanh w|) + 1/2)) / n - 1 and n = 2^bits - 1."""

    def __init__(self, bits: int, **config: Any):
        super().__init__(**config)
        self._codes = 2.0**bits - 1

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor):
        squashed = tf.tanh(kernel)
        shares = squashed / (2 * tf.reduce_max(tf.abs(squashed))) + 0.5
        return super().convolution_op(inputs, 2 * _rounded(shares * self._codes) / self._codes - 1)


class PACTReLU(keras.layers.Layer):
    """Activations clipped to 0 ... alpha; alpha is learned, and decays as weights do."""

    def __init__(self, bits: int, start: float, name: str):
        super().__init__(name=name)
        self._codes = 2.0**bits - 1
        self._start = start

    def build(self, input_shape: Any):
        self.alpha = self.add_weight("alpha", initializer=keras.initializers.Constant(self._start))

    def call(self, inputs: tf.Tensor):
        clipped = 0.5 * (tf.abs(inputs) - tf.abs(inputs - self.alpha) + self.alpha)
        return _rounded(clipped * (self._codes / self.alpha)) * (self.alpha / self._codes)
