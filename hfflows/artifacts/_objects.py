"""The objects behind trees: which, how large, and all their bytes in order, checked.

Copies and bundles move whole objects, as `load` moves files: an object is known here by the
segments that trees have in it, whatever the layout.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts._pipeline import cut, read_ahead
from hfflows.errors import IntegrityError, ObjectNotFoundError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from typing_extensions import Buffer

    from hfflows.artifacts._pipeline import TransferReport, Workers
    from hfflows.artifacts._tree import Segment, Tree
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Get, List, Store

HEADS_IN_FLIGHT = 16
_FEW = 16
"""So many objects are asked for one by one, whatever else the store holds."""
_LISTED_PER_WANTED = 100
"""A listing is followed for so many keys a wanted one: a tenth of what asking would cost."""


@dataclass(frozen=True, slots=True)
class Part:
    """A segment of an object and the files whose bytes it holds."""

    segment: Segment
    paths: tuple[str, ...]

    @property
    def end(self) -> int:
        """Return the offset in the object after the segment's last byte."""
        return self.segment.end

    def problems(self, what: str) -> list[str]:
        """Return what to say when it is not there or not right, a line per file."""
        return [f"{path}: the object {self.segment.key} is {what}." for path in self.paths]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object and the parts of it that trees refer to, by offset; none is there twice.

    The object of an empty file in layout `files` has no part, nor a tar of empty files.
    """

    key: str
    parts: tuple[Part, ...]

    @property
    def needed_bytes(self) -> int:
        """Return the size that the object has at least."""
        return max((part.end for part in self.parts), default=0)

    def missing_bytes(self, size_bytes: int | None) -> list[str]:
        """Return what is wrong with the object if it has this size; `None`: it is not there."""
        what = "missing" if size_bytes is None else "cut short"
        lacking = (part for part in self.parts if size_bytes is None or part.end > size_bytes)
        return list(dict.fromkeys(line for part in lacking for line in part.problems(what)))


def digest_in(object_key: str) -> str | None:
    """Return the sha256 that an object is named by; `None` for one under a readable name."""
    if not object_key.startswith(keys.OBJECTS):
        return None
    return object_key.rpartition("/")[2].partition(".")[0]


def objects_of(artifacts: Iterable[tuple[ArtifactRef, Tree]]) -> dict[str, StoredObject]:
    """Return the objects that hold the artifacts' files, by key."""
    paths: defaultdict[str, dict[Segment, dict[str, None]]] = defaultdict(dict)
    for ref, tree in artifacts:
        for file in tree.files:
            for segment in file.segments:
                paths[segment.key].setdefault(segment, {})[file.path] = None
        for key in _readable_keys(ref, tree):
            paths.setdefault(key, {})
    return {key: _stored(key, found) for key, found in paths.items()}


def _readable_keys(ref: ArtifactRef, tree: Tree) -> Iterable[str]:
    """Return the keys of objects that are there for other tools, without bytes of any file."""
    if ref.storage_format == "files":
        return [keys.file_key(ref.key, file.path) for file in tree.files if not file.segments]
    return [keys.tar_key(ref.key)] if ref.storage_format == "tar" else []


def _stored(key: str, paths: Mapping[Segment, Iterable[str]]) -> StoredObject:
    parts = [Part(segment, tuple(names)) for segment, names in paths.items()]
    return StoredObject(key, tuple(sorted(parts, key=lambda part: part.segment.offset)))


# Sizes -------------------------------------------------------------------------------------


def object_sizes(store: Store, wanted: Collection[str]) -> dict[str, int]:
    """Return the size of each of these objects that is there, without reading content.

    A few are asked for singly. Of many, a listing tells 1,000 a request, but speaks of
    others' objects too: it is followed while that pays, and the rest asked for singly.
    """
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in sorted(wanted):
        groups[key.partition("/")[0]].append(key)
    sizes: dict[str, int] = {}
    unknown: list[str] = []
    for group in groups.values():
        unknown += group if len(group) <= _FEW else _list_sizes(store, group, sizes)
    with ThreadPoolExecutor(HEADS_IN_FLIGHT, thread_name_prefix="hfflows-head") as pool:
        for key, found in zip(unknown, pool.map(store.head, unknown), strict=True):
            if found is not None:
                sizes[key] = found.size_bytes
    return sizes


def _list_sizes(store: List, group: list[str], sizes: dict[str, int]) -> list[str]:
    """Add to `sizes` what a listing tells of a sorted group; return what it left open."""
    wanted = set(group)
    prefix = posixpath.commonpath([group[0], group[-1]]) + "/"
    # Names of one depth come in one order everywhere; paths under readable names do not.
    is_ordered = prefix.startswith(keys.OBJECTS)
    budget = _LISTED_PER_WANTED * len(group)
    for info in store.list(prefix, after=group[0][:-1] if is_ordered else None):
        if info.key in wanted:
            sizes[info.key] = info.size_bytes
            wanted.discard(info.key)
        budget -= 1
        if budget == 0 or not wanted or (is_ordered and info.key > group[-1]):
            break
    return [] if is_ordered and budget else sorted(wanted)


def check_sizes(objects: Mapping[str, StoredObject], sizes: Mapping[str, int]) -> list[str]:
    """Return what is missing or cut short, a line per file and object."""
    return [line for key, found in objects.items() for line in found.missing_bytes(sizes.get(key))]


# Bytes -------------------------------------------------------------------------------------


class ObjectCheck:
    """Checks an object while its bytes pass in order: as a whole, and each segment.

    Args:
        stored: The object.
        sha256: Digest of all its bytes; `None` means the one it is named by, if it is.
    """

    def __init__(self, stored: StoredObject, sha256: str | None = None) -> None:
        self._key = stored.key
        self._expected = sha256 or digest_in(stored.key)
        self._whole = hashlib.sha256()
        # A segment that is the whole object is checked by the object's own digest.
        self._whole_parts, self._parts = _split(stored.parts, self._expected)
        self._path = stored.parts[0].paths[0] if stored.parts else stored.key
        self._hash = hashlib.sha256()
        self._position = 0
        self._next = 0

    def update(self, data: Buffer) -> None:
        """Take the next bytes.

        Raises:
            IntegrityError: A segment that ends in them is not what was saved.
        """
        view = memoryview(data).cast("B")
        begin, end = self._position, self._position + len(view)
        if self._expected is not None:
            self._whole.update(view)
        while self._next < len(self._parts) and self._parts[self._next].segment.offset < end:
            part = self._parts[self._next]
            self._hash.update(view[max(part.segment.offset - begin, 0) : part.end - begin])
            if part.end > end:
                break
            if self._hash.hexdigest() != part.segment.sha256:
                raise self._damaged(part.paths[0])
            self._hash = hashlib.sha256()
            self._next += 1
        self._position = end

    def finish(self) -> None:
        """Take note that all bytes have passed.

        Raises:
            IntegrityError: They are not what was saved.
        """
        is_right = self._expected is None or self._whole.hexdigest() == self._expected
        is_long_enough = all(part.end == self._position for part in self._whole_parts)
        if self._next < len(self._parts) or not (is_right and is_long_enough):
            raise self._damaged(self._path)

    def _damaged(self, path: str) -> IntegrityError:
        msg = f"{path}: the object {self._key} is damaged; it is not passed on."
        return IntegrityError(msg, path=path, key=self._key)


def _split(parts: Sequence[Part], sha256: str | None) -> tuple[list[Part], list[Part]]:
    whole = [p for p in parts if p.segment.offset == 0 and p.segment.sha256 == sha256]
    return whole, [part for part in parts if part not in whole]


@dataclass(frozen=True, slots=True)
class _ObjectSource:
    """An object of a store, read as a save reads a file."""

    store: Get
    path: str
    size_bytes: int
    is_executable: bool = False
    announced: None = None

    def read(self, offset: int, length: int) -> Buffer:
        try:
            return self.store.get_range(self.path, offset, length)
        except ObjectNotFoundError as error:
            msg = f"The object {self.path} went missing while it was being read."
            raise IntegrityError(msg, key=self.path) from error


def read_object(
    store: Get,
    stored: StoredObject,
    size_bytes: int,
    *,
    pool: Workers,
    report: TransferReport,
) -> Iterator[Buffer]:
    """Yield all bytes of an object, some pieces read ahead by `pool`.

    Raises:
        IntegrityError: At the end at the latest: they are not what was saved.
    """
    for _stored, pieces in read_objects(store, [(stored, size_bytes)], pool=pool, report=report):
        yield from pieces


def read_objects(
    store: Get,
    wanted: Sequence[tuple[StoredObject, int]],
    *,
    pool: Workers,
    report: TransferReport,
) -> Iterator[tuple[StoredObject, Iterator[Buffer]]]:
    """Yield (object, size) pairs as (object, its bytes), read ahead across objects.

    The bytes of one are to be taken before the next one is asked for; they raise as
    `read_object` does.
    """
    sources = [_ObjectSource(store, stored.key, size) for stored, size in wanted]
    pieces = read_ahead(pool, cut(sources), report)
    for (stored, _size), source in zip(wanted, sources, strict=True):
        yield stored, checked(stored, (data for _, data in islice(pieces, _count(source))))


def checked(
    stored: StoredObject, pieces: Iterable[Buffer], *, sha256: str | None = None
) -> Iterator[Buffer]:
    """Pass on an object's bytes, in order; raise once they are not what was saved."""
    check = ObjectCheck(stored, sha256)
    for data in pieces:
        check.update(data)
        yield data
    check.finish()


def _count(source: _ObjectSource) -> int:
    return sum(1 for _piece in cut([source]))


def relocated(tree: Tree, places: Mapping[str, str]) -> Tree:
    """Return the tree with its segments in the objects' new places, by old key."""
    files = tuple(
        replace(file, segments=tuple(replace(part, key=places[part.key]) for part in file.segments))
        for file in tree.files
    )
    return replace(tree, files=files)
