"""Layout `packed`: large files cut into objects, small ones sharing them, named by digest.

    piece ─→ its segments' digests ─┬─ none is there: the piece is an object
                                    ├─ all are there: nothing is sent
                                    └─ some are: the others go into a pack, an object they share

"There" is what the artifact that the save builds on has, by length and digest: it is known
without asking. A piece or a pack that the store has from elsewhere is found by its own digest.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts._cutting import Cutter
from hfflows.artifacts._documents import encode_document, read_document
from hfflows.artifacts._objects import object_sizes
from hfflows.artifacts._partials import Partials
from hfflows.artifacts._pipeline import (
    FileDigest,
    Piece,
    Transfer,
    Window,
    fits_one_object,
    packs,
    put_object,
    read_ahead,
    transfer_threads,
)
from hfflows.artifacts._tree import Segment, TreeFile
from hfflows.errors import IntegrityError, ObjectNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from concurrent.futures import Future

    from typing_extensions import Buffer

    from hfflows.artifacts._cutting import CutPiece
    from hfflows.artifacts._pipeline import Workers
    from hfflows.artifacts._sources import FileSource

PACK_BELOW_BYTES = 1024 * 1024
"""Smaller files share an object; others begin their own, so that they deduplicate."""


@dataclass(slots=True)
class _Carrier:
    """An object that is being filled or is on its way; its key is known when it has arrived."""

    data: bytearray = field(default_factory=bytearray)
    key: Future[str] | None = None


@dataclass(frozen=True, slots=True)
class _Pending:
    """A segment of an object that may still be on its way."""

    carrier: _Carrier
    offset: int
    length: int
    sha256: str

    def result(self) -> Segment:
        assert self.carrier.key is not None  # noqa: S101 - files are finished after all is sent
        return Segment(self.carrier.key.result(), self.offset, self.length, self.sha256)


@dataclass(slots=True)
class _OpenFile:
    """A file whose pieces are passing by."""

    digest: FileDigest
    segments: list[_Pending | Segment] = field(default_factory=list)

    def finish(self) -> TreeFile:
        return self.digest.finish(
            found if isinstance(found, Segment) else found.result() for found in self.segments
        )


def write_packed(transfer: Transfer, sources: list[FileSource]) -> list[TreeFile]:
    """Move files into objects and return them; all objects are in the store then."""
    return _PackedWriter(transfer).write(sources)


class _PackedWriter:
    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._store = transfer.store
        self._report = transfer.report
        self._condemned = transfer.condemned
        self._resend = transfer.resend
        self._partials = Partials(transfer.store)
        there = [part for part in transfer.base if part.key not in transfer.condemned]
        if transfer.resend:
            there = []
        self._known = {part.key for part in there}
        self._reused: set[str] = set()
        # Others have readable names, which are somebody's own.
        shared = (part for part in there if part.key.startswith(keys.OBJECTS))
        self._placed: dict[tuple[int, str], _Pending | Segment] = {
            (part.length, part.sha256): part for part in shared
        }
        """(length, sha256): where these bytes are, or will be when all is sent."""

    def write(self, sources: list[FileSource]) -> list[TreeFile]:
        stored = {source.path: self._stored_content(source) for source in sources}
        fresh = [source for source in sources if stored[source.path] is None]
        large = [source for source in fresh if source.size_bytes >= PACK_BELOW_BYTES]
        small = [source for source in fresh if source.size_bytes < PACK_BELOW_BYTES]
        self._partials.look_for(large)
        with transfer_threads(sum(source.size_bytes for source in fresh)) as (readers, senders):
            window: Window[str] = Window(senders)
            opened = self._write_large(large, readers, window)
            for pack in packs(small):
                opened += self._write_pack(pack, readers, window)
            files = [file.finish() for file in opened]
        self._remember_contents(files, large)
        self._partials.forget()
        return [*files, *(file for file in stored.values() if file is not None)]

    def _write_large(
        self, sources: list[FileSource], readers: Workers, window: Window[str]
    ) -> list[_OpenFile]:
        cutter = Cutter(sources, readers, self._report, None if self._resend else self._partials)
        packer, opened = _Packer(self, window), list[_OpenFile]()
        # Segments are hashed beside the file that they are in, which takes as long.
        with ThreadPoolExecutor(1, thread_name_prefix="hfflows-hash") as hasher:
            pieces = read_ahead(readers, cutter.pieces(), self._report, recall=cutter.recall)
            for _piece, data in pieces:
                cut = cutter.arrived()
                hashing = hasher.submit(_parts, cut.lengths, memoryview(data).cast("B"))
                if cut.offset == 0:
                    opened.append(_OpenFile(FileDigest(cut.source.source)))
                opened[-1].digest.update(data)
                opened[-1].segments += self._place(cut, data, hashing.result(), packer)
        packer.flush()
        return opened

    def _place(
        self, cut: CutPiece, data: Buffer, parts: Sequence[_Part], packer: _Packer
    ) -> list[_Pending | Segment]:
        """Return where the segments of a piece are or will be, and send what is not there."""
        new = {part.identity for part in parts if part.identity not in self._placed}
        if len(new) < len(parts):
            return [self.placed(part) or packer.add(part) for part in parts]
        digest = parts[0].sha256 if len(parts) == 1 else None
        sent = packer.window.submit(partial(self._put_piece, cut.piece, digest), data)
        carrier = _Carrier(key=sent)
        return [self.place(part, carrier, part.offset) for part in parts]

    def _write_pack(
        self, sources: list[FileSource], readers: Workers, window: Window[str]
    ) -> list[_OpenFile]:
        packer, opened = _Packer(self, window), list[_OpenFile]()
        whole_files = (Piece(source, 0, source.size_bytes) for source in sources)
        for piece, data in read_ahead(readers, whole_files, self._report):
            file = _OpenFile(FileDigest(piece.source))
            file.digest.update(data)
            if piece.length:
                part = _Part(0, memoryview(data).cast("B"), file.digest.sha256)
                file.segments.append(self.placed(part) or packer.add(part))
            opened.append(file)
        packer.flush()
        return opened

    # What is where -------------------------------------------------------------------

    def placed(self, part: _Part) -> _Pending | Segment | None:
        """Return where a segment's bytes are or will be, if they need not be sent."""
        found = self._placed.get(part.identity)
        if isinstance(found, Segment):
            self._reuse(found.key)
        return found

    def place(self, part: _Part, carrier: _Carrier, offset: int) -> _Pending:
        """Note that a segment's bytes are on their way, and where."""
        pending = _Pending(carrier, offset, part.length, part.sha256)
        self._placed[part.identity] = pending
        return pending

    def _reuse(self, key: str) -> None:
        if key not in self._reused:
            self._reused.add(key)
            self._report.count(objects_reused=1)

    # Objects -------------------------------------------------------------------------

    def _put_piece(self, piece: Piece, digest: str | None, data: Buffer) -> str:
        digest = digest or hashlib.sha256(data).hexdigest()
        key = self.put_object(data, digest=digest)
        if key == keys.object_key(digest):
            self._partials.remember(piece, digest)
        return key

    def put_object(self, data: Buffer, *, digest: str | None = None) -> str:
        """Return the key of an object with these bytes, once it is in the store."""
        digest = digest or hashlib.sha256(data).hexdigest()
        key = self._condemned.usable(keys.object_key(digest))
        look = not (self._resend or key in self._partials.damaged)
        put_object(self._transfer, key, data, is_known=key in self._known, look=look)
        self._known.add(key)
        return key

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
        length = sum(segment.length for segment in segments)
        if length != source.size_bytes or not self._are_there(segments):
            return None
        for segment in segments:
            self._reuse(segment.key)
        return TreeFile(
            source.path, source.size_bytes, announced.digest, source.is_executable, segments
        )

    def _are_there(self, segments: Iterable[Segment]) -> bool:
        needed: dict[str, int] = {}
        for segment in segments:
            if segment.key not in self._known:
                needed[segment.key] = max(needed.get(segment.key, 0), segment.end)
        if self._condemned.any_of(needed) is not None:
            return False
        sizes = object_sizes(self._store, needed)
        return all(sizes.get(key, -1) >= end for key, end in needed.items())

    def _remember_contents(self, files: list[TreeFile], sources: list[FileSource]) -> None:
        announced = {source.path for source in sources if source.announced is not None}
        for file in files:
            if file.path in announced:
                segments = [[s.key, s.offset, s.length, s.sha256] for s in file.segments]
                body = {"format_version": 1, "segments": segments}
                self._store.put(keys.content(file.sha256), encode_document(body))


@dataclass(frozen=True, slots=True)
class _Part:
    """The bytes of one segment, in memory."""

    offset: int
    data: memoryview
    sha256: str

    @property
    def length(self) -> int:
        return len(self.data)

    @property
    def identity(self) -> tuple[int, str]:
        return self.length, self.sha256


def _parts(lengths: Sequence[int], data: memoryview) -> list[_Part]:
    """Cut a piece into its segments and hash each."""
    ends = accumulate(lengths)
    pieces = (
        (end - length, data[end - length : end]) for length, end in zip(lengths, ends, strict=True)
    )
    return [_Part(offset, part, hashlib.sha256(part).hexdigest()) for offset, part in pieces]


class _Packer:
    """Fills objects with segments that are not there yet, of whatever files."""

    def __init__(self, writer: _PackedWriter, window: Window[str]) -> None:
        self._writer = writer
        self.window = window
        self._carrier = _Carrier()

    def add(self, part: _Part) -> _Pending:
        """Append a segment, and return where it will be."""
        if not fits_one_object(len(self._carrier.data) + part.length):
            self.flush()
        offset = len(self._carrier.data)
        self._carrier.data += part.data
        return self._writer.place(part, self._carrier, offset)

    def flush(self) -> None:
        """Send what was gathered; does nothing when that is nothing."""
        carrier, self._carrier = self._carrier, _Carrier()
        if carrier.data:
            carrier.key = self.window.submit(self._writer.put_object, carrier.data)
            carrier.data = bytearray()  # the window has it; the carrier lives as long as the save
