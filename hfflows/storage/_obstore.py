"""The default engine: obstore, for s3, gs, az, file and memory.

It takes 2 to 5 times less CPU than s3fs and releases the GIL in every call, so plain
threads give parallel transfers.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore

from hfflows.errors import ObjectNotFoundError, StorageError
from hfflows.storage._conditional import look_then_put
from hfflows.storage._errors import check_length, check_limit, mapped_errors
from hfflows.storage._protocol import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from obstore.store import ObjectStore
    from typing_extensions import Buffer

PART_BYTES = 16 * 1024 * 1024
"""Part of a multipart upload; S3 allows 10,000 parts, so objects of up to 156 GiB."""

PARTS_IN_FLIGHT = 8

PIECE_BYTES = 64 * 1024
"""Piece of a streamed range: what a core's cache holds while it is hashed and written."""

RETRIES: dict[str, Any] = {
    # A dead endpoint is reported within seconds; the task's own retries wait longer.
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=3),
        "base": 2,
    },
}


class ObstoreStore:
    """A `Store` on any obstore store.

    Args:
        engine: Store whose root is the root of the keys.
        url: What `url` answers; without credentials.
        is_sorted: Whether the engine lists keys in order. A local directory does not.
        has_conditional_create: What the property answers; `create` looks, then puts, when false.
    """

    def __init__(
        self,
        engine: ObjectStore,
        url: str,
        *,
        is_sorted: bool = True,
        has_conditional_create: bool = True,
    ) -> None:
        self._engine = engine
        self._url = url
        self._is_sorted = is_sorted
        self._has_conditional_create = has_conditional_create

    @property
    def url(self) -> str:  # docstring inherited
        return self._url

    @property
    def has_conditional_create(self) -> bool:  # docstring inherited
        return self._has_conditional_create

    def __repr__(self) -> str:
        return f"<Store {self._url}>"

    def get(self, key: str, *, limit: int | None = None) -> bytes:  # docstring inherited
        with mapped_errors(self._url, key):
            answer = obstore.get(self._engine, key)
            check_limit(self._url, key, answer.meta["size"], limit)  # before the body is read
            return bytes(answer.bytes())

    def get_range(self, key: str, offset: int, length: int) -> Buffer:  # docstring inherited
        if length == 0:
            return b""
        with mapped_errors(self._url, key):
            data = obstore.get_range(self._engine, key, start=offset, length=length)
        check_length(self._url, key, offset, length, len(data))
        return data

    def stream_range(
        self, key: str, offset: int, length: int
    ) -> Iterator[Buffer]:  # docstring inherited
        received = 0
        if length:
            with mapped_errors(self._url, key):
                options: Any = {"range": (offset, offset + length)}
                answer = obstore.get(self._engine, key, options=options)
                for piece in answer.stream(min_chunk_size=PIECE_BYTES):
                    received += len(piece)
                    yield piece
        check_length(self._url, key, offset, length, received)

    def head(self, key: str) -> ObjectInfo | None:  # docstring inherited
        try:
            with mapped_errors(self._url, key):
                meta = obstore.head(self._engine, key)
        except ObjectNotFoundError:
            return None
        return ObjectInfo(key, meta["size"], meta["last_modified"])

    def put(self, key: str, data: Buffer) -> None:  # docstring inherited
        with mapped_errors(self._url, key):
            obstore.put(self._engine, key, data, use_multipart=False)

    def put_stream(self, key: str, chunks: Iterable[Buffer]) -> None:  # docstring inherited
        source = _Source(chunks)
        try:
            with mapped_errors(self._url, key):
                obstore.put(
                    self._engine,
                    key,
                    iter(source),
                    chunk_size=PART_BYTES,
                    max_concurrency=PARTS_IN_FLIGHT,
                )
        except StorageError:
            if source.error is not None:
                raise source.error from None
            raise

    def create(self, key: str, data: Buffer) -> None:  # docstring inherited
        if not self._has_conditional_create:
            look_then_put(self, key, data)
            return
        with mapped_errors(self._url, key):
            obstore.put(self._engine, key, data, mode="create", use_multipart=False)

    def list(
        self, prefix: str, *, after: str | None = None
    ) -> Iterator[ObjectInfo]:  # docstring inherited
        pages = self._pages(prefix, after)
        if self._is_sorted:
            yield from pages
        else:
            yield from sorted(pages, key=lambda info: info.key)

    def _pages(self, prefix: str, after: str | None) -> Iterator[ObjectInfo]:
        if after is not None and after <= prefix:
            after = None
        elif after is not None and after.endswith("/"):
            after += "!"  # obstore drops the slash, and would begin at the directory's name
        with mapped_errors(self._url, prefix):
            stream = obstore.list(self._engine, prefix or None, offset=after)
            for page in stream:
                for meta in page:
                    yield ObjectInfo(meta["path"], meta["size"], meta["last_modified"])

    def delete(self, keys: Sequence[str]) -> None:  # docstring inherited
        if not keys:
            return
        try:
            with mapped_errors(self._url, keys[0]):
                obstore.delete(self._engine, [*keys])
        except ObjectNotFoundError:
            if len(keys) > 1:  # a directory stops at the first absent key, a bucket does not
                for key in keys:
                    self.delete([key])


class _Source:
    """Chunks that remember their own error: an unreadable file is no fault of the store."""

    def __init__(self, chunks: Iterable[Buffer]) -> None:
        self._chunks = chunks
        self.error: OSError | NotImplementedError | EOFError | None = None

    def __iter__(self) -> Iterator[Buffer]:
        try:
            yield from self._chunks
        except (OSError, NotImplementedError, EOFError) as error:
            self.error = error
            raise
