"""Save, load and list whole artifacts.

A save writes objects, then the tree, then the reference with one conditional create: a
reader sees the whole artifact or nothing. A killed save leaves unreferenced objects that
the next save of the same bytes reuses.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, get_args

from pydantic import ValidationError

from hfflows import keys
from hfflows.artifacts._cache import LocalCache, default_cache
from hfflows.artifacts._documents import encode_document, read_document
from hfflows.artifacts._pipeline import Transfer, TransferReport
from hfflows.artifacts._read import SegmentReader, load_tree, matches
from hfflows.artifacts._saves import announced_save, is_revocation
from hfflows.artifacts._sources import Sources, scan
from hfflows.artifacts._tree import Segment, Tree, parse_tree
from hfflows.artifacts._write import write_tree
from hfflows.errors import (
    ArtifactNotFoundError,
    IntegrityError,
    ObjectNotFoundError,
    SettingsError,
)
from hfflows.refs import ArtifactRef, ParentRef, Producer, StorageFormat, parse_ref
from hfflows.storage import default_store_url, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hfflows.artifacts._saves import AnnouncedSave
    from hfflows.storage import Store

RefLike = ArtifactRef | Mapping[str, Any] | str
"""A reference, its plain dict, or its key."""

DOCUMENTS_IN_FLIGHT = 16


def save_artifact(
    path: str | os.PathLike[str],
    *,
    kind: str = "model",
    name: str,
    metadata: Mapping[str, Any] | None = None,
    parents: Sequence[RefLike] = (),
    storage_format: StorageFormat = "files",
    producer: Producer | None = None,
    base: ArtifactRef | None = None,
    report: TransferReport | None = None,
    store: Store | None = None,
) -> ArtifactRef:
    """Save a file or a directory and return the reference that names it.

    Args:
        path: What to save; it must rest while it is read.
        kind: `model`, `export`, or a word of your own; part of the key.
        name: Name under which it is listed; may hold `/`.
        metadata: JSON values kept in the reference; not for secrets.
        parents: Artifacts this one was made from.
        storage_format: `files` keeps each file as one readable object, for other tools;
            `packed` is faster and sends nothing twice; `tar` is one object.
        producer: Who saves it.
        base: An artifact whose objects are reused without asking for each.
        report: Filled with what was moved.
        store: Where to; `None` means `open_store()`.

    Raises:
        SettingsError: Bad name, kind, metadata or format, or nothing at `path`.
        UnsafePathError: A file name or symlink that could not be loaded everywhere.
        IntegrityError: A file changed while it was being saved.
        StorageError: The store failed; nothing is visible.
    """
    key = keys.artifact(kind, name, id=keys.new_id())
    return commit_artifact(
        scan(path),
        key=key,
        kind=kind,
        name=name,
        metadata=metadata,
        parents=parents,
        storage_format=storage_format,
        producer=producer,
        base=base,
        report=report,
        store=store or open_store(),
    )


def commit_artifact(
    sources: Sources,
    *,
    key: str,
    kind: str,
    name: str,
    store: Store,
    metadata: Mapping[str, Any] | None = None,
    parents: Sequence[RefLike] = (),
    storage_format: StorageFormat = "packed",
    producer: Producer | None = None,
    base: ArtifactRef | None = None,
    report: TransferReport | None = None,
    index_keys: Sequence[str] = (),
    resend: bool = False,
) -> ArtifactRef:
    """Write `sources` under `key`; what all kinds of artifact share. See `save_artifact`.

    `index_keys` are written before the reference: an entry whose reference is missing is a
    killed save, and readers of the index pass over it. `resend` sends every byte anew, also
    what the store seems to have.
    """
    if storage_format not in get_args(StorageFormat):
        msg = f"storage_format={storage_format!r} is none of {', '.join(get_args(StorageFormat))}."
        raise SettingsError(msg)
    sources.check()
    parent_refs = tuple(as_parent(parent, store=store) for parent in parents)
    draft = draft_ref(key, kind, name, storage_format, metadata or {})
    report = report or TransferReport()
    with announced_save(store, key) as save:
        transfer = Transfer(store, report, save.condemned, _segments_of(base, store), resend)
        tree = write_tree(transfer, sources, layout=storage_format, reference_key=key)
        return commit_tree(save, draft, tree, producer, parent_refs, index_keys=index_keys)


def _segments_of(base: ArtifactRef | None, store: Store) -> tuple[Segment, ...]:
    """Return where the bytes of an artifact lie that is there; asked after announcing.

    Both documents count. What a reference leads to cannot be deleted before this save is
    done, while a tree may outlive objects that it names.
    """
    if base is None:
        return ()
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="hfflows-commit") as pool:
            reading = pool.submit(read_tree, base, store=store)
            resolve_ref(base.key, store=store)
        files = reading.result().files
    except (ArtifactNotFoundError, IntegrityError):
        return ()  # then all bytes are looked for or sent, which costs time and no more
    return tuple(segment for file in files for segment in file.segments)


def commit_selection(
    ref: ArtifactRef,
    allow_patterns: Sequence[str] | None,
    ignore_patterns: Sequence[str] | None,
    *,
    key: str,
    metadata: Mapping[str, Any],
    producer: Producer | None = None,
    store: Store,
) -> ArtifactRef:
    """Commit a part of an artifact as one of its own; no file content is moved.

    Raises:
        ArtifactNotFoundError: `ref` was deleted, and its objects are being collected.
    """
    draft = draft_ref(key, ref.kind, ref.name, ref.storage_format, metadata)
    with announced_save(store, key) as save:
        tree = select(read_tree(ref, store=store), allow_patterns, ignore_patterns)
        if save.condemned.any_of(tree.object_keys()):
            raise _not_found(ref.key, store)
        return commit_tree(save, draft, tree, producer, ref.parents)


def commit_tree(
    save: AnnouncedSave,
    draft: ArtifactRef,
    tree: Tree,
    producer: Producer | None,
    parents: tuple[ParentRef, ...],
    *,
    index_keys: Sequence[str] = (),
) -> ArtifactRef:
    """Make a written tree visible: the reference comes last."""
    key, store = draft.key, save.store
    ref = draft.model_copy(
        update={
            "digest": tree.digest,
            "size_bytes": tree.size_bytes,
            "file_count": len(tree.files),
            "created_at": datetime.now(UTC),
            "producer": producer or Producer(),
            "parents": parents,
            "store_url": store.url,
        }
    )
    tree_document = encode_document(tree.to_body())
    beside = {keys.tree(key): tree_document} | dict.fromkeys(index_keys, b"{}")
    with ThreadPoolExecutor(len(beside), thread_name_prefix="hfflows-commit") as pool:
        list(pool.map(store.put, beside.keys(), beside.values()))
    save.commit(ref)
    return ref


def draft_ref(
    key: str, kind: str, name: str, storage_format: StorageFormat, metadata: Mapping[str, Any]
) -> ArtifactRef:
    """Return a reference without content, so that bad metadata fails before any upload."""
    try:
        draft = ArtifactRef(
            kind=kind,
            key=key,
            name=name,
            digest="0" * 64,
            size_bytes=0,
            file_count=0,
            storage_format=storage_format,
            created_at=datetime.now(UTC),
            metadata=dict(metadata),
        )
        encode_document(draft.model_dump(mode="json"))
    except (ValidationError, ValueError) as error:
        msg = f"The metadata of {name!r} must be JSON values with text keys and finite numbers."
        raise SettingsError(msg) from error
    return draft


def as_parent(reference: RefLike, *, store: Store) -> ParentRef:
    """Return what a child records of its parent."""
    return resolve_ref(reference, store=store).as_parent()


def resolve_ref(reference: RefLike, *, store: Store) -> ArtifactRef:
    """Return the reference; a key is read from the store.

    Raises:
        ArtifactNotFoundError: Nothing under this key.
        IntegrityError: What lies there is damaged.
    """
    if not isinstance(reference, str):
        return parse_ref(reference)
    if not keys.is_reference(reference):
        msg = (
            f"{reference!r} is not the key of an artifact; "
            "pass a reference, its dict, or its `key`."
        )
        raise SettingsError(msg, key=reference)
    try:
        body = read_document(store, reference)
    except ObjectNotFoundError as error:
        raise _not_found(reference, store) from error
    if is_revocation(body):
        raise _not_found(reference, store)
    return parse_ref(body).model_copy(update={"store_url": store.url})


def _not_found(key: str, store: Store) -> ArtifactNotFoundError:
    msg = f"{store.url} has no artifact {key}: it was never saved there, or it was deleted."
    return ArtifactNotFoundError(msg, key=key, store_url=store.url)


def store_for(reference: RefLike, store: Store | None) -> Store:
    """Return the given store, else the one a reference names, else the default."""
    if store is not None:
        return store
    if isinstance(reference, str):
        return open_store()
    return open_store(parse_ref(reference).store_url or default_store_url())


def read_tree(reference: RefLike, *, store: Store) -> Tree:
    """Return the tree of an artifact, checked against the reference's digest.

    Raises:
        ArtifactNotFoundError: There is no tree: never saved, or deleted.
        IntegrityError: The tree is damaged, or not this reference's.
    """
    ref = resolve_ref(reference, store=store)
    key = keys.tree(ref.key)
    try:
        tree = parse_tree(read_document(store, key), key=key)
    except ObjectNotFoundError as error:
        raise _not_found(ref.key, store) from error
    if tree.digest != ref.digest:
        msg = f"{key} describes other files than the reference {ref.key}; do not use it."
        raise IntegrityError(msg, key=key)
    return tree


def load_artifact(
    ref: RefLike,
    path: str | os.PathLike[str] | None = None,
    *,
    allow_patterns: Sequence[str] | str | None = None,
    ignore_patterns: Sequence[str] | str | None = None,
    cache: LocalCache | None = None,
    store: Store | None = None,
) -> Path:
    """Copy an artifact into a directory, verified, and return the directory.

    Args:
        ref: The reference, its dict, or its key.
        path: Absent or empty directory; `None` makes a temporary one, which is yours to
            delete.
        allow_patterns: Only files that match one of these; only their bytes are moved.
        ignore_patterns: Not the files that match one of these.
        cache: File contents on this machine, used and added to; `None` means the directory
            that `HFFLOWS_CACHE_DIR` names, if it does.
        store: Where from; `None` means the store the reference names.

    Raises:
        ArtifactNotFoundError: Never saved, or deleted.
        IntegrityError: Bytes are missing or not what was saved; names file and object.
        TargetError, DiskSpaceError: `path` cannot be used; nothing was written.
    """
    store, cache = store_for(ref, store), cache or default_cache()
    tree = select(read_tree(ref, store=store), allow_patterns, ignore_patterns)
    if path is None:
        directory = Path(tempfile.mkdtemp(prefix="hfflows-"))
        try:
            load_tree(store, tree, directory, cache=cache)
        except BaseException:
            directory.rmdir()
            raise
        return directory
    load_tree(store, tree, Path(path), cache=cache)
    return Path(path)


def select(
    tree: Tree,
    allow_patterns: Sequence[str] | str | None,
    ignore_patterns: Sequence[str] | str | None,
) -> Tree:
    """Return the part of a tree that patterns select."""
    allow = [allow_patterns] if isinstance(allow_patterns, str) else allow_patterns
    ignore = [ignore_patterns] if isinstance(ignore_patterns, str) else ignore_patterns
    if allow is None and ignore is None:
        return tree
    return Tree(
        tuple(file for file in tree.files if matches(file.path, allow, ignore)),
        tuple(name for name in tree.directories if matches(name, allow, ignore)),
        tuple(link for link in tree.symlinks if matches(link[0], allow, ignore)),
    )


def open_file(ref: RefLike, path: str, *, store: Store | None = None) -> BinaryIO:
    """Return one file of an artifact as a seekable stream; only what is read is moved.

    Raises:
        ArtifactNotFoundError: No such artifact, or no such file in it.
        IntegrityError: While reading: bytes are missing or not what was saved.
    """
    store = store_for(ref, store)
    resolved = resolve_ref(ref, store=store)
    for file in read_tree(resolved, store=store).files:
        if file.path == path:
            return io.BufferedReader(SegmentReader(store, file))
    msg = f"{resolved.key} has no file {path!r}."
    raise ArtifactNotFoundError(msg, key=resolved.key, path=path)


def list_artifacts(
    kind: str | None = None, *, prefix: str | None = None, store: Store | None = None
) -> list[ArtifactRef]:
    """Return references, in the order of their keys: newest first within a name.

    Args:
        kind: Only this kind.
        prefix: Only names that begin with these whole parts (`team/model`).
        store: Where to look; `None` means `open_store()`.

    Raises:
        SettingsError: `prefix` without `kind`.
        IntegrityError: A reference is damaged; names its key.
    """
    store = store or open_store()
    if kind is None and prefix:
        msg = "list_artifacts needs a kind to look for a prefix in."
        raise SettingsError(msg)
    where = keys.REFS if kind is None else keys.artifact_prefix(kind, prefix or "")
    found = [info.key for info in store.list(where) if keys.is_reference(info.key)]
    return list(read_refs(found, store=store))


def read_refs(
    reference_keys: Sequence[str],
    *,
    store: Store,
    on_damage: Callable[[IntegrityError], None] | None = None,
) -> Iterator[ArtifactRef]:
    """Yield the references under these keys, read in parallel; deleted ones are left out.

    With `on_damage` damaged ones are too, and it is told of each; else one is an error.
    """

    def read(key: str) -> ArtifactRef | None:
        try:
            return resolve_ref(key, store=store)
        except ArtifactNotFoundError:
            return None
        except IntegrityError as error:
            if on_damage is None:
                raise
            on_damage(error)
            return None

    with ThreadPoolExecutor(DOCUMENTS_IN_FLIGHT, thread_name_prefix="hfflows-list") as pool:
        yield from (ref for ref in pool.map(read, reference_keys) if ref is not None)
