"""A tree to files on disk: ranged reads in parallel, every segment checked.

Files are written into a temporary sibling of the target, which is renamed into place when
all of it is there and right; a reader of the target sees everything or nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import shutil
import tempfile
from bisect import bisect_right
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from hfflows.artifacts._runs import Run, read_each, runs
from hfflows.errors import (
    DiskSpaceError,
    IntegrityError,
    ObjectNotFoundError,
    SettingsError,
    TargetError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from typing_extensions import Buffer

    from hfflows.artifacts._cache import LocalCache
    from hfflows.artifacts._tree import Segment, Tree, TreeFile
    from hfflows.storage import Get

GAP_BYTES = 8 * 1024
"""Bytes between two segments that cost less to read than another request does: the headers
of a tar, or a small file that was not asked for."""

_DISK_RESERVE_BYTES = 16 * 1024 * 1024  # directories, and whoever else writes


@dataclass(frozen=True, slots=True)
class _Placed:
    """A segment and where its bytes belong."""

    segment: Segment
    file: TreeFile
    file_offset: int


def matches(path: str, allow: Sequence[str] | None, ignore: Sequence[str] | None) -> bool:
    """Return whether patterns select a path, with the Hub client's meaning.

    Source: `huggingface_hub.utils.filter_repo_objects`: `fnmatch`, case-sensitive, `*`
    crosses `/`, and a pattern that ends in `/` means everything below.
    """

    def hit(patterns: Sequence[str]) -> bool:
        return any(
            fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern)
            for pattern in patterns
        )

    return (allow is None or hit(allow)) and (ignore is None or not hit(ignore))


def load_tree(store: Get, tree: Tree, path: Path, *, cache: LocalCache | None = None) -> None:
    """Fill the absent or empty directory `path` with the files of `tree`.

    What `cache` holds is not fetched, what it lacks is kept there.

    Raises:
        TargetError: `path` is a file, or a directory with something in it.
        DiskSpaceError: The file system has too little room; nothing was written.
        IntegrityError: An object is missing or its bytes are not what was saved; names
            the file and the object, and `path` is left as it was.
    """
    path = path.absolute()
    _check_target(path, tree.size_bytes)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        missing = tree.files if cache is None else cache.place(tree.files, staging)
        _fill(store, replace(tree, files=missing), staging)
        if cache is not None:
            cache.insert(missing, staging)
        staging.chmod(0o777 & ~_umask())
        _put_in_place(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_target(path: Path, size_bytes: int) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        kind = "is a file" if not path.is_dir() else "is not empty"
        msg = f"{path} {kind}; load into a new or empty directory, nothing is ever mixed."
        raise TargetError(msg, path=str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"The directory {path.parent} cannot be made: {error.strerror}."
        raise TargetError(msg, path=str(path)) from error
    check_free_disk(path.parent, size_bytes)


def check_free_disk(directory: Path, size_bytes: int) -> None:
    """Refuse to begin what the file system of `directory` has no room for.

    Raises:
        DiskSpaceError: States what is needed and what is free, in bytes.
    """
    free = shutil.disk_usage(directory).free
    if size_bytes + _DISK_RESERVE_BYTES > free:
        msg = (
            f"{directory} has {free:,} bytes free, {size_bytes:,} and a little room are needed. "
            "Free some space, or load elsewhere (path=…, or TMPDIR for temporary directories)."
        )
        raise DiskSpaceError(msg, path=str(directory), free_bytes=free, needed_bytes=size_bytes)


def _fill(store: Get, tree: Tree, root: Path) -> None:
    for folder in {posixpath.dirname(file.path) for file in tree.files}.union(tree.directories):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for file in tree.files:
        if not _is_written_once(file):
            os.close(_create(root, file))

    try:
        found = runs(_placed(tree.files), gap_bytes=GAP_BYTES)
        for _done in read_each(lambda run: _fetch(store, run, root), found):
            pass
    except OSError as error:
        if isinstance(error, ObjectNotFoundError) or error.errno is None:
            raise
        msg = f"Writing under {root.parent} failed: {error.strerror}. Nothing was left behind."
        raise TargetError(msg, path=str(root.parent)) from error
    for name, target in tree.symlinks:  # last, so that no write goes through one
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)


def _is_written_once(file: TreeFile) -> bool:
    """Return whether a single run writes the file, and so may create it: several do at once."""
    return len(file.segments) == 1


def _create(root: Path, file: TreeFile) -> int:
    mode = 0o777 if file.is_executable else 0o666
    return os.open(f"{root}/{file.path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)


def _fetch(store: Get, run: Run[_Placed], root: Path) -> None:
    """Write a run's bytes as they arrive: each while the processor still has it at hand."""
    owner, descriptor = None, -1
    try:
        for part, offset, data in _streamed(store, run):
            if part.file is not owner:
                if descriptor >= 0:
                    os.close(descriptor)
                owner, descriptor = part.file, _open(root, part.file)
            _write_at(descriptor, data, part.file_offset + offset)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _open(root: Path, file: TreeFile) -> int:
    return (
        _create(root, file)
        if _is_written_once(file)
        else os.open(f"{root}/{file.path}", os.O_WRONLY)
    )


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def _put_in_place(staging: Path, path: Path) -> None:
    try:
        staging.replace(path)
    except OSError as error:
        msg = f"{path} was taken while it was being loaded ({error.strerror}); load elsewhere."
        raise TargetError(msg, path=str(path)) from error


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _placed(files: Iterable[TreeFile]) -> Iterator[_Placed]:
    for file in files:
        position = 0
        for segment in file.segments:
            yield _Placed(segment, file, position)
            position += segment.length


def _is_in_line(run: Run[_Placed]) -> bool:
    """Return whether no byte belongs to two segments, and each segment has some."""
    segments = [part.segment for part in run.parts]
    return all(segment.length for segment in segments) and all(
        one.end <= other.offset for one, other in pairwise(segments)
    )


def _streamed(store: Get, run: Run[_Placed]) -> Iterator[tuple[_Placed, int, memoryview]]:
    """Yield a run's bytes with their segment and the place in it, as they arrive.

    A segment is checked when its last byte has come: what was yielded of it may be wrong
    until then.
    """
    if not _is_in_line(run):
        yield from ((part, 0, data) for part, data in _verified(store, run))
        return
    remaining, position = iter(run.parts), run.offset
    part, digest = next(remaining, None), hashlib.sha256()
    try:
        for piece in store.stream_range(run.key, run.offset, run.length):
            view = memoryview(piece)
            while part is not None and view:
                ahead = part.segment.offset - position
                if ahead > 0:  # a gap: bytes that nobody asked for
                    position, view = position + min(ahead, len(view)), view[ahead:]
                    continue
                data = view[: part.segment.end - position]
                digest.update(data)
                yield part, -ahead, data
                position, view = position + len(data), view[len(data) :]
                if position == part.segment.end:
                    _check(part, digest.hexdigest())
                    part, digest = next(remaining, None), hashlib.sha256()
    except (ObjectNotFoundError, IntegrityError) as error:
        if error.facts.get("path"):
            raise
        what = "missing" if isinstance(error, ObjectNotFoundError) else "cut short"
        raise _wrong(part or run.parts[0], what) from error


def _check(part: _Placed, sha256: str) -> None:
    if sha256 != part.segment.sha256:
        raise _wrong(part, "damaged")


def _verified(store: Get, run: Run[_Placed]) -> Iterator[tuple[_Placed, memoryview]]:
    """Yield each segment's bytes once they are known to be right."""
    try:
        data = memoryview(store.get_range(run.key, run.offset, run.length))
    except (ObjectNotFoundError, IntegrityError) as error:
        what = "missing" if isinstance(error, ObjectNotFoundError) else "cut short"
        raise _wrong(run.parts[0], what) from error
    for part in run.parts:
        begin = part.segment.offset - run.offset
        piece = data[begin : begin + part.segment.length]
        _check(part, hashlib.sha256(piece).hexdigest())
        yield part, piece


def _wrong(part: _Placed, what: str) -> IntegrityError:
    msg = (
        f"{part.file.path}: the object {part.segment.key} is {what}. Nothing was loaded. "
        "Load another artifact, or save this one again."
    )
    return IntegrityError(msg, path=part.file.path, key=part.segment.key)


class SegmentReader(io.RawIOBase):
    """A file of an artifact as a seekable binary stream over ranged reads.

    Each segment is fetched once when it is first touched, verified, and the last one kept.
    """

    def __init__(self, store: Get, file: TreeFile) -> None:
        super().__init__()
        self.name = file.path
        self._store = store
        self._file = file
        self._starts = [0]
        for segment in file.segments:
            self._starts.append(self._starts[-1] + segment.length)
        self._position = 0
        self._held: tuple[int, memoryview] | None = None

    def readable(self) -> bool:  # docstring inherited
        return True

    def seekable(self) -> bool:  # docstring inherited
        return True

    def tell(self) -> int:  # docstring inherited
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # docstring inherited
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size_bytes}
        if whence not in base or base[whence] + offset < 0:
            msg = f"Cannot seek to {offset} (whence {whence}) in {self.name}."
            raise SettingsError(msg)
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:  # docstring inherited
        if self._position >= self._file.size_bytes:
            return 0
        index = bisect_right(self._starts, self._position) - 1
        data = self._segment(index)[self._position - self._starts[index] :]
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(data))
        target[:count] = data[:count]
        self._position += count
        return count

    def read_unchecked(self, offset: int, length: int) -> bytes:
        """Return bytes as the store sends them: no more is moved, and nothing is verified.

        For readers who can tell by themselves whether the bytes are right.

        Raises:
            IntegrityError: The object is missing or cut short.
        """
        begin, end = offset, min(offset + length, self._file.size_bytes)
        found, index = bytearray(), bisect_right(self._starts, begin) - 1
        while begin < end:
            segment, inside = self._file.segments[index], begin - self._starts[index]
            count = segment.length - inside
            while begin + count < end and _continues(self._file.segments[index : index + 2]):
                index += 1
                count += self._file.segments[index].length
            count, index = min(count, end - begin), index + 1
            try:
                found += self._store.get_range(segment.key, segment.offset + inside, count)
            except (ObjectNotFoundError, IntegrityError) as error:
                what = "missing" if isinstance(error, ObjectNotFoundError) else "cut short"
                raise _wrong(_Placed(segment, self._file, begin), what) from error
            begin += count
        return bytes(found)

    def _segment(self, index: int) -> memoryview:
        if self._held is None or self._held[0] != index:
            segment = self._file.segments[index]
            placed = _Placed(segment, self._file, self._starts[index])
            run = Run(segment.key, segment.offset, segment.length, (placed,))
            for _part, data in _verified(self._store, run):
                self._held = (index, data)
        assert self._held is not None  # noqa: S101 - _verified yields or raises
        return self._held[1]


def _continues(pair: Sequence[Segment]) -> bool:
    one, other = pair
    return (one.key, one.end) == (other.key, other.offset)
