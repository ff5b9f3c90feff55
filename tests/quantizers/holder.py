"""What the tests of quantizers share: a layer that holds one, data for it, and steps that would break it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras


class Holder(keras.layers.Layer):
    """A layer that a quantizer puts its variables on, and that applies it: to a kernel of its own, or to its inputs."""

    def __init__(self, quantizer: Any, kernel: np.ndarray | None = None, inner: Any = None) -> None:
        super().__init__()
        self.quantizer = quantizer
        if inner is not None:
            self.layer = inner
        self.kernel = (
            None
            if kernel is None
            else self.add_weight(name="kernel", shape=kernel.shape, initializer=keras.initializers.Constant(kernel))
        )
        shape = (None, 4) if kernel is None else kernel.shape
        self.variables_of_quantizer: Mapping[str, Any] = quantizer.build(tf.TensorShape(shape), "it", self)

    def call(self, inputs: Any, training: Any = None) -> Any:
        if self.kernel is None:
            return self.quantizer(inputs, training, weights=self.variables_of_quantizer)
        return inputs + tf.reduce_sum(self.quantized(training))

    def quantized(self, training: Any) -> tf.Tensor:
        """The quantized kernel."""
        return self.quantizer(self.kernel, training, weights=self.variables_of_quantizer)

    def grid(self) -> Any:
        """The grid of the kernel or of the outputs."""
        kernel = () if self.kernel is None else (self.kernel,)
        return self.quantizer.grid(*kernel, self.variables_of_quantizer)

    def initialize(self) -> None:
        """Fits the quantizer's variables to the kernel."""
        self.quantizer.initialize(self.kernel, self.variables_of_quantizer)

    def values(self) -> dict[str, np.ndarray]:
        return {k: v.numpy() for k, v in self.variables_of_quantizer.items() if isinstance(v, tf.Variable)}


def normal_kernel(shape: tuple[int, ...] = (3, 3, 8, 6), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.2, shape).astype(np.float32)


def examples(quantizer: Any, seed: int = 0) -> np.ndarray:
    """Data of the kind that the quantizer is for."""
    data = np.random.default_rng(seed).normal(0, 1, (64, 4)).astype(np.float32)
    return data if quantizer.is_signed else np.maximum(data, 0)


def after_huge_steps(
    holder: Holder, optimizer: str, *, jit: bool = False, directions: tuple[float, ...], inputs: Any = None
) -> Any:
    """Takes three optimizer steps with a loss of enormous slope in each direction, and yields after each direction.

    Every direction starts from the same variables, with a fresh optimizer; `jit` compiles the steps by XLA.
    """
    chosen = keras.optimizers.Adam(50.0) if optimizer == "adam" else keras.optimizers.SGD(1e3)
    data = tf.constant(np.random.default_rng(0).normal(1, 1, (8, 4)).astype(np.float32) if inputs is None else inputs)
    variables = holder.trainable_variables
    chosen.build(variables)

    def step(direction):
        with tf.GradientTape() as tape:
            loss = direction * 1e6 * tf.reduce_sum(holder(data, training=True))
        chosen.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    compiled = tf.function(step, jit_compile=True) if jit else step
    state = [*holder.variables, *chosen.variables]
    before = [variable.numpy() for variable in state]
    for direction in directions:
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        for _ in range(3):
            compiled(tf.constant(direction))
        yield direction
