"""A copy of what is to be saved that training may not touch, as cheap as the disk allows.

| staged by | costs | when |
|---|---|---|
| `move` | nothing | the caller gives the path away, on the same file system |
| `reflink` | nothing much | the file system shares blocks until one side writes: btrfs, xfs, … |
| `copy` | a copy | otherwise |

Never a hard link: whoever rewrites the file in place would rewrite the checkpoint.
"""

from __future__ import annotations

import errno
import logging
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from hfflows.artifacts import LocalFile, check_free_disk, scan
from hfflows.errors import DiskSpaceError, IntegrityError

if sys.platform == "linux":
    import fcntl

if TYPE_CHECKING:
    from hfflows.artifacts import Sources

StagedBy = Literal["move", "reflink", "copy"]

logger = logging.getLogger("hfflows.checkpoint")

_FICLONE = 0x40049409
"""`ioctl` of Linux: share the blocks of another file, until either is written to."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Staged:
    """Something at rest, in a directory of its own."""

    path: Path
    by: StagedBy
    size_bytes: int

    def remove(self) -> None:
        """Delete it."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


def stage(source: Path, into: Path, *, move: bool = False) -> Staged:
    """Return `source` as it is now, in a new directory below `into`.

    Args:
        source: File or directory; it must not be written to until this returns.
        into: Existing directory; on the file system of `source` it costs least.
        move: `source` is given away, and gone afterwards.

    Raises:
        SettingsError, UnsafePathError: What cannot be saved; see `scan`.
        IntegrityError: A file changed meanwhile.
        DiskSpaceError: No room for a copy; nothing is left of it, and `source` is untouched.
    """
    sources = scan(source)
    sources.check()
    room = Path(tempfile.mkdtemp(prefix="staged-", dir=into))
    target = room / ("tree" if source.is_dir() else source.name)
    size_bytes = sum(file.size_bytes for file in sources.files)
    if move and _moved(source, target):
        return Staged(target, "move", size_bytes)
    try:
        by = _copy(sources, target, is_directory=source.is_dir())
    except BaseException as error:
        shutil.rmtree(room, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise _no_room(into, size_bytes, error) from error
        raise
    if move:
        remove(source)
    return Staged(target, by, size_bytes)


def _moved(source: Path, target: Path) -> bool:
    if source.is_symlink():
        return False  # the link is not what is to be saved
    try:
        source.rename(target)
    except OSError as error:
        logger.debug("%s is copied, it cannot be moved: %s", source, error)
        return False
    return True


def _copy(sources: Sources, target: Path, *, is_directory: bool) -> StagedBy:
    if is_directory:
        target.mkdir()
    root = target if is_directory else target.parent
    for name in sources.directories:
        (root / name).mkdir(parents=True, exist_ok=True)
    copier = _Copier(root, sum(file.size_bytes for file in sources.files))
    for file in sources.files:
        location = root / file.path
        location.parent.mkdir(parents=True, exist_ok=True)
        copier.copy(cast(LocalFile, file), location)  # `scan` returns no other
    for name, link in sources.symlinks:
        location = root / name
        location.parent.mkdir(parents=True, exist_ok=True)
        location.symlink_to(link)
    return "reflink" if copier.shares_blocks else "copy"


class _Copier:
    """Copies files, sharing blocks for as long as the file system lets it."""

    def __init__(self, root: Path, size_bytes: int) -> None:
        self._root, self._size_bytes = root, size_bytes
        self._has_room = False
        self.shares_blocks = sys.platform == "linux"

    def copy(self, file: LocalFile, target: Path) -> None:
        """Copy one file.

        Raises:
            IntegrityError: It changed since it was listed.
            DiskSpaceError: There is no room for all of them.
        """
        # Where one file cannot be cloned, others cannot either.
        self.shares_blocks = self.shares_blocks and _clone(file.location, target)
        if not self.shares_blocks:
            if not self._has_room:
                check_free_disk(self._root, self._size_bytes)
                self._has_room = True
            shutil.copyfile(file.location, target)
        if file.is_executable:
            target.chmod(0o700)
        now = file.location.stat()
        if (now.st_size, now.st_mtime_ns) != (file.size_bytes, file.modified_ns):
            msg = f"{file.location} changed while it was being saved; save it when it rests."
            raise IntegrityError(msg, path=file.path)


def _clone(source: Path, target: Path) -> bool:
    """Return whether `target` now shares the blocks of `source`."""
    if sys.platform != "linux":
        return False
    with source.open("rb") as reader, target.open("wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            return False
    return True


def remove(source: Path) -> None:
    """Delete a file or directory that was given away."""
    if source.is_dir() and not source.is_symlink():
        shutil.rmtree(source, ignore_errors=True)
    else:
        source.unlink(missing_ok=True)


def _no_room(into: Path, size_bytes: int, error: OSError) -> DiskSpaceError:
    msg = f"There is no room for a copy of {size_bytes:,} bytes in {into}: {error}"
    return DiskSpaceError(msg, path=str(into), needed_bytes=size_bytes)
