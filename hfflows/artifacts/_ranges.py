"""Byte ranges of an artifact's files, many at once: no more is read than checking them takes.

A range is read by the segments that it touches. Segments that lie close together come with
one request, some requests are under way at a time, and a range is yielded once all of it has
arrived and is known to be right.
"""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from hfflows.artifacts._read import GAP_BYTES
from hfflows.artifacts._runs import READS_IN_FLIGHT, runs
from hfflows.errors import ArtifactNotFoundError, IntegrityError, ObjectNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hfflows.artifacts._runs import Run
    from hfflows.artifacts._tree import Segment, Tree, TreeFile
    from hfflows.storage import Get


class FileRange(NamedTuple):
    """A run of bytes of one file."""

    path: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """A segment, and what a range takes of it."""

    segment: Segment
    number: int
    """Of the range."""
    path: str
    begin: int
    """In the segment, as `end`."""
    end: int
    position: int
    """In the range."""


@dataclass(slots=True)
class _Arriving:
    """A range of which something is there."""

    stream: io.BytesIO
    missing_bytes: int


_Fetched = list[tuple[_Piece, memoryview]]


def read_ranges(
    tree: Tree, wanted: Sequence[FileRange], *, store: Get
) -> Iterator[tuple[int, io.BytesIO]]:
    """Yield the ranges as (place in `wanted`, its bytes), in about the order of `wanted`.

    Raises:
        ArtifactNotFoundError: The tree has no such file.
        IntegrityError: Bytes are missing or not what was saved; names file and object.
    """
    pieces = list(_pieces(tree, wanted))
    arriving: dict[int, _Arriving] = {}
    yield from ((number, io.BytesIO()) for number, item in enumerate(wanted) if not item.length)
    for fetched in _read_ahead(store, runs(pieces, gap_bytes=GAP_BYTES)):
        for piece, data in fetched:
            number = piece.number
            if number not in arriving:
                arriving[number] = _begun(wanted[number].length)
            target = arriving[number]
            target.stream.seek(piece.position)
            target.stream.write(data)
            target.missing_bytes -= len(data)
            if not target.missing_bytes:
                target.stream.seek(0)
                yield number, arriving.pop(number).stream


def _begun(length: int) -> _Arriving:
    stream = io.BytesIO()
    stream.seek(length - 1)
    stream.write(b"\0")  # room for all of it at once: `BytesIO(bytes(length))` would take it twice
    return _Arriving(stream, length)


def _pieces(tree: Tree, wanted: Iterable[FileRange]) -> Iterator[_Piece]:
    files = {file.path: file for file in tree.files}
    starts: dict[str, list[int]] = {}
    for number, (path, offset, length) in enumerate(wanted):
        file = files.get(path)
        if file is None or offset + length > file.size_bytes:
            msg = f"The artifact has no {length} bytes at {offset} of a file {path!r}."
            raise ArtifactNotFoundError(msg, path=path)
        if path not in starts:
            starts[path] = _starts(file)
        yield from _touched(file, starts[path], number, offset, offset + length)


def _starts(file: TreeFile) -> list[int]:
    starts, position = list[int](), 0
    for segment in file.segments:
        starts.append(position)
        position += segment.length
    return starts


def _touched(
    file: TreeFile, starts: list[int], number: int, begin: int, end: int
) -> Iterator[_Piece]:
    if begin == end:
        return
    for index in range(bisect_right(starts, begin) - 1, len(starts)):
        start, segment = starts[index], file.segments[index]
        if start >= end:
            return
        low, high = max(begin - start, 0), min(end - start, segment.length)
        if low < high:
            yield _Piece(segment, number, file.path, low, high, start + low - begin)


def _read_ahead(store: Get, found: Iterator[Run[_Piece]]) -> Iterator[_Fetched]:
    """Yield what runs hold, in order, while the next ones are under way: a bounded number."""
    pool = ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="hfflows-read")
    try:
        under_way = deque(pool.submit(_fetch, store, run) for run in islice(found, READS_IN_FLIGHT))
        while under_way:
            yield under_way.popleft().result()
            under_way.extend(pool.submit(_fetch, store, run) for run in islice(found, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fetch(store: Get, run: Run[_Piece]) -> _Fetched:
    try:
        data = memoryview(store.get_range(run.key, run.offset, run.length))
    except (ObjectNotFoundError, IntegrityError) as error:
        what = "missing" if isinstance(error, ObjectNotFoundError) else "cut short"
        raise _wrong(run.parts[0], what) from error
    right: set[Segment] = set()
    fetched: _Fetched = []
    for piece in run.parts:
        begin = piece.segment.offset - run.offset
        content = data[begin : begin + piece.segment.length]
        if piece.segment not in right:
            if hashlib.sha256(content).hexdigest() != piece.segment.sha256:
                raise _wrong(piece, "damaged")
            right.add(piece.segment)
        fetched.append((piece, content[piece.begin : piece.end]))
    return fetched


def _wrong(piece: _Piece, what: str) -> IntegrityError:
    msg = (
        f"{piece.path}: the object {piece.segment.key} is {what}. What was read before is not a "
        "whole: load another artifact, or repair this one."
    )
    return IntegrityError(msg, path=piece.path, key=piece.segment.key)
