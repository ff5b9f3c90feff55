"""QIL against the golden vectors: codes, outputs, thresholds and all gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.numerics.golden_vectors import cases, require_expected
from tfqil.numerics import qil
from tfqil.numerics.grid import activation_levels, weight_levels

WEIGHTS = cases("qil_weights")
ACTIVATIONS = cases("qil_activations")
GRIDS = [case for case in cases("integer_grids") if case["inputs"]["method"].startswith("qil")]


def name_of(case: dict[str, Any]) -> str:
    return case["name"]


def gradients(function: Any, parameters: list[tf.Tensor], upstream: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """The output of a function and its gradients in all parameters."""
    with tf.GradientTape() as tape:
        tape.watch(parameters)
        output = function(*parameters)
    found = tape.gradient(output, parameters, output_gradients=tf.constant(upstream, tf.float32))
    return output.numpy(), [gradient.numpy() for gradient in found]


@pytest.mark.parametrize("case", WEIGHTS, ids=name_of)
def test_weights_with_an_exponent_match_the_golden_vectors(case):
    inputs = case["inputs"]
    bits, levels = inputs["bits"], weight_levels(inputs["bits"])
    names = ("w", "center", "half_width", "gamma")
    weights, center, half_width, gamma = parameters = [tf.constant(inputs[name], tf.float32) for name in names]
    got = {
        "integers": qil.weight_codes(*parameters, bits=bits).numpy(),
        "normalized_scale": 1 / levels,
        "scaled_scale": ((center + half_width) / levels).numpy(),
        "pruning_threshold": qil.pruning_threshold(center, half_width, gamma, levels=levels).numpy(),
        "clipping_threshold": qil.clipping_threshold(center, half_width, gamma, levels=levels).numpy(),
    }
    for form in ("normalized", "scaled"):
        output, found = gradients(
            lambda *p, form=form: qil.quantize_weights(*p, bits=bits, normalized=form == "normalized"),
            parameters,
            inputs["upstream"],
        )
        got[f"{form}_output"] = output
        got |= {f"{form}_grad_{name}": gradient for name, gradient in zip(names, found, strict=True)}
    require_expected(case, got)
    assert got["scaled_grad_gamma"].shape == gamma.shape and got["scaled_output"].shape == weights.shape


@pytest.mark.parametrize(
    "case", [case for case in WEIGHTS if np.all(np.equal(case["inputs"]["gamma"], 1))], ids=name_of
)
def test_weights_without_an_exponent_match_the_golden_vectors_of_gamma_1(case):
    inputs = case["inputs"]
    bits, levels = inputs["bits"], weight_levels(inputs["bits"])
    names = ("w", "center", "half_width")
    _, center, half_width = parameters = [tf.constant(inputs[name], tf.float32) for name in names]
    got: dict[str, Any] = {
        "integers": qil.weight_codes(*parameters, bits=bits).numpy(),
        "normalized_scale": 1 / levels,
        "scaled_scale": ((center + half_width) / levels).numpy(),
        "pruning_threshold": qil.pruning_threshold(center, half_width, levels=levels).numpy(),
        "clipping_threshold": qil.clipping_threshold(center, half_width, levels=levels).numpy(),
    }
    for form in ("normalized", "scaled"):
        output, found = gradients(
            lambda *p, form=form: qil.quantize_weights(*p, bits=bits, normalized=form == "normalized"),
            parameters,
            inputs["upstream"],
        )
        got[f"{form}_output"] = output
        got |= {f"{form}_grad_{name}": gradient for name, gradient in zip(names, found, strict=True)}
    without_gamma = {key: want for key, want in case["expected"].items() if not key.endswith("grad_gamma")}
    require_expected({**case, "expected": without_gamma}, got)


@pytest.mark.parametrize("case", ACTIVATIONS, ids=name_of)
def test_activations_match_the_golden_vectors(case):
    inputs = case["inputs"]
    bits, levels = inputs["bits"], activation_levels(inputs["bits"])
    names = ("x", "center", "half_width")
    _, center, half_width = parameters = [tf.constant(inputs[name], tf.float32) for name in names]
    step = (2 * half_width / levels).numpy()
    got: dict[str, Any] = {
        "lower_end": (center - half_width).numpy(),
        "step": step,
        "normalized_scale": 1 / levels,
        "scaled_scale": step,
    }
    for form in ("normalized", "scaled"):
        output, found = gradients(
            lambda *p, form=form: qil.quantize_activations(*p, bits=bits, normalized=form == "normalized"),
            parameters,
            inputs["upstream"],
        )
        got[f"{form}_output"] = output
        got |= {f"{form}_grad_{name}": gradient for name, gradient in zip(names, found, strict=True)}
    got["integers"] = np.rint(got["normalized_output"].astype(np.float64) * levels)
    require_expected(case, got)


@pytest.mark.parametrize("case", GRIDS, ids=name_of)
def test_every_value_of_the_grid_is_produced_and_nothing_else(case):
    bits, center, half_width = (case["inputs"][key] for key in ("bits", "center", "half_width"))
    normalized = center is None
    center, half_width = (0.5, 0.5) if normalized else (center, half_width)
    data = np.linspace(-1, 1, 20_001, dtype=np.float32) * np.float32(1.3 * (center + half_width))
    interval = (tf.constant(center), tf.constant(half_width))
    quantize = getattr(qil, f"quantize_{case['inputs']['method'].removeprefix('qil_')}")
    outputs = np.unique(quantize(tf.constant(data), *interval, bits=bits, normalized=normalized).numpy())
    scale = np.float32(case["expected"]["scale"])
    require_expected(case, {"integers": np.rint(outputs / scale), "scale": scale, "values": outputs})
