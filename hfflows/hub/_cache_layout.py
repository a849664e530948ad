"""A snapshot into the cache of huggingface_hub, where `from_pretrained("org/name")` finds it.

    <cache>/models--org--name/
        blobs/<etag>                          bytes: sha256 of LFS files, git blob sha1 of others
        snapshots/<commit>/<path>             -> ../../blobs/<etag>
        refs/<revision>                       the commit, written last
        .hfflows/<random>/                    a load under way

Blobs are renamed into place when they are whole and verified, a new snapshot directory when
it is complete, and the reference moves after that: a reader sees what was there before, or
all of it. What other revisions, repos and clients keep in the cache is left as it is.

Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. That page's `trees/`
(the Hub's listing of a commit) is not written: without it the client takes the directory for
what was asked for, which is right for a snapshot that patterns made.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants

from hfflows import keys
from hfflows.artifacts import RefLike, Tree, default_cache, read_tree, resolve_ref, store_for
from hfflows.artifacts._read import load_tree
from hfflows.errors import SettingsError, TargetError
from hfflows.hub._revisions import is_commit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hfflows.artifacts import TreeFile
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

LFS_FROM_BYTES = 10_000_000
"""The Hub keeps larger files in LFS whatever their name."""
_SAMPLE_BYTES = 8_000
"""As much as git reads of a file to tell whether it is binary."""


def load_into_hf_cache(
    ref: RefLike,
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    store: Store | None = None,
) -> Path:
    """Put a snapshot into the cache of huggingface_hub and return its directory there.

    Afterwards `from_pretrained("org/name")`, `hf_hub_download` and `snapshot_download` find it
    as if they had fetched it, also with `HF_HUB_OFFLINE=1`. Only what the cache lacks is
    moved. Several processes may do it at once.

    Args:
        ref: A snapshot: its reference, dict or key.
        cache_dir: The cache; `None` means the client's own (`HF_HUB_CACHE`, `HF_HOME`).
        revision: Branch or tag that names this commit from now on; `None` means the one with
            which the snapshot was fetched, a commit none.
        store: Where from; `None` means the store the reference names.

    Raises:
        SettingsError: Not a snapshot of a Hub commit, or no name for a revision.
        IntegrityError: Bytes are missing or not what was saved; the cache is as it was.
        TargetError, DiskSpaceError: The cache cannot be written to.
    """
    store = store_for(ref, store)
    resolved = resolve_ref(ref, store=store)
    place = _Place.of(resolved, cache_dir, revision)
    tree = read_tree(resolved, store=store)
    try:
        place.repo.mkdir(parents=True, exist_ok=True)
        with _workplace(place.repo) as workplace:
            _fill(place, tree, workplace, store)
        place.point()
    except OSError as error:
        if isinstance(error, TargetError) or error.errno is None:
            raise
        msg = f"{place.repo} cannot be written to: {error.strerror}."
        raise TargetError(msg, path=str(place.repo)) from error
    return place.snapshot


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one commit of one repo lies in a cache."""

    repo: Path
    commit_hash: str
    revision: str

    @classmethod
    def of(
        cls, ref: ArtifactRef, cache_dir: str | os.PathLike[str] | None, revision: str | None
    ) -> _Place:
        about = {name: str(value) for name, value in ref.metadata.items()}
        if ref.kind != keys.SNAPSHOT_KIND or not is_commit(about.get("commit_hash")):
            msg = f"{ref.key} is not a snapshot of a Hub commit; load it with load_artifact."
            raise SettingsError(msg, key=ref.key)
        revision = revision or about["revision"]
        if any(part in {"", ".", ".."} for part in revision.split("/")) or "\\" in revision:
            msg = f"The revision {revision!r} is no name for a file in a cache."
            raise SettingsError(msg)
        cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute()
        folder = "--".join([f"{about['repo_type']}s", *about["repo_id"].split("/")])
        return cls(cache / folder, about["commit_hash"], revision)

    @property
    def snapshot(self) -> Path:
        return self.repo / "snapshots" / self.commit_hash

    def blob(self, etag: str) -> Path:
        return self.repo / "blobs" / etag

    def point(self) -> None:
        """Let the revision name the commit, atomically."""
        ref = self.repo / "refs" / self.revision
        if self.revision == self.commit_hash or _text(ref) == self.commit_hash:
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self.repo, prefix=".ref-")
        with os.fdopen(descriptor, "w") as file:
            file.write(self.commit_hash)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(ref)


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _fill(place: _Place, tree: Tree, workplace: Path, store: Store) -> None:
    """Bring what the snapshot's directory lacks into it."""
    missing = [file for file in tree.files if not _is_at(place.snapshot / file.path, file)]
    if not missing:
        return
    may_link = _may_link(workplace)
    in_blobs = {file.path for file in missing if may_link and _is_at(place.blob(file.sha256), file)}
    wanted = tuple(file for file in missing if file.path not in in_blobs)
    loaded, pointers = workplace / "files", workplace / "snapshot"
    load_tree(store, Tree(wanted), loaded, cache=default_cache())
    lfs = _lfs_patterns(loaded, place.snapshot)
    for file in missing:
        pointer = pointers / file.path
        pointer.parent.mkdir(parents=True, exist_ok=True)
        if not may_link:
            (loaded / file.path).replace(pointer)
            continue
        etag = file.sha256
        if file.path not in in_blobs:
            etag = _etag(file, loaded / file.path, lfs)
            place.blob(etag).parent.mkdir(exist_ok=True)
            (loaded / file.path).replace(place.blob(etag))
        pointer.symlink_to("../" * (2 + file.path.count("/")) + f"blobs/{etag}")
    _publish(pointers, place.snapshot, missing)


def _publish(pointers: Path, snapshot: Path, files: Sequence[TreeFile]) -> None:
    snapshot.parent.mkdir(exist_ok=True)
    try:
        pointers.rename(snapshot)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        for file in files:  # the directory of a client, or of another load of this commit
            target = snapshot / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            (pointers / file.path).replace(target)


def _is_at(path: Path, file: TreeFile) -> bool:
    """Return whether the file is there; what lies in a cache came there whole and checked."""
    try:
        return path.stat().st_size == file.size_bytes
    except OSError:
        return False


def _may_link(workplace: Path) -> bool:
    if os.environ.get("HF_HUB_DISABLE_SYMLINKS", "").upper() in constants.ENV_VARS_TRUE_VALUES:
        return False
    probe = workplace / "probe"
    try:
        probe.symlink_to("target")
    except OSError:  # a file system without them
        return False
    probe.unlink()
    return True


# The names of blobs ----------------------------------------------------------------------


def _etag(file: TreeFile, location: Path, lfs_patterns: Sequence[str]) -> str:
    """Return the etag that the Hub gives a file.

    What is in LFS follows from what the Hub puts there: large files, binary ones, and those
    that `.gitattributes` names. A wrong guess costs a client that fetches another revision one
    more copy, and nothing else: names of blobs are opaque.
    """
    with location.open("rb") as content:
        sample = content.read(_SAMPLE_BYTES)
        is_lfs = (
            file.size_bytes > LFS_FROM_BYTES
            or b"\0" in sample
            or any(_is_named(file.path, pattern) for pattern in lfs_patterns)
        )
        if is_lfs and file.size_bytes:
            return file.sha256
        digest = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
        digest.update(sample + content.read())
        return digest.hexdigest()


def _lfs_patterns(*directories: Path) -> list[str]:
    """Return the patterns of files in LFS, from the first `.gitattributes` there is."""
    for directory in directories:
        with contextlib.suppress(OSError):
            lines = (directory / ".gitattributes").read_text(errors="replace").splitlines()
            return [line.split()[0] for line in lines if "filter=lfs" in line.split()[1:]]
    return []


def _is_named(path: str, pattern: str) -> bool:
    return fnmatchcase(path if "/" in pattern else path.rpartition("/")[2], pattern)


# A place to work ------------------------------------------------------------------------


@contextlib.contextmanager
def _workplace(repo: Path) -> Iterator[Path]:
    """Yield a directory on the cache's file system; those of killed processes are removed."""
    import fcntl  # not on Windows, where `import hfflows` should still work

    root = repo / ".hfflows"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("ab") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # held for as long as this block only
        for left in root.iterdir():
            if left.is_dir():
                _remove_abandoned(left)
        workplace = Path(tempfile.mkdtemp(dir=root))
        descriptor = os.open(workplace, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # ends with this process, which tells others
    try:
        yield workplace
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
        os.close(descriptor)


def _remove_abandoned(workplace: Path) -> None:
    import fcntl

    with contextlib.suppress(OSError):  # a live process has it locked, or removed it
        descriptor = os.open(workplace, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(workplace, ignore_errors=True)
        finally:
            os.close(descriptor)
