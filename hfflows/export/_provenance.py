"""What an export's files say of where they come from: all that leads back to Hub and data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.artifacts import lineage
from hfflows.export._onnx import _schema as schema
from hfflows.export._onnx._file import inject_hub_metadata
from hfflows.export._onnx._graphs import graph_sha256
from hfflows.export._variants import variant_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from hfflows.export._report import ExportReport
    from hfflows.export._settings import ExportSettings
    from hfflows.refs import ArtifactRef, ParentRef
    from hfflows.storage import Store

DATASET = "dataset"
VARIANT_DTYPES = {"fp16": "float16"}


@dataclass(frozen=True, slots=True)
class Origin:
    """A model in the store, and what it was made from as far as the store knows."""

    ref: ArtifactRef
    base: ArtifactRef | None
    """Snapshot it was fine-tuned from; `None` for a snapshot."""
    checkpoint: ParentRef | None
    data: ParentRef | None
    parents: tuple[ArtifactRef, ...]
    """Of the export, the model first."""

    @classmethod
    def of(
        cls,
        ref: ArtifactRef,
        *,
        base: ArtifactRef | None,
        parents: Sequence[ArtifactRef],
        store: Store,
    ) -> Origin:
        """Look where a model comes from: one request for each of its ancestors.

        Args:
            ref: The model.
            base: The snapshot, where the caller knows it; else the nearest one is taken.
            parents: What else the export is made from.
            store: Where all of them are.
        """
        above = [item.ref for item in lineage(ref, descendants=False, store=store).ancestors]
        there = [item for item in above if item is not None]
        known = base or (None if is_hub_model(ref) else next(filter(is_hub_model, there), None))
        made_from = [ref, *([base] if base is not None else []), *parents]
        return cls(
            ref=ref,
            base=known,
            checkpoint=_first(_is_checkpoint, [ref, *there]),
            data=_first(is_data, [*parents, *there]),
            parents=tuple({item.key: item for item in made_from}.values()),
        )

    def entries(self, store: Store) -> dict[str, Any]:
        """Return the metadata entries that lead back."""
        snapshot = self.ref if is_hub_model(self.ref) else self.base
        is_hub = snapshot is self.ref
        known = snapshot.metadata if snapshot is not None else {}
        linked = {"base": self.base, "data": self.data, "checkpoint": self.checkpoint}
        return {
            schema.MODEL_TYPE: "hub" if is_hub else "local",
            "hf_source": "hub" if is_hub else "artifact",
            schema.HUB_ID: known.get("repo_id"),
            schema.HUB_REVISION: known.get("commit_hash"),
            "hf_base_model": None if is_hub else known.get("repo_id"),
            schema.MODEL_KEY: self.ref.key,
            schema.MODEL_DIGEST: self.ref.digest,
            schema.STORE_URL: store.url,
            "hfflows_parents": _compact(
                [
                    {"kind": item.kind, "key": item.key, "digest": item.digest}
                    for item in self.parents
                ]
            ),
            **{
                f"hfflows_{name}_{fact}": getattr(item, fact) if item is not None else None
                for name, item in linked.items()
                for fact in ("key", "digest")
            },
        }


def is_hub_model(ref: ArtifactRef) -> bool:
    """Return whether an artifact is a copy of a model on the Hub."""
    known = ref.metadata
    return (
        ref.kind == keys.SNAPSHOT_KIND
        and known.get("repo_type", "model") == "model"
        and bool(known.get("repo_id") and known.get("commit_hash"))
    )


def is_data(ref: ArtifactRef) -> bool:
    """Return whether an artifact is what a model is trained or judged with."""
    return ref.kind == DATASET or (
        ref.kind == keys.SNAPSHOT_KIND and ref.metadata.get("repo_type") == DATASET
    )


def inject_everywhere(
    report: ExportReport, settings: ExportSettings, entries: Mapping[str, Any]
) -> None:
    """Write entries, and what is known of the graph, into every graph file of an export."""
    common = {**_facts(report, settings), **entries}
    for name in report.graphs:
        _inject(report, name, name, common, {})
    for variant in report.variants:
        kind = variant["variant"]
        own = {
            "hf_variant": kind,
            "hf_dtype": VARIANT_DTYPES.get(kind, kind),
            "hf_parity_max_difference": variant["parity_max_difference"],
            "hf_parity_tolerance": variant["parity_tolerance"],
        }
        for name in report.graphs:
            _inject(report, name, variant_file(name, kind), common, own)


def _inject(
    report: ExportReport, graph: str, file: str, common: dict[str, Any], own: dict[str, Any]
) -> None:
    path = report.directory / file
    ports = report.graphs[graph]
    entries = {
        **common,
        **own,
        "hf_input_names": ",".join(ports["inputs"]),
        "hf_output_names": ",".join(ports["outputs"]),
        "hfflows_graph_sha256": graph_sha256(path),
    }
    inject_hub_metadata(path, entries, in_place=True)


def _facts(report: ExportReport, settings: ExportSettings) -> dict[str, Any]:
    return {
        "hf_library_name": "transformers",
        "hf_pipeline_tag": report.pipeline_tag,
        "hf_task": report.pipeline_tag,
        "hf_architecture": report.architecture,
        "hf_dtype": report.dtype,
        "hf_trust_remote_code": settings.trust_remote_code,
        "hf_export_backend": report.backend,
        "hf_export_settings": _compact(settings.to_json()),
        "hf_export_versions": _compact(report.versions),
        "hf_opset": report.opset,
        "hf_parity_max_difference": report.parity_max_difference,
        "hf_parity_tolerance": report.parity_tolerance,
        "hf_pooling": _compact(report.pooling) if report.pooling is not None else None,
    }


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _first(fits: Any, candidates: Iterable[ArtifactRef]) -> ParentRef | None:
    found = next(filter(fits, candidates), None)
    return found.as_parent() if found is not None else None


def _is_checkpoint(ref: ArtifactRef) -> bool:
    return ref.kind == keys.CHECKPOINT_KIND
