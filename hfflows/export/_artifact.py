"""From a model's reference to an export's: load, export, write the origin in, check, save."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hfflows.artifacts import load_artifact, resolve_ref, save_artifact, store_for
from hfflows.export import _schema as schema
from hfflows.export._export import DEFAULT_PARITY_TOLERANCE, ExportReport, export_onnx
from hfflows.export._files import check_onnx_files
from hfflows.export._metadata import inject_hub_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hfflows.artifacts import RefLike
    from hfflows.refs import ArtifactRef, Producer
    from hfflows.storage import Store

POOLING = "1_Pooling/config.json"


def export_artifact(
    model: RefLike,
    scratch: Path,
    *,
    name: str,
    base: ArtifactRef | None = None,
    pipeline_tag: str | None = None,
    parity_tolerance: float = DEFAULT_PARITY_TOLERANCE,
    metadata: Mapping[str, Any] | None = None,
    parents: Sequence[RefLike] = (),
    producer: Producer | None = None,
    store: Store | None = None,
) -> tuple[ArtifactRef, ExportReport]:
    """Export a stored model and save the result, its origin in the file.

    Args:
        model: A transformers directory in the store: a snapshot, a checkpoint or a model.
        scratch: Empty directory for the files on their way; yours to delete.
        name: Name of the export in the store.
        base: Snapshot the model was fine-tuned from; `None` when `model` is the snapshot.
        pipeline_tag: What the model is for; `None` reads it from the config.
        parity_tolerance: Largest difference between ONNX Runtime's and torch's outputs.
        metadata: JSON values kept in the reference, such as metrics.
        parents: Further artifacts it was made from.
        producer: Who exports.
        store: Where it is and goes; `None` means the store the reference names.

    Raises:
        ArtifactNotFoundError, IntegrityError: As `hfflows.load_artifact`.
        ExportError: As `export_onnx`; nothing is saved.
    """
    store = store_for(model, store)
    ref = resolve_ref(model, store=store)
    source = load_artifact(ref, scratch / "model", store=store)
    output = scratch / "export"
    report = export_onnx(
        source, output, pipeline_tag=pipeline_tag, parity_tolerance=parity_tolerance
    )
    made_from = [ref, *([base] if base is not None else []), *parents]
    lineage = [resolve_ref(parent, store=store) for parent in made_from]
    entries = {
        **_origin(ref, base, store),
        **_facts(report, source),
        "hfflows_parents": json.dumps(
            [{"kind": item.kind, "key": item.key, "digest": item.digest} for item in lineage]
        ),
        "hfflows_run": producer.run if producer is not None and producer.run else None,
    }
    inject_hub_metadata(output / "model.onnx", entries, in_place=True)
    check_onnx_files(output)
    saved = save_artifact(
        output,
        kind="export",
        name=name,
        metadata={
            **(metadata or {}),
            "pipeline_tag": report.pipeline_tag,
            "backend": report.backend,
            "opset": report.opset,
            "parity_max_difference": report.parity_max_difference,
            "parity_tolerance": report.parity_tolerance,
        },
        parents=made_from,
        storage_format="files",
        producer=producer,
        store=store,
    )
    return saved, report


def _origin(ref: ArtifactRef, base: ArtifactRef | None, store: Store) -> dict[str, Any]:
    """Return the entries that lead back: to the Hub, or to the model's artifact."""
    snapshot = ref if ref.kind == "snapshot" else base
    is_hub = snapshot is ref
    return {
        schema.MODEL_TYPE: "hub" if is_hub else "local",
        schema.HUB_ID: snapshot.metadata.get("repo_id") if snapshot else None,
        schema.HUB_REVISION: snapshot.metadata.get("commit_hash") if snapshot else None,
        "hf_base_model": base.metadata.get("repo_id") if base and not is_hub else None,
        schema.MODEL_KEY: ref.key,
        schema.MODEL_DIGEST: ref.digest,
        schema.STORE_URL: store.url,
        "hfflows_base_key": base.key if base else None,
        "hfflows_base_digest": base.digest if base else None,
    }


def _facts(report: ExportReport, source: Path) -> dict[str, Any]:
    pooling = source / POOLING
    return {
        "hf_library_name": "transformers",
        "hf_pipeline_tag": report.pipeline_tag,
        "hf_task": report.pipeline_tag,
        "hf_architecture": report.architecture,
        "hf_export_backend": report.backend,
        "hf_opset": report.opset,
        "hf_input_names": ",".join(report.input_names),
        "hf_output_names": ",".join(report.output_names),
        "hf_parity_max_difference": report.parity_max_difference,
        "hf_parity_tolerance": report.parity_tolerance,
        "hf_pooling": _compact(pooling) if pooling.is_file() else None,
    }


def _compact(path: Path) -> str:
    return json.dumps(json.loads(path.read_text(encoding="utf-8")), separators=(",", ":"))
