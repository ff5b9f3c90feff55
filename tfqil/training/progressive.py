"""Progressive finetuning: the same network at other widths."""

from __future__ import annotations

from typing import Any

from tfqil import _host
from tfqil.quantizers import ActivationQuantizer
from tfqil.scheme.config import LowBitQuantizeConfig
from tfqil.scheme.float_twin import float_twin
from tfqil.scheme.kinds import Kind, kind_of
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer
from tfqil.scheme.output_names import note_output_names, noted_output_names
from tfqil.scheme.placement import Planner
from tfqil.scheme.placer import place
from tfqil.scheme.plan import BY_LAYER, BY_SCHEME, EDGE_REASONS, MODEL_EDGE

INTERVALS = ("keep", "fit")


def with_bits(q_model: Any, weight_bits: int | None, activation_bits: int | None, *, intervals: str = "keep") -> Any:
    """A copy of a quantized model at other widths, with the same weights and intervals: the next stage of finetuning.

    What follows the config of the scheme changes; edges, layers with configs or rules of their own and what the runtime
    prescribes stay as they are. Intervals keep their ends, so that steps change with the number of levels. A tensor
    that has had no low-bit grid so far, such as one that is added and multiplied by kernels of a network with 8-bit
    activations, gets its interval from `calibrate`, or from the first batches of training.

    Args:
        q_model: a model from `quantize_model` or `quantize_apply` with a `LowBitScheme`; it is not changed.
        weight_bits: width of the kernels, in the range of their quantizer; None leaves it.
        activation_bits: width of the activations; None leaves it.
        intervals: "keep" starts from the intervals that were learned. "fit" fits those of quantizers whose width
            changes anew, of kernels at once, of activations by `calibrate` or the first batches of training: the best
            interval is much shorter at 2 bits than at 3.

    Returns:
        A model that is not compiled.

    Raises:
        TypeError or ValueError: no quantized model, a width out of range, or nothing in the model that follows the
            scheme's config.

    Reference: Jung et al., CVPR 2019 (arXiv 1808.05779), Table 2.
    """
    if intervals not in INTERVALS:
        raise ValueError(f"Got intervals={intervals!r}, expected {' or '.join(map(repr, INTERVALS))}: choose one.")
    _host.require_functional(q_model)
    wrappers = {layer.layer.name: layer for layer in q_model.layers if isinstance(layer, QuantizedLayer)}
    if not wrappers:
        raise ValueError(f"Got the float model {q_model.name!r}, expected one from tfqil.quantize_model.")
    config = _with_bits(_scheme_config(wrappers), weight_bits, activation_bits)
    twin = float_twin(q_model)
    given = {name: layer.quantize_config for name, layer in wrappers.items() if layer.reason == BY_LAYER}
    edge_bits = _edge_bits(q_model)
    for layer in twin.layers:
        if kind_of(layer) is Kind.LINEAR and layer.name not in wrappers:
            given[layer.name] = LowBitQuantizeConfig()  # It stays in float.
    placed = place(twin, Planner(twin, given, config, edge_bits).plan())
    names = noted_output_names(q_model)
    note_output_names(placed, [names.get(name) for name in q_model.output_names])
    _take_over(placed, q_model, keep_all=intervals == "keep")
    _host.set_note(placed, "unmatched_rules", _host.note(q_model, "unmatched_rules", ()))
    return placed


def _scheme_config(wrappers: dict[str, QuantizedLayer]) -> LowBitQuantizeConfig:
    """The config that the layers without one of their own follow."""
    for layer in wrappers.values():
        if layer.reason == BY_SCHEME:
            return layer.quantize_config  # type: ignore[no-any-return]
    raise ValueError(
        f"Got a model whose layers ({', '.join(wrappers)}) are edges or have configs of their own, expected one that "
        "follows the config of its scheme: quantize the float model with other configs instead."
    )


def _with_bits(
    config: LowBitQuantizeConfig, weight_bits: int | None, activation_bits: int | None
) -> LowBitQuantizeConfig:
    quantizers = []
    for name, quantizer, bits in (
        ("weight_bits", config.weights, weight_bits),
        ("activation_bits", config.activations, activation_bits),
    ):
        if bits is not None and quantizer is None:
            raise ValueError(
                f"Got {name}={bits!r} for a config without such a quantizer, expected None: there is nothing to change."
            )
        quantizers.append(quantizer if bits is None or quantizer is None else quantizer.with_bits(bits))
    return LowBitQuantizeConfig(weights=quantizers[0], activations=quantizers[1])


def _edge_bits(q_model: Any) -> int | None:
    """The width of the edges; None where they are in float."""
    for layer in q_model.layers:
        if isinstance(layer, QuantizedLayer) and layer.reason in EDGE_REASONS:
            return int(layer.weight_quantizer.bits)  # type: ignore[attr-defined]
        if isinstance(layer, QuantizeActivation) and layer.reason == MODEL_EDGE:
            return int(layer.quantizer.bits)  # type: ignore[attr-defined]
    return None


def _take_over(placed: Any, q_model: Any, *, keep_all: bool) -> None:
    """Gives quantizers, or those that did not change, what those of the same layers have learned; freezes layers."""
    sources = {layer.name: layer for layer in q_model.layers}
    for layer in placed.layers:
        source = sources.get(layer.name)
        if source is not None:
            _host.copy_trainable(source, layer)
        if isinstance(layer, QuantizedLayer) and isinstance(source, QuantizedLayer):
            if not keep_all and layer.weight_quantizer != source.weight_quantizer:
                continue
            layer.weight_quantizer.take_over(
                layer.quantizer_variables, source.weight_quantizer, source.quantizer_variables
            )
        elif isinstance(layer, QuantizeActivation) and isinstance(source, QuantizeActivation):
            if not keep_all and layer.quantizer != _with_limit_of(layer.quantizer, source.quantizer):
                continue
            for site in range(min(layer.sites, source.sites)):
                layer.quantizer.take_over(layer.site_variables(site), source.quantizer, source.site_variables(site))


def _with_limit_of(quantizer: ActivationQuantizer, source: ActivationQuantizer) -> ActivationQuantizer:
    """A quantizer with the limit of another one: models of before limits existed have none."""
    return source if quantizer.limit is None else source.within(quantizer.limit)
