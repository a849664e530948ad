"""Stores on fsspec file systems that are no object stores: directories, and memory.

A file appears under its key by a rename, so readers see all of it or nothing. It is written in
`.hfflows-incoming/` under the store's root, where a process that was killed leaves it.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hfflows.errors import ObjectNotFoundError, StorageError
from hfflows.storage._fsspec import FsspecStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Buffer

    from hfflows.storage._protocol import ObjectInfo

INCOMING = ".hfflows-incoming/"

_memory_turns = threading.RLock()  # all memory file systems of a process are one


class DirectoryStore(FsspecStore):
    """A `Store` on a file system with directories and a rename of its own: sftp, smb, hdfs."""

    def put(self, key: str, data: Buffer) -> None:  # docstring inherited
        self.put_stream(key, [data])

    def put_stream(self, key: str, chunks: Iterable[Buffer]) -> None:  # docstring inherited
        with self._incoming(key, chunks) as incoming:
            self._publish(incoming, key)

    def list(
        self, prefix: str, *, after: str | None = None
    ) -> Iterator[ObjectInfo]:  # docstring inherited
        """Yield in order, one directory at a time."""
        for name, info in sorted(self._entries(prefix)):
            if info is None:
                if name != INCOMING and (after is None or name > after or after.startswith(name)):
                    yield from self.list(name, after=after)
            elif after is None or name > after:
                yield info

    def _entries(self, prefix: str) -> Iterator[tuple[str, ObjectInfo | None]]:
        """Yield the files of a directory by key, its directories by key and slash."""
        try:
            with self._calling(prefix) as (files, path):
                entries = files.ls(path.rstrip("/"), detail=True)
        except ObjectNotFoundError:
            return
        for entry in entries:
            info = self._listed(entry)
            if info.key.startswith(prefix):  # asked for a file, `ls` answers with that file
                is_file = entry["type"] == "file"
                yield (info.key, info) if is_file else (f"{info.key}/", None)

    @contextmanager
    def _incoming(self, key: str, chunks: Iterable[Buffer]) -> Iterator[str]:
        """Give the key of a file with `chunks` in it, for a rename; it goes when that fails."""
        incoming = INCOMING + secrets.token_hex(16)
        with self._calling(key) as (files, _):
            files.makedirs(self._path(INCOMING).rstrip("/"), exist_ok=True)
            handle = files.open(self._path(incoming), "wb")
        try:
            try:
                for chunk in chunks:
                    with self._calling(key):
                        handle.write(chunk)
            finally:
                with self._calling(key):
                    handle.close()
            yield incoming
        except BaseException:
            self._delete_one(incoming)
            raise

    def _publish(self, incoming: str, key: str) -> None:
        with self._calling(key) as (files, path):
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
            if files.isdir(path):  # a move to a directory is a move into it
                msg = f"{self._url}: {key}: There are objects below this key; none can be at it."
                raise StorageError(msg, key=key, store_url=self._url)
            files.mv(self._path(incoming), path)


class LocalStore(DirectoryStore):
    """A `Store` on the local file system, where a hard link decides between creators."""

    @property
    def has_conditional_create(self) -> bool:  # docstring inherited
        return True

    def create(self, key: str, data: Buffer) -> None:  # docstring inherited
        with self._incoming(key, [data]) as incoming:
            with self._calling(key) as (files, path):
                files.makedirs(path.rpartition("/")[0], exist_ok=True)
                files.link(self._path(incoming), path)
            self._delete_one(incoming)


class MemoryStore(FsspecStore):
    """A `Store` on fsspec's memory, which all threads of a process share by turns."""

    def __init__(self, url: str, connect: Callable[[], tuple[Any, str]]) -> None:
        super().__init__(url, connect, has_conditional_create=True, turns=_memory_turns)

    def put_stream(self, key: str, chunks: Iterable[Buffer]) -> None:  # docstring inherited
        self.put(key, b"".join(bytes(chunk) for chunk in chunks))
