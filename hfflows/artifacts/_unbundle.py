"""The way out of a bundle: objects first, references last, nothing taken on trust."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.artifacts._bundle_file import BundleReader
from hfflows.artifacts._objects import StoredObject, checked, objects_of
from hfflows.artifacts._pipeline import TransferReport, Window, fits_one_object, transfer_threads
from hfflows.artifacts._plans import read_condemned
from hfflows.artifacts._receive import Arrival, Receiver, present
from hfflows.artifacts._saves import announced_save
from hfflows.artifacts._tree import parse_tree
from hfflows.errors import HfflowsError, SettingsError
from hfflows.refs import ArtifactRef, parse_ref
from hfflows.storage import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from typing_extensions import Buffer

    from hfflows.artifacts._bundle_contents import Contents, Member
    from hfflows.artifacts._tree import Tree
    from hfflows.storage import Store


def import_bundle(
    path: str | os.PathLike[str],
    *,
    store: Store | None = None,
    report: TransferReport | None = None,
) -> list[ArtifactRef]:
    """Take in the artifacts of a bundle and return their references, in its order.

    They keep their keys, so importing again moves nothing, and an import that was killed
    moves what is missing. The file is read once, front to back, and not trusted.

    Args:
        path: What `export_bundle` wrote.
        store: Where to; `None` means `open_store()`.
        report: Filled with what was moved.

    Raises:
        IntegrityError: The file is cut short, damaged or not what it says it is; none of
            its artifacts is visible.
        UnsafePathError: An artifact in it would write outside its directory.
        ObjectExistsError: The store has another artifact under one of the keys.
        SettingsError: No such file, or a newer hfflows wrote it.
        CollectionBusyError, SaveRevokedError: A collection is in the way.
    """
    store, report = store or open_store(), report or TransferReport()
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        msg = f"The bundle {path} cannot be read: {error.strerror}."
        raise SettingsError(msg, path=str(path)) from error
    with file:
        reader = BundleReader(file, str(path))
        contents = reader.contents()
        arrivals = _read_arrivals(reader, contents)
        report.count(bytes_covered=sum(arrival.ref.size_bytes for arrival in arrivals))
        found = {arrival.ref.key: present(arrival.ref, store=store) for arrival in arrivals}
        coming = [arrival for arrival in arrivals if found[arrival.ref.key] is None]
        taken = _Import(reader, contents, coming, store, report).run() if coming else {}
    there = {ref.key: ref for ref in found.values() if ref is not None} | taken
    return [there[key] for key in contents.references]


def _read_arrivals(reader: BundleReader, contents: Contents) -> list[Arrival]:
    """Return the bundle's artifacts, each reference checked against its tree."""
    bodies = {m.key: reader.document(m) for m in contents.members if m.is_document}
    return [
        Arrival(*_parse(reader, bodies, key), index_keys)
        for key, index_keys in contents.references.items()
    ]


def _parse(reader: BundleReader, bodies: Mapping[str, Any], key: str) -> tuple[ArtifactRef, Tree]:
    tree_key = keys.tree(key)
    try:
        ref, tree = parse_ref(bodies[key]), parse_tree(bodies[tree_key], key=tree_key)
    except HfflowsError as error:
        msg = f"{reader.name}: {key} cannot be taken in: {error}"
        raise type(error)(msg, **error.facts) from error
    if ref.key != key:
        raise reader.refusal(f"the reference at {key} names itself {ref.key!r}")
    stated = (ref.digest, ref.size_bytes, ref.file_count)
    if stated != (tree.digest, tree.size_bytes, len(tree.files)):
        raise reader.refusal(f"{tree_key} describes other files than the reference {key}")
    return ref, tree


class _Import:
    """Artifacts on their way out of a bundle, none of which the store has."""

    def __init__(
        self,
        reader: BundleReader,
        contents: Contents,
        coming: Sequence[Arrival],
        store: Store,
        report: TransferReport,
    ) -> None:
        self._reader = reader
        self._coming = coming
        self._store = store
        self._report = report
        self._members = [member for member in contents.members if not member.is_document]
        announced = {member.key: member.size_bytes for member in self._members}
        used = objects_of((arrival.ref, arrival.tree) for arrival in coming)
        for stored in used.values():
            self._check(stored, announced.get(stored.key))
        self._objects = {key: stored for key, stored in used.items() if key in announced}
        self._sizes = {key: announced[key] for key in self._objects}

    def _check(self, stored: StoredObject, size_bytes: int | None) -> None:
        if problems := stored.missing_bytes(size_bytes):
            raise self._reader.refusal(problems[0].rstrip("."))
        if any(one.end > other.segment.offset for one, other in pairwise(stored.parts)):
            raise self._reader.refusal(f"files overlap in {stored.key}")

    def run(self) -> dict[str, ArtifactRef]:
        with ExitStack() as announcements:
            saves = [
                announcements.enter_context(announced_save(self._store, arrival.ref.key))
                for arrival in self._coming
            ]
            receiver = Receiver(self._store, read_condemned(self._store), self._report)
            lacking = set(receiver.expect(self._coming, self._sizes))
            with transfer_threads() as (_readers, senders):
                self._receive(receiver, lacking, Window(senders))
            self._reader.end()
            return {
                arrival.ref.key: receiver.commit(save, arrival)
                for save, arrival in zip(saves, self._coming, strict=True)
            }

    def _receive(self, receiver: Receiver, lacking: set[str], window: Window[None]) -> None:
        sent = []
        for member in self._members:
            if member.key not in lacking:
                self._reader.skip(member)
                continue
            pieces = self._reader.pieces(member)
            self._report.count(bytes_read=member.size_bytes)
            if fits_one_object(member.size_bytes):
                put = partial(self._put_piece, receiver, member)
                sent.append(window.submit(put, b"".join(pieces)))
            else:
                self._put(receiver, member, pieces)
        for future in sent:
            future.result()

    def _put_piece(self, receiver: Receiver, member: Member, data: Buffer) -> None:
        self._put(receiver, member, [data])

    def _put(self, receiver: Receiver, member: Member, pieces: Iterable[Buffer]) -> None:
        stored = self._objects[member.key]
        checked_pieces = checked(stored, pieces, sha256=member.sha256)
        receiver.put(member.key, checked_pieces, member.size_bytes)
