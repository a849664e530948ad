"""ONNX models of any size, written here byte by byte: none fits into memory twice.

The graph is `y = weights[i]`: one large initializer, which holds random bytes, and one node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.files import write_random

if TYPE_CHECKING:
    from pathlib import Path

_LENGTH = 2
_FLOAT, _INT64 = 1, 7
_FLOAT_BYTES = 4


def write_model(path: Path, weight_bytes: int) -> None:
    """Write a model with so many bytes of weights, a multiple of four.

    Source: onnx.proto3, for the numbers of the fields.
    """
    node = _text(1, "weights") + _text(1, "i") + _text(2, "y") + _text(4, "Gather")
    tensor = _number(1, weight_bytes // _FLOAT_BYTES) + _number(2, _FLOAT) + _text(8, "weights")
    raw = _varint(9 << 3 | _LENGTH) + _varint(weight_bytes)
    initializer = _varint(5 << 3 | _LENGTH) + _varint(len(tensor) + len(raw) + weight_bytes)
    head = _message(1, node) + _text(2, "gather") + initializer + tensor + raw
    tail = _message(11, _value("i", _INT64)) + _message(12, _value("y", _FLOAT))
    graph = _varint(7 << 3 | _LENGTH) + _varint(len(head) + weight_bytes + len(tail))
    opset = _message(8, _text(1, "") + _number(2, 17))
    with path.open("wb") as file:
        file.write(_number(1, 9) + _text(2, "hfflows benchmarks") + graph + head)
        file.flush()
        write_random(file.fileno(), weight_bytes)
        file.seek(0, 2)
        file.write(tail + opset)


def _value(name: str, element: int) -> bytes:
    dimension = _message(1, _text(2, "n"))
    kind = _message(1, _number(1, element) + _message(2, dimension))
    return _text(1, name) + _message(2, kind)


def _text(number: int, text: str) -> bytes:
    return _message(number, text.encode())


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
