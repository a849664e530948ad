"""What `create` does where the store itself cannot decide between writers."""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING, Protocol

from hfflows.errors import ObjectExistsError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from hfflows.storage._protocol import ObjectInfo

_warned: set[str] = set()
_lock = threading.Lock()


class NoConditionalCreateWarning(UserWarning):
    """This store cannot decide which of two writers comes first."""


class _Writable(Protocol):
    @property
    def url(self) -> str: ...
    def head(self, key: str) -> ObjectInfo | None: ...
    def put(self, key: str, data: Buffer) -> None: ...


def look_then_put(store: _Writable, key: str, data: Buffer) -> None:
    """Put what is not there yet, and say once per store what this cannot promise.

    Raises:
        ObjectExistsError: Something is at `key` already.
    """
    _warn_once(store.url)
    if store.head(key) is not None:
        msg = f"{store.url}: {key}: An object is there already."
        raise ObjectExistsError(msg, key=key, store_url=store.url)
    store.put(key, data)


def _warn_once(url: str) -> None:
    with _lock:
        if url in _warned:
            return
        _warned.add(url)
    msg = (
        f"{url} has no conditional create: two processes that write the same key at the same "
        "moment may both succeed. Two workers may hold one lease and do the same work twice, "
        "and one of two moves of an alias may be lost. Artifacts stay whole."
    )
    warnings.warn(msg, NoConditionalCreateWarning, stacklevel=4)
