"""The other engine: a store on any fsspec file system.

Every call asks the server: listings are never cached, and a connection belongs to the process
that made it, so a store survives a fork. What differs between file systems is in the
subclasses: `_fsspec_files` for those with directories, `_s3fs` for S3.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from glob import has_magic
from typing import TYPE_CHECKING, Any

from hfflows.errors import (
    ObjectNotFoundError,
    StorageUnavailableError,
)
from hfflows.storage._conditional import look_then_put
from hfflows.storage._errors import check_length, check_limit, mapped_errors
from hfflows.storage._protocol import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from typing_extensions import Buffer

PART_BYTES = 16 * 1024 * 1024
DELETE_BATCH = 1000

_TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "modify", "created")
"""Where file systems say when an object was written; fsspec has no one name for it."""


class FsspecStore:
    """A `Store` on a file system whose single writes are atomic, as those on object stores are.

    Args:
        url: What `url` answers; without credentials.
        connect: Makes a file system, once in each process, and says at which path in it
            the keys begin.
        has_conditional_create: Whether its `pipe_file(mode="create")` is atomic.
        turns: Lock for a file system that only one thread may use at a time. Such a
            connection is made anew when it breaks.
    """

    def __init__(
        self,
        url: str,
        connect: Callable[[], tuple[Any, str]],
        *,
        has_conditional_create: bool = False,
        turns: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._url = url
        self._connect = connect
        self._has_conditional_create = has_conditional_create
        self._turns = turns
        self._connections: dict[int, tuple[Any, str]] = {}

    @property
    def url(self) -> str:  # docstring inherited
        return self._url

    @property
    def has_conditional_create(self) -> bool:  # docstring inherited
        return self._has_conditional_create

    def __repr__(self) -> str:
        return f"<Store {self._url} by fsspec>"

    def get(self, key: str, *, limit: int | None = None) -> bytes:  # docstring inherited
        with self._calling(key) as (files, path):
            data = files.cat_file(path, end=None if limit is None else limit + 1)
        check_limit(self._url, key, len(data), limit)
        return bytes(data)

    def get_range(self, key: str, offset: int, length: int) -> Buffer:  # docstring inherited
        if length == 0:
            return b""
        with self._calling(key) as (files, path):
            data: bytes = files.cat_file(path, start=offset, end=offset + length)
        check_length(self._url, key, offset, length, len(data))
        return data

    def stream_range(
        self, key: str, offset: int, length: int
    ) -> Iterator[Buffer]:  # docstring inherited
        yield self.get_range(key, offset, length)  # fsspec has no reply that arrives in pieces

    def head(self, key: str) -> ObjectInfo | None:  # docstring inherited
        try:
            with self._calling(key) as (files, path):
                info = files.info(path)
        except ObjectNotFoundError:
            return None
        return _object_info(key, info) if info["type"] == "file" else None

    def put(self, key: str, data: Buffer) -> None:  # docstring inherited
        with self._calling(key) as (files, path):
            files.pipe_file(path, as_bytes(data))

    def put_stream(self, key: str, chunks: Iterable[Buffer]) -> None:  # docstring inherited
        with self._calling(key) as (files, path):
            handle = files.open(path, "wb", block_size=PART_BYTES, autocommit=False)
        try:
            for chunk in chunks:
                with self._calling(key):
                    handle.write(chunk)
            with self._calling(key):
                handle.close()
                handle.commit()
        except BaseException:
            handle.closed = True  # else its finalizer sends what is left
            with self._calling(key):
                handle.discard()
            raise

    def create(self, key: str, data: Buffer) -> None:  # docstring inherited
        if not self._has_conditional_create:
            look_then_put(self, key, data)
            return
        with self._calling(key) as (files, path):
            files.pipe_file(path, as_bytes(data), mode="create")

    def list(
        self, prefix: str, *, after: str | None = None
    ) -> Iterator[ObjectInfo]:  # docstring inherited
        with self._calling(prefix) as (files, path):
            found = files.find(path.rstrip("/"), detail=True)
        infos = (self._listed(info) for info in found.values() if info["type"] == "file")
        wanted = (
            info
            for info in infos
            if info.key.startswith(prefix) and (after is None or info.key > after)
        )
        yield from sorted(wanted, key=lambda info: info.key)

    def delete(self, keys: Sequence[str]) -> None:  # docstring inherited
        for start in range(0, len(keys), DELETE_BATCH):
            batch = keys[start : start + DELETE_BATCH]
            if not self._delete_batch(batch):
                for key in batch:
                    self._delete_one(key)

    def _delete_batch(self, keys: Sequence[str]) -> bool:
        """Delete `keys` in one call if the file system can, and return whether it did."""
        if any(has_magic(key) for key in keys):  # fsspec would take it as a pattern
            return False
        try:
            with self._calling(keys[0]) as (files, _):
                if not files.async_impl:
                    return False
                files.rm([self._path(key) for key in keys])
        except ObjectNotFoundError:
            return False
        return True

    def _delete_one(self, key: str) -> None:
        try:
            with self._calling(key) as (files, path):
                files.rm_file(path)
        except ObjectNotFoundError:
            return

    @contextmanager
    def _calling(self, key: str) -> Iterator[tuple[Any, str]]:
        """Give the file system and the path of `key` for one call, and its errors as ours."""
        with self._turns or nullcontext(), self._reconnecting(), mapped_errors(self._url, key):
            yield self._connection()[0], self._path(key)

    @contextmanager
    def _reconnecting(self) -> Iterator[None]:
        try:
            yield
        except StorageUnavailableError:
            if self._turns is not None:
                self._connections.pop(os.getpid(), None)
            raise

    def _connection(self) -> tuple[Any, str]:
        # The parent's entry stays in a forked child: closing it there would disturb the parent.
        process = os.getpid()
        if process not in self._connections:
            files, root = self._connect()
            files.dircache.use_listings_cache = False
            self._connections.setdefault(process, (files, root))
        return self._connections[process]

    def _path(self, key: str) -> str:
        return f"{self._connection()[1]}/{key}"

    def _listed(self, info: dict[str, Any]) -> ObjectInfo:
        root = self._connection()[1]
        return _object_info(info["name"][len(root) + 1 :], info)


def as_bytes(data: Buffer) -> bytes | bytearray:
    """Return `data` as clients of fsspec take it; only a view is copied."""
    return data if isinstance(data, (bytes, bytearray)) else bytes(data)


def _object_info(key: str, info: dict[str, Any]) -> ObjectInfo:
    return ObjectInfo(key, int(info["size"]), _modified_at(info))


def _modified_at(info: dict[str, Any]) -> datetime:
    """Return when an object was written; now, if the file system does not say.

    What seems new is never collected, so not knowing errs on the safe side.
    """
    moment = next((value for name in _TIMES if (value := info.get(name)) is not None), None)
    if isinstance(moment, (int, float)):
        return datetime.fromtimestamp(moment, UTC)
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if not isinstance(moment, datetime):
        return datetime.now(UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
