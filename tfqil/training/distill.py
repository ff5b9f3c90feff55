"""Distillation: a float network teaches its quantized copy, with whatever inputs are at hand and no labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfqil import _host
from tfqil.scheme.layers import QuantizedLayer


def distill(q_model: Any, teacher: Any) -> Any:
    """A model that trains the layers of a quantized model to give the outputs of its float network.

    Forward: that of `q_model`, whose layers and variables it shares. In `fit`, `evaluate` and `train_on_batch` the
    outputs of `teacher` (inference, no gradient) take the place of the labels, which data need not have; the loss and
    the metrics given to `compile` compare the two:

        student = tfqil.distill(q_model, model)
        student.compile("adam", loss="mse")
        student.fit(images)  # Any images: of another data set, or noise.
        tfqil.convert(q_model)

    For inputs that are unlike the ones `teacher` learned from, `calibrate` with them, and keep the statistics of
    normalizations: layers with `trainable = False` before `compile` use those of `teacher`.

    Args:
        q_model: a model from `quantize_model` or `quantize_apply`.
        teacher: a model with the same inputs and outputs, usually the one that was quantized; it does not change.

    Returns:
        A model that is not compiled. Save, convert and summarise `q_model`.

    Raises:
        TypeError or ValueError: no Functional or Sequential model, no quantized model, or a teacher whose inputs or
            outputs have other shapes.

    Reference: Jung et al., CVPR 2019 (arXiv 1808.05779), abstract: "our quantizer can be trained on a heterogeneous
        dataset, and thus can be used to quantize pretrained networks without access to their training data".
    """
    _host.require_functional(q_model)
    _host.require_functional(teacher)
    if not any(isinstance(layer, QuantizedLayer) for layer in q_model.layers):
        raise ValueError(
            f"Got the float model {q_model.name!r} to be taught, expected one from tfqil.quantize_model: quantize it, "
            "and pass the float model second."
        )
    for role in ("inputs", "outputs"):
        expected, found = ([tuple(tensor.shape[1:]) for tensor in getattr(model, role)] for model in (q_model, teacher))
        if found != expected:
            raise ValueError(
                f"Got the teacher {teacher.name!r} with {role} of {_listed(found)}, expected those of the quantized "
                f"model, {_listed(expected)}: pass the model that was quantized."
            )
    student = _Student(q_model.inputs, q_model.outputs, name=f"{q_model.name}_student")
    student.taught_by(teacher)
    return student


def _listed(shapes: list[tuple[int | None, ...]]) -> str:
    return ", ".join("(" + " x ".join("?" if size is None else str(size) for size in shape) + ")" for shape in shapes)


class _Student(_host.Model):  # type: ignore[misc, valid-type]
    """Takes its labels from a teacher, whose variables are not its own."""

    _labels: Callable[[Any], list[tf.Tensor]]

    def taught_by(self, teacher: Any) -> None:
        # A function and not the model, which Keras would track: its weights would be trained and saved.
        self._labels = lambda inputs: [
            tf.stop_gradient(output) for output in tf.nest.flatten(teacher(inputs, training=False))
        ]

    def train_step(self, data: Any) -> Any:
        return super().train_step(self._taught(data))

    def test_step(self, data: Any) -> Any:
        return super().test_step(self._taught(data))

    def _taught(self, data: Any) -> Any:
        inputs, _, weights = _host.unpack(data)
        labels = self._labels(inputs)
        return inputs, labels if len(labels) > 1 else labels[0], weights
