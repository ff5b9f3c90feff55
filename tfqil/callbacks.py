"""Keras callbacks of tfqil."""

from tfqil.training.relaxation_schedule import BinaryRelaxSchedule

__all__ = ["BinaryRelaxSchedule"]
