"""The outermost fields of an ONNX file, found by seeking: the graph is never read.

An ONNX file is one protobuf `ModelProto`; its `metadata_props` are repeated fields of that
outermost message, usually the last bytes of the file. Between fields nothing stands, so the
spans found must tile the file exactly.

Sources: https://protobuf.dev/programming-guides/encoding/, onnx.proto3 (`ModelProto`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from hfflows.errors import MetadataError

GRAPH = 7
OPSET_IMPORT = 8
METADATA_PROPS = 14
_IR_VERSION = 1

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_KNOWN_TYPES = {1: _VARINT, 2: _LENGTH, 3: _LENGTH, 4: _LENGTH, 5: _VARINT, 6: _LENGTH,
                GRAPH: _LENGTH, OPSET_IMPORT: _LENGTH, METADATA_PROPS: _LENGTH,
                20: _LENGTH, 25: _LENGTH, 26: _LENGTH}  # fmt: skip
_GRAPH_FIELDS = frozenset({1, 2, 5, 10, 11, 12, 13, 14, 15, 16})
_HIGHEST_FIELD = 63  # later versions of the format may add some
_LONGEST_VARINT = 10
_LARGEST_VALUE = (1 << 64) - 1
MOST_FIELDS = 1 << 15
"""Of the outermost message; a model with a function for each layer has some thousands."""
_MOST_PARTS = 100
"""Of an entry or an opset, which have two."""
MOST_METADATA_BYTES = 1 << 26
"""Of all entries together, and of an opset: what is larger was not meant to be read whole."""

_OTHER_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file it stands for"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"GGUF", "a GGUF model"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"<", "HTML or XML: perhaps an error page saved as a file"),
    (b"{", "JSON"),
)
_TEXT = frozenset(b"\t\n\r" + bytes(range(0x20, 0x7F)))
_ORT_FORMAT = b"ORTM"
_LARGEST_ROOT_OFFSET = 1 << 20  # more than a flatbuffer has, less than four bytes of ONNX say


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the outermost message: where it lies, tag included."""

    number: int
    start: int
    """Offset of its tag."""
    content: int
    """Offset of its value."""
    end: int
    value: int = 0
    """Of a varint."""


def scan(file: BinaryIO, size_bytes: int, name: str) -> list[Field]:
    """Return the fields in the order in which they lie.

    Raises:
        MetadataError: Not an ONNX model, or cut short; the message says what it looks like.
    """
    _refuse_other_formats(file, size_bytes, name)
    fields: list[Field] = []
    offset = metadata_bytes = 0
    while offset < size_bytes:
        field = _field_at(file, offset, size_bytes, name)
        fields.append(field)
        offset = field.end
        if field.number == METADATA_PROPS:
            metadata_bytes += field.end - field.start
        if len(fields) > MOST_FIELDS or metadata_bytes > MOST_METADATA_BYTES:
            msg = (
                f"{name} is damaged, or no ONNX model: it has more than {MOST_FIELDS:,} parts, or "
                f"more than {MOST_METADATA_BYTES:,} bytes of metadata."
            )
            raise MetadataError(msg, path=name)
    _check_model(file, fields, name)
    return fields


def is_ort_format(file: BinaryIO) -> bool:
    """Return whether this is ONNX Runtime's own format (`.ort`), which is no protobuf."""
    file.seek(0)
    head = file.read(8)
    is_root = int.from_bytes(head[:4], "little") < _LARGEST_ROOT_OFFSET
    return is_root and head[4:] == _ORT_FORMAT  # else a producer of that name


def _refuse_other_formats(file: BinaryIO, size_bytes: int, name: str) -> None:
    if size_bytes == 0:
        msg = f"{name} is empty, not an ONNX model."
        raise MetadataError(msg, path=name)
    if is_ort_format(file):
        msg = (
            f"{name} is in ONNX Runtime's own format, into which metadata cannot be written; "
            "write it into the .onnx file, and convert that."
        )
        raise MetadataError(msg, path=name)
    file.seek(0)
    head = file.read(32)
    found = [what for magic, what in _OTHER_FORMATS if head.startswith(magic)]
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size_bytes:
        found = ["a safetensors file"]
    elif not found and not _is_tag(head[0]) and _TEXT.issuperset(head):
        found = ["a text file"]
    if found:
        msg = f"{name} is not an ONNX model but {found[0]}."
        raise MetadataError(msg, path=name)


def _is_tag(byte: int) -> bool:
    return byte & 7 == _KNOWN_TYPES.get(byte >> 3)


def _field_at(file: BinaryIO, offset: int, size_bytes: int, name: str) -> Field:
    file.seek(offset)
    head = file.read(2 * _LONGEST_VARINT)
    tag, after_tag = _varint(head, 0, name)
    number, wire_type = tag >> 3, tag & 7
    is_legal = 0 < number <= _HIGHEST_FIELD and _KNOWN_TYPES.get(number, wire_type) == wire_type
    if not is_legal or wire_type not in (_VARINT, _FIXED64, _LENGTH, _FIXED32):
        raise _damaged(name, offset)
    content, value = offset + after_tag, 0
    if wire_type == _VARINT:
        value, after = _varint(head, after_tag, name)
        end = offset + after
    elif wire_type == _LENGTH:
        length, after = _varint(head, after_tag, name)
        content = offset + after
        end = content + length
    else:
        end = content + (8 if wire_type == _FIXED64 else 4)
    if end > size_bytes:
        msg = f"{name} ends inside field {number}: it was cut short, or is not an ONNX model."
        raise MetadataError(msg, path=name)
    return Field(number, offset, content, end, value)


def _varint(data: bytes, offset: int, name: str) -> tuple[int, int]:
    """Return the value at `offset` and the offset behind it."""
    value = shift = 0
    for index in range(offset, min(len(data), offset + _LONGEST_VARINT)):
        value |= (data[index] & 0x7F) << shift
        if data[index] < 0x80:  # noqa: PLR2004 - the continuation bit
            if value > _LARGEST_VALUE:
                break
            return value, index + 1
        shift += 7
    raise _damaged(name, offset)


def _damaged(name: str, offset: int) -> MetadataError:
    return MetadataError(f"{name} is not an ONNX model, or damaged near byte {offset}.", path=name)


def _check_model(file: BinaryIO, fields: list[Field], name: str) -> None:
    graphs = [field for field in fields if field.number == GRAPH]
    versions = [field.value for field in fields if field.number == _IR_VERSION]
    opsets = [field for field in fields if field.number == OPSET_IMPORT]
    if len(graphs) != 1 or not opsets or not versions or versions[-1] == 0:
        msg = f"{name} is not an ONNX model: it needs one graph, an IR version and an opset."
        raise MetadataError(msg, path=name)
    file.seek(graphs[0].content)
    first = file.read(min(1, graphs[0].end - graphs[0].content))
    if not first or first[0] & 7 != _LENGTH or first[0] >> 3 not in _GRAPH_FIELDS:
        raise _damaged(name, graphs[0].content)
    for opset in opsets:
        for number, value in message_fields(_content(file, opset, name), name):
            if number not in (1, 2) or isinstance(value, int) != (number == 2):  # noqa: PLR2004
                raise _damaged(name, opset.start)


def _content(file: BinaryIO, field: Field, name: str) -> bytes:
    length = field.end - field.content
    if length > MOST_METADATA_BYTES:
        raise _damaged(name, field.start)
    file.seek(field.content)
    data = file.read(length)
    if len(data) != length:
        raise _damaged(name, field.start)
    return data


def message_fields(data: bytes, name: str) -> list[tuple[int, int | bytes]]:
    """Return number and value of each field of a small message."""
    found: list[tuple[int, int | bytes]] = []
    offset = 0
    while offset < len(data):
        tag, offset = _varint(data, offset, name)
        value, offset = _varint(data, offset, name)
        if tag & 7 == _LENGTH:
            if offset + value > len(data):
                raise _damaged(name, offset)
            found.append((tag >> 3, data[offset : offset + value]))
            offset += value
        elif tag & 7 == _VARINT:
            found.append((tag >> 3, value))
        else:
            raise _damaged(name, offset)
        if len(found) > _MOST_PARTS:
            raise _damaged(name, offset)
    return found


def read_entry(file: BinaryIO, field: Field, name: str) -> tuple[str, str]:
    """Return key and value of one of the `metadata_props`."""
    entry = {1: "", 2: ""}
    for number, value in message_fields(_content(file, field, name), name):
        if number not in entry or isinstance(value, int):
            raise _damaged(name, field.start)
        try:
            entry[number] = value.decode()
        except UnicodeDecodeError as error:
            raise _damaged(name, field.start) from error
    return entry[1], entry[2]


def encode_entry(key: str, value: str) -> bytes:
    """Return one of the `metadata_props` with its tag, as it lies in the file."""
    message = _length_field(1, key.encode()) + _length_field(2, value.encode())
    return _length_field(METADATA_PROPS, message)


def _length_field(number: int, content: bytes) -> bytes:
    return _encode_varint(number << 3 | _LENGTH) + _encode_varint(len(content)) + content


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
