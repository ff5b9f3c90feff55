"""The schedule of BinaryRelax: lambda as scheduled, an exact second phase, one trace, training that can be resumed."""

from __future__ import annotations

import csv
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks
from tests.training import two_layers
from tests.training.two_layers import fit, network, quantized_layers, same
from tfqil.callbacks import BinaryRelaxSchedule
from tfqil.optimizers import BlendedOptimizer
from tfqil.quantizers import BinaryRelax, BinaryWeightQuantizer, QILWeightQuantizer, TernaryWeightQuantizer
from tfqil.training import relaxation_schedule

STEPS = 4  # Batches of an epoch of `two_layers.fit`.


def relaxed() -> Any:
    """A network with two relaxed layers, one of projected and one of learned weights."""
    return network(BinaryRelax(TernaryWeightQuantizer()), BinaryRelax(QILWeightQuantizer(bits=3)))


def compiled(model: Any, **arguments: Any) -> Any:
    """A model with an optimizer whose state matters."""
    model.compile(keras.optimizers.Adam(0.01), two_layers.LOSS, **arguments)
    return model


def lambdas(model: Any) -> list[float]:
    """The lambda of each relaxed layer."""
    return [float(layer.quantizer_variables["relaxation"]) for layer in quantized_layers(model)]


def set_lambda(model: Any, value: float) -> None:
    """Sets the lambda of all relaxed layers."""
    for layer in quantized_layers(model):
        layer.quantizer_variables["relaxation"].assign(value)


def kernels(model: Any, training: bool) -> list[np.ndarray]:
    """What the quantized layers compute with."""
    return [
        layer.weight_quantizer(layer.kernel, training, weights=layer.quantizer_variables).numpy()
        for layer in quantized_layers(model)
    ]


class Recorder(keras.callbacks.Callback):
    """Notes the lambdas in each step, and at the end of each epoch the kernels of training and inference."""

    def __init__(self) -> None:
        super().__init__()
        self.of_steps: list[float] = []
        self.kernels: list[tuple[list[np.ndarray], list[np.ndarray]]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        assert len(set(lambdas(self.model))) == 1
        self.of_steps.append(lambdas(self.model)[0])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.kernels.append((kernels(self.model, training=True), kernels(self.model, training=False)))


class LostMachineError(Exception):
    """A machine that goes away."""


class FailAt(keras.callbacks.Callback):
    """Raises in a step, counted from 0 over all epochs of a fit."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.left == 0:
            raise LostMachineError
        self.left -= 1


# --- lambda as scheduled ---


@pytest.fixture(scope="module", params=[False, True], ids=["graph", "xla"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Five epochs, exact from the fourth, with everything that writes logs."""
    folder = tmp_path_factory.mktemp("run")
    model = compiled(relaxed(), jit_compile=request.param)
    model.optimizer.build(model.trainable_variables)  # A step that makes variables is traced twice, outside of XLA.
    recorder = Recorder()
    schedule = BinaryRelaxSchedule(0.5, 2.0, exact_from_epoch=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.compat.v2.summary, "scalar", scalar_summary)
        writers = [
            keras.callbacks.CSVLogger(str(folder / "log.csv")),
            keras.callbacks.TensorBoard(str(folder), write_graph=False),
        ]
        history = fit(model, 5, callbacks=[schedule, *writers, recorder])
    return model, history, recorder, folder


def scalar_summary(name: str, data: Any, step: Any = None, description: Any = None) -> Any:
    """What TensorBoard installs as `tf.summary.scalar`; this package does not ask for it."""
    metadata = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"})
    return tf.summary.write(name, tf.cast(data, tf.float32), step, metadata)


def test_lambda_grows_by_the_factor_until_weights_are_exact(run):
    _, history, recorder, _ = run
    assert history["lambda"] == [0.5, 1.0, 2.0, math.inf, math.inf]
    assert recorder.of_steps == [value for value in history["lambda"] for _ in range(STEPS)]


def test_lambda_stands_in_the_files_of_csv_logger_and_tensorboard(run):
    _, history, _, folder = run
    with (folder / "log.csv").open() as file:
        assert [float(row["lambda"]) for row in csv.DictReader(file)] == history["lambda"]
    (path,) = (folder / "train").iterdir()
    events = [
        (event.step, float(tf.make_ndarray(value.tensor)))
        for record in tf.data.TFRecordDataset([str(path)])
        for event in [tf.compat.v1.Event.FromString(record.numpy())]
        for value in event.summary.value
        if value.tag == "epoch_lambda"
    ]
    assert events == list(enumerate(history["lambda"]))


def test_training_and_inference_compute_with_the_same_weights_from_the_switch_on(run):
    model, _, recorder, _ = run
    for epoch, (training, inference) in enumerate(recorder.kernels):
        assert same(training, inference) == (epoch >= 3), f"epoch {epoch}"
    outputs = [model(two_layers.IMAGES, training=training) for training in (True, False)]
    assert same(*outputs), "nothing else in this network differs between training and inference"


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_a_compiled_forward_is_exact_from_the_switch_on_too(jit):
    model = relaxed()
    forward = tf.function(model, jit_compile=jit)
    for strength, exact in ((3.0, False), (math.inf, True), (3.0, False)):
        set_lambda(model, strength)
        training, inference = (forward(two_layers.IMAGES, training=training) for training in (True, False))
        assert same(training, inference) == exact, strength
    assert forward.experimental_get_tracing_count() == 2


def test_all_phases_run_the_same_trace(run):
    model, *_ = run
    assert model.train_tf_function.experimental_get_tracing_count() == 1


def test_lambda_per_step_follows_the_count_of_the_optimizer():
    model, recorder = compiled(relaxed()), Recorder()
    callbacks = [BinaryRelaxSchedule(1.0, 1.5, exact_from_epoch=2, unit="step"), recorder]
    history = fit(model, 3, callbacks=callbacks)
    expected = [np.float32(1.5**step) for step in range(2 * STEPS)] + [math.inf] * STEPS
    assert recorder.of_steps == expected and history["lambda"] == expected[STEPS - 1 :: STEPS]
    recorder.of_steps.clear()
    # A later training counts on; epochs are those of Keras.
    model.fit(two_layers.IMAGES[:64], two_layers.LABELS[:64], batch_size=32, verbose=0, callbacks=callbacks)
    assert recorder.of_steps == [np.float32(1.5**step) for step in (12, 13)]


def test_an_initial_epoch_starts_where_that_epoch_is():
    history = fit(compiled(relaxed()), 5, initial_epoch=2, callbacks=[BinaryRelaxSchedule(exact_from_epoch=4)])
    assert history["lambda"] == [np.float32(1.04**2), np.float32(1.04**3), math.inf]


def test_a_schedule_without_phase_one_is_exact_at_once():
    recorder = Recorder()
    fit(compiled(relaxed()), 1, callbacks=[BinaryRelaxSchedule(exact_from_epoch=0), recorder])
    assert recorder.of_steps == [math.inf] * STEPS


def test_a_lambda_beyond_float32_is_exact():
    schedule = BinaryRelaxSchedule(1.0, 1e200, exact_from_epoch=9)
    assert [schedule.strength(count) for count in (0, 1, 2)] == [1.0, 1e200, math.inf]
    model = relaxed()
    set_lambda(model, schedule.strength(1))
    assert same(kernels(model, training=True), kernels(model, training=False))


def test_a_model_in_the_model_is_relaxed_too():
    inner = relaxed()
    outer = keras.Sequential([inner, keras.layers.Softmax()])
    outer.compile("sgd", "sparse_categorical_crossentropy")
    fit(outer, 1, callbacks=[BinaryRelaxSchedule(0.25, exact_from_epoch=1)])
    assert lambdas(inner) == [0.25, 0.25]


# --- resuming ---


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_an_interrupted_training_ends_as_one_that_was_not(unit, tmp_path):
    def training(*callbacks: Any) -> tuple[Any, dict[str, list[float]], Recorder]:
        model, recorder = relaxed(), Recorder()
        model.compile(BlendedOptimizer(keras.optimizers.Adam(0.01), model, 1e-3), two_layers.LOSS)
        schedule = BinaryRelaxSchedule(1.0, 1.25, exact_from_epoch=3, unit=unit)
        return model, fit(model, 4, callbacks=[schedule, recorder, *callbacks]), recorder

    whole, history, recorder = training()
    with pytest.raises(LostMachineError):
        training(keras.callbacks.BackupAndRestore(str(tmp_path)), FailAt(2 * STEPS + 1))
    again, rest, resumed = training(keras.callbacks.BackupAndRestore(str(tmp_path)))
    assert rest["lambda"] == history["lambda"][2:] and rest["loss"] == history["loss"][2:]
    assert resumed.of_steps == recorder.of_steps[2 * STEPS :]
    assert same(whole.variables, again.variables) and same(whole.optimizer.variables, again.optimizer.variables)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model"])
def test_a_model_saved_in_phase_one_keeps_its_lambda(name, tmp_path):
    model = relaxed()
    set_lambda(model, 0.75)
    model.save(tmp_path / name)
    again = keras.models.load_model(tmp_path / name)
    assert lambdas(again) == [0.75, 0.75] and same(model.variables, again.variables)
    assert same(kernels(model, training=True), kernels(again, training=True))


# --- inference knows no lambda ---


def test_prediction_freezing_and_conversion_are_exact_in_phase_one():
    keras.utils.set_random_seed(1)
    images = networks.digits(64, 8)[0]
    config = tfqil.BCGDQuantizeConfig(4, 4, relax=True)
    q_model = tfqil.calibrate(tfqil.quantize_model(networks.randomize_norms(networks.tiny()), config), images)
    plain = tfqil.calibrate(tfqil.quantize_model(networks.tiny(), tfqil.BCGDQuantizeConfig(4, 4)), images)
    for layer, other in zip(plain.layers, q_model.layers, strict=True):
        layer.set_weights([v for v in other.get_weights() if np.all(np.isfinite(v))])  # Without the infinite lambda.
    outputs, grids, files = plain.predict(images, verbose=0), tfqil.freeze(plain), tfqil.convert(plain, check=False)
    relaxations = [v for v in q_model.variables if "relaxation" in v.name]
    assert len(relaxations) == 2, "the edges are not relaxed"
    for strength in (0.0, 1.0, math.inf):
        for variable in relaxations:
            variable.assign(strength)
        assert same(q_model.predict(images, verbose=0), outputs), strength
        frozen = tfqil.freeze(q_model)
        assert all(same([grids[n].codes, grids[n].step], [frozen[n].codes, frozen[n].step]) for n in grids), strength
    q_model.get_layer(relaxations[0].name.split("/")[0]).quantizer_variables["relaxation"].assign(1.0)
    assert tfqil.convert(q_model, check=False) == files


def test_validation_during_training_is_exact_in_phase_one():
    model = relaxed()
    model.compile(keras.optimizers.SGD(0.0), two_layers.LOSS)
    data = (two_layers.IMAGES, two_layers.LABELS)
    history = fit(model, 3, callbacks=[BinaryRelaxSchedule(0.5, 4.0, exact_from_epoch=2)], validation_data=data)
    assert len(set(history["val_loss"])) == 1 and len(set(history["loss"])) == 3
    # The batches of training have 32 examples: the means of their losses are added in another order.
    assert history["loss"][2] == pytest.approx(history["val_loss"][2], rel=1e-6)


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"growth": 1.0},
            ValueError,
            r"^Got growth=1.0, expected a finite factor above 1, so that .* is the authors'\.$",
        ),
        ({"growth": 0.5}, ValueError, "^Got growth=0.5, expected a finite factor above 1"),
        ({"growth": math.nan}, ValueError, "^Got growth=nan, expected a finite factor above 1"),
        ({"growth": math.inf}, ValueError, "^Got growth=inf, expected a finite factor above 1"),
        ({"growth": None}, ValueError, "^Got growth=None, expected a finite factor above 1"),
        ({"initial": -0.1}, ValueError, r"^Got initial=-0.1, expected a finite number of at least 0: 1.0 is usual\.$"),
        ({"initial": math.nan}, ValueError, "^Got initial=nan, expected a finite number of at least 0"),
        ({"initial": math.inf}, ValueError, "^Got initial=inf, expected a finite number of at least 0"),
        ({"initial": "1"}, ValueError, "^Got initial='1', expected a finite number of at least 0"),
        ({"exact_from_epoch": 2.0}, TypeError, r"^Got exact_from_epoch=2.0, expected a whole number: give an epoch\.$"),
        ({"exact_from_epoch": True}, TypeError, "^Got exact_from_epoch=True, expected a whole number"),
        ({"exact_from_epoch": None}, TypeError, "^Got exact_from_epoch=None, expected a whole number"),
        ({"exact_from_epoch": -1}, ValueError, r"^Got exact_from_epoch=-1, expected at least 0: give an epoch\.$"),
        ({"unit": "batch"}, ValueError, r"^Got unit='batch', expected 'epoch' or 'step': choose one\.$"),
    ],
    ids=str,
)
def test_an_argument_out_of_range_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        BinaryRelaxSchedule(**{"exact_from_epoch": 3, **arguments})


def test_the_epoch_of_the_switch_has_to_be_given_by_name():
    with pytest.raises(TypeError, match="exact_from_epoch"):
        BinaryRelaxSchedule(1.0, 1.04)


def test_numbers_of_numpy_are_numbers():
    schedule = BinaryRelaxSchedule(np.float32(0.5), np.float64(1.5), exact_from_epoch=np.int64(3))
    assert schedule.strength(2) == 0.5 * 1.5**2


@pytest.mark.parametrize("model", [lambda: network(BinaryWeightQuantizer()), networks.tiny], ids=["quantized", "float"])
def test_a_model_with_nothing_to_relax_is_refused(model):
    model = model()
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(
        ValueError, match=f"Got the model '{model.name}', which has nothing to relax, .*: quantize it with relax=True"
    ):
        fit(model, 1, callbacks=[BinaryRelaxSchedule(exact_from_epoch=0)])


@pytest.fixture
def warned(monkeypatch) -> list[str]:
    """The warnings of schedules, as they read."""
    texts: list[str] = []
    monkeypatch.setattr(relaxation_schedule.logging, "warning", lambda text, *values: texts.append(text % values))
    return texts


def test_a_training_that_ends_before_the_switch_is_warned_of(warned):
    model = relaxed()
    for exact_from_epoch in (2, 3):
        schedule = BinaryRelaxSchedule(exact_from_epoch=exact_from_epoch)
        schedule.set_model(model)
        schedule.set_params({"epochs": 3})
        schedule.on_train_begin()
    (warning,) = warned
    assert warning.startswith("This training ends after epoch 2, before weights are exactly quantized from epoch 3 on:")


def test_a_second_schedule_is_refused():
    model = compiled(relaxed())
    schedules = [BinaryRelaxSchedule(1.0, 2.0, exact_from_epoch=3), BinaryRelaxSchedule(1.0, 4.0, exact_from_epoch=1)]
    with pytest.raises(ValueError, match="Got lambda=inf where this schedule has set 2, expected one schedule"):
        fit(model, 3, callbacks=schedules)


def test_two_schedules_that_agree_are_one():
    model = compiled(relaxed())
    fit(model, 2, callbacks=[BinaryRelaxSchedule(exact_from_epoch=1), BinaryRelaxSchedule(exact_from_epoch=1)])
    assert set(lambdas(model)) == {math.inf}


def test_a_lambda_that_falls_back_is_warned_of(warned):
    model = compiled(relaxed())
    schedule = BinaryRelaxSchedule(1.0, 2.0, exact_from_epoch=3)
    fit(model, 4, callbacks=[schedule])
    assert not warned
    compiled(model)  # A new optimizer has counted no steps.
    fit(model, 4, callbacks=[schedule])
    assert len(warned) == 1
    assert (
        "sets lambda back from inf, which the model has been trained to, to 1, as if epoch 0 were resumed" in warned[0]
    )
    assert "initial_epoch" in warned[0]


def test_a_schedule_after_a_training_without_one_is_not_warned_of(warned):
    model = compiled(relaxed())
    fit(model, 1)
    fit(model, 2, callbacks=[BinaryRelaxSchedule(exact_from_epoch=1)])
    assert not warned


def test_an_epoch_that_is_resumed_twice_is_warned_of(warned):
    model = compiled(relaxed())
    schedule = BinaryRelaxSchedule(1.0, 2.0, exact_from_epoch=5)
    for done, end in ((0, 3), (3, 5)):
        fit(model, end, initial_epoch=done, callbacks=[schedule])
    warned.clear()
    fit(model, 6, initial_epoch=3, callbacks=[schedule])
    assert len(warned) == 1
    assert "back from 16, which the model has been trained to, to 8, as if epoch 3" in warned[0]


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_a_training_that_goes_on_is_not_warned_of(unit, warned):
    model = compiled(relaxed())
    schedule = BinaryRelaxSchedule(1.0, 1.5, exact_from_epoch=4, unit=unit)
    for done in range(6):
        fit(model, done + 1, initial_epoch=done, callbacks=[schedule])
    assert not [text for text in warned if "back" in text]
