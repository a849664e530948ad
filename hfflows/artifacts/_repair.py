"""Damaged objects of an artifact made right again, from wherever its files can be had.

    read every byte ─→ bad segments ─→ their ranges from the origin ─→ check ─→ object as it was

An object is named by the digest of its bytes, so putting the right bytes back changes
nothing for anybody. Where they cannot be had, since the object also held files of other
artifacts and those are damaged too, this artifact's files move to a new object and its tree
is written again. A tree is the one document that may be replaced: its digest, which the
reference vouches for, covers the files and not the segments they lie in, so readers of the
old tree and of the new one get the same bytes, or an error.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from typing_extensions import Buffer

from hfflows import keys
from hfflows.artifacts._artifacts import RefLike, read_tree, resolve_ref
from hfflows.artifacts._documents import encode_document
from hfflows.artifacts._objects import StoredObject, digest_in, objects_of
from hfflows.artifacts._saves import announced_save
from hfflows.artifacts._tree import Segment, Tree, TreeFile
from hfflows.artifacts._verify import find_damage
from hfflows.errors import IntegrityError, ObjectNotFoundError, SettingsError

if TYPE_CHECKING:
    from hfflows.artifacts._objects import Part
    from hfflows.artifacts._pipeline import TransferReport
    from hfflows.artifacts._saves import AnnouncedSave
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

ReadRange = Callable[[str, int, int], Buffer]
"""(path, offset, length) to exactly so many bytes of a file."""

Origin = Callable[[Sequence[TreeFile]], ReadRange]
"""Called once with the damaged files, if there are any."""

FETCHES_IN_FLIGHT = 8
FETCH_ATTEMPTS = 2
"""Bytes can be flipped on the way: what is wrong twice is wrong there."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was damaged and is right again; all empty when nothing was."""

    files: tuple[str, ...]
    objects: tuple[str, ...]
    """Keys of the objects written."""
    bytes_fetched: int
    """Bytes that came from the origin."""


def repair_artifact(
    ref: RefLike, origin: Origin, *, report: TransferReport, store: Store
) -> RepairReport:
    """Find the damaged segments of an artifact in layout `packed` and mend their objects.

    Only damaged segments are fetched; the sound rest of an object comes from the store. A
    selection that shares the object is mended with it, unless the files had to move.

    Args:
        ref: The reference, its dict, or its key.
        origin: Where the files can be had.
        report: Filled with what was moved.
        store: Where the artifact is.

    Raises:
        IntegrityError: The reference or the tree is damaged, or the origin's bytes are not
            what was saved; the store is as it was, but for objects mended before.
        SettingsError: A damaged object holds files under readable names.
    """
    resolved = resolve_ref(ref, store=store)
    tree = read_tree(resolved, store=store)
    objects = objects_of([(resolved, tree)])
    damage = find_damage(store, [part for stored in objects.values() for part in stored.parts])
    bad: defaultdict[str, set[Part]] = defaultdict(set)
    for found in damage:
        bad[found.part.segment.key].add(found.part)
    for key in bad:
        _check_layout(resolved, key)
    paths = sorted({path for found in damage for path in found.part.paths})
    if not paths:
        return RepairReport((), (), 0)
    read_before = report.bytes_read
    read_range = origin([file for file in tree.files if file.path in paths])
    # Announced like a save: a file may move to an object that nothing refers to yet.
    with (
        announced_save(store, resolved.key) as save,
        ThreadPoolExecutor(FETCHES_IN_FLIGHT, thread_name_prefix="hfflows-repair") as pool,
    ):
        mending = _Mending(tree, read_range, report, save, pool)
        for key, parts in bad.items():
            mending.mend(objects[key], parts)
        mending.finish(resolved)
    return RepairReport(tuple(paths), tuple(mending.written), report.bytes_read - read_before)


def _check_layout(ref: ArtifactRef, key: str) -> None:
    if digest_in(key) is None:
        msg = (
            f"{ref.key}: the damaged object {key} is not of layout `packed`, which alone can be "
            "repaired. Save the artifact again."
        )
        raise SettingsError(msg, key=key)


class _Mending:
    """One artifact's repair; one object in memory at a time."""

    def __init__(
        self,
        tree: Tree,
        read_range: ReadRange,
        report: TransferReport,
        save: AnnouncedSave,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._tree = tree
        self._read_range = read_range
        self._report = report
        self._store = save.store
        self._condemned = save.condemned
        self._pool = pool
        self._places = dict(_places(tree))
        self._moved: dict[Segment, Segment] = {}
        self.written: list[str] = []

    def mend(self, stored: StoredObject, bad: set[Part]) -> None:
        """Put an object back, or this artifact's part of it elsewhere."""
        data = self._held(stored)
        ordered = sorted(bad, key=lambda part: part.segment.offset)
        for part, fetched in zip(ordered, self._pool.map(self._fetch, ordered), strict=True):
            data[part.segment.offset : part.end] = memoryview(fetched)
        if hashlib.sha256(data).hexdigest() == digest_in(stored.key):
            self._put(stored.key, data)
        else:
            self._move(stored, data)

    def _held(self, stored: StoredObject) -> bytearray:
        """Return what is left of an object, long enough to be filled in."""
        try:
            data = bytearray(self._store.get(stored.key))
        except ObjectNotFoundError:
            data = bytearray()
        return data.ljust(stored.needed_bytes, b"\0")

    def _fetch(self, part: Part) -> Buffer:
        segment, path = part.segment, part.paths[0]
        for _attempt in range(FETCH_ATTEMPTS):
            data = self._read_range(path, self._places[segment], segment.length)
            self._report.count(bytes_read=segment.length)
            if hashlib.sha256(data).hexdigest() == segment.sha256:
                return data
        msg = (
            f"{path}: its origin no longer has the bytes that were saved, so {segment.key} "
            "cannot be repaired."
        )
        raise IntegrityError(msg, path=path, key=segment.key)

    def _move(self, stored: StoredObject, data: bytearray) -> None:
        pack = bytearray()
        offsets = []
        for part in stored.parts:
            offsets.append(len(pack))
            pack += data[part.segment.offset : part.end]
        key = self._condemned.usable(keys.object_key(hashlib.sha256(pack).hexdigest()))
        self._put(key, pack)
        for part, offset in zip(stored.parts, offsets, strict=True):
            self._moved[part.segment] = replace(part.segment, key=key, offset=offset)

    def _put(self, key: str, data: bytearray) -> None:
        self._store.put(key, data)
        self._report.count(objects_sent=1, bytes_sent=len(data))
        self.written.append(key)

    def finish(self, ref: ArtifactRef) -> None:
        """Write the tree again if files moved."""
        if not self._moved:
            return
        files = tuple(
            replace(file, segments=tuple(self._moved.get(part, part) for part in file.segments))
            for file in self._tree.files
        )
        tree = replace(self._tree, files=files)
        self._store.put(keys.tree(ref.key), encode_document(tree.to_body()))


def _places(tree: Tree) -> list[tuple[Segment, int]]:
    """Return where in its file each segment begins."""
    places = []
    for file in tree.files:
        position = 0
        for segment in file.segments:
            places.append((segment, position))
            position += segment.length
    return places
