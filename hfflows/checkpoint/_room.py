"""Temporary directories that are gone when their process is, or soon afterwards.

    hfflows-k3j2h1a0/          one checkpointer's
      .owner                   locked while its process lives; says which boot of which machine
      checkpoint/ staged-…/    what it works on

A process that ends deletes its own. One that is killed cannot: the kernel gives its lock back,
and the next process that makes a room in the same place takes the lock and deletes the rest.

Nothing is deleted on a guess. A process id may be another's by now, and in containers it
means nothing to a neighbour; a lock is held by a live process, or by its forked children, and
by nobody else. Where several machines share a file system that keeps locks to each of them, the
boot id says whose the directory is. What has no lock file, or one of another boot or user, stays.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

if sys.platform == "linux":
    import fcntl

_PREFIX = "hfflows-"
_OWNER = ".owner"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Room:
    """A temporary directory of this process; make one with `make_room`."""

    path: Path
    lock: int | None
    """Descriptor that holds the lock; `None` where there are none: then it is never swept."""
    pid: int

    def remove(self) -> None:
        """Delete it; a forked child leaves its parent's alone."""
        if os.getpid() == self.pid:
            _delete(self.path)
            if self.lock is not None:
                os.close(self.lock)


def make_room(root: str | os.PathLike[str] | None = None) -> Room:
    """Return a new directory below `root`, which is made; `None` means the system's choice."""
    if root is not None:
        Path(root).mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    return Room(path, _locked(path), os.getpid())


def sweep(root: str | os.PathLike[str] | None = None) -> list[Path]:
    """Delete the rooms below `root` whose processes were killed, and return where they were."""
    swept = []
    try:
        with os.scandir(tempfile.gettempdir() if root is None else root) as entries:
            found = [Path(entry.path) for entry in entries if _may_be_room(entry)]
    except OSError:
        return []  # not there, or not to be read: nothing of ours
    for path in found:
        lock = _taken_over(path)
        if lock is not None:
            _delete(path)
            os.close(lock)
            swept.append(path)
    return swept


def _may_be_room(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False)


def _locked(path: Path) -> int | None:
    """Return a descriptor that holds the lock of a new room."""
    boot = _boot()
    if sys.platform != "linux" or boot is None:
        return None
    unlocked = path / f"{_OWNER}.new"
    descriptor = -1
    try:
        descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, boot)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(path / _OWNER)  # nobody ever sees it unlocked
    except OSError:  # a full disk, or a file system without locks
        if descriptor >= 0:
            os.close(descriptor)
        unlocked.unlink(missing_ok=True)
        return None
    return descriptor


def _taken_over(path: Path) -> int | None:
    """Return a descriptor that holds the lock of a dead process's room; `None` if it is not one."""
    boot = _boot()
    if sys.platform != "linux" or boot is None:
        return None
    try:
        descriptor = os.open(path / _OWNER, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None  # somebody else's, or just being made or deleted
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        is_ours = status.st_uid == os.geteuid() and os.read(descriptor, len(boot) + 1) == boot
        if is_ours and status.st_nlink:  # else another sweep was faster
            return descriptor
    except OSError:
        pass  # its process lives
    os.close(descriptor)
    return None


def _delete(path: Path) -> None:
    """Delete a room, the lock file last: a room without one would stay for ever."""
    try:
        contents = [child for child in path.iterdir() if child.name != _OWNER]
    except OSError:
        return
    for child in contents:
        if child.is_dir():
            shutil.rmtree(child, ignore_errors=True)  # it follows no link
        else:
            child.unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


@cache
def _boot() -> bytes | None:
    """Return what is the same for all processes under one kernel, containers included."""
    try:
        return _BOOT_ID.read_bytes().strip()
    except OSError:
        return None
