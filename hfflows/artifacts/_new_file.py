"""A new file of an artifact, written front to back by somebody who does not know its size yet.

The writer says where items begin: `torch.save` of one tensor after another. A large item has
objects of its own, so it is found again in the next save, wherever it stands there; small
ones share objects, each as a segment that is read and checked alone.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from hfflows import keys
from hfflows.artifacts._pipeline import (
    OBJECT_BYTES,
    Transfer,
    TransferReport,
    Window,
    put_object,
    transfer_threads,
)
from hfflows.artifacts._plans import read_condemned
from hfflows.artifacts._tree import Segment, TreeFile, check_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from typing_extensions import Buffer

    from hfflows.storage import Store

ALONE_FROM_BYTES = 1024 * 1024
"""Items of this size and more have objects of their own."""

LARGEST_OBJECT_BYTES = OBJECT_BYTES + 64 * 1024
"""Tensors like round numbers: what a format adds to 16 MiB fits beside them."""


class _Sent(NamedTuple):
    """An object that is in the store."""

    key: str
    sha256: str


class _Pending(NamedTuple):
    """A segment of an object that may still be on its way; no digest: it is all of it."""

    sent: Future[_Sent]
    offset: int
    length: int
    sha256: str | None

    def result(self) -> Segment:
        key, digest = self.sent.result()
        return Segment(key, self.offset, self.length, self.sha256 or digest)


class NewFile:
    """A file being written; some objects' worth of it is in memory, whatever its size."""

    def __init__(self, path: str, transfer: Transfer, window: Window[_Sent]) -> None:
        check_path(path)
        self.path = path
        self._transfer = transfer
        self._window = window
        self._whole = hashlib.sha256()
        self._size = 0
        self._object = bytearray()
        self._begins = [0]
        self._is_alone = False
        self._segments: list[_Pending] = []

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._size

    def flush(self) -> None:
        """Do nothing: what is written is sent when an object is full."""

    def begin_item(self, size_bytes: int) -> None:
        """Say that what is written next stands for itself.

        Args:
            size_bytes: About how much it will be.
        """
        is_alone = size_bytes >= ALONE_FROM_BYTES
        if is_alone or self._is_alone:
            self._send()
        elif self._begins[-1] < len(self._object):
            self._begins.append(len(self._object))
        self._is_alone = is_alone

    def write(self, data: Buffer) -> int:
        """Take the next bytes; they may be changed as soon as this returns."""
        view = memoryview(data).cast("B")
        count = len(view)
        self._whole.update(view)
        while view:
            room = LARGEST_OBJECT_BYTES - len(self._object)
            self._object += view[:room]
            view = view[room:]
            if len(self._object) == LARGEST_OBJECT_BYTES:
                self._send()
        self._size += count
        return count

    def finish(self) -> TreeFile:
        """Return the file once all of it is in the store.

        Raises:
            StorageError: It could not be sent.
        """
        self._send()
        segments = tuple(pending.result() for pending in self._segments)
        self._transfer.report.count(bytes_covered=self._size)
        return TreeFile(
            self.path, self._size, self._whole.hexdigest(), is_executable=False, segments=segments
        )

    def _send(self) -> None:
        data, begins = self._object, self._begins
        if not data:
            return
        self._object, self._begins = bytearray(), [0]
        sent = self._window.submit(self._put, data)
        bounds = [begin for begin in begins if begin < len(data)] + [len(data)]
        for begin, end in pairwise(bounds):
            part = memoryview(data)[begin:end]
            digest = None if len(part) == len(data) else hashlib.sha256(part).hexdigest()
            self._segments.append(_Pending(sent, begin, end - begin, digest))

    def _put(self, data: Buffer) -> _Sent:
        digest = hashlib.sha256(data).hexdigest()
        key = self._transfer.condemned.usable(keys.object_key(digest))
        put_object(self._transfer, key, data)
        return _Sent(key, digest)


@contextmanager
def new_file(path: str, *, store: Store, report: TransferReport | None = None) -> Iterator[NewFile]:
    """Yield a file to write, for a save that was announced; `finish` it inside.

    Args:
        path: In the artifact.
        store: Where its objects go.
        report: Added to.
    """
    transfer = Transfer(store, report or TransferReport(), read_condemned(store))
    with transfer_threads() as (_readers, senders):
        yield NewFile(path, transfer, Window(senders))
