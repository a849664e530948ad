"""The export itself; runs as `python -m hfflows.export._worker SCRATCH`, one model a process."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
import traceback
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hfflows.errors import (
    ExportError,
    HfflowsError,
    MissingDependencyError,
    ParityError,
    UnsupportedModelError,
)

COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")
NOT_COPIED = ("*.index.json", "onnx/*", "openvino/*", "*trainer_state.json", "progress.json")
ONE_FILE_UP_TO_BYTES = 1_900_000_000
BATCH, SEQUENCE = "batch_size", "sequence_length"
TEXTS = (
    "The night train to Lisbon leaves at ten.",
    "Rain.",
    "When the store came back after the outage, every checkpoint was there, and training went on.",
    "Wo liegt der Fehler? Überall dort, wo niemand nachsieht.",
    "3.14159 < 22/7 — but only just!",
)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model with what it takes to call it."""

    model: Any
    preprocessor: Any
    head: Any
    samples: dict[str, Any]
    """What it is traced with: two rows or more, so that no axis is baked in."""
    axes: dict[str, dict[int, str]]
    """Names of the axes that vary, for each input."""


def main() -> None:
    """Read the request, write the reply."""
    scratch = Path(sys.argv[1])
    request = json.loads((scratch / "request.json").read_text(encoding="utf-8"))
    try:
        answer: dict[str, Any] = {"report": export(**request)}
    except HfflowsError as error:
        kind = type(error).__name__
        answer = {"error": {"type": kind, "message": str(error), "facts": error.facts}}
    except ImportError as error:
        msg = f"Exporting needs {error.name}: pip install 'hfflows[export]'."
        answer = {"error": {"type": MissingDependencyError.__name__, "message": msg, "facts": {}}}
    (scratch / "reply.json").write_text(json.dumps(answer), encoding="utf-8")


def export(
    *,
    source: str,
    output: str,
    pipeline_tag: str | None,
    opset: int | None,
    backend: str,
    parity_tolerance: float,
) -> dict[str, Any]:
    """Export `source` into the new directory `output` and return the report."""
    began = time.monotonic()
    directory = Path(output)
    loaded = _load(Path(source), pipeline_tag)
    used, reason = _write_graph(loaded, directory, opset, backend)
    _check_axes(directory / "model.onnx", loaded)
    difference, shapes = _parity(directory / "model.onnx", loaded)
    if not difference <= parity_tolerance:
        msg = (
            f"The exported {type(loaded.model).__name__} differs from torch by {difference:.3g}, "
            f"more than parity_tolerance={parity_tolerance:g}; nothing was kept."
        )
        raise ParityError(msg, difference=difference, tolerance=parity_tolerance)
    _copy_files(Path(source), directory)
    graph = _graph_facts(directory / "model.onnx")
    files = sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )
    return {
        "files": files,
        "pipeline_tag": pipeline_tag or loaded.head.pipeline_tag,
        "architecture": type(loaded.model).__name__,
        "backend": _with_versions(used),
        "fallback_reason": reason,
        **graph,
        "parity_max_difference": difference,
        "parity_tolerance": parity_tolerance,
        "parity_inputs": shapes,
        "seconds": round(time.monotonic() - began, 2),
    }


# The model and its inputs ---------------------------------------------------------------


def _load(source: Path, pipeline_tag: str | None) -> _Loaded:
    import torch
    import transformers

    from hfflows.export._config import load_config, load_preprocessor
    from hfflows.export._heads import head_of

    torch.manual_seed(0)
    config = load_config(source)
    head = head_of(config, pipeline_tag)
    model = _with_weights(getattr(transformers, head.auto_class), source, config)
    model.eval()
    if head.modality == "image":
        samples = _images(config, count=2)
        return _Loaded(model, None, head, samples, {name: {0: BATCH} for name in samples})
    tokenizer = load_preprocessor(source)
    if getattr(tokenizer, "pad_token", None) is None:
        msg = f"The preprocessor in {source} has no padding token; it cannot make a batch."
        raise UnsupportedModelError(msg)
    samples = _encode(tokenizer, model, TEXTS[:3])
    return _Loaded(
        model, tokenizer, head, samples, {name: {0: BATCH, 1: SEQUENCE} for name in samples}
    )


def _with_weights(auto_class: Any, source: Path, config: Any) -> Any:
    """Return the model, all of it from the file: transformers fills gaps with random numbers.

    A random head answers alike in torch and in the graph, so parity cannot notice it.
    """
    import torch

    # What a graph cannot return: it has tensors for outputs, not tuples and caches.
    for name in ("use_cache", "output_hidden_states", "output_attentions"):
        setattr(config, name, False)
    options: dict[str, Any] = {
        "config": config,
        "local_files_only": True,
        "dtype": torch.float32,
        "output_loading_info": True,
    }
    model, info = auto_class.from_pretrained(source, **options)
    missing = _missing(info)
    if missing and all(name.startswith("pooler.") for name in missing):
        model, info = auto_class.from_pretrained(source, add_pooling_layer=False, **options)
        missing = _missing(info)
    if missing:
        msg = (
            f"{source} has no weights for {', '.join(missing[:4])} of {type(model).__name__}: they "
            "would be random. Export the head it was trained with, or train this one first."
        )
        raise UnsupportedModelError(msg, missing=missing)
    return model


def _missing(info: Any) -> list[str]:
    mismatched = [item[0] for item in info["mismatched_keys"]]
    return sorted({*info["missing_keys"], *mismatched})


def _encode(tokenizer: Any, model: Any, texts: tuple[str, ...], **options: Any) -> dict[str, Any]:
    from inspect import signature

    longest = min(
        getattr(model.config, "max_position_embeddings", None) or 512,
        tokenizer.model_max_length or 512,
    )
    encoded = tokenizer(
        list(texts),
        padding=True,
        truncation=True,
        max_length=min(longest - 2, 128) if longest > 4 else longest,  # noqa: PLR2004 - RoBERTa begins at 2
        return_tensors="pt",
        **options,
    )
    accepted = signature(model.forward).parameters
    return {name: encoded[name] for name in accepted if name in encoded}


def _images(config: Any, *, count: int) -> dict[str, Any]:
    import torch

    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return {"pixel_values": torch.randn(count, config.num_channels, height, width)}


# The graph ------------------------------------------------------------------------------


def _write_graph(
    loaded: _Loaded, directory: Path, opset: int | None, backend: str
) -> tuple[str, str]:
    """Write the graph and return which backend did it, and why not the first one."""
    if backend == "torchscript":
        _with_torchscript(loaded, directory, opset)
        return backend, ""
    try:
        _with_transformers(loaded, directory, opset)
    # Whatever a tracer stumbles over is a reason for the older one, which tolerates more.
    except Exception as error:
        if backend == "transformers":
            if isinstance(error, ImportError):
                raise
            traceback.print_exc()
            msg = f"transformers' exporter failed: {type(error).__name__}: {error}"
            raise ExportError(msg) from error
        reason = f"transformers: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    else:
        return "transformers", ""
    shutil.rmtree(directory, ignore_errors=True)
    _with_torchscript(loaded, directory, opset)
    return "torchscript", reason[:300]


def _with_transformers(loaded: _Loaded, directory: Path, opset: int | None) -> None:
    import onnx_ir
    import torch
    from transformers.exporters import OnnxConfig, OnnxExporter

    shapes = {
        name: dict.fromkeys(axes, torch.export.Dim.AUTO) for name, axes in loaded.axes.items()
    }
    options = {"opset_version": opset} if opset is not None else {}
    exported = OnnxExporter().export(
        loaded.model, dict(loaded.samples), OnnxConfig(dynamic_shapes=shapes, **options)
    )
    program = getattr(exported, "program", exported)  # 5.23 wraps it, 5.13 to 5.22 do not
    model = getattr(program, "model", program)
    _name_axes(model, loaded.axes)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # the tracer's diary: half of a small file
    directory.mkdir(parents=True)
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    external = {"external_data": "model.onnx.data"} if weights > ONE_FILE_UP_TO_BYTES else {}
    onnx_ir.save(model, directory / "model.onnx", **external)


def _name_axes(model: Any, axes: dict[str, dict[int, str]]) -> None:
    """Give the tracer's symbols (`s18`) the names of the axes they stand for."""
    import onnx_ir

    names = {
        str(value.shape[axis]): name
        for value in model.graph.inputs
        for axis, name in axes.get(value.name, {}).items()
        if not isinstance(value.shape[axis], int)
    }

    def named(dim: Any) -> Any:
        text = str(dim)  # torch.export writes some specialised sizes as text
        return int(text) if text.isdigit() else names.get(text, text)

    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.shape = onnx_ir.Shape([named(dim) for dim in value.shape])
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.shape is not None and value not in model.graph.outputs:
                value.shape = onnx_ir.Shape([named(dim) for dim in value.shape])


def _with_torchscript(loaded: _Loaded, directory: Path, opset: int | None) -> None:
    import torch

    with torch.inference_mode():
        outputs = loaded.model(**loaded.samples)
    length = next(iter(loaded.samples.values())).shape[1]
    is_text = loaded.head.modality == "text"
    axes = dict(loaded.axes)
    for name, value in outputs.items():
        axes[name] = {0: BATCH}
        if is_text and value.ndim > 1 and value.shape[1] == length:
            axes[name][1] = SEQUENCE
    directory.mkdir(parents=True)
    torch.onnx.export(
        _positional(loaded.model, list(loaded.samples)),
        tuple(loaded.samples.values()),
        str(directory / "model.onnx"),
        input_names=list(loaded.samples),
        output_names=list(outputs),
        dynamic_axes=axes,
        opset_version=opset or 17,
        dynamo=False,
    )


def _positional(model: Any, names: list[str]) -> Any:
    """Return a module that takes its inputs by position: the tracer mixes keywords up."""
    import torch

    class Positional(torch.nn.Module):  # type: ignore[misc] # torch is not followed
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> tuple[Any, ...]:
            return tuple(self.model(**dict(zip(names, values, strict=True))).values())

    return Positional().eval()  # else the exporter would put the model into training mode


def _check_axes(path: Path, loaded: _Loaded) -> None:
    """Refuse a graph in which the tracer baked the sample's sizes in."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, name in loaded.axes.get(value.name, {}).items():
            if not dims[axis].dim_param:
                msg = f"The exporter fixed axis {name} of {value.name} to {dims[axis].dim_value}."
                raise ExportError(msg)


def _graph_facts(path: Path) -> dict[str, Any]:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    opsets = {item.domain: item.version for item in model.opset_import}
    return {
        "opset": opsets.get("", 0),
        "input_names": [value.name for value in model.graph.input],
        "output_names": [value.name for value in model.graph.output],
    }


# Parity ---------------------------------------------------------------------------------


def _parity(path: Path, loaded: _Loaded) -> tuple[float, list[list[int]]]:
    """Return the largest difference from torch, and the shapes it was looked for on."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = [item.name for item in session.get_inputs()]
    names = [item.name for item in session.get_outputs()]
    differences, shapes = [0.0], list[list[int]]()
    for inputs in _parity_inputs(loaded):
        with torch.inference_mode():
            expected = loaded.model(**inputs)
        answers = session.run(None, {name: inputs[name].numpy() for name in wanted})
        shapes.append(list(next(iter(inputs.values())).shape))
        for name, answer in zip(names, answers, strict=True):
            if answer.shape != tuple(expected[name].shape):  # subtracting would broadcast
                msg = f"{name} has shape {list(answer.shape)}, not {list(expected[name].shape)}."
                raise ParityError(msg, output=name)
            difference = (torch.from_numpy(answer) - expected[name]).abs().max().item()
            differences.append(difference)
    # `max` keeps a NaN only where it comes first.
    return (math.nan if any(map(math.isnan, differences)) else max(differences)), shapes


def _parity_inputs(loaded: _Loaded) -> list[dict[str, Any]]:
    model, tokenizer = loaded.model, loaded.preprocessor
    if loaded.head.modality == "image":
        return [_images(model.config, count=count) for count in (1, 2, 3)]
    batches = (TEXTS[:1], TEXTS[1:4], TEXTS, (TEXTS[0], TEXTS[4]))
    return [
        _encode(tokenizer, model, batch, padding_side=side)
        for side in ("right", "left")
        for batch in batches
    ]


# What lies beside -----------------------------------------------------------------------


def _copy_files(source: Path, directory: Path) -> None:
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        wanted = any(fnmatchcase(path.name, pattern) for pattern in COPIED)
        unwanted = any(fnmatchcase(name, pattern) for pattern in NOT_COPIED)
        # An output inside the source puts the scratch directory, request included, there too.
        ours = path.is_relative_to(directory.parent)
        if path.is_file() and wanted and not unwanted and not ours:
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def _with_versions(backend: str) -> str:
    import torch
    import transformers

    exporter = "transformers.exporters" if backend == "transformers" else "torchscript"
    return f"{exporter}; transformers {transformers.__version__}; torch {torch.__version__}"


if __name__ == "__main__":
    main()
