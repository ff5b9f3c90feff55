"""The scheme: TFMOT's hook that turns a float model into one that trains on integer grids."""

from __future__ import annotations

from typing import Any

import tensorflow_model_optimization as tfmot

from tfqil import _host
from tfqil.numerics.grid import check_bits
from tfqil.scheme.config import LowBitQuantizeConfig
from tfqil.scheme.expand import expand
from tfqil.scheme.kinds import Kind, has_kernel, kind_of
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer
from tfqil.scheme.placement import Choice, Plan, Planner, require_known_layers

qat = tfmot.quantization.keras


class LowBitScheme(qat.QuantizeScheme):  # type: ignore[misc, name-defined]
    """A TFMOT scheme that places low-bit quantizers over a whole model.

        annotated = quantize_annotate_model(model)
        q_model = quantize_apply(annotated, LowBitScheme(QILQuantizeConfig(2, 2)))

    A config given to `quantize_annotate_layer` overrides the scheme's for that layer.

    Args:
        config: the config of all layers with a kernel but the edges.
        edge_bits: width of weights and activations of the layers at the model's inputs and outputs, 2 to 8; None
            leaves them in float, as the papers do.

    Raises:
        TypeError or ValueError: an argument of another kind or out of range.
    """

    def __init__(self, config: LowBitQuantizeConfig, edge_bits: int | None = 8) -> None:
        if not isinstance(config, LowBitQuantizeConfig):
            raise TypeError(
                f"Got {config!r} as config, expected a LowBitQuantizeConfig: for example tfqil.QILQuantizeConfig(4, 8)."
            )
        if edge_bits is not None:
            check_bits(edge_bits, name="edge_bits")
        self.config = config
        self.edge_bits = edge_bits

    def get_layout_transformer(self) -> LowBitLayoutTransform:
        """The transform that places everything."""
        return LowBitLayoutTransform(self.config, self.edge_bits)

    def get_quantize_registry(self) -> EmptyRegistry:
        """A registry that leaves nothing to wrap."""
        return EmptyRegistry()


class EmptyRegistry(qat.QuantizeRegistry):  # type: ignore[misc, name-defined]
    """Supports no layer: the layout transform has placed everything."""

    def supports(self, layer: Any) -> bool:
        """False."""
        del layer
        return False

    def get_quantize_config(self, layer: Any) -> None:
        """None."""
        del layer


class LowBitLayoutTransform(qat.QuantizeLayoutTransform):  # type: ignore[misc, name-defined]
    """Returns the finished model and an empty layer map, so that `quantize_apply` has nothing left to do."""

    def __init__(self, config: LowBitQuantizeConfig, edge_bits: int | None) -> None:
        self._config = config
        self._edge_bits = edge_bits

    def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Places quantizers in a model that is a copy of the user's."""
        _host.require_functional(model)
        require_known_layers(model)
        overrides = _overrides(model, layer_quantize_map)
        expanded, origins = expand(model)
        configs = {name: overrides[origin] for name, origin in origins.items() if origin in overrides}
        plan = Planner(expanded, configs, self._config, self._edge_bits).plan()
        return _placed(expanded, plan), {}


def quantize_model(model: Any, config_or_scheme: LowBitQuantizeConfig | LowBitScheme) -> Any:
    """Annotates and quantizes a whole model in one call; the model itself is not changed.

    Args:
        model: a built Functional or Sequential tf_keras model; layers may be annotated with configs of their own.
        config_or_scheme: a config for all layers, with 8-bit edges, or a `LowBitScheme`.

    Returns:
        A functional model with the same weights, ready for `calibrate`, `compile` and `fit`.

    Raises:
        TypeError: a Keras 3 or subclassed model, or no model.
        ValueError: an unbuilt model, or layers whose arithmetic is not known.
    """
    scheme = config_or_scheme if isinstance(config_or_scheme, LowBitScheme) else LowBitScheme(config_or_scheme)
    _host.require_functional(model)
    if any(isinstance(layer, (QuantizedLayer, QuantizeActivation)) for layer in model.layers):
        raise ValueError(f"Got the model {model.name!r}, which is quantized already, expected a float model.")
    require_known_layers(model)
    return qat.quantize_apply(qat.quantize_annotate_model(model), scheme)


def _overrides(model: Any, layer_quantize_map: dict[str, Any]) -> dict[str, LowBitQuantizeConfig]:
    """The configs given to single layers, by name."""
    with_kernel = {layer.name for layer in model.layers if has_kernel(layer)}
    missing = sorted(with_kernel - set(layer_quantize_map))
    if missing:
        raise ValueError(
            f"Got a model with layers that are not annotated ({', '.join(missing)}), expected all: call "
            "quantize_annotate_model on the model; it keeps the configs of the layers annotated before."
        )
    overrides = {}
    for name, entry in layer_quantize_map.items():
        config = entry.get("quantize_config")
        if config is None:
            continue
        if not isinstance(config, LowBitQuantizeConfig):
            raise TypeError(
                f"Got {type(config).__name__} for layer {name!r}, expected a LowBitQuantizeConfig: only its quantizers "
                "can name their grids."
            )
        if name not in with_kernel:
            raise ValueError(
                f"Got a config for layer {name!r}, which has no kernel, expected one for a layer that multiplies: a "
                "config says how a layer quantizes its kernel and its inputs."
            )
        overrides[name] = config
    return overrides


def _placed(model: Any, plan: Plan) -> Any:
    """Rebuilds a model with the quantizers of a plan."""
    wrappers: dict[str, QuantizedLayer] = {}
    between: dict[tuple[int, Any], Any] = {}

    def quantized_input(node: _host.Node, tensors: list[Any]) -> list[Any]:
        """The inputs of a node, with a quantizer between where the plan has one; readers that ask alike share it."""
        result = []
        for number, tensor in zip(node.inputs, tensors, strict=True):
            choice = plan.between.get((number, node.layer.name))
            if choice is not None:
                key = (number, choice.quantizer)
                if key not in between:
                    between[key] = _activation(choice, f"quantize_input_of_{node.layer.name}")(tensor)
                tensor = between[key]
            result.append(tensor)
        return result

    def call(node: _host.Node, tensors: list[Any]) -> Any:
        layer, inputs = node.layer, quantized_input(node, tensors) if node.inputs else tensors
        choice = plan.kernels.get(layer.name)
        if choice is not None:
            if layer.name not in wrappers:
                config = LowBitQuantizeConfig(weights=choice.quantizer)
                wrappers[layer.name] = QuantizedLayer(layer, config, reason=choice.reason)
            layer = wrappers[layer.name]
        is_passed = layer.name in plan.absorbed or not node.inputs
        outputs = inputs[0] if is_passed else _host.run_as_before(node, layer, inputs)
        produced = plan.tensors.get(node.outputs[0])
        if produced is None:
            return outputs
        ceiling = 6.0 if kind_of(node.layer) is Kind.RELU6 else None
        return _activation(produced, f"quantize_{node.layer.name}", ceiling)(outputs)

    placed = _host.replay(model, call)
    for wrapper in wrappers.values():
        wrapper.initialize()
    return placed


def _activation(choice: Choice, name: str, ceiling: float | None = None) -> QuantizeActivation:
    return QuantizeActivation(choice.quantizer, reason=choice.reason, ceiling=ceiling, name=name)
