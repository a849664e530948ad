"""`python -m benchmarks [NAME …]`: run benchmarks and write what was measured."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cases import FULL, SMALL, all_benchmarks
from benchmarks.lab import Lab
from benchmarks.machine import commit, describe_machine, versions
from benchmarks.plot import draw
from benchmarks.process import ROOT
from benchmarks.report import markdown
from benchmarks.run import run
from benchmarks.server import BenchServer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.results import Outcome
    from benchmarks.spec import Benchmark

OURS = (
    "hfflows",
    "checkpointer",
    "training",
    "torch-loop",
    "prefect-task",
    "snapshots",
    "onnx-metadata",
    "onnx-config",
    "onnx-models",
)
"""Contenders whose failure fails the run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 when something of ours did not run, whatever the bars say."""
    options = _parser().parse_args(arguments)
    benchmarks = _chosen(options.names, all_benchmarks(SMALL if options.small else FULL))
    if options.contenders:
        for benchmark in benchmarks:
            benchmark.keep_only(options.contenders.split(","))
        benchmarks = [benchmark for benchmark in benchmarks if benchmark.rows]
    if options.list:
        for benchmark in benchmarks:
            print(f"{benchmark.name:24} {benchmark.description}")
        return 0
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    outcomes = []
    with BenchServer() as server:
        for benchmark in benchmarks:
            about = _about(options)
            with Lab(server, is_quiet=not options.small) as lab:
                outcome = run(benchmark, lab, rounds=options.rounds, say=_say)
            _write(outcome, about, output, options)
            outcomes.append(outcome)
    return int(any(_ours_failed(outcome) for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks or groups; else all")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    parser.add_argument("--rounds", type=int, default=5, help="measured, after one to warm up")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--contenders", help="only these, separated by commas")
    parser.add_argument("--output", default=ROOT / ".cache" / "bench", help="where results go")
    return parser


def _chosen(names: Sequence[str], benchmarks: list[Benchmark]) -> list[Benchmark]:
    known = {name for benchmark in benchmarks for name in (benchmark.name, benchmark.group)}
    if unknown := [name for name in names if name not in known]:
        listed = ", ".join(sorted(known - {""}))
        sys.exit(f"There is no benchmark {', '.join(unknown)}; there are {listed}.")
    return [one for one in benchmarks if not names or {one.name, one.group} & set(names)]


def _about(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": options.rounds,
        "small": options.small,
        "machine": describe_machine(),
        "versions": versions(),
        "commit": commit(),
    }


def _write(
    outcome: Outcome, about: dict[str, Any], output: Path, options: argparse.Namespace
) -> None:
    name = outcome.benchmark.name
    document = {**about, **outcome.to_json()}
    text = json.dumps(document, indent=1, allow_nan=False)
    (output / f"{name}.json").write_text(text + "\n")
    report = markdown(outcome, rounds=options.rounds, is_small=options.small)
    (output / f"{name}.md").write_text(report)
    print(f"\n{report}", flush=True)
    try:
        draw(outcome, output / f"{name}.png")
    except ImportError:
        _say(f"{name}: no plot, matplotlib is not installed here")


def _ours_failed(outcome: Outcome) -> bool:
    ours = {row.name for row in outcome.benchmark.rows if row.contender in OURS}
    return bool(ours & outcome.failures.keys())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
