"""An ONNX model as a set of files: is all of it there?

    graph ─→ its external data: there, long enough, in the graph's own directory
    decoder that takes an encoder's output ─→ an encoder
    decoder_with_past_model ─→ decoder_model, which makes the cache that it continues

What an export of ours wrote (`decoder_model_int8.onnx`) needs all three parts in its own variant.
In the sets of others, parts of several precisions are commonly used together.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, BinaryIO

from hfflows.artifacts._onnx_format import OnnxGraph, read_onnx_graph
from hfflows.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from contextlib import AbstractContextManager

ONNX_SUFFIX = ".onnx"
_ENCODER, _DECODER, _WITH_PAST = "encoder_model", "decoder_model", "decoder_with_past_model"
_PART = re.compile(
    rf"(?P<part>{_ENCODER}|{_WITH_PAST}|{_DECODER})(?P<merged>_merged)?(?P<variant>_.+)?\.onnx"
)
_OURS = "hf_export_settings"
"""Metadata that only our exports have: they write all parts in every variant."""


def onnx_graphs(paths: Collection[str]) -> list[str]:
    """Return which of an artifact's paths are graphs."""
    return sorted(path for path in paths if path.endswith(ONNX_SUFFIX))


def check_onnx_set(
    sizes: Mapping[str, int], open_graph: Callable[[str], AbstractContextManager[BinaryIO]]
) -> list[str]:
    """Return the files of every ONNX model in a set: graphs and external data.

    Cost: each graph is read once, except for the weights in it where the stream can skip them.

    Args:
        sizes: Files by relative path, with their sizes in bytes.
        open_graph: Returns a seekable stream of one of them.

    Raises:
        ExportError: A graph is damaged, or a file that it needs is missing, too short or
            outside its directory; the message names both. Nothing when there is no graph.
    """
    graphs: dict[str, OnnxGraph] = {}
    for path in onnx_graphs(sizes):
        with open_graph(path) as file:
            graphs[path] = read_onnx_graph(file, path)
    found = set(graphs)
    for path, graph in graphs.items():
        for location, needed in graph.external_data.items():
            found.add(_check_data(path, location, needed, sizes))
        _check_parts(path, graph, sizes)
    return sorted(found)


def external_data_path(graph: str, location: str) -> str:
    """Return the path of external data, relative to what the graph's path is relative to.

    Raises:
        ExportError: It would lie outside the graph's directory.
    """
    inside = posixpath.normpath(location)
    if not location or inside.startswith(("/", "../")) or inside in (".", ".."):
        msg = (
            f"{graph} keeps weights in {location!r}, outside its directory, where neither onnx nor "
            "ONNX Runtime reads them; export it again, with its weights beside it."
        )
        raise ExportError(msg, path=graph)
    return posixpath.join(posixpath.dirname(graph), inside)


def _check_data(graph: str, location: str, needed: int, sizes: Mapping[str, int]) -> str:
    path = external_data_path(graph, location)
    if sizes.get(path, -1) < needed:
        state = f"{sizes[path]:,} bytes long" if path in sizes else "missing"
        msg = (
            f"{graph} needs {needed:,} bytes of weights in {path}, which is {state}. Put the whole "
            "file there, or export again."
        )
        raise ExportError(msg, path=path)
    return path


def _check_parts(path: str, graph: OnnxGraph, sizes: Mapping[str, int]) -> None:
    """Refuse one part of an encoder-decoder without those that it cannot run without."""
    part = _PART.fullmatch(posixpath.basename(path))
    if part is None:
        return
    is_ours = _OURS in graph.metadata
    if is_ours:
        wanted = {_ENCODER, _DECODER, _WITH_PAST} - {part["part"]}
    else:
        wanted = {_DECODER} if part["part"] == _WITH_PAST else set()
        if part["part"] != _ENCODER and any(map(_is_encoding, graph.inputs)):
            wanted.add(_ENCODER)
    folder = posixpath.dirname(path)
    for other in sizes:
        there = _PART.fullmatch(posixpath.basename(other))
        if there is None or posixpath.dirname(other) != folder:
            continue
        if there["variant"] == part["variant"] or not is_ours:
            wanted.discard(there["part"])
    if wanted:
        variant = part["variant"] or ""
        missing = " and ".join(f"{name}{variant}{ONNX_SUFFIX}" for name in sorted(wanted))
        msg = f"{path} cannot run without {missing}; keep the files of an export together."
        raise ExportError(msg, path=path)


def _is_encoding(name: str) -> bool:
    return name == "encoder_hidden_states" or ".encoder." in name
