"""A transformers directory to ONNX, in a process of its own.

Exporters patch torch while they run: in a thread they break each other and leave torch
patched. A process also bounds time and gives its memory back.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hfflows import errors
from hfflows.errors import ExportError, MissingDependencyError, SettingsError, TargetError

Backend = Literal["auto", "transformers", "torchscript"]
DEFAULT_PARITY_TOLERANCE = 1e-3
LINES_OF_OUTPUT = 12


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported and how well it agrees with torch."""

    directory: Path
    files: list[str]
    """Relative paths; `model.onnx` is the graph."""
    pipeline_tag: str
    architecture: str
    backend: str
    """Exporter and the versions it ran on."""
    fallback_reason: str
    """Why not the first exporter; empty when it was."""
    opset: int
    input_names: list[str]
    output_names: list[str]
    parity_max_difference: float
    """Largest absolute difference between ONNX Runtime's and torch's outputs."""
    parity_tolerance: float
    parity_inputs: list[list[int]]
    """Shapes on which they were compared."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the plain document that a task hands on."""
        return asdict(replace(self)) | {"directory": str(self.directory)}


def export_onnx(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    pipeline_tag: str | None = None,
    opset: int | None = None,
    backend: Backend = "auto",
    dtype: str | None = None,
    parity_tolerance: float = DEFAULT_PARITY_TOLERANCE,
    timeout_seconds: float = 1800.0,
) -> ExportReport:
    """Export a model directory to `output/model.onnx` with its config and tokenizer files.

    Batch and sequence stay symbolic axes. ONNX Runtime is compared with torch on texts of
    several lengths, padded left and right; beyond the tolerance nothing is left.

    Args:
        source: Directory of a transformers model; its files are copied as they are, not
            saved anew, so that older versions of transformers read them too.
        output: Absent or empty directory.
        pipeline_tag: What the model is for; `None` reads it from the config.
        opset: ONNX opset; `None` is the exporter's default.
        backend: `transformers` is its own exporter, `torchscript` torch's older one, `auto`
            the first that works.
        dtype: `float32`, or `None`, which means the same; others come later.
        parity_tolerance: Largest absolute difference accepted.
        timeout_seconds: The export is killed after this long.

    Raises:
        SettingsError: No model at `source`, or a bad option.
        TargetError: `output` is not empty.
        UnsupportedModelError: No exporter here for this architecture or tag.
        ParityError: The graph answers differently.
        ExportError: The export failed or took too long; carries its last words.
        MissingDependencyError: The extra `export` is not installed.
    """
    source, output = Path(source).resolve(), Path(output).resolve()
    if not (source / "config.json").is_file():
        msg = f"{source} holds no config.json; export a transformers model directory."
        raise SettingsError(msg, path=str(source))
    if backend not in ("auto", "transformers", "torchscript"):
        msg = f"backend={backend!r} is none of 'auto', 'transformers', 'torchscript'."
        raise SettingsError(msg)
    if dtype not in (None, "float32"):
        msg = f"dtype={dtype!r}: exports are in float32 so far; leave it out."
        raise SettingsError(msg, dtype=dtype)
    if not parity_tolerance >= 0 or timeout_seconds <= 0:
        msg = "parity_tolerance must not be negative, and timeout_seconds must be positive."
        raise SettingsError(msg)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        msg = f"{output} is not an empty directory; export to a new one."
        raise TargetError(msg, path=str(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        request = {
            "source": str(source),
            "output": str(Path(scratch) / "files"),
            "pipeline_tag": pipeline_tag,
            "opset": opset,
            "backend": backend,
            "parity_tolerance": parity_tolerance,
        }
        report = _run_worker(request, Path(scratch), timeout_seconds)
        if output.exists():
            output.rmdir()
        (Path(scratch) / "files").rename(output)
    return ExportReport(directory=output, **report)


def _run_worker(request: dict[str, Any], scratch: Path, timeout_seconds: float) -> dict[str, Any]:
    (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
    reply, output = scratch / "reply.json", scratch / "output.log"
    command = [sys.executable, "-m", "hfflows.export._worker", str(scratch)]
    here = str(Path(__file__).parents[2])  # found also where hfflows is not installed
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    with output.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,  # its own children end with it
        )
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            msg = f"The export of {request['source']} took longer than {timeout_seconds:g} s."
            raise ExportError(msg + _last_words(output)) from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if not reply.exists():
        msg = f"The export of {request['source']} ended with status {process.returncode}."
        raise ExportError(msg + _last_words(output))
    answer: dict[str, Any] = json.loads(reply.read_text(encoding="utf-8"))
    if "error" in answer:
        raise _error(answer["error"], output)
    report: dict[str, Any] = answer["report"]
    return report


def _error(error: dict[str, Any], output: Path) -> ExportError | MissingDependencyError:
    """Return the worker's error as its own class."""
    cls = getattr(errors, error["type"], ExportError)
    words = _last_words(output) if cls is ExportError else ""
    found: ExportError | MissingDependencyError = cls(error["message"] + words, **error["facts"])
    return found


def _last_words(output: Path) -> str:
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\nIts last words:\n" + "\n".join(lines[-LINES_OF_OUTPUT:]) if lines else ""
