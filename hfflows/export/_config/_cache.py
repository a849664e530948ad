"""Small files kept on this machine, a directory for each model that they belong to.

    <root>/<sha256 of what they are a copy of>/manifest.json   {path: sha256}
                                              /m-<16 hex>/…     the files

A directory appears by one rename, whole. It is read through every time it is used, so what was
changed, cut short or added is as good as none. Tokenizers keep the path that they were loaded
from, which is why the files stay.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hfflows.artifacts import default_cache
from hfflows.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

logger = logging.getLogger("hfflows.export")

MOST_KEPT = 256
"""Models; those used least recently go first."""
_SAFE_SECONDS = 3600.0
"""What was used within this time may be in use, and stays."""
_MANIFEST = "manifest.json"
_STAGING = ".new-"


class ConfigCache:
    """Directories of a model's small files, verified at every use.

    Args:
        root: Made when it is first needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, identity: Sequence[str]) -> Path | None:
        """Return the directory that is a copy of `identity`, `None` when there is none."""
        entry = self._entry(identity)
        manifest = entry / _MANIFEST
        try:
            recorded = json.loads(manifest.read_bytes())
            found = recorded if recorded == _digests(self._files(entry)) else None
        except (OSError, ValueError, RecursionError):
            found = None
        if found is None:
            return None
        with contextlib.suppress(OSError):  # somebody else's: read all the same
            os.utime(manifest)
        return self._files(entry)

    def add(
        self, identity: Sequence[str], fill: Callable[[Path], object], *, replace: bool = False
    ) -> Path:
        """Return the directory that is a copy of `identity`, made by `fill`.

        Args:
            identity: What the files are a copy of, for ever.
            fill: Writes them into the absent directory that it is given.
            replace: Also when there is one, whole, by now.

        Raises:
            TargetError: The root cannot be written to; and what `fill` raises.
        """
        entry = self._entry(identity)
        staging = self._staging()
        try:
            made = staging / entry.name
            made.mkdir()
            fill(self._files(made))
            manifest = json.dumps(_digests(self._files(made)), sort_keys=True)
            (made / _MANIFEST).write_text(manifest, encoding="utf-8")
            # Of processes that do the same at once the first wins: others may be reading there.
            if not _is_renamed(made, entry) and (replace or self.find(identity) is None):
                _is_renamed(entry, staging / "before")
                _is_renamed(made, entry)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        self._evict()
        return self._files(entry)

    def _staging(self) -> Path:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=_STAGING, dir=self.root))
        except OSError as error:
            msg = f"{self.root} cannot be written to ({error.strerror}); set HFFLOWS_CACHE_DIR."
            raise TargetError(msg, path=str(self.root)) from error

    def _entry(self, identity: Sequence[str]) -> Path:
        name = hashlib.sha256(json.dumps(list(identity)).encode()).hexdigest()
        return self.root / name

    def _files(self, entry: Path) -> Path:
        # transformers names the modules of a repo's own code after the last part of the path.
        return entry / f"m-{entry.name[:16]}"

    def _evict(self) -> None:
        now = time.time()
        entries = sorted(_by_age(self.root), reverse=True)
        for used_at, entry in entries[MOST_KEPT:]:
            if now - used_at > _SAFE_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
        for used_at, entry in entries:
            if entry.name.startswith(_STAGING) and now - used_at > 24 * _SAFE_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)  # of a process that was killed


def keep(
    cache: ConfigCache,
    identity: Sequence[str],
    fill: Callable[[Path], object],
    *,
    replace: bool = False,
) -> Path:
    """Return what `cache.add` does; where it cannot be written, for as long as this process.

    Raises:
        What `fill` raises.
    """
    try:
        return cache.add(identity, fill, replace=replace)
    except TargetError as error:
        logger.warning("Configs are kept for this process only: %s", error)
    temporary = ConfigCache(fallback_root())
    found = None if replace else temporary.find(identity)
    return found or temporary.add(identity, fill, replace=replace)


def default_root() -> Path:
    """Return `configs` in the directory of `HFFLOWS_CACHE_DIR`, else in the user's cache."""
    contents = default_cache()
    if contents is not None:
        return contents.path / "configs"
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "hfflows" / "configs"


@cache
def fallback_root() -> Path:
    """Return a directory for this process only, where the user's cache cannot be written."""
    root = Path(tempfile.mkdtemp(prefix="hfflows-configs-"))
    atexit.register(_remove, root, os.getpid())
    return root


def _remove(root: Path, process_id: int) -> None:
    if os.getpid() == process_id:  # not in a fork, whose parent goes on
        shutil.rmtree(root, ignore_errors=True)


def _is_renamed(source: Path, target: Path) -> bool:
    try:
        source.rename(target)
    except OSError:
        return False
    return True


def _digests(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            msg = f"{path} is no file"
            raise ValueError(msg)
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(root).as_posix()] = digest
    return found


def _by_age(root: Path) -> Iterator[tuple[float, Path]]:
    for entry in root.iterdir():
        with contextlib.suppress(OSError):
            manifest = entry / _MANIFEST
            used = manifest if manifest.is_file() else entry
            yield used.stat().st_mtime, entry
