"""The files of a `LocalCache`: what an entry's name says, and copies that share blocks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

    from hfflows.artifacts._tree import TreeFile

_NAME = re.compile(r"([0-9a-f]{64})-([rx])-([0-9a-f]+)-([0-9a-f]+)")
_CONTENT_CHARS = 64 + 2
_FICLONE = 0x40049409  # from linux/fs.h; the fcntl module names it from Python 3.14 on
_COPY_BYTES = 1 << 30  # of one call, which cannot be interrupted


@dataclass(frozen=True, slots=True)
class Entry:
    """A cached content, as its name and the file system have it."""

    path: Path
    content: str
    """What `content_of` says of the files that it serves."""
    size_bytes: int
    used_at: int
    is_intact: bool
    """Whether time and inode are those of the insert."""

    @classmethod
    def at(cls, path: Path) -> Entry | None:
        """Return the entry that lies at `path`, `None` when there is none any more."""
        try:
            status = path.stat(follow_symlinks=False)
        except OSError:
            return None
        name = _NAME.fullmatch(path.name)
        if name is None:  # not ours: counted, and the first to go
            return cls(path, "", status.st_size, 0, is_intact=False)
        is_intact = (status.st_mtime_ns, status.st_ino) == (int(name[3], 16), int(name[4], 16))
        content = path.name[:_CONTENT_CHARS]
        return cls(path, content, status.st_size, status.st_atime_ns, is_intact=is_intact)

    @property
    def sha256(self) -> str:
        """Return the digest that the name states."""
        return self.content.partition("-")[0]


def content_of(file: TreeFile | str) -> str:
    """Return what files that one entry serves have in common, from a file or an entry's name."""
    if isinstance(file, str):
        return file[:_CONTENT_CHARS]
    return f"{file.sha256}-{'x' if file.is_executable else 'r'}"


def entry_name(file: TreeFile, path: Path) -> str:
    """Return the name under which what lies at `path` becomes an entry."""
    status = path.stat()
    return f"{content_of(file)}-{status.st_mtime_ns:x}-{status.st_ino:x}"


def touch(path: Path, used_at: int | None = None) -> None:
    """Note when an entry was used, now by default; other users' files do not let us."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(used_at or time.time_ns(), path.stat().st_mtime_ns))


def digest_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clone_or_copy(source: Path, target: Path, *, mode: int, may_clone: bool) -> int:
    """Write `source` to the new file `target` and return how many bytes that has.

    Args:
        source: What to copy.
        target: Must not exist.
        mode: Permissions of the new file, before the umask.
        may_clone: Share the blocks of both files until one is written to, where the file
            system can.
    """
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb", buffering=0) as out, source.open("rb", buffering=0) as data:
        if not (may_clone and _clone(data, out)) and not _copy_in_kernel(data, out):
            data.seek(0)
            out.seek(0)
            shutil.copyfileobj(data, out, 1 << 20)
        return os.fstat(descriptor).st_size


def _clone(source: BinaryIO, target: BinaryIO) -> bool:
    import fcntl  # not on Windows, where `import hfflows` should still work

    try:
        fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    except OSError:  # another file system, or one that cannot: there are many codes for it
        return False
    return True


def _copy_in_kernel(source: BinaryIO, target: BinaryIO) -> bool:
    if not hasattr(os, "copy_file_range"):
        return False
    try:
        while os.copy_file_range(source.fileno(), target.fileno(), _COPY_BYTES):
            pass
    except OSError:  # copied the plain way, which says what is wrong if anything is
        return False
    return True
