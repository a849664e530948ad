"""Compares a stored export with torch; runs as `python -m hfflows.export._verify_worker SCRATCH`.

The request names the model's directory and the export's, its settings and exporter, texts or
none, and for each graph file which variant it is.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from hfflows.errors import SettingsError
from hfflows.export._process import serve
from hfflows.export._settings import ExportSettings
from hfflows.export._variants import tolerance_of, variant_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hfflows.export._worker._load import Loaded
    from hfflows.export._worker._plan import Case, Graph, Plan

WARM_UP, ROUNDS = 2, 9


def verify(request: dict[str, Any]) -> dict[str, Any]:
    """Return for each graph file how far from torch it is, and how fast."""
    from hfflows.export._worker._load import load
    from hfflows.export._worker._parity import compare
    from hfflows.export._worker._pooling import pooling_of
    from hfflows.export._worker._quiet import quiet
    from hfflows.export._worker._run import EXPORTERS, ONE_FILE_UP_TO_BYTES, Job

    settings = ExportSettings.from_json(request["settings"])
    directory, variants = Path(request["directory"]), request["variants"]
    rows: dict[str, Any] = {}
    with quiet():
        loaded = load(Path(request["source"]), settings)
        pooling = pooling_of(loaded.source)
        job = Job(loaded, settings, directory, pooling, ONE_FILE_UP_TO_BYTES)
        backends = {label: backend for backend, label in EXPORTERS.items()}
        plan = job.plan(backends.get(request["exporter"], "transformers"))
        if job.is_half:
            loaded.model.float()  # torch's own roundings are not the truth
        if request["texts"] is not None:
            plan = _on_texts(plan, loaded, request["texts"])
        for variant in dict.fromkeys(variants.values()):
            paths = {
                graph.file: directory
                / (variant_file(graph.file, variant) if variant else graph.file)
                for graph in plan.graphs
            }
            found = compare(paths, plan, is_relative=job.is_half or variant is not None)
            known = {
                "difference": float(found),
                "tolerance": tolerance_of(variant, settings) if variant else job.tolerance,
                "agreement": found.agreement,
            }
            for graph in plan.graphs:
                path = paths[graph.file]
                rows[path.relative_to(directory).as_posix()] = known | _timed(path, graph, plan)
    return {"graphs": rows}


def _on_texts(plan: Plan, loaded: Loaded, texts: Sequence[str]) -> Plan:
    """Return the plan with these texts in place of its own batches."""
    from hfflows.export._worker._plan import Case
    from hfflows.export._worker._single import SEQUENCE
    from hfflows.export._worker._texts import Texts

    graph = plan.graphs[0]
    axes = {axis for named in graph.inputs.values() for axis in named.values()}
    if len(plan.graphs) > 1 or "input_ids" not in graph.samples or len(axes) > 2:  # noqa: PLR2004 - rows and tokens
        msg = "texts= is for models of one graph that read texts alone; leave it out."
        raise SettingsError(msg)
    inputs = Texts(loaded).batch(texts)
    mask = inputs.get("attention_mask")
    masks = {SEQUENCE: mask.bool()} if mask is not None else {}

    def cases() -> Iterator[Case]:
        yield Case(graph.file, inputs, graph.module(**inputs), masks)

    return replace(plan, cases=cases)


def _timed(path: Path, graph: Graph, plan: Plan) -> dict[str, Any]:
    """Return median times on the plan's largest batch for a graph."""
    import torch

    from hfflows.export._worker._parity import Session

    with torch.inference_mode():
        case = max((case for case in plan.cases() if case.file == graph.file), key=_rows)
        session = Session(path)
        taken = {name: case.inputs[name] for name in graph.samples}
        onnxruntime_ms = _milliseconds(lambda: session.run(case))
        torch_ms = _milliseconds(lambda: graph.module(**taken))
    return {
        "shape": list(next(iter(case.inputs.values())).shape),
        "onnxruntime_ms": round(onnxruntime_ms, 3),
        "torch_ms": round(torch_ms, 3),
        "speedup": round(torch_ms / onnxruntime_ms, 2),
    }


def _rows(case: Case) -> int:
    return int(next(iter(case.inputs.values())).shape[0])


def _milliseconds(run: Callable[[], Any]) -> float:
    seconds = []
    for number in range(WARM_UP + ROUNDS):
        began = time.perf_counter()
        run()
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - began)
    return median(seconds) * 1000


if __name__ == "__main__":
    serve(verify, doing="Verifying")
