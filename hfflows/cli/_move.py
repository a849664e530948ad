"""Commands that move artifacts: copy, bundle, unbundle, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hfflows
from hfflows.cli._command import KEY_HELP, argument, command, count, resolve, store_of
from hfflows.errors import ArtifactNotFoundError

if TYPE_CHECKING:
    import argparse


@command(
    "copy",
    argument("keys", nargs="+", metavar="KEY", help=KEY_HELP),
    argument("--to", required=True, metavar="URL", help="s3://bucket/prefix or a directory"),
)
def _copy(options: argparse.Namespace) -> None:
    """Copy artifacts into another store, verified; what is there already is not moved."""
    store, target = store_of(options), hfflows.open_store(options.to)
    for key in options.keys:
        report = hfflows.TransferReport()
        ref = hfflows.copy_artifact(resolve(key, store), to=target, store=store, report=report)
        print(f"{ref.key}: {report.bytes_sent:,} bytes sent to {target.url}")


@command(
    "bundle",
    argument("path", metavar="FILE", help="file to write, a plain tar"),
    argument("keys", nargs="+", metavar="KEY", help=KEY_HELP),
)
def _bundle(options: argparse.Namespace) -> None:
    """Write artifacts into one file, for a store that no network reaches."""
    store = store_of(options)
    refs = [resolve(key, store) for key in options.keys]
    path = hfflows.export_bundle(refs, options.path, store=store)
    print(f"{path}: {count(len(refs), 'artifact')}, {path.stat().st_size:,} bytes")


@command("unbundle", argument("path", metavar="FILE", help="what `hfflows bundle` wrote"))
def _unbundle(options: argparse.Namespace) -> None:
    """Take the artifacts of a bundle into the store, verified."""
    for ref in hfflows.import_bundle(options.path, store=store_of(options)):
        print(ref.key)


@command(
    "delete",
    argument("key", help=KEY_HELP),
    argument("--force", action="store_true", help="although an alias points to it"),
)
def _delete(options: argparse.Namespace) -> None:
    """Delete an artifact; its bytes are freed by collection."""
    store = store_of(options)
    # A key is not resolved first: that of a damaged reference can be deleted too.
    key = resolve(options.key, store).key if options.key.startswith("@") else options.key
    if store.head(key) is None:
        msg = f"{store.url} has nothing at {key}; see `hfflows list`."
        raise ArtifactNotFoundError(msg, key=key)
    hfflows.delete_artifact(key, force=options.force, store=store)
    print(f"{key}: deleted")
