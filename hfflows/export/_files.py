"""An ONNX model as a set of files: is all of it there?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows.errors import ExportError, MissingDependencyError
from hfflows.export._metadata import read_onnx_metadata

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator


def check_onnx_files(directory: str | os.PathLike[str]) -> list[str]:
    """Return the files of every ONNX model in a directory, graphs and external data.

    Raises:
        ExportError: No model, or external data is missing, too short or outside the
            directory; the message names graph and file.
        MetadataError: A file is not an ONNX model.
        MissingDependencyError: onnx is not installed.
    """
    root = Path(directory)
    graphs = sorted(root.rglob("*.onnx"))
    if not graphs:
        msg = f"{root} holds no .onnx file."
        raise ExportError(msg, path=str(root))
    found: set[str] = set()
    for graph in graphs:
        read_onnx_metadata(graph)
        found.add(graph.relative_to(root).as_posix())
        for location, size_bytes in _external_data(graph).items():
            found.add(_check_data(root, graph, location, size_bytes))
    return sorted(found)


def _check_data(root: Path, graph: Path, location: str, size_bytes: int) -> str:
    path = graph.parent / location
    resolved = path.resolve()
    if not resolved.is_relative_to(root.resolve()) or Path(location).is_absolute():
        msg = f"{graph.name} keeps weights in {location}, outside its directory; it is not whole."
        raise ExportError(msg, path=str(graph))
    actual = resolved.stat().st_size if resolved.is_file() else None
    if actual is None or actual < size_bytes:
        state = "missing" if actual is None else f"{actual:,} bytes long"
        msg = f"{graph.name} needs {size_bytes:,} bytes of weights in {location}, which is {state}."
        raise ExportError(msg, path=str(path))
    return path.relative_to(root).as_posix()


def _external_data(graph: Path) -> dict[str, int]:
    """Return how many bytes a graph needs of each file beside it."""
    try:
        import onnx
    except ImportError as error:
        msg = "Checking ONNX files needs onnx: pip install 'hfflows[export]'."
        raise MissingDependencyError(msg) from error
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # onnx has it

    try:
        model = onnx.load(str(graph), load_external_data=False)
    except DecodeError as error:
        msg = f"{graph.name} is damaged: its graph cannot be parsed. Export it again."
        raise ExportError(msg, path=str(graph)) from error
    needed: dict[str, int] = {}
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            facts = {item.key: item.value for item in tensor.external_data}
            end = _end(graph, tensor.name, facts)
            location = facts.get("location", "")
            needed[location] = max(needed.get(location, 0), end)
    return needed


def _end(graph: Path, name: str, facts: dict[str, str]) -> int:
    offset, length = facts.get("offset", "0"), facts.get("length", "0")
    if not (offset.isdecimal() and length.isdecimal()):
        msg = f"{graph.name} gives {name} a place that is none: offset {offset}, length {length}."
        raise ExportError(msg, path=str(graph))
    return int(offset) + int(length)


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _tensors(inner)
