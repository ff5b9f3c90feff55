"""QuantizeConfigs: which quantizers the kernel and the inputs of a layer take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow_model_optimization as tfmot

from tfqil import _host
from tfqil.numerics.grid import check_bits
from tfqil.quantizers import (
    ActivationQuantizer,
    AdaptiveActivationQuantizer,
    BinaryRelax,
    LBWWeightQuantizer,
    QILActivationQuantizer,
    QILWeightQuantizer,
    WeightQuantizer,
)
from tfqil.quantizers.projected import least_squares_weights


@_host.serializable
class LowBitQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):  # type: ignore[misc]
    """The general config: any weight quantizer for the kernel, any activation quantizer for what the layer reads.

    A layer multiplies its quantized kernel by its quantized inputs, so a config names both operands. Under
    `LowBitScheme` the activation quantizer is placed where the input tensor is produced, if all its readers ask for
    the same one, else between the tensor and the readers that do (docs/placement.md).

    Args:
        weights: a `WeightQuantizer`; None leaves the kernel in float.
        activations: an `ActivationQuantizer`; None asks for 8 bits.

    Raises:
        TypeError: an argument is no quantizer of this package's kind, one that can name its grid.
    """

    def __init__(self, weights: WeightQuantizer | None = None, activations: ActivationQuantizer | None = None) -> None:
        for name, value, kind in (
            ("weights", weights, WeightQuantizer),
            ("activations", activations, ActivationQuantizer),
        ):
            if value is not None and not isinstance(value, kind):
                raise TypeError(
                    f"Got {name}={value!r}, expected a tfqil {kind.__name__}, such as those of tfqil.quantizers: a "
                    "quantizer must name the grid of its output."
                )
        self.weights = weights
        self.activations = activations

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LowBitQuantizeConfig):
            return NotImplemented
        return (self.weights, self.activations) == (other.weights, other.activations)

    def __hash__(self) -> int:
        return hash((self.weights, self.activations))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(weights={self.weights}, activations={self.activations})"

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, WeightQuantizer]]:
        """The kernel of a layer and its quantizer."""
        name = _host.kernel_name(layer)
        return [(getattr(layer, name), self.weights)] if name and self.weights else []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        """Lets a layer compute with the quantized kernel."""
        name = _host.kernel_name(layer)
        if name and quantize_weights:
            setattr(layer, name, quantize_weights[0])

    def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
        """None: activations are quantized as tensors, not as attributes of layers."""
        del layer
        return []

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        """Nothing to set."""
        del layer, quantize_activations

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        """None: `LowBitScheme` places the quantizers of tensors."""
        del layer
        return []

    def get_config(self) -> dict[str, Any]:
        """The quantizers in the form that every Keras file format reads."""
        pair = {"weights": self.weights, "activations": self.activations}
        return {key: value and _host.serialize_object(value) for key, value in pair.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LowBitQuantizeConfig:
        """The inverse of `get_config`."""
        return cls(**{key: value and _host.deserialize_object(value) for key, value in config.items()})


class _NamedQuantizeConfig(LowBitQuantizeConfig):
    """A config that is stored as the arguments of its constructor."""

    def __init__(
        self, weights: WeightQuantizer, activations: ActivationQuantizer, *, relax: bool, **arguments: Any
    ) -> None:
        super().__init__(weights=BinaryRelax(weights) if relax else weights, activations=activations)
        self._arguments = {**arguments, "relax": relax}

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return dict(self._arguments)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LowBitQuantizeConfig:
        """The inverse of `get_config`."""
        return cls(**config)


@_host.serializable
class QILQuantizeConfig(_NamedQuantizeConfig):
    """Learned intervals for the kernel and the inputs of a layer (QIL).

    Args:
        weight_bits: width of the kernel, 2 to 8; 2 is ternary.
        activation_bits: width of the inputs, 2 to 8.
        per_channel: one weight interval per output channel.
        train_gamma: learn the exponent of the weight transformer.
        normalized: the paper's outputs in [-1, 1] and [0, 1], for layers followed by a batch normalization.
        relax: train with BinaryRelax; a `tfqil.callbacks.BinaryRelaxSchedule` drives it.

    Raises:
        TypeError or ValueError: a width is no integer from 2 to 8, or normalized and relax together.
    """

    def __init__(
        self,
        weight_bits: int = 4,
        activation_bits: int = 8,
        per_channel: bool = False,
        train_gamma: bool = False,
        normalized: bool = False,
        relax: bool = False,
    ) -> None:
        check_bits(weight_bits, name="weight_bits")
        check_bits(activation_bits, name="activation_bits")
        super().__init__(
            QILWeightQuantizer(
                bits=weight_bits, per_channel=per_channel, train_gamma=train_gamma, normalized=normalized
            ),
            QILActivationQuantizer(bits=activation_bits, normalized=normalized),
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            per_channel=per_channel,
            train_gamma=train_gamma,
            normalized=normalized,
            relax=relax,
        )


@_host.serializable
class LBWQuantizeConfig(_NamedQuantizeConfig):
    """Zero or powers of two for the kernel (LBW-Net), learned intervals for the inputs (QIL).

    Args:
        weight_bits: width of the kernel, 2 to 6: 3, 5, 9, 17 or 33 levels.
        activation_bits: width of the inputs, 2 to 8.
        mu: None for the least-squares optimum; a number for the threshold mu max|w| from 3 bits on.
        relax: train with BinaryRelax; a `tfqil.callbacks.BinaryRelaxSchedule` drives it.
        int8_exact: keep the seven largest powers only, so that 5 and 6 bits fit an integer-only file.
        per_channel: one power-of-two step per output channel.

    Raises:
        TypeError or ValueError: a width out of range, or mu not positive or given at 2 bits.
    """

    def __init__(
        self,
        weight_bits: int = 4,
        activation_bits: int = 8,
        mu: float | None = None,
        relax: bool = False,
        int8_exact: bool = False,
        per_channel: bool = False,
    ) -> None:
        check_bits(weight_bits, name="weight_bits", highest=6)
        check_bits(activation_bits, name="activation_bits")
        super().__init__(
            LBWWeightQuantizer(bits=weight_bits, mu=mu, int8_exact=int8_exact, per_channel=per_channel),
            QILActivationQuantizer(bits=activation_bits),
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            mu=mu,
            relax=relax,
            int8_exact=int8_exact,
            per_channel=per_channel,
        )


@_host.serializable
class BCGDQuantizeConfig(_NamedQuantizeConfig):
    """The quantizers of blended coarse gradient descent; `tfqil.optimizers.BlendedOptimizer` adds the blending.

    Args:
        weight_bits: width of the kernel, 1 to 8: 1 binary, 2 ternary, from 3 on equal levels with a fitted step.
        activation_bits: width of the inputs, 1 to 8, with a learned resolution.
        ste: coarse derivative of the activations: "identity", "relu" or "clipped_relu".
        relax: train with BinaryRelax; a `tfqil.callbacks.BinaryRelaxSchedule` drives it.
        per_channel: one weight step per output channel.

    Raises:
        TypeError or ValueError: a width out of range, or an unknown ste.
    """

    def __init__(
        self,
        weight_bits: int = 1,
        activation_bits: int = 4,
        ste: str = "clipped_relu",
        relax: bool = False,
        per_channel: bool = False,
    ) -> None:
        check_bits(weight_bits, name="weight_bits", lowest=1)
        check_bits(activation_bits, name="activation_bits", lowest=1)
        super().__init__(
            least_squares_weights(weight_bits, per_channel),
            AdaptiveActivationQuantizer(bits=activation_bits, ste=ste),
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            ste=ste,
            relax=relax,
            per_channel=per_channel,
        )
