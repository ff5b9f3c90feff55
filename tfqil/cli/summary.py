"""Shows what every layer of a trained model got and costs: method, bits, codes, bytes and multiplications."""

from __future__ import annotations

import argparse

from tfqil.cli import console, trained_model

USAGE = "MODEL [--all] [--json]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Defines the arguments of the command."""
    parser.add_argument("model", metavar="MODEL", help="the trained model: .keras, .h5 or a SavedModel folder")
    parser.add_argument("--all", action="store_true", help="show also layers without a grid, and all reasons")


def run(arguments: argparse.Namespace) -> int:
    """Reads the model and prints its summary."""
    model = trained_model.load(arguments.model)
    from tfqil.report.summary import summary  # Loads TensorFlow: only after the file was found to be there.

    try:
        report = summary(model)
    except (TypeError, ValueError) as error:
        raise console.InputError(console.one_sentence(error)) from error
    if arguments.json:
        unmatched = {"unmatched_rules": list(report.unmatched_rules)}
        console.print_json({"layers": report.to_dict(), "totals": report.totals(), **unmatched})
    else:
        below = [*report.unmatched_in_words(), *report.totals_in_words()]
        console.print_blocks(report.table(everything=arguments.all), *below)
    return 0
