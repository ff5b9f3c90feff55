"""The data sets of the detectors: scenes in VOC's structure, VOC as TensorFlow Datasets has it, and their batches."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples"))
import detection_data
import scenes


@pytest.fixture
def few_scenes(monkeypatch, tmp_path):
    monkeypatch.setattr(scenes, "EXAMPLES", {"train": 20, "test": 6})
    return tmp_path


def test_scenes_have_the_features_of_voc(few_scenes):
    made = scenes.features(scenes.arrays(few_scenes), "test")
    with tfds.testing.mock_data(num_examples=1):
        voc = tfds.load("voc/2007", split="test")
    assert made.element_spec == voc.element_spec
    assert int(made.cardinality()) == 6


def test_scenes_have_one_to_six_objects_of_all_classes_within_the_image():
    drawn = scenes.draw(40, scenes.glyphs.TRAIN_FACES, seed=3)
    there = drawn["labels"] >= 0
    assert there.sum(axis=1).min() >= 1
    assert there.sum(axis=1).max() <= 6
    sizes = drawn["boxes"][there][:, 2:] - drawn["boxes"][there][:, :2]
    assert drawn["boxes"].min() >= 0
    assert drawn["boxes"].max() <= 1
    assert sizes.min() * scenes.SIZE >= 6
    assert sizes.max() * scenes.SIZE <= 52
    assert set(drawn["labels"][there]) == set(range(10))


@pytest.mark.parametrize("name", scenes.CLASSES)
def test_an_object_fills_its_box(name):
    random = np.random.default_rng(0)
    mask = scenes._object(name, scenes.glyphs.TRAIN_FACES, random)
    assert mask.min() >= 0
    assert mask.max() > 0.5
    for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
        assert edge.max() > 0.05


def test_a_part_of_a_set_is_a_part_of_a_larger_one():
    few, more = (scenes.draw(count, scenes.glyphs.TEST_FACES, seed=1) for count in (3, 5))
    for name, array in few.items():
        np.testing.assert_array_equal(array, more[name][:3])


def test_a_damaged_set_is_refused(few_scenes):
    scenes.arrays(few_scenes)
    (few_scenes / "scenes" / "train_boxes.npy").write_bytes(b"no boxes")
    with pytest.raises(ValueError, match=r"train_boxes.npy, which is missing or damaged.*delete the folder"):
        detection_data.load("scenes", batch=4, size=64, data_dir=few_scenes)


def test_voc_is_read_as_tensorflow_datasets_prepared_it():
    with tfds.testing.mock_data(num_examples=5):
        data = detection_data.load("voc", batch=2, size=64, seed=1)
        assert (len(data.classes), data.classes[0], data.train_examples) == (20, "aeroplane", 10)
        images, labels = next(data.train(0).as_numpy_iterator())
        assert (images.shape, images.dtype) == ((2, 64, 64, 3), np.float32)
        assert images.min() >= 0
        assert 100 < images.max() <= 255.5
        assert labels["boxes"].shape == (2, 64, 4)
        assert sorted(labels) == ["boxes", "classes"]
        tests = list(data.test.as_numpy_iterator())
        assert sum(len(images) for images, _ in tests) == 5
        assert sorted(tests[0][1]) == ["boxes", "classes", "difficult"]


def test_the_batches_of_an_epoch_follow_from_the_seed_and_its_number(few_scenes):
    def epoch(number, seed=1):
        data = detection_data.load("scenes", batch=10, size=64, seed=seed, data_dir=few_scenes)
        return list(data.train(number).as_numpy_iterator())

    for (images, labels), (same_images, same_labels) in zip(epoch(2), epoch(2), strict=True):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(labels["boxes"], same_labels["boxes"])
    assert not np.array_equal(epoch(2)[0][0], epoch(3)[0][0])
    assert not np.array_equal(epoch(2)[0][0], epoch(2, seed=5)[0][0])


def test_boxes_move_with_the_image():
    """A white rectangle on black is where its box is, mirrored and moved or not."""
    box = np.array([20.0, 8.0, 41.0, 30.0], np.float32)
    image = np.zeros((64, 64, 3), np.float32)
    image[8:30, 20:41] = 255
    seen = set()
    for key in range(40):
        boxes = tf.constant(np.stack([box, np.full(4, -1, np.float32)]))
        moved, found = detection_data._augmented(tf.constant(image), boxes, tf.constant([7, key], tf.int64))
        rows, columns = np.nonzero((moved.numpy() == 255).all(axis=-1))
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_array_equal(found[0], expected)
        np.testing.assert_array_equal(found[1], -1)
        seen.add(tuple(expected))
    assert len({left for left, *_ in seen}) > 5
    assert {left > 30 for left, *_ in seen} == {False}
    assert {left >= 23 - 4 and left <= 23 + 4 for left, *_ in seen} == {True, False}


def test_an_object_that_is_moved_out_of_the_image_is_gone():
    boxes = tf.constant([[0.0, 20.0, 3.0, 40.0]])
    gone = {
        bool(detection_data._augmented(tf.zeros((64, 64, 3)), boxes, tf.constant([1, key], tf.int64))[1][0, 0] < 0)
        for key in range(60)
    }
    assert gone == {True, False}


def test_a_wide_image_is_fitted_with_its_boxes():
    image = np.zeros((20, 40, 3), np.uint8)
    image[5:15, 20:40] = 200
    example = {
        "image": tf.constant(image),
        "objects": {
            "bbox": tf.constant([[0.25, 0.5, 0.75, 1.0]]),
            "label": tf.constant([3], tf.int64),
            "is_difficult": tf.constant([True]),
        },
    }
    fitted, labels = detection_data._fitted(example, 80, 2)
    np.testing.assert_allclose(labels["boxes"], [[40, 10, 80, 30], [-1, -1, -1, -1]])
    np.testing.assert_array_equal(labels["classes"], [3, -1])
    np.testing.assert_array_equal(labels["difficult"], [True, False])
    np.testing.assert_allclose(fitted[12:28, 44:78], 200)
    np.testing.assert_allclose(fitted[40:], 128)


def test_a_set_that_is_not_prepared_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no prepared voc/2007 in .*--data_dir, or run `tfds build voc/2007`"):
        detection_data.load("voc", batch=8, size=64, data_dir=tmp_path)


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="data set 'coco', expected one of scenes, voc"):
        detection_data.load("coco", batch=8, size=64)
