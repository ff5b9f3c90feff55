"""Quantizing a trained network without its training data: the float network teaches its quantized copy on other images.

    python examples/heterogeneous.py --directory=runs/heterogeneous

A VGG-11 learns glyphs of the DejaVu faces in float. Then it is quantized with the images it learned from, with and
without their classes, and, calibration included, with images it has never seen: glyphs of other families, handwritten
digits, noise that follows from the network alone (`norm_matching.py`), and plain noise. All copies take as many steps
with the same optimizer, and are tested on DejaVu faces that no image shows. A run that was stopped goes on with the
epoch where it stopped.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import classifiers
import data as image_data
import digits as digits_data
import fitting
import glyphs
import norm_matching
import numpy as np
import protocol
import results
import rich.table
import runs
import tensorflow as tf
import tf_keras as keras
from absl import app, flags, logging

import tfqil

_DIRECTORY = flags.DEFINE_string(
    "directory", None, "Folder of the run; one with the same settings goes on.", required=True
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the generated sets are stored.")
_BITS = flags.DEFINE_integer("bits", 4, "Bits of weights and activations.", lower_bound=2, upper_bound=8)
_WIDTH = flags.DEFINE_float("width", 0.25, "Share of the network's channels.", lower_bound=0.01)
_FLOAT_EPOCHS = flags.DEFINE_integer("float_epochs", 20, "Epochs of the float network.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of each quantized copy.", lower_bound=1)
_RATE = flags.DEFINE_float("rate", 5e-4, "Learning rate of Adam at the start; it falls to 0 as a cosine.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, batches and generated images.")
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic", False, "Use deterministic kernels: a resumed run ends bit for bit the same."
)
_EXAMPLES = flags.DEFINE_integer("examples", 20_000, "Images to train with.", lower_bound=128, upper_bound=20_000)

_BATCH = 128
_FAMILY = "DejaVu"
_NOISE_GRIDS = (2, 4, 8, 16, 32)
# Images of matched noise, which take some 50 ms each, and how many have the statistics together.
_MATCHED = 2560
_MATCHED_TOGETHER = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What a copy is quantized with.

    Attributes:
        name: for the table.
        images: makes those of training, bytes.
        classes: of the images, or None where the float network teaches.
    """

    name: str
    images: Callable[[], np.ndarray]
    classes: np.ndarray | None = None


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    if _DETERMINISTIC.value:
        tf.config.experimental.enable_op_determinism()
    folder = pathlib.Path(_DIRECTORY.value)
    try:
        chosen = (_BITS, _WIDTH, _FLOAT_EPOCHS, _EPOCHS, _RATE, _SEED, _EXAMPLES)
        runs.require_same_run(folder, {flag.name: flag.value for flag in chosen})
        arrays = family_arrays(_FAMILY, _DATA_DIR.value)
        others = family_arrays(_FAMILY, _DATA_DIR.value, others=True)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    with runs.ending_where_unusable():
        data = image_data.glyph_set(arrays, batch=_BATCH, seed=_SEED.value, examples=_EXAMPLES.value)
        float_record = train_float(folder, data)
        rows = []
        model = tfqil.load_model(folder / "float" / "model.keras", compile=False)
        for source in sources(arrays, others[0], model):
            own = folder / source.name.replace(" ", "_")
            if not (own / "record.json").is_file():
                keras.utils.set_random_seed(_SEED.value)
                fitting.finish(own, quantize_with(source, model, own, arrays))
            rows.append(runs.read_json(own / "record.json"))
    results.console().print(table(rows, float_record["file_accuracy"]))


def family_arrays(family: str, folder: str | None, *, others: bool = False) -> image_data.Arrays:
    """Glyphs of the faces whose family begins with a name, or of the other ones; training and test share no face."""
    faces = [face for name, faces in glyphs.FAMILIES.items() if name.startswith(family) != others for face in faces]
    name = f"glyphs_{'not_' if others else ''}{family.lower()}"
    train, test = ([face for face in of_split if face in faces] for of_split in (glyphs.TRAIN_FACES, glyphs.TEST_FACES))
    return image_data.glyph_arrays(folder, name=name, train_faces=train, test_faces=test)


def sources(arrays: image_data.Arrays, others: np.ndarray, model: keras.Model) -> list[Source]:
    """The rows of the table, from the most that is known of the training data to the least."""
    images, classes = arrays[:2]
    count, seed = len(images), _SEED.value
    return [
        Source(name="training images and classes", images=lambda: images, classes=classes),
        Source(name="training images", images=lambda: images),
        Source(name="glyphs of other families", images=lambda: others),
        Source(name="handwritten digits", images=lambda: colored_digits(count, seed)),
        Source(name="matched noise", images=lambda: matched_noise(model, count, seed)),
        Source(name="noise", images=lambda: noise(count, seed)),
    ]


def colored_digits(count: int, seed: int) -> np.ndarray:
    """The training half of scikit-learn's digits, enlarged, in colors on smooth backgrounds: bytes."""
    random = np.random.default_rng(seed)
    digits = digits_data.load_digits().train_images
    size = (glyphs.SIZE, glyphs.SIZE)
    masks = tf.image.resize(digits[random.integers(0, len(digits), count)], size, "bicubic").numpy()
    inks = random.uniform(0, 255, (count, 1, 1, 3))
    images = np.clip(masks, 0, 1) * inks + (1 - np.clip(masks, 0, 1)) * noise(count, seed + 1, grids=(2, 4))
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)


def noise(count: int, seed: int, *, grids: tuple[int, ...] = _NOISE_GRIDS) -> np.ndarray:
    """Sums of random colors on coarse and fine grids, bytes: as natural images, with more power at low frequencies."""
    random = np.random.default_rng(seed)
    images = np.zeros((count, glyphs.SIZE, glyphs.SIZE, 3), np.float32)
    for cells in grids:
        colors = random.normal(0, 90 / np.sqrt(cells / 2), (count, cells, cells, 3)).astype(np.float32)
        images += tf.image.resize(colors, (glyphs.SIZE, glyphs.SIZE), "bicubic").numpy()
    return np.clip(np.rint(images + random.uniform(64, 192, (count, 1, 1, 3))), 0, 255).astype(np.uint8)


def matched_noise(model: keras.Model, count: int, seed: int) -> np.ndarray:
    """Noise that the batch normalizations of the network take for training images, bytes; each image several times."""
    batch = min(count, _MATCHED_TOGETHER)
    start = image_data.normalized_glyphs(noise(min(count, _MATCHED) // batch * batch, seed)).numpy()
    images = np.rint(127.5 + 127.5 * norm_matching.matched(model, start, batch=batch)).astype(np.uint8)
    return np.resize(images, (count, *images.shape[1:]))


def train_float(folder: pathlib.Path, data: image_data.ImageSet) -> dict[str, Any]:
    """The record of the float network, which is trained unless it is there."""
    keras.utils.set_random_seed(_SEED.value)
    run = protocol.Run(
        folder=folder,
        data=data,
        network=lambda: classifiers.build("vgg11", data.shape, data.classes, width=_WIDTH.value),
        method="qil",
        settings=dataclasses.replace(protocol.SETTINGS["glyphs"], float_epochs=_FLOAT_EPOCHS.value),
    )
    return run.stage(protocol.Widths(weights=protocol.FLOAT, activations=protocol.FLOAT), None)


def quantize_with(source: Source, model: keras.Model, own: pathlib.Path, arrays: image_data.Arrays) -> dict[str, Any]:
    """The record of a copy that is calibrated and trained with a source, with checkpoints in a folder of its own."""
    training = source.images()
    classes = np.zeros(len(training), np.uint8) if source.classes is None else source.classes
    data = image_data.glyph_set(
        (training, classes, *arrays[2:]), batch=_BATCH, seed=_SEED.value, examples=_EXAMPLES.value
    )
    q_model = tfqil.quantize_model(model, tfqil.QILQuantizeConfig(_BITS.value, _BITS.value))
    tfqil.calibrate(q_model, data.train(0))
    images, labels = image_data.normalized_glyphs(arrays[2]).numpy(), arrays[3]
    record = {"name": source.name, "calibrated_accuracy": _accuracy(q_model, images, labels)}
    train(q_model, model, data, own, taught=source.classes is None)
    tflite = tfqil.convert(q_model)
    return {
        **record,
        "keras_accuracy": _accuracy(q_model, images, labels),
        "file_accuracy": results.accuracy(protocol.run_file(tflite, images), labels),
        "integer_only": tfqil.inspect(tflite).integer_only,
    }


def train(
    q_model: keras.Model, model: keras.Model, data: image_data.ImageSet, folder: pathlib.Path, *, taught: bool
) -> None:
    """Trains a copy with the classes of the data, or with what the float network says of the images."""
    loss: Any = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trained = q_model
    if taught:
        for layer in q_model.layers:
            # Statistics of other images are not those of the test.
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        loss, trained = "mse", tfqil.distill(q_model, model)
    steps = _EPOCHS.value * (data.train_examples // _BATCH)
    trained.compile(keras.optimizers.Adam(fitting.rates(_RATE.value, (), steps)), loss)
    trained.optimizer.build(trained.trainable_variables)
    fitting.fit(trained, data.train, _EPOCHS.value, folder)


def _accuracy(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    return results.accuracy(model.predict(images, batch_size=250, verbose=0), labels)


def table(rows: list[dict[str, Any]], float_accuracy: float) -> rich.table.Table:
    """One row per source."""
    result = rich.table.Table(title=f"Quantized to {_BITS.value}/{_BITS.value} bits; float {float_accuracy:.2f} %")
    for heading in ("quantized with", "calibrated %", "trained %", "file %", "to float", "integer-only"):
        result.add_column(heading, justify="left" if heading == "quantized with" else "right")
    for row in rows:
        result.add_row(
            row["name"],
            f"{row['calibrated_accuracy']:.2f}",
            f"{row['keras_accuracy']:.2f}",
            f"{row['file_accuracy']:.2f}",
            f"{row['file_accuracy'] - float_accuracy:+.2f}",
            "yes" if row["integer_only"] else "no",
        )
    return result


if __name__ == "__main__":
    app.run(main)
