"""File contents kept on the worker's own disk: the second load of a file moves no bytes.

    <path>/files/<2 hex>/<sha256>-<r or x>-<mtime>-<inode>   a content, read-only
    <path>/tmp/<random>/                                     inserts under way
    <path>/lock                                              held while entries are evicted

An entry's name states its digest, whether it is executable, and what the file system said
about it when it was inserted, so that one rename publishes content and record together. An
entry that has another size, time or inode by now was touched by somebody: it is dropped,
logged, and its content is fetched again. When it was last used is its access time.

Nothing about the cache can fail a load: what cannot be kept or placed is logged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from hfflows.artifacts._cache_files import (
    Entry,
    clone_or_copy,
    content_of,
    digest_of,
    entry_name,
    touch,
)
from hfflows.errors import SettingsError, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from hfflows.artifacts._tree import TreeFile

CACHE_DIR_VARIABLE = "HFFLOWS_CACHE_DIR"
CACHE_MAX_BYTES_VARIABLE = "HFFLOWS_CACHE_MAX_BYTES"

Link = Literal["reflink", "copy", "hardlink"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_FILES_IN_FLIGHT = 8
_LOCK_SECONDS = 10.0
_SIZE = re.compile(r"(\d+)\s*(?:([KMGT])(i?))?B?", re.IGNORECASE)

logger = logging.getLogger("hfflows.artifacts")


class LocalCache:
    """File contents on this machine, found by their sha256.

    Several processes may share one. Evicting an entry never harms a load that is placing it:
    an open file keeps its bytes, and one that is gone is fetched.

    Args:
        path: Directory of its own; made when it is first needed.
        max_bytes: Sum of the sizes to keep; the least recently used go first. `None` is no
            limit.
        link: How a content gets to where it is loaded. `reflink` shares the blocks until one
            side writes, on file systems that can (XFS, Btrfs, …), and copies on others;
            `copy` always copies. `hardlink` takes no space and no time, but the loaded
            files *are* the cache's: they are read-only and must stay as they are. (Root may
            write all the same: the entry is then dropped at its next use, while loads made
            before show the change.)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        link: Link = "reflink",
    ) -> None:
        if link not in get_args(Link):
            msg = f"link={link!r} is none of {', '.join(get_args(Link))}."
            raise SettingsError(msg)
        if max_bytes is not None and max_bytes <= 0:
            msg = f"max_bytes={max_bytes} must be more than 0; None is no limit."
            raise SettingsError(msg)
        self.path = Path(path).expanduser().absolute()
        self.max_bytes = max_bytes
        self.link = link

    def __repr__(self) -> str:
        return f"<LocalCache {self.path}>"

    @property
    def size_bytes(self) -> int:
        """Return the sum of the sizes of all entries."""
        return sum(entry.size_bytes for entry in self._entries())

    def place(self, files: Sequence[TreeFile], root: Path) -> tuple[TreeFile, ...]:
        """Put what the cache holds under `root` and return the files that it lacks."""
        index = self._index(files)

        def place(file: TreeFile) -> bool:
            entries = index.get(content_of(file), ())
            return any(self._place_one(entry, file, root / file.path) for entry in entries)

        is_placed = _for_each(place, files)
        return tuple(file for file, done in zip(files, is_placed, strict=True) if not done)

    def insert(self, files: Sequence[TreeFile], root: Path) -> None:
        """Keep files that were loaded and verified under `root`, as far as they fit."""
        fresh = self._worth_keeping(files)
        if not fresh:
            return
        try:
            with self._workplace(sum(file.size_bytes for file in fresh)) as workplace:
                _for_each(lambda file: self._insert_one(file, root / file.path, workplace), fresh)
            with self._locked():
                self._evict(0)  # others may have inserted at the same time
        except OSError as error:
            logger.warning("%s: files were loaded, but not all are cached: %s", self.path, error)

    def verify(self) -> list[str]:
        """Read every entry, drop what is not what it was, and return the sha256 of those."""

        def is_right(entry: Entry) -> bool:
            try:
                digest = digest_of(entry.path)
            except FileNotFoundError:  # evicted meanwhile
                return True
            except OSError:
                return False
            touch(entry.path, entry.used_at)  # this was no use of it
            return entry.is_intact and digest == entry.sha256

        entries = list(self._entries())
        is_fine = _for_each(is_right, entries)
        wrong = [entry for entry, fine in zip(entries, is_fine, strict=True) if not fine]
        for entry in wrong:
            self._drop(entry)
        return [entry.sha256 for entry in wrong]

    def clear(self) -> None:
        """Delete every entry; loads under way fetch what they no longer find.

        Raises:
            TargetError: Another process keeps the cache locked.
        """
        if self.path.is_dir():
            with self._locked():
                for entry in self._entries():
                    entry.path.unlink(missing_ok=True)
                self._sweep()

    # One file ------------------------------------------------------------------------

    def _place_one(self, entry: Entry, file: TreeFile, target: Path) -> bool:
        if not entry.is_intact or entry.size_bytes != file.size_bytes:
            self._drop(entry)
            return False
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._transfer(entry.path, target, file)
        except OSError as error:
            logger.warning("%s: %s is fetched instead: %s", entry.path, file.path, error)
            target.unlink(missing_ok=True)
            return False
        touch(entry.path)
        return True

    def _insert_one(self, file: TreeFile, loaded: Path, workplace: Path) -> None:
        temporary = workplace / secrets.token_hex(8)
        self._transfer(loaded, temporary, file)
        # Segments were verified one by one; only a tree that lies joins them to another file
        # than it says, and no other artifact must be given that one.
        if not _is_one_segment(file) and digest_of(temporary) != file.sha256:
            logger.warning("%s is not cached: its sha256 is not what its tree says.", loaded)
            return
        temporary.chmod(0o555 if file.is_executable else 0o444)
        touch(temporary)
        shard = self.path / "files" / file.sha256[:2]
        shard.mkdir(parents=True, exist_ok=True)
        temporary.rename(shard / entry_name(file, temporary))

    def _transfer(self, source: Path, target: Path, file: TreeFile) -> None:
        if self.link == "hardlink":
            with contextlib.suppress(OSError):  # another file system: copy
                target.hardlink_to(source)
                return
        mode = 0o777 if file.is_executable else 0o666
        copied = clone_or_copy(source, target, mode=mode, may_clone=self.link != "copy")
        if copied != file.size_bytes:
            msg = f"{source} has {copied:,} bytes instead of {file.size_bytes:,}"
            raise OSError(msg)

    def _drop(self, entry: Entry) -> None:
        logger.warning("%s was changed since it was cached; it is dropped.", entry.path)
        with contextlib.suppress(OSError):
            entry.path.unlink()

    # All of them ---------------------------------------------------------------------

    def _entries(
        self, shards: Iterable[str] | None = None, contents: Collection[str] | None = None
    ) -> Iterator[Entry]:
        root = self.path / "files"
        for shard in _names(root) if shards is None else shards:
            for name in _names(root / shard):
                if contents is None or content_of(name) in contents:
                    entry = Entry.at(root / shard / name)
                    if entry is not None:
                        yield entry

    def _index(self, files: Sequence[TreeFile]) -> dict[str, list[Entry]]:
        found: dict[str, list[Entry]] = {}
        wanted = {content_of(file) for file in files}
        for entry in self._entries({file.sha256[:2] for file in files}, wanted):
            found.setdefault(entry.content, []).append(entry)
        return found

    def _worth_keeping(self, files: Sequence[TreeFile]) -> list[TreeFile]:
        present = self._index(files)
        fresh = {content_of(file): file for file in files if file.size_bytes}
        left, fitting = self.max_bytes, []
        for content, file in fresh.items():
            if content in present or (left is not None and file.size_bytes > left):
                continue
            fitting.append(file)
            left = None if left is None else left - file.size_bytes
        return fitting

    def _evict(self, needed_bytes: int) -> None:
        """Delete the least recently used entries until `needed_bytes` more would fit."""
        if self.max_bytes is None:
            return
        entries = sorted(self._entries(), key=lambda entry: entry.used_at)
        excess = sum(entry.size_bytes for entry in entries) + needed_bytes - self.max_bytes
        for entry in entries:
            if excess <= 0:
                return
            entry.path.unlink(missing_ok=True)
            excess -= entry.size_bytes

    @contextlib.contextmanager
    def _workplace(self, needed_bytes: int) -> Iterator[Path]:
        """Yield a directory for inserts; its lock dies with this process, which tells others."""
        import fcntl  # not on Windows, where `import hfflows` should still work

        workplace = self.path / "tmp" / secrets.token_hex(8)
        workplace.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._sweep()
            self._evict(needed_bytes)
            workplace.mkdir()
            descriptor = os.open(workplace, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield workplace
        finally:
            shutil.rmtree(workplace, ignore_errors=True)
            os.close(descriptor)

    def _sweep(self) -> None:
        """Delete the workplaces of killed processes."""
        import fcntl

        for name in _names(self.path / "tmp"):
            with contextlib.suppress(OSError):  # a live process has it locked
                descriptor = os.open(self.path / "tmp" / name, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(self.path / "tmp" / name, ignore_errors=True)
                finally:
                    os.close(descriptor)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from evicting; one that hangs is waited for only so long."""
        import fcntl

        deadline = time.monotonic() + _LOCK_SECONDS
        with (self.path / "lock").open("ab") as file:
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() > deadline:
                    msg = f"{self.path} has been locked by another process for too long."
                    raise TargetError(msg, path=str(self.path))
                time.sleep(0.01)
            yield


def default_cache() -> LocalCache | None:
    """Return the cache that `HFFLOWS_CACHE_DIR` names, `None` when it is not set.

    `HFFLOWS_CACHE_MAX_BYTES` limits it: bytes, or a number with a unit as in `200GB` or
    `64GiB`.

    Raises:
        SettingsError: The limit is not a size.
    """
    path = os.environ.get(CACHE_DIR_VARIABLE)
    if not path:
        return None
    limit = os.environ.get(CACHE_MAX_BYTES_VARIABLE)
    return LocalCache(path, max_bytes=_parse_size(limit) if limit else None)


def _parse_size(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    if found is None or int(found[1]) == 0:
        msg = (
            f"{CACHE_MAX_BYTES_VARIABLE}={text!r} is not a size; write bytes (200000000000) or a "
            "unit (200GB, 64GiB)."
        )
        raise SettingsError(msg)
    exponent = "KMGT".index(found[2].upper()) + 1 if found[2] else 0
    size: int = int(found[1]) * (1024 if found[3] else 1000) ** exponent
    return size


def _is_one_segment(file: TreeFile) -> bool:
    return [segment.sha256 for segment in file.segments] == [file.sha256]


def _for_each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    with ThreadPoolExecutor(_FILES_IN_FLIGHT, thread_name_prefix="hfflows-cache") as pool:
        return list(pool.map(function, items))


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except OSError:  # not there yet, or not ours to read: no entries
        return []
