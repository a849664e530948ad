"""What can go wrong on purpose: faults a local server applies to matching requests.

A fault is a value. The server asks the queue once per request; the first fault that
matches and is not used up is applied, so faults that match the same request are consumed
in the order in which they were injected.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hfflows.testing._ledger import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong, how often, and for which requests."""

    match: str
    """Regular expression searched in `METHOD /path`, path unquoted and without its query."""
    origin: Origin | None = None
    """Only requests to this origin; `None` is either."""
    skip: int = 0
    """Let this many matching requests through first."""
    times: int | None = 1
    """Apply to this many requests; `None` is every one until the faults are cleared."""

    status: int | None = None
    """Answer with this status instead of the real answer."""
    retry_after: int | str | None = None
    """Seconds, or a date, in a `Retry-After` header of that answer."""
    rate_limit: str | None = None
    """`RateLimit` header of that answer, for example `"api";r=0;t=1`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """More headers for the answer, whether it is replaced or not."""
    hang_up: bool = False
    """End the connection without any answer."""
    applied: bool = False
    """With `status` or `hang_up`: the request is carried out first and only its reply is lost."""

    cut_after: int | None = None
    """End the connection after this many bytes of the answer's body."""
    cut_upload_after: int | None = None
    """End the connection after this many bytes of the request's body."""
    how: Literal["close", "reset"] = "close"
    """How a connection ends: an orderly FIN, or a RST that may discard bytes under way."""

    stall_seconds: float = 0
    """Silence for this long."""
    stall_after: int | None = None
    """Bytes of the answer's body sent before the silence; `None` is before its first header."""

    flip_at: int | None = None
    """Invert the byte at this offset of the file, in whichever range it is asked for."""
    etag: str | None = None
    """Replace `ETag` and `X-Linked-Etag`, where present, by this value in quotes."""
    replace: tuple[str, str] | None = None
    """In an answer that is no file, replace one text by another, wherever it stands: what a
    listing announces of a file, the commit of a branch."""


class FaultQueue:
    """The faults that are still to happen, in order; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: list[_Pending] = []

    def add(self, faults: Iterable[Fault]) -> None:
        """Append `faults`; one that matches later requests as well stays until used up."""
        with self._lock:
            self._pending += [
                _Pending(fault, re.compile(fault.match), fault.skip, fault.times)
                for fault in faults
            ]

    def clear(self) -> None:
        """Forget every fault, used up or not."""
        with self._lock:
            self._pending.clear()

    def take(self, origin: Origin, line: str) -> Fault | None:
        """Use up and return the fault for a request, if any."""
        with self._lock:
            for pending in self._pending:
                if pending.takes(origin, line):
                    return pending.fault
        return None


@dataclass(slots=True)
class _Pending:
    fault: Fault
    pattern: re.Pattern[str]
    skip: int
    times: int | None

    def takes(self, origin: Origin, line: str) -> bool:
        if self.times == 0 or self.fault.origin not in {None, origin}:
            return False
        if self.pattern.search(line) is None:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True
