"""Why a straight-through estimator works, and which one: the two-linear-layer study of Yin et al. (arXiv 1903.05662).

    python examples/coarse_gradient.py

Compares the closed forms of the population loss and of the expected coarse gradients with samples, descends with the
identity, the ReLU and the clipped ReLU estimator from random starts and from a start beside the spurious minimiser, and
prints where each ends. Writes coarse_gradient.png to --output.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time

import numpy as np
import rich.console
import rich.table
from absl import app, flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tfqil.numerics import two_layer
from tfqil.numerics.ste import COARSE_DERIVATIVES

_OUTPUT = flags.DEFINE_string("output", "examples/output", "Folder for the figure.")
_SAMPLES = flags.DEFINE_integer("samples", 400_000, "Samples per point of the comparison.", lower_bound=100)
_STARTS = flags.DEFINE_integer("starts", 8, "Random starts of the descents.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 2_000, "Steps of each descent.", lower_bound=10)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.05, "Learning rate of each descent.", lower_bound=1e-6)
# With seed 0 all random starts end at the global minimiser; 1 is the first seed that shows the other ends.
_SEED = flags.DEFINE_integer("seed", 1, "Seed of samples and starts.")

# A teacher of 4 units and 3 inputs that has spurious minimisers: (1.v*)^2 = 4 < (4 + 1)/2 |v*|^2 = 11.25.
V_STAR = np.array([1.5, 1.0, 0.5, -1.0])
W_STAR = np.array([1.0, 0.0, 0.0])
SPURIOUS_V, _ = two_layer.spurious_point(V_STAR)
NEAR = "spurious"

_LABELS = {"identity": "identity", "relu": "ReLU", "clipped_relu": "clipped ReLU"}
_COLORS = {"identity": "#b03a2e", "relu": "#2e6da4", "clipped_relu": "#3c8d40"}
_LINES = {"identity": "-", "relu": "-", "clipped_relu": "--"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One average at one point: in closed form and from samples."""

    point: str
    quantity: str
    closed_form: np.ndarray
    estimate: two_layer.Estimate

    @property
    def deviation(self) -> float:
        return self.estimate.deviation(self.closed_form)


def main(_: list[str]) -> None:
    started = time.perf_counter()
    output = pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    comparisons = compare(_SAMPLES.value, seed=_SEED.value)
    starts = draw_starts(_STARTS.value, seed=_SEED.value)
    descents = descend_from(starts, learning_rate=_LEARNING_RATE.value, steps=_STEPS.value)
    figure = draw(descents, output / "coarse_gradient.png", samples=max(100, _SAMPLES.value // 50), seed=_SEED.value)
    console = rich.console.Console()
    console.print(comparison_table(comparisons))
    console.print(descent_table(descents))
    console.print(conclusion(comparisons, descents), soft_wrap=True)
    console.print(f"Figure: {figure}. {time.perf_counter() - started:.0f} s in all.")


def at_angle(theta: float, v: np.ndarray, *, length: float = 1.0) -> two_layer.Point:
    """A student whose w has the given angle to w* and the given length."""
    w = length * np.array([math.cos(theta), math.sin(theta), 0.0])
    return two_layer.Point(v=v, w=w, v_star=V_STAR, w_star=W_STAR)


def compare(samples: int, *, seed: int) -> list[Comparison]:
    """Every closed form against samples: at a point like any other, at a saddle point and at a spurious minimiser."""
    saddle_v, saddle_angle = two_layer.saddle_point(V_STAR)
    points = {
        "any": at_angle(1.0, np.array([0.8, -0.4, 1.2, 0.3])),
        "saddle": at_angle(saddle_angle, saddle_v),
        "spurious": at_angle(math.pi, SPURIOUS_V),
    }
    rows = []
    for name, point in points.items():
        closed = {"loss": np.asarray(two_layer.loss(point)), "gradient_v": two_layer.gradient_v(point)}
        closed |= {kind: two_layer.coarse_gradient(point, kind) for kind in COARSE_DERIVATIVES}
        for quantity, estimate in two_layer.monte_carlo(point, samples=samples, seed=seed).items():
            rows.append(Comparison(point=name, quantity=quantity, closed_form=closed[quantity], estimate=estimate))
    return rows


def draw_starts(count: int, *, seed: int) -> dict[str, two_layer.Point]:
    """Random students with |w| = 2, and one beside the spurious minimiser."""
    generator = np.random.default_rng(seed)
    starts = {}
    for index in range(1, count + 1):
        v, w = generator.standard_normal(V_STAR.size), generator.standard_normal(W_STAR.size)
        starts[f"random {index}"] = two_layer.Point(v=v, w=2 * w / np.linalg.norm(w), v_star=V_STAR, w_star=W_STAR)
    return starts | {NEAR: at_angle(math.pi - 0.1, 1.02 * SPURIOUS_V)}


def descend_from(
    starts: dict[str, two_layer.Point], *, learning_rate: float, steps: int
) -> dict[str, dict[str, two_layer.Descent]]:
    """The descents by start and estimator."""
    return {
        name: {
            kind: two_layer.descend(start, kind, learning_rate=learning_rate, steps=steps)
            for kind in COARSE_DERIVATIVES
        }
        for name, start in starts.items()
    }


def largest_rise(losses: np.ndarray) -> float:
    """By how much the loss rose in the worst step; 0 if it never did, but for rounding."""
    rise = float(np.diff(losses).max())
    return rise if rise > 1e-12 else 0.0


def outcome(descent: two_layer.Descent) -> str:
    """Where a descent settled; one whose loss still rises in its last tenth has not."""
    settled = not largest_rise(descent.losses[-len(descent.losses) // 10 :])
    return (settled and two_layer.stationary_point_near(descent.end)) or "not converged"


def comparison_table(comparisons: list[Comparison]) -> rich.table.Table:
    table = rich.table.Table(
        title="Closed forms against samples",
        caption="off by: the largest difference of an entry in standard errors. Estimators: the coarse gradient in w.",
    )
    for heading in ("average of", "closed form", "samples", "off by"):
        table.add_column(heading, justify="right" if heading == "off by" else "left")
    previous = None
    for row in comparisons:
        if row.point != previous:
            table.add_section()
            table.add_row(f"[bold]{row.point}")
            previous = row.point
        quantity = _LABELS.get(row.quantity, row.quantity)
        table.add_row(f"  {quantity}", _numbers(row.closed_form), _numbers(row.estimate.mean), f"{row.deviation:.1f}")
    return table


def _numbers(values: np.ndarray) -> str:
    # Adding 0 turns -0 into 0.
    return " ".join(f"{value + 0.0:.3f}" for value in np.round(np.atleast_1d(values), 3))


def descent_table(descents: dict[str, dict[str, two_layer.Descent]]) -> rich.table.Table:
    table = rich.table.Table(
        title="Coarse gradient descent",
        caption="|w|: the least on the way. rise: the worst of the loss in a step. The theorem is about small steps "
        "and a |w| that stays away from 0. The last start is beside the spurious minimiser.",
    )
    for heading in ("start", "estimator", "ends at", "loss", "angle", "|w|", "rise"):
        table.add_column(heading, justify="left" if heading in ("start", "estimator", "ends at") else "right")
    for name, by_kind in descents.items():
        start = next(iter(by_kind.values()))
        about_start = (name, f"loss {start.losses[0]:.3f}", f"angle {math.degrees(start.angles[0]):.0f}°")
        for line, (kind, descent) in zip(about_start, by_kind.items(), strict=True):
            rise = largest_rise(descent.losses)
            table.add_row(
                line,
                _LABELS[kind],
                outcome(descent),
                f"{descent.losses[-1]:.3f}",
                f"{math.degrees(descent.angles[-1]):.0f}°",
                f"{descent.lengths.min():.3f}",
                f"{rise:.3f}" if rise else "none",
            )
        table.add_section()
    return table


def conclusion(comparisons: list[Comparison], descents: dict[str, dict[str, two_layer.Descent]]) -> str:
    """What was seen, in words."""
    worst = max(row.deviation for row in comparisons)
    sentences = [f"Samples and closed forms differ by at most {worst:.1f} standard errors."]
    for kind, label in _LABELS.items():
        random = [by_kind[kind] for name, by_kind in descents.items() if name != NEAR]
        ends = [outcome(descent) for descent in random]
        counts = ", ".join(f"{ends.count(end)} {end}" for end in sorted(set(ends)))
        rising = [descent for descent in random if largest_rise(descent.losses)]
        shortest = max((descent.lengths.min() for descent in rising), default=None)
        condition = f", with |w| down at {shortest:.2g} or less" if rising else ""
        sentences.append(
            f"With the {label}, the {len(random)} random descents end: {counts}; "
            f"the loss rose on the way in {len(rising)} of them{condition}."
        )
    for kind, label in _LABELS.items():
        sentences.append(f"Beside the spurious minimiser the {label} {_near_end(descents[NEAR][kind])}.")
    return "\n".join(sentences)


def _near_end(descent: two_layer.Descent) -> str:
    if largest_rise(descent.losses):
        return (
            f"is driven away: it shortens w to {descent.lengths.min():.1g} and turns it round, "
            f"and the loss goes from {descent.losses.min():.3f} up to {descent.losses.max():.3f}"
        )
    stays = "stays" if outcome(descent) == "spurious" else "has not settled"
    return f"{stays}: the loss falls to {descent.losses[-1]:.3f} and never rises"


def draw(
    descents: dict[str, dict[str, two_layer.Descent]], path: pathlib.Path, *, samples: int, seed: int
) -> pathlib.Path:
    """Writes four panels: two descents above, the coarse gradients over the angle below."""
    figure = Figure(figsize=(12, 8.4))
    axes = figure.subplots(2, 2)
    random = next(name for name in descents if name != NEAR)
    _draw_random_start(axes[0, 0], descents[random])
    _draw_near_start(axes[0, 1], descents[NEAR])
    _draw_over_angle(axes[1, 0], axes[1, 1], samples=samples, seed=seed)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    title = "slope that stands for the derivative of the step"
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, title=title)
    figure.suptitle("Coarse gradient descent of two linear layers with binary activation and Gaussian input")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=120)
    return path


def _draw_random_start(panel: Axes, by_kind: dict[str, two_layer.Descent]) -> None:
    for kind, descent in by_kind.items():
        panel.semilogy(descent.losses, _LINES[kind], color=_COLORS[kind], label=_LABELS[kind])
    # What lies below is rounding.
    panel.set_ylim(bottom=1e-12)
    panel.set_title("a. From a random start", fontsize=10)
    panel.set_xlabel("iteration")
    panel.set_ylabel("population loss")


def _draw_near_start(panel: Axes, by_kind: dict[str, two_layer.Descent], *, shown: int = 300) -> None:
    for kind, descent in by_kind.items():
        panel.plot(descent.losses[: shown + 1], _LINES[kind], color=_COLORS[kind])
    least = two_layer.loss(at_angle(math.pi, SPURIOUS_V))
    panel.axhline(least, color="black", linewidth=0.8, linestyle=":", zorder=0)
    highest = max(descent.losses.max() for descent in by_kind.values())
    panel.set_ylim(0, 1.2 * highest)
    panel.text(0, 0.9 * least, "loss of the spurious minimiser", fontsize=8, va="top")
    if largest_rise(by_kind["identity"].losses):
        panel.text(0, 1.08 * highest, "identity: a peak each time that w, shortened to 0, turns round", fontsize=8)
    staying = " and ".join(_LABELS[kind] for kind, descent in by_kind.items() if outcome(descent) == "spurious")
    panel.set_title(f"b. Beside the spurious minimiser: {staying or 'none'} stay", fontsize=10)
    panel.set_xlabel("iteration")
    panel.set_ylabel("population loss")


def _draw_over_angle(across: Axes, along: Axes, *, samples: int, seed: int) -> None:
    """E[g] at the v of the spurious minimiser and |w| = 1, taken apart along the gradient of the loss and along w."""
    lines, dots = np.linspace(0, math.pi, 181), np.linspace(0, math.pi, 13)
    estimates = [two_layer.monte_carlo(_turned(theta), samples=samples, seed=seed + i) for i, theta in enumerate(dots)]
    for kind in COARSE_DERIVATIVES:
        closed = np.array([two_layer.coarse_gradient(_turned(theta), kind) for theta in lines])
        for panel, entry in ((along, 0), (across, 1)):
            panel.plot(np.degrees(lines), closed[:, entry], _LINES[kind], color=_COLORS[kind])
            panel.errorbar(
                np.degrees(dots),
                [estimate[kind].mean[entry] for estimate in estimates],
                [2 * estimate[kind].standard_error[entry] for estimate in estimates],
                fmt="o",
                markersize=3,
                capsize=3,
                color=_COLORS[kind],
            )
    across.set_title("c. Expected coarse gradient along that of the loss: never negative", fontsize=10)
    along.set_title("d. Along w: at 180°, the spurious minimiser, only the identity is not 0", fontsize=10)
    across.set_ylabel("E[g] along df/dw")
    along.set_ylabel("E[g] along w")
    for panel in (across, along):
        panel.axhline(0, color="black", linewidth=0.8, linestyle=":", zorder=0)
        panel.set_xticks(range(0, 181, 30))
        panel.set_xlabel("angle between w and w* in degrees (dots: samples ± 2 standard errors)")


def _turned(theta: float) -> two_layer.Point:
    """The first axis along w and the second along df/dw, so that entries of E[g] are the two parts."""
    # df/dw points to w*, the side of the second axis, because v.v* is negative at a spurious minimiser.
    w_star = np.array([math.cos(theta), math.sin(theta), 0.0])
    return two_layer.Point(v=SPURIOUS_V, w=np.array([1.0, 0.0, 0.0]), v_star=V_STAR, w_star=w_star)


if __name__ == "__main__":
    app.run(main)
