"""The layers that the scheme places: a wrapper that quantizes a kernel, and a layer that quantizes a tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tfqil import _host
from tfqil.numerics.grid import ActivationGrid, WeightGrid
from tfqil.quantizers import ActivationQuantizer, WeightQuantizer
from tfqil.scheme.accumulator import bias_rounding


@_host.serializable
class QuantizedLayer(tfmot.quantization.keras.QuantizeWrapperV2):  # type: ignore[misc]
    """A layer that computes with the quantized values of its kernel.

    TFMOT's wrapper, made reloadable (the inner variables exist before those of the quantizer), freezable
    (`trainable` reaches every variable) and fit for mixed precision (the kernel is quantized in float32).
    """

    def __init__(self, layer: Any, quantize_config: Any, reason: str = "", **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        kwargs.setdefault("name", f"quant_{layer.name}")
        super().__init__(layer, quantize_config, **kwargs)
        self.reason = reason

    def build(self, input_shape: Any) -> None:
        """Creates the inner layer's variables first, fresh and reloaded alike."""
        if not self.layer.built:
            with tf.name_scope(self.layer.name):
                self.layer.build(input_shape)
            self.layer.built = True
        # TFMOT's `build` takes over the inner variables that are trainable: all, also those of a frozen layer.
        was_trainable, self.layer.trainable = self.layer.trainable, True
        super().build(input_shape)
        self.layer.trainable = was_trainable
        _host.set_owner(self.kernel, self)

    @property
    def weight_quantizer(self) -> WeightQuantizer:
        """The quantizer of the kernel."""
        quantizer: WeightQuantizer = self.quantize_config.weights
        return quantizer

    @property
    def kernel(self) -> Any:
        """The float kernel that training updates."""
        return self._weight_vars[0][0]

    @property
    def quantizer_variables(self) -> Mapping[str, Any]:
        """The variables of the kernel's quantizer."""
        variables: Mapping[str, Any] = self._weight_vars[0][2]
        return variables

    def quantized(self, kernel: Any) -> tf.Tensor:
        """The values that inference computes with in place of a kernel's."""
        return self.weight_quantizer(kernel, False, weights=self.quantizer_variables)

    def grid(self) -> WeightGrid:
        """The integers and steps of the kernel.

        Raises:
            ValueError: NaN or Inf in the kernel.
        """
        self._require_finite_kernel()
        return self.weight_quantizer.grid(self.kernel, self.quantizer_variables)

    def initialize(self) -> None:
        """Fits the quantizer's variables to the kernel as it is now.

        Raises:
            ValueError: NaN or Inf in the kernel.
        """
        self._require_finite_kernel()
        self.weight_quantizer.initialize(self.kernel, self.quantizer_variables)

    def _require_finite_kernel(self) -> None:
        if not np.all(np.isfinite(self.kernel.numpy())):
            raise ValueError(
                f"Got NaN or Inf in the kernel of layer {self.layer.name!r}, expected finite numbers: training has "
                "diverged; go back to a good checkpoint."
            )

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """The inner layer's outputs with the quantized kernel in place of the float one."""
        kernel, quantizer, variables = self._weight_vars[0]
        quantized = quantizer(tf.convert_to_tensor(kernel), training, weights=variables)
        with _host.kernel_replaced(self.layer, tf.cast(quantized, self.layer.compute_dtype)):
            # The layer itself, not its `call`: it casts its inputs and its bias as its own policy says.
            return self.layer(tf.cast(inputs, self.layer.compute_dtype), **kwargs)

    @property
    def trainable_weights(self) -> list[Any]:
        """None of them when the layer is frozen, intervals included."""
        return super().trainable_weights if self.trainable else []

    @property
    def non_trainable_weights(self) -> list[Any]:
        """All of them when the layer is frozen, intervals included."""
        if self.trainable:
            return super().non_trainable_weights  # type: ignore[no-any-return]
        return self._dedup_weights(super().trainable_weights + super().non_trainable_weights)  # type: ignore[no-any-return]

    def get_config(self) -> dict[str, Any]:
        """TFMOT's, and the reason of the placement."""
        return {**super().get_config(), "reason": self.reason}


@_host.serializable
class QuantizeActivation(_host.Layer):  # type: ignore[misc, name-defined]
    """Puts a tensor on the grid of an activation quantizer.

    At inference the bias that reaches the tensor is rounded first, as the integer file stores it
    (`accumulator.bias_rounding`), so that evaluation, the frozen grids and the file agree.

    Args:
        quantizer: what quantizes.
        reason: why the tensor got this quantizer, for the report.
        ceiling: clips the tensor there first: 6 where the layer replaces a ReLU6.
    """

    def __init__(
        self, quantizer: ActivationQuantizer, reason: str = "", ceiling: float | None = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.ceiling = ceiling
        self.quantizer = quantizer
        self.reason = reason

    def build(self, input_shape: Any) -> None:
        """Creates the quantizer's variables."""
        self._quantizer_variables = self.quantizer.build(input_shape, "activation", self)
        super().build(input_shape)  # Without it, reloading from `.keras` builds twice.

    @property
    def quantizer_variables(self) -> Mapping[str, Any]:
        """The variables of the quantizer."""
        return self._quantizer_variables

    def grid(self) -> ActivationGrid:
        """The levels of the tensor."""
        return self.quantizer.grid(self._quantizer_variables)

    def call(self, inputs: Any, training: Any = None) -> Any:
        """The quantized tensor."""
        if not training:
            correction = bias_rounding(self)
            if correction is not None:
                inputs = inputs + correction
        # A frozen layer's range moves no more, as a frozen batch normalization's statistics do not.
        return self.quantizer(self.clipped(inputs), training and self.trainable, weights=self._quantizer_variables)

    def clipped(self, inputs: Any) -> Any:
        """The tensor below the ceiling, if there is one."""
        return inputs if self.ceiling is None else tf.minimum(inputs, self.ceiling)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The quantizer and the reason of the placement."""
        config = {
            "quantizer": _host.serialize_object(self.quantizer),
            "reason": self.reason,
            "ceiling": self.ceiling,
        }
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> QuantizeActivation:
        """The inverse of `get_config`."""
        return cls(**{**config, "quantizer": _host.deserialize_object(config["quantizer"])})
