"""Artifacts from one store to another: bucket to bucket, bucket to disk.

    read tree ─→ what the target lacks ─→ objects, checked on the way ─→ tree, index ─→ reference

Whole objects are moved, also where an artifact uses only a part of one (a selection of a
snapshot): the tree stays as it is, one rule checks every object, and what is moved once is
never moved again, whichever artifact needs it next. The price is at most one object of
16 MiB for each that is used in part, and that the target then holds the bytes beside it;
to hand over a part and nothing else, load it and save that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfflows.artifacts._artifacts import RefLike, read_tree, resolve_ref, store_for
from hfflows.artifacts._objects import check_sizes, object_sizes, objects_of, read_object
from hfflows.artifacts._pipeline import TransferReport, fits_one_object, transfer_threads
from hfflows.artifacts._receive import Arrival, Receiver, index_keys, present
from hfflows.artifacts._saves import announced_save
from hfflows.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hfflows.artifacts._objects import StoredObject
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store


def copy_artifact(
    ref: RefLike,
    *,
    to: Store,
    store: Store | None = None,
    report: TransferReport | None = None,
) -> ArtifactRef:
    """Copy an artifact into another store and return its reference there.

    Key, digest, times, producer, metadata and parents stay the same, so copying again moves
    nothing. A copy that was killed moves what is missing. Aliases are not copied.

    Args:
        ref: The reference, its dict, or its key.
        to: Where to.
        store: Where from; `None` means the store the reference names.
        report: Filled with what was moved.

    Raises:
        ArtifactNotFoundError: Never saved, or deleted.
        IntegrityError: The artifact is damaged; names file and object. Nothing is visible
            in the target.
        ObjectExistsError: The target has another artifact under this key.
        CollectionBusyError, SaveRevokedError: A collection in the target is in the way.
    """
    store = store_for(ref, store)
    report = report or TransferReport()
    resolved = resolve_ref(ref, store=store)
    report.count(bytes_covered=resolved.size_bytes)
    if (there := present(resolved, store=to)) is not None:
        return there
    arrival = read_arrival(resolved, store=store)
    objects = objects_of([(resolved, arrival.tree)])
    sizes = sizes_in(store, objects, what=resolved.key)
    with announced_save(to, resolved.key) as save:
        receiver = Receiver(to, save.condemned, report)
        lacking = receiver.expect([arrival], sizes)
        _move([objects[key] for key in lacking], sizes, receiver, store)
        return receiver.commit(save, arrival)


def read_arrival(ref: ArtifactRef, *, store: Store) -> Arrival:
    """Return what an artifact takes with it, its objects aside."""
    return Arrival(ref, read_tree(ref, store=store), _held_index_keys(ref.key, store))


def _held_index_keys(reference_key: str, store: Store) -> tuple[str, ...]:
    """Return the index entries of a checkpoint; one saved with `latest=False` has none."""
    return tuple(key for key in index_keys(reference_key) if store.head(key) is not None)


def sizes_in(store: Store, objects: Mapping[str, StoredObject], *, what: str) -> dict[str, int]:
    """Return the size of every object.

    Raises:
        IntegrityError: Some are missing or too short; names each with its files.
    """
    sizes = object_sizes(store, objects)
    problems = check_sizes(objects, sizes)
    if problems:
        msg = f"{what} is not what was saved, so it is not copied:\n" + "\n".join(problems)
        raise IntegrityError(msg, problems=problems)
    return sizes


def _move(
    lacking: Sequence[StoredObject], sizes: Mapping[str, int], receiver: Receiver, store: Store
) -> None:
    """Send objects: small ones several at once, large ones in parts of their own."""

    def send(found: StoredObject) -> None:
        size = sizes[found.key]
        pieces = read_object(store, found, size, pool=readers, report=receiver.report)
        receiver.put(found.key, pieces, size)

    small = [found for found in lacking if fits_one_object(sizes[found.key])]
    large = [found for found in lacking if not fits_one_object(sizes[found.key])]
    with transfer_threads() as (readers, senders):
        for future in [senders.submit(send, found) for found in small]:
            future.result()
        for found in large:
            send(found)
