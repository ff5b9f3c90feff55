"""tfqil: 2-, 3- and 4-bit training for Keras, carried to the device integer for integer."""

import sys
import typing

# Importing the names below loads TensorFlow and registers the classes with Keras, so that its `load_model` finds them.
# `python -m tfqil` waits with that until a command needs it: most look at files only.
_IS_COMMAND = sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv) :][:1] == ["tfqil"]

if typing.TYPE_CHECKING or not _IS_COMMAND:
    from tfqil import callbacks, optimizers, quantizers
    from tfqil.export.convert import convert
    from tfqil.export.freeze import freeze
    from tfqil.export.inspect import inspect
    from tfqil.export.lower import deployable
    from tfqil.export.metadata import read_metadata
    from tfqil.export.serving import export_saved_model
    from tfqil.export.verify import verify
    from tfqil.report.bits import suggest_bits
    from tfqil.report.sensitivity import sensitivity
    from tfqil.report.summary import summary
    from tfqil.scheme.config import BCGDQuantizeConfig, LBWQuantizeConfig, LowBitQuantizeConfig, QILQuantizeConfig
    from tfqil.scheme.keras3 import from_keras3
    from tfqil.scheme.report import placements
    from tfqil.scheme.saving import load_model
    from tfqil.scheme.scheme import LowBitScheme, quantize_model
    from tfqil.training.calibration import calibrate
    from tfqil.training.distill import distill
    from tfqil.training.norms import reestimate_norms
    from tfqil.training.progressive import with_bits

    __all__ = [
        "BCGDQuantizeConfig",
        "LBWQuantizeConfig",
        "LowBitQuantizeConfig",
        "LowBitScheme",
        "QILQuantizeConfig",
        "calibrate",
        "callbacks",
        "convert",
        "deployable",
        "distill",
        "export_saved_model",
        "freeze",
        "from_keras3",
        "inspect",
        "load_model",
        "optimizers",
        "placements",
        "quantize_model",
        "quantizers",
        "read_metadata",
        "reestimate_norms",
        "sensitivity",
        "suggest_bits",
        "summary",
        "verify",
        "with_bits",
    ]

__version__ = "0.1.0"
