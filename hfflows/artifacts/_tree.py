"""The tree of an artifact: its files, and the segments of objects that hold their bytes.

Stored at `keys.tree(ref.key)` as a document whose body is

    {"format_version": 1,
     "objects":     ["objects/3f/3f…", …],
     "files":       [["config.json", 612, "<sha256>", false, [[0, 0, 612, null]]], …],
     "directories": ["empty"],
     "symlinks":    [["latest", "epoch-3"]]}

A file is [path, size, sha256, executable, segments]; a segment [object's index, offset,
length, sha256], `null` where the segment is the whole file. `digest` covers paths, sizes,
file digests, modes and links but no segment: equal content has one digest in every layout.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.errors import IntegrityError, SettingsError, UnsafePathError

if TYPE_CHECKING:
    from collections.abc import Iterable

TREE_FORMAT_VERSION = 1

LARGEST_SEGMENT_BYTES = 256 * 1024 * 1024
"""A segment is checked in memory; writers make them of 16 MiB."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of a file's bytes, where it lies and how to check it."""

    key: str
    offset: int
    length: int
    sha256: str

    @property
    def end(self) -> int:
        """Return the offset in the object after its last byte."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class TreeFile:
    """One file; `segments` follow each other without gaps."""

    path: str
    size_bytes: int
    sha256: str
    is_executable: bool
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """All files of an artifact, sorted by path."""

    files: tuple[TreeFile, ...]
    directories: tuple[str, ...] = ()
    """Empty ones; the others follow from the files."""
    symlinks: tuple[tuple[str, str], ...] = ()
    """(path, target), the target relative to the link and inside the tree."""

    @property
    def size_bytes(self) -> int:
        """Return the size of all file contents."""
        return sum(file.size_bytes for file in self.files)

    @property
    def digest(self) -> str:
        """Return the sha256 that names this content; see the module's docstring."""
        lines: list[list[Any]] = [
            [file.path, file.size_bytes, file.sha256, file.is_executable] for file in self.files
        ]
        lines += [["/", path] for path in self.directories]
        lines += [["@", path, target] for path, target in self.symlinks]
        text = json.dumps(lines, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def object_keys(self) -> set[str]:
        """Return the keys of the objects that hold the files' bytes."""
        return {segment.key for file in self.files for segment in file.segments}

    def to_body(self) -> dict[str, Any]:
        """Return the JSON value that is stored."""
        index: dict[str, int] = {}
        files = [
            [
                file.path,
                file.size_bytes,
                file.sha256,
                file.is_executable,
                [
                    [
                        index.setdefault(segment.key, len(index)),
                        segment.offset,
                        segment.length,
                        None if segment.sha256 == file.sha256 else segment.sha256,
                    ]
                    for segment in file.segments
                ],
            ]
            for file in self.files
        ]
        return {
            "format_version": TREE_FORMAT_VERSION,
            "objects": list(index),
            "files": files,
            "directories": list(self.directories),
            "symlinks": [list(link) for link in self.symlinks],
        }


@dataclass(slots=True)
class _Paths:
    """The paths of one tree as they are checked against each other."""

    seen: dict[str, str] = field(default_factory=dict)

    def add(self, path: str) -> None:
        check_path(path)
        folded = _folded(path)
        if folded in self.seen:
            msg = (
                f"{path!r} and {self.seen[folded]!r} are the same name on a file system that "
                "ignores case; rename one."
            )
            raise UnsafePathError(msg, path=path)
        self.seen[folded] = path

    def check_parents(self) -> None:
        for path in self.seen.values():
            parent = path
            while "/" in parent:
                parent = parent.rpartition("/")[0]
                if _folded(parent) in self.seen:
                    msg = f"{parent!r} would be a file and the directory of {path!r} at once."
                    raise UnsafePathError(msg, path=path)


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def check_path(path: str) -> None:
    """Refuse a path that is not a plain relative POSIX path.

    Raises:
        UnsafePathError: Empty, absolute, with `..`, a backslash, a drive letter, a NUL, a
            name Windows reserves, or not Unicode text.
    """
    parts = path.split("/")
    reason = None
    if not path or any(part in ("", ".", "..") for part in parts):
        reason = "it is not a plain relative path"
    elif "\\" in path or "\0" in path or re.match(r"[A-Za-z]:", path):
        reason = "it holds a backslash, a NUL or a drive letter"
    elif any(_RESERVED.fullmatch(part) for part in parts):
        reason = "Windows reserves this name"
    elif any("\ud800" <= char <= "\udfff" for char in path):
        reason = "its name is not valid Unicode text"
    if reason:
        msg = f"The file {path!r} cannot be part of an artifact: {reason}. Rename it."
        raise UnsafePathError(msg, path=path)


def check_tree(tree: Tree) -> None:
    """Refuse a tree that could write outside its directory or over itself.

    Raises:
        UnsafePathError: See `check_path`; also clashing paths and links out of the tree.
    """
    paths = _Paths()
    for path in _all_paths(tree):
        paths.add(path)
    paths.check_parents()
    for path, target in tree.symlinks:
        check_link(path, target)


def _all_paths(tree: Tree) -> Iterable[str]:
    yield from (file.path for file in tree.files)
    yield from tree.directories
    yield from (path for path, _target in tree.symlinks)


def check_link(path: str, target: str) -> None:
    """Refuse a symlink whose target is absolute or outside the tree.

    Raises:
        UnsafePathError: As above.
    """
    depth = path.count("/")
    is_outside = not target or target.startswith("/") or "\\" in target or "\0" in target
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        is_outside = is_outside or depth < 0
    if is_outside:
        msg = (
            f"The symlink {path!r} points to {target!r}, out of the directory. "
            "Save a copy with the links resolved (`cp -L`)."
        )
        raise UnsafePathError(msg, path=path)


def parse_tree(body: Any, *, key: str) -> Tree:
    """Return the tree a document's body describes, checked whole.

    Raises:
        IntegrityError: The body is not a tree, or its numbers do not fit together.
        UnsafePathError: A path in it is unsafe.
        SettingsError: A newer hfflows wrote it.
    """
    try:
        version = body["format_version"]
        if version > TREE_FORMAT_VERSION:
            msg = f"{key} has tree format {version}; this hfflows reads {TREE_FORMAT_VERSION}."
            raise SettingsError(msg, key=key)
        objects = [_object(key) for key in body["objects"]]
        tree = Tree(
            files=tuple(_parse_file(item, objects) for item in body["files"]),
            directories=tuple(str(path) for path in body["directories"]),
            symlinks=tuple((str(path), str(target)) for path, target in body["symlinks"]),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, SettingsError):
            raise
        msg = f"{key} does not describe an artifact's files: {error}"
        raise IntegrityError(msg, key=key) from error
    check_tree(tree)
    return tree


def _parse_file(item: Any, objects: list[str]) -> TreeFile:
    path, size, sha256, is_executable, raw_segments = item
    segments = tuple(
        Segment(_at(objects, index), _count(offset), _count(length), digest or sha256)
        for index, offset, length, digest in raw_segments
    )
    if sum(segment.length for segment in segments) != _count(size):
        msg = f"the segments of {path!r} do not add up to its {size} bytes"
        raise ValueError(msg)
    if any(segment.length > LARGEST_SEGMENT_BYTES for segment in segments):
        msg = f"a segment of {path!r} is larger than {LARGEST_SEGMENT_BYTES:,} bytes"
        raise ValueError(msg)
    if not all(_SHA256.fullmatch(digest) for digest in (sha256, *(s.sha256 for s in segments))):
        msg = f"a digest of {path!r} is not a sha256"
        raise ValueError(msg)
    return TreeFile(str(path), size, sha256, bool(is_executable), segments)


def _object(key: Any) -> str:
    if (
        not isinstance(key, str)
        or not key.startswith(keys.CONTENT_PREFIXES)
        or any(part in ("", ".", "..") for part in key.split("/"))
    ):
        msg = f"{key!r} is not the key of an object"
        raise ValueError(msg)
    return key


def _at(objects: list[str], index: Any) -> str:
    return objects[_count(index)]


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        msg = f"{value!r} is not a count"
        raise ValueError(msg)
    return value
