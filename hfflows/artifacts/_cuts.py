"""Where a file is cut, so that what did not change in it falls into segments of its own.

A safetensors file is cut at its tensors, a zip (what `torch.save` writes) at its records,
any other file at multiples of `OBJECT_BYTES`. Nothing rests on what a file says of itself:
whatever its header claims, the segments follow each other from the first byte to the last,
and equal files are cut alike.

    |header| small tensors, together |  large tensor: 5 MiB | 5 MiB | rest  | small ones | …
    '------------------------- piece: at most OBJECT_BYTES -------------------------'

Neighbouring segments make a piece: what is read, and sent, in one go when all of it is new.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from hfflows.artifacts import _pipeline as pipeline
from hfflows.artifacts._safetensors_format import read_header
from hfflows.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from typing_extensions import Buffer

LARGEST_PART_BYTES = 5 * 1024 * 1024
"""Larger tensors are cut into parts of this size: three of them fill an object and leave room
for the small tensors between."""

LARGEST_HEADER_BYTES = 8 * 1024 * 1024
"""A header of 60,000 tensors. The format allows 100 MB; a file with more than this is cut like
any other, so that no file can make a save parse, and hold, ten times that in objects."""

SMALLEST_GROUP_BYTES = 64 * 1024
LARGEST_GROUP_BYTES = 2 * 1024 * 1024
"""Tensors below a size between these share segments."""

FEW_SEGMENTS = 640
SEGMENTS_PER_GIB = 1024
"""More than these, and small tensors share larger segments: each takes some 90 bytes in the
tree, which every save writes."""

_ZIP_MAGIC = b"PK\x03\x04"
_ZIP_TAIL_BYTES = 64 * 1024
_ZIP_HEADER_BYTES = 30
_HAS_DESCRIPTOR = 0x08
_DESCRIPTOR_BYTES = (24, 16)
"""What follows a record whose sizes were not known before: of 64 bits, or of 32."""

ReadAt = Callable[[int, int], "Buffer"]
"""(offset, length) to exactly so many bytes of the file."""


def segment_ends(size_bytes: int, head: Buffer, read: ReadAt) -> list[int] | None:
    """Return where the segments of a file end, or `None` when it is a file like any other.

    Args:
        size_bytes: Of the file.
        head: Its first bytes.
        read: Gives any others of it.
    """
    view = memoryview(head).cast("B")
    cuts = _zip_cuts(size_bytes, view, read) if bytes(view[:4]) == _ZIP_MAGIC else None
    cuts = cuts or _safetensors_cuts(size_bytes, view)
    if cuts is None:
        return None
    return _split(_grouped(cuts))


def plain_ends(size_bytes: int) -> list[int]:
    """Return where the segments of a file end that has no structure we know."""
    return [*range(pipeline.OBJECT_BYTES, size_bytes, pipeline.OBJECT_BYTES), size_bytes]


def pieces_of(ends: Iterable[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Group segments into pieces of at most `OBJECT_BYTES`: (offset, lengths of its segments)."""
    offset = position = 0
    lengths: list[int] = []
    for end in ends:
        if lengths and end - offset > pipeline.OBJECT_BYTES:
            yield offset, tuple(lengths)
            offset, lengths = position, []
        lengths.append(end - position)
        position = end
    if lengths:
        yield offset, tuple(lengths)


# From cuts to segments ---------------------------------------------------------------------


def _grouped(cuts: Sequence[int]) -> list[int]:
    """Return where segments end that begin and end at cuts, the first one by itself.

    What is large stands alone, small neighbours share. The bound between them is the
    smallest one that makes few enough segments.
    """
    most = max(FEW_SEGMENTS, cuts[-1] * SEGMENTS_PER_GIB >> 30)
    least = SMALLEST_GROUP_BYTES
    while len(ends := _grouped_by(cuts, least)) > most and least < LARGEST_GROUP_BYTES:
        least *= 2
    return ends


def _grouped_by(cuts: Sequence[int], least: int) -> list[int]:
    ends, begin = [cuts[1]], cuts[1]
    for low, high in pairwise(cuts[1:]):
        if high - low >= least:
            if low > begin:
                ends.append(low)
            ends.append(high)
            begin = high
        elif high - begin >= least:
            ends.append(high)
            begin = high
    if begin < cuts[-1]:
        ends.append(cuts[-1])
    return ends


def _split(ends: Iterable[int]) -> list[int]:
    """Cut what is too long for a part, counting from its own beginning."""
    part = min(LARGEST_PART_BYTES, pipeline.OBJECT_BYTES)
    parts, begin = list[int](), 0
    for end in ends:
        parts += range(begin + part, end, part)
        parts.append(end)
        begin = end
    return parts


# safetensors -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Head:
    """The beginning of a file, read as `read_header` reads a whole one."""

    head: memoryview
    size_bytes: int
    path: str = ""

    def read(self, offset: int, length: int) -> bytearray:
        if length > LARGEST_HEADER_BYTES or offset + length > len(self.head):
            msg = "Its header is longer than what is looked at."
            raise IntegrityError(msg)
        return bytearray(self.head[offset : offset + length])


def _safetensors_cuts(size_bytes: int, head: memoryview) -> list[int] | None:
    try:
        _metadata, tensors = read_header(_Head(head, size_bytes))
    except IntegrityError:
        return None
    begins = {tensor.offset for tensor in tensors.values()}
    return sorted({0, size_bytes} | begins) if tensors else None


# zip ---------------------------------------------------------------------------------------


class _Ends(io.RawIOBase):
    """A file of which only the two ends are looked at; `zipfile` does the looking."""

    def __init__(self, size_bytes: int, head: memoryview, read: ReadAt) -> None:
        super().__init__()
        self._size = size_bytes
        self._head = head
        self._read = read
        self._tail: memoryview | None = None
        self._position = 0

    def seekable(self) -> bool:  # docstring inherited
        return True

    def tell(self) -> int:  # docstring inherited
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # docstring inherited
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            msg = "A place before the beginning of the file."
            raise ValueError(msg)
        self._position = base + offset
        return self._position

    def read(self, count: int = -1) -> bytes:  # docstring inherited
        begin = min(self._position, self._size)
        end = self._size if count < 0 else min(begin + count, self._size)
        if end - begin > LARGEST_HEADER_BYTES:
            msg = "A directory larger than what is looked at."
            raise ValueError(msg)
        self._position = end
        if end <= len(self._head):
            return bytes(self._head[begin:end])
        tail_begin = max(self._size - _ZIP_TAIL_BYTES, 0)
        if begin < tail_begin:
            return bytes(self._read(begin, end - begin))
        if self._tail is None:
            self._tail = memoryview(self._read(tail_begin, self._size - tail_begin))
        return bytes(self._tail[begin - tail_begin : end - tail_begin])


def _zip_cuts(size_bytes: int, head: memoryview, read: ReadAt) -> list[int] | None:
    """Return where the records of a zip begin, and the content of each.

    Content is cut from its header: `torch.save` pads that so that content is aligned, so it
    changes when a record before it grows.
    """
    try:
        with zipfile.ZipFile(_Ends(size_bytes, head, read)) as archive:
            records = sorted(archive.infolist(), key=lambda record: record.header_offset)
            directory = archive.start_dir
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError):
        return None
    cuts = {0, size_bytes}
    ends = [*(record.header_offset for record in records[1:]), directory]
    for record, end in zip(records, ends, strict=True):
        cuts |= {record.header_offset, end, *_content(record, end)}
    return sorted(cut for cut in cuts if 0 <= cut <= size_bytes)


def _content(record: zipfile.ZipInfo, end: int) -> tuple[int, ...]:
    """Return where a record's content begins and ends, if that fits its own bounds."""
    after = _DESCRIPTOR_BYTES if record.flag_bits & _HAS_DESCRIPTOR else (0,)
    for descriptor in after:
        begin = end - descriptor - record.compress_size
        if begin % 64 == 0 and begin >= record.header_offset + _ZIP_HEADER_BYTES:
            return begin, end - descriptor
    return ()
