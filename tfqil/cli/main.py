"""Finds the command, reads its arguments, runs it, and turns what goes wrong into one sentence.

The exit status is 0 when done, 1 when a verification failed, 2 for wrong usage and unusable input.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from absl import app, flags
from absl.flags import argparse_flags

from tfqil.cli import benchmark, console, inspect, summary, verify

PROGRAM = "python -m tfqil"
FAILED_INPUT = 2

_COMMANDS = {"inspect": inspect, "verify": verify, "benchmark": benchmark, "summary": summary}
_NAMES = "inspect, verify, benchmark or summary"


def main() -> None:
    """Entry point of `python -m tfqil`; ends the process."""
    app.run(execute, flags_parser=parse)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads a command line, program name included; the first argument names the command.

    Raises:
        SystemExit: status 2 for wrong usage, 0 after --help.
    """
    first = arguments[1] if len(arguments) > 1 else ""
    if first in _COMMANDS:
        parser = _parser(first)
    elif first in ("-h", "--help", "--helpshort", "--helpfull"):
        parser = _overview()
    else:
        _refuse(first)
    try:
        return parser.parse_args(list(arguments[2 if first in _COMMANDS else 1 :]))
    except flags.Error as error:
        parser.error(console.one_sentence(error))


def execute(arguments: argparse.Namespace) -> int:
    """Runs a command that `parse` returned; returns the exit status."""
    try:
        with console.native_logs_hidden():
            return int(arguments.run(arguments))
    except console.InputError as error:
        console.print_error(arguments.program, console.one_sentence(error))
        return FAILED_INPUT


class _Parser(argparse_flags.ArgumentParser):
    """Says what is wrong in one sentence, where argparse prints the usage first."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with one sentence and status 2."""
        usage = " ".join(self.format_usage().split()).removeprefix("usage: ")
        console.print_error(self.prog, f"got wrong arguments ({message}), expected `{usage}`: see `{self.prog} --help`")
        raise SystemExit(FAILED_INPUT)


def _parser(name: str) -> _Parser:
    command = _COMMANDS[name]
    description = (command.__doc__ or "").strip()
    parser = _Parser(
        prog=f"{PROGRAM} {name}",
        usage=f"{PROGRAM} {name} {command.USAGE}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(run=command.run, program=parser.prog)
    return parser


def _overview() -> _Parser:
    lines = [f"  {name:<10} {(command.__doc__ or '').splitlines()[0]}" for name, command in _COMMANDS.items()]
    return _Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="\n".join(["commands:", *lines, "", f"{PROGRAM} COMMAND --help describes a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _refuse(first: str) -> NoReturn:
    if not first:
        message = f"got no command, expected {_NAMES}: see `{PROGRAM} --help`"
    elif first.startswith("-"):
        message = f"got the option {first!r} first, expected a command ({_NAMES}): put options behind the command"
    else:
        nearest = difflib.get_close_matches(first, _COMMANDS, n=1)
        advice = f"did you mean {nearest[0]!r}?" if nearest else f"see `{PROGRAM} --help`"
        message = f"got the unknown command {first!r}, expected {_NAMES}: {advice}"
    console.print_error(PROGRAM, message)
    raise SystemExit(FAILED_INPUT)
