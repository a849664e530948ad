"""The receiving end of a copy: objects, then tree and index, then the reference.

An artifact that arrives keeps its key, so two things differ from a save. The key may be
taken: by the same artifact, then there is nothing to do, or by another, which is never
touched. And keys under which it must lie may be condemned as the remains of an earlier
attempt: then it waits for that collection to end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts._documents import create_document, read_document
from hfflows.artifacts._objects import digest_in, object_sizes, relocated
from hfflows.artifacts._pipeline import fits_one_object
from hfflows.artifacts._saves import is_revocation
from hfflows.errors import (
    CollectionBusyError,
    ObjectExistsError,
    ObjectNotFoundError,
    SaveRevokedError,
)
from hfflows.refs import ArtifactRef, parse_ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from typing_extensions import Buffer

    from hfflows.artifacts._pipeline import TransferReport
    from hfflows.artifacts._plans import Condemned
    from hfflows.artifacts._saves import AnnouncedSave
    from hfflows.artifacts._tree import Tree
    from hfflows.storage import Store


@dataclass(frozen=True, slots=True)
class Arrival:
    """One artifact on its way: its reference as it was, its tree, its index entries."""

    ref: ArtifactRef
    tree: Tree
    index_keys: tuple[str, ...] = ()


def present(ref: ArtifactRef, *, store: Store) -> ArtifactRef | None:
    """Return the reference if the store holds this artifact already.

    Raises:
        ObjectExistsError: Another artifact has its key.
        SaveRevokedError: A collection gave up an earlier attempt and barred the key.
    """
    try:
        body = read_document(store, ref.key)
    except ObjectNotFoundError:
        return None
    if is_revocation(body):
        msg = (
            f"{store.url}: a collection gave up an earlier copy of {ref.key} and bars its key. "
            "When no process copies it any more, `hfflows delete KEY` frees the key."
        )
        raise SaveRevokedError(msg, key=ref.key, store_url=store.url)
    there = parse_ref(body)
    if there.digest != ref.digest:
        raise _taken(ref.key, store)
    return there.model_copy(update={"store_url": store.url})


def _taken(key: str, store: Store) -> ObjectExistsError:
    msg = (
        f"{store.url} holds something else at {key}; it is left as it is. "
        "Delete it there first if it should give way."
    )
    return ObjectExistsError(msg, key=key, store_url=store.url)


@dataclass(slots=True)
class Receiver:
    """Takes in the objects of artifacts whose saves are announced.

    Args:
        store: Where they arrive.
        condemned: What collections are about to delete, looked at after announcing.
        report: Counters to add to.
    """

    store: Store
    condemned: Condemned
    report: TransferReport
    _placed: dict[str, str] = field(default_factory=dict)
    """Where each object lies here, by the key it had there."""

    def expect(self, arrivals: Iterable[Arrival], sizes: Mapping[str, int]) -> list[str]:
        """Return which objects have to be sent: the only place that decides it.

        Args:
            arrivals: What is going to be committed.
            sizes: Every object of theirs, by key, with its size in bytes.

        Raises:
            CollectionBusyError: A key that cannot be changed is condemned.
            ObjectExistsError: A readable key holds something else.
        """
        readable = [key for key in sizes if digest_in(key) is None]
        fixed = [
            key for arrival in arrivals for key in (keys.tree(arrival.ref.key), *arrival.index_keys)
        ]
        if (busy := self.condemned.any_of([*readable, *fixed])) is not None:
            raise self._busy(busy)
        self._placed = {key: self._place(key) for key in sizes}
        there = object_sizes(self.store, set(self._placed.values()))
        for key in readable:
            if there.get(key, sizes[key]) != sizes[key]:
                raise _taken(key, self.store)
        lacking = [key for key, size in sizes.items() if there.get(self._placed[key]) != size]
        self.report.count(objects_reused=len(sizes) - len(lacking))
        return lacking

    def _busy(self, key: str) -> CollectionBusyError:
        msg = (
            f"{self.store.url}: {key} is of another attempt, under way or given up, and cannot "
            "be relied on. Try again when that is done, or collected (`collect_garbage`)."
        )
        return CollectionBusyError(msg, key=key, store_url=self.store.url)

    def _place(self, key: str) -> str:
        digest = digest_in(key)
        return key if digest is None else self.condemned.usable(keys.object_key(digest))

    def put(self, key: str, pieces: Iterable[Buffer], size_bytes: int) -> None:
        """Write one of the objects that `expect` returned; when `pieces` raises, nothing."""
        if fits_one_object(size_bytes):
            held = list(pieces)
            self.store.put(self._placed[key], held[0] if len(held) == 1 else b"".join(held))
        else:
            self.store.put_stream(self._placed[key], pieces)
        self.report.count(objects_sent=1, bytes_sent=size_bytes)

    def commit(self, save: AnnouncedSave, arrival: Arrival) -> ArtifactRef:
        """Make an artifact visible whose objects are all here: the only place that does.

        Raises:
            ObjectExistsError: Another artifact took its key meanwhile.
            CollectionBusyError: Another copy is at it, with the objects in other places.
            SaveRevokedError: A collection gave the save up.
        """
        ref = arrival.ref.model_copy(update={"store_url": self.store.url})
        tree = relocated(arrival.tree, self._placed)
        try:
            # Never replaced: another copy's reference may rest on this tree by now, and its
            # objects lie where they are safe from a collection that this copy did not see.
            create_document(self.store, keys.tree(ref.key), tree.to_body())
            for key in arrival.index_keys:
                self.store.put(key, b"{}")
            save.commit(ref)
        except ObjectExistsError as error:
            there = present(ref, store=self.store)
            if there is None:
                raise self._busy(keys.tree(ref.key)) from error
            return there
        return ref


def index_keys(reference_key: str) -> list[str]:
    """Return the index entries that a checkpoint may have; other artifacts have none."""
    return [key for key in keys.kept_beside(reference_key) if key.startswith("latest/")]
