"""TFMOT quantizers: state (variables), a numerics function and a grid."""

from tfqil.quantizers.base import ActivationQuantizer, Observation, WeightQuantizer
from tfqil.quantizers.qil import QILActivationQuantizer, QILWeightQuantizer
from tfqil.quantizers.ranged import FixedActivationQuantizer, MaxAbsWeightQuantizer, RangeActivationQuantizer

__all__ = [
    "ActivationQuantizer",
    "FixedActivationQuantizer",
    "MaxAbsWeightQuantizer",
    "Observation",
    "QILActivationQuantizer",
    "QILWeightQuantizer",
    "RangeActivationQuantizer",
    "WeightQuantizer",
]
