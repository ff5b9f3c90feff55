"""What every exported file must be: the contract of an export in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tf_keras as keras

import tfqil
from tests import networks
from tfqil import _host
from tfqil.export import runtime
from tfqil.export.inspect import read_weights
from tfqil.export.pack import STORAGES
from tfqil.export.verify import layer_of

# Of 1,000 examples. A file whose arithmetic is that of the model may still choose between two nearly equal classes.
LEAST_TOP1_AGREEMENT = 0.995
# Inference in Keras rounds as the runtime does, and these networks have no sums that float32 does not hold exactly.
LARGEST_LSB = 0

# Weight and activation bits.
BITS = ((2, 2), (3, 3), (4, 4), (8, 8), (4, 8))


def combinations(*families: str, all_bits: Sequence[tuple[int, int]] = BITS) -> list[tuple[str, int, int]]:
    """Every family in every pair of widths."""
    return [(family, *bits) for family in families for bits in all_bits]


def folded_signs(q_model: Any) -> dict[str, np.ndarray]:
    """Layer -> sign of the gamma that is folded into each of its channels; 0 for a gamma of 0."""
    signs = {}
    for norm in q_model.layers:
        if isinstance(norm, keras.layers.BatchNormalization):
            (linear,) = (node.layer for node in _host.nodes_before(_host.latest_node(norm)))
            if hasattr(linear, "weight_quantizer"):
                signs[linear.layer.name] = np.sign(norm.gamma.numpy())
    return signs


def require_trained_integers(q_model: Any, tflite: bytes) -> None:
    """Raises unless the file holds the frozen integers of every kernel, with opposite signs where gamma is negative."""
    frozen, signs = tfqil.freeze(q_model), folded_signs(q_model)
    stored = {layer_of(name, frozen): integers for name, (integers, _) in read_weights(tflite).items()}
    assert set(frozen) <= set(stored), f"no integers in the file for {set(frozen) - set(stored)}"
    for name, grid in frozen.items():
        sign = signs.get(name, np.ones(1))
        wanted = grid.codes.reshape(-1, sign.size) * sign
        different = np.count_nonzero(stored[name].reshape(wanted.shape) != wanted)
        assert not different, f"{name}: {different} of {wanted.size} integers are not the trained ones"


def require_exact_export(q_model: Any, storage: str, images: np.ndarray, trained: np.ndarray) -> None:
    """Converts, and raises unless the file keeps the whole contract; `trained` are the trained model's outputs.

    Integers only; the trained integers; no output differs from the deployable model; the class of the trained model in
    99.5 % of the examples; and on XNNPACK's storages every output is the trained model's.
    """
    tflite = tfqil.convert(q_model, storage)
    report = tfqil.inspect(tflite)
    assert report.integer_only, report.float_leftovers
    require_trained_integers(q_model, tflite)
    (got,) = runtime.run(tflite, [images])
    frozen = tfqil.freeze(q_model)
    builtin = {layer_of(weight.name, frozen) for weight in report.weights if weight.kernels == "builtin"}
    lowered = tfqil.deployable(q_model, builtin=frozenset(builtin - {None}))(images).numpy()
    different = np.count_nonzero(got != lowered)
    assert not different, f"{different} of {got.size} outputs differ from the deployable model"
    grid = q_model.layers[-1].grid()
    steps = np.rint((got - trained) / grid.step)
    off = np.count_nonzero(np.abs(steps) > LARGEST_LSB)
    if storage != "smallest":
        assert not off, (
            f"{off} of {steps.size} outputs are more than {LARGEST_LSB} LSB off, at most {np.abs(steps).max()}"
        )
    # Ties count as agreement: 8-bit outputs of several classes may be equal.
    chosen = np.take_along_axis(trained, got.argmax(-1)[:, None], -1)[:, 0]
    agreement = np.mean(chosen >= trained.max(-1))
    assert agreement >= LEAST_TOP1_AGREEMENT, (
        f"{agreement:.1%} of the classes agree with the trained model; {off} of {steps.size} outputs are more than "
        f"{LARGEST_LSB} LSB off, at most {np.abs(steps).max()}"
    )


def exported(family: str, *bits: int, **options: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """A trained network of a family, quantized and calibrated; examples; its outputs for them."""
    q_model, images = networks.calibrated(networks.trained(family), *bits, **options), networks.digits()[0]
    return q_model, images, q_model.predict(images, verbose=0)


class FileBench:
    """The test of a module that has a fixture `exported` with results of the function `exported`."""

    @pytest.mark.parametrize("storage", STORAGES)
    def test_the_file_computes_what_was_trained(self, exported: Any, storage: str) -> None:
        q_model, images, outputs = exported
        require_exact_export(q_model, storage, images, outputs)
