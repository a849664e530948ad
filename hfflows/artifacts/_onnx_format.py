"""What an ONNX graph needs of other files, found by seeking: no weight is read.

    ModelProto ─┬ graph ─┬ initializers ──────────────┬→ TensorProto: external_data
                │        └ nodes ─ attributes ─ tensors, graphs, sparse tensors
                ├ functions ─ nodes, default attributes
                └ training_info ─ graphs

Messages are walked by one table of the fields that lead to tensors; all else is skipped. The
`onnx` package is not needed, and a hostile nesting costs time in proportion to its bytes.

Sources: onnx.proto3, https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

from hfflows.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10
_LONGEST_TEXT_BYTES = 1 << 20
_LONGEST_NUMBER = 19
"""Digits of an offset or a length: more is past what a file can have."""

_GRAPH = {1: "node", 5: "tensor", 15: "sparse"}
_INSIDE = {
    "model": {7: "main", 14: "metadata", 20: "training", 25: "function"},
    "main": _GRAPH | {11: "input"},
    "graph": _GRAPH,
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Which fields of a message hold messages that can lead to a tensor."""

_TENSOR_NAME, _TENSOR_EXTERNAL_DATA, _TENSOR_LOCATION = 8, 13, 14
_EXTERNAL = 1


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """What a graph file says of its surroundings."""

    inputs: list[str] = field(default_factory=list)
    """Names, in order."""
    external_data: dict[str, int] = field(default_factory=dict)
    """Files beside it that hold its weights, each with how many bytes it needs of them."""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    start: int
    """Offset of its value."""
    end: int
    value: int | None
    """Of a varint."""


def read_onnx_graph(file: BinaryIO, name: str) -> OnnxGraph:
    """Return what a graph file needs and takes.

    Args:
        file: A seekable stream.
        name: For messages.

    Raises:
        ExportError: Not an ONNX model, or damaged.
    """
    found = OnnxGraph()
    pending = [("model", 0, file.seek(0, os.SEEK_END))]
    graphs = 0
    while pending:
        kind, start, end = pending.pop()
        if kind == "tensor":
            _read_tensor(file, start, end, name, found.external_data)
        elif kind in ("input", "metadata"):
            texts = _texts(file, start, end, name)
            if kind == "input":
                found.inputs.append(texts.get(1, ""))
            else:
                found.metadata[texts.get(1, "")] = texts.get(2, "")
        else:
            graphs += kind == "main"
            inner = _INSIDE[kind]
            known = [item for item in _fields(file, start, end, name) if item.number in inner]
            # Reversed: the last is taken first, and names stay in their order.
            pending += [(inner[item.number], item.start, item.end) for item in reversed(known)]
    if graphs != 1:
        msg = f"{name} is not an ONNX model: it has {graphs or 'no'} graphs, and needs one."
        raise ExportError(msg, path=name)
    return found


def _read_tensor(file: BinaryIO, start: int, end: int, name: str, needed: dict[str, int]) -> None:
    facts: dict[str, str] = {}
    tensor, is_external = "a tensor", False
    for item in _fields(file, start, end, name):
        if item.number == _TENSOR_NAME:
            tensor = _text(file, item, name)
        elif item.number == _TENSOR_LOCATION:
            is_external = item.value == _EXTERNAL
        elif item.number == _TENSOR_EXTERNAL_DATA:
            texts = _texts(file, item.start, item.end, name)
            facts[texts.get(1, "")] = texts.get(2, "")
    if is_external:
        location = facts.get("location", "")
        needed[location] = max(needed.get(location, 0), _end(name, tensor, facts))


def _end(name: str, tensor: str, facts: dict[str, str]) -> int:
    offset, length = facts.get("offset", "0"), facts.get("length", "0")
    if not (_is_number(offset) and _is_number(length)):
        msg = f"{name} gives {tensor} a place that is none: offset {offset}, length {length}."
        raise ExportError(msg, path=name)
    return int(offset) + int(length)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER


def _texts(file: BinaryIO, start: int, end: int, name: str) -> dict[int, str]:
    """Return the texts among the first two fields of a small message."""
    return {
        item.number: _text(file, item, name)
        for item in _fields(file, start, end, name)
        if item.number in (1, 2) and item.value is None
    }


def _text(file: BinaryIO, item: _Field, name: str) -> str:
    length = item.end - item.start
    if length > _LONGEST_TEXT_BYTES or item.value is not None:
        raise _damaged(name, item.start)
    file.seek(item.start)
    return file.read(length).decode("utf-8", "replace")


def _fields(file: BinaryIO, start: int, end: int, name: str) -> Iterator[_Field]:
    offset = start
    while offset < end:
        file.seek(offset)
        head = file.read(min(2 * _LONGEST_VARINT, end - offset))
        tag, at = _varint(head, 0, name, offset)
        number, wire_type, value = tag >> 3, tag & 7, None
        if wire_type in (_VARINT, _LENGTH):
            value, at = _varint(head, at, name, offset)
            length = 0 if wire_type == _VARINT else value
        elif wire_type in _FIXED_BYTES:
            length = _FIXED_BYTES[wire_type]
        else:
            raise _damaged(name, offset)
        content = offset + at
        if not number or content + length > end:
            raise _damaged(name, offset)
        yield _Field(number, content, content + length, value if wire_type == _VARINT else None)
        offset = content + length


def _varint(data: bytes, at: int, name: str, offset: int) -> tuple[int, int]:
    """Return the value at `at` and the place behind it."""
    value = shift = 0
    for index in range(at, min(len(data), at + _LONGEST_VARINT)):
        value |= (data[index] & 0x7F) << shift
        if data[index] < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, index + 1
        shift += 7
    raise _damaged(name, offset + at)


def _damaged(name: str, offset: int) -> ExportError:
    msg = (
        f"{name} is damaged, or no ONNX model: its graph cannot be parsed near byte {offset}. "
        "Export it again."
    )
    return ExportError(msg, path=name)
