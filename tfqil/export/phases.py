"""A transposed convolution as a convolution and DEPTH_TO_SPACE, which computes the same integers.

Output pixel s m + p of a transposed convolution with stride s reads the kernel's rows p, p + s, p + 2 s, ... over the
inputs m, m - 1, m - 2, ...: for each of the s x s remainders, or phases, it is an ordinary convolution. So one
convolution computes all phases as channels, and DEPTH_TO_SPACE lays them out as pixels. TFLiteConverter writes no
TRANSPOSE_CONV with a step per channel, and XNNPACK takes none with an open batch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfqil import _host

keras_layers = _host.keras.layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phases:
    """How a transposed convolution is written.

    Attributes:
        name: of the layer.
        window: height and width of its kernel.
        stride: along both axes.
        padding: "same" or "valid".
    """

    name: str
    window: tuple[int, int]
    stride: int
    padding: str

    def kernel(self, kernel: NDArray[Any]) -> NDArray[Any]:
        """The kernel of the convolution, (kh', kw', I, s * s * O), of one with channels last, (kh, kw, I, O).

        Forward: k'[i, j, c, p, q, o] = k[s (kh' - 1 - i) + p, s (kw' - 1 - j) + q, c, o], 0 beyond the window, with
        kh' = ceil(kh / s) and kw' = ceil(kw / s).
        """
        (height, width), s = self._taps, self.stride
        inputs, outputs = kernel.shape[2:]
        full = np.zeros((height * s, width * s, inputs, outputs), kernel.dtype)
        full[: self.window[0], : self.window[1]] = kernel
        phases = full.reshape(height, s, width, s, inputs, outputs)[::-1, :, ::-1]
        return phases.transpose(0, 2, 4, 1, 3, 5).reshape(height, width, inputs, s * s * outputs)

    def per_channel(self, values: NDArray[Any]) -> NDArray[Any]:
        """What belongs to an output channel, for each phase of it."""
        return np.tile(values, self.stride**2)

    def padded(self, tensor: Any) -> Any:
        """The image with the border that the phases in the output read."""
        border = [
            tuple(taps - 1 - cropped // self.stride for cropped in self._cropping(size, taps))
            for size, taps in zip(self.window, self._taps, strict=True)
        ]
        return keras_layers.ZeroPadding2D(border, name=f"{self.name}_border")(tensor) if np.any(border) else tensor

    def laid_out(self, tensor: Any) -> Any:
        """The phases as pixels, of them those that are in the output."""
        if self.stride > 1:
            tensor = tf.nn.depth_to_space(tensor, self.stride)
        cropping = [
            tuple(cropped % self.stride for cropped in self._cropping(size, taps))
            for size, taps in zip(self.window, self._taps, strict=True)
        ]
        return keras_layers.Cropping2D(cropping, name=f"{self.name}_crop")(tensor) if np.any(cropping) else tensor

    def _cropping(self, window: int, taps: int) -> tuple[int, int]:
        """How many pixels before and behind the output the phases of all windows have that touch the image.

        Of n inputs they have s (n + taps - 1) pixels, the output n s or, without padding, (n - 1) s + max(window, s).
        """
        s = self.stride
        if self.padding == "valid":
            return 0, taps * s - max(window, s)
        before = max(window - s, 0) // 2
        return before, (taps - 1) * s - before

    @property
    def _taps(self) -> tuple[int, int]:
        """Height and width of the convolution's kernel."""
        height, width = (-(-size // self.stride) for size in self.window)
        return height, width
