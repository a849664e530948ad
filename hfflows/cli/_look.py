"""Commands that look: list, show, lineage, load, alias, metadata."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import hfflows
from hfflows.cli._command import KEY_HELP, argument, command, resolve, store_of

if TYPE_CHECKING:
    import argparse


@command(
    "list",
    argument("kind", nargs="?", help="model, export, checkpoint, snapshot, …"),
    argument("--prefix", help="only names that begin with these parts"),
)
def _list(options: argparse.Namespace) -> None:
    """Artifacts, newest first within a name."""
    store = store_of(options)
    for ref in hfflows.list_artifacts(options.kind, prefix=options.prefix, store=store):
        when = ref.created_at.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{when}  {ref.size_bytes:>15,}  {ref.kind:<10}  {ref.name:<32}  {ref.key}")


@command("show", argument("key", help=KEY_HELP))
def _show(options: argparse.Namespace) -> None:
    """The reference under a key, as JSON."""
    print(resolve(options.key, store_of(options)).model_dump_json(indent=2))


@command(
    "lineage",
    argument("key", help=KEY_HELP),
    argument("--json", action="store_true", help="as JSON, references included"),
    argument("--kind", action="append", help="look only at these kinds for what was made from it"),
)
def _lineage(options: argparse.Namespace) -> None:
    """What an artifact was made from, and what was made from it."""
    store = store_of(options)
    found = hfflows.lineage(resolve(options.key, store), kinds=options.kind, store=store)
    if options.json:
        print(json.dumps(asdict(found), indent=2, default=lambda ref: ref.model_dump(mode="json")))
        return
    for relative in reversed(found.ancestors):
        print(_described(relative, -relative.distance))
    print(f"{0:>4}  {found.ref.kind:<10}  {'':<10}  {found.ref.key}")
    for relative in found.descendants:
        print(_described(relative, relative.distance))
    for key in found.unreadable:
        print(f"   ?  {'':<10}  unreadable  {key}")


def _described(relative: hfflows.Relative, generation: int) -> str:
    state = "" if relative.state == "there" else relative.state
    where = f"  in {relative.store_url}" if relative.state == "elsewhere" else ""
    return f"{generation:>+4}  {relative.kind:<10}  {state:<10}  {relative.key}{where}"


@command(
    "load",
    argument("key", help=KEY_HELP),
    argument("path", help="new or empty directory"),
    argument("--allow", action="append", metavar="PATTERN", help="only matching files"),
)
def _load(options: argparse.Namespace) -> None:
    """Copy an artifact into a directory, verified."""
    store = store_of(options)
    ref = resolve(options.key, store)
    print(hfflows.load_artifact(ref, options.path, allow_patterns=options.allow, store=store))


@command("alias", argument("name"))
def _alias(options: argparse.Namespace) -> None:
    """The history of an alias."""
    history = hfflows.alias_history(options.name, store=store_of(options))
    for entry in history:
        print(f"{entry.set_at:%Y-%m-%d %H:%M:%S}  {entry.epoch:>4}  {entry.ref.key}")
    if not history:
        hfflows.resolve_alias(options.name, store=store_of(options))  # says that there is none


@command("metadata", argument("path", help="an .onnx file"))
def _metadata(options: argparse.Namespace) -> None:
    """What an ONNX file says of its origin."""
    print(json.dumps(hfflows.read_onnx_metadata(options.path), indent=2, ensure_ascii=False))
