"""What each operator of a .tflite file takes, and who runs it.

The runtime's Python package has no profiler, and XNNPACK runs a whole part of the graph in one call. So each operator
runs alone, as a file of its own, on the values that it reads in the whole file. To start it costs more than in there,
to fetch its inputs less: the sum, beside the time of the whole file, says how far that goes. On a phone,
`benchmark_model --enable_op_profiling=true` measures inside.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from tfqil.export import flatbuffer, runtime


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """One operator, in the order of the file.

    Attributes:
        name: in the schema, such as "CONV_2D".
        result: name of the tensor that it writes.
        kernels: who runs it in the whole file: "xnnpack", the delegate, or "builtin".
        seconds: median of its runs alone; None where it cannot run alone, as a loop cannot.
    """

    name: str
    result: str
    kernels: str
    seconds: float | None


def operator_times(
    tflite: bytes, *, threads: int = 1, repeats: int = 50, seconds: float = 10.0, seed: int = 0
) -> list[OperatorTime]:
    """Times the operators of a file's first subgraph, each alone, taking turns.

    Args:
        tflite: content of the file.
        threads: number of threads of the runtime.
        repeats: runs of each operator, at most.
        seconds: stops early after the round that exceeds this time.
        seed: of the random inputs of the file, from which the values come that the operators read.

    Raises:
        ValueError: repeats below 1, or a file the runtime refuses.
    """
    if repeats < 1:
        raise ValueError(f"got repeats={repeats}, expected at least 1: pass the number of rounds to time")
    taken = runtime.delegated_operators(tflite)
    model = flatbuffer.load(tflite)
    graph = model.subgraphs[0]
    whole = runtime.ready(tflite, kernels="builtin", seed=seed, keep=True)
    runtime.invoke(whole, "builtin")
    alone = {}
    for number in range(len(taken)):
        interpreter = _alone(model, graph, number, whole, threads)
        if interpreter is not None:
            alone[number] = interpreter
    times = runtime.time_in_turn(alone, repeats=repeats, seconds=seconds)
    return [
        OperatorTime(
            name=flatbuffer.operator_name(model, node),
            result=flatbuffer.tensor_name(graph.tensors[node.outputs[0]]),
            kernels="xnnpack" if delegated else "builtin",
            seconds=statistics.median(times[number]) if number in times else None,
        )
        for number, (node, delegated) in enumerate(zip(graph.operators, taken, strict=True))
    ]


def _alone(model: Any, graph: Any, number: int, whole: Interpreter, threads: int) -> Interpreter | None:
    """An interpreter of one operator, with its inputs set; None if it does not run by itself."""
    nodes = _with_constant_producers(model, graph, graph.operators[number])
    made = {int(index) for node in nodes for index in node.outputs}
    read = dict.fromkeys(int(index) for node in nodes for index in node.inputs if index >= 0)
    inputs = [i for i in read if i not in made and not flatbuffer.is_constant(model, graph.tensors[i])]
    if any(graph.tensors[index].isVariable for index in read):
        return None
    try:
        values = [np.array(whole.get_tensor(index)) for index in inputs]
        shapes = {index: np.array(whole.get_tensor(index).shape, np.int32) for index in made}
        file = _file(model, graph, nodes, inputs, values, shapes)
        interpreter = runtime.loaded(file, values, threads=threads)
        runtime.invoke(interpreter, "xnnpack")
    except ValueError:
        return None
    return interpreter


def _with_constant_producers(model: Any, graph: Any, node: Any) -> list[Any]:
    """An operator, after those that compute what it reads from constants, such as the DEQUANTIZE of its weights."""
    producers = {int(index): other for other in graph.operators for index in other.outputs}
    needed = []
    for index in node.inputs:
        producer = producers.get(int(index))
        if producer is not None and all(
            i < 0 or flatbuffer.is_constant(model, graph.tensors[i]) for i in producer.inputs
        ):
            needed.append(producer)
    return [*needed, node]


def _file(
    model: Any,
    graph: Any,
    nodes: Sequence[Any],
    inputs: Sequence[int],
    values: Sequence[NDArray[Any]],
    shapes: dict[int, NDArray[np.int32]],
) -> bytes:
    """A file of some operators of a graph, with the shapes that its tensors have for one example."""
    used = sorted({int(i) for node in nodes for i in (*node.inputs, *node.outputs) if i >= 0})
    new = {index: place for place, index in enumerate(used)}
    part, file = schema.SubGraphT(), schema.ModelT()
    file.version, file.operatorCodes, file.subgraphs = model.version, model.operatorCodes, [part]
    file.buffers = [schema.BufferT()]
    part.tensors, part.operators = [], []
    sizes = {**shapes, **{index: np.array(array.shape, np.int32) for index, array in zip(inputs, values, strict=True)}}
    for index in used:
        tensor = copy.copy(graph.tensors[index])
        tensor.buffer = 0
        if flatbuffer.is_constant(model, graph.tensors[index]):
            file.buffers.append(model.buffers[graph.tensors[index].buffer])
            tensor.buffer = len(file.buffers) - 1
        else:
            tensor.shape, tensor.shapeSignature = sizes[index], None
        part.tensors.append(tensor)
    for node in nodes:
        moved = copy.copy(node)
        for side in ("inputs", "outputs"):
            setattr(moved, side, np.array([new.get(int(i), -1) for i in getattr(node, side)], np.int32))
        part.operators.append(moved)
    part.inputs = np.array([new[index] for index in inputs], np.int32)
    part.outputs = np.array([new[int(index)] for index in nodes[-1].outputs], np.int32)
    return flatbuffer.serialize(file)
