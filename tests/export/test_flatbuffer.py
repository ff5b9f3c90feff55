"""Packing of integers, and files that are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.export import tiny_model as tiny
from tfqil.export import flatbuffer


def _file(name: str = "weights", outputs: int = 5) -> bytes:
    model = tiny.TinyModel()
    x = model.activation("x", (1, 8), scale=0.1)
    w = model.constant(name, np.arange(8 * outputs).reshape(outputs, 8), scales=[0.1] * outputs)
    y = model.activation("y", (1, outputs), scale=0.1)
    model.operator("FULLY_CONNECTED", [x, w, -1], [y], tiny.options("FullyConnectedOptions"))
    model.model.description = b"a description"
    return model.to_bytes([x], [y])


@pytest.mark.parametrize("bits", [2, 4, 8])
@given(data=st.data())
def test_unpacking_restores_what_was_packed(bits, data):
    limits = {"min_value": -(1 << (bits - 1)), "max_value": (1 << (bits - 1)) - 1}
    integers = data.draw(st.lists(st.integers(**limits), max_size=40))
    packed = flatbuffer.pack_integers(integers, bits)
    assert packed.size == -(-len(integers) * bits // 8)
    assert flatbuffer.unpack_integers(packed, bits, len(integers)).tolist() == integers


def test_the_first_integer_lies_in_the_lowest_bits():
    assert flatbuffer.pack_integers(np.arange(-8, 8), 4).tobytes().hex() == "98badcfe10325476"
    assert flatbuffer.pack_integers([-2, -1, 0, 1], 2).tobytes().hex() == "4e"
    assert flatbuffer.pack_integers([1, -1, 1], 4).tobytes().hex() == "f101"


@pytest.mark.parametrize(("bits", "integer"), [(2, 2), (2, -3), (4, 8), (4, -9), (8, 128)])
def test_integers_that_do_not_fit_are_refused(bits, integer):
    with pytest.raises(ValueError, match="store them with more bits"):
        flatbuffer.pack_integers([0, integer], bits)


def test_other_widths_and_short_data_are_refused():
    with pytest.raises(ValueError, match="got 3 bits, expected 2, 4 or 8"):
        flatbuffer.pack_integers([0], 3)
    with pytest.raises(ValueError, match="got 1 bytes, expected at least 2"):
        flatbuffer.unpack_integers([0], 4, 3)


def test_serializing_restores_what_was_loaded():
    tflite = _file()
    model = flatbuffer.load(tflite)
    again = flatbuffer.load(flatbuffer.serialize(model))
    assert flatbuffer.serialize(again) == flatbuffer.serialize(model)
    assert flatbuffer.operator_name(model, model.subgraphs[0].operators[0]) == "FULLY_CONNECTED"


@pytest.mark.parametrize("stored", ["INT8", "INT16", "INT32", "FLOAT16", "FLOAT32"])
def test_constants_are_read_as_they_were_written(stored):
    values = np.arange(-6, 6).reshape(3, 4).astype(tiny.DTYPES[stored])
    model = tiny.TinyModel()
    index = model.constant("c", values, stored=stored)
    loaded = flatbuffer.load(model.to_bytes([index], [index]))
    actual = flatbuffer.read_constant(loaded, loaded.subgraphs[0].tensors[index])
    assert actual.dtype == values.dtype
    assert np.array_equal(actual, values)


def test_a_tensor_without_values_is_no_constant():
    model = flatbuffer.load(_file())
    with pytest.raises(ValueError, match="tensor 'x' without values"):
        flatbuffer.read_constant(model, model.subgraphs[0].tensors[0])


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"{'json': 1}", b"\x89PNG\r\n\x1a\n" + bytes(64)])
def test_what_is_no_tflite_file_is_refused(content):
    with pytest.raises(ValueError, match=r"^got .*, expected a \.tflite file.*: "):
        flatbuffer.load(content)


# Names of every length modulo four: the padding behind the last string differs.
@pytest.mark.parametrize("length", range(1, 6))
def test_a_file_cut_at_any_byte_is_refused(length):
    tflite = _file("w" * length)
    for size in range(len(tflite)):
        with pytest.raises(ValueError, match="^got .*, expected .*: "):
            flatbuffer.load(tflite[:size])


# The name of a custom operator is the last thing in a file that Python wrote.
@pytest.mark.parametrize("length", range(1, 9))
def test_a_file_cut_inside_its_last_name_is_refused(length):
    model = tiny.TinyModel()
    x, y = model.activation("x", (1, 8), scale=0.1), model.activation("y", (1, 8), scale=0.1)
    model.operator("CUSTOM", [x], [y], version=1)
    model.model.operatorCodes[0].customCode = b"n" * length
    tflite = model.to_bytes([x], [y])
    loaded = flatbuffer.load(tflite)
    assert flatbuffer.operator_name(loaded, loaded.subgraphs[0].operators[0]) == "CUSTOM " + "n" * length
    for size in range(len(tflite)):
        with pytest.raises(ValueError, match="truncated or damaged|got an empty file"):
            flatbuffer.load(tflite[:size])


def _load_damaged(damaged: bytes) -> str:
    try:
        flatbuffer.load(damaged)
    except ValueError as error:
        return str(error)
    return ""


def test_damage_raises_value_error_or_nothing():
    tflite = _file()
    random = np.random.default_rng(0)
    messages = set()
    for _ in range(500):
        damaged = bytearray(tflite)
        for position in random.integers(8, len(tflite), 3):
            damaged[position] = random.integers(256)
        messages.add(_load_damaged(bytes(damaged))[:60])
    assert messages == {"", *(message for message in messages if "truncated or damaged" in message)}
