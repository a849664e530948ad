"""An ONNX model as a set of files: is all of it there, and what is the digest of its graph?"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hfflows.artifacts import check_onnx_set, external_data_path, onnx_graphs, read_onnx_graph
from hfflows.errors import ExportError, SettingsError
from hfflows.export._onnx._file import read_onnx_metadata
from hfflows.export._onnx._protobuf import METADATA_PROPS, scan

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

PIECE_BYTES = 1 << 20


def check_onnx_files(directory: str | os.PathLike[str]) -> list[str]:
    """Return the files of every ONNX model in a directory, graphs and external data.

    Of an encoder-decoder, and of each of its variants, all parts must be there. The `onnx`
    package is not needed, and no weight is read.

    Raises:
        ExportError: No model; a graph is damaged; or external data or a part is missing, too
            short or outside the directory. The message names graph and file.
        MetadataError: A file is not an ONNX model.
    """
    root = Path(directory)
    sizes = dict(_sizes(root))
    for name in onnx_graphs(sizes):
        read_onnx_metadata(root / name)
    found = check_onnx_set(sizes, lambda name: (root / name).open("rb"))
    if not found:
        msg = f"{root} holds no .onnx file."
        raise ExportError(msg, path=str(root))
    whole = root.resolve()
    for name in found:
        if not (root / name).resolve().is_relative_to(whole):
            msg = f"{name} is a link to a file outside {root}; copy that file here."
            raise ExportError(msg, path=str(root / name))
    return found


def _sizes(root: Path) -> Iterator[tuple[str, int]]:
    for path in root.rglob("*"):
        if path.is_file():
            yield path.relative_to(root).as_posix(), path.stat().st_size


def graph_sha256(path: str | os.PathLike[str]) -> str:
    """Return the digest of a graph: of its file without metadata, and of its external data.

    Injecting metadata never changes it, whatever was there before. It differs where a byte of
    the graph, its weights or its producer does.

    Raises:
        SettingsError: There is no such file.
        MetadataError: Not an ONNX model.
        ExportError: The graph is damaged, or external data is missing.
    """
    graph = Path(path)
    digest = hashlib.sha256()
    try:
        with graph.open("rb") as file:
            for field in scan(file, graph.stat().st_size, str(graph)):
                if field.number != METADATA_PROPS:
                    _update(digest, file, field.start, field.end)
            locations = sorted(read_onnx_graph(file, str(graph)).external_data)
    except OSError as error:
        msg = f"{graph} cannot be read: {error.strerror or error}. Check the path."
        raise SettingsError(msg, path=str(graph)) from error
    for location in locations:
        data = Path(external_data_path(graph.as_posix(), location))
        digest.update(_sha256(data, graph).encode())
    return digest.hexdigest()


def _update(digest: hashlib._Hash, file: BinaryIO, start: int, end: int) -> None:
    file.seek(start)
    while start < end:
        piece = file.read(min(PIECE_BYTES, end - start))
        if not piece:
            msg = "The file became shorter while it was being read."
            raise ExportError(msg)
        digest.update(piece)
        start += len(piece)


def _sha256(path: Path, graph: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        msg = f"{graph} needs {path.name}, which cannot be read: {error.strerror or error}."
        raise ExportError(msg, path=str(path)) from error
