"""An export made again from what its file records, and compared with the file.

metadata ─→ model's artifact, or the Hub commit through the store ─┐
         └→ settings ──────────────────────────────────────────────┴→ export ─→ compare
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hfflows import keys
from hfflows.artifacts import load_artifact, onnx_graphs, resolve_ref, store_for
from hfflows.errors import (
    ArtifactNotFoundError,
    ExportError,
    IntegrityError,
    MetadataError,
    SettingsError,
)
from hfflows.export._export import NOT_NEEDED, export_onnx
from hfflows.export._onnx import _schema as schema
from hfflows.export._onnx._file import read_onnx_metadata
from hfflows.export._onnx._graphs import graph_sha256
from hfflows.export._process import DEFAULT_TIMEOUT_SECONDS
from hfflows.export._settings import ExportSettings
from hfflows.export._tracing._graph_diff import graph_differences
from hfflows.export._tracing._recorded import first_graph, origin_of
from hfflows.hub import snapshot_download
from hfflows.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hfflows.artifacts import RefLike
    from hfflows.export._report import ExportReport
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store


@dataclass(frozen=True, slots=True)
class RebuiltGraph:
    """One graph file beside what it was made again as."""

    name: str
    sha256: str
    """Digest of the file's graph, metadata aside."""
    rebuilt_sha256: str
    differences: tuple[str, ...]
    """In words; empty when both are the same bytes."""

    @property
    def is_identical(self) -> bool:
        """Whether every byte of graph and weights is the same."""
        return self.sha256 == self.rebuilt_sha256


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What an export came to when it was made again."""

    source: str
    model: str
    """Key of the artifact that was exported, with the Hub commit if it is a snapshot."""
    graphs: tuple[RebuiltGraph, ...]
    version_changes: tuple[str, ...]
    """Packages of another version than then, in words: what may explain a difference."""
    directory: Path | None
    """Where the new export lies; `None` when it was not kept."""
    seconds: float

    @property
    def is_identical(self) -> bool:
        """Whether all graphs are the same, byte for byte."""
        return all(graph.is_identical for graph in self.graphs)

    def to_json(self) -> dict[str, Any]:
        """Return the plain document."""
        graphs = [asdict(item) | {"is_identical": item.is_identical} for item in self.graphs]
        return asdict(self) | {
            "graphs": graphs,
            "is_identical": self.is_identical,
            "directory": None if self.directory is None else str(self.directory),
        }


def rebuild(
    source: str | os.PathLike[str] | RefLike,
    output: str | os.PathLike[str] | None = None,
    *,
    trust_remote_code: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
    memory_limit_bytes: int | None = None,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    store: Store | None = None,
) -> RebuildReport:
    """Export again from the inputs that a file records, and say whether the graph is the same.

    The model is read from the store, by its recorded key and digest; one that came from the Hub
    and is not there any more is fetched at the recorded commit. Of several precisions, those
    are made again that lie at `source`.

    Args:
        source: An `.onnx` file, an export's directory, or its reference, dict or key.
        output: Absent or empty directory for the new export; `None` keeps nothing.
        trust_remote_code: Run the model's own code, if it was exported with it: a file alone
            does not decide that.
        token: For the Hub; `None` takes `HF_TOKEN` or the token of `hf auth login`.
        endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`.
        memory_limit_bytes: As for `export_onnx`.
        timeout_seconds: As for `export_onnx`.
        store: Where the model is; `None` means `open_store()`, for a reference the store it
            names.

    Raises:
        MetadataError: The file does not record model or settings, or is no ONNX model.
        ArtifactNotFoundError: The model is not in this store, nor on the Hub.
        IntegrityError: The model under the recorded key is another one.
        SettingsError: No such file; or the model's own code is needed, and not allowed.
        ExportError: The export failed; see `export_onnx`.
        HubError: The Hub refuses, or does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="hfflows-rebuild-") as name:
        graphs, at, label = _recorded(source, Path(name) / "recorded", store)
        metadata = origin_of(read_onnx_metadata(graphs[0]), str(graphs[0]))
        settings = _settings(metadata, graphs, trust_remote_code=trust_remote_code)
        model = _model(metadata, at, token=token, endpoint=endpoint)
        target = Path(output) if output is not None else Path(name) / "rebuilt"
        report = export_onnx(
            model,
            target,
            **settings.to_json(),
            memory_limit_bytes=memory_limit_bytes,
            timeout_seconds=timeout_seconds,
            store=at,
        )
        commit = model.metadata.get("commit_hash")
        return RebuildReport(
            source=label,
            model=f"{model.key} ({model.name}@{commit})" if commit else model.key,
            graphs=tuple(_compared(graph, target) for graph in graphs),
            version_changes=tuple(_version_changes(metadata, report)),
            directory=target if output is not None else None,
            seconds=report.seconds,
        )


# What is there --------------------------------------------------------------------------


def _recorded(
    source: str | os.PathLike[str] | RefLike, scratch: Path, store: Store | None
) -> tuple[list[Path], Store, str]:
    """Return the graph files to make again, the first one first, the store to ask, and a name."""
    is_path = isinstance(source, os.PathLike)
    if is_path or (isinstance(source, str) and not source.startswith(keys.REFS)):
        path = Path(cast("str", source))
        first = first_graph(path)
        graphs = [first] if path.is_file() else _graphs_beside(first)
        return graphs, store or open_store(), str(path)
    at = store_for(cast("RefLike", source), store)
    ref = resolve_ref(cast("RefLike", source), store=at)
    load_artifact(ref, scratch, allow_patterns="*.onnx*", store=at)
    return _graphs_beside(first_graph(scratch)), at, ref.key


def _graphs_beside(first: Path) -> list[Path]:
    names = onnx_graphs([path.name for path in first.parent.iterdir()])
    return [first, *(first.with_name(name) for name in names if name != first.name)]


def _settings(
    metadata: Mapping[str, str], graphs: Sequence[Path], *, trust_remote_code: bool
) -> ExportSettings:
    recorded = _json(metadata, schema.EXPORT_SETTINGS, graphs[0])
    settings = ExportSettings.from_json(recorded)
    if settings.trust_remote_code and not trust_remote_code:
        msg = (
            f"{graphs[0]} was exported with the model's own code; pass trust_remote_code=True to "
            "run that code again, when you trust where the file came from."
        )
        raise SettingsError(msg, path=str(graphs[0]))
    there = {read_onnx_metadata(graph).get(schema.VARIANT) for graph in graphs}
    return replace(settings, variants=tuple(v for v in settings.variants if v in there))


def _json(metadata: Mapping[str, str], entry: str, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(metadata[entry])
    except (KeyError, ValueError) as error:
        msg = (
            f"{path} does not record its export in {entry}, as export_artifact and "
            "export_and_inject write it; export the model again instead."
        )
        raise MetadataError(msg, path=str(path), entry=entry) from error
    return document if isinstance(document, dict) else {}


def _model(
    metadata: Mapping[str, str], store: Store, *, token: str | None, endpoint: str | None
) -> ArtifactRef:
    """Return the reference of the exported model, fetched at its commit if need be."""
    key, digest = metadata.get(schema.MODEL_KEY), metadata.get(schema.MODEL_DIGEST)
    repo_id, commit = metadata.get(schema.HUB_ID), metadata.get(schema.HUB_REVISION)
    is_hub = metadata.get(schema.MODEL_TYPE) == "hub" and repo_id and commit
    try:
        if key:
            ref = resolve_ref(key, store=store)
            if digest and ref.digest != digest:
                msg = f"{key} in {store.url} holds other files than the file was exported from."
                raise IntegrityError(msg, key=key)
            return ref
    except ArtifactNotFoundError as error:
        if not is_hub:
            recorded = metadata.get(schema.STORE_URL, "another store")
            msg = (
                f"{store.url} has no {key}, from which the file was exported; it was saved in "
                f"{recorded}: pass that store, or copy the model here with `hfflows copy`."
            )
            raise ArtifactNotFoundError(msg, key=key, store_url=store.url) from error
    if not is_hub:
        msg = f"The file names neither the artifact of its model ({schema.MODEL_KEY}) nor a commit."
        raise MetadataError(msg, entry=schema.MODEL_KEY)
    return snapshot_download(
        cast("str", repo_id),
        revision=commit,
        ignore_patterns=list(NOT_NEEDED),
        cache_scope="global",
        token=token,
        endpoint=endpoint,
        store=store,
    )


# What came of it ------------------------------------------------------------------------


def _compared(graph: Path, directory: Path) -> RebuiltGraph:
    rebuilt = directory / graph.name
    if not rebuilt.is_file():  # a copy under another name
        variant = read_onnx_metadata(graph).get(schema.VARIANT)
        rebuilt = directory / (f"model_{variant}.onnx" if variant else "model.onnx")
    if not rebuilt.is_file():
        made = ", ".join(onnx_graphs([path.name for path in directory.iterdir()]))
        msg = f"{graph.name} is none of the graphs of its export ({made}); name it as one of them."
        raise ExportError(msg, path=str(graph))
    sha256, rebuilt_sha256 = graph_sha256(graph), graph_sha256(rebuilt)
    differences = graph_differences(graph, rebuilt) if sha256 != rebuilt_sha256 else []
    return RebuiltGraph(graph.name, sha256, rebuilt_sha256, tuple(differences))


def _version_changes(metadata: Mapping[str, str], report: ExportReport) -> Iterator[str]:
    try:
        then = json.loads(metadata.get(schema.EXPORT_VERSIONS, "{}"))
    except ValueError:
        then = {}
    then = then if isinstance(then, dict) else {}
    for package in sorted(then.keys() | report.versions.keys()):
        was, now = then.get(package, "not recorded"), report.versions.get(package, "absent")
        if was != now:
            yield f"{package} was {was}, is now {now}"
    recorded = metadata.get("hf_export_backend", "").partition(";")[0]
    if recorded and recorded != report.backend.partition(";")[0]:
        yield f"the exporter was {recorded}, is now {report.backend.partition(';')[0]}"
