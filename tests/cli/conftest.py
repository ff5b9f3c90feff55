from __future__ import annotations

import pathlib

import pytest

from tests.export import tiny_model


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A .tflite file of one operator."""
    model = tiny_model.TinyModel()
    x = model.activation("x", (1, 8), scale=0.1, zero_point=-3)
    y = model.activation("y", (1, 8), scale=0.2, zero_point=5)
    model.operator("QUANTIZE", [x], [y])
    path = tmp_path_factory.mktemp("files") / "tiny.tflite"
    path.write_bytes(model.to_bytes([x], [y]))
    return path


@pytest.fixture
def text_file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "notes.txt"
    path.write_text("not a flatbuffer, but long enough to be taken for one\n" * 4)
    return path


@pytest.fixture
def empty_file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "empty.tflite"
    path.touch()
    return path
