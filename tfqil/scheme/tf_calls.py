"""Plain TensorFlow calls in functional graphs, as layers: `x * 2.0` is a Rescaling, `tf.nn.relu(x)` a ReLU."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfqil import _host
from tfqil.scheme.kinds import MOVING_FUNCTIONS

layers = _host.keras.layers


def as_layer(name: str, function: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    """The layer that does what a call does, and the tensors to call it on; None if there is none.

    Args:
        name: of the layer.
        function: name of the TensorFlow function.
        arguments: of the call, in the order of the function's parameters, with its defaults.
    """
    translate = _CALLS.get(function)
    return None if translate is None else translate(name, arguments)


def arguments_in_order(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[Any]:
    """The arguments of a call in the order of the function's parameters, defaults filled in."""
    bound = inspect.signature(layer.function).bind(*arguments, **keywords)
    bound.apply_defaults()
    return list(bound.arguments.values())


def is_known_call(layer: Any) -> bool:
    """Whether a layer stands for a call that `as_layer` knows."""
    function = _host.function_of(layer)
    return function in _CALLS or function in MOVING_FUNCTIONS


def constant(value: Any, tensor: Any) -> float | list[float] | None:
    """A number, or one number per channel of a tensor, as layers store it; None for anything else."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None
    if array.size == 1:
        return float(array.reshape(()))
    channels = tensor.shape[-1]
    return array.reshape(-1).tolist() if array.size == array.shape[-1] == channels else None


def _affine(name: str, tensor: Any, scale: Any, offset: Any) -> tuple[Any, list[Any]] | None:
    scale, offset = constant(scale, tensor), constant(offset, tensor)
    if scale is None or offset is None or not tensor.dtype.is_floating:
        return None
    return layers.Rescaling(scale, offset, name=name), [tensor]


def _add(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    first, second = arguments[:2]
    if _host.is_symbolic(first) and _host.is_symbolic(second):
        return _merge(layers.Add, name, first, second)
    tensor, other = (first, second) if _host.is_symbolic(first) else (second, first)
    return _affine(name, tensor, 1.0, other)


def _subtract(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    first, second = arguments[:2]
    if _host.is_symbolic(first) and _host.is_symbolic(second):
        return _merge(layers.Subtract, name, first, second)
    if _host.is_symbolic(first):
        negated = constant(second, first)
        return None if negated is None else _affine(name, first, 1.0, -np.asarray(negated))
    return _affine(name, second, -1.0, first)


def _multiply(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    first, second = arguments[:2]
    if _host.is_symbolic(first) and _host.is_symbolic(second):
        return _merge(layers.Multiply, name, first, second)
    tensor, other = (first, second) if _host.is_symbolic(first) else (second, first)
    return _affine(name, tensor, other, 0.0)


def _divide(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    first, second = arguments[:2]
    if _host.is_symbolic(second):
        return None
    divisor = constant(second, first)
    if divisor is None or not np.all(divisor):
        return None
    return _affine(name, first, 1.0 / np.asarray(divisor), 0.0)


def _merge(kind: Any, name: str, first: Any, second: Any) -> tuple[Any, list[Any]] | None:
    """A layer that merges two tensors; the layers of Keras move axes where the numbers of axes differ."""
    if len(first.shape) != len(second.shape) or not first.dtype.is_floating:
        return None
    return kind(name=name), [first, second]


def _function(build: Callable[[str], Any]) -> Callable[[str, list[Any]], Any]:
    """A call with one tensor and nothing else that matters."""
    return lambda name, arguments: (build(name), [arguments[0]])


def _same(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    """A conversion to the type that the tensor has."""
    tensor, dtype = arguments[:2]
    is_same = dtype is None or tf.as_dtype(dtype) == tensor.dtype
    return (layers.Activation("linear", name=name), [tensor]) if is_same else None


def _activation(function: str) -> Callable[[str, list[Any]], Any]:
    return _function(lambda name: layers.Activation(function, name=name))


def _silu(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    tensor, beta = arguments[:2]
    return (layers.Activation("swish", name=name), [tensor]) if constant(beta, tensor) == 1.0 else None


def _softmax(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    tensor, axis = arguments[:2]
    return (layers.Softmax(name=name), [tensor]) if axis in (None, -1, len(tensor.shape) - 1) else None


def _gelu(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    """The exact one; the layers of Keras do not know the one with tanh."""
    tensor, approximate = arguments[:2]
    return None if approximate else (layers.Activation("gelu", name=name), [tensor])


def _leaky_relu(name: str, arguments: list[Any]) -> tuple[Any, list[Any]]:
    tensor, slope = arguments[:2]
    return layers.LeakyReLU(float(slope), name=name), [tensor]


def _clip(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    tensor, low, high = arguments[:3]
    low, high = (None if _host.is_symbolic(end) else constant(end, tensor) for end in (low, high))
    if low != 0.0 or not isinstance(high, float):
        return None
    return layers.ReLU(high, name=name), [tensor]


def _concatenate(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    tensors, axis = arguments[:2]
    if not all(_host.is_symbolic(tensor) and tensor.dtype.is_floating for tensor in tensors):
        return None
    rank = len(tensors[0].shape)
    # The layer counts axes without -1 for the last one differently when it is saved; both name the same axis.
    return layers.Concatenate(axis=int(axis) if int(axis) >= 0 else int(axis) + rank, name=name), list(tensors)


def _over_positions(of_images: Any, of_series: Any) -> Callable[[str, list[Any]], Any]:
    """A reduction over all axes but the first and the last, as a global pooling."""

    def translate(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
        tensor, axis, keep = arguments[:3]
        rank = len(tensor.shape)
        axes = sorted(int(a) % rank for a in np.atleast_1d(axis)) if axis is not None else []
        pooling = {4: of_images, 3: of_series}.get(rank)
        if pooling is None or axes != list(range(1, rank - 1)):
            return None
        return pooling(keepdims=bool(keep), name=name), [tensor]

    return translate


def _resize(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    tensor, size, method, preserves_ratio = arguments[:4]
    if preserves_ratio or any(map(_host.is_symbolic, _host.as_list(size))):
        return None
    height, width = (int(value) for value in np.asarray(size).reshape(-1))
    if None in tensor.shape[1:3] or height % tensor.shape[1] or width % tensor.shape[2]:
        return None
    factors = height // tensor.shape[1], width // tensor.shape[2]
    return layers.UpSampling2D(factors, interpolation=str(getattr(method, "value", method)), name=name), [tensor]


def _pad(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    """Zeros around an image."""
    tensor, paddings, *others = arguments
    mode, value = ([*others, "CONSTANT", 0][:2]) if len(others) < 2 else (others[0], others[-1])
    if len(tensor.shape) != 4 or str(mode).upper() != "CONSTANT" or value != 0 or _host.is_symbolic(paddings):
        return None
    (batch, rows, columns, channels) = np.asarray(paddings).tolist()
    if any((*batch, *channels)):
        return None
    return layers.ZeroPadding2D((tuple(rows), tuple(columns)), name=name), [tensor]


def enlarging(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
    """Repeating rows or columns as the layer that enlarges to the nearest, which is one operator in a file.

    For export only: XLA trains through `tf.repeat`, and not through the layer.
    """
    tensor, times, axis = arguments[:3]
    if len(tensor.shape) != 4 or axis not in (1, 2) or not isinstance(times, int):
        return None
    return layers.UpSampling2D((times, 1) if axis == 1 else (1, times), name=name), [tensor]


def _extreme(kind: Any, clipping: bool) -> Callable[[str, list[Any]], Any]:
    def translate(name: str, arguments: list[Any]) -> tuple[Any, list[Any]] | None:
        first, second = arguments[:2]
        if _host.is_symbolic(first) and _host.is_symbolic(second):
            return _merge(kind, name, first, second)
        tensor, other = (first, second) if _host.is_symbolic(first) else (second, first)
        return (layers.ReLU(name=name), [tensor]) if clipping and constant(other, tensor) == 0.0 else None

    return translate


_CALLS: dict[str, Callable[[str, list[Any]], tuple[Any, list[Any]] | None]] = {
    "__operators__.add": _add,
    "math.add": _add,
    "math.subtract": _subtract,
    "math.multiply": _multiply,
    "math.truediv": _divide,
    "math.divide": _divide,
    "math.negative": lambda name, arguments: _affine(name, arguments[0], -1.0, 0.0),
    "math.maximum": _extreme(layers.Maximum, clipping=True),
    "math.minimum": _extreme(layers.Minimum, clipping=False),
    "math.reduce_max": _over_positions(layers.GlobalMaxPooling2D, layers.GlobalMaxPooling1D),
    "math.reduce_mean": _over_positions(layers.GlobalAveragePooling2D, layers.GlobalAveragePooling1D),
    "math.sigmoid": _activation("sigmoid"),
    "math.tanh": _activation("tanh"),
    "compat.v1.pad": _pad,
    "pad": _pad,
    "nn.gelu": _gelu,
    "nn.leaky_relu": _leaky_relu,
    "nn.relu": _function(lambda name: layers.ReLU(name=name)),
    "nn.relu6": _function(lambda name: layers.ReLU(6.0, name=name)),
    "nn.silu": _silu,
    "nn.softmax": _softmax,
    "cast": _same,
    "clip_by_value": _clip,
    "concat": _concatenate,
    "convert_to_tensor": _same,
    "image.resize": _resize,
}
