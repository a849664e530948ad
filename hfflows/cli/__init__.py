"""The `hfflows` command: look into a store and get things out of it, without Prefect."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

import hfflows
from hfflows.errors import HfflowsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hfflows.refs import ArtifactRef


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 1 after printing one error.

    Args:
        arguments: Words after `hfflows`; `None` takes them from the command line.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except HfflowsError as error:
        print(f"hfflows: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hfflows", description=__doc__)
    parser.add_argument("--version", action="version", version=hfflows.__version__)
    parser.add_argument(
        "--store", metavar="URL", help="s3://bucket/prefix or a directory; else HFFLOWS_STORE_URL"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="artifacts, newest first within a name")
    listing.add_argument("kind", nargs="?", help="model, export, checkpoint, snapshot, …")
    listing.add_argument("--prefix", help="only names that begin with these parts")
    listing.set_defaults(run=_list)

    show = commands.add_parser("show", help="the reference under a key, as JSON")
    show.add_argument("key", help="key of an artifact, or @alias")
    show.set_defaults(run=_show)

    load = commands.add_parser("load", help="copy an artifact into a directory, verified")
    load.add_argument("key", help="key of an artifact, or @alias")
    load.add_argument("path", help="new or empty directory")
    load.add_argument("--allow", action="append", metavar="PATTERN", help="only matching files")
    load.set_defaults(run=_load)

    verify = commands.add_parser("verify", help="read every byte and compare with what was saved")
    verify.add_argument("key", help="key of an artifact, or @alias")
    verify.set_defaults(run=_verify)

    alias = commands.add_parser("alias", help="the history of an alias")
    alias.add_argument("name")
    alias.set_defaults(run=_alias)

    metadata = commands.add_parser("metadata", help="what an ONNX file says of its origin")
    metadata.add_argument("path", help="an .onnx file")
    metadata.set_defaults(run=_metadata)
    return parser


def _resolve(options: argparse.Namespace) -> ArtifactRef:
    store = hfflows.open_store(options.store)
    if options.key.startswith("@"):
        return hfflows.resolve_alias(options.key[1:], store=store)
    return hfflows.resolve_ref(options.key, store=store)


def _list(options: argparse.Namespace) -> None:
    store = hfflows.open_store(options.store)
    for ref in hfflows.list_artifacts(options.kind, prefix=options.prefix, store=store):
        when = ref.created_at.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{when}  {ref.size_bytes:>15,}  {ref.kind:<10}  {ref.name:<32}  {ref.key}")


def _show(options: argparse.Namespace) -> None:
    print(_resolve(options).model_dump_json(indent=2))


def _load(options: argparse.Namespace) -> None:
    store = hfflows.open_store(options.store)
    path = hfflows.load_artifact(
        _resolve(options), options.path, allow_patterns=options.allow, store=store
    )
    print(path)


def _verify(options: argparse.Namespace) -> None:
    ref = _resolve(options)
    hfflows.verify_artifact(ref, store=hfflows.open_store(options.store))
    print(f"{ref.key}: all {ref.size_bytes:,} bytes of {ref.file_count} files are as saved")


def _alias(options: argparse.Namespace) -> None:
    history = hfflows.alias_history(options.name, store=hfflows.open_store(options.store))
    for entry in history:
        print(f"{entry.set_at:%Y-%m-%d %H:%M:%S}  {entry.epoch:>4}  {entry.ref.key}")
    if not history:
        hfflows.resolve_alias(options.name, store=hfflows.open_store(options.store))


def _metadata(options: argparse.Namespace) -> None:
    print(json.dumps(hfflows.read_onnx_metadata(options.path), indent=2, ensure_ascii=False))
