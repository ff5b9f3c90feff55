"""The recipes of the data sets: the real loading code, on data sets that are mocked or drawn small."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples"))
import data
import glyphs


def _images(batches):
    return np.concatenate([images for images, _ in batches.as_numpy_iterator()])


@pytest.fixture
def few_glyphs(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "_GLYPHS", {"train": 124, "test": 62})
    return tmp_path


@pytest.mark.parametrize(
    ("name", "classes", "shape"), [("cifar10", 10, (32, 32, 3)), ("imagenet2012", 1000, (224, 224, 3))]
)
def test_a_recipe_reads_what_tensorflow_datasets_prepared(name, classes, shape):
    with tfds.testing.mock_data(num_examples=20):
        images = data.load(name, batch=8, seed=1)
        assert (images.classes, images.shape, images.train_examples) == (classes, shape, 20)
        first, labels = next(images.train(0).as_numpy_iterator())
        assert first.shape == (8, *shape)
        assert first.dtype == np.float32
        assert labels.max() < classes
        # Normalized: bytes from 0 to 255 would be around 128.
        assert abs(first.mean()) < 1.5
        assert 0.3 < first.std() < 3
        assert len(_images(images.train(0))) == 16  # The rest of 4 is left out.
        assert len(_images(images.test)) == 20
        np.testing.assert_array_equal(_images(images.train(3)), _images(images.train(3)))
        assert not np.array_equal(_images(images.train(3)), _images(images.train(4)))
        assert data.load(name, batch=8, examples=10).train_examples == 10


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_the_batches_of_an_epoch_follow_from_the_seed_and_its_number(name, few_glyphs):
    def epoch(number, seed=1):
        return _images(data.load(name, batch=31, seed=seed, data_dir=few_glyphs).train(number))

    np.testing.assert_array_equal(epoch(2), epoch(2))
    assert not np.array_equal(epoch(2), epoch(3))
    assert not np.array_equal(epoch(2), epoch(2, seed=5))


def test_an_epoch_has_every_example_once_with_its_class(few_glyphs):
    images, labels, _, _ = data.glyph_arrays(few_glyphs)
    loaded = data.load("glyphs", batch=31, data_dir=few_glyphs)
    assert (loaded.classes, loaded.shape) == (62, (32, 32, 3))
    seen = [label for _, batch in loaded.train(0).as_numpy_iterator() for label in batch]
    assert sorted(seen) == sorted(labels.tolist())
    # Moved by two pixels at most: the middle of one of the training images of the class is somewhere in the image.
    batch, classes = next(loaded.train(0).as_numpy_iterator())
    middle = batch[0, 14:18, 14:18]
    of_class = data.normalized_glyphs(images[labels == classes[0]]).numpy()
    distances = [
        np.abs(other[14 + row : 18 + row, 14 + column : 18 + column] - middle).max()
        for other in of_class
        for row in range(-2, 3)
        for column in range(-2, 3)
    ]
    assert min(distances) < 1e-6


def test_test_images_are_not_moved(few_glyphs):
    _, _, images, labels = data.glyph_arrays(few_glyphs)
    loaded = data.load("glyphs", batch=31, data_dir=few_glyphs)
    np.testing.assert_allclose(_images(loaded.test), data.normalized_glyphs(images), atol=1e-6)
    expected, _ = glyphs.draw(62, glyphs.TEST_FACES, seed=2)
    np.testing.assert_array_equal(images, expected)
    assert labels.tolist() == list(range(62))


def test_a_set_that_is_not_prepared_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no prepared cifar10 in .*expected .*--data_dir, or run `tfds build"):
        data.load("cifar10", batch=8, data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="data set 'mnist', expected one of digits, glyphs"):
        data.load("mnist", batch=8)
