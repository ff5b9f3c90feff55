"""Labels and normalization in a file: what is written is read, by others too, and what is wrong with them is said."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
import tf_keras as keras
from ai_edge_litert import schema_py_generated as schema

import tfqil
from tests import networks
from tfqil.export import flatbuffer, metadata_tables, runtime
from tfqil.export.metadata import Normalization, has_metadata, read_metadata
from tfqil.export.metadata_tables import ModelTable, TensorTable

layers = keras.layers
LABELS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "Neun Äpfel"]
# What the generated code of TensorFlow Lite Support 0.4.4 writes, with fields that tfqil does not: statistics, an
# author, a second file, and a threshold in front of the normalization.
FOREIGN = bytes.fromhex(
    "1c0000004d30303114001c0018001400000010000c00080000000400140000001800000020000000280000002c000000bc010000c001"
    "000005000000312e302e30000000060000004170616368650000020000006d65000001000000100000000c00100000000c0008000400"
    "0c0000000c000000ac0000006c01000001000000180000000000120010000c00000000000800000000000400120000000c0000005800"
    "000068000000020000003000000004000000e2ffffff00000002040000000a0000006c6162656c732e747874000000000a000c000800"
    "000007000a00000000000001040000000a000000726561646d652e747874000090ffffff0c0000000000000104000400040000000f00"
    "00006b696e645f61637469766174696f6e000100000014000000100014001000000000000c000800040010000000100000001c000000"
    "7c00000090000000a2ffffff04000000010000000000803f02000000400000000c00000008000c000b00040008000000100000000000"
    "000108000c000800040008000000080000000c0000000100000000007f430100000000000080e8ffffff0c0000000003060008000400"
    "060000000000003f08000a0009000400080000000c000000000206000800070006000000000000010500000070686f746f0000000300"
    "00006162630001000000780000000a00000073657175656e7469616c0000"
)


@pytest.fixture(scope="module")
def labelled(small_model) -> bytes:
    return tfqil.convert(small_model, labels=LABELS, normalization=(0, 255), check=False)


def with_buffer(tflite: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The file with other content in its metadata buffer, and the same archive."""
    end = flatbuffer_size(tflite)
    model = flatbuffer.load(tflite)
    (entry,) = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    buffer = model.buffers[entry.buffer]
    buffer.data = np.frombuffer(change(bytes(np.asarray(buffer.data, np.uint8))), np.uint8)
    content = io.BytesIO(flatbuffer.serialize(model))
    with zipfile.ZipFile(io.BytesIO(tflite)) as old, zipfile.ZipFile(content, "a") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert 0 < end < len(tflite)
    return content.getvalue()


def flatbuffer_size(tflite: bytes) -> int:
    """Where the archive begins."""
    with zipfile.ZipFile(io.BytesIO(tflite)) as archive:
        return min(entry.header_offset for entry in archive.infolist())


def test_labels_and_normalization_are_read_as_written(labelled):
    metadata = read_metadata(labelled)
    (image,), (last,) = metadata.inputs, metadata.outputs
    assert (metadata.name, image.name, last.name) == ("tiny", "image", "last")
    assert image.normalization == Normalization(mean=(0.0,), std=(255.0,))
    assert last.labels == tuple(LABELS)
    assert (image.stored, image.scale, last.stored, last.scale) == ("FLOAT32", None, "FLOAT32", None)
    assert metadata.to_dict()["outputs"][0]["labels"] == tuple(LABELS)


def test_a_path_will_do(small_model, tmp_path):
    content = tfqil.convert(small_model, labels=LABELS, path=tmp_path / "new.tflite", check=False)
    assert read_metadata(tmp_path / "new.tflite") == read_metadata(content)


def test_the_file_runs_inspects_and_verifies_as_without_metadata(small_model, small_file, images):
    tflite = tfqil.convert(small_model, "int8", labels=LABELS)
    assert all(map(np.array_equal, runtime.run(tflite, [images]), runtime.run(small_file, [images])))
    assert tfqil.verify(small_model, tflite, images[:100]).accepted
    with_metadata, without = tfqil.inspect(tflite), tfqil.inspect(small_file)
    assert with_metadata.operators == without.operators and with_metadata.bytes > without.bytes


def test_the_same_model_gives_the_same_bytes(small_model, labelled):
    assert tfqil.convert(small_model, labels=LABELS, normalization=(0, 255), check=False) == labelled


def test_labels_are_an_uncompressed_text_file_behind_the_flatbuffer(labelled):
    with zipfile.ZipFile(io.BytesIO(labelled)) as archive:
        (entry,) = archive.infolist()
        assert (entry.filename, entry.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
        text = archive.read("labels.txt")
    assert text.decode().splitlines() == LABELS
    # Readers in C++ look at the bytes of the file where the archive says they are.
    assert text in labelled[flatbuffer_size(labelled) :]


def test_a_file_of_raw_bytes_says_how_they_are_normalized():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="photo"),
            layers.Rescaling(1 / 64, offset=-2),
            layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, name="kind"),
        ]
    )
    photos = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype(np.float32)
    q_model = networks.calibrated_on(model, photos, 4, 8)
    tflite = tfqil.convert(q_model, input_type="uint8", output_type="int8", labels=["cat", "dog", "neither"])
    metadata = read_metadata(tflite)
    (photo,), (kind,) = metadata.inputs, metadata.outputs
    assert photo.normalization == Normalization(mean=(128.0,), std=(64.0,))
    assert (photo.stored, photo.scale, photo.zero_point) == ("UINT8", 1 / 64, 128)
    assert (kind.stored, kind.labels) == ("INT8", ("cat", "dog", "neither"))
    # What the Support library computes of a pixel: (pixel - mean) / std, then / scale + zero point. It is the pixel.
    pixel = np.arange(256)
    assert np.array_equal(np.rint((pixel - 128.0) / 64.0 / photo.scale) + photo.zero_point, pixel)
    # A file of floats normalizes them itself.
    of_floats = read_metadata(tfqil.convert(q_model, labels=["cat", "dog", "neither"], check=False))
    assert of_floats.inputs[0].normalization == Normalization(mean=(0.0,), std=(1.0,))
    assert not has_metadata(tfqil.convert(q_model, check=False))
    without_labels = tfqil.convert(q_model, input_type="uint8", check=False)
    assert read_metadata(without_labels).inputs == metadata.inputs
    with pytest.raises(ValueError, match="Got a normalization for the input 'photo', expected none: the model has its"):
        tfqil.convert(q_model, input_type="uint8", normalization=(128, 64))
    with pytest.raises(ValueError, match="Got a normalization for the input 'photo', expected none: the model has its"):
        tfqil.convert(q_model, normalization=(128, 64))


def test_one_number_per_channel_and_several_outputs():
    inputs = keras.Input((8, 8, 3), name="photo")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu", name="conv")(inputs))
    outputs = [layers.Dense(2, name="sex")(x), layers.Dense(1, name="age")(x), layers.Dense(3, name="mood")(x)]
    photos = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    q_model = networks.calibrated_on(keras.Model(inputs, outputs, name="faces"), photos, 4, 8)
    labels = {"mood": ["glad", "sad", "neither"], "sex": ["f", "m"]}
    mean, std = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)
    metadata = read_metadata(tfqil.convert(q_model, labels=labels, normalization=(mean, std)))
    assert [output.labels for output in metadata.outputs] == [("f", "m"), (), ("glad", "sad", "neither")]
    assert metadata.inputs[0].normalization == Normalization(
        mean=tuple(np.float32(mean).tolist()), std=tuple(np.float32(std).tolist())
    )
    with pytest.raises(
        ValueError, match="Got one list of labels for the outputs 'sex', 'age', 'mood', expected a dict"
    ):
        tfqil.convert(q_model, labels=["glad", "sad", "neither"])
    with pytest.raises(ValueError, match="Got labels for 'face', expected outputs of the model: name one of 'sex'"):
        tfqil.convert(q_model, labels={"face": ["yes"]})


def test_nothing_to_say_adds_no_metadata(small_file):
    assert not has_metadata(small_file)
    with pytest.raises(ValueError, match=r"Got a file without metadata, expected .*tfqil.convert\(..., labels="):
        read_metadata(small_file)


@pytest.mark.parametrize(
    ("labels", "error", "sentence"),
    [
        (LABELS[:9], ValueError, "Got 9 labels for the output 'last' with 10 classes, expected 10"),
        ([*LABELS, "ten"], ValueError, "Got 11 labels for the output 'last' with 10 classes, expected 10"),
        ([], ValueError, "Got 0 labels for the output 'last' with 10 classes"),
        ("0123456789", TypeError, "Got str as the labels of the output 'last', expected a list of texts"),
        (
            np.array(LABELS),
            TypeError,
            "Got ndarray as the labels of .* expected a list of texts, one per class: pass a",
        ),
        ({"last": None}, TypeError, "Got NoneType as the labels of .* expected a list of texts"),
        ([*LABELS[:9], 9], TypeError, "Got the label 9 of class 9, expected a text: pass '9'"),
        ([*LABELS[:9], " "], ValueError, "Got the label ' ' of class 9, expected one line of text"),
        (["a\nb", *LABELS[1:]], ValueError, r"Got the label 'a\\nb' of class 0, expected one line of text"),
    ],
)
def test_labels_that_name_no_classes_are_refused_before_any_work(small_model, labels, error, sentence, monkeypatch):
    monkeypatch.setattr("tfqil.export.convert.converted", lambda *_: pytest.fail("work was done"))
    with pytest.raises(error, match=sentence):
        tfqil.convert(small_model, labels=labels)


@pytest.mark.parametrize(
    ("normalization", "sentence"),
    [
        ((0, 0), "Got std=0 of a normalization, expected positive numbers"),
        ((0, -1), "Got std=-1 of a normalization, expected positive numbers"),
        ((float("nan"), 1), "Got mean=nan of a normalization, expected a finite number"),
        (((1, 2), 1), r"Got mean=\(1, 2\) of a normalization, expected a finite number, or 1 of them"),
        ((0, []), r"Got std=\[\] of a normalization, expected a finite number"),
        (("a", 1), "Got mean='a' of a normalization, expected a finite number, or 1 of them, .*: pass normalization="),
        ((0, None), "Got std=None of a normalization, expected a finite number"),
        ((0, True), "Got std=True of a normalization, expected a finite number"),
        (([[1, 2], [3]], 1), "Got mean=.* of a normalization, expected a finite number"),
        # Metadata hold float32.
        ((0, 1e40), r"Got std=1e\+40 of a normalization, expected a finite number"),
        ((0, 1e-50), "Got std=1e-50 of a normalization, expected positive numbers"),
        ((0, 255, 1), r"Got normalization=\(0, 255, 1\), expected a pair \(mean, std\), .*: pass two numbers"),
        (255, "Got normalization=255, expected a pair"),
        ("ab", "Got normalization='ab', expected a pair"),
        ({"mean": 0, "std": 255}, "Got normalization={'mean': 0, 'std': 255}, expected a pair"),
    ],
)
def test_no_normalization_is_refused_before_any_work(small_model, normalization, sentence, monkeypatch):
    monkeypatch.setattr("tfqil.export.convert.Lowering", lambda *_: pytest.fail("work was done"))
    is_pair = isinstance(normalization, tuple)
    with pytest.raises(ValueError if is_pair else TypeError, match=sentence) as caught:
        tfqil.convert(small_model, normalization=normalization)
    assert str(caught.value).endswith(".") and ": pass " in str(caught.value)


def test_a_pair_may_be_a_list_or_an_array_and_labels_may_be_equal(small_model):
    expected = Normalization(mean=(0.0,), std=(255.0,))
    labels = ["a digit"] * 10
    for pair in ([0, 255], np.array([0, 255]), (np.float32(0), [255.0])):
        metadata = read_metadata(tfqil.convert(small_model, labels=labels, normalization=pair, check=False))
        assert (metadata.inputs[0].normalization, metadata.outputs[0].labels) == (expected, tuple(labels))


def test_metadata_of_another_format_are_named(labelled):
    foreign = with_buffer(labelled, lambda buffer: b'{"labels": ["a", "b"]}')
    with pytest.raises(ValueError, match=r"Got metadata of another format \(identifier b'bels'\), expected b'M001'"):
        read_metadata(foreign)
    with pytest.raises(ValueError, match=r"Got metadata of another format \(identifier b''\)"):
        read_metadata(with_buffer(labelled, lambda buffer: b""))


def test_damaged_metadata_are_one_sentence(labelled):
    whole = metadata_tables.write(ModelTable(name="m", inputs=(), outputs=()))
    assert metadata_tables.read(whole).name == "m"
    refused = 0
    for kept in range(8, 200, 8):
        damaged = with_buffer(labelled, lambda buffer, kept=kept: buffer[:kept])
        with pytest.raises(ValueError) as caught:
            read_metadata(damaged)
        assert str(caught.value).startswith("Got ") and "\n" not in str(caught.value)
        refused += "damaged metadata" in str(caught.value)
    assert refused


def test_metadata_of_another_file_are_refused(labelled):
    other = ModelTable(name="other", inputs=(TensorTable(name="a"), TensorTable(name="b")), outputs=())
    with pytest.raises(ValueError, match="Got metadata of 2 inputs and 0 outputs in a file with 1 and 1, expected"):
        read_metadata(with_buffer(labelled, lambda _: metadata_tables.write(other)))


def test_a_lost_archive_is_named(labelled):
    cut = labelled[: flatbuffer_size(labelled)]
    assert runtime.fixed_batch(cut) is None
    with pytest.raises(ValueError, match=r"Got metadata that name the label file 'labels.txt', which is not there or"):
        read_metadata(cut)


def test_labels_that_others_replaced_are_counted(labelled):
    content = io.BytesIO(labelled[: flatbuffer_size(labelled)])
    content.seek(0, io.SEEK_END)
    with zipfile.ZipFile(content, "a") as archive:
        archive.writestr("labels.txt", "cat\ndog\n")
    with pytest.raises(
        ValueError, match=r"Got 2 labels in 'labels.txt' for an output with 10 classes, expected as many"
    ):
        read_metadata(content.getvalue())


def test_no_file_is_no_metadata(tmp_path):
    with pytest.raises(ValueError, match="got path .*expected an existing .tflite file"):
        read_metadata(tmp_path / "missing.tflite")
    with pytest.raises(TypeError, match="got int"):
        read_metadata(3)


def test_tables_are_read_as_written_whatever_they_hold():
    table = ModelTable(
        name="Modell ä",
        inputs=(
            TensorTable(name="grey", channels=1, mean=(1.5,), std=(2.0,)),
            TensorTable(name="color", channels=3, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0)),
            TensorTable(name="numbers"),
        ),
        outputs=(TensorTable(name="classes", label_file="labels.txt"), TensorTable(name="")),
    )
    assert metadata_tables.read(metadata_tables.write(table)) == table


def test_an_entry_that_names_no_buffer_is_no_crash(small_file):
    model = flatbuffer.load(small_file)
    entry = schema.MetadataT()
    entry.name, entry.buffer = b"TFLITE_METADATA", 10_000
    model.metadata = [*(model.metadata or []), entry]
    with pytest.raises(ValueError, match="Got metadata of another format"):
        read_metadata(flatbuffer.serialize(model))


def test_tables_that_others_wrote_are_read_too():
    photo = TensorTable(name="photo", channels=3, mean=(0.0,), std=(255.0,))
    kind = TensorTable(name="kind_activation", label_file="labels.txt")
    assert metadata_tables.read(FOREIGN) == ModelTable(name="sequential", inputs=(photo,), outputs=(kind,))


def test_an_app_is_not_told_to_hand_pixels_to_a_model_of_unit_images():
    model = keras.Sequential([keras.Input((8, 8, 3), name="photo"), layers.Rescaling(2.0, offset=-1.0)])
    model.add(layers.Conv2D(4, 3, activation="relu"))
    model.add(layers.Flatten())
    model.add(layers.Dense(10, name="kind"))
    images = np.random.default_rng(0).random((64, 8, 8, 3)).astype(np.float32)
    q_model = networks.calibrated_on(model, images, 4, 8)
    (photo,) = read_metadata(tfqil.convert(q_model, labels=LABELS, check=False)).inputs
    assert photo.normalization is None
    # Only whoever made the images knows that they are pixels over 255.
    told = read_metadata(tfqil.convert(q_model, labels=LABELS, normalization=(0, 255), check=False))
    assert told.inputs[0].normalization == Normalization(mean=(0.0,), std=(255.0,))
