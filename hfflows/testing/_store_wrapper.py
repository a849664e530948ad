"""A store around a store: what the wrappers for tests have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Buffer

    from hfflows.storage import ObjectInfo, Store

Result = TypeVar("Result")


class StoreWrapper:
    """Passes every call on through `_call`, which subclasses override.

    Args:
        store: The store that does the work.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def url(self) -> str:  # docstring inherited
        return self._store.url

    @property
    def has_conditional_create(self) -> bool:  # docstring inherited
        return self._store.has_conditional_create

    def _call(self, method: str, key: str, function: Callable[[], Result]) -> Result:
        """Make one call; `method` is its name and `key` the key or prefix it is about."""
        raise NotImplementedError

    def get(self, key: str, *, limit: int | None = None) -> bytes:  # docstring inherited
        return self._call("get", key, lambda: self._store.get(key, limit=limit))

    def get_range(self, key: str, offset: int, length: int) -> Buffer:  # docstring inherited
        return self._call("get_range", key, lambda: self._store.get_range(key, offset, length))

    def stream_range(
        self, key: str, offset: int, length: int
    ) -> Iterator[Buffer]:  # docstring inherited
        return self._call(
            "stream_range", key, lambda: self._store.stream_range(key, offset, length)
        )

    def head(self, key: str) -> ObjectInfo | None:  # docstring inherited
        return self._call("head", key, lambda: self._store.head(key))

    def put(self, key: str, data: Buffer) -> None:  # docstring inherited
        self._call("put", key, lambda: self._store.put(key, data))

    def put_stream(self, key: str, chunks: Iterable[Buffer]) -> None:  # docstring inherited
        self._call("put_stream", key, lambda: self._store.put_stream(key, chunks))

    def create(self, key: str, data: Buffer) -> None:  # docstring inherited
        self._call("create", key, lambda: self._store.create(key, data))

    def delete(self, keys: Sequence[str]) -> None:  # docstring inherited
        self._call("delete", keys[0] if keys else "", lambda: self._store.delete(keys))

    def list(
        self, prefix: str, *, after: str | None = None
    ) -> Iterator[ObjectInfo]:  # docstring inherited
        return self._call("list", prefix, lambda: self._store.list(prefix, after=after))
