"""Runs TensorFlow's TFLiteConverter on a deployable model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfqil import _host
from tfqil.scheme.report import float_layers, with_reasons


def converted(q_model: Any, plain: Any, input_names: Sequence[str], output_names: Sequence[str]) -> bytes:
    """What TFLiteConverter writes of a deployable model.

    Args:
        q_model: the quantized model.
        plain: what `Lowering` made of it.
        input_names: names for the inputs in the signature, in the model's order.
        output_names: names for the outputs likewise.

    Raises:
        ValueError: a layer in float needs operators that LiteRT does not have.
    """
    try:
        return _run(plain, input_names, output_names)
    except Exception as error:  # The converter's own class is not public.
        if (sentence := _missing_operators(q_model, error)) is None:
            raise
        raise ValueError(sentence) from error


def _run(plain: Any, input_names: Sequence[str], output_names: Sequence[str]) -> bytes:
    # The loops of recurrent layers need a known batch size.
    batch = 1 if any(map(_host.is_recurrent, plain.layers)) else None

    def run(*inputs: Any) -> dict[str, Any]:
        return dict(zip(output_names, _host.as_list(plain(list(inputs), training=False)), strict=True))

    signature = [
        tf.TensorSpec((batch or tensor.shape[0], *tensor.shape[1:]), tensor.dtype, name=name)
        for tensor, name in zip(plain.inputs, input_names, strict=True)
    ]
    # A module with the variables alone: a Keras model is traced several times over before it is converted.
    module = tf.Module()
    module.variables_of_float_layers = plain.variables
    function = tf.function(run, autograph=False).get_concrete_function(*signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with warnings.catch_warnings():
        # The fake quantizations hold the statistics that the converter misses.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")
        content: bytes = converter.convert()
    return content


def _missing_operators(q_model: Any, error: Exception) -> str | None:
    """A sentence about what the converter refuses, if it is a float layer that may be the reason."""
    in_float = float_layers(q_model)
    missing = re.search(r"(?:TF Select|Custom) ops: ([^\n]+)", str(error))
    if not in_float or missing is None:
        return None
    return (
        f"Got the TensorFlow operators {missing[1]}, which LiteRT does not have, expected others: replace the layer "
        f"they come from, which is one of those in float, {with_reasons(in_float)}."
    )
