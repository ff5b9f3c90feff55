"""Training aids: calibration, and the next stage of progressive finetuning."""

from tfqil.training.calibration import calibrate
from tfqil.training.progressive import with_bits

__all__ = ["calibrate", "with_bits"]
