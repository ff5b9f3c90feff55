"""Keras callbacks of tfqil."""

from tfqil.training.interval_log import IntervalLogger
from tfqil.training.relaxation_schedule import BinaryRelaxSchedule

__all__ = ["BinaryRelaxSchedule", "IntervalLogger"]
