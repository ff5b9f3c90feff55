"""How a model gets its quantizers: configs, the scheme, the placement rules and the placed layers."""

from tfqil.scheme.config import LowBitQuantizeConfig, QILQuantizeConfig
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer
from tfqil.scheme.report import Placement, PlacementReport, placements
from tfqil.scheme.saving import load_model
from tfqil.scheme.scheme import LowBitScheme, quantize_model

__all__ = [
    "LowBitQuantizeConfig",
    "LowBitScheme",
    "Placement",
    "PlacementReport",
    "QILQuantizeConfig",
    "QuantizeActivation",
    "QuantizedLayer",
    "load_model",
    "placements",
    "quantize_model",
]
