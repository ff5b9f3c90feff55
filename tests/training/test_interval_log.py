"""The log of the intervals: what the event files hold, when it is written, what is warned of, what is refused."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfqil
from tests import networks, scripts, three_layers
from tests.three_layers import IMAGES, LABELS
from tests.training import two_layers
from tests.training.event_files import histograms, scalars
from tests.training.two_layers import fit, network, quantized_layers
from tfqil.callbacks import BinaryRelaxSchedule, IntervalLogger
from tfqil.quantizers import BinaryWeightQuantizer, LBWWeightQuantizer, QILWeightQuantizer
from tfqil.training import interval_log

STEPS = 4  # Batches of an epoch of `two_layers.fit`.


def compiled(model: Any, **arguments: Any) -> Any:
    model.compile(keras.optimizers.SGD(0.01), two_layers.LOSS, **arguments)
    return model


def logged(folder: pathlib.Path, model: Any, epochs: int = 1, **arguments: Any) -> dict[str, dict[int, float]]:
    """The scalars of a training."""
    fit(model, epochs, callbacks=[IntervalLogger(folder, **arguments)])
    return scalars(folder)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is warned of."""
    found: list[str] = []
    monkeypatch.setattr(interval_log.logging, "warning", lambda text, *values: found.append(text % values))
    return found


# --- what stands in the files ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, pathlib.Path]:
    """A relaxed 3-bit model after two epochs with samples, and the folder of its log."""
    folder = tmp_path_factory.mktemp("run")
    q_model = three_layers.calibrated(tfqil.QILQuantizeConfig(3, 3, relax=True))
    compiled(q_model)
    callbacks = [BinaryRelaxSchedule(0.5, 2.0, exact_from_epoch=1), IntervalLogger(folder / "log", samples=IMAGES[:16])]
    q_model.fit(IMAGES, LABELS, batch_size=32, epochs=2, verbose=0, callbacks=callbacks)
    return q_model, folder / "log"


def test_every_kernel_has_its_measures_in_every_epoch(run):
    q_model, folder = run
    found = scalars(folder)
    measures = {"step", "pruning_ratio", "clipped_share", "quantization_error", "codes_used_share"}
    for name in tfqil.freeze(q_model):
        assert measures <= {tag.rpartition("/")[2] for tag in found if tag.startswith(f"{name}/")}, name
    assert all(list(values) == [0, 1] for values in found.values())


def test_the_last_scalars_are_those_of_the_model_as_it_is(run):
    q_model, folder = run
    wrapper, found = q_model.get_layer("quant_second"), scalars(folder)
    grid, kernel = wrapper.grid(), wrapper.kernel.numpy()
    center, half_width = (float(wrapper.quantizer_variables[key]) for key in ("center", "half_width"))
    expected = {
        "center": center,
        "half_width": half_width,
        "lambda": math.inf,
        "step": float(grid.step),
        "pruning_ratio": np.mean(grid.codes == 0),
        "clipped_share": np.mean(np.abs(kernel) > center + half_width),
        "quantization_error": np.sum((kernel - grid.values) ** 2) / np.sum(kernel**2),
        "codes_used_share": np.unique(grid.codes).size / 7,
    }
    for measure, value in expected.items():
        assert found[f"second/{measure}"][1] == pytest.approx(value, rel=1e-5), measure
    assert found["second/lambda"][0] == 0.5


def test_histograms_count_the_weights_and_their_codes(run):
    q_model, folder = run
    wrapper, found = q_model.get_layer("quant_second"), histograms(folder)
    codes, kernel = wrapper.grid().codes, wrapper.kernel.numpy()
    weights = found["second/weights"][1]
    assert weights.shape == (30, 3) and weights[:, 2].sum() == kernel.size
    assert weights[0, 0] == kernel.min() and weights[-1, 1] == kernel.max()
    of_codes = {(left + right) / 2: count for left, right, count in found["second/codes"][1]}
    assert of_codes == {code: np.sum(codes == code) for code in range(codes.min(), codes.max() + 1)}


def test_activations_are_measured_on_the_samples(run):
    q_model, folder = run
    layer = q_model.get_layer("quantize_first_activation")
    tensors = keras.Model(q_model.inputs, [layer.input, layer.output]).predict(IMAGES[:16], verbose=0)
    before, after = (np.asarray(tensor, np.float32) for tensor in tensors)
    found, grid = scalars(folder), layer.grid()
    left = np.maximum(before - grid.lower, 0)
    expected = {
        "pruning_ratio": np.mean(after == 0),
        "clipped_share": np.mean(left > grid.maximum),
        "quantization_error": np.sum((left - after) ** 2) / np.sum(left**2),
        "codes_used_share": np.unique(after).size / 8,
        "half_width": float(layer.quantizer_variables["half_width"]),
        "step": grid.step,
    }
    for measure, value in expected.items():
        assert found[f"quantize_first_activation/{measure}"][1] == pytest.approx(value, rel=1e-4, abs=1e-6), measure
    buckets = histograms(folder)["quantize_first_activation/activations"][1]
    assert buckets[:, 2].sum() == before.size


def test_values_are_in_the_format_of_tensorboard(run):
    _, folder = run
    (path,) = folder.iterdir()
    summaries = [
        value
        for record in tf.data.TFRecordDataset([str(path)])
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value
    ]
    # TensorBoard's DataClass: scalars are 1, other tensors 2.
    expected = {("scalars", 1, tf.float32.as_datatype_enum), ("histograms", 2, tf.float64.as_datatype_enum)}
    kinds = {(v.metadata.plugin_data.plugin_name, v.metadata.data_class, v.tensor.dtype) for v in summaries}
    assert kinds == expected


def test_a_healthy_training_is_not_warned_of_and_without_samples_has_what_quantizers_learned(tmp_path, warnings):
    q_model = compiled(three_layers.calibrated(tfqil.QILQuantizeConfig(2, 2)), run_eagerly=True)
    measures = {}
    for name, samples in (("without", None), ("with", IMAGES)):
        logger = IntervalLogger(tmp_path / name, samples=samples)
        q_model.fit(IMAGES, LABELS, verbose=0, callbacks=[logger])
        tags = [tag.split("/") for tag in scalars(tmp_path / name)]
        measures[name] = {measure for layer, measure in tags if layer == "quantize_first_activation"}
        assert {measure for layer, measure in tags if layer == "quantize_last"} >= {"minimum", "maximum", "step"}
    assert measures["without"] >= {"half_width", "step"} and not warnings
    measured = {"pruning_ratio", "clipped_share", "quantization_error", "codes_used_share"}
    assert measures["with"] == measures["without"] | measured


def test_intervals_of_channels_are_logged_as_their_means(tmp_path):
    model = compiled(network(QILWeightQuantizer(bits=3, per_channel=True)))
    found = logged(tmp_path, model)
    variables = quantized_layers(model)[0].quantizer_variables
    for name in ("center", "half_width"):
        assert found[f"hidden_0/{name}"][0] == pytest.approx(np.mean(variables[name].numpy()))


def test_powers_of_two_with_large_codes_have_a_histogram(tmp_path):
    model = compiled(network(LBWWeightQuantizer(bits=6)))
    codes = quantized_layers(model)[0].grid().codes
    assert codes.max() - codes.min() > 256
    logged(tmp_path, model)
    assert histograms(tmp_path)["hidden_0/codes"][0][:, 2].sum() == codes.size


# --- when it is written ---


def test_every_so_many_batches_and_at_the_end_of_the_epoch_by_the_count_of_the_optimizer(tmp_path):
    found = logged(tmp_path, compiled(network(), jit_compile=True), epochs=2, every_batches=3)
    assert list(found["hidden_0/step"]) == [3, 4, 7, 8]


def test_the_last_batch_of_an_epoch_is_written_once(tmp_path):
    found = logged(tmp_path, compiled(network()), epochs=2, every_batches=2)
    assert list(found["hidden_0/step"]) == [2, 4, 6, 8]


def test_with_several_steps_per_execution_it_is_written_after_the_execution(tmp_path):
    model = compiled(network(), steps_per_execution=2)
    assert list(logged(tmp_path, model, every_batches=3)["hidden_0/step"]) == [4]


def test_epochs_go_on_where_a_training_resumes(tmp_path):
    model = compiled(network())
    fit(model, 2, callbacks=[IntervalLogger(tmp_path)])
    fit(model, 4, initial_epoch=2, callbacks=[IntervalLogger(tmp_path)])
    assert list(scalars(tmp_path)["hidden_0/step"]) == [0, 1, 2, 3]


def test_steps_go_on_in_a_model_that_was_saved(tmp_path):
    logger = IntervalLogger(tmp_path / "log", every_batches=2)
    model = compiled(network(QILWeightQuantizer(bits=3)))
    fit(model, callbacks=[logger])
    model.save(tmp_path / "model.keras")
    fit(tfqil.load_model(tmp_path / "model.keras"), callbacks=[logger])
    assert list(scalars(tmp_path / "log")["hidden_0/center"]) == [2, 4, 6, 8]


def test_the_file_is_closed_after_training_and_holds_all_before(tmp_path, monkeypatch):
    closed: list[Any] = []
    opened = tf.summary.create_file_writer

    def watched(folder: str) -> Any:
        writer = opened(folder)
        monkeypatch.setattr(writer, "close", lambda: closed.append(writer))
        return writer

    monkeypatch.setattr(tf.summary, "create_file_writer", watched)

    class ReadBetween(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            assert list(scalars(tmp_path)["hidden_0/step"]) == list(range(epoch + 1)), "written at once, if it is lost"
            assert not closed

    fit(compiled(network()), 2, callbacks=[IntervalLogger(tmp_path), ReadBetween()])
    assert len(closed) == 1


def test_others_that_hold_summaries_back_do_not_hold_these_back(tmp_path):
    with tf.summary.record_if(False):
        assert list(logged(tmp_path, compiled(network()))["hidden_0/step"]) == [0]


def test_a_student_is_logged_as_the_model_that_it_trains(tmp_path):
    q_model = three_layers.calibrated(tfqil.QILQuantizeConfig(3, 3))
    teacher = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    student = tfqil.distill(q_model, teacher)
    student.compile("sgd", loss="mse", run_eagerly=True)
    student.fit(IMAGES, verbose=0, callbacks=[IntervalLogger(tmp_path, samples=IMAGES[:8])])
    found = scalars(tmp_path)
    assert {f"{name}/pruning_ratio" for name in tfqil.freeze(q_model)} <= set(found)


def test_logging_does_not_change_the_training(tmp_path):
    losses = []
    for callbacks in ([], [IntervalLogger(tmp_path, samples=IMAGES[:8], every_batches=1)]):
        q_model = compiled(three_layers.quantized(tfqil.QILQuantizeConfig(3, 3)), run_eagerly=True)
        history = q_model.fit(IMAGES, LABELS, batch_size=16, shuffle=False, verbose=0, callbacks=callbacks).history
        losses.append((history["loss"], [v.numpy() for v in q_model.variables]))
    assert losses[0][0] == losses[1][0]
    assert two_layers.same(losses[0][1], losses[1][1])


def test_a_strategy_of_one_replica_is_logged_like_none(tmp_path):
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        q_model = compiled(three_layers.quantized(tfqil.QILQuantizeConfig(3, 3, relax=True)))
    callbacks = [BinaryRelaxSchedule(exact_from_epoch=1), IntervalLogger(tmp_path, samples=IMAGES[:8], every_batches=1)]
    q_model.fit(IMAGES, LABELS, batch_size=32, epochs=2, verbose=0, callbacks=callbacks)
    found = scalars(tmp_path)
    assert all(list(values) == [1, 2, 3, 4] for values in found.values())
    assert any(tag.endswith("/lambda") for tag in found) and "quantize_first_activation/pruning_ratio" in found


@pytest.mark.recipe
def test_two_replicas_are_logged_like_one(tmp_path):
    assert scripts.run("tests/training/logged_replicas.py", str(tmp_path)).strip().endswith("equal")


# --- warnings ---


def set_interval(model: Any, center: float, half_width: float) -> None:
    """Moves the interval of the first quantized layer."""
    variables = quantized_layers(model)[0].quantizer_variables
    variables["center"].assign(tf.fill(variables["center"].shape, center))
    variables["half_width"].assign(tf.fill(variables["half_width"].shape, half_width))


@pytest.mark.parametrize(
    ("center", "half_width", "parts"),
    [
        (9.0, 1.0, ["Got 100.0% codes of 0 in the weights of layer 'hidden_0'", "initialize()"]),
        (2e-5, 2e-5, ["of the weights of layer 'hidden_0' beyond the outermost level", "initialize()"]),
        (3e-2, 1e-5, ["Got the least half-width, 1e-05, in the interval of the weights of layer 'hidden_0'"]),
    ],
    ids=["zeros", "clipped", "half-width"],
)
def test_a_dead_interval_is_warned_of_once_with_the_layer_and_the_remedy(tmp_path, warnings, center, half_width, parts):
    model = network(QILWeightQuantizer(bits=3))
    set_interval(model, center, half_width)
    model.compile(keras.optimizers.SGD(0.0), two_layers.LOSS)
    fit(model, 3, callbacks=[IntervalLogger(tmp_path)])
    (warning,) = warnings
    for part in [*parts, "tfqil.optimizers.IntervalRateOptimizer", "q_model.get_layer('quant_hidden_0')"]:
        assert part in warning
    # The remedy helps.
    model.get_layer("quant_hidden_0").initialize()
    warnings.clear()
    fit(model, 1, callbacks=[IntervalLogger(tmp_path / "again")])
    assert not warnings


def test_channels_that_have_closed_are_counted(tmp_path, warnings):
    model = network(QILWeightQuantizer(bits=3, per_channel=True))
    half_width = quantized_layers(model)[0].quantizer_variables["half_width"]
    half_width.assign([1e-5] * 3 + half_width.numpy()[3:].tolist())
    model.compile(keras.optimizers.SGD(0.0), two_layers.LOSS)
    fit(model, callbacks=[IntervalLogger(tmp_path)])
    assert len(warnings) == 1 and "(3 of 16 channels)" in warnings[0]


def test_dead_channels_are_counted_once_in_every_training(tmp_path, warnings):
    model = network(QILWeightQuantizer(bits=3, per_channel=True))
    layer = quantized_layers(model)[0]
    for name, dead in (("center", [9.0, 9.0, 2e-5]), ("half_width", [1.0, 1.0, 2e-5])):  # Two prune, one clips.
        variable = layer.quantizer_variables[name]
        variable.assign([*dead, *variable.numpy()[3:]])
    kernel = layer.kernel.numpy()
    kernel[:, 3] = 0.0  # Not by its interval.
    layer.kernel.assign(kernel)
    model.compile(keras.optimizers.SGD(0.0), two_layers.LOSS)
    logger = IntervalLogger(tmp_path)
    for trainings in (1, 2):
        fit(model, 2, callbacks=[logger])
        assert len(warnings) == trainings
    assert warnings[0] == warnings[1]
    assert warnings[0].startswith("Got 3 of 16 channels in the weights of layer 'hidden_0' whose codes are all 0, or")
    assert warnings[0].endswith("(tfqil.optimizers.IntervalRateOptimizer).")
    layer.initialize()
    fit(model, callbacks=[logger])
    assert not [warning for warning in warnings[2:] if "whose codes" in warning]


def test_one_code_alone_and_weights_that_are_zero_are_told_apart(tmp_path, warnings):
    model = network(BinaryWeightQuantizer(), QILWeightQuantizer(bits=3))
    first, second = quantized_layers(model)
    first.kernel.assign(tf.abs(first.kernel) + 1.0)
    second.kernel.assign(tf.zeros_like(second.kernel))
    model.compile(keras.optimizers.SGD(0.0), two_layers.LOSS)
    fit(model, callbacks=[IntervalLogger(tmp_path)])
    assert warnings == [
        "Got the code 1 alone in the weights of layer 'hidden_0', expected several levels: give the layer more bits, "
        "or lower the learning rate.",
        "Got 100.0% codes of 0 in the weights of layer 'hidden_1', expected levels in use: the float weights are 0 "
        "too, so check how they are initialized and whether a gradient reaches them.",
    ]


def test_dead_activations_are_warned_of_where_samples_show_them(tmp_path, warnings):
    q_model = three_layers.calibrated(tfqil.QILQuantizeConfig(3, 3))
    variables = q_model.get_layer("quantize_first_activation").quantizer_variables
    for name in ("center", "half_width"):
        if name in variables:
            variables[name].assign(1000.0)
    q_model.compile(keras.optimizers.SGD(0.0), two_layers.LOSS, run_eagerly=True)
    q_model.fit(IMAGES, LABELS, epochs=2, verbose=0, callbacks=[IntervalLogger(tmp_path, samples=IMAGES)])
    (of_first,) = [warning for warning in warnings if "'quantize_first_activation'" in warning]
    assert of_first.startswith(
        "Got 100.0% codes of 0 in the tensor of layer 'quantize_first_activation', expected levels"
    )
    assert "tfqil.calibrate" in of_first


def test_a_training_that_diverges_is_warned_of_and_goes_on(tmp_path, warnings):
    model = network(QILWeightQuantizer(bits=3), QILWeightQuantizer(bits=3))
    kernel = quantized_layers(model)[0].kernel
    kernel.assign(tf.fill(kernel.shape, math.nan))
    quantized_layers(model)[1].trainable = False  # Its gradients are NaN too.
    model.compile(keras.optimizers.SGD(0.0), two_layers.LOSS)
    found = logged(tmp_path, model, epochs=2)
    assert len(warnings) == 1 and "NaN or Inf in the kernel of layer 'hidden_0'" in warnings[0]
    assert "hidden_0/pruning_ratio" not in found and list(found["hidden_1/pruning_ratio"]) == [0, 1]


# --- bad input ---


@pytest.mark.parametrize("log_dir", [None, "", 3])
def test_what_is_no_path_is_refused(log_dir):
    with pytest.raises(
        TypeError, match=r"^Got log_dir=.*, expected the path of a folder: give one, such as 'logs/run'"
    ):
        IntervalLogger(log_dir)


@pytest.mark.parametrize("below", ["", "log"])
def test_a_file_in_the_place_of_the_folder_is_refused_at_once(tmp_path, below):
    (tmp_path / "taken").write_text("notes")
    path = tmp_path / "taken" / below
    with pytest.raises(ValueError, match=r"^Got log_dir='.*taken.*which is a file, expected a folder that can be"):
        IntervalLogger(path)


def test_a_folder_that_cannot_be_made_is_refused_before_training(tmp_path):
    logger = IntervalLogger(tmp_path / "log")
    (tmp_path / "log").write_text("came later")
    model = compiled(network())
    before = [variable.numpy() for variable in model.variables]
    with pytest.raises(ValueError, match=r"^Got log_dir='.*log' with .*, expected a folder that can be written to"):
        fit(model, callbacks=[logger])
    assert two_layers.same(before, model.variables)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "3"])
def test_a_count_of_batches_that_is_none_is_refused(tmp_path, count):
    with pytest.raises(ValueError, match=r"^Got every_batches=.*, expected a whole number of at least 1, or None"):
        IntervalLogger(tmp_path, every_batches=count)


def test_a_float_model_is_refused(tmp_path):
    model = networks.tiny()
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(
        ValueError, match="^Got the float model 'tiny', expected one with quantized layers to log: pass"
    ):
        model.fit(IMAGES, LABELS, verbose=0, callbacks=[IntervalLogger(tmp_path / "log")])
    assert not (tmp_path / "log").exists()


def test_samples_that_the_model_does_not_take_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^Got samples to log of shape \(4, 3, 3, 1\), expected \(None, 8, 8, 1\)"):
        fit(compiled(network()), callbacks=[IntervalLogger(tmp_path / "log", samples=np.zeros((4, 3, 3, 1)))])
    assert not (tmp_path / "log").exists()
