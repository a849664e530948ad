"""From a model's reference to an export's: exported once, and found again ever after.

    request ─digest→ export of this name and request in the store: hit
                 └─miss→ lease, load, export, write the origin in, check, save

The digest is in the export's key, so that looking for it is one listing. Two workers at once
make one export; should both make it, there are two, and both are right.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, Unpack

from hfflows import keys
from hfflows.artifacts import (
    commit_artifact,
    lease,
    read_refs,
    resolve_ref,
    scan,
    store_for,
)
from hfflows.errors import SettingsError
from hfflows.export._export import export_directory, load_model_files
from hfflows.export._onnx._graphs import check_onnx_files
from hfflows.export._onnx._schema import entries_of
from hfflows.export._process import DEFAULT_TIMEOUT_SECONDS, check_limits
from hfflows.export._provenance import Origin, inject_everywhere
from hfflows.export._report import ExportReport
from hfflows.export._settings import ExportOptions, ExportSettings, exporter_versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hfflows.artifacts import RefLike
    from hfflows.errors import IntegrityError
    from hfflows.refs import ArtifactRef, Producer
    from hfflows.storage import Store

logger = logging.getLogger("hfflows")

LEASE_SECONDS = 30.0
"""How long a worker that died while it exported keeps the others waiting."""

_DIGITS_OF_REQUEST = 32


def resolve_export(export: RefLike, *, store: Store) -> ArtifactRef:
    """Return the reference of a stored export.

    Raises:
        SettingsError: It is something else.
        As `hfflows.artifacts.resolve_ref`.
    """
    ref = resolve_ref(export, store=store)
    if ref.kind != keys.EXPORT_KIND:
        msg = f"{ref.key} is of kind {ref.kind!r}; pass what export_onnx returned."
        raise SettingsError(msg, key=ref.key)
    return ref


@dataclass(frozen=True, slots=True)
class ExportResult:
    """An export's reference and how it was come by."""

    ref: ArtifactRef
    outcome: Literal["hit", "exported"]
    """`hit`: the store had it. `exported`: made now."""
    report: ExportReport
    """Its `directory` is where the files were made; after a hit they are in the store only."""


def export_artifact(
    model: RefLike, scratch: Path, *, name: str, **options: Any
) -> tuple[ArtifactRef, ExportReport]:
    """Return the export of a stored model, made now if the store has none, and its report.

    Args:
        model: A transformers directory in the store: a snapshot, a checkpoint or a model.
        scratch: Empty directory for the files on their way; yours to delete.
        name: Name of the export in the store.
        **options: As `fetch_export`, which also says whether it was a hit.

    Raises:
        As `fetch_export`.
    """
    result = fetch_export(model, scratch, name=name, **options)
    return result.ref, result.report


def fetch_export(
    model: RefLike,
    scratch: Path,
    *,
    name: str,
    base: RefLike | None = None,
    entries: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    parents: Sequence[RefLike] = (),
    producer: Producer | None = None,
    code_version: str | None = None,
    force: bool = False,
    memory_limit_bytes: int | None = None,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    store: Store | None = None,
    **options: Unpack[ExportOptions],
) -> ExportResult:
    """Return the export of a stored model, made now if the store has none like it.

    One like it has this name and was made of the same model, base and parents, with the same
    options, entries and metadata, by the same versions of hfflows and the exporters. A snapshot
    is the same when repo, commit and files are; anything else when it is the same artifact.

    Args:
        model: A transformers directory in the store: a snapshot, a checkpoint or a model.
        scratch: Empty directory for the files on their way; yours to delete.
        name: Name of the export in the store.
        base: Snapshot the model was fine-tuned from; `None` takes the nearest one among what it
            was made from.
        entries: Further entries for the ONNX files, by key of `hfflows.export.FIELDS`.
        metadata: JSON values kept in the reference, such as metrics.
        parents: Further artifacts it was made from: the data.
        producer: Who exports.
        code_version: Version of the code that asks, for the file.
        force: Export although the store has it; later requests get the new one.
        memory_limit_bytes: As `export_onnx`.
        timeout_seconds: As `export_onnx`; waiting for another worker's export is not counted.
        store: Where it is and goes; `None` means the store the reference names.
        **options: What to make of it, as `export_onnx`: `pipeline_tag`, `opset`, `dtype`,
            `backend`, `variants`, `pooling`, `trust_remote_code`, `parity_tolerance`.

    Raises:
        SettingsError: A bad option, or the artifact is no transformers model.
        ArtifactNotFoundError, IntegrityError: As `hfflows.load_artifact`.
        ExportError, MetadataError: As `export_onnx` and `inject_hub_metadata`; nothing is saved.
    """
    settings = ExportSettings(**options)  # type: ignore[arg-type] # variants become a tuple
    check_limits(timeout_seconds, memory_limit_bytes)
    keys.artifact(keys.EXPORT_KIND, name, id="")  # refuses what is no name
    store = store_for(model, store)
    resolved = [resolve_ref(parent, store=store) for parent in parents]
    origin = Origin.of(
        resolve_ref(model, store=store),
        base=resolve_ref(base, store=store) if base is not None else None,
        parents=resolved,
        store=store,
    )
    entries_of({**origin.entries(store), **(entries or {})})  # now, not after the export
    request = _Request(
        name, origin, settings, dict(entries or {}), dict(metadata or {}), scratch, store
    )
    if not force and (found := request.held()) is not None:
        return found
    # One worker of a fleet exports; the others wait, and find what it made.
    with lease(f"export-{request.digest}", store=store, ttl_seconds=LEASE_SECONDS):
        if not force and (found := request.held()) is not None:
            return found
        report = request.export(
            memory_limit_bytes=memory_limit_bytes, timeout_seconds=timeout_seconds
        )
        made_by = {
            "hfflows_run": producer.run if producer is not None and producer.run else None,
            "hfflows_code_version": code_version,
        }
        inject_everywhere(report, settings, {**origin.entries(store), **made_by, **request.entries})
        check_onnx_files(report.directory)
        return ExportResult(request.save(report, producer), "exported", report)


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked for, where it is made and where it is kept."""

    name: str
    origin: Origin
    settings: ExportSettings
    entries: dict[str, Any]
    metadata: dict[str, Any]
    scratch: Path
    store: Store

    @property
    def digest(self) -> str:
        """Of all that decides what the export holds, apart from who made it and when."""
        wanted = {
            "model": _identity(self.origin.ref),
            "base": _identity(self.origin.base) if self.origin.base is not None else None,
            "parents": [_identity(parent) for parent in self.origin.parents[1:]],
            "settings": self.settings.to_json(),
            "entries": self.entries,
            "metadata": self.metadata,
            "versions": exporter_versions() | {"hfflows": version("hfflows")},
        }
        try:
            text = json.dumps([self.name, wanted], sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            msg = f"Entries and metadata of {self.name!r} must be JSON values: {error}."
            raise SettingsError(msg) from error
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS_OF_REQUEST]

    def held(self) -> ExportResult | None:
        """Return the export that the store has: one listing, and one document."""
        digest = self.digest
        found = [key for key in self._listed() if keys.is_export(key, self.name, digest)]
        for ref in read_refs(found, store=self.store, on_damage=_pass_over):
            if (report := self._report_of(ref)) is not None:
                return ExportResult(ref, "hit", report)
        return None

    def export(self, *, memory_limit_bytes: int | None, timeout_seconds: float) -> ExportReport:
        """Bring the model here and export it."""
        ref, store = self.origin.ref, self.store

        def load(_: Path) -> Path:
            return load_model_files(ref, self.scratch / "model", store=store)

        return export_directory(
            load,
            self._output,
            self.settings,
            memory_limit_bytes=memory_limit_bytes,
            timeout_seconds=timeout_seconds,
        )

    def save(self, report: ExportReport, producer: Producer | None) -> ArtifactRef:
        """Save the files and return the reference."""
        newest = next(iter(self._listed()), None)
        export_id = keys.new_id(after=keys.id_of(newest) if newest is not None else None)
        document = report.to_json()
        del document["directory"]
        return commit_artifact(
            scan(report.directory),
            key=keys.export(self.name, self.digest, id=export_id),
            kind=keys.EXPORT_KIND,
            name=self.name,
            metadata={
                **self.metadata,
                "pipeline_tag": report.pipeline_tag,
                "backend": report.backend,
                "opset": report.opset,
                "parity_max_difference": report.parity_max_difference,
                "parity_tolerance": report.parity_tolerance,
                "settings": self.settings.to_json(),
                "report": document,
            },
            parents=self.origin.parents,
            storage_format="files",
            producer=producer,
            store=self.store,
        )

    @property
    def _output(self) -> Path:
        return self.scratch / "export"

    def _listed(self) -> list[str]:
        """Return the keys of all exports of this name, newest first."""
        prefix = keys.artifact_prefix(keys.EXPORT_KIND, self.name)
        listed = [info.key for info in self.store.list(prefix)]
        # A name may be the beginning of another one: `team` and `team/model`.
        return [key for key in listed if "/" not in key.removeprefix(prefix)]

    def _report_of(self, ref: ArtifactRef) -> ExportReport | None:
        document = ref.metadata.get("report")
        known = {field.name for field in fields(ExportReport)} - {"directory"}
        if not isinstance(document, dict) or set(document) != known:
            return None  # a development version's
        body: dict[str, Any] = document
        return ExportReport(directory=self._output, **body)


def _pass_over(error: IntegrityError) -> None:
    logger.warning("%s It is passed over, and the model exported anew if need be.", error)


def _identity(ref: ArtifactRef) -> list[Any]:
    """Return what an artifact has in common with those that serve as well.

    Copies of a commit are alike wherever they lie. Other artifacts may have equal files and
    still not the same history, which the export tells of.
    """
    commit = [ref.metadata.get(name) for name in ("repo_type", "repo_id", "commit_hash")]
    is_copy = ref.kind == keys.SNAPSHOT_KIND and all(commit)
    return [ref.kind, *(commit if is_copy else [ref.key]), ref.digest]
