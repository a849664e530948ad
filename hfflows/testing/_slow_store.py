"""Stores that are far away, for measurements and for tests of what overlaps."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TypeVar

from hfflows.errors import SettingsError
from hfflows.testing._store_wrapper import StoreWrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Buffer

    from hfflows.storage import ObjectInfo, Store

Result = TypeVar("Result")

_PAGE = 1000  # keys in one answer to a listing


class SlowStore(StoreWrapper):
    """A store at the end of a line: every call takes a while, and all of them share the line.

    Args:
        store: The store that does the work.
        latency_seconds: Added to every call, and to every thousand keys of a listing. Calls in
            different threads wait at the same time.
        bytes_per_second: What all calls together can carry, both ways; `None` is no limit.
    """

    def __init__(
        self,
        store: Store,
        *,
        latency_seconds: float = 0.0,
        bytes_per_second: float | None = None,
    ) -> None:
        super().__init__(store)
        if latency_seconds < 0 or (bytes_per_second is not None and bytes_per_second <= 0):
            msg = "A latency is not negative, and a line carries more than nothing."
            raise SettingsError(msg)
        self._latency_seconds = latency_seconds
        self._bytes_per_second = bytes_per_second
        self._lock = threading.Lock()
        self._line_free_at = 0.0

    def get(self, key: str, *, limit: int | None = None) -> bytes:  # docstring inherited
        data = super().get(key, limit=limit)
        self._carry(data)
        return data

    def get_range(self, key: str, offset: int, length: int) -> Buffer:  # docstring inherited
        data = super().get_range(key, offset, length)
        self._carry(data)
        return data

    def stream_range(
        self, key: str, offset: int, length: int
    ) -> Iterator[Buffer]:  # docstring inherited
        yield from self._carried(super().stream_range(key, offset, length))

    def put(self, key: str, data: Buffer) -> None:  # docstring inherited
        self._carry(data)
        super().put(key, data)

    def put_stream(self, key: str, chunks: Iterable[Buffer]) -> None:  # docstring inherited
        super().put_stream(key, self._carried(chunks))

    def create(self, key: str, data: Buffer) -> None:  # docstring inherited
        self._carry(data)
        super().create(key, data)

    def list(
        self, prefix: str, *, after: str | None = None
    ) -> Iterator[ObjectInfo]:  # docstring inherited
        for number, info in enumerate(super().list(prefix, after=after)):
            if number and number % _PAGE == 0:
                time.sleep(self._latency_seconds)
            yield info

    def _call(self, method: str, key: str, function: Callable[[], Result]) -> Result:
        time.sleep(self._latency_seconds)
        return function()

    def _carried(self, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        for chunk in chunks:
            self._carry(chunk)
            yield chunk

    def _carry(self, data: Buffer) -> None:
        """Wait until the line has carried `data`, after everything that came before it."""
        if self._bytes_per_second is None:
            return
        seconds = memoryview(data).nbytes / self._bytes_per_second
        with self._lock:
            done_at = max(time.monotonic(), self._line_free_at) + seconds
            self._line_free_at = done_at
        time.sleep(max(0.0, done_at - time.monotonic()))
