"""The schedule of BinaryRelax: how strongly training is drawn to the quantized weights."""

from __future__ import annotations

import math
import numbers
from typing import Any

import tensorflow as tf
from absl import logging

from tfqil import _host
from tfqil.quantizers import BinaryRelax
from tfqil.scheme.layers import QuantizedLayer

UNITS = ("epoch", "step")
# The key under which lambda stands in the logs.
LOG_NAME = "lambda"


def relaxations(model: Any) -> list[Any]:
    """The lambdas of a model, and of models in it, as when a teacher is trained around one."""
    return [
        layer.quantizer_variables["relaxation"]
        for layer in model.submodules
        if isinstance(layer, QuantizedLayer) and isinstance(layer.weight_quantizer, BinaryRelax)
    ]


class BinaryRelaxSchedule(_host.Callback):  # type: ignore[misc, name-defined]
    """Lets the lambda of every `BinaryRelax` quantizer grow by a constant factor, then makes it infinite.

    Phase I, epochs 0 .. exact_from_epoch - 1: lambda = initial growth^t, t the number of the epoch (or of the training
    step) from 0. Phase II, from then on: lambda is infinite, and training computes with exactly quantized weights;
    the paper takes a small learning rate there. t is the epoch that Keras counts, or the optimizer's count of steps, so
    a training that `BackupAndRestore` or `initial_epoch` resumes continues where it was.

    Each epoch's lambda stands in its logs as "lambda": list this callback before those that write the logs, such as
    TensorBoard and CSVLogger. The training metrics of phase I are those of relaxed weights, the validation's those of
    the quantized ones: inference is always exact.

    Args:
        initial: lambda of the first epoch (or step), not negative; 0 trains in float until phase II. The authors'
            notebook starts at 1.04, one growth in.
        growth: factor per epoch (or step), more than 1. The authors' end at 359; for the same end from 1, choose
            359^(1 / epochs of phase I).
        exact_from_epoch: the first epoch of phase II; 0 has no phase I. The authors: 150 of 200.
        unit: "epoch" or "step": what `growth` is for. With `steps_per_execution`, lambda moves once per execution.

    Raises:
        TypeError or ValueError: an argument out of its range; when training starts, a model without relaxed weights.

    Reference: Yin et al., BinaryRelax (arXiv 1801.06313), phases I and II; values of the authors' notebook.
    """

    def __init__(
        self, initial: float = 1.0, growth: float = 1.04, *, exact_from_epoch: int, unit: str = "epoch"
    ) -> None:
        super().__init__()
        if not (isinstance(initial, numbers.Real) and math.isfinite(initial) and initial >= 0):
            raise ValueError(f"Got initial={initial!r}, expected a finite number of at least 0: 1.0 is usual.")
        if not (isinstance(growth, numbers.Real) and math.isfinite(growth) and growth > 1):
            raise ValueError(
                f"Got growth={growth!r}, expected a finite factor above 1, so that lambda reaches the quantized "
                "weights: 1.04 per epoch is the authors'."
            )
        if isinstance(exact_from_epoch, bool) or not isinstance(exact_from_epoch, numbers.Integral):
            raise TypeError(f"Got exact_from_epoch={exact_from_epoch!r}, expected a whole number: give an epoch.")
        if exact_from_epoch < 0:
            raise ValueError(f"Got exact_from_epoch={exact_from_epoch}, expected at least 0: give an epoch.")
        if unit not in UNITS:
            raise ValueError(f"Got unit={unit!r}, expected {' or '.join(map(repr, UNITS))}: choose one.")
        self.initial: float = float(initial)
        self.growth: float = float(growth)
        self.exact_from_epoch: int = exact_from_epoch
        self.unit: str = unit
        self._is_exact: bool = False
        self._variables: list[Any] = []
        # What this schedule has set last; None before it has set anything in this training.
        self._strength: float | None = None

    def strength(self, count: int) -> float:
        """Lambda of phase I at an epoch (or step)."""
        try:
            return self.initial * self.growth**count
        except OverflowError:
            return math.inf if self.initial else 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks that the model has something to relax, and the schedule time to end.

        Raises:
            ValueError: no layer of the model has relaxed weights.
        """
        del logs
        self._strength = None
        self._variables = relaxations(self.model)
        if not self._variables:
            raise ValueError(
                f"Got the model {self.model.name!r}, which has nothing to relax, expected one with relaxed weights: "
                "quantize it with relax=True in its config, or leave this callback out."
            )
        epochs = self.params.get("epochs")
        if epochs is not None and epochs <= self.exact_from_epoch:
            logging.warning(
                "This training ends after epoch %d, before weights are exactly quantized from epoch %d on: what is "
                "evaluated and exported then differs from what was trained last.",
                epochs - 1,
                self.exact_from_epoch,
            )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Sets the lambda of an epoch, and warns if the first one falls behind where the model was."""
        del logs
        self._is_exact = epoch >= self.exact_from_epoch
        strength = math.inf if self._is_exact else self.strength(epoch if self.unit == "epoch" else self._step())
        if self._strength is None:
            self._warn_of_falling_back(strength, epoch)
        self._assign(strength)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Sets the lambda of a step.

        Raises:
            ValueError: another schedule sets lambda too.
        """
        del logs
        if batch == 0:
            self._require_own_strength()
        if self.unit == "step" and not self._is_exact:
            self._assign(self.strength(self._step()))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes lambda into the logs."""
        del epoch
        if logs is not None:
            logs[LOG_NAME] = self._current()

    def _step(self) -> int:
        return int(self.model.optimizer.iterations.numpy())

    def _current(self) -> float:
        return float(self._variables[0].numpy())

    def _assign(self, strength: float) -> None:
        for variable in self._variables:
            variable.assign(strength)
        # Beyond float32, the variable is infinite.
        self._strength = math.inf if strength > tf.float32.max else strength

    def _require_own_strength(self) -> None:
        found = self._current()
        if self._strength is not None and not _same(found, self._strength):
            raise ValueError(
                f"Got lambda={found:g} where this schedule has set {self._strength:g}, expected one schedule: leave "
                "one BinaryRelaxSchedule in the callbacks, and nothing else that sets lambda."
            )

    def _warn_of_falling_back(self, strength: float, epoch: int) -> None:
        found = self._current()  # Minus infinity in a model that no schedule has trained.
        if found > strength and not _same(found, strength):
            logging.warning(
                "This training sets lambda back from %g, which the model has been trained to, to %g, as if epoch %d "
                "were resumed a second time: to go on, pass the number of epochs that are done as initial_epoch to "
                "`fit`.",
                found,
                strength,
                epoch,
            )


def _same(found: float, strength: float) -> bool:
    """Whether a float32 variable has the value of a schedule."""
    return math.isclose(found, strength, rel_tol=1e-6)
