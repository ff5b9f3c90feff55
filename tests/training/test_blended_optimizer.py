"""Blended descent: the update itself, around any optimizer, in every way of running, saving and distributing it."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tests.numerics.golden_vectors import cases
from tests.training import two_layers
from tests.training.two_layers import fit, network, quantized_dense, quantized_layers, same, trained
from tfqil.optimizers import BlendedOptimizer
from tfqil.quantizers import BinaryRelax, BinaryWeightQuantizer, QILWeightQuantizer, TernaryWeightQuantizer

optimizers = keras.optimizers

WAYS = {"eager": {"run_eagerly": True}, "graph": {}, "xla": {"jit_compile": True}}
# The optimizer takes no rho of 1; that case is for the formula.
CASES = {case["name"]: case for case in cases("bcgd") if case["inputs"]["rho"] < 1}


# --- the update, step by step ---


def reference_step(u: np.ndarray, X: np.ndarray, y: np.ndarray, rho: float, eta: float) -> np.ndarray:
    """One update by its formula, in float64."""
    w = np.where(u < 0, -1.0, 1.0) * np.abs(u).mean()
    return (1 - rho) * u + rho * w - eta * X.T @ (X @ w - y) / len(y)


def reference_trajectory(X: np.ndarray, y: np.ndarray, start: np.ndarray, rho: float, eta: float, steps: int) -> Any:
    """Start and all updates."""
    found = [start]
    for _ in range(steps):
        found.append(reference_step(found[-1], X, y, rho, eta))
    return np.array(found)


@functools.cache
def least_squares(name: str, way: str, dtype: str) -> dict[str, np.ndarray]:
    """The trajectory of a golden case through `train_on_batch`, and the quantized weights along it."""
    inputs = CASES[name]["inputs"]
    X, y, start = (np.asarray(inputs[key], dtype) for key in ("X", "y", "start"))
    layer = quantized_dense(1, BinaryWeightQuantizer(), use_bias=False, dtype=dtype)
    model = keras.Sequential([keras.Input((X.shape[1],), dtype=dtype), layer])
    layer.kernel.assign(start[:, None])
    optimizer = BlendedOptimizer(optimizers.SGD(inputs["eta"]), model, inputs["rho"])
    model.compile(optimizer, lambda target, output: tf.reduce_mean((output - target) ** 2) / 2, **WAYS[way])
    found: dict[str, list[np.ndarray]] = {"float_weights": [], "weights": []}
    for step in range(inputs["steps"] + 1):
        if step:
            model.train_on_batch(X, y[:, None])
        found["float_weights"].append(layer.kernel.numpy()[:, 0])
        found["weights"].append(layer.quantized(layer.kernel).numpy()[:, 0])
    assert {values.dtype for values in found["float_weights"] + found["weights"]} == {np.dtype(dtype)}
    return {key: np.array(values) for key, values in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_trajectory_in_float64_is_the_golden_one(name):
    got, expected = least_squares(name, "eager", "float64"), CASES[name]["expected"]
    # The golden numbers are printed with 10 digits.
    for key in ("float_weights", "weights"):
        np.testing.assert_allclose(got[key], expected[key], rtol=1e-9, atol=1e-12, err_msg=key)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["5x5 blended", "rho 1e-5"])
def test_the_trajectory_in_float64_is_that_of_the_formula_however_it_runs(name, way):
    inputs = {k: np.asarray(v, np.float64) if isinstance(v, list) else v for k, v in CASES[name]["inputs"].items()}
    # Keras keeps the learning rate as float32, in which eta is exact; what is left are sums in another order.
    np.testing.assert_allclose(
        least_squares(name, way, "float64")["float_weights"], reference_trajectory(**inputs), rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["5x5 blended", "rho 1e-5"])
def test_every_step_in_float32_is_within_a_few_ulp(name, way):
    inputs = {k: np.asarray(v, np.float64) if isinstance(v, list) else v for k, v in CASES[name]["inputs"].items()}
    X, y, rho, eta = (inputs[key] for key in ("X", "y", "rho", "eta"))
    weights = least_squares(name, way, "float32")["float_weights"]
    for step, (u, got) in enumerate(zip(weights[:-1].astype(np.float64), weights[1:], strict=True)):
        # What is added in a step, in magnitudes: an ulp of that is what one rounding may lose. There are a handful on
        # the way of a weight (1 - rho, two products, two sums), and some in the mean and in the sums of the gradient.
        scale = np.abs(u) + eta * np.abs(X).T @ (np.abs(X) @ np.full_like(u, np.abs(u).mean()) + np.abs(y)) / len(y)
        off = np.abs(got - reference_step(u, X, y, rho, eta)) / (np.finfo(np.float32).eps * scale)
        assert off.max() <= 2, f"step {step}: {off.max():.1f} ulp"


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Nadam", "Adagrad", "Adamax", "Lion"])
def test_a_step_is_the_blend_and_then_the_step_of_any_optimizer(name):
    blended, by_hand = network(), network()
    inner, rho = getattr(optimizers, name)(0.01), 0.25
    optimizer = BlendedOptimizer(getattr(optimizers, name)(0.01), blended, rho)
    inner.build(by_hand.trainable_variables)
    optimizer.build(blended.trainable_variables)
    for _ in range(2):
        gradients = [gradients_of(model) for model in (blended, by_hand)]
        (layer,) = quantized_layers(by_hand)
        layer.kernel.assign((1 - rho) * layer.kernel + rho * layer.quantized(layer.kernel))
        inner.apply_gradients(zip(gradients[1], by_hand.trainable_variables, strict=True))
        optimizer.apply_gradients(zip(gradients[0], blended.trainable_variables, strict=True))
    assert same(blended.variables, by_hand.variables) and same(optimizer.variables, inner.variables)


def gradients_of(model: Any) -> list[tf.Tensor]:
    """The gradients of the loss of some digits."""
    with tf.GradientTape() as tape:
        loss = two_layers.LOSS(two_layers.LABELS[:8], model(two_layers.IMAGES[:8], training=True))
    return tape.gradient(loss, model.trainable_variables)


@pytest.mark.parametrize(
    "inner",
    [
        lambda: optimizers.SGD(0.1, momentum=0.9),
        lambda: optimizers.Adam(0.01, weight_decay=0.01),
        lambda: optimizers.AdamW(0.01, clipnorm=0.1),
        lambda: optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=5),
    ],
    ids=["momentum", "weight decay", "clipnorm", "ema"],
)
def test_without_rho_it_is_the_inner_optimizer_bit_for_bit(inner):
    plain, blended = network(), network()
    trained(plain, inner(), epochs=3)
    trained(blended, BlendedOptimizer(inner(), blended, 0.0), epochs=3)
    assert same(plain.variables, blended.variables)
    assert same(plain.optimizer.variables, blended.optimizer.variables)


def test_blending_draws_the_kernels_to_their_quantization():
    distances = []
    for rho in (0.0, 0.1):
        model = network()
        (layer,) = quantized_layers(trained(model, BlendedOptimizer(optimizers.SGD(0.05), model, rho), 3))
        distances.append(np.linalg.norm(layer.kernel - layer.quantized(layer.kernel)))
    # (1 - 0.1)^12 = 0.28 of the distance would be left without gradients.
    assert distances[1] < 0.5 * distances[0], distances


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_training_is_traced_once_with_relaxed_and_learned_weights_too(jit):
    model = network(BinaryRelax(BinaryWeightQuantizer()), BinaryRelax(QILWeightQuantizer(bits=3)))
    optimizer = BlendedOptimizer("adam", model, 1e-3)
    # A step that makes variables is traced twice in any case, outside of XLA.
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, two_layers.LOSS, jit_compile=jit)
    losses = fit(model, 4, callbacks=[tfqil.callbacks.BinaryRelaxSchedule(1.0, 2.0, exact_from_epoch=2)])["loss"]
    fit(model, 2)
    assert model.train_tf_function.experimental_get_tracing_count() == 1
    assert losses[-1] < losses[0] and int(optimizer.iterations) == 24


# --- what is blended, and with what ---


def test_frozen_kernels_and_kernels_without_gradient_are_not_blended():
    model = network(BinaryWeightQuantizer(), BinaryWeightQuantizer(), BinaryWeightQuantizer())
    frozen, without, blended = (layer.kernel for layer in quantized_layers(model))
    model.layers[1].trainable = False
    before = [kernel.numpy() for kernel in (frozen, without, blended)]
    optimizer = BlendedOptimizer(optimizers.SGD(0.0), model, 0.5)
    gradients = [None if v is without else tf.zeros_like(v) for v in model.trainable_variables]
    # Keras warns of gradients that do not exist.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("absl.logging.warning", lambda *_: None)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    assert same(before[:2], [frozen, without])
    layer = model.layers[3]
    np.testing.assert_array_equal(blended, (before[2] + layer.quantized(before[2]).numpy()) / 2)


@pytest.mark.parametrize(
    "quantizer",
    [
        QILWeightQuantizer(bits=2, per_channel=True, train_gamma=True),
        TernaryWeightQuantizer(per_channel=True),
        BinaryRelax(BinaryWeightQuantizer()),
        BinaryRelax(QILWeightQuantizer(bits=3)),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_any_quantizer_is_blended_with_what_inference_computes_with(quantizer):
    model = network(quantizer)
    (layer,) = quantized_layers(model)
    if "relaxation" in layer.quantizer_variables:
        layer.quantizer_variables["relaxation"].assign(1.0)
    before = layer.kernel.numpy()
    variables = [v.numpy() for v in layer.variables if v is not layer.kernel]
    optimizer = BlendedOptimizer(optimizers.SGD(0.0), model, 0.5)
    optimizer.minimize(
        lambda: tf.add_n([tf.reduce_sum(v) for v in model.trainable_variables]), model.trainable_variables
    )
    np.testing.assert_array_equal(
        layer.kernel, (before + layer.weight_quantizer.grid(before, layer.quantizer_variables).values) / 2
    )
    assert same(variables, [v for v in layer.variables if v is not layer.kernel])


# --- learning rates and weight decay reach the inner optimizer ---


def test_callbacks_and_schedules_set_the_learning_rate_of_the_inner_optimizer():
    model = network()
    optimizer = BlendedOptimizer(optimizers.SGD(0.5), model, 1e-3)
    trained(model, optimizer, 2, callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch: 0.25 / (epoch + 1))])
    assert float(optimizer.inner.learning_rate) == float(optimizer.lr) == 0.125
    no_progress = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=100.0)
    history = fit(model, 3, callbacks=[no_progress])
    assert float(optimizer.inner.learning_rate) == 0.03125 and history["lr"] == [0.125, 0.125, 0.0625]
    optimizer.learning_rate = 0.75
    assert float(optimizer.inner.learning_rate) == 0.75


def test_a_learning_rate_schedule_decays_as_in_the_inner_optimizer():
    def inner() -> Any:
        return optimizers.SGD(optimizers.schedules.ExponentialDecay(0.5, 1, 0.5))

    plain, blended = network(), network()
    trained(plain, inner())
    trained(blended, BlendedOptimizer(inner(), blended, 0.0))
    assert same(plain.variables, blended.variables) and float(blended.optimizer.learning_rate) == 0.5**4
    # Where the TensorBoard callback looks for it.
    assert isinstance(blended.optimizer._learning_rate, optimizers.schedules.ExponentialDecay)


def test_variables_excluded_from_weight_decay_do_not_decay():
    model = network()
    optimizer = BlendedOptimizer(optimizers.SGD(1.0, weight_decay=0.5), model, 0.0)
    optimizer.exclude_from_weight_decay(var_names=["last"])
    before = [v.numpy() for v in model.trainable_variables]
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in model.trainable_variables])
    factors = [1.0 if "last" in v.name else 0.5 for v in model.trainable_variables]
    assert set(factors) == {1.0, 0.5}
    assert same(model.trainable_variables, [value * factor for value, factor in zip(before, factors, strict=True)])


# --- mixed precision and several devices ---


def test_mixed_float16_scales_the_loss_around_it_and_skips_what_is_not_finite(tmp_path):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = network(BinaryWeightQuantizer(), QILWeightQuantizer(bits=3))
        optimizer = BlendedOptimizer(optimizers.SGD(0.1, momentum=0.9), model, 0.01)
        model.compile(optimizer, two_layers.LOSS)
        losses = fit(model, 3)["loss"]
        assert losses[-1] < losses[0]
        assert type(model.optimizer) is not BlendedOptimizer and model.optimizer.inner_optimizer is optimizer
        assert {v.dtype for v in model.trainable_variables} == {tf.float32}
        before, scale = [v.numpy() for v in model.variables], float(model.optimizer.loss_scale)
        model.train_on_batch(np.full_like(two_layers.IMAGES[:32], np.inf), two_layers.LABELS[:32])
        assert same(before, model.variables), "a step with gradients that are not finite was taken"
        assert float(model.optimizer.loss_scale) == scale / 2 and int(optimizer.iterations) == 13
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert isinstance(again.optimizer.inner_optimizer, BlendedOptimizer)
    assert same(again.variables, model.variables) and same(again.optimizer.variables, model.optimizer.variables)


def test_two_replicas_train_to_the_weights_of_one(tmp_path):
    folder = pathlib.Path(tfqil.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-m", "tests.training.mirrored_training", str(tmp_path / "weights.npz")],
        check=True,
        cwd=folder,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "1"},
        capture_output=True,
        timeout=300,
    )
    weights = np.load(tmp_path / "weights.npz")
    count = len(weights.files) // 4
    for number in range(count):
        alone, unblended, first, second = (
            weights[f"{name}_{number}"] for name in ("alone", "unblended", "first", "second")
        )
        assert np.array_equal(first, second), f"the replicas hold different values of variable {number}"
        # Gradients of two halves are summed in another order: an ulp (6e-8) or so in each of 12 steps, with momentum.
        np.testing.assert_allclose(first, alone, rtol=0, atol=1e-6)
        if alone.ndim == 2:
            assert np.abs(alone - unblended).max() > 1e-3, f"blending changes nothing in variable {number}"


# --- saving and restoring ---


@pytest.fixture(scope="module")
def reference() -> Any:
    """A network of every kind of layer with binary weights, ready to train; its examples and classes."""
    keras.utils.set_random_seed(1)
    images, labels = networks.digits(128, 8)
    model = networks.randomize_norms(networks.tiny())
    q_model = tfqil.calibrate(tfqil.quantize_model(model, tfqil.BCGDQuantizeConfig(1, 4)), images)
    q_model.compile(BlendedOptimizer(optimizers.Adam(0.01), q_model, 1e-3), "sparse_categorical_crossentropy")
    return q_model, images, labels


@pytest.fixture(scope="module")
def interrupted(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Files of that model after an epoch, and its variables and optimizer's state after another one."""
    q_model, images, labels = reference
    folder = tmp_path_factory.mktemp("blended")
    q_model.fit(images, labels, shuffle=False, verbose=0)
    for name in ("model.keras", "model.h5"):
        q_model.save(folder / name)
    q_model.fit(images, labels, shuffle=False, verbose=0)
    return folder, [v.numpy() for v in (*q_model.variables, *q_model.optimizer.variables)]


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_a_reloaded_training_goes_on_as_if_it_had_not_stopped(reference, interrupted, name):
    (_, images, labels), (folder, expected) = reference, interrupted
    again = keras.models.load_model(folder / name)
    assert isinstance(again.optimizer, BlendedOptimizer) and again.optimizer.rho == 1e-3
    assert isinstance(again.optimizer.inner, optimizers.Adam) and int(again.optimizer.iterations) == 4
    again.fit(images, labels, shuffle=False, verbose=0)
    assert same(expected, [*again.variables, *again.optimizer.variables])


@keras.saving.register_keras_serializable(package="tests")
class OptimizerOfAUser(optimizers.SGD):
    """Nothing new, in a class that Keras does not know."""


@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
@pytest.mark.parametrize(
    "inner",
    [
        lambda: OptimizerOfAUser(0.5, momentum=0.5),
        lambda: optimizers.Adam(optimizers.schedules.ExponentialDecay(0.5, 1, 0.5), clipnorm=1.0),
    ],
    ids=["registered", "schedule"],
)
def test_any_inner_optimizer_comes_back_from_a_file(inner, name, tmp_path):
    model = network()
    model.compile(BlendedOptimizer(inner(), model, 0.25), two_layers.LOSS)
    model.train_on_batch(two_layers.IMAGES[:8], two_layers.LABELS[:8])
    model.save(tmp_path / name)
    again = keras.models.load_model(tmp_path / name).optimizer
    assert type(again.inner) is type(model.optimizer.inner) and again.get_config() == model.optimizer.get_config()
    assert same(again.variables, model.optimizer.variables)


def test_a_model_whose_kernels_are_frozen_can_be_loaded_with_its_optimizer():
    config = BlendedOptimizer(optimizers.Adam(0.5), network(), 0.25).get_config()
    again = BlendedOptimizer.from_config(config)
    # Keras does this while it loads a model.
    again.build([network().layers[-1].bias])
    assert again.get_config() == config and len(again.variables) == 3


def test_checkpoints_of_the_inner_optimizer_and_of_the_blended_one_are_the_same(tmp_path):
    model = network()
    zeros = [tf.zeros_like(v) for v in model.trainable_variables]
    ones = [tf.ones_like(v) for v in model.trainable_variables]

    def built(blend: bool, gradients: list[tf.Tensor]) -> Any:
        optimizer = optimizers.Adam(0.01)
        optimizer = BlendedOptimizer(optimizer, model, 0.1) if blend else optimizer
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return optimizer

    for blend in (False, True):
        written, read = built(blend, ones), built(not blend, zeros)
        path = tf.train.Checkpoint(optimizer=written).write(str(tmp_path / f"checkpoint_{blend}"))
        assert not same(written.variables, read.variables)
        tf.train.Checkpoint(optimizer=read).read(path).assert_consumed()
        assert len(read.variables) == 9 and same(written.variables, read.variables)


# --- bad input ---


@pytest.mark.parametrize("rho", [-1e-5, 1, 1.5, float("nan"), float("inf"), "1e-5", None, True])
def test_a_rho_out_of_range_is_refused(rho):
    with pytest.raises(ValueError, match=r"^Got rho=.*, expected a number from 0 to less than 1: 1e-5 is the authors'"):
        BlendedOptimizer("sgd", network(), rho)


def test_any_real_number_is_a_rho():
    assert BlendedOptimizer("sgd", network(), np.float32(0.5)).get_config()["rho"] == 0.5


@pytest.mark.parametrize(
    ("inner", "error", "message"),
    [
        (lambda: optimizers.legacy.SGD(), TypeError, "Got the legacy optimizer SGD to wrap, expected a tf_keras optim"),
        (lambda: None, TypeError, "Got NoneType to wrap, expected a tf_keras optimizer, such as"),
        (lambda: optimizers.SGD, TypeError, "Got type to wrap, expected a tf_keras optimizer"),
        (lambda: BlendedOptimizer("sgd", network()), ValueError, "Got a BlendedOptimizer to wrap in .*: wrap it once"),
        (
            lambda: keras.mixed_precision.LossScaleOptimizer(optimizers.SGD()),
            ValueError,
            "Got a LossScaleOptimizer to wrap, expected a plain optimizer: wrap that",
        ),
    ],
    ids=["legacy", "none", "a class", "blended", "loss scaling"],
)
def test_what_is_no_plain_optimizer_is_refused(inner, error, message):
    model = network()
    with pytest.raises(error, match=message):
        BlendedOptimizer(inner(), model)


NOTHING = "Got no quantized kernel to train, expected some to blend with their quantization: pass the model through"


def test_a_float_model_is_refused():
    with pytest.raises(ValueError, match=NOTHING):
        BlendedOptimizer("sgd", networks.tiny())
    with pytest.raises(TypeError, match="Got int, expected a tf_keras Functional or Sequential model"):
        BlendedOptimizer("sgd", 3)


def test_training_without_a_quantized_kernel_is_refused():
    model, frozen = keras.Sequential([keras.layers.Flatten(input_shape=(8, 8, 1)), keras.layers.Dense(10)]), network()
    frozen.layers[1].trainable = False
    for trained_model, optimizer in (
        (model, BlendedOptimizer("sgd", None)),
        (frozen, BlendedOptimizer("sgd", frozen)),
    ):
        trained_model.compile(optimizer, two_layers.LOSS)
        with pytest.raises(ValueError, match=NOTHING):
            fit(trained_model)
