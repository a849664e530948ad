"""From a bare file back to the commit and the data that it was made from.

    file ─→ export ─→ model ─┬→ checkpoint ─→ snapshot at its commit
                             └→ dataset

The file names keys and digests, and the store says what lies there. No Hub is asked, and no
store is opened but the given one: the URL in a file from elsewhere is told, not connected to.
"""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

from hfflows import keys
from hfflows.artifacts import (
    lineage,
    onnx_graphs,
    read_tree,
    resolve_ref,
    store_for,
)
from hfflows.errors import ArtifactNotFoundError, ExportError, IntegrityError
from hfflows.export._onnx import _schema as schema
from hfflows.export._onnx._file import read_onnx_metadata
from hfflows.export._onnx._graphs import graph_sha256
from hfflows.export._tracing._chain import Link, State, Trace, in_order
from hfflows.export._tracing._recorded import first_graph, first_of, origin_of, recorded_parents
from hfflows.refs import ArtifactRef, ParentRef, Producer
from hfflows.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hfflows.artifacts import RefLike, Relative
    from hfflows.storage import Store

_FILE = "file"
_NO_DIGEST = "0" * 64


def trace(source: str | os.PathLike[str] | RefLike, *, store: Store | None = None) -> Trace:
    """Return the chain from an ONNX file back to its base commit and its data.

    Cost: the file's graph is hashed, which reads it once; then a request for each link, one
    listing of the exports to find the one that holds the file, and one of the snapshots when
    its commit is in none of the links.

    Args:
        source: An `.onnx` file, a directory with one, or an export's reference, dict or key.
        store: Where to look; `None` means `open_store()`, for a reference the store it names.

    Raises:
        SettingsError: There is no such file.
        MetadataError: The file does not say where it came from, or is no ONNX model.
        ArtifactNotFoundError: A key under which nothing is, or an artifact without a graph.
    """
    is_path = isinstance(source, os.PathLike)
    if is_path or (isinstance(source, str) and not source.startswith(keys.REFS)):
        return _of_file(first_graph(Path(cast("str", source))), store or open_store())
    found = cast("RefLike", source)
    return _of_artifact(found, store_for(found, store))


def _of_file(path: Path, store: Store) -> Trace:
    metadata = origin_of(read_onnx_metadata(path), str(path))
    digest, state, detail = _graph_of(path, metadata.get(schema.GRAPH_SHA256))
    file = Link(
        depth=0,
        kind=_FILE,
        name=str(path),
        key="",
        digest=digest,
        state=state,
        created_at=metadata.get(schema.EXPORT_TIMESTAMP, ""),
        run=metadata.get("hfflows_run", ""),
        detail=detail,
    )
    parents = recorded_parents(metadata)
    export = _export_of(path, parents, store)
    if export is not None:
        parents.insert(0, export.as_parent())
    return _traced(file, parents, metadata, store)


def _graph_of(path: Path, recorded: str | None) -> tuple[str, State, str]:
    """Return the digest of a file's graph, and what it says beside the recorded one."""
    if recorded is None:
        return "", "found", "the graph is not compared: its digest is not recorded"
    try:
        digest = graph_sha256(path)
    except ExportError as error:  # a bare file, its weights left elsewhere
        return recorded, "found", f"the graph is not compared: {error}"
    if digest == recorded:
        return digest, "verified", "the graph is as exported"
    return digest, "different", "the graph was changed"


def _of_artifact(source: RefLike, store: Store) -> Trace:
    ref = resolve_ref(source, store=store)
    names = [file.path for file in read_tree(ref, store=store).files]
    graph = first_of(onnx_graphs(names))
    if graph is None:
        msg = f"{ref.key} holds no ONNX graph; trace an export."
        raise ArtifactNotFoundError(msg, key=ref.key)
    read = read_onnx_metadata(ref, file=graph, store=store)
    metadata = origin_of(read, f"{graph} of {ref.key}")
    file = Link(
        depth=0,
        kind=_FILE,
        name=graph,
        key="",
        digest=metadata.get(schema.GRAPH_SHA256, ""),
        state="found",
        created_at=metadata.get(schema.EXPORT_TIMESTAMP, ""),
        run=metadata.get("hfflows_run", ""),
        detail="in the store; the digest of its artifact covers it",
    )
    return _traced(file, [ref.as_parent(), *recorded_parents(metadata)], metadata, store)


# What the store holds -------------------------------------------------------------------


def _export_of(path: Path, parents: Sequence[ParentRef], store: Store) -> ArtifactRef | None:
    """Return the export that holds this very file, metadata included; the newest of several."""
    if not parents:
        return None
    size_bytes, sha256 = path.stat().st_size, ""
    made = lineage(
        _stand_in(parents[0].key), ancestors=False, kinds=[keys.EXPORT_KIND], store=store
    )
    for relative in made.descendants:
        for held_bytes, held_sha256 in _graph_files(relative, store):
            if held_bytes == size_bytes:
                sha256 = sha256 or _sha256(path)
                if held_sha256 == sha256:
                    return relative.ref
    return None


def _graph_files(relative: Relative, store: Store) -> list[tuple[int, str]]:
    """Return size and sha256 of an export's graphs; a damaged one holds none."""
    if relative.ref is None:
        return []
    try:
        files = read_tree(relative.ref, store=store).files
    except (ArtifactNotFoundError, IntegrityError):
        return []
    return [(file.size_bytes, file.sha256) for file in files if file.path.endswith(".onnx")]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stand_in(key: str, parents: Sequence[ParentRef] = ()) -> ArtifactRef:
    """Return a reference that is in no store, to ask for the relatives of what has none."""
    return ArtifactRef(
        kind=_FILE,
        key=key,
        name=_FILE,
        digest=_NO_DIGEST,
        size_bytes=0,
        file_count=1,
        storage_format="files",
        created_at=datetime.now(UTC),
        parents=tuple(parents),
    )


def _traced(
    file: Link, parents: Sequence[ParentRef], metadata: dict[str, str], store: Store
) -> Trace:
    start = _stand_in(_FILE, parents)
    above = {
        relative.key: relative
        for relative in lineage(start, descendants=False, store=store).ancestors
    }
    named: dict[str, list[ParentRef]] = {_FILE: list(parents)}
    named |= {key: list(item.ref.parents) for key, item in above.items() if item.ref is not None}
    recorded: dict[str, list[str]] = {}
    for items in named.values():
        for parent in items:
            recorded.setdefault(parent.key, []).append(parent.digest)
    links = [file]
    for key, depth in in_order(_FILE, {key: [p.key for p in at] for key, at in named.items()}):
        if key != _FILE:
            links.append(_link(above[key], depth, recorded[key]))
    links += _hub_links(metadata, above, store)
    return Trace(
        source=file.name,
        store_url=store.url,
        recorded_store_url=metadata.get(schema.STORE_URL, ""),
        links=tuple(links),
        metadata=metadata,
    )


def _link(relative: Relative, depth: int, recorded: Sequence[str]) -> Link:
    ref = relative.ref
    state: State
    if ref is None:
        state = "damaged" if relative.state == "unreadable" else "missing"
        where = f"recorded in {relative.store_url}" if relative.state == "elsewhere" else ""
        return Link(
            depth=depth,
            kind=relative.kind,
            name="",
            key=relative.key,
            digest=relative.digest,
            state=state,
            detail=where,
        )
    others = sorted({digest for digest in recorded if digest} - {ref.digest})
    state = "different" if others else "verified" if any(recorded) else "found"
    return Link(
        depth=depth,
        kind=ref.kind,
        name=_name(ref),
        key=ref.key,
        digest=ref.digest,
        state=state,
        created_at=ref.created_at.isoformat(timespec="seconds"),
        run=ref.producer.run,
        detail=f"recorded with digest {others[0]}" if others else _made_by(ref.producer),
    )


def _name(ref: ArtifactRef) -> str:
    commit = ref.metadata.get("commit_hash")
    return f"{ref.metadata.get('repo_id', ref.name)}@{commit}" if commit else ref.name


def _made_by(producer: Producer) -> str:
    return "/".join(filter(None, (producer.flow, producer.task, producer.item)))


def _hub_links(
    metadata: Mapping[str, str], above: Mapping[str, Relative], store: Store
) -> list[Link]:
    """Return the link to the recorded commit, unless a snapshot of the chain holds it."""
    repo_id, commit = metadata.get(schema.HUB_ID), metadata.get(schema.HUB_REVISION)
    if not (repo_id and commit):
        return []
    name = f"{repo_id}@{commit}"
    if any(item.ref is not None and _name(item.ref) == name for item in above.values()):
        return []
    held = next(_held(repo_id, commit, store), None)
    detail = "held by the store as a snapshot" if held else "not in this store; the Hub has it"
    return [
        Link(
            depth=1,
            kind="hub",
            name=name,
            key=held or "",
            digest="",
            state="found" if held else "missing",
            detail=detail,
        )
    ]


def _held(repo_id: str, commit: str, store: Store) -> Iterator[str]:
    """Yield the keys of snapshots of a commit, of any scope."""
    for info in store.list(keys.artifact_prefix(keys.SNAPSHOT_KIND)):
        if keys.is_reference(info.key) and keys.commit_of(info.key) == (repo_id, commit):
            yield info.key
