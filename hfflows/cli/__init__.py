"""The `hfflows` command: look into a store, move artifacts, keep them sound; without Prefect."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import hfflows
from hfflows.cli import _doctor, _export, _keep, _look, _move, _sound
from hfflows.cli._command import COMMANDS
from hfflows.errors import HfflowsError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMAND_MODULES = (_look, _export, _move, _keep, _sound, _doctor)
"""Importing one registers its commands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 1 after printing what is wrong.

    Args:
        arguments: Words after `hfflows`; `None` takes them from the command line.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except HfflowsError as error:
        print(f"hfflows: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hfflows", description=__doc__)
    parser.add_argument("--version", action="version", version=hfflows.__version__)
    parser.add_argument(
        "--store", metavar="URL", help="s3://bucket/prefix or a directory; else HFFLOWS_STORE_URL"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = commands.add_parser(command.name, help=command.help, description=command.help)
        for argument in command.arguments:
            subparser.add_argument(*argument.names, **argument.options)
        subparser.set_defaults(run=command.run)
    return parser
