"""A transformers model to ONNX: from a stored artifact, a directory or memory to a directory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows.artifacts import RefLike, load_artifact, resolve_ref, store_for
from hfflows.errors import ExportError, SettingsError, TargetError
from hfflows.export._process import DEFAULT_TIMEOUT_SECONDS, check_limits, run_worker
from hfflows.export._report import ExportReport
from hfflows.export._settings import DEFAULT_PARITY_TOLERANCE, ExportSettings
from hfflows.refs import ArtifactRef

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hfflows.export._settings import Backend, Dtype, Pooling, Variant
    from hfflows.storage import Store

__all__ = ["ExportReport", "export_directory", "export_onnx", "load_model_files"]

NOT_NEEDED = ("onnx/*", "openvino/*", "coreml/*", "*.h5", "*.msgpack", "*.ot", "*.tflite")
"""The same weights for other runtimes, which many repos hold: never moved for an export."""

Source = Callable[[Path], Path]
"""Brings a model into a scratch directory, or finds it where it is, and returns where."""


def export_onnx(
    source: str | os.PathLike[str] | RefLike | Any,
    output: str | os.PathLike[str],
    *,
    pipeline_tag: str | None = None,
    opset: int | None = None,
    dtype: Dtype | None = None,
    backend: Backend = "auto",
    variants: Sequence[Variant] = (),
    pooling: Pooling = "record",
    trust_remote_code: bool = False,
    parity_tolerance: float = DEFAULT_PARITY_TOLERANCE,
    preprocessor: Any = None,
    memory_limit_bytes: int | None = None,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    store: Store | None = None,
) -> ExportReport:
    """Export a model to a directory: graph or graphs, config and preprocessor files.

    Batch, sequence and whatever else varies stay symbolic axes. ONNX Runtime is compared with
    torch on inputs of several shapes, texts padded left and right; beyond the tolerance
    nothing is left. It runs in a process of its own, which gives its memory back.

    Args:
        source: A stored artifact (reference, its dict, or its key), the directory of a
            transformers model, or a loaded model. Of the first two, config and preprocessor
            files are copied as they are.
        output: Absent or empty directory.
        pipeline_tag: What the model is for; `None` reads it from the config.
        opset: ONNX opset; `None` is the exporter's default.
        dtype: `float32`, or `float16` for weights and computation; `None` means `float32`.
        backend: `transformers` is its own exporter, `torchscript` torch's older one,
            `optimum` the one of optimum-onnx, which needs an environment of its own; `auto`
            takes the first that works.
        variants: `int8` (weights of matrix products quantised, activations as they come) and
            `fp16` (inputs and outputs stay float32), each a file beside every float32 graph.
        pooling: For sentence-transformers: `record` notes how tokens are pooled, `graph` also
            gives the graph an output `sentence_embedding`.
        trust_remote_code: Run the code that comes with the model.
        parity_tolerance: Largest absolute difference from torch that is accepted.
        preprocessor: Tokenizer, image processor, … of a loaded model; without it nothing is
            known that texts could be made into inputs with. It is saved anew, which
            transformers 5 does in a form that 4.57 cannot read (`TokenizersBackend`): where
            that matters, export the directory it came from.
        memory_limit_bytes: The export is stopped when its processes hold more, not counting
            files that are mapped. Looked at 20 times a second; Linux only.
        timeout_seconds: The export is stopped after this long.
        store: Where a reference is; `None` means the store it names.

    Raises:
        SettingsError: No model at `source`, or a bad option; nothing was touched.
        TargetError: `output` is not empty.
        ArtifactNotFoundError, IntegrityError: As `hfflows.load_artifact`.
        UnsupportedModelError: No exporter here for this architecture or tag.
        ParityError: A graph answers differently; names the variant if it is one.
        ExportError: The export failed, took too long or too much memory; `error.printed` has
            its last words.
        MissingDependencyError: The extra `export` is not installed.
    """
    settings = ExportSettings(
        pipeline_tag=pipeline_tag,
        opset=opset,
        dtype=dtype or "float32",
        backend=backend,
        variants=variants,  # type: ignore[arg-type] # checked there, and made a tuple
        pooling=pooling,
        trust_remote_code=trust_remote_code,
        parity_tolerance=parity_tolerance,
    )
    check_limits(timeout_seconds, memory_limit_bytes)
    target = Path(output).resolve()
    found = _source_of(source, preprocessor, store)
    return export_directory(
        found,
        target,
        settings,
        memory_limit_bytes=memory_limit_bytes,
        timeout_seconds=timeout_seconds,
    )


def export_directory(
    source: Source,
    output: Path,
    settings: ExportSettings,
    *,
    memory_limit_bytes: int | None,
    timeout_seconds: float,
) -> ExportReport:
    """Export what `source` brings; see `export_onnx`. What is asked for was checked before."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        msg = f"{output} is not an empty directory; export to a new one."
        raise TargetError(msg, path=str(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as name:
        scratch = Path(name)
        directory = source(scratch)
        request = {
            "source": str(directory),
            "output": str(scratch / "files"),
            "settings": settings.to_json(),
        }
        report = run_worker(
            request,
            scratch,
            subject=f"The export of {directory}",
            timeout_seconds=timeout_seconds,
            memory_limit_bytes=memory_limit_bytes,
        )
        if output.exists():
            output.rmdir()
        (scratch / "files").rename(output)
    return ExportReport(directory=output, **report)


def _source_of(source: Any, preprocessor: Any, store: Store | None) -> Source:
    """Return what brings the model in; nothing is moved yet."""
    if callable(getattr(source, "save_pretrained", None)):
        return _in_memory(source, preprocessor)
    if preprocessor is not None:
        msg = "preprocessor= is for a loaded model; a stored one has its own files."
        raise SettingsError(msg)
    if isinstance(source, ArtifactRef | Mapping) or _is_key(source):
        return _stored(source, store)
    if not isinstance(source, str | os.PathLike):
        msg = (
            "Export a reference, the directory of a transformers model, or a loaded model; got "
            f"{type(source).__name__}."
        )
        raise SettingsError(msg)
    directory = Path(source).resolve()
    _check_model(directory, str(directory))
    return lambda _scratch: directory


def _is_key(source: object) -> bool:
    return isinstance(source, str) and source.startswith("refs/")


def _stored(reference: RefLike, store: Store | None) -> Source:
    opened = store_for(reference, store)
    ref = resolve_ref(reference, store=opened)

    return lambda scratch: load_model_files(ref, scratch / "model", store=opened)


def load_model_files(ref: ArtifactRef, directory: Path, *, store: Store) -> Path:
    """Copy what an export needs of a stored model into a directory.

    Raises:
        SettingsError: The artifact is no transformers model.
        As `hfflows.load_artifact`.
    """
    load_artifact(ref, directory, ignore_patterns=NOT_NEEDED, store=store)
    _check_model(directory, ref.key)
    return directory


def _check_model(directory: Path, name: str) -> None:
    if not (directory / "config.json").is_file():
        msg = (
            f"{name} holds no config.json; export a transformers model directory. A Hub repo is "
            "brought in by hfflows.snapshot_download."
        )
        raise SettingsError(msg, source=name)


def _in_memory(model: Any, preprocessor: Any) -> Source:
    for what, value in (("preprocessor", preprocessor), ("model", model)):
        if value is not None and not callable(getattr(value, "save_pretrained", None)):
            msg = f"The {what} is a {type(value).__name__}, which has no save_pretrained."
            raise SettingsError(msg)
    if getattr(model, "config", None) is None:
        msg = f"{type(model).__name__} has no config; export a model of transformers."
        raise SettingsError(msg)

    def save(scratch: Path) -> Path:
        directory = scratch / "model"
        try:
            model.save_pretrained(directory)  # weights as safetensors
            if preprocessor is not None:
                preprocessor.save_pretrained(directory)
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            msg = f"The loaded {type(model).__name__} cannot be saved: {first}"
            raise ExportError(msg) from error
        _check_model(directory, f"What {type(model).__name__}.save_pretrained writes")
        return directory

    return save
