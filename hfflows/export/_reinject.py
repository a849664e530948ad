"""Metadata of a stored export, written anew: another artifact, made from the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.artifacts import load_artifact, save_artifact, store_for
from hfflows.export._artifact import resolve_export
from hfflows.export._onnx import _schema as schema
from hfflows.export._onnx._file import inject_hub_metadata, read_onnx_metadata
from hfflows.export._onnx._graphs import check_onnx_files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hfflows.artifacts import RefLike
    from hfflows.refs import ArtifactRef, Producer
    from hfflows.storage import Store

_OF_THE_WRITER = (schema.DIGEST, schema.EXPORT_VERSION, schema.EXPORT_TIMESTAMP)


def inject_artifact(
    export: RefLike,
    scratch: Path,
    entries: Mapping[str, Any],
    *,
    producer: Producer | None = None,
    store: Store | None = None,
) -> ArtifactRef:
    """Add entries to every graph of a stored export and return the new export's reference.

    The first one stays as it is. Graphs are not changed, and neither are entries that are not
    named.

    Args:
        export: An export's reference, its dict, or its key.
        scratch: Empty directory for the files on their way; yours to delete.
        entries: Values by key of `hfflows.export.FIELDS`; `None` takes an entry out.
        producer: Who does it.
        store: Where it is and goes; `None` means the store the reference names.

    Raises:
        SettingsError: Not an export.
        MetadataError: Entries that are none; nothing is saved.
        As `hfflows.load_artifact` and `hfflows.save_artifact`.
    """
    store = store_for(export, store)
    ref = resolve_export(export, store=store)
    directory = load_artifact(ref, scratch / "export", store=store)
    for graph in sorted(directory.rglob("*.onnx")):
        there = {
            key: value
            for key, value in read_onnx_metadata(graph).items()
            if schema.is_ours(key) and key not in _OF_THE_WRITER
        }
        inject_hub_metadata(graph, {**there, **entries}, in_place=True)
    check_onnx_files(directory)
    return save_artifact(
        directory,
        kind=keys.EXPORT_KIND,
        name=ref.name,
        metadata=ref.metadata,
        parents=[ref],
        storage_format=ref.storage_format,
        producer=producer,
        store=store,
    )
