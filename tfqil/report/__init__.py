"""What a person reads about a quantized model."""

from tfqil.report.summary import LayerSummary, Summary, summary

__all__ = ["LayerSummary", "Summary", "summary"]
