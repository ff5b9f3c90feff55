"""What kind of operation a layer is: the one table that placement, bias rounding and lowering go by."""

from __future__ import annotations

import enum
from typing import Any

from tfqil import _host

layers = _host.keras.layers
_activation_name = _host.keras.activations.serialize


class Kind(enum.Enum):
    """What a layer does to a grid."""

    INPUT = "reads the model's input"
    LINEAR = "multiplies by a kernel"
    NORM = "batch normalization"
    RELU = "clips at 0"
    RELU6 = "clips at 0 and 6"
    LOOKUP = "has an output grid that the runtime prescribes"
    SUM = "adds tensors"
    CONCATENATE = "joins tensors"
    MEAN = "averages over all positions"
    AVERAGE_POOL = "averages over windows"
    KEEP = "keeps the grid of its input"


# The output grids that the int8 specification prescribes: step and code of 0.
LOOKUP_GRIDS = {"softmax": (1 / 256, 0), "sigmoid": (1 / 256, 0), "tanh": (1 / 128, 128)}

_BY_TYPE = {
    layers.InputLayer: Kind.INPUT,
    layers.BatchNormalization: Kind.NORM,
    layers.Add: Kind.SUM,
    layers.Concatenate: Kind.CONCATENATE,
    layers.GlobalAveragePooling2D: Kind.MEAN,
    layers.AveragePooling2D: Kind.AVERAGE_POOL,
    layers.MaxPooling2D: Kind.KEEP,
    layers.Flatten: Kind.KEEP,
    layers.Reshape: Kind.KEEP,
    layers.ZeroPadding2D: Kind.KEEP,
    layers.Dropout: Kind.KEEP,
    layers.Softmax: Kind.LOOKUP,
}
_BY_ACTIVATION = {
    "linear": Kind.KEEP,
    "relu": Kind.RELU,
    "relu6": Kind.RELU6,
    **dict.fromkeys(LOOKUP_GRIDS, Kind.LOOKUP),
}


def activation_name(layer: Any) -> str:
    """The name of a layer's activation function; 'softmax' for a Softmax layer."""
    if isinstance(layer, layers.Softmax):
        return "softmax"
    function = getattr(layer, "activation", None)
    if function is None:
        return "linear"
    name = _activation_name(function)
    return name if isinstance(name, str) else type(function).__name__


def kind_of(layer: Any) -> Kind | None:
    """The kind of a layer; None if this package does not know it.

    Subclasses count as unknown: they may compute anything.
    """
    if type(layer) is layers.ReLU:
        return _relu_kind(layer)
    if type(layer) is layers.Activation:
        return _BY_ACTIVATION.get(activation_name(layer))
    if type(layer) is layers.Softmax and layer.axis != -1:
        return None
    if type(layer) is layers.BatchNormalization and not _normalizes_last_axis(layer):
        return None
    if _host.kernel_name(layer):
        return Kind.LINEAR
    return _BY_TYPE.get(type(layer))


def _normalizes_last_axis(layer: Any) -> bool:
    axes = list(layer.axis) if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    last = layer.input_spec.ndim - 1 if layer.input_spec is not None else -1
    return axes in ([-1], [last])


def _relu_kind(layer: Any) -> Kind | None:
    if float(layer.negative_slope) or float(layer.threshold):
        return None
    if layer.max_value is None:
        return Kind.RELU
    return Kind.RELU6 if float(layer.max_value) == 6.0 else None


def has_kernel(layer: Any) -> bool:
    """Whether a layer multiplies by a kernel, or by two."""
    return kind_of(layer) is Kind.LINEAR or type(layer) is layers.SeparableConv2D


def has_known_activation(layer: Any) -> bool:
    """Whether the inline activation of a layer, if it has any, is one that `kind_of` knows as a layer."""
    return activation_name(layer) in _BY_ACTIVATION


def supported_layers() -> str:
    """The layer types that `kind_of` knows, for error messages and the README."""
    names = {cls.__name__ for cls in _BY_TYPE} | {"Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Dense", "ReLU"}
    return ", ".join(sorted(names)) + f", Activation({'|'.join(_BY_ACTIVATION)})"
