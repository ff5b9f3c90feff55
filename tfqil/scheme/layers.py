"""The layers that the scheme places: a wrapper that quantizes a kernel, and a layer that quantizes a tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot

from tfqil import _host
from tfqil.numerics.grid import ActivationGrid, WeightGrid
from tfqil.numerics.storable import storable
from tfqil.quantizers import ActivationQuantizer, WeightQuantizer
from tfqil.scheme import inference
from tfqil.scheme.frozen import constants, frozen_kernel, held
from tfqil.scheme.inference import StoredGrid


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
        # As the layer inside: Dense hands a mask on, a convolution, whose outputs are other steps, drops it.
        self.supports_masking = layer.supports_masking

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
        _host.mark_intervals(self.quantizer_variables.values())

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

    @property
    def channels_last_kernel(self) -> tf.Tensor:
        """The float kernel with its output channels on the last axes, as quantizers take it."""
        return _host.with_channels_last(self.layer, tf.convert_to_tensor(self.kernel))

    def quantized(self, kernel: Any, training: Any = False) -> tf.Tensor:
        """The values that the layer computes with in place of a kernel's."""
        kernel = _host.with_channels_last(self.layer, tf.convert_to_tensor(kernel))
        values = self.weight_quantizer(kernel, training, weights=self.quantizer_variables)
        return _host.with_channels_last(self.layer, values)  # Its own inverse.

    def grid(self) -> WeightGrid:
        """The integers and steps of the kernel, its output channels on the last axes.

        Raises:
            ValueError: NaN or Inf in the kernel.
        """
        self._require_finite_kernel()
        return self.weight_quantizer.grid(self.channels_last_kernel, self.quantizer_variables)

    def initialize(self) -> None:
        """Fits the quantizer's variables to the kernel as it is now.

        Raises:
            ValueError: NaN or Inf in the kernel.
        """
        self._require_finite_kernel()
        self.weight_quantizer.initialize(self.channels_last_kernel, self.quantizer_variables)

    def _require_finite_kernel(self) -> None:
        if not np.all(np.isfinite(self.kernel.numpy())):
            raise ValueError(
                f"Got NaN or Inf in the kernel of layer {self.layer.name!r}, expected finite numbers: training has "
                "diverged; go back to a good checkpoint."
            )

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """The inner layer's outputs with the quantized kernel in place of the float one."""
        return self._computed(inputs, training, **kwargs)

    @tf.autograph.experimental.do_not_convert  # There is nothing to convert, and looking for it takes long.
    def _computed(self, inputs: Any, training: Any, mask: Any = None, **kwargs: Any) -> Any:
        del mask
        if _host.is_inferring_shapes():
            return self.layer(tf.cast(inputs, self.layer.compute_dtype), **kwargs)
        quantized = None if training else frozen_kernel(self)
        if quantized is None:
            quantized = self.quantized(self.kernel, training)
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


# The lower and upper end that a tensor is clipped to before it is quantized; None for no end.
Clip = tuple[float | None, float | None]


@_host.serializable
class QuantizeActivation(_host.Layer):  # type: ignore[misc, name-defined]
    """Puts a tensor on the grid of an activation quantizer; or several tensors, each a site, on one grid.

    In training the quantizer's formula is computed. At inference it is what the operator of the file computes that this
    tensor is the output of (`inference.levels`), so that evaluation, the frozen grids and the file agree.

    Args:
        quantizer: what quantizes.
        reason: why the tensor got this quantizer, for the report.
        clips: for each site the ends that the tensor is clipped to first: (0, None) where the layer replaces a ReLU.
        replaces: for each site the names of the layers whose clips the quantizer does.
        output_names: what outputs of the whole model are called in the float model, (own name, that name) each; one
            layer of a model holds them (`output_names.py`).
    """

    def __init__(
        self,
        quantizer: ActivationQuantizer,
        reason: str = "",
        clips: Sequence[Clip] = ((None, None),),
        replaces: Sequence[Sequence[str]] = ((),),
        output_names: Sequence[tuple[str, str]] = (),
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        # Not as a list, which Keras would track as state.
        self.clips: tuple[Clip, ...] = tuple((low, high) for low, high in clips)
        self.replaces: tuple[tuple[str, ...], ...] = tuple(map(tuple, replaces))
        self.output_names: tuple[tuple[str, str], ...] = tuple((own, name) for own, name in output_names)
        self.quantizer = quantizer
        self.reason = reason
        self.supports_masking = True

    @property
    def sites(self) -> int:
        """The number of tensors that share the grid."""
        return len(self.clips)

    def build(self, input_shape: Any) -> None:
        """Creates the quantizer's variables, those of a range for each site."""
        names = ["activation"] if self.sites == 1 else [f"activation_{site}" for site in range(self.sites)]
        self._site_variables = [self.quantizer.build(input_shape, name, self) for name in names]
        for variables in self._site_variables:
            _host.mark_intervals(variables.values())
        super().build(input_shape)  # Without it, reloading from `.keras` builds twice.

    def site_variables(self, site: int) -> Mapping[str, Any]:
        """The variables that observe the tensor of a site."""
        variables: Mapping[str, Any] = self._site_variables[site]
        return variables

    @property
    def quantizer_variables(self) -> Mapping[str, Any]:
        """What the grid depends on: the quantizer's variables, or what those of all sites amount to."""
        if self.sites == 1:
            return self.site_variables(0)
        return self.quantizer.united(self._site_variables)

    def stored_grid(self) -> StoredGrid:
        """The grid of the tensor in a file, as tensors."""
        return held(self._stored_grid)

    def _stored_grid(self) -> StoredGrid:
        variables = self.quantizer_variables
        step, zero, lower = self.quantizer.step_zero_lower(variables)
        normalizer = self.quantizer.normalizer(variables)
        return StoredGrid(
            step=storable(step * normalizer), zero=zero, lower=lower, normalizer=normalizer, bits=self.quantizer.bits
        )

    def is_initialized(self) -> bool:
        """Whether data have set the grid."""
        return all(map(self.quantizer.is_initialized, self._site_variables))

    def grid(self) -> ActivationGrid:
        """The levels of the tensor at inference."""
        stored = self.stored_grid()
        return dataclasses.replace(
            self.quantizer.grid(self.quantizer_variables), step=float(stored.step / stored.normalizer)
        )

    def call(self, inputs: Any, training: Any = None, site: int = 0, operands: Any = None) -> Any:
        """The quantized tensor; `operands` are what the operator before it reads, if inference needs to know them."""
        return self._computed(inputs, training, site, operands)

    @tf.autograph.experimental.do_not_convert  # There is nothing to convert, and looking for it takes long.
    def _computed(self, inputs: Any, training: Any, site: int, operands: Any) -> tf.Tensor:
        if _host.is_inferring_shapes():
            return tf.cast(inputs, tf.float32)
        _host.require_no_xla_of_cpus(training=bool(training))
        if not training:
            return self._inferred(inputs, site, operands)
        _host.require_same_scope(self)
        variables = self.site_variables(site)
        # A frozen layer's range moves no more, as a frozen batch normalization's statistics do not.
        learns = self.trainable
        inputs = self._clipped(inputs, site, limit=self.quantizer.limit)
        if self.sites == 1:
            return self.quantizer(inputs, learns, weights=variables)
        if learns:
            self.quantizer.learn(inputs, variables)
        return self.quantizer(inputs, False, weights=self.quantizer_variables)

    def _inferred(self, inputs: Any, site: int, operands: Any) -> tf.Tensor:
        """The tensor as the file has it."""
        grid = self.stored_grid()
        values = inference.levels(self, grid, tf.cast(inputs, tf.float32), operands, site)
        lowest, highest, step = constants(lambda: self._ends(grid, site))
        return tf.clip_by_value(values, lowest, highest) * step

    def _ends(self, grid: StoredGrid, site: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The lowest and the highest level, and what one level is worth in Keras."""
        highest = float(2**grid.bits - 1) - grid.zero
        lowest = highest - 255.0  # The file's clip: int8 ends there, however few levels training has.
        low, high = self.clips[site]
        if low is not None or not self.quantizer.is_signed:
            lowest = tf.zeros_like(grid.zero)
        if high is not None:
            highest = tf.minimum(highest, tf.round((high - grid.lower) / grid.step))
        return lowest, highest, grid.step / grid.normalizer

    def clipped(self, inputs: Any, site: int = 0) -> Any:
        """The tensor between the ends of its clip, if there are any."""
        return self._clipped(inputs, site, limit=None)

    def _clipped(self, inputs: Any, site: int, limit: float | None) -> Any:
        low, high = self.clips[site]
        if low is not None and self.quantizer.is_signed:  # Unsigned grids begin at 0 themselves.
            inputs = tf.maximum(inputs, low)
        return inputs if high is None or high == limit else tf.minimum(inputs, high)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The quantizer, the clips, the reason of the placement and the names of outputs."""
        config = {
            "quantizer": _host.serialize_object(self.quantizer),
            "reason": self.reason,
            "clips": [list(clip) for clip in self.clips],
            "replaces": [list(names) for names in self.replaces],
            "output_names": [list(names) for names in self.output_names],
        }
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> QuantizeActivation:
        """The inverse of `get_config`."""
        return cls(**{**config, "quantizer": _host.deserialize_object(config["quantizer"])})
