"""The command that asks whether a store keeps what hfflows rests on: doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hfflows
from hfflows.cli._command import argument, command, count, store_of

if TYPE_CHECKING:
    import argparse


@command(
    "doctor",
    argument(
        "--large-mb", type=int, default=40, metavar="MB", help="size of the large object, 40 MB"
    ),
)
def _doctor(options: argparse.Namespace) -> int:
    """Try in seconds what hfflows expects of the store, leaving nothing there."""
    store = store_of(options)
    findings = hfflows.diagnose(store, large_bytes=options.large_mb * 1_000_000)
    for finding in findings:
        print(f"{finding.verdict:<4}  {finding.check:<18}  {finding.detail}")
        if finding.verdict != "ok":
            print(f"{'':<26}{finding.meaning}")
    wrong = sum(finding.verdict != "ok" for finding in findings)
    print(f"{store.url}: {count(len(findings), 'check')}, {wrong} of them with a finding")
    return int(any(finding.verdict == "fail" for finding in findings))
