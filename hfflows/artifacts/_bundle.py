"""One file out, one file in: artifacts for a store that no network reaches.

    hfflows bundle models.tar KEY…   →   carry the file   →   hfflows unbundle models.tar

Every object is in the file once, however many of its artifacts share it. The first member
says what follows, so all digests are known before the first object is read.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hfflows import keys
from hfflows.artifacts._artifacts import RefLike, resolve_ref, store_for
from hfflows.artifacts._bundle_contents import CONTENTS, Contents, Member, check_documents
from hfflows.artifacts._bundle_file import size_of_member, write_end, write_member
from hfflows.artifacts._copy import read_arrival, sizes_in
from hfflows.artifacts._documents import encode_document
from hfflows.artifacts._objects import (
    StoredObject,
    digest_in,
    objects_of,
    read_object,
    read_objects,
    relocated,
)
from hfflows.artifacts._pipeline import TransferReport, transfer_threads
from hfflows.artifacts._read import check_free_disk
from hfflows.errors import HfflowsError, SettingsError, TargetError
from hfflows.refs import ArtifactRef

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hfflows.artifacts._pipeline import Workers
    from hfflows.artifacts._receive import Arrival
    from hfflows.artifacts._tree import Tree
    from hfflows.storage import Store


def export_bundle(
    refs: Iterable[RefLike] | RefLike,
    path: str | os.PathLike[str],
    *,
    store: Store | None = None,
    report: TransferReport | None = None,
) -> Path:
    """Write artifacts into one file that `import_bundle` takes in, and return its path.

    The file appears under its name when it is whole; what was there before is replaced then.
    Equal artifacts from the same store make equal files.

    Args:
        refs: References, their dicts, or their keys; one or several.
        path: The file to write: a plain tar.
        store: Where from; `None` means the store the first reference names.
        report: Filled with what was moved.

    Raises:
        ArtifactNotFoundError: One was never saved, or was deleted.
        IntegrityError: One is damaged; names file and object.
        TargetError, DiskSpaceError: The file cannot be written, or will not fit.
        SettingsError: No artifact is given, or far too many at once.
    """
    wanted = [refs] if isinstance(refs, str | ArtifactRef | Mapping) else list(refs)
    if not wanted:
        msg = "A bundle needs at least one artifact; pass references or keys."
        raise SettingsError(msg)
    store = store_for(wanted[0], store)
    resolved = {ref.key: ref for ref in (resolve_ref(ref, store=store) for ref in wanted)}
    arrivals = [read_arrival(ref, store=store) for ref in resolved.values()]
    export = _Export(arrivals, store, report or TransferReport())
    path = Path(path).absolute()
    with _new_file(path) as file, transfer_threads() as (readers, _senders):
        export.write(file, path.parent, readers)
    return path


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that gets its name when the body has filled it, and is gone otherwise."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the drive may be pulled out next
        unfinished.replace(path)
    except HfflowsError:  # some of the store's are OSErrors too
        raise
    except OSError as error:
        msg = f"The bundle {path} cannot be written: {error.strerror or error}."
        raise TargetError(msg, path=str(path)) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


class _Export:
    """Artifacts on their way into a bundle.

    Objects go under their plain names: each is in the file once, also one that a collection
    has made move.
    """

    def __init__(self, arrivals: Sequence[Arrival], store: Store, report: TransferReport) -> None:
        self._arrivals = arrivals
        self._store = store
        self._report = report
        objects = objects_of((arrival.ref, arrival.tree) for arrival in arrivals)
        self._sizes = sizes_in(store, objects, what="What is to be bundled")
        self._places = {key: _plain(key) for key in objects}
        self._sources = {self._places[key]: objects[key] for key in self._sizes}
        report.count(bytes_covered=sum(arrival.ref.size_bytes for arrival in arrivals))

    def write(self, file: BinaryIO, directory: Path, readers: Workers) -> None:
        documents = dict(self._documents())
        members = [Member.of(key, data) for key, data in documents.items()]
        check_documents(members)
        members += self._object_members(readers)
        members.sort(key=Member.order)
        references = {arrival.ref.key: arrival.index_keys for arrival in self._arrivals}
        first = Contents(references, tuple(members)).encode()
        sizes = [(CONTENTS, len(first)), *((m.key, m.size_bytes) for m in members)]
        check_free_disk(directory, sum(size_of_member(*pair) for pair in sizes))

        write_member(file, CONTENTS, len(first), [first])
        for member in members[: len(documents)]:
            write_member(file, member.key, member.size_bytes, [documents[member.key]])
        self._write_objects(file, members[len(documents) :], readers)
        write_end(file)

    def _documents(self) -> Iterator[tuple[str, bytes]]:
        for arrival in self._arrivals:
            key, tree = arrival.ref.key, relocated(arrival.tree, self._places)
            yield key, encode_document(arrival.ref.model_dump(mode="json"))
            yield keys.tree(key), encode_document(tree.to_body())

    def _object_members(self, readers: Workers) -> Iterator[Member]:
        known = _file_digests(arrival.tree for arrival in self._arrivals)
        for key, stored in self._sources.items():
            size = self._sizes[stored.key]
            digest = digest_in(key) or known.get((key, size))
            yield Member(key, size, digest or self._read_digest(stored, size, readers))

    def _read_digest(self, stored: StoredObject, size_bytes: int, readers: Workers) -> str:
        """Return the digest of an object that nothing states: a tar is read twice."""
        digest = hashlib.sha256()
        for data in read_object(self._store, stored, size_bytes, pool=readers, report=self._report):
            digest.update(data)
        return digest.hexdigest()

    def _write_objects(self, file: BinaryIO, members: Sequence[Member], readers: Workers) -> None:
        wanted = [(self._sources[member.key], member.size_bytes) for member in members]
        passing = read_objects(self._store, wanted, pool=readers, report=self._report)
        for member, (_stored, pieces) in zip(members, passing, strict=True):
            write_member(file, member.key, member.size_bytes, pieces)
            self._report.count(objects_sent=1, bytes_sent=member.size_bytes)


def _plain(key: str) -> str:
    digest = digest_in(key)
    return key if digest is None else keys.object_key(digest)


def _file_digests(trees: Iterable[Tree]) -> dict[tuple[str, int], str]:
    """Return the digests of objects that are one whole file, by key and size."""
    return {
        (file.segments[0].key, file.size_bytes): file.sha256
        for tree in trees
        for file in tree.files
        if file.segments and file.segments[0].offset == 0
        if len({segment.key for segment in file.segments}) == 1
    }
