"""A SavedModel for servers: read by TensorFlow alone, equal to the model, small, and fit for several clients."""

from __future__ import annotations

import concurrent.futures
import gc
import json
import os
import pathlib
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil

layers = keras.layers

# Of the outputs of `trained`.
NAMES = ("classes", "size")

# What a server knows: TensorFlow. It says which modules it has imported.
SERVER = textwrap.dedent("""
    import concurrent.futures, json, sys
    import numpy as np
    import tensorflow as tf
    folder, examples, results = sys.argv[1:]
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    arrays = np.load(examples)
    inputs = {name: arrays[name] for name in arrays.files}

    def ask(client):
        # Each client has a batch size of its own.
        batch = {name: tf.constant(values[: 1 + 2 * client]) for name, values in inputs.items()}
        return [{name: np.array(value) for name, value in serve(**batch).items()} for _ in range(5)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    np.savez(results, **{f"{client}_{turn}_{name}": value
                         for client, turns in enumerate(answers)
                         for turn, outputs in enumerate(turns)
                         for name, value in outputs.items()})
    print(json.dumps(sorted({module.split(".")[0] for module in sys.modules})))
""")


def served(folder: pathlib.Path, inputs: dict[str, np.ndarray], work: pathlib.Path) -> tuple[list[str], Any]:
    """The modules of a process that loads a SavedModel, and what it answers to 4 clients, 5 times each."""
    np.savez(work / "inputs.npz", **inputs)
    command = [sys.executable, "-c", SERVER, str(folder), str(work / "inputs.npz"), str(work / "results.npz")]
    # Not from the checkout, where Python would find the package.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TF_USE_LEGACY_KERAS")
    }
    done = subprocess.run(command, capture_output=True, text=True, cwd=work, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), np.load(work / "results.npz")


def trained(config: Any, seed: int = 0) -> Any:
    """A calibrated model with convolutions of all kinds, a residual and normalizations that have seen data."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(16, 3, use_bias=False)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(6.0)(x)
    x = layers.SeparableConv2D(24, 3, padding="same", activation="relu")(x)
    y = layers.Conv2D(24, 1, activation="relu")(x)
    y = layers.Conv2DTranspose(24, 3, padding="same")(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Dense(32, activation="relu")(layers.GlobalAveragePooling2D()(x))
    classes = layers.Dense(10, name="classes")(x)
    size = layers.Dense(1, activation="sigmoid", name="size")(x)
    q_model = tfqil.quantize_model(keras.Model(inputs, [classes, size]), config)
    q_model.compile("sgd", "mse")
    q_model.fit(images(32), [np.zeros((32, 10)), np.zeros((32, 1))], verbose=0)
    return q_model


def images(count: int) -> np.ndarray:
    """Noise."""
    return np.random.default_rng(1).normal(size=(count, 12, 12, 3)).astype(np.float32)


def size_of(folder: pathlib.Path) -> int:
    """The bytes of all files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def answers(folder: pathlib.Path, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """What a loaded SavedModel computes, in this process."""
    outputs = tf.saved_model.load(str(folder)).signatures["serving_default"](tf.constant(inputs))
    return {name: value.numpy() for name, value in outputs.items()}


@pytest.fixture(scope="module")
def q_model() -> Any:
    """A trained model with 4-bit weights and activations."""
    return trained(tfqil.QILQuantizeConfig(4, 4))


@pytest.fixture(scope="module")
def folder(q_model, tmp_path_factory) -> pathlib.Path:
    """The model as it is served."""
    path = tmp_path_factory.mktemp("models") / "served"
    tfqil.export_saved_model(q_model, path)
    return path


def test_a_process_without_this_package_serves_four_clients(q_model, folder, tmp_path):
    modules, results = served(folder, {"image": images(8)}, tmp_path)
    assert not {"tfqil", "tensorflow_model_optimization", "tf_keras"} & set(modules)
    for client in range(4):
        expected = q_model.predict(images(8)[: 1 + 2 * client], verbose=0)
        for turn in range(5):
            for name, values in zip(NAMES, expected, strict=True):
                np.testing.assert_allclose(results[f"{client}_{turn}_{name}"], values, rtol=1e-6, atol=1e-6)


def test_every_method_serves_what_it_predicts(tmp_path):
    rules = {
        "separable*": tfqil.LBWQuantizeConfig(6, 8),
        "conv2d_transpose*": tfqil.QILQuantizeConfig(4, 4, normalized=True),
        "dense*": tfqil.BCGDQuantizeConfig(1, 4),
    }
    q_model = trained(tfqil.LowBitScheme(tfqil.QILQuantizeConfig(2, 2, per_channel=True), rules=rules))
    assert {row.quantizer for row in tfqil.placements(q_model)} >= {
        "LBWWeightQuantizer",
        "BinaryWeightQuantizer",
        "QILWeightQuantizer",
    }
    tfqil.export_saved_model(q_model, tmp_path / "served")
    computed = answers(tmp_path / "served", images(6))
    for name, values in zip(NAMES, q_model.predict(images(6), verbose=0), strict=True):
        np.testing.assert_allclose(computed[name], values, rtol=1e-6, atol=1e-6)


def test_xla_serves_the_same(q_model, tmp_path):
    tfqil.export_saved_model(q_model, tmp_path / "served", jit_compile=True)
    computed = answers(tmp_path / "served", images(6))
    step = 1 / 256  # Of a sigmoid's grid; what XLA adds up in another order may be rounded to the next level.
    np.testing.assert_allclose(computed["size"], q_model.predict(images(6), verbose=0)[1], atol=step * 1.01)
    assert np.mean(computed["size"] == q_model.predict(images(6), verbose=0)[1]) > 0.5


def test_kernels_are_stored_as_integers_alone(q_model, folder):
    names = dict(tf.train.list_variables(str(folder / "variables" / "variables")))
    codes = [name for name in names if name.startswith("kernels/codes/")]
    grids = tfqil.freeze(q_model).values()
    in_nibbles, in_bytes = (
        sum(grid.codes.size for grid in grids if bool(np.abs(grid.codes).max() <= 7) is fits) for fits in (True, False)
    )
    assert in_nibbles and in_bytes
    assert [names[name] for name in sorted(codes)] == [[-(-in_nibbles // 2)], [in_bytes]]
    assert names["kernels/steps/.ATTRIBUTES/VARIABLE_VALUE"] == [sum(grid.step.size for grid in grids)]
    assert all(
        np.prod(shape) < 300 for name, shape in names.items() if name not in codes and "CHECKPOINTABLE" not in name
    )
    # Nor are ends of intervals, which are scalars: grids are constants.
    assert not [name for name, shape in names.items() if name.startswith("variables_of_layers/") and not shape]


def test_what_grids_make_of_weights_is_in_the_graph_itself(folder):
    """Not an input of it, which takes more bytes than the number."""
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    assert {tensor.dtype for tensor in served.captured_inputs} == {tf.resource}


def test_a_model_without_kernels_is_served(tmp_path):
    inputs = keras.Input((12, 12, 3))
    joined = layers.Add()([inputs, layers.MaxPooling2D(1)(inputs)])
    q_model = tfqil.quantize_model(
        keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.ReLU()(joined))), tfqil.QILQuantizeConfig(4, 4)
    )
    tfqil.calibrate(q_model, images(8))
    tfqil.export_saved_model(q_model, tmp_path / "served")
    (computed,) = answers(tmp_path / "served", images(8)).values()
    np.testing.assert_allclose(computed, q_model.predict(images(8), verbose=0), rtol=1e-6, atol=1e-6)


def test_the_folder_is_a_fraction_of_the_float_ones(tmp_path):
    inputs = keras.Input((16, 16, 3))
    x = inputs
    for filters in (64, 128, 256, 256):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    model.export(str(tmp_path / "float"))
    q_model = tfqil.quantize_model(model, tfqil.QILQuantizeConfig(4, 4))
    tfqil.calibrate(q_model, np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32))
    tfqil.export_saved_model(q_model, tmp_path / "served")
    assert size_of(tmp_path / "float") >= 3.5 * size_of(tmp_path / "served")


def test_servers_that_run_graphs_find_the_same(q_model, folder):
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        definition = tf.compat.v1.saved_model.load(session, ["serve"], str(folder)).signature_def["serving_default"]
        feeds = {definition.inputs["image"].name: images(3)}
        computed = session.run({name: value.name for name, value in definition.outputs.items()}, feeds)
    for name, values in zip(NAMES, q_model.predict(images(3), verbose=0), strict=True):
        np.testing.assert_allclose(computed[name], values, rtol=1e-6, atol=1e-6)


def test_models_of_equal_names_do_not_share_their_kernels(q_model, folder, tmp_path):
    other = trained(tfqil.QILQuantizeConfig(4, 4), seed=1)
    tfqil.export_saved_model(other, tmp_path / "other")
    first = tf.saved_model.load(str(folder)).signatures["serving_default"]
    second = tf.saved_model.load(str(tmp_path / "other")).signatures["serving_default"]
    for model, serve in ((q_model, first), (other, second), (q_model, first)):
        computed = serve(tf.constant(images(4)))["classes"].numpy()
        np.testing.assert_allclose(computed, model.predict(images(4), verbose=0)[0], rtol=1e-6, atol=1e-6)


class Traced(layers.Layer):
    """A layer that does something when a graph of it is made, and computes nothing."""

    then: Any = None

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs: Any, training: Any = None) -> Any:
        """The inputs."""
        del training
        if self.then is not None and not tf.executing_eagerly():
            self.then()
        return inputs


@pytest.fixture
def traced() -> tuple[Any, Any]:
    """A small model with such a layer in it, and the layer."""
    inputs = keras.Input((4,))
    x = layers.Dense(3)(Traced(name="traced")(layers.Dense(6, activation="relu")(inputs)))
    q_model = tfqil.quantize_model(keras.Model(inputs, x), tfqil.QILQuantizeConfig(3, 4))
    return tfqil.calibrate(q_model, VECTORS), q_model.get_layer("traced")


VECTORS = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)


def test_other_threads_use_the_model_while_it_is_traced(traced, tmp_path):
    q_model, layer = traced
    expected = q_model(VECTORS, training=False).numpy()
    meanwhile = []

    def then() -> None:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            meanwhile.append(pool.submit(lambda: q_model(VECTORS, training=False).numpy()).result())

    layer.then = then
    tfqil.export_saved_model(q_model, tmp_path / "served")
    assert len(meanwhile) >= 1
    for found in (*meanwhile, q_model(VECTORS, training=False).numpy()):
        np.testing.assert_array_equal(found, expected)


def test_an_export_that_fails_leaves_the_model_as_it_was(traced, tmp_path):
    q_model, layer = traced
    expected = q_model(VECTORS, training=False).numpy()

    def then() -> None:
        raise RuntimeError("interrupted")

    layer.then = then
    with pytest.raises(RuntimeError, match="interrupted"):
        tfqil.export_saved_model(q_model, tmp_path / "served")
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(q_model(VECTORS, training=False).numpy(), expected)


def test_memory_is_freed_with_the_model(tmp_path):
    inputs = keras.Input((500,))
    model = keras.Model(inputs, layers.Dense(500)(layers.Dense(8000, activation="relu")(inputs)))
    q_model = tfqil.quantize_model(model, tfqil.QILQuantizeConfig(2, 4))
    tfqil.calibrate(q_model, np.random.default_rng(0).normal(size=(8, 500)).astype(np.float32))
    tfqil.export_saved_model(q_model, tmp_path / "served")
    held = []
    for _ in range(8):
        answers(tmp_path / "served", np.zeros((1, 500), np.float32))
        gc.collect()
        held.append(resident_megabytes())
    # The kernels of one model are 31 MB in float; the first ones grow what the allocator keeps.
    assert held[-1] - held[2] < 31


def resident_megabytes() -> float:
    """The memory of this process, on Linux."""
    (line,) = (line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024  # "VmRSS:    1234 kB"


def test_mixed_precision_several_inputs_as_a_dictionary_integers_and_float_layers(tmp_path):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        inputs = {"words": keras.Input((6,), dtype="int32", name="words"), "age": keras.Input((4,), name="age")}
        x = layers.SimpleRNN(5)(layers.Embedding(10, 8, mask_zero=True)(inputs["words"]))
        y = layers.Lambda(lambda tensor: tf.math.sin(tensor))(layers.Dense(6, activation="relu")(inputs["age"]))
        x = layers.Dense(8, activation="relu")(layers.Concatenate()([x, y]))
        outputs = {"mood": layers.Dense(3, name="mood")(x), "b": layers.Dense(1, "sigmoid", name="first")(x)}
        q_model = tfqil.quantize_model(keras.Model(inputs, outputs), tfqil.QILQuantizeConfig(4, 4))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    examples = {"words": np.random.default_rng(0).integers(0, 10, (9, 6)).astype(np.int32), "age": VECTORS[:9]}
    tfqil.calibrate(q_model, examples)
    tfqil.export_saved_model(q_model, tmp_path / "served")
    serve = tf.saved_model.load(str(tmp_path / "served")).signatures["serving_default"]
    found = serve(**{name: tf.constant(values) for name, values in examples.items()})
    expected = q_model.predict(examples, verbose=0)
    assert set(found) == {"mood", "first"}
    for name, key in (("mood", "mood"), ("first", "b")):
        np.testing.assert_allclose(found[name].numpy(), expected[key], rtol=1e-6, atol=1e-6)


def test_paths_that_cannot_be_written_are_refused_before_any_work(q_model, tmp_path):
    with pytest.raises(FileExistsError, match="Got the existing path .*, expected a new one: remove it first."):
        tfqil.export_saved_model(q_model, tmp_path)
    with pytest.raises(FileNotFoundError, match="expected one in an existing folder: create"):
        tfqil.export_saved_model(q_model, tmp_path / "missing" / "served")
    assert not list(tmp_path.iterdir())


def test_models_that_are_not_ready_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(ValueError, match="Got the float model"):
        tfqil.export_saved_model(model, tmp_path / "served")
    with pytest.raises(ValueError, match="whose activation grids were never set"):
        tfqil.export_saved_model(tfqil.quantize_model(model, tfqil.QILQuantizeConfig(4, 8)), tmp_path / "served")
    assert not list(tmp_path.iterdir())
