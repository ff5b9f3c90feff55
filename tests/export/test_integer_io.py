"""Files that take and give integers: raw bytes of pixels in, a class out, and what the model computes in between."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tfqil.export import flatbuffer, runtime, verify
from tfqil.export.io_tensors import read_io_tensors
from tfqil.export.metadata import read_metadata
from tfqil.export.pixels import find_pixels, kept_normalizations

layers = keras.layers
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "android.md"
# How far rounding to 16 significant bits moves a scale.
SIXTEEN_BITS = 2.0**-16


def pixels(examples: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits as the bytes of grey images, (examples, 8, 8, 1), and their classes."""
    images, classes = sklearn.datasets.load_digits(return_X_y=True)
    return np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)[:examples], classes[:examples]


def calibrated(*first: Any, data: Any = None, channels: int = 1) -> Any:
    """A small network that begins with some layers, quantized at 4/8 bits and calibrated."""
    keras.utils.set_random_seed(2)
    data = pixels(64)[0] if data is None else data
    model = keras.Sequential(
        [
            keras.Input((8, 8, channels), name="image"),
            *first,
            # Its padding is zeros behind the normalization, which are bytes like any other.
            layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="conv"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, name="last"),
        ]
    )
    return networks.calibrated_on(model, data.astype(np.float32), 4, 8)


def plainly_converted(q_model: Any, stored: Any) -> bytes:
    """What any TFLiteConverter writes of a deployable model, with inputs and outputs of a type."""
    converter = tf.lite.TFLiteConverter.from_keras_model(tfqil.deployable(q_model))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = stored
    return converter.convert()


def operators(tflite: bytes) -> list[str]:
    return [operator.name for operator in tfqil.inspect(tflite).operators]


@pytest.fixture(scope="module")
def trained() -> Any:
    """A classifier of raw bytes at 4/4 bits, trained for a short time."""
    images, classes = pixels()
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Rescaling(1 / 255, name="normalization"),
            layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem"),
            layers.BatchNormalization(name="stem_bn"),
            layers.ReLU(name="stem_relu"),
            layers.Conv2D(12, 3, strides=2, padding="same", activation="relu", name="second"),
            layers.Flatten(name="flatten"),
            layers.Dense(10, name="last"),
        ],
        name="digits",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss)
    model.fit(images.astype(np.float32), classes, batch_size=50, epochs=4, verbose=0)
    q_model = networks.calibrated_on(model, images[:256].astype(np.float32), 4, 4)
    q_model.compile(keras.optimizers.Adam(5e-4), loss)
    q_model.fit(images.astype(np.float32), classes, batch_size=50, epochs=1, verbose=0)
    return q_model


@pytest.fixture(scope="module")
def bytes_file(trained) -> bytes:
    return tfqil.convert(trained, input_type="uint8", output_type="uint8", labels=list("0123456789"))


def test_raw_bytes_in_class_out_with_the_accuracy_of_the_model(trained, bytes_file):
    images, classes = pixels()
    (scores,) = runtime.run(bytes_file, [images])
    assert scores.dtype == np.uint8
    predicted = trained.predict(images.astype(np.float32), verbose=0)
    assert np.mean(predicted.argmax(-1) == classes) > 0.95
    assert np.mean(scores.argmax(-1) == classes) == np.mean(predicted.argmax(-1) == classes)
    (output,) = read_io_tensors(bytes_file)[1]
    assert np.array_equal(output.values(scores), predicted)


def test_the_grid_of_the_input_is_one_level_per_byte_and_no_operator_normalizes(bytes_file):
    (image,), (last,) = read_io_tensors(bytes_file)
    assert (image.name, image.stored, image.zero_point) == ("image", "UINT8", 0)
    assert image.scale == pytest.approx(1 / 255, rel=SIXTEEN_BITS)
    assert (last.name, last.stored) == ("last", "UINT8")
    # QUANTIZE takes 128 from each byte, and adds it again: XNNPACK has kernels for int8 only.
    expected = ["QUANTIZE", "CONV_2D", "CONV_2D", "FULLY_CONNECTED", "QUANTIZE"]
    assert operators(bytes_file) == expected
    report = tfqil.inspect(bytes_file)
    assert report.integer_only and all(activation.stored != "FLOAT32" for activation in report.activations)


def test_verify_compares_integer_files_to_the_last_bit(trained, bytes_file):
    report = tfqil.verify(trained, bytes_file, pixels(128)[0])
    assert report.accepted and report.differing_from_deployable == 0
    # The calibration data had 0 and 255, so that the trained model rounds no pixel either.
    assert (report.max_lsb, report.top1_agreement) == (0, 1.0)


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_verify_notices_another_grid_at_an_edge(trained, bytes_file, side):
    model = flatbuffer.load(bytes_file)
    graph = model.subgraphs[0]
    tensor = graph.tensors[int(getattr(graph, side)[0])]
    tensor.quantization.scale = np.asarray(tensor.quantization.scale, np.float32) * np.float32(1.1)
    report = tfqil.verify(trained, flatbuffer.serialize(model), pixels(50)[0])
    assert not report.accepted and report.differing_from_deployable > 0


@pytest.mark.parametrize("stored", [tf.uint8, tf.int8])
def test_integer_files_of_a_plain_converter_are_verified_by_the_grids_that_they_have(stored):
    # Their integers are those of the raw input's grid, of which 16 is level 255, and not the bytes of pixels.
    data = pixels(64)[0] // 16
    q_model = calibrated(layers.Rescaling(1 / 16), data=data)
    tflite = plainly_converted(q_model, stored)
    report = tfqil.inspect(tflite)
    (image,) = report.inputs
    assert (image.stored, image.scale) == (stored.name.upper(), pytest.approx(15 / 255, rel=SIXTEEN_BITS))
    assert report.integer_only and "DEPTHWISE_CONV_2D" in operators(tflite)
    verified = tfqil.verify(q_model, tflite, data)
    assert verified.accepted and (verified.differing_from_deployable, verified.max_lsb) == (0, 0)
    # The file of the same model that takes bytes is another one, and verified as such.
    assert verify.pixels_in(report, q_model) == {}
    of_bytes = tfqil.convert(q_model, input_type="uint8")
    assert list(verify.pixels_in(tfqil.inspect(of_bytes), q_model)) == ["image"]


@pytest.mark.parametrize(("input_type", "output_type"), [("float32", "int8"), ("int8", "float32"), ("uint8", "uint8")])
def test_files_of_all_types_compute_the_same(small_model, small_file, images, input_type, output_type):
    tflite = tfqil.convert(small_model, input_type=input_type, output_type=output_type)
    (image,), (last,) = read_io_tensors(tflite)
    assert (image.stored.lower(), last.stored.lower()) == (input_type, output_type)
    assert (image.name, last.name) == ("image", "last")
    names = operators(tflite)
    assert names.count("QUANTIZE") == (input_type != "int8") + (output_type == "uint8")
    assert names.count("DEQUANTIZE") == (output_type == "float32")
    report = tfqil.verify(small_model, tflite, images[:128])
    assert report.accepted and report.differing_from_deployable == 0
    (stored,) = runtime.run(tflite, [image.integers(images)])
    assert stored.dtype == np.dtype(output_type)
    assert np.array_equal(last.values(stored), runtime.run(small_file, [images])[0])


@pytest.mark.parametrize("storage", ["smallest", "int8"])
def test_every_storage_takes_bytes(trained, bytes_file, storage):
    tflite = tfqil.convert(trained, storage, input_type="int8", output_type="int8")
    assert not {"QUANTIZE", "DEQUANTIZE", "DEPTHWISE_CONV_2D"} & set(operators(tflite))
    assert tfqil.verify(trained, tflite, pixels(100)[0]).accepted
    images = pixels(100)[0]
    (scores,) = runtime.run(tflite, [(images.astype(np.int16) - 128).astype(np.int8)])
    (as_bytes,) = runtime.run(bytes_file, [images])
    # The same integers; "smallest" may have kernels that round in another way.
    assert np.abs(scores.astype(np.int32) + 128 - as_bytes).max() <= (1 if storage == "smallest" else 0)


def test_the_runtime_takes_the_bytes_by_the_names_of_the_signature(bytes_file):
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_content=bytes_file).get_signature_runner("serving_default")
    images = pixels(1)[0]
    assert np.array_equal(run(image=images)["last"], runtime.run(bytes_file, [images])[0])


@pytest.mark.parametrize(
    ("make", "scale", "zero_point"),
    [
        (lambda: layers.Rescaling(1 / 128, offset=-1), 1 / 128, 128),
        (lambda: layers.Rescaling([1 / 64] * 1, offset=[-0.5]), 1 / 64, 32),
        (lambda: layers.Normalization(axis=None, mean=127.0, variance=128.0**2), 1 / 128, 127),
    ],
    ids=["around_zero", "lists", "normalization"],
)
def test_a_normalization_becomes_the_grid_of_the_input(make, scale, zero_point):
    q_model = calibrated(make())
    tflite = tfqil.convert(q_model, input_type="uint8")
    (image,) = read_io_tensors(tflite)[0]
    assert (image.scale, image.zero_point) == (pytest.approx(scale, rel=SIXTEEN_BITS), zero_point)
    assert "DEPTHWISE_CONV_2D" not in operators(tflite)
    # Every byte is its own level: nothing is rounded.
    bytes_ = np.arange(256, dtype=np.uint8)
    values = np.float64(scale) * (bytes_.astype(np.float64) - zero_point)
    assert np.array_equal(image.integers(values.astype(np.float32)), bytes_)
    report = tfqil.verify(q_model, tflite, pixels(100)[0])
    assert report.accepted and report.differing_from_deployable == 0


def test_several_normalizations_in_a_row_are_one():
    q_model = calibrated(layers.Rescaling(1 / 255), layers.Normalization(axis=None, mean=0.2, variance=0.04))
    (image,) = read_io_tensors(tfqil.convert(q_model, input_type="uint8"))[0]
    assert (image.scale, image.zero_point) == (pytest.approx(1 / 51, rel=1e-4), 51)


def test_bytes_that_use_few_levels_are_exact_too():
    # Values of 0 to 16, of which the trained model makes 255 levels, and the file 17.
    data = pixels(64)[0] // 16
    q_model = calibrated(layers.Rescaling(1 / 16), data=data)
    tflite = tfqil.convert(q_model, input_type="uint8")
    (image,) = read_io_tensors(tflite)[0]
    assert (image.scale, image.zero_point) == (1 / 16, 0)
    report = tfqil.verify(q_model, tflite, data)
    assert report.accepted and report.mean_lsb < 1


@pytest.mark.parametrize(
    ("make", "data", "reason"),
    [
        (
            lambda: layers.Rescaling(1 / 255, offset=0.5),
            None,
            "it makes 0 of a pixel of -127.5, which is no byte: train with the offset 0, which makes 0 of 0",
        ),
        (lambda: layers.Rescaling(-1 / 255), None, "its scale -0.003922 is not positive: train with a positive one"),
        (
            lambda: layers.Normalization(mean=[123.7, 116.3, 103.5], variance=[3411.0, 3260.0, 3300.0]),
            np.repeat(pixels(64)[0], 3, axis=-1),
            "it is another one for each channel: train with one mean and one variance for all, as Normalization(axis=",
        ),
        (
            lambda: layers.Rescaling(2.0, offset=-1),
            pixels(64)[0] / 255,
            "its data were in [0, 1], which are no pixels of 0 to 255: train and calibrate on pixels",
        ),
        (lambda: layers.Rescaling(0.5), pixels(64)[0] - 128.0, "its data were in [-128, 127], which are no pixels"),
        (lambda: layers.Rescaling(0.1), pixels(64)[0] * 4.0, "its data were in [0, 1020], which are no pixels"),
    ],
    ids=["negative_zero", "mirrored", "per_channel", "unit_images", "signed", "wide"],
)
def test_other_normalizations_are_no_grid_for_a_reason(make, data, reason):
    q_model = calibrated(make(), channels=1 if data is None else data.shape[-1], data=data)
    assert find_pixels(q_model) == {}
    (text,) = kept_normalizations(q_model).values()
    assert text.startswith(reason)


def beside_another_reader(image: Any) -> Any:
    both = [layers.Conv2D(1, 3, padding="same", name="beside")(layers.Rescaling(1 / 255)(image)), image]
    return layers.Add(name="sum")(both)


@pytest.mark.parametrize(
    ("first", "edge_bits", "reason"),
    [
        (
            lambda image: layers.BatchNormalization(name="norm")(image),
            8,
            "a BatchNormalization computes it, whose numbers training changes: put a Rescaling or Normalization in ",
        ),
        (
            lambda image: layers.BatchNormalization(name="norm")(layers.Rescaling(1 / 255)(image)),
            8,
            "'norm' reads its values before they have 8 bits of their own: put a layer with a kernel between, or ",
        ),
        (
            lambda image: layers.Concatenate(name="joined")([layers.Rescaling(1 / 255)(image), image]),
            8,
            "'joined' reads the input too: let one normalization be all that reads it",
        ),
        (beside_another_reader, 8, "'sum' reads the input too: let one normalization be all that reads it"),
        (
            lambda image: layers.Rescaling(1 / 255)(layers.ZeroPadding2D(name="padding")(image)),
            8,
            "'padding' stands in front of it: put the normalization right behind the input",
        ),
        (lambda image: layers.ReLU(name="clip")(layers.Rescaling(1 / 255)(image)), 8, "'clip' clips its values: leave"),
        (lambda image: layers.Rescaling(1 / 255)(image), 4, "'quantize_image' has 4 bits or a grid of another kind: q"),
    ],
    ids=["norm", "norm_behind", "joined", "other_reader", "padding", "clip", "four_bits"],
)
def test_a_normalization_that_something_else_meets_is_no_grid_for_a_reason(first, edge_bits, reason):
    image = keras.Input((8, 8, 1), name="image")
    model = keras.Model(image, layers.Dense(3, name="last")(layers.Flatten()(first(image))))
    q_model = networks.calibrated_on(model, pixels(64)[0].astype(np.float32), 4, 8, edge_bits=edge_bits)
    assert find_pixels(q_model) == {}
    assert kept_normalizations(q_model)["image"].startswith(reason)


def test_a_normalization_that_others_read_too_stays_an_operator_and_is_warned_of(caplog):
    image = keras.Input((8, 8, 1), name="image")
    model = keras.Model(image, layers.Dense(3, name="last")(layers.Flatten()(beside_another_reader(image))))
    q_model = networks.calibrated_on(model, pixels(64)[0].astype(np.float32), 4, 8)
    tflite = tfqil.convert(q_model, input_type="uint8", output_type="uint8")
    assert "the normalization of the input 'image' stays an operator, since 'sum' reads the input too" in caplog.text
    assert "DEPTHWISE_CONV_2D" in operators(tflite)
    assert tfqil.verify(q_model, tflite, pixels(32)[0]).accepted


def test_a_normalization_that_stays_an_operator_is_warned_of_and_the_remedy_helps(caplog):
    q_model = calibrated(layers.Rescaling(1 / 127.5, offset=-1))
    assert operators(tfqil.convert(q_model, check=False))[:2] == ["QUANTIZE", "DEPTHWISE_CONV_2D"]
    assert not caplog.text
    tflite = tfqil.convert(q_model, input_type="uint8")
    assert (
        "normalization of the input 'image' stays an operator, since it makes 0 of a pixel of 127.5, which is no byte: "
        "train with the offset -1.00392, which makes 0 of 128." in caplog.text
    )
    assert find_pixels(calibrated(layers.Rescaling(1 / 127.5, offset=-1.00392)))
    assert operators(tflite)[:2] == ["QUANTIZE", "DEPTHWISE_CONV_2D"]
    (image,) = read_io_tensors(tflite)[0]
    assert (image.scale, image.zero_point) == (1.0, 0)  # Raw bytes all the same: the data had 0 and 255.
    report = tfqil.verify(q_model, tflite, pixels(64)[0])
    assert report.accepted and report.differing_from_deployable == 0


def test_two_inputs_and_two_outputs_keep_their_order():
    second, first = keras.Input((8, 8, 1), name="zebra"), keras.Input((4,), name="aardvark")
    image = layers.Conv2D(4, 3, name="conv")(layers.Rescaling(1 / 255)(second))
    image = layers.GlobalAveragePooling2D()(layers.ReLU()(image))
    joined = layers.Concatenate()([image, layers.Dense(4, activation="relu", name="of_numbers")(first)])
    outputs = [layers.Dense(3, name="yak")(joined), layers.Dense(2, activation="softmax", name="bear")(joined)]
    numbers = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    data = [pixels(64)[0].astype(np.float32), numbers]
    q_model = networks.calibrated_on(keras.Model([second, first], outputs), data, 4, 8)
    tflite = tfqil.convert(q_model, input_type="uint8", output_type="int8")
    inputs, outputs = read_io_tensors(tflite)
    assert [(edge.name, edge.stored) for edge in inputs] == [("zebra", "UINT8"), ("aardvark", "UINT8")]
    assert [(edge.name, edge.stored) for edge in outputs] == [("yak", "INT8"), ("bear", "INT8")]
    assert (inputs[0].zero_point, inputs[0].scale) == (0, pytest.approx(1 / 255, rel=SIXTEEN_BITS))
    assert tfqil.verify(q_model, tflite, data).accepted
    # A plain converter sorts them by name.
    sorted_by_name = plainly_converted(q_model, tf.uint8)
    assert [tensor.name for tensor in tfqil.inspect(sorted_by_name).inputs] == ["aardvark", "zebra"]
    assert tfqil.verify(q_model, sorted_by_name, data).accepted


def test_an_unknown_type_names_the_known_ones(small_model):
    for argument in ("input_type", "output_type"):
        with pytest.raises(ValueError, match=f"Got {argument}='int16', expected one of 'float32', 'int8', 'uint8'"):
            tfqil.convert(small_model, **{argument: "int16"})
    with pytest.raises(ValueError, match="Got input_type=tf.uint8, expected one of"):
        tfqil.convert(small_model, input_type=tf.uint8)


def test_edges_in_float_are_refused_before_any_work(images, monkeypatch):
    q_model = networks.calibrated_on(networks.tiny(), images, 4, 4, edge_bits=None)
    monkeypatch.setattr("tfqil.export.convert.converted", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match="Got input_type='uint8' for the input 'image', expected float32, since noth"):
        tfqil.convert(q_model, input_type="uint8", allow_float=True)
    with pytest.raises(ValueError, match="Got output_type='int8' for the output 'last', expected float32, since"):
        tfqil.convert(q_model, output_type="int8", allow_float=True)


def test_inputs_that_are_integers_of_the_model_stay_as_they_are():
    words = keras.Input((6,), dtype="int32", name="words")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(50, 8, name="embedding")(words))
    x = layers.Dense(8, activation="relu", name="hidden")(x)
    numbers = np.random.default_rng(0).integers(0, 50, (32, 6)).astype(np.int32)
    q_model = networks.calibrated_on(keras.Model(words, layers.Dense(3, name="last")(x)), numbers, 4, 8)
    report = tfqil.inspect(tfqil.convert(q_model, input_type="uint8", output_type="uint8"))
    assert (report.inputs[0].stored, report.inputs[0].scale) == ("INT32", None)
    assert report.outputs[0].stored == "UINT8"
    tflite = tfqil.convert(q_model, input_type="int8")
    assert tflite == tfqil.convert(q_model)
    verified = tfqil.verify(q_model, tflite, numbers)
    assert (verified.differing_from_deployable, verified.different_weights) == (0, ())


def test_the_type_of_the_input_says_which_arithmetic_is_in_the_file(trained, bytes_file):
    assert verify.pixels_in(tfqil.inspect(bytes_file), trained)
    assert not verify.pixels_in(tfqil.inspect(tfqil.convert(trained)), trained)
    assert operators(tfqil.convert(trained))[1] == "DEPTHWISE_CONV_2D"


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(example, "android.md", "exec"), {})
    assert read_metadata(tmp_path / "kinds.tflite").inputs[0].normalization is not None
    photos = np.fromfile("photos.bin", np.uint8).reshape(-1, 32, 32, 3)
    (scores,) = runtime.run((tmp_path / "kinds.tflite").read_bytes(), [photos])
    assert np.array_equal(np.fromfile("scores.bin", np.uint8), scores.ravel()) and len(photos) == 8
