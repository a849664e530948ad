"""Tasks that turn a model into an ONNX file that knows where it came from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from prefect import task

from hfflows import export
from hfflows.refs import ArtifactRef
from hfflows.storage import open_store
from hfflows.tasks._identity import producer
from hfflows.tasks._snapshot import TASK_OPTIONS
from hfflows.tasks._support import run_logger, show_ref


@task(name="export_and_inject", **TASK_OPTIONS)
def export_and_inject(
    model: ArtifactRef,
    *,
    name: str,
    base: ArtifactRef | None = None,
    pipeline_tag: str | None = None,
    parity_tolerance: float = 1e-3,
    metadata: dict[str, Any] | None = None,
    parents: list[ArtifactRef] | None = None,
    store: str | None = None,
) -> ArtifactRef:
    """Export a model to ONNX, check it against torch, write its origin into the file, save it.

    Args:
        model: Reference to a transformers directory: a snapshot, a checkpoint or a model.
        name: Name of the export in the store.
        base: Snapshot the model was fine-tuned from; `None` when `model` is the snapshot.
        pipeline_tag: What the model is for; `None` reads it from the config.
        parity_tolerance: Largest difference between ONNX Runtime's and torch's outputs.
        metadata: JSON values kept in the reference, such as metrics.
        parents: Further artifacts it was made from: the data.
        store: URL; `None` means `HFFLOWS_STORE_URL`.

    Raises:
        ExportError: The export failed, or its outputs differ; nothing is saved.
        As `hfflows.save_artifact`.
    """
    with tempfile.TemporaryDirectory(prefix="hfflows-export-") as scratch:
        ref, report = export.export_artifact(
            model,
            Path(scratch),
            name=name,
            base=base,
            pipeline_tag=pipeline_tag,
            parity_tolerance=parity_tolerance,
            metadata=metadata,
            parents=parents or (),
            producer=producer(),
            store=open_store(store),
        )
    run_logger().info(
        "Exported %s with %s: largest difference from torch %.2g (tolerance %.0g)",
        ref.key,
        report.backend,
        report.parity_max_difference,
        report.parity_tolerance,
    )
    show_ref(
        ref,
        f"ONNX export {name}",
        backend=report.backend,
        opset=report.opset,
        parity=f"{report.parity_max_difference:.2g} (tolerance {report.parity_tolerance:g})",
    )
    return ref
