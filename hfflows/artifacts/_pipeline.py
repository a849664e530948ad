"""What the writers of all layouts share: pieces read ahead, hashed and sent, in bounded memory.

Pieces are read by threads, pass the calling thread in order (where each file's digest
grows), and are sent by other threads. At most `READS_AHEAD + UPLOADS_IN_FLIGHT` pieces and
the one in hand are in memory, whatever the artifact's size; of a small artifact fewer, so
that being killed costs no more than about a tenth of it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

from hfflows.artifacts._tree import Segment, TreeFile
from hfflows.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Buffer

    from hfflows.artifacts._plans import Condemned
    from hfflows.artifacts._sources import FileSource
    from hfflows.storage import Store

OBJECT_BYTES = 16 * 1024 * 1024
"""Size of a packed object, and of the pieces in which any file is moved and checked."""

LOOK_BEFORE_BYTES = 256 * 1024
"""From this size on, asking whether an object is there costs less than sending it."""

READS_AHEAD = 4
UPLOADS_IN_FLIGHT = 8
LEAST_IN_FLIGHT = 2
UNDER_WAY = 1 / 12
"""Share of an artifact that may be under way: read, or sent, and not yet in the store."""

Result = TypeVar("Result")


@dataclass(slots=True)
class TransferReport:
    """What a save moved; pass one in to have it filled."""

    bytes_covered: int = 0
    """Size of the files in the artifact."""
    bytes_sent: int = 0
    """Object bytes that went to the store."""
    bytes_read: int = 0
    """Bytes read from the source; content the store already had may be skipped."""
    objects_sent: int = 0
    objects_reused: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def count(self, **amounts: int) -> None:
        """Add to counters; safe from several threads."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)


@dataclass(frozen=True, slots=True)
class Transfer:
    """Where a save goes and what it may rely on."""

    store: Store
    report: TransferReport
    condemned: Condemned
    """What must be treated as absent; see `hfflows.artifacts._saves`."""
    base: tuple[Segment, ...] = ()
    """What is in the store for certain: not asked for, not sent."""
    resend: bool = False
    """Send every byte, also what the store seems to have: mends damaged objects."""


def put_object(
    transfer: Transfer, key: str, data: Buffer, *, is_known: bool = False, look: bool = True
) -> None:
    """Make sure that an object is in the store, and count whether it was sent or found.

    Args:
        transfer: The save that it is for.
        key: Under which it may be relied on; see `Condemned.usable`.
        data: Its bytes.
        is_known: It is there for certain.
        look: Whether one that is found there, of this size, may be relied on.
    """
    size = memoryview(data).nbytes
    if is_known or (look and _is_there(transfer.store, key, size)):
        transfer.report.count(objects_reused=1)
    else:
        transfer.store.put(key, data)
        transfer.report.count(objects_sent=1, bytes_sent=size)


def _is_there(store: Store, key: str, size_bytes: int) -> bool:
    found = store.head(key) if size_bytes >= LOOK_BEFORE_BYTES else None
    return found is not None and found.size_bytes == size_bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of one source's bytes that is read in one go."""

    source: FileSource
    offset: int
    length: int

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its file."""
        return self.length == self.source.size_bytes


class FileDigest:
    """Digests of a file whose pieces pass by in order."""

    def __init__(self, source: FileSource) -> None:
        self.source = source
        self._sha256 = hashlib.sha256()
        self._git_sha1: hashlib._Hash | None = None
        announced = source.announced
        if announced is not None and announced.algorithm == "git-sha1":
            self._git_sha1 = hashlib.sha1(usedforsecurity=False)
            self._git_sha1.update(b"blob %d\0" % source.size_bytes)

    def update(self, data: Buffer) -> None:
        """Take the next piece."""
        self._sha256.update(data)
        if self._git_sha1 is not None:
            self._git_sha1.update(data)

    @property
    def sha256(self) -> str:
        """Return the sha256 of what has passed so far."""
        return self._sha256.hexdigest()

    def finish(self, segments: Iterable[Segment]) -> TreeFile:
        """Return the file, once its bytes are what its origin announced.

        Raises:
            IntegrityError: They are not.
        """
        announced, digest = self.source.announced, self.sha256
        if announced is not None:
            actual = self._git_sha1.hexdigest() if self._git_sha1 is not None else digest
            if actual != announced.digest:
                msg = (
                    f"{self.source.path}: the bytes received have {announced.algorithm} {actual}, "
                    f"their origin announced {announced.digest}. Nothing was saved; try again."
                )
                raise IntegrityError(msg, path=self.source.path)
        source = self.source
        return TreeFile(
            source.path, source.size_bytes, digest, source.is_executable, tuple(segments)
        )


class Workers(ThreadPoolExecutor):
    """Threads, and how many pieces may be with them."""

    def __init__(self, count: int) -> None:
        super().__init__(count, thread_name_prefix="hfflows-transfer")
        self.count = count


class Window(Generic[Result]):
    """Submits work while fewer pieces wait than there are workers: what bounds memory."""

    def __init__(self, pool: Workers) -> None:
        self._pool = pool
        self._waiting: deque[Future[Result]] = deque()

    def submit(self, function: Callable[[Buffer], Result], data: Buffer) -> Future[Result]:
        """Return the work's future; waits for the oldest when too much is under way."""
        if len(self._waiting) >= self._pool.count:
            self._waiting.popleft().result()
        future = self._pool.submit(function, data)
        self._waiting.append(future)
        return future


@contextmanager
def transfer_threads(size_bytes: int | None = None) -> Iterator[tuple[Workers, Workers]]:
    """Yield the pools of a save, (readers, senders), that drop what has not begun if it fails.

    Args:
        size_bytes: Of all that is to be moved; `None` means a lot.
    """
    reads, uploads = READS_AHEAD, UPLOADS_IN_FLIGHT
    if size_bytes is not None:
        pieces = int(size_bytes * UNDER_WAY / OBJECT_BYTES)
        reads = min(reads, max(LEAST_IN_FLIGHT, pieces // 2))
        uploads = min(uploads, max(LEAST_IN_FLIGHT, pieces - reads))
    readers, senders = Workers(reads), Workers(uploads)
    try:
        yield readers, senders
    finally:
        for pool in (readers, senders):
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in (readers, senders):
            pool.shutdown(wait=True)


def fits_one_object(size_bytes: int) -> bool:
    """Return whether so many bytes are sent in one piece."""
    return size_bytes <= OBJECT_BYTES


def packs(sources: Iterable[FileSource]) -> Iterator[list[FileSource]]:
    """Yield small files in groups that fill an object."""
    pack: list[FileSource] = []
    size = 0
    for source in sources:
        if pack and not fits_one_object(size + source.size_bytes):
            yield pack
            pack, size = [], 0
        pack.append(source)
        size += source.size_bytes
    if pack:
        yield pack


def cut(sources: Iterable[FileSource]) -> Iterator[Piece]:
    """Yield files as pieces of `OBJECT_BYTES`; an empty file has none."""
    for source in sources:
        for offset in range(0, source.size_bytes, OBJECT_BYTES):
            yield Piece(source, offset, min(OBJECT_BYTES, source.size_bytes - offset))


def read_ahead(
    pool: Workers,
    pieces: Iterable[Piece],
    report: TransferReport,
    *,
    recall: Callable[[Piece], Buffer | None] | None = None,
) -> Iterator[tuple[Piece, Buffer]]:
    """Yield pieces with their bytes, in order, while the next ones are being read.

    Args:
        pool: Threads that read, a piece each.
        pieces: What to read.
        report: Counter of what is read from the sources.
        recall: Asked first for a piece that may be had without its source.
    """

    def read(piece: Piece) -> Buffer:
        if recall is not None and (data := recall(piece)) is not None:
            return data
        report.count(bytes_read=piece.length)
        return piece.source.read(piece.offset, piece.length)

    remaining = iter(pieces)
    reading = deque((piece, pool.submit(read, piece)) for piece in islice(remaining, pool.count))
    while reading:
        piece, data = reading.popleft()
        reading.extend((piece, pool.submit(read, piece)) for piece in islice(remaining, 1))
        yield piece, data.result()
