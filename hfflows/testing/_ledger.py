"""What a local server was asked and what it sent: one record per request.

Bytes are counted before they are handed to the socket and corrected when sending fails.
A client that has read an answer to its end therefore always finds it counted.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from typing import Literal

Origin = Literal["hub", "cdn"]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request, as the server saw it. Byte counts are of bodies, without headers."""

    time: float
    """Seconds since the epoch, when the request line had been read."""
    origin: Origin
    method: str
    path: str
    """Unquoted, without the query."""
    query: str
    status: int
    """0 when the connection ended before an answer."""
    bytes_sent: int
    bytes_received: int
    range: str | None
    """The `Range` header as sent."""
    has_token: bool
    """Whether there was an `Authorization` header."""


@dataclass(slots=True)
class Entry:
    """A record being written; only the thread that serves the request changes it."""

    origin: Origin
    method: str
    path: str
    query: str
    range: str | None
    has_token: bool
    time: float = 0.0
    status: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def freeze(self) -> RequestRecord:
        """Return the record as it stands."""
        return RequestRecord(
            time=self.time,
            origin=self.origin,
            method=self.method,
            path=self.path,
            query=self.query,
            status=self.status,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            range=self.range,
            has_token=self.has_token,
        )


class Ledger:
    """Every request since the start or the last reset, in order of arrival."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[Entry] = []

    def open(self, entry: Entry) -> Entry:
        """Start the record of a request that has just arrived."""
        entry.time = time.time()
        with self._lock:
            self._entries.append(entry)
        return entry

    def records(self) -> list[RequestRecord]:
        """Return a copy that later requests do not change."""
        with self._lock:
            return [entry.freeze() for entry in self._entries]

    def clear(self) -> None:
        """Forget all requests."""
        with self._lock:
            self._entries.clear()


def select(
    records: list[RequestRecord],
    path: str,
    *,
    method: str | None,
    origin: Origin | None,
    status: int | None,
) -> list[RequestRecord]:
    """Return the records whose path matches the regular expression and the rest equals."""
    pattern = re.compile(path)
    return [
        record
        for record in records
        if pattern.search(record.path)
        and method in {None, record.method}
        and origin in {None, record.origin}
        and status in {None, record.status}
    ]
