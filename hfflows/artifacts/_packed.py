"""Layout `packed`: large files cut into objects, small ones sharing them, named by digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts._documents import encode_document, read_document
from hfflows.artifacts._partials import Partials
from hfflows.artifacts._pipeline import (
    FileDigest,
    Piece,
    Transfer,
    Window,
    Workers,
    cut,
    packs,
    read_ahead,
    transfer_threads,
)
from hfflows.artifacts._tree import Segment, TreeFile
from hfflows.errors import IntegrityError, ObjectNotFoundError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from typing_extensions import Buffer

    from hfflows.artifacts._sources import FileSource

PACK_BELOW_BYTES = 1024 * 1024
"""Smaller files share an object; others begin their own, so that they deduplicate."""

LOOK_BEFORE_BYTES = 256 * 1024
"""From this size on, asking whether an object is there costs less than sending it."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """An object that is in the store."""

    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class _Pending:
    """A segment of an object that may still be on its way."""

    sent: Future[_Sent]
    offset: int
    length: int
    sha256: str | None = None
    """`None` when the segment is the whole object."""

    def result(self) -> Segment:
        sent = self.sent.result()
        return Segment(sent.key, self.offset, self.length, self.sha256 or sent.digest)


@dataclass(slots=True)
class _OpenFile:
    """A file whose pieces are passing by."""

    digest: FileDigest
    segments: list[_Pending] = field(default_factory=list)

    def finish(self) -> TreeFile:
        return self.digest.finish(pending.result() for pending in self.segments)


def write_packed(transfer: Transfer, sources: list[FileSource]) -> list[TreeFile]:
    """Move files into objects and return them; all objects are in the store then."""
    return _PackedWriter(transfer).write(sources)


class _PackedWriter:
    def __init__(self, transfer: Transfer) -> None:
        self._store = transfer.store
        self._report = transfer.report
        self._condemned = transfer.condemned
        self._resend = transfer.resend
        self._partials = Partials(transfer.store)
        self._recall = None if transfer.resend else self._partials.recall
        self._known = {key for key in transfer.known if key not in transfer.condemned}

    def write(self, sources: list[FileSource]) -> list[TreeFile]:
        stored = {source.path: self._stored_content(source) for source in sources}
        fresh = [source for source in sources if stored[source.path] is None]
        large = [source for source in fresh if source.size_bytes >= PACK_BELOW_BYTES]
        small = [source for source in fresh if source.size_bytes < PACK_BELOW_BYTES]
        self._partials.look_for(large)
        fresh_bytes = sum(source.size_bytes for source in fresh)
        with transfer_threads(fresh_bytes) as (readers, senders):
            window: Window[_Sent] = Window(senders)
            opened: list[_OpenFile] = []
            pieces = read_ahead(readers, cut(large), self._report, recall=self._recall)
            for piece, data in pieces:
                if piece.offset == 0:
                    opened.append(_OpenFile(FileDigest(piece.source)))
                opened[-1].digest.update(data)
                digest = opened[-1].digest.sha256 if piece.is_whole else None
                sent = window.submit(partial(self._put_piece, piece, digest), data)
                opened[-1].segments.append(_Pending(sent, 0, piece.length))
            for pack in packs(small):
                opened += self._write_pack(pack, readers, window)
            files = [file.finish() for file in opened]
        self._remember_contents(files, large)
        self._partials.forget()
        return [*files, *(file for file in stored.values() if file is not None)]

    def _write_pack(
        self, sources: list[FileSource], readers: Workers, window: Window[_Sent]
    ) -> list[_OpenFile]:
        pack, opened = bytearray(), list[_OpenFile]()
        offsets: list[int] = []
        whole_files = (Piece(source, 0, source.size_bytes) for source in sources)
        for piece, data in read_ahead(readers, whole_files, self._report):
            opened.append(_OpenFile(FileDigest(piece.source)))
            opened[-1].digest.update(data)
            offsets.append(len(pack))
            pack += memoryview(data)
        if pack:
            sent = window.submit(self._put_object, pack)
            for file, offset in zip(opened, offsets, strict=True):
                length = file.digest.source.size_bytes
                if length:
                    file.segments.append(_Pending(sent, offset, length, file.digest.sha256))
        return opened

    def _put_piece(self, piece: Piece, digest: str | None, data: Buffer) -> _Sent:
        sent = self._put_object(data, digest=digest)
        if sent.key == keys.object_key(sent.digest):
            self._partials.remember(piece, sent.digest)
        return sent

    def _put_object(self, data: Buffer, *, digest: str | None = None) -> _Sent:
        digest = digest or hashlib.sha256(data).hexdigest()
        key, length = self._condemned.usable(keys.object_key(digest)), memoryview(data).nbytes
        if self._is_stored(key, length):
            self._report.count(objects_reused=1)
        else:
            self._store.put(key, data)
            self._report.count(objects_sent=1, bytes_sent=length)
        self._known.add(key)
        return _Sent(key, digest)

    def _is_stored(self, key: str, length: int) -> bool:
        if key in self._known:
            return True
        if length < LOOK_BEFORE_BYTES or self._resend or key in self._partials.damaged:
            return False
        found = self._store.head(key)
        return found is not None and found.size_bytes == length

    # Content known by its announced sha256 -------------------------------------------

    def _stored_content(self, source: FileSource) -> TreeFile | None:
        """Return the file as the store already holds it, from whatever artifact."""
        announced = source.announced
        if announced is None or announced.algorithm != "sha256" or self._resend:
            return None
        key = keys.content(announced.digest)
        try:
            body = read_document(self._store, key)
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
        if segment.key in self._condemned:
            return False
        found = self._store.head(segment.key)
        return found is not None and found.size_bytes >= segment.offset + segment.length

    def _remember_contents(self, files: list[TreeFile], sources: list[FileSource]) -> None:
        announced = {source.path for source in sources if source.announced is not None}
        for file in files:
            if file.path in announced:
                segments = [[s.key, s.offset, s.length, s.sha256] for s in file.segments]
                body = {"format_version": 1, "segments": segments}
                self._store.put(keys.content(file.sha256), encode_document(body))
