"""Keras optimizers of tfqil."""

from tfqil.training.blended_optimizer import BlendedOptimizer
from tfqil.training.interval_rate import IntervalRateOptimizer

__all__ = ["BlendedOptimizer", "IntervalRateOptimizer"]
