"""A SavedModel for servers: kernels as integers and steps, and nothing that needs this package."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfqil import _host
from tfqil.export.flatbuffer import pack_integers
from tfqil.export.freeze import require_calibrated, require_quantized
from tfqil.export.new_path import require_new_path, written_whole
from tfqil.export.signature import output_names, signature_names
from tfqil.numerics.grid import WeightGrid
from tfqil.scheme.frozen import frozen
from tfqil.scheme.layers import QuantizedLayer
from tfqil.scheme.placer import QUANTIZER_PREFIX

_SIGNATURE = "serving_default"


def export_saved_model(q_model: Any, path: str | os.PathLike[str], *, jit_compile: bool = False) -> None:
    """Writes a quantized model as a SavedModel that computes what `q_model.predict` computes.

    Its signature "serving_default" takes the model's inputs by their names, with any batch size, and returns its
    outputs by their names in the float model. Kernels are stored as their codes, at the fewest of 2, 4, 8, 16 and 32
    bits that hold them, and their steps; when the model is loaded they are multiplied, once. A process that loads it
    needs TensorFlow alone, and has the memory back when it drops the model. `q_model` is not changed, not even while
    this runs, so that other threads may use it.

    Args:
        q_model: a calibrated or trained model from `quantize_model` or `quantize_apply`.
        path: the folder to write; it must not exist yet.
        jit_compile: whether what the server runs is compiled with XLA, once for each batch size it meets.

    Raises:
        TypeError, ValueError: a float or uncalibrated model.
        FileExistsError, FileNotFoundError: `path` exists, or its parent folder does not.
    """
    require_quantized(q_model)
    require_calibrated(q_model)
    folder = pathlib.Path(path)
    require_new_path(folder)
    module, signature = _served(q_model, jit_compile=jit_compile)
    with written_whole(folder) as partial:
        tf.saved_model.save(module, str(partial), signatures={_SIGNATURE: signature})


def _served(q_model: Any, *, jit_compile: bool) -> tuple[tf.Module, Any]:
    """What computes a model at inference, and the module of all it holds, of which no float kernel is."""
    layers = [layer for layer in q_model.layers if isinstance(layer, QuantizedLayer)]
    module = tf.Module()
    module.kernels = _Kernels(layers) if layers else None
    of_layers = [name.removeprefix(QUANTIZER_PREFIX) for name in q_model.output_names]
    names_in, names_out = signature_names(q_model.input_names), signature_names(output_names(q_model, of_layers))

    @tf.function(autograph=False, jit_compile=jit_compile)
    def computed(*inputs: tf.Tensor) -> list[tf.Tensor]:
        # Where this is traced only the thread that traces it sees other kernels than the trained ones.
        with frozen(layers, module.kernels.read() if layers else []):
            return [tf.identity(output) for output in _host.as_list(q_model(list(inputs), training=False))]

    def by_name(**inputs: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return dict(zip(names_out, computed(*(inputs[name] for name in names_in)), strict=True))

    specs = [
        tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name=name)
        for tensor, name in zip(q_model.inputs, names_in, strict=True)
    ]
    signature = tf.function(by_name, autograph=False).get_concrete_function(**{spec.name: spec for spec in specs})
    # Of all variables that were read, also for constants, those that are read again.
    captured = set(map(id, signature.captured_inputs))
    module.variables_of_layers = [one for one in signature.graph.variables if id(one.handle) in captured]
    return module, signature


class _Kernels(tf.Module):  # type: ignore[misc]
    """Kernels as they are stored, codes, two or four in a byte where they fit, and steps; and their values when loaded.

    Codes of equal width are one variable, and one function expands all: what describes a variable or a function is
    larger than the codes of a small kernel.
    """

    def __init__(self, layers: Sequence[QuantizedLayer]) -> None:
        super().__init__()
        grids = [layer.grid() for layer in layers]
        widths = [_stored_bits(grid) for grid in grids]
        of_width = {bits: [n for n, width in enumerate(widths) if width == bits] for bits in sorted(set(widths))}
        self.codes = [
            _untrained(_packed(_joined([grids[n].codes for n in numbers]), bits), "codes")
            for bits, numbers in of_width.items()
        ]
        self.steps = _untrained(_joined([grid.step for grid in grids]).astype(np.float32), "steps")
        # Of open shape, so that nothing is stored of them. They are variables since the memory of one is freed with the
        # last function that reads it, be that the signature alone.
        self.values = [
            tf.Variable(tf.zeros([0]), trainable=False, shape=tf.TensorShape(None), name="values") for _ in layers
        ]
        self._shapes = [layer.kernel.shape for layer in layers]
        inner = [layer.layer for layer in layers]  # Not an attribute: their float kernels would be stored too.

        def expand() -> None:
            steps = tf.split(self.steps, [grid.step.size for grid in grids])
            for stored, (bits, numbers) in zip(self.codes, of_width.items(), strict=True):
                sizes = [grids[n].codes.size for n in numbers]
                for n, codes in zip(numbers, tf.split(_unpacked(stored, bits, sum(sizes)), sizes), strict=True):
                    codes = tf.cast(tf.reshape(codes, grids[n].codes.shape), tf.float32)
                    kernel = codes * tf.reshape(steps[n], grids[n].step.shape)
                    self.values[n].assign(_host.with_channels_last(inner[n], kernel))  # Its own inverse.

        self.expansion = _WhenLoaded(expand)

    def read(self) -> list[tf.Tensor]:
        """Code * step, in the layout of the kernel of each layer."""
        return [tf.ensure_shape(values, shape) for values, shape in zip(self.values, self._shapes, strict=True)]


class _WhenLoaded(tf.saved_model.experimental.TrackableResource):  # type: ignore[misc]
    """What a process does each time it has loaded the stored variables."""

    def __init__(self, run: Callable[[], None]) -> None:
        super().__init__()
        self._run = run

    def _create_resource(self) -> tf.Tensor:
        return tf.zeros([])  # There is none: all it needs are variables.

    def _initialize(self) -> None:
        self._run()


def _stored_bits(grid: WeightGrid) -> int:
    """The fewest of 2, 4, 8, 16 and 32 bits that hold the codes."""
    largest = int(np.abs(grid.codes).max(initial=0))
    return next(bits for bits in (2, 4, 8, 16, 32) if largest < 1 << (bits - 1))


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([np.reshape(array, -1) for array in arrays])


def _untrained(value: NDArray[Any], name: str) -> tf.Variable:
    return tf.Variable(value, trainable=False, name=name)


def _packed(codes: NDArray[np.int32], bits: int) -> NDArray[Any]:
    return pack_integers(codes, bits) if bits < 8 else codes.astype(f"int{bits}")


def _unpacked(stored: tf.Tensor, bits: int, count: int) -> tf.Tensor:
    """Integers from bytes that hold several of them, the first in the lowest bits, as `pack_integers` does it."""
    if bits >= 8:
        return stored
    shifted = [tf.bitwise.right_shift(stored, bits * position) for position in range(8 // bits)]
    fields = tf.bitwise.bitwise_and(tf.stack(shifted, axis=1), 2**bits - 1)
    sign = 1 << (bits - 1)
    codes = tf.bitcast(tf.bitwise.bitwise_xor(fields, sign), tf.int8) - sign  # Two's complement.
    return tf.reshape(codes, [-1])[:count]
