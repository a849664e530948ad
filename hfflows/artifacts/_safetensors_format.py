"""The safetensors format: headers and indexes to checked values.

    8 bytes, little endian   length of the header
    JSON                     {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
                              "__metadata__": {"format": "pt"}, …}
    the rest                 the tensors' bytes, back to back

A checkpoint of several files has an index: `{"metadata": {…}, "weight_map": {"name": "file"}}`.

Source: https://huggingface.co/docs/safetensors, and the reference implementation's checks: a
header of at most 100 MB, tensors that cover the rest of the file without gaps or overlaps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from hfflows.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Container

_LENGTH_BYTES = 8
_MAX_JSON_BYTES = 100_000_000
_TOO_LARGE = 1 << 63

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class Ranges(Protocol):
    """A file that is read in ranges."""

    path: str
    size_bytes: int

    def read(self, offset: int, length: int) -> bytearray:
        """Return exactly `length` bytes from `offset`."""
        ...


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor."""

    name: str
    dtype: str
    """In safetensors' spelling: `F32`, `BF16`, `F8_E4M3`, …"""
    shape: tuple[int, ...]
    size_bytes: int
    offset: int
    """Where its bytes begin in the file."""


def read_header(file: Ranges) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Return the metadata and the tensors of a safetensors file.

    Raises:
        IntegrityError: The header breaks a rule of the format; says which.
    """
    if file.size_bytes < _LENGTH_BYTES:
        raise broken(file.path, "it is too short for a header")
    length = int.from_bytes(file.read(0, _LENGTH_BYTES), "little")
    if length > min(_MAX_JSON_BYTES, file.size_bytes - _LENGTH_BYTES):
        raise broken(file.path, f"it claims a header of {length:,} bytes")
    header = _parse_json(file.read(_LENGTH_BYTES, length), file.path)
    metadata = header.pop("__metadata__", {})
    if not _is_text_map(metadata):
        raise broken(file.path, "its metadata is not a map of texts")
    begin = _LENGTH_BYTES + length
    tensors = [_parse_tensor(name, entry, begin, file.path) for name, entry in header.items()]
    _check_cover(tensors, begin, file)
    return metadata, {tensor.name: tensor for tensor in tensors}


def read_index(file: Ranges, files: Container[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the metadata of an index, and each tensor's file out of `files`.

    Raises:
        IntegrityError: It is no index, or names a file that is not there.
    """
    if file.size_bytes > _MAX_JSON_BYTES:
        raise broken(file.path, f"it has {file.size_bytes:,} bytes")
    index = _parse_json(file.read(0, file.size_bytes), file.path)
    shards, metadata = index.get("weight_map"), index.get("metadata") or {}
    if not _is_text_map(shards) or not isinstance(metadata, dict):
        raise broken(file.path, "it has no weight_map of tensors to files")
    directory = file.path.rpartition("/")[0]
    located = {name: f"{directory}/{shard}".lstrip("/") for name, shard in shards.items()}
    for shard in sorted(set(located.values())):
        if shard not in files:
            raise broken(file.path, f"the artifact does not have its file {shard!r}")
    return metadata, located


def broken(path: str, reason: str) -> IntegrityError:
    """Return the error for a file that breaks a rule of the format."""
    msg = f"{path} cannot be read as safetensors: {reason}."
    return IntegrityError(msg, path=path)


def _parse_tensor(name: str, entry: Any, begin: int, path: str) -> TensorInfo:
    try:
        dtype, shape, (low, high) = entry["dtype"], entry["shape"], entry["data_offsets"]
        is_right = isinstance(dtype, str) and all(map(_is_count, (*shape, low, high)))
    except (KeyError, TypeError, ValueError):
        is_right = False
    if not is_right or high < low:
        raise broken(path, f"its entry for {name!r} is not a type, a shape and two offsets")
    if dtype in _BITS and _size_bits(dtype, shape) != (high - low) * 8:
        raise broken(path, f"{name!r} is {dtype} of another size than {high - low:,} bytes")
    return TensorInfo(name, dtype, tuple(shape), high - low, begin + low)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _TOO_LARGE


def _size_bits(dtype: str, shape: list[int]) -> int | None:
    size = _BITS[dtype]
    for count in shape:
        size *= count
        if size >= _TOO_LARGE:  # now: a hostile shape would take minutes to multiply
            return None
    return size


def _check_cover(tensors: list[TensorInfo], begin: int, file: Ranges) -> None:
    """Refuse tensors that overlap, leave gaps, or end elsewhere than the file."""
    position = begin
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size_bytes)):
        if tensor.offset != position:
            raise broken(file.path, f"{tensor.name!r} overlaps another tensor or leaves a gap")
        position += tensor.size_bytes
    if position != file.size_bytes:
        reason = f"its tensors end at byte {position:,}, the file at {file.size_bytes:,}"
        raise broken(file.path, reason)


def _parse_json(data: bytearray, path: str) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise broken(path, f"it is not JSON text: {error}") from error
    if not isinstance(value, dict):
        raise broken(path, "it does not hold a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        msg = "a name occurs twice"
        raise ValueError(msg)
    return value


def _is_text_map(value: Any) -> TypeGuard[dict[str, str]]:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
