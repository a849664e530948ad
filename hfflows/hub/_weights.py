"""What weights are made of, read from the headers of safetensors files and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict, Field

from hfflows.artifacts._safetensors_format import broken, read_header, read_index

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from typing_extensions import Buffer

    from hfflows.artifacts import TensorInfo, TreeFile
    from hfflows.storage import Get

MAX_HEADER_BYTES = 25_000_000
"""Longest header, or index, that is read ahead of a download. Source: huggingface_hub's
`SAFETENSORS_MAX_HEADER_LENGTH`."""
HEADERS_IN_FLIGHT = 8

_INDEX = re.compile(r".+\.safetensors\.index(\.[^./]+)?\.json")

Headers = dict[str, dict[str, "TensorInfo"]]
"""The tensors of each file."""


class Weights(BaseModel):
    """One set of weights: a safetensors file, or the files of one index."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="The file, or the index of a set in several files.")
    size_bytes: int
    parameter_count: int
    dtypes: dict[str, int] = Field(description="Parameters of each type, as safetensors spells it.")


class Readable(Protocol):
    """A file that is read in ranges."""

    @property
    def path(self) -> str:
        """Relative POSIX path."""
        ...

    @property
    def size_bytes(self) -> int:
        """Size of the whole file."""
        ...

    def read(self, offset: int, length: int) -> Buffer:
        """Return exactly `length` bytes from `offset`."""
        ...


def read_weights(files: Iterable[Readable]) -> tuple[Weights, ...]:
    """Return what the safetensors files among `files` hold; two small ranges of each are read.

    Raises:
        IntegrityError: A header or an index breaks a rule of the format, or is too long.
        HubError, StorageError: It cannot be read.
    """
    limited = {file.path: _Limited(file) for file in files}
    tensors = [file for path, file in limited.items() if path.endswith(".safetensors")]
    with ThreadPoolExecutor(HEADERS_IN_FLIGHT, thread_name_prefix="hfflows-headers") as pool:
        headers = dict(pool.map(lambda file: (file.path, read_header(file)[1]), tensors))
    found: list[Weights] = []
    alone = set(headers)
    for path, file in limited.items() if headers else ():
        if _INDEX.fullmatch(path):
            shard_of = read_index(file, _AnyFile())[1]
            if set(shard_of.values()) <= headers.keys():  # else patterns left some out
                found.append(_in_shards(path, shard_of, headers))
                alone -= set(shard_of.values())
    found += [_weights(path, headers[path].values()) for path in alone]
    return tuple(sorted(found, key=lambda weights: weights.path))


def _in_shards(path: str, shard_of: Mapping[str, str], headers: Headers) -> Weights:
    lost = sorted(name for name, shard in shard_of.items() if name not in headers[shard])
    if lost:
        raise broken(path, f"it says that {lost[0]!r} is in {shard_of[lost[0]]}, where it is not")
    return _weights(path, [headers[shard][name] for name, shard in shard_of.items()])


def _weights(path: str, tensors: Collection[TensorInfo]) -> Weights:
    dtypes: Counter[str] = Counter()
    for tensor in tensors:
        dtypes[tensor.dtype] += prod(tensor.shape)
    return Weights(
        path=path,
        size_bytes=sum(tensor.size_bytes for tensor in tensors),
        parameter_count=dtypes.total(),
        dtypes=dict(sorted(dtypes.items())),
    )


class _AnyFile:
    def __contains__(self, path: object) -> bool:
        return True


class _Limited:
    """A file that refuses to hand out more than a header."""

    def __init__(self, file: Readable) -> None:
        self.path = file.path
        self.size_bytes = file.size_bytes
        self._file = file

    def read(self, offset: int, length: int) -> bytearray:
        if length > MAX_HEADER_BYTES:
            reason = f"its header or index of {length:,} bytes is longer than {MAX_HEADER_BYTES:,}"
            raise broken(self.path, reason)
        return bytearray(self._file.read(offset, length))


class StoredFile:
    """A file of an artifact, read in ranges shorter than a segment and so not verified.

    For facts to look at, never for bytes to keep.
    """

    def __init__(self, file: TreeFile, store: Get) -> None:
        self.path = file.path
        self.size_bytes = file.size_bytes
        self._file = file
        self._store = store

    def read(self, offset: int, length: int) -> bytearray:
        """Return exactly `length` bytes from `offset`."""
        data, begin, end = bytearray(), 0, offset + length
        for segment in self._file.segments:
            low, high = max(begin, offset), min(begin + segment.length, end)
            if low < high:
                inside = segment.offset + low - begin
                data += memoryview(self._store.get_range(segment.key, inside, high - low))
            begin += segment.length
        return data
