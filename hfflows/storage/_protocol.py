"""The protocol between hfflows and anything that keeps objects under keys.

A function asks for the narrowest capability it needs (`Get`, not `Store`). Keys are
`/`-separated, built by `hfflows.keys` and relative to the store's root. All methods are
thread-safe; errors are `hfflows.errors.StorageError`s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says of one object."""

    key: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    upload_id: str
    started_at: datetime


class Get(Protocol):
    """Reading."""

    def get(self, key: str, *, limit: int | None = None) -> bytes:
        """Return the whole object.

        Args:
            key: Where it lies.
            limit: Most bytes to read: what should be small is not trusted to be.

        Raises:
            ObjectNotFoundError: No object at `key`.
            IntegrityError: The object is larger than `limit`.
        """
        ...

    def get_range(self, key: str, offset: int, length: int) -> Buffer:
        """Return exactly `length` bytes from `offset`.

        Raises:
            ObjectNotFoundError: No object at `key`.
            IntegrityError: The object ends before `offset + length`.
        """
        ...

    def stream_range(self, key: str, offset: int, length: int) -> Iterator[Buffer]:
        """Yield exactly `length` bytes from `offset`, in order, in pieces as they arrive.

        Raises:
            ObjectNotFoundError: No object at `key`.
            IntegrityError: The object ends before `offset + length`; pieces of what it has
                may have been yielded before.
        """
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Return the object's size and time, or `None` when there is no such object."""
        ...


class Put(Protocol):
    """Writing. A key appears with all its bytes, or not at all."""

    def put(self, key: str, data: Buffer) -> None:
        """Write an object, replacing whatever was at `key`."""
        ...

    def put_stream(self, key: str, chunks: Iterable[Buffer]) -> None:
        """Write an object of unknown or great size from its pieces, in order.

        When `chunks` raises, its error comes out as it is and nothing appears at `key`.
        A few parts are held in memory, whatever the size.
        """
        ...

    def create(self, key: str, data: Buffer) -> None:
        """Write an object only if none is at `key`; of several writers, one wins.

        Where `has_conditional_create` is false the store cannot decide: this looks, then
        puts, and two writers that look at the same moment both believe they won.

        A reply lost on the way can make a successful create look like a lost one:
        callers that retry compare what lies at `key` with what they wrote.

        Raises:
            ObjectExistsError: Something is at `key` already.
        """
        ...


class List(Protocol):
    """Listing."""

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[ObjectInfo]:
        """Yield the objects under `prefix` in the order of their keys, lazily.

        What lies in one directory comes in order everywhere. Of `a/x` and `a-b`, where one
        name begins another, most stores put `a-b` first, as the whole keys compare; stores
        that keep directories, such as SeaweedFS, put `a/x` first, part by part.

        Args:
            prefix: Ends in `/`, or is empty for the whole store.
            after: Yield only keys that come after this one, which need not exist. It must not
                be the name of a directory: SeaweedFS would pass over what is in it.
        """
        ...


class Delete(Protocol):
    """Deleting."""

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, in batches where the store has them; absent ones are no error."""
        ...


@runtime_checkable
class Store(Get, Put, List, Delete, Protocol):
    """All of it, and where it is."""

    @property
    def url(self) -> str:
        """Root URL: `s3://bucket/prefix`, `file:///path`; never holds a credential."""
        ...

    @property
    def has_conditional_create(self) -> bool:
        """Whether the store itself decides which of several `create`s wins."""
        ...


@runtime_checkable
class Uploads(Protocol):
    """Cleaning up after writers that died: their multipart uploads are invisible, not free.

    Only stores on S3 have this; ask with `isinstance(store, Uploads)`.
    """

    def list_uploads(self) -> Iterator[Upload]:
        """Yield the unfinished uploads under the store's root, and no others.

        An upload under way in a living process looks the same: go by `started_at`.
        """
        ...

    def abort_upload(self, upload: Upload) -> None:
        """Abort an upload and free its parts; one that is gone is no error."""
        ...
