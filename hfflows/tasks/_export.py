"""Tasks that turn a model into an ONNX file that knows where it came from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import DEFAULT, NO_CACHE
from prefect.context import FlowRunContext

from hfflows import artifacts, export
from hfflows.export import Backend, Dtype, Pooling, Variant
from hfflows.refs import ArtifactRef
from hfflows.storage import open_store
from hfflows.tasks._identity import producer
from hfflows.tasks._snapshot import TASK_OPTIONS, token_from_block
from hfflows.tasks._support import run_logger, show_ref, show_table

if TYPE_CHECKING:
    from hfflows.export import ExportResult
    from hfflows.storage import Store

Ref = ArtifactRef | dict[str, Any] | str


@task(name="export_onnx", **TASK_OPTIONS)
def export_onnx(
    model: Ref,
    *,
    name: str,
    base: Ref | None = None,
    pipeline_tag: str | None = None,
    opset: int | None = None,
    dtype: Dtype = "float32",
    backend: Backend = "auto",
    variants: list[Variant] | None = None,
    pooling: Pooling = "record",
    trust_remote_code: bool = False,
    parity_tolerance: float = 1e-3,
    force: bool = False,
    memory_limit_bytes: int | None = None,
    timeout_seconds: float = 1800.0,
    store: str | None = None,
) -> ArtifactRef:
    """Return the ONNX export of a stored model, made now if the store has none like it.

    Args:
        model: A transformers directory in the store: a snapshot, a checkpoint or a model.
        name: Name of the export in the store.
        base: Snapshot the model was fine-tuned from; `None` takes the nearest one among what it
            was made from.
        pipeline_tag: What the model is for; `None` reads it from the config.
        opset: ONNX opset; `None` is the exporter's default.
        dtype: `float32` or `float16`.
        backend: `transformers`, `torchscript`, `optimum`, or `auto`: the first that works.
        variants: Of `int8` and `fp16`, each a file beside every float32 graph.
        pooling: For sentence-transformers: `graph` adds an output `sentence_embedding`.
        trust_remote_code: Run the code that comes with the model.
        parity_tolerance: Largest difference between ONNX Runtime's and torch's outputs.
        force: Export although the store has it.
        memory_limit_bytes: The export is stopped when it holds more; Linux only.
        timeout_seconds: The export is stopped after this long.
        store: URL; `None` means the store the reference names.

    Raises:
        As `hfflows.export.fetch_export`.
    """
    return _fetch(
        model,
        name=name,
        base=base,
        pipeline_tag=pipeline_tag,
        opset=opset,
        dtype=dtype,
        backend=backend,
        variants=variants or (),
        pooling=pooling,
        trust_remote_code=trust_remote_code,
        parity_tolerance=parity_tolerance,
        force=force,
        memory_limit_bytes=memory_limit_bytes,
        timeout_seconds=timeout_seconds,
        store=store,
    )


@task(name="export_and_inject", **TASK_OPTIONS)
def export_and_inject(
    model: Ref,
    *,
    name: str,
    base: Ref | None = None,
    entries: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    parents: list[ArtifactRef] | None = None,
    pipeline_tag: str | None = None,
    opset: int | None = None,
    dtype: Dtype = "float32",
    backend: Backend = "auto",
    variants: list[Variant] | None = None,
    pooling: Pooling = "record",
    trust_remote_code: bool = False,
    parity_tolerance: float = 1e-3,
    force: bool = False,
    memory_limit_bytes: int | None = None,
    timeout_seconds: float = 1800.0,
    store: str | None = None,
) -> ArtifactRef:
    """Export a model to ONNX, check it against torch, write its origin into the file, save it.

    As `export_onnx`, with more said in the file and in the reference. What the store has
    already, with the same entries, metadata and parents, is returned.

    Args:
        model: A transformers directory in the store: a snapshot, a checkpoint or a model.
        name: Name of the export in the store.
        base: Snapshot the model was fine-tuned from; `None` takes the nearest one among what it
            was made from.
        entries: Further entries for the ONNX files, by key of `hfflows.export.FIELDS`.
        metadata: JSON values kept in the reference, such as metrics.
        parents: Further artifacts it was made from: the data.
        pipeline_tag: What the model is for; `None` reads it from the config.
        opset: ONNX opset; `None` is the exporter's default.
        dtype: `float32` or `float16`.
        backend: `transformers`, `torchscript`, `optimum`, or `auto`: the first that works.
        variants: Of `int8` and `fp16`, each a file beside every float32 graph.
        pooling: For sentence-transformers: `graph` adds an output `sentence_embedding`.
        trust_remote_code: Run the code that comes with the model.
        parity_tolerance: Largest difference between ONNX Runtime's and torch's outputs.
        force: Export although the store has it.
        memory_limit_bytes: The export is stopped when it holds more; Linux only.
        timeout_seconds: The export is stopped after this long.
        store: URL; `None` means the store the reference names.

    Raises:
        ExportError: The export failed, or its outputs differ; nothing is saved.
        As `hfflows.export.fetch_export`.
    """
    return _fetch(
        model,
        name=name,
        base=base,
        entries=entries,
        metadata=metadata,
        parents=parents or (),
        pipeline_tag=pipeline_tag,
        opset=opset,
        dtype=dtype,
        backend=backend,
        variants=variants or (),
        pooling=pooling,
        trust_remote_code=trust_remote_code,
        parity_tolerance=parity_tolerance,
        force=force,
        memory_limit_bytes=memory_limit_bytes,
        timeout_seconds=timeout_seconds,
        store=store,
    )


@task(name="inject_hub_metadata", cache_policy=DEFAULT - "token_block", **TASK_OPTIONS)
def inject_hub_metadata(
    ref: Ref,
    entries: dict[str, Any] | None = None,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    counters: bool = False,
    allow_unverified: bool = False,
    token_block: str | None = None,
    endpoint: str | None = None,
    store: str | None = None,
) -> ArtifactRef:
    """Add entries to every graph of a stored export and return the new export's reference.

    The first export stays as it is, and is the new one's parent.

    Args:
        ref: What `export_onnx` returned.
        entries: Values by key of `hfflows.export.FIELDS`; `None` takes an entry out.
        repo_id: A Hub repo that holds this model's config: what its card says is added.
        revision: Of it; `None` means `main`.
        counters: Also its downloads and likes.
        allow_unverified: Record it also when the Hub cannot be asked.
        token_block: Name of a Prefect `Secret` block; `None` means `HF_TOKEN`.
        endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`.
        store: URL; `None` means the store the reference names.

    Raises:
        As `hfflows.export.inject_artifact` and `hfflows.export.hub_entries`.
    """
    said: dict[str, Any] = {}
    if repo_id is not None:
        said = export.hub_entries(
            repo_id,
            revision,
            counters=counters,
            allow_unverified=allow_unverified,
            token=token_from_block(token_block),
            endpoint=endpoint,
        )
    said |= entries or {}
    with tempfile.TemporaryDirectory(prefix="hfflows-export-") as scratch:
        injected = export.inject_artifact(
            ref, Path(scratch), said, producer=producer(), store=_opened(ref, store)
        )
    run_logger().info("Wrote %s into %s", ", ".join(sorted(said)), injected.key)
    show_ref(injected, f"ONNX export {injected.name}", **said)
    return injected


@task(name="verify_onnx", **(TASK_OPTIONS | {"cache_policy": NO_CACHE}))
def verify_onnx(
    ref: Ref,
    *,
    texts: list[str] | None = None,
    trust_remote_code: bool = False,
    memory_limit_bytes: int | None = None,
    timeout_seconds: float = 1800.0,
    store: str | None = None,
) -> dict[str, Any]:
    """Load a stored export, check that it is whole, and compare it with torch once more.

    Args:
        ref: What `export_onnx` returned.
        texts: What to compare on; `None` means the inputs every export is compared on.
        trust_remote_code: Run the model's own code, if it was exported with it.
        memory_limit_bytes: It is stopped when it holds more; Linux only.
        timeout_seconds: It is stopped after this long.
        store: URL; `None` means the store the reference names.

    Returns:
        `key`, `files`, `model` and a row for each graph in `graphs`: difference from torch,
        median milliseconds of ONNX Runtime and of torch.

    Raises:
        As `hfflows.export.verify_export`.
    """
    with tempfile.TemporaryDirectory(prefix="hfflows-verify-") as scratch:
        found = export.verify_export(
            ref,
            Path(scratch),
            texts=texts,
            trust_remote_code=trust_remote_code,
            memory_limit_bytes=memory_limit_bytes,
            timeout_seconds=timeout_seconds,
            store=_opened(ref, store),
        )
    for row in found["graphs"]:
        run_logger().info("Verified %s", ", ".join(f"{name} {row[name]}" for name in row))
    show_table(
        f"hfflows-verified-{found['name']}",
        found["graphs"],
        description=f"{found['key']}: parity with torch and latency",
    )
    return found


def _fetch(model: Ref, *, name: str, store: str | None, **options: Any) -> ArtifactRef:
    with tempfile.TemporaryDirectory(prefix="hfflows-export-") as scratch:
        result = export.fetch_export(
            model,
            Path(scratch),
            name=name,
            producer=producer(),
            code_version=_code_version(),
            store=_opened(model, store),
            **options,
        )
    _report(result)
    return result.ref


def _opened(ref: Ref, store: str | None) -> Store:
    return artifacts.store_for(ref, None if store is None else open_store(store))


def _code_version() -> str | None:
    """Return the version of the running flow's code, which Prefect takes from its file."""
    context = FlowRunContext.get()
    flow_run = context.flow_run if context is not None else None
    return flow_run.flow_version if flow_run is not None else None


def _report(result: ExportResult) -> None:
    ref, report = result.ref, result.report
    run_logger().info(
        "Export %s: %s, by %s; largest difference from torch %.2g (tolerance %.2g)",
        ref.key,
        result.outcome,
        report.backend,
        report.parity_max_difference,
        report.parity_tolerance,
    )
    show_ref(
        ref,
        f"ONNX export {ref.name}",
        outcome=result.outcome,
        backend=report.backend,
        opset=report.opset,
        parity=f"{report.parity_max_difference:.2g} (tolerance {report.parity_tolerance:g})",
        variants=", ".join(
            f"{item['variant']}: {item['size_bytes']:,} bytes, difference "
            f"{item['parity_max_difference']:.2g} (tolerance {item['parity_tolerance']:g})"
            for item in report.variants
        ),
    )
