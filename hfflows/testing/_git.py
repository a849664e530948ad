"""What the local Hub keeps of git: commits, files at commits, and their ids.

Blob and tree ids are git's own. Commit ids are the sha1 of a git commit object with two
more headers, the repo and a counter, so that no two commits ever share an id, not even
the first commits of two repos made in the same second.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file at one commit. `oid` is the git blob id: of the pointer, when in LFS."""

    sha256: str
    size: int
    oid: str
    is_lfs: bool
    pointer_size: int = 0

    @property
    def etag(self) -> str:
        """Return what the Hub sends as this file's ETag, without quotes."""
        return self.sha256 if self.is_lfs else self.oid


@dataclass(frozen=True, slots=True)
class Commit:
    """One state of a repo's files."""

    oid: str
    parents: tuple[str, ...]
    title: str
    description: str
    author: str
    created_at: datetime
    files: Mapping[str, FileEntry]
    trees: Mapping[str, str] = field(repr=False)
    """Id of every folder; the root is the empty string."""


def lfs_entry(sha256: str, size: int) -> FileEntry:
    """Describe a file whose bytes lie in large file storage."""
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    ).encode()
    return FileEntry(
        sha256, size, object_id("blob", pointer), is_lfs=True, pointer_size=len(pointer)
    )


def regular_entry(data: bytes) -> FileEntry:
    """Describe a file that git itself holds."""
    sha256 = hashlib.sha256(data).hexdigest()
    return FileEntry(sha256, len(data), object_id("blob", data), is_lfs=False)


def object_id(kind: str, data: bytes) -> str:
    """Return git's id of an object."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def tree_ids(files: Mapping[str, FileEntry]) -> dict[str, str]:
    """Return the git tree id of every folder that `files` make, the root under ``""``."""
    folders: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    for path, entry in files.items():
        folder, _, name = path.rpartition("/")
        _ensure_folder(folders, folder)
        folders[folder][name] = ("100644", entry.oid)
    ids: dict[str, str] = {}
    for folder in sorted(folders, key=lambda path: path.count("/") if path else -1, reverse=True):
        ids[folder] = _tree_id(folders[folder])
        if folder:
            parent, _, name = folder.rpartition("/")
            folders[parent][name] = ("40000", ids[folder])
    return ids


def _ensure_folder(folders: dict[str, dict[str, tuple[str, str]]], folder: str) -> None:
    while folder not in folders:
        folders[folder] = {}
        folder = folder.rpartition("/")[0]


def _tree_id(members: dict[str, tuple[str, str]]) -> str:
    def git_order(item: tuple[str, tuple[str, str]]) -> bytes:
        name, (mode, _) = item
        return (name + "/" if mode == "40000" else name).encode()

    lines = [
        f"{mode} {name}\0".encode() + bytes.fromhex(oid)
        for name, (mode, oid) in sorted(members.items(), key=git_order)
    ]
    return object_id("tree", b"".join(lines))


def commit_id(
    commit_tree: str,
    *,
    parents: tuple[str, ...],
    message: str,
    author: str,
    created_at: datetime,
    repo: str,
    counter: int,
) -> str:
    """Return the id of a commit object with these parts."""
    person = f"{author} <{author}@localhost> {int(created_at.timestamp())} +0000"
    lines = [f"tree {commit_tree}", *(f"parent {parent}" for parent in parents)]
    lines += [f"author {person}", f"committer {person}", f"repo {repo}", f"counter {counter}"]
    return object_id("commit", ("\n".join(lines) + "\n\n" + message + "\n").encode())
