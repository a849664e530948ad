"""Doctor: does this very bucket keep the promises that hfflows rests on?

`diagnose` works under a prefix of its own, `doctor/<id>/`, and leaves nothing there.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts._doctor_checks import CHECKS, LARGE_BYTES, Check, Scratch, Verdict
from hfflows.errors import AccessDeniedError, HfflowsError

if TYPE_CHECKING:
    from hfflows.storage import Store

logger = logging.getLogger("hfflows.artifacts")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    verdict: Verdict
    """`fail`: something of hfflows does not work here. `warn`: it does, with less certainty."""
    detail: str
    """What was measured, or what went wrong."""
    meaning: str
    """What follows for the user."""


def diagnose(store: Store, *, large_bytes: int = LARGE_BYTES) -> list[Finding]:
    """Return a finding for each thing that hfflows expects of a store, in seconds.

    Reads, writes and deletes about 1,100 small objects and one large one. What a store
    cannot do, or does not allow, is a finding and never an error; when it cannot be written
    and read at all, that is the only one.

    Args:
        store: The user's own.
        large_bytes: Size of the large object. From 16 MiB on it goes in parts.
    """
    scratch = Scratch(store, keys.doctor_prefix(keys.new_id()), large_bytes)
    try:
        return _examine(scratch)
    finally:
        _clean(scratch)


def _examine(scratch: Scratch) -> list[Finding]:
    first, *others, last = CHECKS
    findings = [_run(first, scratch)]
    if findings[0].verdict == "fail":  # nothing else can be asked
        return findings
    with ThreadPoolExecutor(1, thread_name_prefix="hfflows-doctor") as beside:
        slow = {check: beside.submit(_run, check, scratch) for check in others if check.is_slow}
        quick = {check: _run(check, scratch) for check in others if not check.is_slow}
    findings += [quick[check] if check in quick else slow[check].result() for check in others]
    return [*findings, _run(last, scratch)]


def _run(check: Check, scratch: Scratch) -> Finding:
    try:
        verdict, detail = check.run(scratch)
    except AccessDeniedError as error:
        verdict, detail = "fail", f"These credentials do not allow it. {error}"
    except HfflowsError as error:
        verdict, detail = "fail", str(error)
    meaning = check.if_ok if verdict == "ok" else check.if_not
    return Finding(check.name, verdict, detail, meaning)


def _clean(scratch: Scratch) -> None:
    """Delete what is left, one by one, since batches may be what is broken."""
    try:
        for key in scratch.left():
            scratch.store.delete([key])
    except HfflowsError as error:
        logger.warning("Objects under %s could not be deleted: %s", scratch.prefix, error)
