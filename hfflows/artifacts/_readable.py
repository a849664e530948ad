"""Layouts for other tools: `files`, one object a file, and `tar`, one object in all.

Their objects lie under the reference's own key, so nothing is shared with other artifacts
and a save sends every byte.
"""

from __future__ import annotations

import hashlib
import tarfile
from itertools import islice
from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.artifacts._pipeline import (
    FileDigest,
    Transfer,
    cut,
    fits_one_object,
    read_ahead,
    transfer_threads,
)
from hfflows.artifacts._tree import Segment, TreeFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

    from hfflows.artifacts._pipeline import Piece, Workers
    from hfflows.artifacts._sources import FileSource, Sources

_SENT_ALONE_BYTES = 1024 * 1024
"""From this size on a file is sent by itself, in parts that go several at once."""


def write_files(
    transfer: Transfer, sources: list[FileSource], reference_key: str
) -> list[TreeFile]:
    """Write each file as one object under its own path."""
    small = [source for source in sources if source.size_bytes < _SENT_ALONE_BYTES]
    large = [source for source in sources if source.size_bytes >= _SENT_ALONE_BYTES]
    with transfer_threads() as (readers, senders):

        def write(source: FileSource) -> TreeFile:
            return _write_file(transfer, source, reference_key, readers)

        futures = [senders.submit(write, source) for source in small]
        return [*map(write, large), *(future.result() for future in futures)]


def _write_file(
    transfer: Transfer, source: FileSource, reference_key: str, readers: Workers
) -> TreeFile:
    key = keys.file_key(reference_key, source.path)
    digest, segments = FileDigest(source), list[Segment]()

    def chunks() -> Iterator[Buffer]:
        for piece, data in read_ahead(readers, cut([source]), transfer.report):
            segments.append(_segment(key, piece.offset, piece, data, digest))
            yield data

    _put(transfer, key, chunks(), source.size_bytes)
    return digest.finish(segments)


def write_tar(transfer: Transfer, sources: Sources, reference_key: str) -> list[TreeFile]:
    """Write everything as one uncompressed tar, which the tree's segments point into.

    Equal content makes equal bytes: no times, no owners, entries in one order. Source: pax
    interchange format of IEEE Std 1003.1, as Python's `tarfile` writes its headers.
    """
    key, files = keys.tar_key(reference_key), list[TreeFile]()
    prologue = b"".join(_entries_without_content(sources))
    size_bytes = len(prologue) + len(_END)
    for source in sources.files:
        size_bytes += len(_file_header(source)) + _padded(source.size_bytes)

    def chunks(readers: Workers) -> Iterator[bytes | Buffer]:
        pieces = read_ahead(readers, cut(sources.files), transfer.report)
        if prologue:
            yield prologue
        offset = len(prologue)
        for source in sources.files:
            header = _file_header(source)
            yield header
            offset += len(header)
            digest, segments = FileDigest(source), list[Segment]()
            for piece, data in islice(pieces, sum(1 for _ in cut([source]))):
                segments.append(_segment(key, offset + piece.offset, piece, data, digest))
                yield data
            offset += _padded(source.size_bytes)
            if padding := bytes(_padded(source.size_bytes) - source.size_bytes):
                yield padding
            files.append(digest.finish(segments))
        yield _END

    with transfer_threads() as (readers, _senders):
        _put(transfer, key, chunks(readers), size_bytes)
    return files


_END = bytes(2 * tarfile.BLOCKSIZE)


def _entries_without_content(sources: Sources) -> Iterator[bytes]:
    for path in sources.directories:
        yield _header(path, type=tarfile.DIRTYPE, mode=0o755)
    for path, target in sources.symlinks:
        yield _header(path, type=tarfile.SYMTYPE, mode=0o777, linkname=target)


def _file_header(source: FileSource) -> bytes:
    mode = 0o755 if source.is_executable else 0o644
    return _header(source.path, size=source.size_bytes, mode=mode)


def _header(path: str, **fields: Any) -> bytes:
    entry = tarfile.TarInfo(path)
    for name, value in fields.items():
        setattr(entry, name, value)
    return entry.tobuf(tarfile.PAX_FORMAT)


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _put(transfer: Transfer, key: str, chunks: Iterator[Buffer], size_bytes: int) -> None:
    if fits_one_object(size_bytes):
        pieces = list(chunks)
        transfer.store.put(key, pieces[0] if len(pieces) == 1 else b"".join(pieces))
    else:
        transfer.store.put_stream(key, chunks)
    transfer.report.count(objects_sent=1, bytes_sent=size_bytes)


def _segment(key: str, offset: int, piece: Piece, data: Buffer, digest: FileDigest) -> Segment:
    """Let a piece pass through its file's digest and return the segment it becomes."""
    digest.update(data)
    sha256 = digest.sha256 if piece.is_whole else hashlib.sha256(data).hexdigest()
    return Segment(key, offset, piece.length, sha256)
