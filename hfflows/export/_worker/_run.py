"""From a directory to graphs that agree with torch, and a report of how."""

from __future__ import annotations

import shutil
import time
import traceback
from typing import TYPE_CHECKING, Any

from hfflows.errors import (
    ExportError,
    HfflowsError,
    MissingDependencyError,
    ParityError,
    TargetError,
    UnsupportedModelError,
)
from hfflows.export._settings import exporter_versions
from hfflows.export._variants import write_variants
from hfflows.export._worker._axes import check_axes
from hfflows.export._worker._causal import plan_causal
from hfflows.export._worker._copy import copy_files
from hfflows.export._worker._exporters import write_graphs
from hfflows.export._worker._load import Loaded, load
from hfflows.export._worker._parity import FLOAT16_TOLERANCE, Difference, compare
from hfflows.export._worker._pooling import pooling_in_graph, pooling_of
from hfflows.export._worker._quiet import quiet
from hfflows.export._worker._seq2seq import plan_seq2seq
from hfflows.export._worker._single import plan_single

if TYPE_CHECKING:
    from pathlib import Path

    from hfflows.export._settings import ExportSettings
    from hfflows.export._worker._plan import Plan

ONE_FILE_UP_TO_BYTES = 1_900_000_000
"""Weights past this lie beside the graph: a protobuf message ends at 2 GiB."""

EXPORTERS = {
    "transformers": "transformers.exporters",
    "torchscript": "torchscript",
    "optimum": "optimum-onnx",
}
REASON_LENGTH = 300


def export(
    source: Path,
    output: Path,
    settings: ExportSettings,
    *,
    one_file_up_to_bytes: int = ONE_FILE_UP_TO_BYTES,
) -> dict[str, Any]:
    """Export `source` into the new directory `output`.

    Args:
        source: A transformers directory.
        output: Absent or empty directory.
        settings: What to export.
        one_file_up_to_bytes: Weights past it lie beside their graph.

    Returns:
        The values of an `ExportReport`, but `directory`.

    Raises:
        UnsupportedModelError: No exporter here for this model, or for what is asked of it.
        ParityError: No backend's graphs agree with torch.
        ExportError: The exporter failed.
        MissingDependencyError: It is not installed.
        TargetError: `output` is not empty.
    """
    began = time.monotonic()
    if output.exists() and any(output.iterdir()):
        msg = f"{output} is not an empty directory; export to a new one."
        raise TargetError(msg, path=str(output))
    with quiet():
        loaded = load(source, settings)
        pooling = pooling_of(source)
        job = Job(loaded, settings, output, pooling, one_file_up_to_bytes)
        backend, reason, difference = job.run()
        variants = write_variants(
            output,
            settings,
            lambda paths: compare(paths, job.plan(backend), is_relative=True),
        )
        graphs, opset = _described(output, [graph.file for graph in job.plan(backend).graphs])
    further = (pooling or {}).get("further", [])
    copy_files(source, output, further=further, trust_remote_code=settings.trust_remote_code)
    first, versions = next(iter(graphs.values())), exporter_versions()
    return {
        "files": sorted(
            path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()
        ),
        "pipeline_tag": settings.pipeline_tag or loaded.head.pipeline_tag,
        "architecture": type(loaded.model).__name__,
        "backend": f"{EXPORTERS[backend]}; transformers {versions['transformers']}; "
        f"torch {versions['torch']}",
        "fallback_reason": reason,
        "opset": opset,
        "input_names": first["inputs"],
        "output_names": first["outputs"],
        "graphs": graphs,
        "dtype": settings.dtype,
        "pooling": pooling,
        "parity_max_difference": float(difference),
        "parity_tolerance": job.tolerance,
        "parity_inputs": difference.shapes,
        "versions": versions,
        "variants": variants,
        "seconds": round(time.monotonic() - began, 2),
    }


class Job:
    """One export: its plan, and the backends that are tried on it."""

    def __init__(
        self,
        loaded: Loaded,
        settings: ExportSettings,
        output: Path,
        pooling: dict[str, Any] | None,
        one_file_up_to_bytes: int,
    ) -> None:
        self._loaded = loaded
        self._settings = settings
        self._output = output
        self._one_file_up_to_bytes = one_file_up_to_bytes
        self._pooling = None
        if settings.pooling == "graph":
            self._pooling = pooling_in_graph(pooling, loaded.head.kind)
        self.is_half = settings.dtype == "float16"
        self._plans: dict[str, Plan] = {}
        floor = FLOAT16_TOLERANCE if self.is_half else 0.0
        self.tolerance = max(settings.parity_tolerance, floor)

    def plan(self, backend: str) -> Plan:
        """Return what a backend is to trace, and what is compared then."""
        if backend not in self._plans:
            self._plans[backend] = self._new_plan(backend)
        return self._plans[backend]

    def run(self) -> tuple[str, str, Difference]:
        """Export with the first backend whose graphs agree with torch.

        Returns:
            The backend, why none before it, and how far its graphs are from torch.
        """
        backends, reasons = self._backends(), list[str]()
        for backend in backends:
            try:
                return backend, "; ".join(reasons)[:REASON_LENGTH], self._export(backend)
            # Whatever a tracer stumbles over is a reason for the next one, which tolerates more.
            except Exception as error:
                shutil.rmtree(self._output, ignore_errors=True)
                # What Optimum has no recipe for, others trace; what has no plan, nobody does.
                is_final = isinstance(error, UnsupportedModelError) and backend != "optimum"
                if backend == backends[-1] or is_final:
                    raise _as_ours(error, backend) from error
                first = str(error).strip().partition("\n")[0]
                reasons.append(f"{backend}: {type(error).__name__}: {first}")
        raise AssertionError  # there is always one

    def _backends(self) -> list[str]:
        if self._settings.backend != "auto":
            return [self._settings.backend]
        from hfflows.export._runtime._optimum import has_optimum

        # They pin transformers to versions that have no exporters of their own.
        return ["optimum" if has_optimum() else "transformers", "torchscript"]

    def _export(self, backend: str) -> Difference:
        plan = self.plan(backend)
        if backend == "optimum":
            self._with_optimum()
        else:
            settings = self._settings
            limit = self._one_file_up_to_bytes
            write_graphs(backend, plan.graphs, self._output, settings.opset, limit)
            for graph in plan.graphs:
                check_axes(self._output / graph.file, graph)
        return self._compared(plan)

    def _with_optimum(self) -> None:
        from hfflows.export._worker._optimum import write_with_optimum

        if self._pooling or self.is_half:
            msg = "backend='optimum' exports in float32 and without pooling; use another backend."
            raise ExportError(msg)
        write_with_optimum(
            self._loaded.source,
            self._output,
            self._settings.pipeline_tag or self._loaded.head.pipeline_tag,
            self._settings.opset,
            trust_remote_code=self._settings.trust_remote_code,
        )

    def _compared(self, plan: Plan) -> Difference:
        """Return how far the graphs are from torch.

        With weights of 16 bits torch computes in 32 on the same weights: its own roundings would
        else be taken for truth. An output's difference then counts in units of its largest value.
        """
        model = self._loaded.model
        paths = {graph.file: self._output / graph.file for graph in plan.graphs}
        try:
            if self.is_half:
                model.float()
            difference = compare(paths, plan, is_relative=self.is_half)
        finally:
            if self.is_half:
                model.half()
        if not difference <= self.tolerance:
            msg = (
                f"The exported {type(model).__name__} differs from torch by {difference:.3g}, "
                f"more than parity_tolerance={self.tolerance:g}; nothing was kept."
            )
            raise ParityError(msg, difference=float(difference), tolerance=self.tolerance)
        return difference

    def _new_plan(self, backend: str) -> Plan:
        loaded, model = self._loaded, self._loaded.model
        # The older exporter mixes types in fused attention with weights of 16 bits.
        if self.is_half and backend == "torchscript" and hasattr(model, "set_attn_implementation"):
            model.set_attn_implementation("eager")
        if loaded.head.kind == "causal":
            return plan_causal(loaded)
        if loaded.head.kind == "seq2seq":
            return plan_seq2seq(loaded, several_at_once=backend != "optimum")
        return plan_single(loaded, self._pooling)


def _as_ours(error: Exception, backend: str) -> Exception:
    """Return an error of our own for whatever an exporter raised."""
    if isinstance(error, HfflowsError):
        return error
    if isinstance(error, ImportError):
        msg = f"Exporting needs {error.name}: pip install 'hfflows[export]'."
        return MissingDependencyError(msg)
    traceback.print_exc()
    msg = f"The exporter {EXPORTERS[backend]} failed: {type(error).__name__}: {error}"
    return ExportError(msg)


def _described(directory: Path, files: list[str]) -> tuple[dict[str, dict[str, list[str]]], int]:
    """Return inputs and outputs of each graph, and the opset of the first."""
    import onnx

    models = {file: onnx.load(str(directory / file), load_external_data=False) for file in files}
    graphs = {
        file: {
            "inputs": [value.name for value in model.graph.input],
            "outputs": [value.name for value in model.graph.output],
        }
        for file, model in models.items()
    }
    opsets = {item.domain: item.version for item in models[files[0]].opset_import}
    return graphs, opsets.get("", 0)
