"""Commands about an exported file: trace, rebuild."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hfflows
from hfflows.cli._command import argument, command, count, resolve, store_of
from hfflows.errors import HfflowsError

if TYPE_CHECKING:
    import argparse

    from hfflows.export import Link, RebuildReport, RebuiltGraph
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

SOURCE_HELP = "an .onnx file, a directory with one, the key of an export, or @alias"
_DIGITS = 12


@command(
    "trace",
    argument("source", help=SOURCE_HELP),
    argument("--json", action="store_true", help="as JSON, the file's metadata included"),
)
def _trace(options: argparse.Namespace) -> int:
    """What an ONNX file was made from, back to commit and data, as the store has it."""
    store = store_of(options)
    found = hfflows.trace(_source(options.source, store), store=store)
    if options.json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
        return int(not found.is_sound)
    for link in found.links:
        print(_row(link))
    print(f"looked in {found.store_url}, and nowhere else")
    if found.recorded_store_url not in ("", found.store_url):
        print(f"the file says that it was saved in {found.recorded_store_url}")
    return int(not found.is_sound)


def _source(text: str, store: Store) -> Path | ArtifactRef:
    if text.startswith(("@", "refs/")) and not Path(text).exists():
        return resolve(text, store)
    return Path(text)


def _row(link: Link) -> str:
    what = link.name if link.kind in ("file", "hub") else link.key
    if link.kind == "snapshot" and "@" in link.name:
        what = f"{link.name}  {link.key}"
    branch = f"{'   ' * (link.depth - 1)}└─ " if link.depth else ""
    facts = [f"run {link.run}" if link.run else "", link.detail]
    when = link.created_at[:19].replace("T", " ")
    line = f"{link.state:<9}  {link.digest[:_DIGITS]:<{_DIGITS}}  {when:<19}  "
    return line + "  ".join(filter(None, [f"{branch}{link.kind}", what, *facts]))


@command(
    "rebuild",
    argument("source", help=SOURCE_HELP),
    argument("--output", metavar="DIR", help="new or empty directory that keeps the new export"),
    argument("--trust-remote-code", action="store_true", help="run the model's own code again"),
    argument("--endpoint", metavar="URL", help="of a Hub of your own; else HF_ENDPOINT"),
    argument("--timeout", type=float, default=1800.0, metavar="S", help="seconds; 1800"),
    argument("--json", action="store_true", help="the report as JSON"),
)
def _rebuild(options: argparse.Namespace) -> int:
    """Export again from what a file records: 0 the same graph, 1 another one, 2 it could not."""
    try:
        store = store_of(options)
        report = hfflows.rebuild(
            _source(options.source, store),
            options.output,
            trust_remote_code=options.trust_remote_code,
            endpoint=options.endpoint,
            timeout_seconds=options.timeout,
            store=store,
        )
    except HfflowsError as error:
        print(f"hfflows: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        _print_report(report)
    return int(not report.is_identical)


def _print_report(report: RebuildReport) -> None:
    for graph in report.graphs:
        print(_verdict(graph))
        for difference in graph.differences:
            print(f"  {difference}")
    print(f"exported again from {report.model} in {report.seconds:.1f} s")
    changes = report.version_changes
    if changes:
        print(f"{count(len(changes), 'version')} of another time: {'; '.join(changes)}")
    if report.directory is not None:
        print(f"the new export is in {report.directory}")


def _verdict(graph: RebuiltGraph) -> str:
    if graph.is_identical:
        return f"{graph.name}: identical, graph {graph.sha256[:_DIGITS]}"
    then, now = graph.sha256[:_DIGITS], graph.rebuilt_sha256[:_DIGITS]
    return f"{graph.name}: different, graph {then} was made again as {now}"
