"""Finds the operators of a .tflite file that still compute in float, and says why in words."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfqil.export import flatbuffer

_FLOATS = ("FLOAT16", "BFLOAT16", "FLOAT32", "FLOAT64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leftover:
    """An operator that computes in float.

    Attributes:
        operator: its name in the schema.
        result: the name of the tensor that it writes.
        sentence: what it does in float.
    """

    operator: str
    result: str
    sentence: str

    @property
    def computes(self) -> bool:
        """Whether it does more than to move values, or between grids and operators in float."""
        return self.operator not in ("QUANTIZE", "DEQUANTIZE", *flatbuffer.MOVING)


def float_leftovers(model: Any, graph: Any) -> list[Leftover]:
    """The operators of a subgraph that compute in float, in the order of the file.

    Not counted: QUANTIZE that reads inputs of the graph, and DEQUANTIZE whose result is an output and nothing
    else.
    """
    inputs, outputs = ({int(i) for i in flatbuffer.items(side)} for side in (graph.inputs, graph.outputs))
    nodes = flatbuffer.items(graph.operators)
    read = {int(index) for node in nodes for index in flatbuffer.items(node.inputs)}
    found = []
    for node in nodes:
        operator = flatbuffer.operator_name(model, node)
        floats_in, floats_out = (
            [int(i) for i in flatbuffer.items(side) if i >= 0 and flatbuffer.type_name(graph.tensors[i]) in _FLOATS]
            for side in (node.inputs, node.outputs)
        )
        if not floats_in and not floats_out:
            continue
        if operator == "QUANTIZE" and inputs.issuperset(floats_in) and not floats_out:
            continue
        if (
            operator == "DEQUANTIZE"
            and outputs.issuperset(floats_out)
            and not floats_in
            and read.isdisjoint(floats_out)
        ):
            continue
        found.append(
            Leftover(
                operator=operator,
                result=flatbuffer.tensor_name(graph.tensors[node.outputs[0]]),
                sentence=_sentence(model, graph, operator, floats_in, floats_out),
            )
        )
    return found


def _sentence(model: Any, graph: Any, operator: str, floats_in: list[int], floats_out: list[int]) -> str:
    def describe(index: int) -> str:
        tensor = graph.tensors[index]
        kind = "constant" if flatbuffer.is_constant(model, tensor) else "tensor"
        return f"{flatbuffer.type_name(tensor).lower()} {kind} {flatbuffer.tensor_name(tensor)!r}"

    if operator == "QUANTIZE":
        reason = f"quantizes the {describe(floats_in[0])} inside the graph: what computes it is in float"
    elif operator == "DEQUANTIZE":
        reason = f"writes the {describe(floats_out[0])} inside the graph: what reads it is in float"
    elif floats_in and floats_out:
        source, target = describe(floats_in[0]), describe(floats_out[0])
        reason = f"reads the {source} and writes the {target}: neither is quantized"
    elif floats_in:
        reason = f"reads the {describe(floats_in[0])}, which is not quantized"
    else:
        reason = f"writes the {describe(floats_out[0])}, which is not quantized"
    return f"{operator} {reason}"
