"""What a model loses when one layer at a time has few bits."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import rich.console
import rich.progress
import rich.text

from tfqil import _host
from tfqil._tables import NotebookTable, rich_table
from tfqil.quantizers import MaxAbsWeightQuantizer, WeightQuantizer
from tfqil.report.measurements import Measurements, fingerprint
from tfqil.report.scores import Score, description, readable_batches, score_of
from tfqil.report.summary import summary
from tfqil.scheme.config import LowBitQuantizeConfig, QILQuantizeConfig
from tfqil.scheme.expand import expand
from tfqil.scheme.flatten import flatten
from tfqil.scheme.kinds import has_kernel
from tfqil.scheme.layers import QuantizeActivation, QuantizedLayer
from tfqil.scheme.plan import BY_SCHEME, EDGE_REASONS
from tfqil.scheme.report import LayerRows
from tfqil.scheme.scheme import LowBitScheme, quantize_model
from tfqil.training.calibration import calibrate

COUNTS = ("stored", "packed")
EIGHT = 8
_ALL_AT_8_BITS = "all layers at 8 bits"
# The widths that a file can store codes in; powers of two beyond INT8 are float16.
_STORED_BITS = (2, 4, 8, 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """One layer that multiplies by a kernel.

    Attributes:
        layer: its name, as the rules of a `LowBitScheme` have it.
        weights: number of weights of each of its kernels; a SeparableConv2D has two.
        is_edge: whether it reads a model input or ends at a model output.
        metrics: width of its weights -> the metric, with all other layers at 8 bits.
        losses: width -> how much worse that is than 8 bits in all layers; negative where it is better.
        stored_bits: width -> bits that a file takes for a code: 2, 4, 8, or 16 for powers of two beyond INT8.
    """

    layer: str
    weights: tuple[int, ...]
    is_edge: bool
    metrics: Mapping[int, float]
    losses: Mapping[int, float]
    stored_bits: Mapping[int, int]

    def bytes(self, bits: int, count: str = "stored") -> int:
        """Size of the codes at a width.

        Args:
            bits: 8, or a width that was measured.
            count: "stored" counts the bits that a file takes for a code, as `tfqil.summary` does; "packed" counts
                `bits` for each weight.
        """
        taken = self.stored_bits[bits] if count == "stored" else bits
        return sum(math.ceil(size * taken / 8) for size in self.weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity(LayerRows[LayerSensitivity], NotebookTable):
    """One row per layer with a kernel, in the order of the model; `str` and rich's `print` give a table.

    Attributes:
        rows: the layers.
        bits: the widths that were measured, ascending.
        metric: name of the metric.
        larger_is_better: whether a larger metric is a better one.
        float_metric: that of the float model; None where the metric is a function.
        metric_at_8_bits: that with 8 bits in all layers.
        other_bytes: size of the codes of kernels that are in no row: layers with a config of their own, slopes.
        config: whose quantizers the layers took.
    """

    rows: tuple[LayerSensitivity, ...]
    bits: tuple[int, ...]
    metric: str
    larger_is_better: bool
    float_metric: float | None
    metric_at_8_bits: float
    other_bytes: int
    config: LowBitQuantizeConfig

    def uniform_bytes(self, bits: int, count: str = "stored") -> int:
        """Size of all codes with one width everywhere but at edges, which have 8 bits: a budget for `suggest_bits`.

        Args:
            bits: 8, or a width that was measured.
            count: "stored" or "packed", see `LayerSensitivity.bytes`.

        Raises:
            ValueError: another width or count.
        """
        require_count(count)
        known = sorted({*self.bits, EIGHT})
        if bits not in known:
            raise ValueError(
                f"Got bits={bits!r}, expected one of {', '.join(map(str, known))}: measure other widths first."
            )
        return self.other_bytes + sum(row.bytes(EIGHT if row.is_edge else bits, count) for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the config, as plain values."""
        names = ("metric", "larger_is_better", "float_metric", "metric_at_8_bits", "other_bytes")
        return {**{name: getattr(self, name) for name in names}, "layers": [self._plain(row) for row in self.rows]}

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self._totals()}"

    def __rich__(self) -> rich.console.Group:
        return rich.console.Group(rich_table(self._cells()), rich.text.Text(self._totals()))

    def _totals(self) -> str:
        of_float = "" if self.float_metric is None else f"{self.float_metric:.4f} in float, "
        better = "larger" if self.larger_is_better else "smaller"
        return f"{self.metric}: {of_float}{self.metric_at_8_bits:.4f} with {_ALL_AT_8_BITS}; {better} is better."

    def _plain(self, row: LayerSensitivity) -> dict[str, Any]:
        return {
            "layer": row.layer,
            "weights": sum(row.weights),
            "is_edge": row.is_edge,
            "metrics": {str(bits): row.metrics[bits] for bits in self.bits},
            "losses": {str(bits): row.losses[bits] for bits in self.bits},
            "bytes": {str(bits): row.bytes(bits) for bits in self.bits},
        }

    def _layer(self, row: LayerSensitivity) -> str:
        return row.layer

    def _cells(self) -> list[tuple[str, ...]]:
        widths = [f"{self.metric} at {bits}" for bits in self.bits]
        return [("layer", "weights", *widths, "bytes"), *map(self._line, self.rows)]

    def _line(self, row: LayerSensitivity) -> tuple[str, ...]:
        return (
            f"{row.layer}{' (edge)' if row.is_edge else ''}",
            f"{sum(row.weights):,}",
            *(f"{row.metrics[bits]:.4f}" for bits in self.bits),
            " / ".join(f"{row.bytes(bits):,}" for bits in self.bits),
        )


def sensitivity(
    model: Any,
    data: Any,
    metric: str | Callable[[Any], float],
    bits: Sequence[int] = (2, 3, 4, 8),
    *,
    config: LowBitQuantizeConfig | None = None,
    larger_is_better: bool | None = None,
    batches: int = 8,
    resume: str | pathlib.Path | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Measures a model with the weights of one layer at a time at few bits, all others and all activations at 8 bits.

    Each choice is a model from `quantize_model` that is calibrated on the data and not trained: what training would
    win back counts as lost. 8 bits are equal levels up to the largest weight of a channel, whatever the config.

    Args:
        model: a float Functional or Sequential tf_keras model; it is not changed.
        data: a `tf.data.Dataset` or another iterable of batches that can be read again, or arrays as `calibrate` takes
            them; with labels, (inputs, labels), where the metric is a name.
        metric: the name of a metric that the model is compiled with, or "loss"; or a function that takes a calibrated
            quantized model and returns a number.
        bits: widths of the weights to measure.
        config: whose weight quantizer the layer takes at each width; None for `QILQuantizeConfig()`.
        larger_is_better: whether a larger metric is a better one. None takes it from a name, as of "accuracy" or
            "loss"; of a function it means yes.
        batches: how many batches to calibrate on at most; the metric is that of all.
        resume: a JSON file that takes each number when it is measured. A call with the same arguments goes on with it,
            and ends as one that was never interrupted.
        progress: show a bar, if there is a terminal.

    Raises:
        TypeError: no float model, no config, no metric, or data that can be read only once.
        ValueError: a quantized model, one without a layer to measure, no example, no labels, an unknown metric or
            width, a metric that is not finite, or a file of another model or other settings; only a metric can fail
            after the start.
    """
    _require_float(model)
    config = QILQuantizeConfig() if config is None else config
    quantizers = _quantizers(config, bits)
    data = readable_batches(model, data)
    score = score_of(model, data, metric, larger_is_better)
    measurements = Measurements(
        None if resume is None else pathlib.Path(resume),
        {
            "model": fingerprint(model),
            "data": description(data),
            "metric": score.name,
            "config": {str(width): repr(quantizer) for width, quantizer in quantizers.items()},
            "batches": batches,
        },
    )

    def measured(what: str, rules: Mapping[str, LowBitQuantizeConfig]) -> float:
        return measurements.value(what, lambda: score(_calibrated(model, data, batches, rules), what))

    layers, other_bytes = _layers(model)
    narrow = [width for width in quantizers if width != EIGHT]
    with _progress(1 + len(layers) * len(narrow), shown=progress) as starting:
        starting(_ALL_AT_8_BITS)
        float_metric = None
        if score.takes_float:
            float_metric = measurements.value("float model", lambda: score(model, "the float model"))
        at_8_bits = measured(_ALL_AT_8_BITS, {})
        rows = []
        for layer in layers:
            metrics = {EIGHT: at_8_bits}
            for width in narrow:
                starting(f"{layer.layer} at {width} bits")
                rule = {layer.layer: LowBitQuantizeConfig(weights=quantizers[width])}
                metrics[width] = measured(f"{layer.layer} at {width} bits", rule)
            rows.append(_row(layer, metrics, quantizers, score))
    return Sensitivity(
        rows=tuple(rows),
        bits=tuple(quantizers),
        metric=score.name,
        larger_is_better=score.larger_is_better,
        float_metric=float_metric,
        metric_at_8_bits=at_8_bits,
        other_bytes=other_bytes,
        config=config,
    )


def weight_quantizer(config: LowBitQuantizeConfig, bits: int) -> WeightQuantizer:
    """The weight quantizer of a config at a width; at 8 bits that of edges, whatever the config."""
    quantizer: Any = config.weights
    return MaxAbsWeightQuantizer(bits=EIGHT) if bits == EIGHT else quantizer.with_bits(bits)


def require_count(count: str) -> None:
    """Raises one sentence unless bytes can be counted that way."""
    if count not in COUNTS:
        raise ValueError(f"Got count={count!r}, expected {' or '.join(map(repr, COUNTS))}.")


def _require_float(model: Any) -> None:
    _host.require_functional(model)
    if any(isinstance(layer, (QuantizedLayer, QuantizeActivation)) for layer in model.layers):
        raise ValueError(
            f"Got the model {model.name!r}, which is quantized already, expected a float model: its layers are "
            "quantized one at a time."
        )


def _quantizers(config: Any, bits: Any) -> dict[int, WeightQuantizer]:
    """Width -> weight quantizer, ascending."""
    if not isinstance(config, LowBitQuantizeConfig) or config.weights is None:
        raise TypeError(
            f"Got config={config!r}, expected a LowBitQuantizeConfig with a weight quantizer: for example "
            "tfqil.QILQuantizeConfig()."
        )
    if isinstance(bits, (str, bytes)) or not isinstance(bits, Sequence) or not bits:
        raise ValueError(f"Got bits={bits!r}, expected some widths: for example (2, 3, 4, 8).")
    widths = {int(width) if width == EIGHT else width for width in bits}
    return {width: weight_quantizer(config, width) for width in sorted(widths)}


def _layers(model: Any) -> tuple[list[LayerSensitivity], int]:
    """The layers to measure, without metrics, and the bytes of the codes of all other kernels."""
    flat, given = flatten(model)
    if not any(has_kernel(layer) and layer.name not in given for layer in flat.layers):
        raise ValueError(
            f"Got the model {model.name!r} without a layer that multiplies by a kernel and has no config of its own, "
            "expected at least one: Dense, or a convolution."
        )
    _, origins = expand(flat)
    kernels: dict[str, list[int]] = {}
    edges: set[str] = set()
    other_bytes = 0
    for row in summary(quantize_model(model, _scheme({}))):
        reason = row.placement.reason
        if row.placement.role != "kernel" or row.weights is None:
            continue
        if reason != BY_SCHEME and reason not in EDGE_REASONS:
            other_bytes += row.bytes or 0
            continue
        name = origins[row.placement.layer]
        kernels.setdefault(name, []).append(row.weights)
        edges.update({name} if reason in EDGE_REASONS else ())
    empty: dict[int, Any] = {}
    return [
        LayerSensitivity(
            layer=name, weights=tuple(sizes), is_edge=name in edges, metrics=empty, losses=empty, stored_bits=empty
        )
        for name, sizes in kernels.items()
    ], other_bytes


def _row(
    layer: LayerSensitivity, metrics: Mapping[int, float], quantizers: Mapping[int, WeightQuantizer], score: Score
) -> LayerSensitivity:
    sign = 1 if score.larger_is_better else -1
    largest = {EIGHT: 127, **{width: quantizer.largest_code for width, quantizer in quantizers.items()}}
    return dataclasses.replace(
        layer,
        metrics={width: metrics[width] for width in sorted(metrics)},
        losses={width: 0.0 + sign * (metrics[EIGHT] - metrics[width]) for width in sorted(metrics)},  # Never -0.0.
        stored_bits={width: _stored_bits(code) for width, code in largest.items()},
    )


def _stored_bits(largest_code: int) -> int:
    needed = largest_code.bit_length() + 1
    return next((bits for bits in _STORED_BITS if needed <= bits), _STORED_BITS[-1])


def _scheme(rules: Mapping[str, LowBitQuantizeConfig]) -> LowBitScheme:
    """8 bits everywhere, but where a rule has something else."""
    return LowBitScheme(LowBitQuantizeConfig(weights=MaxAbsWeightQuantizer(bits=EIGHT)), rules=rules)


def _calibrated(model: Any, data: Any, batches: int, rules: Mapping[str, LowBitQuantizeConfig]) -> Any:
    gc.collect()  # Keras models are cycles; each choice is one.
    return calibrate(quantize_model(model, _scheme(rules)), data, batches)


@contextlib.contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Callable[[str], None]]:
    """A bar on the error stream, and what is called with the name of each measurement when it starts."""
    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    disable = not (shown and console.is_terminal)
    with rich.progress.Progress(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task("", total=total, completed=-1)

        def starting(what: str) -> None:
            bar.update(task, description=what, advance=1)

        yield starting
