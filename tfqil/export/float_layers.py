"""The layer of a deployable model whose weights fit no integer type: it computes in float with the trained values."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfqil import _host
from tfqil.export.layers import hands_mask_on, kept_in_float, multiply


class FloatLinear(_host.Layer):  # type: ignore[misc, name-defined]
    """A convolution, depthwise convolution or dense layer, y = factor * (x * w) + bias per channel.

    The kernel stays as it was trained, apart from the factors of a batch normalization: float16 holds powers of two,
    and few other numbers, exactly.

    Args:
        operator: "conv", "depthwise" or "dense".
        kernel: float32, (kh, kw, I, O), (kh, kw, C, M) or (I, O).
        factors, bias: float32, (O,) or (C * M,).
        options: strides, padding and dilations, as `multiply` takes them.
    """

    def __init__(
        self,
        *,
        name: str,
        operator: str,
        kernel: NDArray[np.float32],
        factors: NDArray[np.float32],
        bias: NDArray[np.float32],
        **options: Any,
    ) -> None:
        super().__init__(name=name, dtype="float32")
        self.supports_masking = hands_mask_on(operator, kernel)
        self.operator, self.kernel = operator, kernel
        self._factors, self._bias = factors, bias
        self._options = options

    def call(self, inputs: Any) -> tf.Tensor:
        """The output in float, the same eagerly and traced."""
        outputs = multiply(inputs, tf.constant(self.kernel), operator=self.operator, **self._options)
        if np.any(self._factors != 1):
            outputs = kept_in_float(outputs) * self._factors
        return outputs + self._bias if np.any(self._bias) else outputs
