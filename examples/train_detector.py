"""A detector with weights that are zero or powers of two (LBW-Net): float, then 6 and 4 bits, all convolutions.

    python examples/train_detector.py --directory=runs/scenes
    python examples/train_detector.py --data=voc --data_dir=/data --size=512 --width=1 --directory=runs/voc

YOLOV8 of keras-cv learns generated scenes, or PASCAL VOC. Each quantized stage starts from the float network; its
weights are powers of two that INT8 holds, its activations have 8 bits, so that the file computes integers only. The
table has the mean average precision of the Keras model and of the file; `boxes.png` shows what each stage finds in test
images. A run that was stopped goes on with the epoch where it stopped.
"""

from __future__ import annotations

import functools
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

# Before TensorFlow is imported: keras-cv then builds on tf_keras, as TFMOT does, and not on Keras 3.
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import average_precision
import detection_data
import detectors
import fitting
import matplotlib.figure
import matplotlib.patches
import numpy as np
import protocol
import results
import rich.table
import runs
import tensorflow as tf
import tf_keras as keras
from absl import app, flags, logging

import tfqil

_DATA = flags.DEFINE_enum("data", "scenes", detection_data.NAMES, "Data set.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TensorFlow Datasets prepared VOC, or scenes are stored.")
_DIRECTORY = flags.DEFINE_string(
    "directory", None, "Folder of the run; one with the same settings goes on.", required=True
)
_SCHEDULE = flags.DEFINE_list(
    "schedule",
    ["32", "6", "4"],
    "Bits of the weights; 32, the float network, first. INT8 holds the powers of 5 bits: 6 are as 5.",
)
_SIZE = flags.DEFINE_integer("size", 128, "Height and width of the images; a multiple of 32.", lower_bound=32)
_WIDTH = flags.DEFINE_float("width", 0.25, "Share of the backbone's channels.", lower_bound=0.01)
_BATCH = flags.DEFINE_integer("batch", 16, "Examples per step.", lower_bound=1)
_FLOAT_EPOCHS = flags.DEFINE_integer("float_epochs", 40, "Epochs of the float network.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 15, "Epochs of each quantized network.", lower_bound=1)
_FLOAT_RATE = flags.DEFINE_float("float_rate", 2e-3, "Learning rate of Adam at the start; it falls to 0 as a cosine.")
_RATE = flags.DEFINE_float("rate", 2e-3, "The same of the quantized networks.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, batches and augmentation.")
_EXAMPLES = flags.DEFINE_integer("examples", None, "Training images to use; all without.", lower_bound=1)
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", False, "Use deterministic kernels: a resumed run ends bit for bit the same."
)

# Gradients of more than this length are shortened, as keras-cv's own example of YOLOV8 has it.
_LONGEST_GRADIENT = 10.0
_PICTURES = 4
# What the picture shows.
_LEAST_SCORE = 0.4

Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class Test:
    """Images and objects of the test; the images are read batch by batch, since those of VOC do not fit into memory."""

    def __init__(self, data: detection_data.DetectionSet):
        self._batches = data.test
        self.classes = data.classes
        self.images = next(data.test.as_numpy_iterator())[0]
        self.truths = []
        for _, labels in data.test.as_numpy_iterator():
            for boxes, classes, difficult in zip(labels["boxes"], labels["classes"], labels["difficult"], strict=True):
                there = classes >= 0
                truth = {"boxes": boxes[there], "classes": classes[there], "difficult": difficult[there]}
                self.truths.append(truth)

    def detections(self, run: Run, detector: detectors.Detector) -> list[dict[str, np.ndarray]]:
        """What is found in each image; `run` gives the outputs of a network for a batch."""
        return [found for images, _ in self._batches.as_numpy_iterator() for found in detector.decode(run(images))]

    def precision(self, detections: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """The mean average precision."""
        return average_precision.mean_average_precision(self.truths, detections, self.classes)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    if _DETERMINISTIC.value:
        tf.config.experimental.enable_op_determinism()
    folder = pathlib.Path(_DIRECTORY.value)
    try:
        stages = _stages(_SCHEDULE.value)
        if _SIZE.value % 32:
            raise ValueError(f"Got --size={_SIZE.value}, expected a multiple of 32, the coarsest grid of YOLOV8.")
        data = detection_data.load(
            _DATA.value, batch=_BATCH.value, size=_SIZE.value, seed=_SEED.value, data_dir=_DATA_DIR.value,
            examples=_EXAMPLES.value,
        )  # fmt: skip
        if data.train_examples < _BATCH.value:
            raise ValueError(f"Got {data.train_examples} training images, expected a batch of {_BATCH.value} at least.")
        chosen = (
            _DATA, _SIZE, _WIDTH, _BATCH, _FLOAT_EPOCHS, _EPOCHS, _FLOAT_RATE, _RATE, _SEED, _EXAMPLES, _SCHEDULE
        )  # fmt: skip
        runs.require_same_run(folder, {flag.name: flag.value for flag in chosen})
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from None
    test = Test(data)
    records = []
    for bits in stages:
        keras.utils.set_random_seed(_SEED.value)
        with runs.ending_where_unusable():
            records.append(stage(bits, folder, data, test))
        print(f"{records[-1]['stage']}: mAP {records[-1]['file']['map']:.2f}", flush=True)
    picture(folder, records, test)
    results.console().print(table(records))


def _stages(texts: list[str]) -> list[int]:
    """The bits of the weights.

    Raises:
        ValueError: not the float network first, or bits that LBW does not have.
    """
    if texts[:1] != ["32"] or not all(text in ("2", "3", "4", "5", "6") for text in texts[1:]):
        raise ValueError(
            f"Got --schedule={','.join(texts)}, expected 32, the float network, and then bits from 2 to 6."
        )
    return [int(text) for text in texts]


def stage(bits: int, folder: pathlib.Path, data: detection_data.DetectionSet, test: Test) -> dict[str, Any]:
    """Trains a stage to its end, or returns its record if it is there."""
    is_float = bits == protocol.FLOAT
    own = folder / ("float" if is_float else f"{bits}_bits")
    record = own / "record.json"
    if record.is_file():
        return dict(runs.read_json(record))
    started = time.perf_counter()
    detector = detectors.Detector(data.size, len(data.classes), _WIDTH.value)
    if is_float:
        network, rate, epochs = detector.network(), _FLOAT_RATE.value, _FLOAT_EPOCHS.value
    else:
        trained = keras.models.load_model(folder / "float" / "model.keras", compile=False)
        config = tfqil.LBWQuantizeConfig(bits, 8, int8_exact=bits > 4)
        network, rate, epochs = tfqil.quantize_model(trained, config), _RATE.value, _EPOCHS.value
        tfqil.calibrate(network, data.train(0).map(lambda images, labels: images))
    trainer = detectors.Trainer(network, detector)
    steps = epochs * (data.train_examples // _BATCH.value)
    optimizer = keras.optimizers.Adam(fitting.rates(rate, (), steps), global_clipnorm=_LONGEST_GRADIENT)
    trainer.compile(optimizer)
    optimizer.build(network.trainable_variables)
    history = fitting.fit(trainer, data.train, epochs, own)
    return _finish(network, detector, own, test, history=history, seconds=time.perf_counter() - started)


def _finish(
    network: keras.Model, detector: detectors.Detector, own: pathlib.Path, test: Test, *, history: Any, seconds: float
) -> dict[str, Any]:
    """Tests, converts and verifies a trained network, and writes all that is left of it."""
    is_float = own.name == "float"
    fitting.save(network, own)
    tflite = detectors.float_file(network) if is_float else tfqil.convert(network)
    (own / "model.tflite").write_bytes(tflite)
    of_keras = test.detections(functools.partial(detectors.run_network, network), detector)
    of_file = test.detections(functools.partial(detectors.run_file, tflite), detector)
    record = {
        "stage": own.name,
        "epochs": len(history),
        "seconds": seconds,
        "loss": history[-1]["loss"],
        "keras": test.precision(of_keras),
        "file": test.precision(of_file),
        "bytes": len(tflite),
        "integer_only": tfqil.inspect(tflite).integer_only,
        "differing_from_deployable": (
            None if is_float else tfqil.verify(network, tflite, test.images).differing_from_deployable
        ),
        "shown": [{name: array.tolist() for name, array in found.items()} for found in of_file[:_PICTURES]],
    }
    fitting.finish(own, record)
    return record


def table(records: list[dict[str, Any]]) -> rich.table.Table:
    """One row per stage."""
    made = rich.table.Table(title=f"YOLOV8 x {_WIDTH.value:g} on {_DATA.value}, weights zero or powers of two")
    headings = ("weights", "Keras mAP", "file mAP", "to float", "file mAP50", "bytes", "integer-only", "seconds")
    for heading in headings:
        made.add_column(heading, justify="left" if heading == "weights" else "right")
    for record in records:
        made.add_row(
            record["stage"].replace("_", " "),
            f"{record['keras']['map']:.2f}",
            f"{record['file']['map']:.2f}",
            f"{record['file']['map'] - records[0]['file']['map']:+.2f}",
            f"{record['file']['map50']:.2f}",
            f"{record['bytes']:,}",
            "yes" if record["integer_only"] else "no",
            f"{record['seconds']:.0f}",
        )
    return made


def picture(folder: pathlib.Path, records: list[dict[str, Any]], test: Test) -> None:
    """Test images with the boxes that the file of each stage finds; what is there has a white dashed box."""
    shown = test.images[:_PICTURES]
    figure = matplotlib.figure.Figure(figsize=(3 * len(records), 3 * len(shown) + 0.4), layout="constrained")
    grid = figure.subplots(len(shown), len(records), squeeze=False)
    for column, record in enumerate(records):
        grid[0, column].set_title(f"{record['stage'].replace('_', ' ')}: mAP {record['file']['map']:.1f}")
        for axes, image, truth, found in zip(grid[:, column], shown, test.truths, record["shown"], strict=False):
            axes.imshow(image.astype(np.uint8))
            axes.set_axis_off()
            for box in truth["boxes"]:
                _draw_box(axes, box, "white", linestyle="--")
            for box, label, score in zip(found["boxes"], found["classes"], found["scores"], strict=True):
                if score >= _LEAST_SCORE:
                    color = f"C{int(label) % 10}"
                    _draw_box(axes, box, color)
                    frame = {"facecolor": color, "edgecolor": "none", "boxstyle": "square,pad=0.1"}
                    text = f"{test.classes[int(label)]} {score:.2f}"
                    axes.text(box[0], box[1] - 2, text, color="white", fontsize=7, bbox=frame, clip_on=True)
    figure.savefig(folder / "boxes.png", dpi=110)


def _draw_box(axes: Any, box: Any, color: str, linestyle: str = "-") -> None:
    left, top, right, bottom = box
    patch = matplotlib.patches.Rectangle(
        (left, top), right - left, bottom - top, fill=False, edgecolor=color, linestyle=linestyle, linewidth=1.2
    )
    axes.add_patch(patch)


if __name__ == "__main__":
    app.run(main)
