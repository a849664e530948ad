"""Sources to objects: the writers of the layouts, and the pipeline they share.

Pieces are read ahead by threads, pass the calling thread in order (where each file's
digest grows), and are hashed and uploaded by other threads. Memory is bounded by
`READS_AHEAD + UPLOADS_IN_FLIGHT` pieces, whatever the artifact's size.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts._documents import decode_document, encode_document
from hfflows.artifacts._tree import Segment, Tree, TreeFile
from hfflows.errors import IntegrityError, ObjectNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from typing_extensions import Buffer

    from hfflows.artifacts._sources import FileSource, Sources
    from hfflows.storage import Store

OBJECT_BYTES = 16 * 1024 * 1024
"""Size of a packed object, and of the pieces in which any file is moved and checked."""

PACK_BELOW_BYTES = 1024 * 1024
"""Smaller files share an object; others begin their own, so that they deduplicate."""

LOOK_BEFORE_BYTES = 256 * 1024
"""From this size on, asking whether an object is there costs less than sending it."""

READS_AHEAD = 4
UPLOADS_IN_FLIGHT = 8


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
class _Piece:
    """A run of one source's bytes that is read in one go."""

    source: FileSource
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Pending:
    """A segment of an object that may still be on its way."""

    object_digest: Future[str]
    offset: int
    length: int
    sha256: str | None = None
    """`None` when the segment is the whole object."""

    def result(self) -> Segment:
        digest = self.object_digest.result()
        return Segment(keys.object_key(digest), self.offset, self.length, self.sha256 or digest)


@dataclass(slots=True)
class _OpenFile:
    """A file whose pieces are passing by."""

    source: FileSource
    sha256: hashlib._Hash = field(default_factory=hashlib.sha256)
    git_sha1: hashlib._Hash | None = None
    segments: list[_Pending] = field(default_factory=list)

    def __post_init__(self) -> None:
        announced = self.source.announced
        if announced is not None and announced.algorithm == "git-sha1":
            self.git_sha1 = hashlib.sha1(usedforsecurity=False)
            self.git_sha1.update(b"blob %d\0" % self.source.size_bytes)

    def update(self, data: Buffer) -> None:
        self.sha256.update(data)
        if self.git_sha1 is not None:
            self.git_sha1.update(data)

    def finish(self) -> TreeFile:
        announced, digest = self.source.announced, self.sha256.hexdigest()
        if announced is not None:
            actual = self.git_sha1.hexdigest() if self.git_sha1 is not None else digest
            if actual != announced.digest:
                msg = (
                    f"{self.source.path}: the bytes received have {announced.algorithm} {actual}, "
                    f"their origin announced {announced.digest}. Nothing was saved; try again."
                )
                raise IntegrityError(msg, path=self.source.path)
        segments = tuple(pending.result() for pending in self.segments)
        return TreeFile(
            self.source.path, self.source.size_bytes, digest, self.source.is_executable, segments
        )


class TreeWriter:
    """Writes the objects of one artifact.

    Args:
        store: Where the objects go.
        known_objects: Keys that are in the store for certain, from an earlier artifact of
            the same lineage: not asked for, not sent.
        report: Counters to add to.
        resend: Send every byte, also what the store seems to have: mends damaged objects.
    """

    def __init__(
        self,
        store: Store,
        *,
        known_objects: Iterable[str] = (),
        report: TransferReport,
        resend: bool = False,
    ) -> None:
        self._store = store
        self._resend = resend
        self._known = set(known_objects)
        self._report = report

    def write(self, sources: Sources, *, files_key: str | None = None) -> Tree:
        """Move every file and return the tree; all objects are in the store then.

        Args:
            sources: What to save.
            files_key: Key of the reference to come, for layout `files`; `None` means
                layout `packed`.
        """
        sources.check()
        self._report.count(bytes_covered=sum(source.size_bytes for source in sources.files))
        if files_key is None:
            files = self._write_packed(sources.files)
        else:
            files = self._write_files(sources.files, files_key)
        files.sort(key=lambda file: file.path)
        return Tree(tuple(files), tuple(sources.directories), tuple(sources.symlinks))

    # Layout `packed` -----------------------------------------------------------------

    def _write_packed(self, sources: list[FileSource]) -> list[TreeFile]:
        stored = {source.path: self._stored_content(source) for source in sources}
        fresh = [source for source in sources if stored[source.path] is None]
        large = [source for source in fresh if source.size_bytes >= PACK_BELOW_BYTES]
        small = [source for source in fresh if source.size_bytes < PACK_BELOW_BYTES]
        with _threads(READS_AHEAD) as readers, _threads(UPLOADS_IN_FLIGHT) as uploads:
            window = _Window(uploads, UPLOADS_IN_FLIGHT)
            opened: list[_OpenFile] = []
            for piece, data in self._read_ahead(readers, _cut(large)):
                if piece.offset == 0:
                    opened.append(_OpenFile(piece.source))
                opened[-1].update(data)
                whole = window.submit(self._put_object, data)
                opened[-1].segments.append(_Pending(whole, 0, piece.length))
            for pack in _packs(small):
                opened += self._write_pack(pack, readers, window)
            files = [file.finish() for file in opened]
        self._remember_contents(files, large)
        return [*files, *(file for file in stored.values() if file is not None)]

    def _write_pack(
        self, sources: list[FileSource], readers: ThreadPoolExecutor, window: _Window
    ) -> list[_OpenFile]:
        pack, opened = bytearray(), list[_OpenFile]()
        offsets: list[int] = []
        whole_files = (_Piece(source, 0, source.size_bytes) for source in sources)
        for piece, data in self._read_ahead(readers, whole_files):
            opened.append(_OpenFile(piece.source))
            opened[-1].update(data)
            offsets.append(len(pack))
            pack += memoryview(data)
        if pack:
            whole = window.submit(self._put_object, pack)
            for file, offset in zip(opened, offsets, strict=True):
                length = file.source.size_bytes
                if length:
                    file.segments.append(_Pending(whole, offset, length, file.sha256.hexdigest()))
        return opened

    def _put_object(self, data: Buffer) -> str:
        digest = hashlib.sha256(data).hexdigest()
        key, length = keys.object_key(digest), memoryview(data).nbytes
        if self._is_stored(key, length):
            self._report.count(objects_reused=1)
        else:
            self._store.put(key, data)
            self._report.count(objects_sent=1, bytes_sent=length)
        self._known.add(key)
        return digest

    def _is_stored(self, key: str, length: int) -> bool:
        if key in self._known:
            return True
        if length < LOOK_BEFORE_BYTES or self._resend:
            return False
        found = self._store.head(key)
        return found is not None and found.size_bytes == length

    def _read_ahead(
        self, readers: ThreadPoolExecutor, pieces: Iterable[_Piece]
    ) -> Iterator[tuple[_Piece, Buffer]]:
        """Yield pieces with their bytes, in order, while the next ones are being read."""
        remaining = iter(pieces)
        reading = deque((piece, _read(readers, piece)) for piece in islice(remaining, READS_AHEAD))
        while reading:
            piece, data = reading.popleft()
            reading.extend((piece, _read(readers, piece)) for piece in islice(remaining, 1))
            self._report.count(bytes_read=piece.length)
            yield piece, data.result()

    # Content known by its announced sha256 -------------------------------------------

    def _stored_content(self, source: FileSource) -> TreeFile | None:
        """Return the file as the store already holds it, from whatever artifact."""
        announced = source.announced
        if announced is None or announced.algorithm != "sha256" or self._resend:
            return None
        key = keys.content(announced.digest)
        try:
            body = decode_document(self._store.get(key), key=key)
            segments = tuple(Segment(*segment) for segment in body["segments"])
        except (ObjectNotFoundError, IntegrityError, KeyError, TypeError):
            return None
        if sum(segment.length for segment in segments) != source.size_bytes or not all(
            self._is_present(segment) for segment in segments
        ):
            return None
        self._report.count(objects_reused=len(segments))
        return TreeFile(
            source.path, source.size_bytes, announced.digest, source.is_executable, segments
        )

    def _is_present(self, segment: Segment) -> bool:
        if segment.key in self._known:
            return True
        found = self._store.head(segment.key)
        return found is not None and found.size_bytes >= segment.offset + segment.length

    def _remember_contents(self, files: list[TreeFile], sources: list[FileSource]) -> None:
        announced = {source.path for source in sources if source.announced is not None}
        for file in files:
            if file.path in announced:
                segments = [[s.key, s.offset, s.length, s.sha256] for s in file.segments]
                body = {"format_version": 1, "segments": segments}
                self._store.put(keys.content(file.sha256), encode_document(body))

    # Layout `files` ------------------------------------------------------------------

    def _write_files(self, sources: list[FileSource], reference_key: str) -> list[TreeFile]:
        small = [source for source in sources if source.size_bytes < PACK_BELOW_BYTES]
        large = [source for source in sources if source.size_bytes >= PACK_BELOW_BYTES]
        with _threads(READS_AHEAD) as readers, _threads(UPLOADS_IN_FLIGHT) as uploads:
            futures = [
                uploads.submit(self._write_readable, source, reference_key, readers)
                for source in small
            ]
            # One at a time: each is sent in parts of its own, several at once.
            files = [self._write_readable(source, reference_key, readers) for source in large]
            return [*files, *(future.result() for future in futures)]

    def _write_readable(
        self, source: FileSource, reference_key: str, readers: ThreadPoolExecutor
    ) -> TreeFile:
        key = keys.file_key(reference_key, source.path)
        file, segments = _OpenFile(source), list[Segment]()

        def chunks() -> Iterator[Buffer]:
            for piece, data in self._read_ahead(readers, _cut([source])):
                file.update(data)
                digest = hashlib.sha256(data).hexdigest()
                segments.append(Segment(key, piece.offset, piece.length, digest))
                yield data

        if source.size_bytes <= OBJECT_BYTES:
            self._store.put(key, b"".join(chunks()))
        else:
            self._store.put_stream(key, chunks())
        self._report.count(objects_sent=1, bytes_sent=source.size_bytes)
        return replace(file.finish(), segments=tuple(segments))


class _Window:
    """Submits work while fewer than `limit` pieces wait: what bounds memory."""

    def __init__(self, threads: ThreadPoolExecutor, limit: int) -> None:
        self._threads = threads
        self._waiting: deque[Future[str]] = deque()
        self._limit = limit

    def submit(self, function: Callable[[Buffer], str], data: Buffer) -> Future[str]:
        if len(self._waiting) >= self._limit:
            self._waiting.popleft().result()
        future = self._threads.submit(function, data)
        self._waiting.append(future)
        return future


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool that drops what has not begun when the body fails."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="hfflows-save")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(readers: ThreadPoolExecutor, piece: _Piece) -> Future[Buffer]:
    return readers.submit(piece.source.read, piece.offset, piece.length)


def _cut(sources: Iterable[FileSource]) -> Iterator[_Piece]:
    for source in sources:
        for offset in range(0, source.size_bytes, OBJECT_BYTES):
            yield _Piece(source, offset, min(OBJECT_BYTES, source.size_bytes - offset))


def _packs(sources: list[FileSource]) -> Iterator[list[FileSource]]:
    pack: list[FileSource] = []
    size = 0
    for source in sources:
        if pack and size + source.size_bytes > OBJECT_BYTES:
            yield pack
            pack, size = [], 0
        pack.append(source)
        size += source.size_bytes
    if pack:
        yield pack
