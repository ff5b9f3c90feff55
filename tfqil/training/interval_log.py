"""The log of the intervals: what each layer's grid prunes, clips and loses, for TensorBoard, while training runs."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from absl import logging

from tfqil import _host
from tfqil.scheme.inputs import input_tensors
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer
from tfqil.training import event_values
from tfqil.training.dead_intervals import complaint_of_width, complaints
from tfqil.training.interval_measures import Measures, Parameters, means, of_kernel, of_tensors, parameters_of

_SAMPLES = "samples to log"


class IntervalLogger(_host.Callback):  # type: ignore[misc, name-defined]
    """Writes the intervals and grids of a quantized model to event files for TensorBoard, and warns of dead ones.

    Of every quantized kernel, under the name of its layer: what the quantizer has (center, half_width, gamma, lambda;
    of channels their mean), step, pruning_ratio (share of zero codes), clipped_share (of weights beyond the outermost
    level), quantization_error (||w - step codes||^2 / ||w||^2), codes_used_share (of those that the quantizer can
    give), and histograms of the float weights and the codes. Of every quantized tensor: what its quantizer has
    (center, half_width, minimum, maximum, step); with `samples` also the measures and histograms above, at inference,
    of what is left after subtracting `lower`.

    Values are written at the end of each epoch; the step is the epoch that Keras counts. With `every_batches`, also
    after so many batches of an epoch; the step is then the optimizer's count. Both go on where a training resumes.

    A dead interval (99 % zero codes, one code only, 99 % clipped, a half-width at its least value; of a channel, all of
    its codes 0 or its weights clipped) and a broken kernel are warned of, once per training, layer and kind, with the
    remedy. List a `BinaryRelaxSchedule` first.

    Args:
        log_dir: the folder of the event files; it is made where it is missing. Runs may share one to go on in it.
        every_batches: how many batches of an epoch lie between two logs; None for the ends of epochs only.
        samples: inputs to measure activations with, one batch: an array, a list of one per input, or a dictionary by
            their names. They are kept and run through the model, without compiling it, for every log.

    Raises:
        TypeError or ValueError: a log_dir that cannot be a folder, or every_batches out of range; when training starts,
            a model without quantized layers, or samples that it does not take.
    """

    def __init__(self, log_dir: Any, *, every_batches: int | None = None, samples: Any = None) -> None:
        super().__init__()
        self._supports_tf_logs = True  # It reads no logs: Keras need not wait for them in every batch.
        if every_batches is not None:
            _require_count(every_batches)
        self.log_dir: str = _folder(log_dir)
        self.every_batches: int | None = every_batches
        self.samples: Any = samples
        self._warned: set[tuple[str, str]] = set()
        self._writer: Any = None
        self._batches = 0
        self._last_step: int | None = None
        self._layers: list[Any] = []
        self._inputs: list[Any] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """Finds the quantized layers and opens an event file.

        Raises:
            TypeError, ValueError: a model without quantized layers, samples it does not take, or no file can be made.
        """
        del logs
        kinds = (QuantizedLayer, QuantizeActivation)
        self._layers = [layer for layer in self.model.submodules if isinstance(layer, kinds)]
        if not self._layers:
            raise ValueError(
                f"Got the float model {self.model.name!r}, expected one with quantized layers to log: pass it through "
                "tfqil.quantize_model, or leave this callback out."
            )
        if self.samples is not None:
            _host.require_functional(self.model)
            self._inputs = input_tensors(self.model, self.samples, _SAMPLES)
        self._warned.clear()
        self._close()
        # Of several workers, the first one writes. The others measure too: what replicas share is read together.
        if self.model.distribute_strategy.extended.should_save_summary:
            self._writer = _opened(self.log_dir)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Counts batches from 0."""
        del epoch, logs
        self._batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Logs every so many batches; after the execution that contains the batch, if it has several."""
        del logs
        if self.every_batches is None:
            return
        before, self._batches = self._batches, batch + 1
        if self._batches // self.every_batches > before // self.every_batches:
            self._log(self._iterations())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Logs the epoch."""
        del logs
        self._log(epoch if self.every_batches is None else self._iterations())

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the event file."""
        del logs
        self._close()

    def _iterations(self) -> int:
        return int(self.model.optimizer.iterations.numpy())

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._last_step = None, None

    def _log(self, step: int) -> None:
        if step == self._last_step:  # The last batch of an epoch was logged already.
            return
        self._last_step = step
        measured = self._measured()
        parameters = {layer.name: parameters_of(layer) for layer in self._layers}
        self._warn_of_dead_intervals(measured, parameters)
        if self._writer is None:
            return
        # Another callback may have chosen when, and where, summaries are written.
        with self._writer.as_default(), tf.summary.record_if(True):
            for layer in self._layers:
                for name, value in means(parameters[layer.name]).items():
                    event_values.write_scalar(f"{_title(layer)}/{name}", value, step)
            for measures in measured.values():
                _write(measures, step)
            self._writer.flush()

    def _measured(self) -> dict[str, Measures]:
        """The measures of all kernels, and with samples of tensors, by layer; what is not finite is warned of."""
        measured = {}
        for layer in self._layers:
            if isinstance(layer, QuantizedLayer):
                try:
                    measured[layer.name] = of_kernel(layer)
                except ValueError as error:
                    self._warn(layer.name, "not finite", str(error))
        if self._inputs:
            try:
                measured |= {measures.layer: measures for measures in of_tensors(self.model, self._inputs)}
            except ValueError as error:
                self._warn("samples", "not finite", str(error))
        return measured

    def _warn_of_dead_intervals(self, measured: Mapping[str, Measures], parameters: Mapping[str, Parameters]) -> None:
        for layer in self._layers:
            found = complaints(layer, measured[layer.name]) if layer.name in measured else {}
            width = complaint_of_width(layer, parameters[layer.name])
            for kind, message in (found | ({"half-width": width} if width else {})).items():
                self._warn(layer.name, kind, message)

    def _warn(self, layer: str, kind: str, message: str) -> None:
        if (layer, kind) not in self._warned:
            self._warned.add((layer, kind))
            logging.warning("%s", message)


def _title(layer: Any) -> str:
    """The name of a layer for a person: of a kernel, that in the float model."""
    name: str = layer.layer.name if isinstance(layer, QuantizedLayer) else layer.name
    return name


def _write(measures: Measures, step: int) -> None:
    for name, value in measures.scalars().items():
        if name not in measures.parameters:  # They are written for all layers.
            event_values.write_scalar(f"{measures.title}/{name}", value, step)
    values = "weights" if measures.is_kernel else "activations"
    event_values.write_histogram(f"{measures.title}/{values}", event_values.value_buckets(measures.values), step)
    event_values.write_histogram(f"{measures.title}/codes", event_values.code_buckets(measures.codes), step)


def _folder(log_dir: Any) -> str:
    """A path as text; raises one sentence if no folder can be there."""
    if not isinstance(log_dir, (str, os.PathLike)) or not os.fspath(log_dir):
        raise TypeError(f"Got log_dir={log_dir!r}, expected the path of a folder: give one, such as 'logs/run'.")
    path = os.fspath(log_dir)
    if "://" in path:  # What is remote is seen when the file is opened.
        return path
    absolute = pathlib.Path(path).absolute()
    there = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        kind = "which cannot be written to" if there.is_dir() else "which is a file"
        raise _unusable(path, "in" if there != absolute else "as", f"{str(there)!r}, {kind}")
    return path


def _opened(log_dir: str) -> Any:
    """A writer of a new event file."""
    try:
        tf.io.gfile.makedirs(log_dir)
        writer = tf.summary.create_file_writer(log_dir)
        writer.flush()
    except (OSError, tf.errors.OpError) as error:
        raise _unusable(log_dir, "with", " ".join(str(error).split())) from error
    return writer


def _unusable(log_dir: str, relation: str, reason: str) -> ValueError:
    return ValueError(
        f"Got log_dir={log_dir!r} {relation} {reason}, expected a folder that can be written to: choose another path."
    )


def _require_count(every_batches: Any) -> None:
    if isinstance(every_batches, bool) or not isinstance(every_batches, int) or every_batches < 1:
        raise ValueError(
            f"Got every_batches={every_batches!r}, expected a whole number of at least 1, or None for the ends of "
            "epochs only."
        )
