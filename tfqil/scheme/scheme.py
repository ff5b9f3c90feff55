"""The scheme: TFMOT's hook that turns a float model into one that trains on integer grids."""

from __future__ import annotations

import collections
import fnmatch
from collections.abc import Mapping
from typing import Any

import tensorflow_model_optimization as tfmot
from absl import logging

from tfqil import _host
from tfqil.numerics.grid import check_bits
from tfqil.scheme.config import LowBitQuantizeConfig
from tfqil.scheme.expand import expand
from tfqil.scheme.flatten import flatten
from tfqil.scheme.kinds import Kind, ceiling_of, has_kernel, kind_of
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer
from tfqil.scheme.placement import Choice, Plan, Planner
from tfqil.scheme.report import float_layers, require_no_float_layers

qat = tfmot.quantization.keras

# Inference has to see what these operators read, since their result does not tell.
_READ_BY_OPERANDS = (Kind.SUM, Kind.PRODUCT, Kind.MEAN, Kind.TIED)


class LowBitScheme(qat.QuantizeScheme):  # type: ignore[misc, name-defined]
    """A TFMOT scheme that places low-bit quantizers over a whole model.

        annotated = quantize_annotate_model(model)
        q_model = quantize_apply(annotated, LowBitScheme(QILQuantizeConfig(2, 2)))

    A config given to `quantize_annotate_layer` overrides the scheme's for that layer, and so does the first of `rules`
    whose pattern the layer's name matches.

    Args:
        config: the config of all layers with a kernel but the edges.
        edge_bits: width of weights and activations of the layers at the model's inputs and outputs, 2 to 8; None
            leaves them in float, as the papers do.
        rules: name, or pattern with * and ?, -> config for the layers with a kernel whose names match. A rule that no
            layer matches is reported as a warning, and in `placements(q_model).unmatched_rules`.
        require_integer_only: refuse a model with layers whose arithmetic is not known, instead of leaving those in
            float.

    Raises:
        TypeError or ValueError: an argument of another kind or out of range.
    """

    def __init__(
        self,
        config: LowBitQuantizeConfig,
        edge_bits: int | None = 8,
        *,
        rules: Mapping[str, LowBitQuantizeConfig] | None = None,
        require_integer_only: bool = False,
    ) -> None:
        if not isinstance(config, LowBitQuantizeConfig):
            raise TypeError(
                f"Got {config!r} as config, expected a LowBitQuantizeConfig: for example tfqil.QILQuantizeConfig(4, 8)."
            )
        if edge_bits is not None:
            check_bits(edge_bits, name="edge_bits")
        for pattern, rule in (rules or {}).items():
            if not isinstance(rule, LowBitQuantizeConfig):
                raise TypeError(
                    f"Got {rule!r} in rules[{pattern!r}], expected a LowBitQuantizeConfig: for example "
                    "tfqil.QILQuantizeConfig(8, 8)."
                )
        self.config = config
        self.edge_bits = edge_bits
        self.rules = dict(rules or {})
        self.require_integer_only = require_integer_only

    def get_layout_transformer(self) -> LowBitLayoutTransform:
        """The transform that places everything."""
        return LowBitLayoutTransform(self)

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

    def __init__(self, scheme: LowBitScheme) -> None:
        self._scheme = scheme

    def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Places quantizers in a model that is a copy of the user's."""
        _host.require_functional(model)
        _require_all_annotated(model, layer_quantize_map)
        given = {name: entry.get("quantize_config") for name, entry in layer_quantize_map.items()}
        return self.place(model, {name: config for name, config in given.items() if config is not None}), {}

    def place(self, model: Any, overrides: Mapping[str, Any]) -> Any:
        """The finished model.

        Args:
            model: a flat float model, which is used up.
            overrides: layer name -> config for that layer.
        """
        scheme = self._scheme
        _require_configs_of_kernels(model, overrides)
        by_rule, unmatched = _matched_rules(model, scheme.rules)
        expanded, origins = expand(model)
        if scheme.require_integer_only:
            require_no_float_layers(expanded)
        in_float = float_layers(expanded)
        if in_float:
            logging.warning("tfqil: these layers stay in float, the rest is quantized: %s.", ", ".join(in_float))
        chosen = {**by_rule, **overrides}
        configs = {name: chosen[origin] for name, origin in origins.items() if origin in chosen}
        placed = _placed(expanded, Planner(expanded, configs, scheme.config, scheme.edge_bits).plan())
        _host.set_note(placed, "unmatched_rules", unmatched)
        return placed


def quantize_model(model: Any, config_or_scheme: LowBitQuantizeConfig | LowBitScheme) -> Any:
    """Quantizes a whole model in one call; the model itself is not changed.

    The result is that of TFMOT's `quantize_annotate_model` and `quantize_apply`. It also takes what those refuse:
    nested models, plain TensorFlow calls between layers, and blocks that are layers of layers.

    Args:
        model: a built Functional or Sequential tf_keras model; layers may be annotated with configs of their own.
        config_or_scheme: a config for all layers, with 8-bit edges, or a `LowBitScheme`.

    Returns:
        A functional model with the same weights, ready for `calibrate`, `compile` and `fit`. Layers whose arithmetic is
        not known are in it in float, as a warning and `placements` say.

    Raises:
        TypeError: a Keras 3 or subclassed model, or no model.
        ValueError: an unbuilt model, one that is quantized already, or unknown layers with `require_integer_only`.
    """
    scheme = config_or_scheme if isinstance(config_or_scheme, LowBitScheme) else LowBitScheme(config_or_scheme)
    _host.require_functional(model)
    if any(isinstance(layer, (QuantizedLayer, QuantizeActivation)) for layer in model.layers):
        raise ValueError(f"Got the model {model.name!r}, which is quantized already, expected a float model.")
    flat, overrides = flatten(model)
    return scheme.get_layout_transformer().place(flat, overrides)


def _require_all_annotated(model: Any, layer_quantize_map: Mapping[str, Any]) -> None:
    missing = sorted({layer.name for layer in model.layers if has_kernel(layer)} - set(layer_quantize_map))
    if missing:
        raise ValueError(
            f"Got a model with layers that are not annotated ({', '.join(missing)}), expected all: call "
            "quantize_annotate_model on the model; it keeps the configs of the layers annotated before."
        )


def _require_configs_of_kernels(model: Any, overrides: Mapping[str, Any]) -> None:
    """Raises one sentence unless every config is of this package, and for a layer that takes it."""
    with_kernel = {layer.name for layer in model.layers if has_kernel(layer)}
    for name, config in overrides.items():
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


def _matched_rules(
    model: Any, rules: Mapping[str, LowBitQuantizeConfig]
) -> tuple[dict[str, LowBitQuantizeConfig], tuple[str, ...]]:
    """The config of each layer that a rule matches, and the rules that match none, with a warning."""
    with_kernel = [layer.name for layer in model.layers if has_kernel(layer)]
    matched: dict[str, LowBitQuantizeConfig] = {}
    unmatched = []
    for pattern, config in rules.items():
        names = fnmatch.filter(with_kernel, pattern)
        matched = {**dict.fromkeys(names, config), **matched}  # The first rule that matches counts.
        if not names:
            unmatched.append(pattern)
    if unmatched:
        logging.warning(
            "tfqil: no layer with a kernel matches the rule%s %s; the layers are %s.",
            "s"[: len(unmatched) - 1], ", ".join(map(repr, unmatched)), ", ".join(with_kernel),
        )  # fmt: skip
    return matched, tuple(unmatched)


def _placed(model: Any, plan: Plan) -> Any:
    """Rebuilds a model with the quantizers of a plan."""
    placer = _Placer(plan)
    placed = _host.replay(model, placer.call)
    placer.initialize()
    return placed


class _Placer:
    """Calls the layers of a model with the quantizers of a plan around them."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._wrappers: dict[str, QuantizedLayer] = {}
        self._between: dict[tuple[int, Any], Any] = {}
        self._names: collections.Counter[str] = collections.Counter()
        # What computed a tensor from which operands, by the tensor's id.
        self._operands: dict[int, list[Any]] = {}
        self._tied: dict[int, _TiedSites] = {
            tie: _TiedSites(choice, count) for tie, (choice, count) in _tie_sizes(plan).items()
        }

    def call(self, node: _host.Node, tensors: list[Any]) -> Any:
        """The outputs of a node, quantized where the plan says so."""
        layer = node.layer
        inputs = self._quantized_inputs(node, tensors) if node.inputs else tensors
        choice = self._plan.kernels.get(layer.name)
        if choice is not None:
            if layer.name not in self._wrappers:
                config = LowBitQuantizeConfig(weights=choice.quantizer)
                self._wrappers[layer.name] = QuantizedLayer(layer, config, reason=choice.reason)
            layer = self._wrappers[layer.name]
        is_passed = layer.name in self._plan.absorbed or not node.inputs
        outputs = _host.as_list(inputs[0] if is_passed else _host.run_as_before(node, layer, inputs))
        if kind_of(layer) in _READ_BY_OPERANDS:
            self._operands[id(outputs[0])] = inputs
        is_relu = kind_of(node.layer) is Kind.RELU
        clip = (0.0, ceiling_of(node.layer)) if is_relu and is_passed else (None, None)
        for position, number in enumerate(node.outputs):
            produced = self._plan.tensors.get(number)
            if produced is not None:
                outputs[position] = self._quantized(produced, f"quantize_{node.layer.name}", outputs[position], clip)
        return outputs

    def initialize(self) -> None:
        """Fits the weight quantizers to the kernels."""
        for wrapper in self._wrappers.values():
            wrapper.initialize()

    def _quantized_inputs(self, node: _host.Node, tensors: list[Any]) -> list[Any]:
        """The inputs of a node, with a quantizer between where the plan has one; readers that ask alike share it."""
        result = []
        for number, tensor in zip(node.inputs, tensors, strict=True):
            choice = self._plan.between.get((number, node.layer.name))
            if choice is not None:
                key = (number, choice)
                if key not in self._between:
                    name = f"quantize_input_of_{node.layer.name}"
                    self._between[key] = self._quantized(choice, name, tensor, (None, None))
                tensor = self._between[key]
            result.append(tensor)
        return result

    def _quantized(self, choice: Choice, name: str, tensor: Any, clip: tuple[float | None, float | None]) -> Any:
        operands = self._operands.get(id(tensor))
        keywords = {} if operands is None else {"operands": operands}
        if choice.tie is not None:
            return self._tied[choice.tie].quantized(name, tensor, clip, choice.replaces, keywords)
        self._names[name] += 1
        if self._names[name] > 1:
            name = f"{name}_{self._names[name]}"
        layer = QuantizeActivation(
            choice.quantizer, reason=choice.reason, clips=(clip,), replaces=choice.replaces, name=name
        )
        return layer(tensor, **keywords)


class _TiedSites:
    """The one quantizing layer of tensors that share a grid, called once for each of them."""

    def __init__(self, choice: Choice, count: int) -> None:
        self._choice, self._count = choice, count
        self._clips: list[tuple[float | None, float | None]] = []
        self._layer: QuantizeActivation | None = None

    def quantized(
        self,
        name: str,
        tensor: Any,
        clip: tuple[float | None, float | None],
        replaces: tuple[str, ...],
        keywords: Mapping[str, Any],
    ) -> Any:
        """The tensor on the shared grid."""
        if self._layer is None:
            self._layer = QuantizeActivation(
                self._choice.quantizer, reason=self._choice.reason, clips=((None, None),) * self._count, name=name
            )
        site = len(self._clips)
        self._clips.append(clip)
        self._layer.clips = (*self._clips, *self._layer.clips[len(self._clips) :])
        self._layer.replaces = (*self._layer.replaces, *replaces)
        keywords = {**keywords, **({"site": site} if self._count > 1 else {})}
        return self._layer(tensor, **keywords)


def _tie_sizes(plan: Plan) -> dict[int, tuple[Choice, int]]:
    """The quantizer of each group of tensors that share a grid, and how many are quantized."""
    sizes: dict[int, tuple[Choice, int]] = {}
    distinct = {(tensor, choice) for (tensor, _), choice in plan.between.items()}
    for choice in (*plan.tensors.values(), *(choice for _, choice in distinct)):
        if choice.tie is not None:
            sizes[choice.tie] = choice, sizes.get(choice.tie, (choice, 0))[1] + 1
    return sizes
