"""Glyphs, and how generated sets are stored: reproducible, disjoint, checked, and never half written."""

from __future__ import annotations

import json
import pathlib
import sys

import matplotlib as mpl
import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples"))
import glyphs
import stored

FACES = {face for faces in glyphs.FAMILIES.values() for face in faces}


class TestGlyphs:
    def test_an_image_follows_from_the_seed_and_its_number(self):
        images, labels = glyphs.draw(70, glyphs.TRAIN_FACES, seed=3)
        again, _ = glyphs.draw(65, glyphs.TRAIN_FACES, seed=3)
        others, _ = glyphs.draw(65, glyphs.TRAIN_FACES, seed=4)
        np.testing.assert_array_equal(images[:65], again)
        assert np.mean(again == others) < 0.1
        assert images.shape == (70, 32, 32, 3)
        assert images.dtype == labels.dtype == np.uint8

    def test_classes_are_equally_frequent(self):
        _, labels = glyphs.draw(124, glyphs.TEST_FACES, seed=0)
        assert np.bincount(labels).tolist() == [2] * 62

    def test_training_and_test_share_no_face_and_every_family_is_in_both(self):
        assert not set(glyphs.TRAIN_FACES) & set(glyphs.TEST_FACES)
        assert set(glyphs.TRAIN_FACES) | set(glyphs.TEST_FACES) == FACES
        for faces in glyphs.FAMILIES.values():
            assert set(faces) & set(glyphs.TRAIN_FACES)
            assert set(faces) & set(glyphs.TEST_FACES)

    def test_every_face_with_letters_and_digits_is_used(self):
        paths = pathlib.Path(mpl.get_data_path(), "fonts", "ttf").glob("*.ttf")
        assert {path.stem for path in paths if glyphs.letters_and_digits(path)} == FACES

    def test_without_distortion_the_glyphs_of_a_face_differ_by_class_only(self):
        plain = glyphs.Difficulty(rotation=0, shear=0, scale=0, shift=0, clutter=0, noise=0)
        images, labels = glyphs.draw(310, ("DejaVuSans",), seed=0, difficulty=plain)
        # Where the glyph is: what is far from the background, whatever the colors.
        gray = images.mean(axis=-1)
        border = np.concatenate([gray[:, 0], gray[:, -1]], axis=1).mean(axis=1)
        ink = np.abs(gray - border[:, None, None]) > 25
        same, other = [], []
        for number in range(62, 310):
            same.append(np.mean(ink[number] == ink[number - 62]))
            other.append(np.mean(ink[number] == ink[number - 31]))
        assert labels[62] == labels[0]
        assert np.median(same) > np.median(other) + 0.05

    @pytest.mark.parametrize(("faces", "message"), [(("Arial",), "faces Arial, expected some of"), ((), r"\(none\)")])
    def test_unknown_faces_are_refused(self, faces, message):
        with pytest.raises(ValueError, match=message):
            glyphs.draw(1, faces, seed=0)


class TestStored:
    @staticmethod
    def _made(calls):
        def make():
            calls.append(1)
            return {"numbers": np.arange(5), "zeros": np.zeros((2, 3), np.uint8)}

        return make

    def test_a_set_is_made_once_and_then_read(self, tmp_path):
        calls: list[int] = []
        for _ in range(2):
            arrays = stored.stored(tmp_path / "set", {"seed": 1, "faces": ("a", "b")}, self._made(calls))
            np.testing.assert_array_equal(arrays["numbers"], np.arange(5))
            assert arrays["zeros"].dtype == np.uint8
        assert calls == [1]
        assert [path.name for path in tmp_path.iterdir()] == ["set"]

    def test_a_failure_leaves_nothing(self, tmp_path):
        def fail():
            raise MemoryError

        with pytest.raises(MemoryError):
            stored.stored(tmp_path / "set", {}, fail)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("damage", ["changed", "missing", "manifest", "no manifest"])
    def test_a_damaged_set_is_refused_and_kept(self, tmp_path, damage):
        folder = tmp_path / "set"
        stored.stored(folder, {}, self._made([]))
        path = folder / (stored.MANIFEST if "manifest" in damage else "numbers.npy")
        if damage in ("changed", "manifest"):
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        else:
            path.unlink()
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        with pytest.raises(ValueError, match=r"^Got .*expected .*delete"):
            stored.stored(folder, {}, self._made([]))
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before

    def test_a_set_of_other_settings_is_refused_and_kept(self, tmp_path):
        stored.stored(tmp_path / "set", {"seed": 1}, self._made([]))
        with pytest.raises(ValueError, match=r"settings are \{'seed': 1\}, expected \{'seed': 2\}: choose another"):
            stored.stored(tmp_path / "set", {"seed": 2}, self._made([]))
        assert json.loads((tmp_path / "set" / stored.MANIFEST).read_text())["settings"] == {"seed": 1}
