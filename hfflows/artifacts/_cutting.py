"""Files on their way into pieces: a file's first bytes are read, then say where it is cut.

They are read ahead like any others, while the last pieces of the file before are under way,
and they are read once: the first pieces are taken from them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hfflows.artifacts import _pipeline as pipeline
from hfflows.artifacts._cuts import pieces_of, plain_ends, segment_ends
from hfflows.artifacts._pipeline import Piece

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Buffer

    from hfflows.artifacts._partials import Partials
    from hfflows.artifacts._pipeline import TransferReport, Workers
    from hfflows.artifacts._sources import Announced, FileSource


@dataclass(slots=True)
class HeadedSource:
    """A file whose first bytes are in memory until `release`."""

    source: FileSource
    head: memoryview | None

    @property
    def path(self) -> str:  # docstring inherited
        return self.source.path

    @property
    def size_bytes(self) -> int:  # docstring inherited
        return self.source.size_bytes

    @property
    def is_executable(self) -> bool:  # docstring inherited
        return self.source.is_executable

    @property
    def announced(self) -> Announced | None:  # docstring inherited
        return self.source.announced

    def held(self, offset: int, length: int) -> memoryview:
        """Return what the head has of a range: all, its beginning, or nothing."""
        head = self.head
        return memoryview(b"") if head is None else head[offset : offset + length]

    def read(self, offset: int, length: int) -> Buffer:  # docstring inherited
        return self.source.read(offset, length)

    def release(self, position: int) -> None:
        """Let go of the head when everything before `position` was read."""
        if self.head is not None and position >= len(self.head):
            self.head = None


@dataclass(frozen=True, slots=True)
class CutPiece:
    """A piece, and the segments that it is made of."""

    source: HeadedSource
    offset: int
    lengths: tuple[int, ...]

    @property
    def piece(self) -> Piece:
        """Return what is to be read."""
        return Piece(self.source, self.offset, sum(self.lengths))


class Cutter:
    """Cuts files into pieces, in order.

    Args:
        sources: Files that are not empty.
        readers: Threads that read heads.
        report: Counter of what is read from the sources.
        partials: What earlier attempts left; `None` when it is not to be relied on.
    """

    def __init__(
        self,
        sources: Sequence[FileSource],
        readers: Workers,
        report: TransferReport,
        partials: Partials | None,
    ) -> None:
        self._sources = sources
        self._readers = readers
        self._report = report
        self._partials = partials
        self._under_way: deque[CutPiece] = deque()

    def pieces(self) -> Iterator[Piece]:
        """Yield what is to be read."""
        remaining = iter(self._sources)
        source = next(remaining, None)
        coming = None if source is None else self._readers.submit(self._cut, source)
        while coming is not None:
            *pieces, last = coming.result()
            for cut in pieces:
                self._under_way.append(cut)
                yield cut.piece
            source = next(remaining, None)
            coming = None if source is None else self._readers.submit(self._cut, source)
            self._under_way.append(last)
            yield last.piece

    def arrived(self) -> CutPiece:
        """Return the oldest piece that was not returned before."""
        cut = self._under_way.popleft()
        cut.source.release(cut.offset + sum(cut.lengths))
        return cut

    def recall(self, piece: Piece) -> Buffer | None:
        """Return a piece's bytes where they, or its first ones, need not be read again."""
        source = piece.source
        held = source.held(piece.offset, piece.length) if isinstance(source, HeadedSource) else b""
        if len(held) == piece.length:
            return held
        data = None if self._partials is None else self._partials.recall(piece)
        if data is None and held:
            rest = piece.length - len(held)
            data = b"".join((held, self._read(source, piece.offset + len(held), rest)))
        return data

    def _cut(self, source: FileSource) -> list[CutPiece]:
        length = min(pipeline.OBJECT_BYTES, source.size_bytes)
        head = self._recalled_head(source)
        ends = None if head is None else self._segment_ends(source, head)
        if head is None or (ends is None and len(head) < length):
            # What is there does not tell: an earlier version may have cut otherwise.
            head = memoryview(self._read(source, 0, length)).cast("B")
            ends = self._segment_ends(source, head)
        headed = HeadedSource(source, head)
        cuts = pieces_of(ends or plain_ends(source.size_bytes))
        return [CutPiece(headed, offset, lengths) for offset, lengths in cuts]

    def _segment_ends(self, source: FileSource, head: memoryview) -> list[int] | None:
        return segment_ends(source.size_bytes, head, partial(self._read, source))

    def _read(self, source: FileSource, offset: int, length: int) -> Buffer:
        self._report.count(bytes_read=length)
        return source.read(offset, length)

    def _recalled_head(self, source: FileSource) -> memoryview | None:
        first = None if self._partials is None else self._partials.first(source)
        if self._partials is None or first is None:
            return None
        data = self._partials.recall(first)
        return None if data is None else memoryview(data).cast("B")
