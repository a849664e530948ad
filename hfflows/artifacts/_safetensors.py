"""Tensors by name out of a saved safetensors file, without fetching the rest of it."""

from __future__ import annotations

import importlib
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

from hfflows.artifacts._artifacts import RefLike, read_tree, resolve_ref, store_for
from hfflows.artifacts._read import SegmentReader
from hfflows.artifacts._runs import READS_IN_FLIGHT
from hfflows.artifacts._safetensors_format import (
    TensorInfo,
    broken,
    read_header,
    read_index,
)
from hfflows.errors import ArtifactNotFoundError, MissingDependencyError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hfflows.artifacts._tree import TreeFile
    from hfflows.storage import Get, Store

INDEX_SUFFIX = ".safetensors.index.json"

_SEGMENTS_HELD = 2

_NUMPY = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
_TORCH = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16",
    "F32": "float32", "F64": "float64", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


class SafetensorsFile:
    """The tensors of one file; made by `open_safetensors`. Safe to use from several threads."""

    def __init__(self, store: Get, file: TreeFile) -> None:
        self._ranges = _Ranges(store, file)
        self._metadata, self._tensors = read_header(self._ranges)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def keys(self) -> list[str]:
        """Return the tensors' names, sorted."""
        return sorted(self._tensors)

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the header or the index; empty when there is none."""
        return dict(self._metadata)

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's type, shape and size; its bytes are not fetched.

        Raises:
            SettingsError: There is no tensor of this name.
        """
        try:
            return self._tensors[name]
        except KeyError:
            raise _no_tensor(self._ranges.path, name) from None

    def get_bytes(self, name: str) -> bytearray:
        """Return a tensor's bytes, little endian, in row-major order."""
        info = self.info(name)
        return self._ranges.read(info.offset, info.size_bytes)

    def get_tensor(self, name: str, *, framework: Literal["np", "pt"] = "np") -> Any:
        """Return a tensor as a writable `numpy.ndarray` or a `torch.Tensor` on the CPU.

        numpy has no bfloat16 and no float8: take those with `framework="pt"`, or raw with
        `get_bytes`. The packed types of less than 8 bits come raw only.

        Raises:
            SettingsError: No such tensor or framework, or its type does not exist there.
        MissingDependencyError: The framework is not installed.
            IntegrityError: Bytes are missing or not what was saved.
        """
        info = self.info(name)
        _check_framework(info, framework)
        return _to_tensor(info, self.get_bytes(name), framework)


class ShardedSafetensors:
    """The tensors of a checkpoint of several files; the same methods as `SafetensorsFile`.

    A shard's header is read when a tensor of it is first asked for.
    """

    def __init__(self, store: Get, path: str, files: Mapping[str, TreeFile]) -> None:
        self._store = store
        self._path = path
        self._files = files
        self._metadata, self._shard_of = read_index(_Ranges(store, files[path]), files)
        self._opened: dict[str, SafetensorsFile] = {}
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    def keys(self) -> list[str]:
        """Return the tensors' names, sorted."""
        return sorted(self._shard_of)

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the index; empty when there is none."""
        return dict(self._metadata)

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's type, shape and size; see `SafetensorsFile.info`."""
        return self._shard(name).info(name)

    def get_bytes(self, name: str) -> bytearray:
        """Return a tensor's bytes; see `SafetensorsFile.get_bytes`."""
        return self._shard(name).get_bytes(name)

    def get_tensor(self, name: str, *, framework: Literal["np", "pt"] = "np") -> Any:
        """Return a tensor; see `SafetensorsFile.get_tensor`."""
        return self._shard(name).get_tensor(name, framework=framework)

    def _shard(self, name: str) -> SafetensorsFile:
        path = self._shard_of.get(name)
        if path is None:
            raise _no_tensor(self._path, name)
        with self._lock:
            if path not in self._opened:
                self._opened[path] = SafetensorsFile(self._store, self._files[path])
            shard = self._opened[path]
        if name not in shard:
            raise broken(self._path, f"it says that {name!r} is in {path}, where it is not")
        return shard


def open_safetensors(
    ref: RefLike, path: str = "model.safetensors", *, store: Store | None = None
) -> SafetensorsFile | ShardedSafetensors:
    """Return the tensors of a saved safetensors file, to be read by name.

    What is moved: the artifact's tree, then whole verified segments, since a segment is what
    has a digest. In layout `packed` that is the header by itself, a tensor, 5 MiB of a large
    one, or a group of small neighbours (docs/format.md); in `files` and `tar` it is 16 MiB of
    the file. A tensor takes the segments that it lies in, 8 at a time. The last two segments
    are kept, so small neighbours read one after the other cost one segment together. Memory:
    the tensor, and 10 segments at most.

    Args:
        ref: The artifact.
        path: A `.safetensors` file in it, or the `.safetensors.index.json` of a checkpoint in
            several.
        store: Where from; `None` means the store the reference names.

    Raises:
        ArtifactNotFoundError: No such artifact, or no such file in it.
        IntegrityError: The header, or the index, is not what the format says.
    """
    store = store_for(ref, store)
    resolved = resolve_ref(ref, store=store)
    files = {file.path: file for file in read_tree(resolved, store=store).files}
    if path not in files:
        msg = f"{resolved.key} has no file {path!r}."
        raise ArtifactNotFoundError(msg, key=resolved.key, path=path)
    if path.endswith(INDEX_SUFFIX):
        return ShardedSafetensors(store, path, files)
    return SafetensorsFile(store, files[path])


class _Ranges:
    """Ranges of one file, through verified segments; the last few segments are kept."""

    def __init__(self, store: Get, file: TreeFile) -> None:
        self.path = file.path
        self.size_bytes = file.size_bytes
        self._store = store
        self._file = file
        self._held: OrderedDict[int, bytearray] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytearray:
        """Return a range of the file, its segments fetched in parallel."""
        target = bytearray(length)
        parts = self._parts(offset, offset + length)

        def fill(part: tuple[int, int, int]) -> None:
            index, begin, end = part
            low, high = max(begin, offset), min(end, offset + length)
            place = memoryview(target)[low - offset : high - offset]
            if (low, high) == (begin, end):
                self._fetch(begin, place)
            else:  # the rest of it is a neighbour's
                place[:] = memoryview(self._segment(index, begin, end))[low - begin : high - begin]

        if len(parts) > 1:
            with ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="hfflows-read") as pool:
                list(pool.map(fill, parts))
        elif parts:
            fill(parts[0])
        return target

    def _parts(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        """Return (index, begin, end) of the segments that hold a range."""
        parts, position = [], 0
        for index, segment in enumerate(self._file.segments):
            after = position + segment.length
            if position < end and begin < after:
                parts.append((index, position, after))
            position = after
        return parts

    def _segment(self, index: int, begin: int, end: int) -> bytearray:
        with self._lock:
            if index in self._held:
                self._held.move_to_end(index)
                return self._held[index]
        data = bytearray(end - begin)
        self._fetch(begin, memoryview(data))
        with self._lock:
            self._held[index] = data
            while len(self._held) > _SEGMENTS_HELD:
                self._held.popitem(last=False)
        return data

    def _fetch(self, begin: int, place: memoryview) -> None:
        """Fill `place` with the segment that begins at `begin`, once it is verified."""
        with SegmentReader(self._store, self._file) as reader:
            reader.seek(begin)
            reader.readinto(place)


def _no_tensor(path: str, name: str) -> SettingsError:
    return SettingsError(f"{path} has no tensor {name!r}; `keys()` lists them.", path=path)


# The frameworks --------------------------------------------------------------------------


def _check_framework(info: TensorInfo, framework: str) -> None:
    """Refuse what cannot be delivered, before any byte is fetched."""
    types = {"np": _NUMPY, "pt": _TORCH}.get(framework)
    if types is None:
        msg = f"framework={framework!r} is none of 'np', 'pt'."
        raise SettingsError(msg)
    if info.dtype not in types:
        advice = "framework='pt' or get_bytes" if info.dtype in _TORCH else "get_bytes"
        msg = f"{info.name!r} is {info.dtype}, which {framework!r} does not have; use {advice}."
        raise SettingsError(msg, dtype=info.dtype)


def _to_tensor(info: TensorInfo, data: bytearray, framework: str) -> Any:
    if framework == "np":
        return _import("numpy").frombuffer(data, dtype=_NUMPY[info.dtype]).reshape(info.shape)
    torch = _import("torch")
    dtype = getattr(torch, _TORCH[info.dtype], None)
    if dtype is None:
        msg = f"{info.name!r} is {info.dtype}, which torch {torch.__version__} does not have."
        raise SettingsError(msg, dtype=info.dtype)
    if not data:  # frombuffer refuses nothing
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(info.shape)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        msg = f"Tensors of this framework need {name}: pip install {name}."
        raise MissingDependencyError(msg) from error
