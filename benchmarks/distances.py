"""How far the outputs of a file are from those of the trained model, in steps of the file's own output grids."""

from __future__ import annotations

import dataclasses

import numpy as np
import tf_keras as keras

from tfqil.export import flatbuffer, runtime


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distances:
    """Absolute differences of all output values, and the deviation of an output over the images, both in steps."""

    steps: np.ndarray
    spread: float


def distances(q_model: keras.Model, tflite: bytes, images: np.ndarray) -> Distances | None:
    """How far a file is from its model on some images; None if an output of the file is on no grid."""
    units = output_steps(tflite)
    if None in units:
        return None
    trained = q_model(images, training=False)
    trained = [tensor.numpy() for tensor in (trained if isinstance(trained, (list, tuple)) else [trained])]
    steps = [
        np.abs(np.rint((file - model) / unit)).ravel()
        for file, model, unit in zip(runtime.run(tflite, [images]), trained, units, strict=True)
    ]
    spread = [float((model.std(axis=0) / unit).mean()) for model, unit in zip(trained, units, strict=True)]
    return Distances(steps=np.concatenate(steps), spread=min(spread))


def output_steps(tflite: bytes) -> list[float | None]:
    """The step of each output: of the integers that it is, or that a DEQUANTIZE reads for it."""
    model = flatbuffer.load(tflite)
    graph = model.subgraphs[0]
    sources = {
        int(node.outputs[0]): int(node.inputs[0])
        for node in graph.operators
        if flatbuffer.operator_name(model, node) == "DEQUANTIZE"
    }
    return [_step(graph.tensors[sources.get(int(index), int(index))]) for index in graph.outputs]


def _step(tensor: object) -> float | None:
    scales = flatbuffer.items(tensor.quantization.scale) if tensor.quantization is not None else []
    return float(scales[0]) if len(scales) == 1 else None
