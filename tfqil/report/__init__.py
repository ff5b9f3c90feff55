"""What a person reads about a quantized model."""

from tfqil.report.bits import SuggestedBits, suggest_bits
from tfqil.report.sensitivity import Sensitivity, sensitivity
from tfqil.report.summary import LayerSummary, Summary, summary

__all__ = [
    "LayerSummary",
    "Sensitivity",
    "SuggestedBits",
    "Summary",
    "sensitivity",
    "suggest_bits",
    "summary",
]
