"""Files to move: real, incompressible, never the same twice."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.spec import BenchmarkError

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK_BYTES = 4 * 1024 * 1024
_FILES_PER_FOLDER = 100
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_TOPDIR_FL = 0x80086601, 0x40086602, 0x00020000


@dataclass(frozen=True, slots=True)
class FileSet:
    """So many files of one size."""

    count: int
    size_bytes: int
    suffix: str = ".bin"

    @property
    def total_bytes(self) -> int:
        """Return the size of all."""
        return self.count * self.size_bytes

    def parameters(self) -> dict[str, int]:
        """Return what the report says of them."""
        return {"files": self.count, "file_bytes": self.size_bytes}

    def write(self, root: Path) -> None:
        """Make the directory `root` with these files, many of them in folders."""
        for number in range(self.count):
            folder = root
            if self.count > _FILES_PER_FOLDER:
                folder /= f"part-{number // _FILES_PER_FOLDER:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"file-{number:05d}{self.suffix}").open("wb") as file:
                write_random(file.fileno(), self.size_bytes)


def spread_directories(parent: Path) -> None:
    """Let ext4 place the directories that are made in `parent` far from each other.

    It does not give out the inodes of deleted files for some minutes, and steps over each of
    them when it makes a file nearby: whoever comes after a contender that deletes would pay.
    Other file systems have no such flag, and nothing happens.

    Source: `FS_TOPDIR_FL` in ioctl_iflags(2), and `recently_deleted` in Linux's ext4.
    """
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):
        flags = struct.unpack("i", fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, bytes(4)))[0]
        fcntl.ioctl(descriptor, _FS_IOC_SETFLAGS, struct.pack("i", flags | _FS_TOPDIR_FL))
    os.close(descriptor)


def write_random(descriptor: int, length: int) -> None:
    """Write random bytes at a file's position."""
    for done in range(0, length, _BLOCK_BYTES):
        os.write(descriptor, os.urandom(min(_BLOCK_BYTES, length - done)))


def check_equal(expected: Path, actual: Path) -> None:
    """Compare two directories, names and every byte.

    Raises:
        BenchmarkError: They differ.
    """
    names = _files(expected)
    if names != _files(actual):
        msg = f"what was loaded has {len(_files(actual))} files or other names, not {len(names)}"
        raise BenchmarkError(msg)
    for name in names:
        if not _same_bytes(expected / name, actual / name):
            msg = f"what was loaded differs from what was saved, in {name}"
            raise BenchmarkError(msg)


def _files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def _same_bytes(one: Path, other: Path) -> bool:
    with one.open("rb", buffering=0) as left, other.open("rb", buffering=0) as right:
        while block := left.read(_BLOCK_BYTES):
            if block != right.read(_BLOCK_BYTES):
                return False
        return not right.read(1)
