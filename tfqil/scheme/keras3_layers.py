"""Layers of Keras 3 as layers of tf_keras: what both have, and what their configs call differently."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from tfqil import _host

_keras = _host.keras

# Layers whose outputs are those of the layer of the same name in tf_keras.
CARRIED_LAYERS = frozenset({
    "Activation", "ActivityRegularization", "Add", "AdditiveAttention", "AlphaDropout", "Attention", "Average",
    "AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "BatchNormalization", "Bidirectional", "CenterCrop",
    "Concatenate", "Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose", "Conv3D", "Conv3DTranspose",
    "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "Cropping1D", "Cropping2D", "Cropping3D", "Dense", "DepthwiseConv1D",
    "DepthwiseConv2D", "Dot", "Dropout", "ELU", "EinsumDense", "Embedding", "Flatten", "GRU", "GRUCell",
    "GaussianDropout", "GaussianNoise", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D", "GroupNormalization", "Identity", "LSTM",
    "LSTMCell", "LayerNormalization", "LeakyReLU", "Masking", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D",
    "Maximum", "Minimum", "MultiHeadAttention", "Multiply", "Normalization", "PReLU", "Permute", "RNN",
    "RandomBrightness", "RandomContrast", "RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom", "ReLU",
    "RepeatVector", "Rescaling", "Reshape", "Resizing", "SeparableConv1D", "SeparableConv2D", "SimpleRNN",
    "SimpleRNNCell", "Softmax", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "StackedRNNCells",
    "Subtract", "TimeDistributed", "UnitNormalization", "UpSampling1D", "UpSampling2D", "UpSampling3D",
    "ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D",
})  # fmt: skip
# Where wrappers keep the layers inside them, in either Keras.
INNER_LAYERS = {
    "Bidirectional": ("forward_layer", "backward_layer"),
    "RNN": ("cell",),
    "StackedRNNCells": ("cells",),
    "TimeDistributed": ("layer",),
}
# Names in Keras 3 -> in tf_keras.
_ACTIVATIONS = {
    **{name: name for name in (
        "elu", "exponential", "gelu", "leaky_relu", "linear", "log_softmax", "mish", "relu", "relu6", "selu",
        "sigmoid", "softmax", "softplus", "softsign", "tanh",
    )},
    "silu": "swish",
}  # fmt: skip
# Functions that tf_keras does not have, or has as another function: the operations to call behind the layer.
_ACTIVATIONS_BEHIND = {"hard_sigmoid": "HardSigmoid", "hard_silu": "HardSilu"}
_PARTS = {
    "constraint": _keras.constraints,
    "initializer": _keras.initializers,
    "regularizer": _keras.regularizers,
}
# Arguments that do not change what a layer computes at inference.
_WITHOUT_EFFECT = ("flash_attention", "seed", "use_cudnn")
_POLICIES = ("DTypePolicy", "FloatDTypePolicy")

# Builds a layer inside another one.
Inner = Callable[[Any], Any]


class CannotRebuildError(Exception):
    """Says in a few words why a layer has no equal in tf_keras."""


def is_keras3(value: Any, *class_names: str) -> bool:
    """Whether something is of a class of Keras 3 with one of these names, or derived from it."""
    classes = type(value).__mro__
    return any(cls.__name__ in class_names and _is_of_keras3(cls) for cls in classes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Behind:
    """What to call behind a layer whose activation tf_keras does not have.

    Attributes:
        operation: the activation.
        regularizer: a layer that regularizes what comes out of it; None without.
    """

    operation: str
    regularizer: Any


def layer_like(layer: Any, inner: Inner) -> tuple[Any, Behind | None]:
    """A layer of tf_keras that computes what one of Keras 3 computes, without its weights.

    Args:
        layer: a layer of Keras 3, no model.
        inner: makes a layer for one that stands inside it: of a wrapper, or an activation that is a layer.

    Returns:
        The layer, and what to call behind it for an activation that tf_keras does not have; or None.

    Raises:
        CannotRebuildError: there is none.
    """
    kind = type(layer).__name__
    _require_known(layer, kind)
    config = {key: _plain(value) for key, value in layer.get_config().items()}
    config["dtype"] = _policy(layer)
    config["name"] = name_of(layer)
    operation = _set_activations(layer, config, inner)
    for key, value in list(config.items()):
        part = key.rpartition("_")[2]
        if part in _PARTS and value is not None:
            _set_part(config, key, value, part)
    kind, config = _ADAPTED.get(kind, _unchanged)(layer, config, inner)
    cls = getattr(_keras.layers, kind)
    behind = None if operation is None else Behind(operation=operation, regularizer=_regularizing(config))
    try:
        return cls(**_accepted(layer, cls, config)), behind
    except (TypeError, ValueError) as error:
        raise CannotRebuildError(f"tf_keras refuses its config: {first_line(error)}") from error


def name_of(layer: Any) -> str:
    """The name of a layer or model, without what TensorFlow does not take in the name of a scope."""
    return _host.scope_name(layer.name).lstrip("_\\/>-") or type(layer).__name__.lower()


def first_line(error: Exception) -> str:
    """The first line of an error that says what is wrong."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception encountered")]
    return (lines or [type(error).__name__])[0].strip().rstrip(".")


def why_no_input(layer: Any) -> str | None:
    """Why an input of a model is none for tf_keras, in a few words; None if it is an ordinary tensor."""
    kinds = [kind for kind in ("sparse", "ragged", "optional") if getattr(layer, kind, False)]
    return f"an input with {kinds[0]}=True" if kinds else None


def _is_of_keras3(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "keras"


def _require_known(layer: Any, kind: str) -> None:
    if is_keras3(layer, "Model"):
        raise CannotRebuildError(f"{kind} is a subclassed model")
    if not _is_of_keras3(type(layer)):
        raise CannotRebuildError(f"{kind} is a custom layer")
    if kind == "Lambda":
        raise CannotRebuildError("a Lambda layer holds code written for Keras 3")
    if not hasattr(_keras.layers, kind):
        raise CannotRebuildError(f"tf_keras has no {kind}")
    if kind not in CARRIED_LAYERS:
        raise CannotRebuildError(f"{kind} is not carried over: its state or its arithmetic is another in tf_keras")


def _policy(layer: Any) -> str:
    policy = layer.dtype_policy
    if type(policy).__name__ == "DTypePolicyMap" and not len(policy):
        policy = policy.default_policy
    if type(policy).__name__ not in _POLICIES:
        raise CannotRebuildError(f"{type(layer).__name__} with the dtype policy {policy.name!r}")
    return str(policy.name)


def _set_activations(layer: Any, config: dict[str, Any], inner: Inner) -> str | None:
    """Puts activations of tf_keras into a config; returns the operation to call behind the layer, if any."""
    behind = None
    for key in ("activation", "recurrent_activation"):
        if key not in config:
            continue
        function = getattr(layer, key)
        while is_keras3(
            function, "Activation"
        ):  # tf_keras does not load such a layer as the activation of another one.
            function = function.activation
        name = getattr(function, "__name__", type(function).__name__)
        if is_keras3(function, "Layer"):
            config[key] = inner(function)
        elif str(getattr(function, "__module__", "")).partition(".")[0] != "keras":
            raise CannotRebuildError(f"{type(layer).__name__} with the function {name!r} as {key}")
        elif name in _ACTIVATIONS:
            config[key] = _ACTIVATIONS[name]
        elif name in _ACTIVATIONS_BEHIND and "recurrent_initializer" not in config:
            config[key], behind = "linear", _ACTIVATIONS_BEHIND[name]
        else:
            raise CannotRebuildError(f"{type(layer).__name__} with {key}={name!r}, another one in tf_keras or none")
    return behind


def _regularizing(config: dict[str, Any]) -> Any:
    """A layer with the activity regularizer of a config, which loses it; None without one."""
    regularizer = config.pop("activity_regularizer", None)
    if regularizer is None:
        return None
    name, dtype = f"{config['name']}_activity", config["dtype"]
    return _keras.layers.Activation("linear", activity_regularizer=regularizer, name=name, dtype=dtype)


def _set_part(config: dict[str, Any], key: str, value: Any, part: str) -> None:
    """Puts an initializer, a regularizer or a constraint of tf_keras into a config."""
    name = value["class_name"] if isinstance(value, dict) else str(value)
    if isinstance(value, dict) and str(value["module"]).startswith("keras.") and hasattr(_PARTS[part], name):
        cls = getattr(_PARTS[part], name)
        config[key] = cls(**{name: given for name, given in value["config"].items() if name in _defaults(cls)})
    elif part == "initializer":
        del config[key]  # The weights are copied.
    else:
        raise CannotRebuildError(f"{key}={name}")


def _plain(value: Any) -> Any:
    """A value of a config with arrays as lists."""
    if isinstance(value, dict) and value.get("class_name") in ("__numpy__", "__tensor__"):
        return value["config"]["value"]
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return np.asarray(value).tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _accepted(layer: Any, cls: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a config that a class of tf_keras takes; raises if another one has an effect."""
    known = {"activity_regularizer", *_defaults(cls)}
    if issubclass(cls, _keras.layers.RNN):
        known.add("zero_output_for_mask")
    defaults = _defaults(type(layer))
    accepted = {}
    for key, value in config.items():
        if key == "seed" and not isinstance(value, int):
            continue
        if key in known:
            accepted[key] = value
        elif key == "data_format" and value == "channels_last":
            continue
        elif key not in _WITHOUT_EFFECT and _as_tuple(value) not in (None, False, _as_tuple(defaults.get(key))):
            raise CannotRebuildError(f"{type(layer).__name__} with {key}={value!r}")
    return accepted


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _defaults(cls: Any) -> dict[str, Any]:
    """The arguments of the constructors of a class and those it derives from, with their defaults."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters
            found = {**{name: parameter.default for name, parameter in parameters.items()}, **found}
    return found


_Adapted = tuple[str, dict[str, Any]]


def _unchanged(layer: Any, config: dict[str, Any], inner: Inner) -> _Adapted:
    return type(layer).__name__, config


def _batch_normalization(layer: Any, config: dict[str, Any], inner: Inner) -> _Adapted:
    if config.get("renorm"):
        raise CannotRebuildError("BatchNormalization with renorm=True")
    return "BatchNormalization", {key: value for key, value in config.items() if not key.startswith("renorm")}


def _bidirectional(layer: Any, config: dict[str, Any], inner: Inner) -> _Adapted:
    forward, backward = inner(layer.forward_layer), inner(layer.backward_layer)
    # The layer puts these in front of the names again.
    forward._name = forward.name.removeprefix("forward_")
    backward._name = backward.name.removeprefix("backward_")
    return "Bidirectional", {**config, "layer": forward, "backward_layer": backward}


def _identity(layer: Any, config: dict[str, Any], inner: Inner) -> _Adapted:
    return "Activation", {**config, "activation": "linear"}  # Which hands masks on, as Identity does in Keras 3.


def _leaky_relu(layer: Any, config: dict[str, Any], inner: Inner) -> _Adapted:
    return "LeakyReLU", {"alpha": config.pop("negative_slope"), **config}


def _resizing(layer: Any, config: dict[str, Any], inner: Inner) -> _Adapted:
    types = {tensor.dtype for node in layer._inbound_nodes for tensor in node.input_tensors} | {layer.compute_dtype}
    integers = sorted(kind for kind in types if "int" in kind)
    if integers and layer.interpolation != "nearest":
        raise CannotRebuildError(f"Resizing of {integers[0]}, which Keras 3 alone rounds: give it floats")
    return "Resizing", config


def _transposed(layer: Any, config: dict[str, Any], inner: Inner) -> _Adapted:
    return type(layer).__name__, {**config, "output_padding": layer.output_padding}  # Keras 3.12 leaves it out.


def _wrapper(layer: Any, config: dict[str, Any], inner: Inner) -> _Adapted:
    kind = type(layer).__name__
    (attribute,) = INNER_LAYERS[kind]
    inside = getattr(layer, attribute)
    config[attribute] = [inner(part) for part in inside] if isinstance(inside, (list, tuple)) else inner(inside)
    return kind, config


_ADAPTED: dict[str, Callable[[Any, dict[str, Any], Inner], _Adapted]] = {
    "BatchNormalization": _batch_normalization,
    "Bidirectional": _bidirectional,
    "Conv1DTranspose": _transposed,
    "Conv2DTranspose": _transposed,
    "Conv3DTranspose": _transposed,
    "Identity": _identity,
    "LeakyReLU": _leaky_relu,
    "RNN": _wrapper,
    "Resizing": _resizing,
    "StackedRNNCells": _wrapper,
    "TimeDistributed": _wrapper,
}
