"""Where the bytes of a new artifact come from: files on disk here, the Hub in `hub`."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from hfflows.artifacts._tree import Tree, check_link, check_path, check_tree
from hfflows.errors import IntegrityError, SettingsError

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class Announced:
    """A digest that the origin of a file stated before its bytes were read."""

    algorithm: Literal["sha256", "git-sha1"]
    digest: str


class FileSource(Protocol):
    """One file to be saved; read from several threads at once."""

    @property
    def path(self) -> str:
        """Relative POSIX path in the tree."""
        ...

    @property
    def size_bytes(self) -> int:
        """Size that `read` will deliver in total."""
        ...

    @property
    def is_executable(self) -> bool:
        """Whether the owner may execute it."""
        ...

    @property
    def announced(self) -> Announced | None:
        """What the bytes must add up to, if the origin said so."""
        ...

    def read(self, offset: int, length: int) -> Buffer:
        """Return exactly `length` bytes from `offset`."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file on disk."""

    path: str
    size_bytes: int
    is_executable: bool
    location: Path
    modified_ns: int
    announced: Announced | None = None

    def read(self, offset: int, length: int) -> Buffer:
        """Return exactly `length` bytes from `offset`.

        Raises:
            IntegrityError: The file changed since it was listed.
        """
        with self.location.open("rb", buffering=0) as file:
            now = os.fstat(file.fileno())
            if now.st_size != self.size_bytes or now.st_mtime_ns != self.modified_ns:
                msg = f"{self.location} changed while it was being saved; save a copy that rests."
                raise IntegrityError(msg, path=self.path)
            file.seek(offset)
            data = file.read(length)
            while len(data) < length and (more := file.read(length - len(data))):
                data += more
        if len(data) != length:
            msg = f"{self.location} ended at byte {offset + len(data)} while it was being saved."
            raise IntegrityError(msg, path=self.path)
        return data


@dataclass(slots=True)
class Sources:
    """Everything an artifact is to hold; `tree` has it without files."""

    files: list[FileSource] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    symlinks: list[tuple[str, str]] = field(default_factory=list)

    def check(self) -> None:
        """Refuse names that could not be loaded again, before any byte moves."""
        check_tree(Tree((), tuple(self.directories), tuple(self.symlinks)))
        for file in self.files:
            check_path(file.path)


def scan(path: str | os.PathLike[str]) -> Sources:
    """Return what lies at `path`: a directory's content, or one file under its own name.

    Empty directories, executable bits and symlinks inside the directory are kept.

    Raises:
        SettingsError: Nothing is at `path`, or a socket, device or pipe lies in it.
        UnsafePathError: A symlink leaves the directory, or a name is not portable.
    """
    root = Path(path)
    if not root.exists():
        msg = f"{root} does not exist; there is nothing to save."
        raise SettingsError(msg, path=str(root))
    sources = Sources()
    if root.is_dir():
        _scan_directory(root, "", sources)
    else:
        _add_file(root, root.name, sources)
    sources.files.sort(key=lambda file: file.path)
    sources.directories.sort()
    sources.symlinks.sort()
    return sources


def _scan_directory(directory: Path, prefix: str, sources: Sources) -> None:
    entries = list(os.scandir(directory))
    if not entries and prefix:
        sources.directories.append(prefix.removesuffix("/"))
    for entry in entries:
        name = prefix + entry.name
        check_path(name)
        if entry.is_symlink():
            target = str(Path(entry.path).readlink())
            check_link(name, target)
            sources.symlinks.append((name, target))
        elif entry.is_dir():
            _scan_directory(Path(entry.path), f"{name}/", sources)
        else:
            _add_file(Path(entry.path), name, sources)


def _add_file(location: Path, name: str, sources: Sources) -> None:
    check_path(name)
    status = location.stat()
    if not stat.S_ISREG(status.st_mode):
        msg = f"{location} is neither a file, a directory nor a symlink; it cannot be saved."
        raise SettingsError(msg, path=str(location))
    sources.files.append(
        LocalFile(
            path=name,
            size_bytes=status.st_size,
            is_executable=bool(status.st_mode & stat.S_IXUSR),
            location=location,
            modified_ns=status.st_mtime_ns,
        )
    )
