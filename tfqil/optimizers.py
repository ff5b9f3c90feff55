"""Keras optimizers of tfqil."""

from tfqil.training.blended_optimizer import BlendedOptimizer

__all__ = ["BlendedOptimizer"]
