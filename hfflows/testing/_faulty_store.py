"""Stores that fail, for tests of whatever is built on a store."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from hfflows.errors import SettingsError, StorageUnavailableError
from hfflows.testing._store_wrapper import StoreWrapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hfflows.storage import Store

Result = TypeVar("Result")

_METHODS = frozenset(
    {
        "get",
        "get_range",
        "stream_range",
        "head",
        "put",
        "put_stream",
        "create",
        "list",
        "delete",
    }
)


class FaultyStore(StoreWrapper):
    """A store whose n-th call fails, before its effect or after it, or hangs.

    `after` is a reply that is lost: the object is there, the caller is told otherwise.
    `hang` is a call that nobody hears of again until `release`, at the end of the `with`
    block at the latest; only then is it carried out, late, and returns:

        with FaultyStore(store, fail_at=3, when="hang") as stuck:
            thread = threading.Thread(target=save, args=(stuck,))
            thread.start()
            assert stuck.wait_until_hanging(timeout=10)
            save(store)                                # somebody else goes on meanwhile

    Args:
        store: The store that does the work.
        fail_at: Which call fails, from 1; `None` fails none and only counts.
        when: Whether the call's effect has happened when it fails, or whether it hangs.
        only: Names of the methods that count, such as `{"put", "create"}`; `None` is all.
    """

    def __init__(
        self,
        store: Store,
        *,
        fail_at: int | None = None,
        when: Literal["before", "after", "hang"] = "before",
        only: Iterable[str] | None = None,
    ) -> None:
        super().__init__(store)
        self._fail_at = fail_at
        self._when = when
        self._only = _METHODS if only is None else frozenset(only)
        if unknown := self._only - _METHODS:
            msg = f"A store has no method {', '.join(sorted(unknown))}."
            raise SettingsError(msg)
        self._lock = threading.Lock()
        self._is_hanging = threading.Event()
        self._released = threading.Event()
        self.calls = 0
        """How many calls came so far, of those that count."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def wait_until_hanging(self, timeout: float) -> bool:
        """Return whether the call that hangs came within `timeout` seconds."""
        return self._is_hanging.wait(timeout)

    def release(self) -> None:
        """Let the call that hangs go on, and none hang from now on."""
        self._released.set()

    def _call(self, method: str, key: str, function: Callable[[], Result]) -> Result:
        if method not in self._only:
            return function()
        with self._lock:
            self.calls += 1
            is_hit = self.calls == self._fail_at
        if is_hit and self._when == "before":
            raise StorageUnavailableError(f"{key}: injected fault before the effect.", key=key)
        if is_hit and self._when == "hang":
            self._is_hanging.set()
            self._released.wait()
        result = function()
        if is_hit and self._when == "after":
            raise StorageUnavailableError(f"{key}: injected fault, the reply is lost.", key=key)
        return result
