"""What each method does for accuracy, on handwritten digits: the table of the README.

    python examples/methods.py [--seeds=3] [--output=examples/output/methods.json]

For each seed trains one float network and finetunes it with every method: binary weights with blended descent at
several shares rho, ternary weights with and without BinaryRelax, powers of two with 2 to 6 bits. Activations have 4
bits. Each network is converted to an integer-only file and verified (powers of two with 5 and 6 bits, unlimited: in
float, with float16 constants); accuracies are those of the files. Prints mean, sample standard deviation and the
difference to the first method of each group, paired by seed.
"""

from __future__ import annotations

import pathlib
import statistics

import recipes
import results
import rich.table
import runs
from absl import app, flags, logging

import tfqil

_SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds, from 0.", lower_bound=2)
_FLOAT_EPOCHS = flags.DEFINE_integer("float_epochs", 60, "Epochs of the float network.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 20, "Epochs of each quantized network.", lower_bound=2)
_WIDTH = flags.DEFINE_integer("width", 16, "Channels of the first block.", lower_bound=4)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the accuracies.")

_BCGD, _LBW = tfqil.BCGDQuantizeConfig, tfqil.LBWQuantizeConfig
# Each group starts with its reference.
GROUPS = (
    [recipes.Recipe(name=f"binary, rho {rho:g}", config=_BCGD(1, 4), rho=rho) for rho in (0.0, 1e-5, 1e-4, 1e-3, 1e-2)]
    + [recipes.Recipe(name="binary, BinaryRelax", config=_BCGD(1, 4, relax=True), exact_share=0.25)],
    [
        recipes.Recipe(name="ternary", config=_BCGD(2, 4)),
        recipes.Recipe(name="ternary, BinaryRelax", config=_BCGD(2, 4, relax=True), exact_share=0.25),
    ],
    [recipes.Recipe(name=f"LBW {bits} bits", config=_LBW(bits, 4)) for bits in (4, 2, 3)]
    + [recipes.Recipe(name="LBW 5 bits, int8_exact", config=_LBW(5, 4, int8_exact=True))]
    + [recipes.Recipe(name=f"LBW {bits} bits, float16", config=_LBW(bits, 4), allow_float=True) for bits in (5, 6)],
)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)
    accuracies: dict[str, list[float]] = {}
    for seed in range(_SEEDS.value):
        rows, _ = recipes.compare(
            [recipe for group in GROUPS for recipe in group],
            seed=seed,
            float_epochs=_FLOAT_EPOCHS.value,
            epochs=_EPOCHS.value,
            width=_WIDTH.value,
            smallest=False,
        )
        require_integer_only(rows)
        for row in rows:
            accuracies.setdefault(row.name, []).append(row.file_accuracy)
    results.console().print(table(accuracies))
    if _OUTPUT.value:
        runs.write_json(pathlib.Path(_OUTPUT.value), accuracies)


def require_integer_only(rows: list[results.Row]) -> None:
    """Stops with the name of the first file that computes in float without need, or not as its network does."""
    may_be_float = {"float"} | {recipe.name for group in GROUPS for recipe in group if recipe.allow_float}
    for row in rows:
        if row.name not in may_be_float and not row.accepted:
            raise SystemExit(f"Got the file of {row.name!r}, which verify does not accept: {row.parity}.")


def table(accuracies: dict[str, list[float]]) -> rich.table.Table:
    """One row per method: mean, spread, each seed, and the mean difference to the group's reference."""
    result = rich.table.Table(title="Digits, accuracy of the integer files on 899 test images, %")
    for heading in ("method", "mean", "spread", "per seed", "against the first of its group"):
        result.add_column(heading, justify="left" if heading == "method" else "right")
    references = {recipe.name: group[0].name for group in GROUPS for recipe in group}
    for name, values in accuracies.items():
        reference = references.get(name, name)
        differences = [value - other for value, other in zip(values, accuracies[reference], strict=True)]
        result.add_row(
            name,
            f"{statistics.mean(values):.2f}",
            f"{statistics.stdev(values):.2f}",
            " ".join(f"{value:.2f}" for value in values),
            "-" if reference == name else f"{statistics.mean(differences):+.2f} ± {statistics.stdev(differences):.2f}",
        )
    return result


if __name__ == "__main__":
    app.run(main)
