"""TFMOT quantizers: state (variables), a numerics function and a grid."""

from tfqil.quantizers.adaptive import AdaptiveActivationQuantizer
from tfqil.quantizers.base import ActivationQuantizer, ProjectedWeightQuantizer, WeightQuantizer
from tfqil.quantizers.lbw import LBWWeightQuantizer
from tfqil.quantizers.observation import Fit, Observation
from tfqil.quantizers.projected import BinaryWeightQuantizer, TernaryWeightQuantizer, UniformWeightQuantizer
from tfqil.quantizers.qil import QILActivationQuantizer, QILWeightQuantizer
from tfqil.quantizers.ranged import (
    FixedActivationQuantizer,
    MaxAbsWeightQuantizer,
    RangeActivationQuantizer,
    SlopeQuantizer,
)
from tfqil.quantizers.relaxed import BinaryRelax

__all__ = [
    "ActivationQuantizer",
    "AdaptiveActivationQuantizer",
    "BinaryRelax",
    "BinaryWeightQuantizer",
    "Fit",
    "FixedActivationQuantizer",
    "LBWWeightQuantizer",
    "MaxAbsWeightQuantizer",
    "Observation",
    "ProjectedWeightQuantizer",
    "QILActivationQuantizer",
    "QILWeightQuantizer",
    "RangeActivationQuantizer",
    "SlopeQuantizer",
    "TernaryWeightQuantizer",
    "UniformWeightQuantizer",
    "WeightQuantizer",
]
