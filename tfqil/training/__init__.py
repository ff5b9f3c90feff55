"""Training aids: calibration."""

from tfqil.training.calibration import calibrate

__all__ = ["calibrate"]
