"""What a command is made of: one function, decorated.

    @command("greet", argument("name", help="whom"))
    def _greet(options: argparse.Namespace) -> None:
        \"\"\"Say hello.\"\"\"

The docstring's first line is the help. A command prints its result and returns nothing, or an
exit status; it raises hfflows' own errors, which `main` prints as one line.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hfflows

if TYPE_CHECKING:
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

Run = Callable[[argparse.Namespace], "int | None"]

KEY_HELP = "key of an artifact, or @alias"


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a command, as `argparse` takes it."""

    names: tuple[str, ...]
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Command:
    """A command: `hfflows <name> …`."""

    name: str
    arguments: tuple[Argument, ...]
    run: Run

    @property
    def help(self) -> str:
        """Return what the command does, in a line."""
        line = (self.run.__doc__ or "").partition("\n")[0].rstrip(".")
        return line[:1].lower() + line[1:]


COMMANDS: list[Command] = []


def argument(*names: str, **options: Any) -> Argument:
    """Return an argument; names and options are those of `argparse`'s `add_argument`."""
    return Argument(names, options)


def command(name: str, *arguments: Argument) -> Callable[[Run], Run]:
    """Make a function the command `name`."""

    def register(run: Run) -> Run:
        COMMANDS.append(Command(name, arguments, run))
        return run

    return register


def store_of(options: argparse.Namespace) -> Store:
    """Return the store that the command line or the environment names."""
    return hfflows.open_store(options.store)


def resolve(key: str, store: Store) -> ArtifactRef:
    """Return the reference that a key or an `@alias` stands for."""
    if key.startswith("@"):
        return hfflows.resolve_alias(key[1:], store=store)
    return hfflows.resolve_ref(key, store=store)


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `2 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
