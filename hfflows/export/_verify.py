"""A stored export looked at once more: whole, still torch's equal, and how fast.

It is loaded as any reader would load it, and compared with the model that its file names, in a
process of its own as an export is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hfflows.artifacts import load_artifact, resolve_ref, store_for
from hfflows.errors import ArtifactNotFoundError, IntegrityError, ParityError, SettingsError
from hfflows.export._artifact import resolve_export
from hfflows.export._export import load_model_files
from hfflows.export._onnx import _schema as schema
from hfflows.export._onnx._file import read_onnx_metadata
from hfflows.export._onnx._graphs import check_onnx_files
from hfflows.export._process import DEFAULT_TIMEOUT_SECONDS, check_limits, run_worker
from hfflows.export._settings import ExportSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hfflows.artifacts import RefLike
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

WORKER = "hfflows.export._verify_worker"


def verify_export(
    export: RefLike,
    scratch: Path,
    *,
    texts: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    memory_limit_bytes: int | None = None,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    store: Store | None = None,
) -> dict[str, Any]:
    """Load a stored export, check that it is whole, and compare it with torch once more.

    Args:
        export: An export's reference, its dict, or its key.
        scratch: Empty directory for files on their way; yours to delete.
        texts: What to compare on, for a model of one graph that reads texts; `None` means the
            inputs that every export is compared on.
        trust_remote_code: Run the model's own code, if it was exported with it.
        memory_limit_bytes: As `export_onnx`.
        timeout_seconds: As `export_onnx`.
        store: Where it is; `None` means the store the reference names.

    Returns:
        `key`, `name`, `files`, `model` (key of the model it was compared with; `None` when that
        is not in the store, and then nothing was compared) and `graphs`, a row for each file:
        `graph`, `size_bytes`, `difference`, `tolerance`, `agreement`, `shape` of the input on
        which it was timed, `onnxruntime_ms` and `torch_ms` (medians), `speedup`.

    Raises:
        SettingsError: Not an export, or an option that does not fit it.
        ParityError: A graph answers otherwise than torch; names it.
        ExportError: It is not whole, or takes too long or too much.
        IntegrityError: The model under the recorded key is another one.
        As `hfflows.load_artifact`.
    """
    check_limits(timeout_seconds, memory_limit_bytes)
    if texts is not None and (isinstance(texts, str) or not texts):
        msg = f"texts={texts!r} must be a list of texts."
        raise SettingsError(msg)
    store = store_for(export, store)
    ref = resolve_export(export, store=store)
    directory = load_artifact(ref, scratch / "export", store=store)
    files = check_onnx_files(directory)
    graphs = {
        name: read_onnx_metadata(directory / name) for name in files if name.endswith(".onnx")
    }
    float_graphs = [name for name in graphs if schema.VARIANT not in graphs[name]]
    recorded = graphs[(float_graphs or list(graphs))[0]]
    model = _model_of(recorded, store)
    found: dict[str, Any] = {
        "key": ref.key,
        "name": ref.name,
        "files": files,
        "model": model.key if model is not None else None,
        "graphs": [_row(directory, name) for name in _in_order(graphs)],
    }
    if model is None:
        return found
    settings = _settings_of(recorded, trust_remote_code=trust_remote_code)
    request = {
        "source": str(load_model_files(model, scratch / "model", store=store)),
        "directory": str(directory),
        "settings": settings.to_json(),
        "exporter": recorded.get("hf_export_backend", "").partition(";")[0],
        "texts": list(texts) if texts is not None else None,
        "variants": {name: graphs[name].get(schema.VARIANT) for name in graphs},
    }
    report = run_worker(
        request,
        scratch,
        subject=f"The check of {ref.key}",
        timeout_seconds=timeout_seconds,
        memory_limit_bytes=memory_limit_bytes,
        module=WORKER,
    )
    rows = [{**row, **report["graphs"].get(row["graph"], {})} for row in found["graphs"]]
    _check_parity(rows, ref.key)
    return {**found, "graphs": rows}


def _model_of(recorded: dict[str, str], store: Store) -> ArtifactRef | None:
    """Return the model that a file names, `None` when it is not in this store."""
    key = recorded.get(schema.MODEL_KEY)
    if key is None:
        return None
    try:
        model = resolve_ref(key, store=store)
    except ArtifactNotFoundError:
        return None
    if model.digest != recorded.get(schema.MODEL_DIGEST):
        msg = f"{key} in {store.url} holds other files than the export was made from."
        raise IntegrityError(msg, key=key)
    return model


def _settings_of(recorded: dict[str, str], *, trust_remote_code: bool) -> ExportSettings:
    settings = ExportSettings.from_json(json.loads(recorded.get(schema.EXPORT_SETTINGS, "{}")))
    if settings.trust_remote_code and not trust_remote_code:
        msg = (
            "The export was made with the model's own code; pass trust_remote_code=True to run it "
            "again."
        )
        raise SettingsError(msg)
    return settings


def _in_order(graphs: dict[str, dict[str, str]]) -> list[str]:
    """Return the files, float32 before its variants."""
    return sorted(graphs, key=lambda name: (graphs[name].get(schema.VARIANT, ""), name))


def _row(directory: Path, name: str) -> dict[str, Any]:
    graph = directory / name
    data = list(graph.parent.glob(f"{graph.name}?data"))
    unknown = ("difference", "tolerance", "agreement", "shape")
    return {
        "graph": name,
        "size_bytes": sum(path.stat().st_size for path in (graph, *data)),
        **dict.fromkeys(unknown),
        **dict.fromkeys(("onnxruntime_ms", "torch_ms", "speedup")),
    }


def _check_parity(rows: list[dict[str, Any]], key: str) -> None:
    for row in rows:
        difference, tolerance = row["difference"], row["tolerance"]
        if difference is not None and not difference <= tolerance:
            msg = (
                f"{row['graph']} of {key} differs from torch by {difference:.3g}, more than "
                f"{tolerance:g}; do not use it."
            )
            raise ParityError(msg, key=key, graph=row["graph"], difference=difference)
