"""A model to ONNX, verified: from the Hub or from the store, into the store.

Snapshot, export, verify: the export is compared with torch before it is saved, and once more
as it lies in the store. What the store has already is not made again, so the flow can run on a
schedule and costs nothing while the repo rests.
"""

from __future__ import annotations

from prefect import flow, get_run_logger
from pydantic import BaseModel, ConfigDict, Field, model_validator

import hfflows
from hfflows.export import Backend, Dtype, Pooling, Variant
from hfflows.refs import ArtifactRef
from hfflows.tasks import export_onnx, snapshot_download, verify_onnx


class ExportConfig(BaseModel):
    """What to export, how, and under which name."""

    model_config = ConfigDict(extra="forbid")

    repo_id: str | None = Field(None, description="Model on the Hub; or `model`.")
    revision: str | None = Field(None, description="Branch, tag or commit of `repo_id`.")
    model: ArtifactRef | str | None = Field(
        None, description="Model in the store, by reference or key; or `repo_id`."
    )
    name: str | None = Field(None, description="Name of the export; `None` takes the model's.")
    pipeline_tag: str | None = Field(None, description="What for; `None` reads the config.")
    opset: int | None = None
    dtype: Dtype = "float32"
    backend: Backend = "auto"
    variants: list[Variant] = Field([], description="Smaller graphs beside the float32 ones.")
    pooling: Pooling = "record"
    trust_remote_code: bool = False
    parity_tolerance: float = Field(1e-3, ge=0)
    texts: list[str] | None = Field(None, description="What to verify on; `None` has its own.")
    force: bool = Field(False, description="Export although the store has it.")
    memory_limit_bytes: int | None = Field(None, gt=0)
    timeout_seconds: float = Field(1800, gt=0)
    token_block: str | None = Field(None, description="Prefect `Secret` block with a Hub token.")
    endpoint: str | None = Field(None, description="Of a Hub of your own.")

    @model_validator(mode="after")
    def _one_source(self) -> ExportConfig:
        if (self.repo_id is None) == (self.model is None):
            msg = "Say either repo_id, of a model on the Hub, or model, its reference in the store."
            raise ValueError(msg)
        if self.revision is not None and self.repo_id is None:
            msg = "revision goes with repo_id; a model in the store is what its reference says."
            raise ValueError(msg)
        return self


@flow(name="export", persist_result=True, result_serializer="json")
def export(config: ExportConfig) -> ArtifactRef:
    """Export a model of the Hub or of the store, verify the export, return its reference.

    Args:
        config: What to export, how, and under which name.

    Raises:
        ExportError: The export failed, or answers otherwise than torch.
    """
    source = _source(config)
    ref: ArtifactRef = export_onnx(
        source,
        name=config.name or source.name,
        pipeline_tag=config.pipeline_tag,
        opset=config.opset,
        dtype=config.dtype,
        backend=config.backend,
        variants=config.variants,
        pooling=config.pooling,
        trust_remote_code=config.trust_remote_code,
        parity_tolerance=config.parity_tolerance,
        force=config.force,
        memory_limit_bytes=config.memory_limit_bytes,
        timeout_seconds=config.timeout_seconds,
    )
    verify_onnx(
        ref,
        texts=config.texts,
        trust_remote_code=config.trust_remote_code,
        memory_limit_bytes=config.memory_limit_bytes,
        timeout_seconds=config.timeout_seconds,
    )
    get_run_logger().info("Verified export: %s", ref.key)
    return ref


def _source(config: ExportConfig) -> ArtifactRef:
    if config.model is not None:
        return hfflows.resolve_ref(config.model, store=hfflows.open_store())
    snapshot: ArtifactRef = snapshot_download(
        config.repo_id or "",  # one of the two is there
        revision=config.revision,
        cache_scope="flow",
        token_block=config.token_block,
        endpoint=config.endpoint,
    )
    return snapshot
