"""How the examples train a float network to low bits with each method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import digits as digits_data
import results
import tf_keras as keras
import training

import tfqil

LEARNING_RATE = 2e-3
# Lambda at the end of phase I, in the notebook of BinaryRelax's authors: 1.04^150.
LAST_STRENGTH = 359.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method with its settings.

    Attributes:
        name: for tables.
        config: what quantizes.
        rho: share of the blending of BCGD; None for a plain optimizer.
        exact_share: share of the epochs that phase II of BinaryRelax takes; None without BinaryRelax.
        allow_float: whether the file may compute layers in float whose weights INT8 does not hold.
    """

    name: str
    config: tfqil.LowBitQuantizeConfig
    rho: float | None = None
    exact_share: float | None = None
    allow_float: bool = False

    def optimizer(self, q_model: keras.Model) -> Callable[[Any], keras.optimizers.Optimizer]:
        """Makes the optimizer from a learning rate."""
        if self.rho is None:
            return keras.optimizers.Adam
        return lambda rate: tfqil.optimizers.BlendedOptimizer(keras.optimizers.Adam(rate), q_model, self.rho)

    def callbacks(self, epochs: int) -> list[keras.callbacks.Callback]:
        """The schedule of BinaryRelax, if it is used."""
        return [] if self.exact_share is None else [relaxation_schedule(epochs, self.exact_share)]


def relaxation_schedule(epochs: int, exact_share: float) -> tfqil.callbacks.BinaryRelaxSchedule:
    """The schedule of BinaryRelax for a training, of which phase II takes a share of the epochs."""
    relaxed = max(1, round(epochs * (1 - exact_share)))
    return tfqil.callbacks.BinaryRelaxSchedule(1.0, LAST_STRENGTH ** (1 / relaxed), exact_from_epoch=relaxed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A network trained by a recipe, and what training logged."""

    recipe: Recipe
    q_model: keras.Model
    history: dict[str, list[float]]


def train(
    recipe: Recipe, network: keras.Model, data: digits_data.Digits, trainer: training.Trainer, epochs: int
) -> Trained:
    """Quantizes a trained float network, finetunes it, and tests it after each epoch."""
    q_model = tfqil.calibrate(tfqil.quantize_model(network, recipe.config), data.train_images)
    history = trainer.fit(
        q_model,
        recipe.name,
        epochs,
        LEARNING_RATE,
        optimizer=recipe.optimizer(q_model),
        callbacks=recipe.callbacks(epochs),
        validation_data=(data.test_images, data.test_labels),
    )
    return Trained(recipe=recipe, q_model=q_model, history=history.history)


def compare(
    recipes: Sequence[Recipe], *, seed: int, float_epochs: int, epochs: int, width: int, smallest: bool = True
) -> tuple[list[results.Row], list[Trained]]:
    """Trains one float network and, from it, one network per recipe; the rows have the float one first."""
    keras.utils.set_random_seed(seed)
    data = digits_data.load_digits()
    with training.progress_display() as progress:
        trainer = training.Trainer(data, progress, seed)
        network = digits_data.residual_network(width)
        trainer.fit(network, "float", float_epochs, 3e-3)
        rows = [results.float_row(network, data)]
        trained = []
        for recipe in recipes:
            keras.utils.set_random_seed(seed)  # All recipes see the same batches.
            trained.append(train(recipe, network, data, trainer, epochs))
            q_model = trained[-1].q_model
            rows.append(
                results.tfqil_row(q_model, recipe.name, data, allow_float=recipe.allow_float, smallest=smallest)
            )
    return rows, trained
