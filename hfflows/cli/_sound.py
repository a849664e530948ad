"""Commands that keep artifacts sound: verify, repair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hfflows
from hfflows.cli._command import KEY_HELP, argument, command, count, resolve, store_of
from hfflows.errors import SettingsError

if TYPE_CHECKING:
    import argparse

    from hfflows.artifacts import VerifyLevel, VerifyReport

_FOUND = {
    "size": "all objects are there and large enough",
    "sample": "what was read is as saved",
    "full": "every byte is as saved",
}


@command(
    "verify",
    argument("key", nargs="?", help=KEY_HELP),
    argument("--all", action="store_true", help="every artifact of the store"),
    argument("--kind", help="with --all: only this kind"),
    argument("--level", choices=list(_FOUND), help="default: full; with --all: size"),
)
def _verify(options: argparse.Namespace) -> int:
    """Compare artifacts with what was saved: by size, by sample, or every byte."""
    if options.all == (options.key is not None) or (options.kind and not options.all):
        msg = "verify takes a key, or --all (and then --kind)."
        raise SettingsError(msg)
    if options.all:
        return _verify_all(options)
    store = store_of(options)
    ref = resolve(options.key, store)
    report = hfflows.verify_artifact(ref, level=options.level or "full", store=store)
    print(f"{ref.key}: {_summary(report)}")
    return 0


def _verify_all(options: argparse.Namespace) -> int:
    level: VerifyLevel = options.level or "size"
    sound = damaged = 0
    for verdict in hfflows.verify_all(options.kind, level=level, store=store_of(options)):
        if verdict.report is not None:
            sound += 1
        else:
            damaged += 1
            print(verdict.error)  # begins with the key
    print(f"{count(sound, 'artifact')} sound ({_FOUND[level]}), {damaged:,} damaged")
    return 1 if damaged else 0


def _summary(report: VerifyReport) -> str:
    objects, files = count(report.objects, "object"), count(report.files, "file")
    read = f", {report.bytes_read:,} bytes read" if report.bytes_read else ""
    return f"{_FOUND[report.level]}: {files} in {objects}{read}"


@command(
    "repair",
    argument("key", help=KEY_HELP),
    argument("--endpoint", metavar="URL", help="of a Hub of your own; else HF_ENDPOINT"),
)
def _repair(options: argparse.Namespace) -> None:
    """Fetch the damaged parts of a snapshot again from the Hub (token: HF_TOKEN)."""
    store = store_of(options)
    ref = resolve(options.key, store)
    report = hfflows.repair_snapshot(ref, endpoint=options.endpoint, store=store)
    if report.files:
        files, objects = count(len(report.files), "file"), count(len(report.objects), "object")
        print(f"{ref.key}: {files} in {objects} repaired, {report.bytes_fetched:,} bytes fetched")
    else:
        print(f"{ref.key}: nothing to repair")
