"""Stores that fail, for tests of whatever is built on a store."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Literal, TypeVar

from hfflows.errors import StorageUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Buffer

    from hfflows.storage import ObjectInfo, Store

Result = TypeVar("Result")


class FaultyStore:
    """A store whose n-th call fails, before its effect or after it.

    `after` is a reply that is lost: the object is there, the caller is told otherwise.

    Args:
        store: The store that does the work.
        fail_at: Which call fails, from 1; `None` fails none and only counts.
        when: Whether the call's effect has happened when it fails.
        delay_seconds: Added to every call: what a store far away costs.
    """

    def __init__(
        self,
        store: Store,
        *,
        fail_at: int | None = None,
        when: Literal["before", "after"] = "before",
        delay_seconds: float = 0.0,
    ) -> None:
        self._store = store
        self._fail_at = fail_at
        self._when = when
        self._delay_seconds = delay_seconds
        self._lock = threading.Lock()
        self.calls = 0
        """How many calls came so far."""

    @property
    def url(self) -> str:  # docstring inherited
        return self._store.url

    def _call(self, key: str, function: Callable[[], Result]) -> Result:
        with self._lock:
            self.calls += 1
            is_hit = self.calls == self._fail_at
        if self._delay_seconds:
            time.sleep(self._delay_seconds)
        if is_hit and self._when == "before":
            raise StorageUnavailableError(f"{key}: injected fault before the effect.", key=key)
        result = function()
        if is_hit:
            raise StorageUnavailableError(f"{key}: injected fault, the reply is lost.", key=key)
        return result

    def get(self, key: str) -> bytes:  # docstring inherited
        return self._call(key, lambda: self._store.get(key))

    def get_range(self, key: str, offset: int, length: int) -> Buffer:  # docstring inherited
        return self._call(key, lambda: self._store.get_range(key, offset, length))

    def head(self, key: str) -> ObjectInfo | None:  # docstring inherited
        return self._call(key, lambda: self._store.head(key))

    def put(self, key: str, data: Buffer) -> None:  # docstring inherited
        self._call(key, lambda: self._store.put(key, data))

    def put_stream(self, key: str, chunks: Iterable[Buffer]) -> None:  # docstring inherited
        self._call(key, lambda: self._store.put_stream(key, chunks))

    def create(self, key: str, data: Buffer) -> None:  # docstring inherited
        self._call(key, lambda: self._store.create(key, data))

    def delete(self, keys: Sequence[str]) -> None:  # docstring inherited
        self._call(keys[0] if keys else "", lambda: self._store.delete(keys))

    def list(
        self, prefix: str, *, after: str | None = None
    ) -> Iterator[ObjectInfo]:  # docstring inherited
        return self._call(prefix, lambda: self._store.list(prefix, after=after))
