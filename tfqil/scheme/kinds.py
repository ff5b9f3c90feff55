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
    AFFINE = "multiplies by a constant and adds one"
    RELU = "clips at 0, and perhaps at an upper end"
    LOOKUP = "has an output grid that the runtime prescribes"
    FUNCTION = "computes a function from a table"
    SUM = "adds or subtracts tensors"
    PRODUCT = "multiplies tensors"
    CONCATENATE = "joins tensors"
    MEAN = "averages over all positions"
    AVERAGE_POOL = "averages over windows"
    TIED = "computes new values on the grid of its input"
    KEEP = "keeps the grid of its input"


# The output grids that the int8 specification prescribes: step and code of 0.
LOOKUP_GRIDS = {"softmax": (1 / 256, 0), "sigmoid": (1 / 256, 0), "tanh": (1 / 128, 128)}

# The one upper end of a clip that an operator of the runtime fuses, in RELU6.
FUSED_CEILING = 6.0
# What a batch normalization or a constant does is folded into the kernel before it, or becomes a depthwise kernel.
FOLDED = (Kind.NORM, Kind.AFFINE)
# What computes a sum of products before anything is rounded, where a clip can be fused.
ACCUMULATING = (Kind.LINEAR, *FOLDED, Kind.SUM, Kind.PRODUCT)

_BY_TYPE = {
    layers.InputLayer: Kind.INPUT,
    layers.BatchNormalization: Kind.NORM,
    layers.Rescaling: Kind.AFFINE,
    layers.Add: Kind.SUM,
    layers.Subtract: Kind.SUM,
    layers.Multiply: Kind.PRODUCT,
    layers.Concatenate: Kind.CONCATENATE,
    layers.GlobalAveragePooling1D: Kind.MEAN,
    layers.GlobalAveragePooling2D: Kind.MEAN,
    layers.AveragePooling1D: Kind.AVERAGE_POOL,
    layers.AveragePooling2D: Kind.AVERAGE_POOL,
    layers.LeakyReLU: Kind.TIED,
    layers.PReLU: Kind.TIED,
    layers.Maximum: Kind.TIED,
    layers.Minimum: Kind.TIED,
    layers.Softmax: Kind.LOOKUP,
    **dict.fromkeys(
        (
            layers.ActivityRegularization,
            layers.AlphaDropout,
            layers.Cropping1D,
            layers.Cropping2D,
            layers.Dropout,
            layers.Flatten,
            layers.GaussianDropout,
            layers.GaussianNoise,
            layers.GlobalMaxPooling1D,
            layers.GlobalMaxPooling2D,
            layers.MaxPooling1D,
            layers.MaxPooling2D,
            layers.Permute,
            layers.RepeatVector,
            layers.Reshape,
            layers.SpatialDropout1D,
            layers.SpatialDropout2D,
            layers.UpSampling1D,
            layers.ZeroPadding1D,
            layers.ZeroPadding2D,
        ),
        Kind.KEEP,
    ),
}
# The runtime multiplies negative values of a leaky ReLU by a multiple of this.
LEAKY_SLOPE_UNIT = 1 / 256
# Layers of this kind that do nothing at inference.
TRAINING_ONLY = (
    layers.ActivityRegularization,
    layers.AlphaDropout,
    layers.Dropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
)
_BY_ACTIVATION = {
    "linear": Kind.KEEP,
    "relu": Kind.RELU,
    "relu6": Kind.RELU,
    "gelu": Kind.FUNCTION,
    **dict.fromkeys(LOOKUP_GRIDS, Kind.LOOKUP),
}
# TensorFlow functions that move values, whatever their arguments are.
MOVING_FUNCTIONS = frozenset({
    "__operators__.getitem", "compat.v1.squeeze", "compat.v1.transpose", "expand_dims", "identity", "nn.depth_to_space",
    "nn.space_to_depth", "repeat", "reshape", "slice", "split", "squeeze", "stop_gradient", "strided_slice",
    "transpose", "unstack",
})  # fmt: skip


def activation_name(layer: Any) -> str:
    """The name of a layer's activation function, with its module unless it is Keras's or TensorFlow's.

    'softmax' for a Softmax layer, the name of the class for an activation that is an object.
    """
    if isinstance(layer, layers.Softmax):
        return "softmax"
    function = getattr(layer, "activation", None)
    if function is None:
        return "linear"
    name = _activation_name(function)
    if not isinstance(name, str):
        return type(function).__name__
    module = str(getattr(function, "__module__", ""))
    return name if module.startswith(("tensorflow.", "tf_keras.")) else f"{module}.{name}"


def kind_of(layer: Any) -> Kind | None:
    """The kind of a layer; None if its arithmetic is not known, so that it stays in float.

    Subclasses count as unknown: they may compute anything.
    """
    return None if why_float(layer) else _kind_by_type(layer)


def why_float(layer: Any) -> str | None:
    """Why a layer stays in float, in a few words; None if it computes on integers."""
    name, kind = type(layer).__name__, _kind_by_type(layer)
    if kind is None:
        return _unknown(layer, name)
    if getattr(layer, "data_format", None) == "channels_first":
        return f"{name} with data_format='channels_first'"
    if _host.reads_mask(layer):
        return f"{name} with a mask"
    if isinstance(layer, (*TRAINING_ONLY, layers.BatchNormalization)) and _host.always_trains(layer):
        return f"{name} with training=True"
    if _host.reads_integers(layer):
        return f"{name} of integers: give the model a float input"
    if kind is Kind.LINEAR:
        return _convolution_problem(layer, name)
    if isinstance(layer, layers.BatchNormalization) and not _normalizes_last_axis(layer):
        return f"{name} over another axis than the last"
    if isinstance(layer, layers.Softmax) and layer.axis not in (-1, _rank(layer)):
        return f"{name} over another axis than the last"
    if isinstance(layer, layers.AveragePooling1D) and not pools_whole_windows(layer):
        return f"{name} with windows beyond the border"
    return None


def _kind_by_type(layer: Any) -> Kind | None:
    if type(layer) is layers.ReLU:
        return None if float(layer.negative_slope) or float(layer.threshold) else Kind.RELU
    if type(layer) is layers.Activation:
        return _BY_ACTIVATION.get(activation_name(layer))
    if type(layer) is layers.AveragePooling2D:
        return Kind.AVERAGE_POOL if pools_whole_windows(layer) else Kind.TIED
    if type(layer) is layers.UpSampling2D:
        return Kind.KEEP if layer.interpolation == "nearest" else _tied_if(layer.interpolation == "bilinear")
    if type(layer) in _BY_TYPE:
        return _BY_TYPE[type(layer)]
    if _host.kernel_name(layer):
        return Kind.LINEAR
    function = _host.function_of(layer)
    if function == "nn.gelu":  # The exact one is an Activation: `expand` leaves only the one with tanh as a call.
        return Kind.FUNCTION
    return Kind.KEEP if function in MOVING_FUNCTIONS else None


def _tied_if(known: bool) -> Kind | None:
    return Kind.TIED if known else None


def _unknown(layer: Any, name: str) -> str:
    function = _host.function_of(layer)
    if function is not None:
        return f"tf.{function} has no integer arithmetic here"
    if type(layer) is layers.Activation:
        return f"activation {activation_name(layer)!r} has no integer arithmetic here"
    if isinstance(layer, layers.Lambda):
        return "a Lambda layer may compute anything"
    if isinstance(layer, layers.RNN) or name in ("Bidirectional", "ConvLSTM2D"):
        return f"{name} is recurrent"
    if "Attention" in name:
        return f"{name} is an attention layer"
    if not type(layer).__module__.startswith("tf_keras."):
        return f"{name} is a custom layer, which may compute anything"
    return f"{name} has no integer arithmetic here"


def _convolution_problem(layer: Any, name: str) -> str | None:
    if isinstance(layer, layers.Conv2DTranspose):
        if max(layer.dilation_rate) > 1 or any(layer.output_padding or ()):
            return f"{name} with dilation_rate or output_padding"
        if len(set(layer.strides)) > 1:
            return f"{name} with two different strides"
    if isinstance(layer, layers.DepthwiseConv2D) and len(set(layer.strides)) > 1:
        return f"{name} with two different strides"
    return None


def pools_whole_windows(layer: Any) -> bool:
    """Whether every window of an average pooling lies inside the image, so that all count as many pixels."""
    if len(set(layer.strides)) > 1:
        return False
    node = _host.latest_node(layer)
    sizes = (None,) * len(layer.pool_size) if node is None else node.input_shapes[1:-1]
    tiles = all(size is not None and size % pool == 0 for size, pool in zip(sizes, layer.pool_size, strict=True))
    return layer.padding == "valid" or (tuple(layer.strides) == tuple(layer.pool_size) and tiles)


def _normalizes_last_axis(layer: Any) -> bool:
    axes = list(layer.axis) if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    return axes in ([-1], [_rank(layer)])


def _rank(layer: Any) -> int:
    """The number of the last axis of a layer's input; -1 if it was never called."""
    return layer.input_spec.ndim - 1 if layer.input_spec is not None and layer.input_spec.ndim else -1


def ceiling_of(layer: Any) -> float | None:
    """The upper end of a layer of kind RELU; None if it has none."""
    if type(layer) is layers.ReLU:
        return None if layer.max_value is None else float(layer.max_value)
    return 6.0 if activation_name(layer) == "relu6" else None


def is_signed_by_itself(layer: Any) -> bool:
    """Whether a layer makes negative values of non-negative ones."""
    return type(layer) is layers.Subtract


def has_kernel(layer: Any) -> bool:
    """Whether a layer multiplies by a kernel, or by two."""
    return kind_of(layer) is Kind.LINEAR or type(layer) is layers.SeparableConv2D
