"""The scheme: TFMOT's hook that turns a float model into one that trains on integer grids."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_model_optimization as tfmot
from absl import logging

from tfqil import _host
from tfqil.numerics.grid import check_bits
from tfqil.scheme.config import LowBitQuantizeConfig
from tfqil.scheme.expand import expand
from tfqil.scheme.flatten import flatten
from tfqil.scheme.kinds import has_kernel
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer
from tfqil.scheme.output_names import note_output_names
from tfqil.scheme.placement import Planner
from tfqil.scheme.placer import place
from tfqil.scheme.report import float_layers, require_no_float_layers, with_reasons

qat = tfmot.quantization.keras


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
        overrides = {name: config for name, config in given.items() if config is not None}
        return self.place(model, overrides, model.output_names), {}

    def place(self, model: Any, overrides: Mapping[str, Any], output_names: Sequence[str]) -> Any:
        """The finished model.

        Args:
            model: a flat float model, which is used up.
            overrides: layer name -> config for that layer.
            output_names: what the outputs are called in the user's model.
        """
        scheme = self._scheme
        _require_configs_of_kernels(model, overrides)
        by_rule, unmatched = _matched_rules(model, scheme.rules)
        expanded, origins = expand(model)
        if scheme.require_integer_only:
            require_no_float_layers(expanded)
        in_float = float_layers(expanded)
        if in_float:
            logging.warning("tfqil: these layers stay in float, the rest is quantized: %s.", with_reasons(in_float))
        chosen = {**by_rule, **overrides}
        configs = {name: chosen[origin] for name, origin in origins.items() if origin in chosen}
        placed = place(expanded, Planner(expanded, configs, scheme.config, scheme.edge_bits).plan())
        note_output_names(placed, output_names)
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
    return scheme.get_layout_transformer().place(flat, overrides, model.output_names)


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
