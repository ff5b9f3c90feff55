"""Keras 3 models are rebuilt with the same outputs, in a process whose Keras is Keras 3; what cannot be is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import scripts
from tests.scheme import keras3_models
from tfqil.scheme import keras3
from tfqil.scheme.keras3_layers import CARRIED_LAYERS

# A sum of a few hundred float32 products, in two orders, at values of about 1; of 16-bit floats, a few of their ulp.
TOLERANCES = {"float32": 2e-6, "float64": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
# Some fifty layers deep, where such sums go through others.
TOLERANCE_OF_NETWORKS = 2e-5


def run(*names: str) -> dict[str, Any]:
    """What became of models in a process where nothing asks for tf_keras, and Keras 3 is imported first."""
    before = "import os; os.environ.pop('TF_USE_LEGACY_KERAS', None)"
    printed = scripts.run("tests/scheme/keras3_models.py", *names, before=before)
    return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    return run()


def check_equal(outcome: dict[str, Any], tolerance: float | None = None) -> None:
    """Asserts that a model was rebuilt with all that it had."""
    assert outcome["module"] == "tf_keras" and outcome["kept"]
    for difference, (old, new), shapes in zip(
        outcome["differences"], outcome["dtypes"], outcome["shapes"], strict=True
    ):
        assert old == new and shapes[0] == shapes[1]
        assert difference <= (tolerance or TOLERANCES.get(old, 0.0)), outcome["differences"]
    for what in ("trainable", "weights", "model_names"):
        assert outcome[what][0] == outcome[what][1], what
    assert outcome["losses"][1] == pytest.approx(outcome["losses"][0], rel=1e-5)
    # Else a difference could not show.
    assert min(outcome["reach"]) > 0.0


def test_the_process_has_keras_3(outcomes):
    assert outcomes["version"].startswith("3.")


@pytest.mark.parametrize("name", keras3_models.REBUILT)
def test_outputs_are_equal(outcomes, name):
    check_equal(outcomes[name])


@pytest.mark.parametrize("name", [name for name in keras3_models.REBUILT if name != "odd_names"])
def test_layers_keep_their_names(outcomes, name):
    old, new = outcomes[name]["names"]
    assert sorted(old) == sorted(new)


def test_every_layer_that_is_carried_over_is_compared(outcomes):
    compared = {layer for name in keras3_models.REBUILT for layer in outcomes[name]["layers"]}
    assert compared >= CARRIED_LAYERS, sorted(CARRIED_LAYERS - compared)


@pytest.mark.parametrize("name", keras3_models.SAVED)
def test_rebuilt_models_can_be_saved(outcomes, name):
    assert outcomes[name]["loaded"]


def test_layers_in_wrappers_and_shared_ones_are_built_once(outcomes):
    assert outcomes["shared_and_nested"]["weights"] == [10, 10]
    assert outcomes["models_in_wrappers"]["weights"] == [6, 6]


def test_names_that_tensorflow_does_not_take_are_changed(outcomes):
    assert outcomes["odd_names"]["names"] == [["first conv (3x3)"], ["first_conv__3x3_"]]


EVERYTHING = (
    "'inner/code' (a Lambda layer holds code written for Keras 3)",
    "'own' (Own is a custom layer)",
    "'own_too' (Own is a custom layer)",
    "'net' (Net is a subclassed model)",
    "'rms' (tf_keras has no RMSNormalization)",
    "(the operation Cumsum has no counterpart here)",
    "'celu' (Dense with activation='celu', another one in tf_keras or none)",
    "'function' (Dense with the function '<lambda>' as activation)",
    "'scaled' (LayerNormalization with rms_scaling=True)",
    "'recurrent' (LSTM with recurrent_activation='hard_sigmoid', another one in tf_keras or none)",
)


def test_everything_that_cannot_be_rebuilt_is_named_in_one_sentence(outcomes):
    refusal = outcomes["many_at_once"]
    assert refusal["kind"] == "ValueError" and "\n" not in refusal["sentence"]
    assert refusal["sentence"].startswith("Got layers of the Keras 3 model ")
    assert refusal["sentence"].endswith("replace them, or build the model with `import tf_keras`.")
    for named in EVERYTHING:
        assert named in refusal["sentence"]
    assert "'fine'" not in refusal["sentence"]


REFUSALS = {
    "lookups": ("ValueError", "'lookup' (StringLookup is not carried over: its state or its arithmetic is another"),
    "low_rank": ("ValueError", "'adapted' (Dense with lora_rank=2)"),
    "quantized": ("ValueError", "'quantized' (Dense with the dtype policy 'int8_from_float32')"),
    "inside_wrappers": (
        "ValueError",
        "'frame/code' (a Lambda layer holds code written for Keras 3), 'frames' (the model 'frame' inside it has such "
        "layers), 'time' ('hard' inside it has an activation that tf_keras does not have)",
    ),
    "integers_resized": ("ValueError", "'resized' (Resizing of uint8, which Keras 3 alone rounds: give it floats)"),
    "averaged_integers": (
        "ValueError",
        "(its output would be int32 with 1 axes instead of float32 with 1 axes)",
    ),
    "unbuilt": (
        "ValueError",
        "Got the unbuilt Keras 3 model 'lazy', expected a built one: give it an Input layer or call",
    ),
    "subclassed": (
        "TypeError",
        "Got the subclassed Keras 3 model 'net' (Net), expected a Functional or Sequential one: rebuild it with the "
        "functional API, whose layers can be seen.",
    ),
    "functional_with_a_call_of_its_own": ("TypeError", "Got the subclassed Keras 3 model 'net' (Net), expected"),
    "of_tf_keras": (
        "TypeError",
        "expected a Keras 3 model: it needs no rebuilding, pass it to tfqil.quantize_model as it is.",
    ),
    "no_model": ("TypeError", "Got int, expected a Functional or Sequential model of Keras 3, version 3.12 or later."),
}


@pytest.mark.parametrize("name", [name for name in keras3_models.REFUSED if name != "many_at_once"])
def test_what_cannot_be_rebuilt_is_refused_in_one_sentence(outcomes, name):
    kind, part = REFUSALS[name]
    refusal = outcomes[name]
    assert refusal["kind"] == kind and part in refusal["sentence"]
    assert refusal["sentence"].startswith("Got ") and "\n" not in refusal["sentence"]


@pytest.mark.parametrize("version", ["2.15.0", "3.0.5", "3.11.3"])
def test_an_older_keras_is_refused_in_one_sentence(version):
    with pytest.raises(ValueError, match=f"^Got a model of Keras {version}, expected one of Keras 3.12 or later: save"):
        keras3._require_version(version)
    keras3._require_version("3.12.0rc0")


# How many kernels get 4 bits; those of the first and the last layer get 8.
KERNELS = {"MobileNetV2": 51, "ResNet50": 52, "EfficientNetB0": 80}


@pytest.mark.recipe
@pytest.mark.parametrize("name", keras3_models.APPLICATIONS)
def test_networks_of_keras_applications_are_equal_and_get_quantized(name):
    outcome = run(name)[name]
    check_equal(outcome, TOLERANCE_OF_NETWORKS)
    assert outcome["finite"] and outcome["kernels"].count(4) == KERNELS[name]
