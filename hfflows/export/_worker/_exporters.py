"""The exporters: what each needs to write a plan's graphs as ONNX files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows.export._worker._axes import name_axes

if TYPE_CHECKING:
    from hfflows.export._worker._plan import Graph, Tensors

TORCHSCRIPT_OPSET = 17
SMALLEST_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the graph: shapes and constants that a reader looks at."""


def with_transformers(
    graph: Graph, directory: Path, opset: int | None, one_file_up_to_bytes: int
) -> None:
    """Write a graph with transformers' own exporter, which traces with torch.export."""
    import onnx_ir
    import torch
    from transformers.exporters import OnnxConfig, OnnxExporter

    # Each input becomes a parameter of a Python function, whose names have no dots.
    safe = {name.replace(".", "__"): name for name in graph.samples}
    shapes = {
        parameter: dict.fromkeys(graph.inputs[name], torch.export.Dim.AUTO)
        for parameter, name in safe.items()
    }
    samples = {parameter: graph.samples[name] for parameter, name in safe.items()}
    options = {"opset_version": opset} if opset is not None else {}
    exported = OnnxExporter().export(
        _renaming(graph.module, safe), samples, OnnxConfig(dynamic_shapes=shapes, **options)
    )
    program = getattr(exported, "program", exported)  # 5.23 wraps it, 5.13 to 5.22 do not
    model = getattr(program, "model", program)
    for value in model.graph.inputs:
        value.name = safe.get(value.name, value.name)
    name_axes(model, graph)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # the tracer's diary: half of a small file
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    external = {"external_data": f"{graph.file}.data"} if weights > one_file_up_to_bytes else {}
    onnx_ir.save(model, directory / graph.file, **external)


def with_torchscript(
    graph: Graph, directory: Path, opset: int | None, one_file_up_to_bytes: int
) -> None:
    """Write a graph with torch's older exporter, which is faster and tolerates more."""
    import onnx
    import torch

    with tempfile.TemporaryDirectory(prefix=".torchscript-", dir=directory) as scratch:
        path = Path(scratch) / graph.file
        torch.onnx.export(
            _positional(graph.module, list(graph.samples), list(graph.outputs)),
            tuple(graph.samples.values()),
            str(path),
            input_names=list(graph.samples),
            output_names=list(graph.outputs),
            dynamic_axes=graph.inputs | graph.outputs,
            opset_version=opset or TORCHSCRIPT_OPSET,
            dynamo=False,
        )
        size = sum(part.stat().st_size for part in Path(scratch).iterdir())
        if size <= one_file_up_to_bytes:
            path.rename(directory / graph.file)
            return
        # Past 2 GB it writes a file for each tensor; here they become one.
        onnx.save_model(
            onnx.load(str(path)),
            str(directory / graph.file),
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=f"{graph.file}.data",
            size_threshold=SMALLEST_EXTERNAL_BYTES,
        )


def write_graphs(
    backend: str,
    graphs: list[Graph],
    directory: Path,
    opset: int | None,
    one_file_up_to_bytes: int,
) -> None:
    """Write every graph into a new directory."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    write = {"transformers": with_transformers, "torchscript": with_torchscript}[backend]
    for graph in graphs:
        write(graph, directory, opset, one_file_up_to_bytes)


def _renaming(module: Any, names: dict[str, str]) -> Any:
    """Return a module whose inputs have other names."""
    from hfflows.export._worker._plan import as_module

    def function(inputs: Tensors) -> Tensors:
        answer: Tensors = module(**{names[name]: value for name, value in inputs.items()})
        return answer

    return as_module(function, module)


def _positional(module: Any, inputs: list[str], outputs: list[str]) -> Any:
    """Return a module that takes its inputs by position: the tracer mixes keywords up."""
    import torch

    class Positional(torch.nn.Module):  # type: ignore[misc] # torch is not followed
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *values: Any) -> tuple[Any, ...]:
            answer = self.module(**dict(zip(inputs, values, strict=True)))
            return tuple(answer[name] for name in outputs)

    return Positional().eval()
