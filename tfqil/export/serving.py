"""A SavedModel for servers: kernels as integers and steps, and nothing that needs this package."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping
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
from tfqil.scheme.accumulator import TrainedStep, trained_step
from tfqil.scheme.layers import FrozenKernel, QuantizedLayer

_SIGNATURE = "serving_default"


def export_saved_model(q_model: Any, path: str | os.PathLike[str], *, jit_compile: bool = False) -> None:
    """Writes a quantized model as a SavedModel that computes what `q_model.predict` computes.

    Its signature "serving_default" takes the model's inputs by their names, with any batch size, and returns its
    outputs by the names of their layers. Kernels are stored as their codes, at the fewest of 2, 4, 8, 16 and 32 bits
    that hold them, and their steps; when the model is loaded they are multiplied, once. A process that loads it needs
    TensorFlow alone.

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
    module.kernels = [_Kernel(layer) for layer in layers]
    steps = [_constant(trained_step(layer)) for layer in layers]
    names_in, names_out = signature_names(q_model.input_names), output_names(q_model)

    @tf.function(autograph=False, jit_compile=jit_compile)
    def computed(*inputs: tf.Tensor) -> list[tf.Tensor]:
        with contextlib.ExitStack() as stack:
            for layer, kernel, step in zip(layers, module.kernels, steps, strict=True):
                stack.enter_context(layer.computing_with(FrozenKernel(kernel.values.read(), step)))
            return [tf.identity(output) for output in _host.as_list(q_model(list(inputs), training=False))]

    def by_name(**inputs: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return dict(zip(names_out, computed(*(inputs[name] for name in names_in)), strict=True))

    specs = [
        tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype, name=name)
        for tensor, name in zip(q_model.inputs, names_in, strict=True)
    ]
    signature = tf.function(by_name, autograph=False).get_concrete_function(**{spec.name: spec for spec in specs})
    module.variables_of_layers = list(signature.graph.variables)
    return module, signature


class _Kernel(tf.Module):  # type: ignore[misc]
    """A kernel as it is stored: codes, two or four in a byte where they fit, and steps."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        grid = layer.grid()
        bits = _stored_bits(grid)
        stored = pack_integers(grid.codes, bits) if bits < 8 else grid.codes.astype(f"int{bits}")
        self.codes = tf.Variable(stored, trainable=False, name="codes")
        self.step = tf.Variable(grid.step.astype(np.float32), trainable=False, name="step")
        inner = layer.layer  # Not an attribute: its float kernel would be stored too.

        def product() -> tf.Tensor:
            codes = tf.reshape(_unpacked(self.codes, bits, grid.codes.size), grid.codes.shape)
            return _host.with_channels_last(inner, tf.cast(codes, tf.float32) * self.step)  # Its own inverse.

        # Servers share resources of one name, so it says what is in it.
        name = f"{_host.scope_name(inner.name)}_{_digest(stored, grid.step, np.array([bits, *grid.codes.shape]))}"
        self.values = _Loaded(product, layer.kernel.shape, name)


class _Loaded(tf.saved_model.experimental.TrackableResource):  # type: ignore[misc]
    """A float32 tensor that is computed when the model is loaded, and not stored."""

    def __init__(self, compute: Callable[[], tf.Tensor], shape: tf.TensorShape, name: str) -> None:
        super().__init__()
        self._compute, self._shape, self._name = compute, shape, name
        self.resource_handle  # noqa: B018 - created here, or it would be in the graph that reads it first.

    def read(self) -> tf.Tensor:
        """The tensor, in a graph that is stored too."""
        return tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=tf.float32)

    def _create_resource(self) -> tf.Tensor:
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=self._shape, shared_name=self._name)

    def _initialize(self) -> None:
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=self._compute())


def _constant(step: TrainedStep) -> Any:
    """Values in place of tensors of this process."""
    return tuple(None if part is None else np.asarray(part) for part in step)


def _stored_bits(grid: WeightGrid) -> int:
    """The fewest of 2, 4, 8, 16 and 32 bits that hold the codes."""
    largest = int(np.abs(grid.codes).max(initial=0))
    return next(bits for bits in (2, 4, 8, 16, 32) if largest < 1 << (bits - 1))


def _unpacked(stored: tf.Tensor, bits: int, count: int) -> tf.Tensor:
    """Integers from bytes that hold several of them, the first in the lowest bits, as `pack_integers` does it."""
    if bits >= 8:
        return stored
    shifted = [tf.bitwise.right_shift(stored, bits * position) for position in range(8 // bits)]
    fields = tf.bitwise.bitwise_and(tf.stack(shifted, axis=1), 2**bits - 1)
    sign = 1 << (bits - 1)
    codes = tf.cast(tf.bitwise.bitwise_xor(fields, sign), tf.int32) - sign  # Two's complement.
    return tf.reshape(codes, [-1])[:count]


def _digest(*arrays: NDArray[Any]) -> str:
    """A name for the content of arrays."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:16]
