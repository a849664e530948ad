"""A file's bytes with another end: in a new file that takes its place, or where it lies."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hfflows.artifacts import check_free_disk
from hfflows.errors import HfflowsError, MetadataError, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_COPY_BYTES = 8 * 1024 * 1024

Kept = list[tuple[int, int]]
"""Runs of bytes that stay: where each begins and ends."""


def rewrite_tail(file: BinaryIO, path: Path, offset: int, tail: bytes) -> None:
    """Put `tail` in the place of all from `offset` on; what was there comes back on an error.

    Raises:
        TargetError: The file system is full, or failed.
    """
    file.seek(offset)
    before = file.read()
    try:
        _write_tail(file.fileno(), offset, tail)
    except BaseException as error:
        is_whole = _is_restored(file.fileno(), offset, before)
        if not isinstance(error, OSError):
            raise
        state = "It is as it was." if is_whole else "It is damaged: make it again."
        msg = f"{path} cannot be written: {error.strerror or error}. {state}"
        raise TargetError(msg, path=str(path)) from error


def _is_restored(descriptor: int, offset: int, before: bytes) -> bool:
    try:
        _write_tail(descriptor, offset, before)
    except OSError:
        return False
    return True


def _write_tail(descriptor: int, offset: int, tail: bytes) -> None:
    # By hand: what a buffered file could not write, it would try to write again.
    os.lseek(descriptor, offset, os.SEEK_SET)
    left = memoryview(tail)
    while left:
        left = left[os.write(descriptor, left) :]
    os.ftruncate(descriptor, offset + len(tail))
    os.fsync(descriptor)


def rewrite(
    source: BinaryIO, path: Path, kept: Kept, tail: bytes, *, check: Callable[[str], object]
) -> None:
    """Write the new file beside the old one and put it in its place.

    Args:
        source: The old file.
        path: Where it is.
        kept: What of it comes first.
        tail: What comes then.
        check: Reads the new file; when it raises, the old one stays.

    Raises:
        TargetError: The directory may not be written to, or the file system is full or failed.
    """
    size_bytes = sum(end - start for start, end in kept) + len(tail)
    check_free_disk(path.parent, size_bytes)
    with _errors_of(path):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as target:
                for start, end in kept:
                    _copy_range(source, target, start, end)
                target.write(tail)
                target.flush()
                _take_over(os.fstat(source.fileno()), target.fileno())
                os.fsync(target.fileno())
            check(name)  # nothing that cannot be read back takes the file's place
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _take_over(status: os.stat_result, descriptor: int) -> None:
    with suppress(OSError):  # only root may give files away
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except HfflowsError:
        raise
    except OSError as error:
        msg = f"{path} cannot be written: {error.strerror or error}. It is as it was."
        raise TargetError(msg, path=str(path)) from error


def _begin_writing(descriptor: int, count: int) -> None:
    """Have the bytes just written go to the disk while the next ones are copied.

    Else all of them wait for `fsync`. Linux writes what it is told to drop, and drops none of
    it before that; elsewhere the call does nothing of the kind, and no harm.
    """
    if hasattr(os, "posix_fadvise"):
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.posix_fadvise(descriptor, end - count, count, os.POSIX_FADV_DONTNEED)


def _copy_range(source: BinaryIO, target: BinaryIO, start: int, end: int) -> None:
    """Copy bytes, by the kernel where it can."""
    target.flush()
    offset = start
    try:
        while offset < end:
            size_bytes = min(_COPY_BYTES, end - offset)
            count = os.copy_file_range(
                source.fileno(), target.fileno(), size_bytes, offset_src=offset
            )
            if not count:
                break
            _begin_writing(target.fileno(), count)
            offset += count
    except (AttributeError, OSError):  # not on this system, or not between these file systems
        pass
    target.seek(0, os.SEEK_END)
    source.seek(offset)
    while offset < end:
        data = source.read(min(1 << 20, end - offset))
        if not data:
            msg = "The file became shorter while it was being read."
            raise MetadataError(msg)
        target.write(data)
        offset += len(data)
