"""The detector's command: its stages, a training that is killed and goes on, and what it refuses."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import scripts

sys.path.append(str(scripts.ROOT / "examples"))
import detectors

# Few scenes, since those of the whole set take half a minute to draw.
FEWER = 'import scenes; scenes.EXAMPLES = {"train": 64, "test": 16}'
SMALL = ["--width=0.0625", "--size=64", "--float_epochs=2", "--epochs=1", "--schedule=32,5", "--deterministic"]


def command(folder: pathlib.Path) -> list[str]:
    """The script and its arguments."""
    return ["examples/train_detector.py", f"--directory={folder}", f"--data_dir={folder.parent}", *SMALL]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector") / "run"
    return folder, scripts.run(*command(folder), before=FEWER)


@pytest.mark.recipe
class TestRun:
    def test_every_stage_leaves_a_model_a_file_and_a_record(self, finished):
        folder, printed = finished
        for stage, integer_only in (("float", False), ("5_bits", True)):
            record = json.loads((folder / stage / "record.json").read_text())
            assert record["integer_only"] == integer_only
            assert record["bytes"] == (folder / stage / "model.tflite").stat().st_size
            assert f"{record['bytes']:,}" in printed
            assert record["differing_from_deployable"] in (None, 0)
            assert abs(record["file"]["map"] - record["keras"]["map"]) < 0.5
            assert sorted(path.name for path in (folder / stage).iterdir()) == [
                "history.json", "model.keras", "model.tflite", "record.json",
            ]  # fmt: skip
        assert (folder / "boxes.png").read_bytes().startswith(b"\x89PNG")

    def test_all_convolutions_have_powers_of_two_or_the_eight_bits_of_the_edges(self, finished):
        folder, _ = finished
        inspected = tfqil.inspect((folder / "5_bits" / "model.tflite").read_bytes())
        convolutions = [weights for weights in inspected.weights if weights.operator == "CONV_2D"]
        assert len(convolutions) == 63
        assert sum(not weights.powers_of_two for weights in convolutions) == 7  # The first one and six last ones.

    def test_a_killed_training_goes_on_to_the_same_end(self, finished):
        """In float; `test_protocol.py` goes on with quantized networks, which take minutes to trace at this size."""
        folder, _ = finished
        killed = folder.parent / "killed"
        scripts.kill_when((killed / "float" / "history.json").is_file, *command(killed), before=FEWER)
        assert not (killed / "float" / "record.json").is_file()
        scripts.run(*command(killed), "--schedule=32", before=FEWER)
        expected, found = (
            keras.models.load_model(one / "float" / "model.keras", compile=False).get_weights()
            for one in (folder, killed)
        )
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_other_settings_are_refused(self, finished):
        folder, _ = finished
        assert scripts.refused(*command(folder), "--rate=0.1", before=FEWER) == (
            f"Got --rate=0.1 for the run in {folder}, which has 0.002, expected the same settings: choose another "
            "--directory."
        )


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--schedule=32,8", "Got --schedule=32,8, expected 32, the float network, and then bits from 2 to 6."),
        ("--size=100", "Got --size=100, expected a multiple of 32, the coarsest grid of YOLOV8."),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, argument, sentence):
    assert scripts.refused(*command(tmp_path / "run"), argument, before=FEWER) == sentence
    assert not (tmp_path / "run").exists()


def test_the_network_gives_what_the_detector_of_keras_cv_gives():
    detector = detectors.Detector(64, 3, 0.0625)
    network = detector.network()
    images = tf.random.uniform((2, 64, 64, 3), 0, 255, seed=1)
    expected, found = detector._yolo(images), network(images)
    assert sorted(found) == ["boxes", "classes"]
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, expected[name], atol=1e-5)


def test_training_finds_an_object():
    """One white square on black: after some steps the best box is around it."""
    keras.utils.set_random_seed(0)
    detector = detectors.Detector(64, 2, 0.0625)
    network = detector.network()
    trainer = detectors.Trainer(network, detector)
    trainer.compile(keras.optimizers.Adam(3e-3, global_clipnorm=10.0))
    images = np.zeros((8, 64, 64, 3), np.float32)
    boxes = np.full((8, 2, 4), -1, np.float32)
    for number in range(8):
        left = 4 + 4 * number
        images[number, 16:40, left : left + 24] = 255
        boxes[number, 0] = left, 16, left + 24, 40
    labels = {"boxes": boxes, "classes": np.where(boxes[..., 0] < 0, -1, 1).astype(np.float32)}
    history = trainer.fit(images, labels, epochs=100, batch_size=8, verbose=0).history["loss"]
    assert history[-1] < history[0] / 2
    outputs = {name: np.asarray(tensor) for name, tensor in network(images, training=True).items()}
    for number, found in enumerate(detector.decode(outputs)):
        best = found["scores"].argmax()
        assert found["classes"][best] == 1
        np.testing.assert_allclose(found["boxes"][best], boxes[number, 0], atol=6)
