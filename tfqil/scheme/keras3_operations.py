"""Operations of Keras 3 (`x + y`, `keras.ops`) as calls of TensorFlow functions in a functional graph of tf_keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfqil import _host

# Their arguments take the type of the result, as Keras 3 promotes them.
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": tf.add,
    "Divide": tf.truediv,
    "Matmul": tf.matmul,
    "Maximum": tf.maximum,
    "Minimum": tf.minimum,
    "Multiply": tf.multiply,
    "Power": tf.pow,
    "Subtract": tf.subtract,
    "TrueDivide": tf.truediv,
}
_OF_ONE_TENSOR: dict[str, Callable[[Any], Any]] = {
    "Abs": tf.abs,
    "Absolute": tf.abs,
    "Exp": tf.exp,
    "HardSigmoid": lambda x: tf.nn.relu6(x + 3.0) * (1.0 / 6.0),
    "HardSilu": lambda x: x * (tf.nn.relu6(x + 3.0) * (1.0 / 6.0)),
    "Log": tf.math.log,
    "Negative": tf.negative,
    "Relu": tf.nn.relu,
    "Relu6": tf.nn.relu6,
    "Rsqrt": tf.math.rsqrt,
    "Selu": tf.nn.selu,
    "Sigmoid": tf.sigmoid,
    "Silu": tf.nn.silu,
    "Softplus": tf.math.softplus,
    "Sqrt": tf.sqrt,
    "Square": tf.square,
    "StopGradient": tf.stop_gradient,
    "Tanh": tf.tanh,
}
# With arguments that the operation holds.
_WITH_ARGUMENTS: dict[str, Callable[[Any, Any], Any]] = {
    "Cast": lambda operation, x: tf.cast(x, operation.dtype),
    "Clip": lambda operation, x: tf.clip_by_value(x, operation.x_min, operation.x_max),
    "Concatenate": lambda operation, x: tf.concat(x, operation.axis),
    "Elu": lambda operation, x: tf.nn.elu(x),
    "ExpandDims": lambda operation, x: tf.expand_dims(x, operation.axis),
    "Gelu": lambda operation, x: tf.nn.gelu(x, operation.approximate),
    "LeakyRelu": lambda operation, x: tf.nn.leaky_relu(x, operation.negative_slope),
    "LogSoftmax": lambda operation, x: tf.nn.log_softmax(x, operation.axis),
    "Max": lambda operation, x: tf.reduce_max(x, operation.axis, operation.keepdims),
    "Mean": lambda operation, x: tf.reduce_mean(x, operation.axis, operation.keepdims),
    "Min": lambda operation, x: tf.reduce_min(x, operation.axis, operation.keepdims),
    "Pad": lambda operation, x: tf.pad(x, operation.pad_width),
    "Reshape": lambda operation, x: tf.reshape(x, operation.newshape),
    "Softmax": lambda operation, x: tf.nn.softmax(x, operation.axis),
    "Split": lambda operation, x: tf.split(x, operation.indices_or_sections, operation.axis),
    "Squeeze": lambda operation, x: tf.squeeze(x, operation.axis),
    "Stack": lambda operation, x: tf.stack(x, operation.axis),
    "Sum": lambda operation, x: tf.reduce_sum(x, operation.axis, operation.keepdims),
    "Transpose": lambda operation, x: tf.transpose(x, operation.axes),
}
# What an operation must hold for the function above to do the same.
_CONDITIONS: dict[str, Callable[[Any], bool]] = {
    "Elu": lambda operation: operation.alpha == 1.0,
    "ExpandDims": lambda operation: isinstance(operation.axis, int),
    "LogSoftmax": lambda operation: isinstance(operation.axis, int),
    "Max": lambda operation: getattr(operation, "initial", None) is None,
    "Min": lambda operation: getattr(operation, "initial", None) is None,
    "Pad": lambda operation: operation.mode == "constant" and len(operation.pad_width) > 1,
    "Softmax": lambda operation: isinstance(operation.axis, int),
    "Split": lambda operation: isinstance(operation.indices_or_sections, int),
}


def why_unknown_operation(operation: Any) -> str | None:
    """Why an operation of Keras 3 cannot become a TensorFlow call, in a few words; None if it can."""
    name = type(operation).__name__
    if type(operation).__module__.partition(".")[0] != "keras":
        return f"{name} is an operation of its own"
    if name not in {*_ARITHMETIC, *_OF_ONE_TENSOR, *_WITH_ARGUMENTS, "GetItem", "ReLU"}:
        return f"the operation {name} has no counterpart here"
    if not _CONDITIONS.get(name, lambda _: True)(operation):
        return f"the operation {name} with these arguments has no counterpart here"
    return None


def call_operation(operation: Any, dtype: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The outputs of an operation of Keras 3 on tensors of tf_keras.

    Args:
        operation: one that `why_unknown_operation` has nothing against.
        dtype: of its output in Keras 3.
        arguments: of its call.
        keywords: of its call.

    Raises:
        TypeError: its call has arguments that the TensorFlow function does not take.
    """
    name = type(operation).__name__
    if name in _ARITHMETIC:
        return _ARITHMETIC[name](*(_of_type(value, dtype) for value in arguments), **keywords)
    if name in _OF_ONE_TENSOR:
        return call_function(name, *arguments, **keywords)
    if name == "GetItem":
        return _item(*arguments, **keywords)
    if name == "ReLU":
        slope, ceiling, threshold = operation.negative_slope, operation.max_value, operation.threshold
        return _host.keras.layers.ReLU(ceiling, slope, threshold, name=_host.scope_name(operation.name))(*arguments)
    return _WITH_ARGUMENTS[name](operation, *arguments, **keywords)


def call_function(name: str, tensor: Any) -> Any:
    """The output of an operation of one tensor and no arguments, such as HardSigmoid."""
    return _OF_ONE_TENSOR[name](tensor)


def _of_type(value: Any, dtype: str) -> Any:
    if _host.is_symbolic(value):
        return value if value.dtype.name == dtype else tf.cast(value, dtype)
    return tf.constant(np.asarray(value), dtype)


def _item(tensor: Any, key: Any) -> Any:
    """A part of a tensor; an ellipsis is written out, since tf_keras cannot save one."""
    keys = list(key) if isinstance(key, (list, tuple)) else [key]
    for place, part in enumerate(keys):
        if part is Ellipsis:
            named = sum(other is not None for other in keys) - 1
            keys[place : place + 1] = [slice(None)] * (tensor.shape.rank - named)
            break
    return tensor[tuple(keys)]
