"""What layers multiply by."""

from __future__ import annotations

import collections.abc
import contextlib
import math
import threading
from typing import Any

import tensorflow as tf

from tfqil._host.framework import keras


def kernel_name(layer: Any) -> str | None:
    """The attribute that holds what a layer multiplies by: its kernel, or a PReLU's slopes; None for other layers."""
    if type(layer) is keras.layers.DepthwiseConv2D:
        return "depthwise_kernel"
    if type(layer) is keras.layers.PReLU:
        return "alpha"
    if type(layer) in (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv2DTranspose, keras.layers.Dense):
        return "kernel"
    return None


def is_wrapped_kernel(layer: Any) -> bool:
    """Whether a layer is a wrapper that quantizes the kernel of one that multiplies by it."""
    return hasattr(layer, "weight_quantizer") and hasattr(layer.layer, "use_bias")


def channel_shape(layer: Any, kernel_shape: collections.abc.Sequence[int]) -> tuple[int, ...]:
    """The trailing part of a kernel's shape that numbers its output channels.

    (O,) for (kh, kw, I, O) and (I, O); (C, M) for the depthwise kernel (kh, kw, C, M). Of a transposed convolution
    it is that of the kernel with its channels last.
    """
    if is_transposed(layer):
        return (int(kernel_shape[-2]),)
    trailing = 2 if isinstance(layer, keras.layers.DepthwiseConv2D) else 1
    return tuple(int(size) for size in kernel_shape[-trailing:])


def is_transposed(layer: Any) -> bool:
    """Whether the kernel of a layer has its output channels before its input channels: (kh, kw, O, I)."""
    return isinstance(layer, keras.layers.Conv2DTranspose)


def with_channels_last(layer: Any, kernel: Any) -> Any:
    """A kernel of a layer with its output channels on the last axes; given such a one, the kernel again."""
    return tf.transpose(kernel, [0, 1, 3, 2]) if is_transposed(layer) else kernel


def multiplications(wrapper: Any, nodes: collections.abc.Sequence[Any]) -> int | None:
    """How many products with its kernel a wrapped layer computes for one example in its calls; None if a size is open.

    The weights of the kernel, once for each position of the output (of the input, if the convolution is transposed).
    """
    layer = wrapper.layer
    if kernel_name(layer) == "alpha":
        return None
    shapes = [(node.input_shapes if is_transposed(layer) else node.output_shapes)[1:-1] for node in nodes]
    kernel = getattr(layer, str(kernel_name(layer))).shape.num_elements()
    return None if any(None in shape for shape in shapes) else int(kernel) * sum(map(math.prod, shapes))


# Two threads that run one model would else find each other's kernels in its layers, and put those back for good.
_REPLACING = threading.RLock()


@contextlib.contextmanager
def kernel_replaced(layer: Any, value: Any) -> collections.abc.Iterator[None]:
    """Lets a layer compute with another kernel for a while, in one thread at a time."""
    # Not by `setattr`: Keras would forget the variable, and append it behind the others when it comes back.
    attributes, name = vars(layer), kernel_name(layer)
    with _REPLACING:
        variable = attributes[name]
        attributes[name] = value
        try:
            yield
        finally:
            attributes[name] = variable
