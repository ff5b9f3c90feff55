"""What `convert` refuses to write, each in one sentence."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from tfqil import _host
from tfqil.export.float_constants import is_exact_in_float16
from tfqil.export.float_layers import FloatLinear
from tfqil.export.inspect import read_leftovers
from tfqil.export.layers import IntegerPixels, IntegerQuantize
from tfqil.export.lower import Lowering
from tfqil.export.signature import names_in_file
from tfqil.export.verify import layer_of
from tfqil.scheme.report import float_layers


def require_exact_weights(plain: Any, *, allow_float: bool) -> None:
    """Raises one sentence unless integers, or float16 where float is allowed, hold every trained weight."""
    wide = [layer for layer in plain.layers if isinstance(layer, FloatLinear)]
    if wide and not allow_float:
        raise ValueError(
            f"Got weights whose integers do not fit INT8 ({_names(wide)}), expected at most 127: train these layers "
            "with int8_exact=True, as in LBWQuantizeConfig(..., int8_exact=True), which keeps the seven largest "
            "powers of two, or pass allow_float=True, which computes them in float with float16 constants."
        )
    rounded = [layer for layer in wide if not is_exact_in_float16(layer.kernel)]
    if rounded:
        raise ValueError(
            f"Got weights whose integers do not fit INT8 and whose values float16 would round ({_names(rounded)}), "
            "expected values such as powers of two in 2^-24 .. 2^15: train these layers with int8_exact=True, or with "
            "a uniform quantizer of at most 8 bits."
        )


def require_grids(plain: Any, lowering: Lowering, input_type: str, output_type: str) -> None:
    """Raises one sentence unless what shall be integers in the file is on a grid."""
    graph = _host.graph_of(plain)
    if input_type != "float32":
        # Inputs that are no floats keep their types.
        nodes = [node for node in graph.nodes if not node.inputs and _host.is_floating(node)]
        readers = {node.layer.name: [r.layer for r in graph.readers(node.outputs[0])] for node in nodes}
        in_float = [
            name
            for name, layers in readers.items()
            if len(layers) != 1 or not isinstance(layers[0], (IntegerQuantize, IntegerPixels))
        ]
        if in_float:
            raise ValueError(
                f"Got input_type={input_type!r} for {_io_names('input', in_float)}, expected "
                "float32, since nothing quantizes it first: leave out input_type, or give the layers that read it "
                "quantizers (edge_bits=8)."
            )
    if output_type != "float32":
        in_float = [
            name for name, scale in zip(names_in_file(plain), lowering.output_scales, strict=True) if scale is None
        ]
        if in_float:
            raise ValueError(
                f"Got output_type={output_type!r} for {_io_names('output', in_float)}, expected float32, since a "
                "layer in float computes it: leave out output_type, or give that layer quantizers (edge_bits=8)."
            )


def require_expected_float(q_model: Any, plain: Any, tflite: bytes) -> None:
    """Raises one sentence if more than the layers that were left in float computes in float."""
    named = {layer.name for layer in float_layers(q_model)}
    others = {layer.name for layer in plain.layers} - named
    unexpected = [
        leftover.sentence
        for leftover in read_leftovers(tflite)
        # Operators inside a layer, as in the body of a loop, may bear no layer's name.
        if not named or (leftover.computes and _is_of(leftover.result, others, unless=named))
    ]
    if unexpected:
        first, *more = unexpected
        raise ValueError(
            f"Got a file that computes in float ({first}{f', and {len(more)} more' if more else ''}), expected "
            f"integers only{' but for ' + ', '.join(sorted(named)) if named else ''}: give those layers quantizers "
            "(edge_bits=8), or pass allow_float=True."
        )


def _is_of(tensor: str, layers: Collection[str], *, unless: Collection[str]) -> bool:
    """Whether a tensor is named after one of some layers, and after none of others."""
    return layer_of(tensor, layers) is not None and layer_of(tensor, unless) is None


def _io_names(what: str, names: Sequence[str]) -> str:
    return f"the {what}{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"


def _names(layers: list[Any]) -> str:
    return ", ".join(layer.name for layer in layers)
