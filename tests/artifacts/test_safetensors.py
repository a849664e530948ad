"""Tensors by name, against the reference implementation's reader and writer."""

import json
import math
import os
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

from hfflows.artifacts import TensorInfo, open_safetensors, read_tree, save_artifact
from hfflows.artifacts._safetensors_format import read_header
from hfflows.errors import (
    ArtifactNotFoundError,
    IntegrityError,
    MissingDependencyError,
    SettingsError,
)
from hfflows.testing import FaultyStore

LAYOUTS = ["packed", "files"]
DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32,
    torch.uint64, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]  # fmt: skip


class Counting(FaultyStore):
    """A store that notes which ranges of objects are read."""

    def __init__(self, store):
        super().__init__(store)
        self.ranges = []

    def get_range(self, key, offset, length):
        self.ranges.append(length)
        return super().get_range(key, offset, length)


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8) if tensor.ndim else tensor


def saved(root, store, layout="packed"):
    return save_artifact(root, name="m", storage_format=layout, store=store)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_is_what_the_reference_reader_returns(store, tmp_path, layout):
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    tensors = {f"of {dtype}": torch.randn(7, 5).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "one": torch.ones(1)}
    save_file(tensors, path, metadata={"format": "pt", "ü": "ß"})

    opened = open_safetensors(saved(path, store, layout), store=store)
    with safe_open(path, framework="pt") as reference:
        assert opened.keys() == sorted(reference.keys())
        assert opened.metadata() == reference.metadata()
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            expected = reference.get_tensor(name)
            tensor = opened.get_tensor(name, framework="pt")
            assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape)
            assert torch.equal(bits(tensor), bits(expected))
            assert opened.info(name).dtype == reference.get_slice(name).get_dtype()
            assert opened.info(name).shape == tuple(expected.shape)
            assert opened.info(name).size_bytes == expected.nbytes


def test_numpy_arrays_are_what_the_reference_reader_returns_and_may_be_written_to(
    memory_store, tmp_path
):
    path = tmp_path / "model.safetensors"
    kinds = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]
    rng = np.random.default_rng(0)
    save_numpy({kind: (rng.random((3, 4)) * 100).astype(kind) for kind in kinds}, path)

    opened = open_safetensors(saved(path, memory_store), store=memory_store)
    for name, expected in load_file(path).items():
        array = opened.get_tensor(name)
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(array, expected)
        array[0, 0] = 1


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float8_e4m3fn, "F8_E4M3")]
)
def test_types_that_numpy_lacks_are_refused_before_anything_is_read_and_come_raw(
    memory_store, tmp_path, dtype, name
):
    path = tmp_path / "model.safetensors"
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    save_file({"x": tensor}, path)
    store = Counting(memory_store)
    opened = open_safetensors(saved(path, store), store=store)
    store.ranges.clear()

    with pytest.raises(SettingsError, match=rf"'x' is {name}.*framework='pt'"):
        opened.get_tensor("x")
    assert store.ranges == []
    assert opened.get_bytes("x") == tensor.view(torch.uint8).numpy().tobytes()


def test_what_is_not_there_is_named(memory_store, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(2)}, path)
    ref = saved(path, memory_store)
    opened = open_safetensors(ref, store=memory_store)

    with pytest.raises(SettingsError, match="no tensor 'y'"):
        opened.get_tensor("y")
    with pytest.raises(SettingsError, match="framework='jax'"):
        opened.get_tensor("x", framework="jax")
    with pytest.raises(ArtifactNotFoundError, match="other"):
        open_safetensors(ref, "other.safetensors", store=memory_store)


def test_a_framework_that_is_not_installed_is_named(memory_store, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(2)}, path)
    opened = open_safetensors(saved(path, memory_store), store=memory_store)
    monkeypatch.setitem(sys.modules, "numpy", None)

    with pytest.raises(MissingDependencyError, match="pip install numpy"):
        opened.get_tensor("x")


# What is moved ----------------------------------------------------------------------------

MIB = 1 << 20


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_tensor_moves_the_header_and_its_own_segments(memory_store, tmp_path, layout):
    path = tmp_path / "model.safetensors"
    tensors = {
        "a": np.frombuffer(os.urandom(40 * MIB), dtype="u1"),
        "b": np.frombuffer(os.urandom(24 * MIB), dtype="u1"),
        "c1": np.arange(8, dtype="u1"),
        "c2": np.arange(9, dtype="u1"),
    }
    save_numpy(tensors, path)
    store = Counting(memory_store)
    size = path.stat().st_size
    if layout == "packed":  # cut at tensors, the small ones together
        header, end, tensor = [size - 64 * MIB - 17], [17], [5 * MIB] * 4 + [4 * MIB]
    else:
        header, end, tensor = [16 * MIB], [size - 64 * MIB], [16 * MIB] * 2
    opened = open_safetensors(saved(path, store, layout), store=store)
    assert set(store.ranges) == set(header)

    store.ranges.clear()
    for name in ("c1", "c2"):
        assert np.array_equal(opened.get_tensor(name), tensors[name])
    assert store.ranges == end  # the file's end, once

    store.ranges.clear()
    assert np.array_equal(opened.get_tensor("b"), tensors["b"])
    assert sorted(store.ranges) == sorted(tensor)  # in files and tars from 40 MiB on: end is held


def test_tensors_of_many_segments_come_whole_in_any_order(memory_store, tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {
        name: np.frombuffer(os.urandom(size), dtype="u1")
        for name, size in {"a": 33 * MIB + 5, "b": 1, "c": 16 * MIB, "d": 100}.items()
    }
    save_numpy(tensors, path)
    opened = open_safetensors(saved(path, memory_store), store=memory_store)

    for name in ("d", "a", "c", "b", "a"):
        assert np.array_equal(opened.get_tensor(name), tensors[name])


def test_a_damaged_object_is_found_when_its_tensor_is_read(memory_store, tmp_path):
    path = tmp_path / "model.safetensors"
    save_numpy({"a": np.zeros(17 * MIB, "u1"), "b": np.ones(17 * MIB, "u1")}, path)
    ref = saved(path, memory_store)
    segment = read_tree(ref, store=memory_store).files[0].segments[-1]
    data = bytearray(memory_store.get(segment.key))
    data[segment.offset] ^= 1
    memory_store.put(segment.key, data)

    opened = open_safetensors(ref, store=memory_store)
    assert opened.get_tensor("a").sum() == 0
    with pytest.raises(IntegrityError, match="objects/"):
        opened.get_tensor("b")


# Several files ----------------------------------------------------------------------------


def write_shards(root, prefix=""):
    root.mkdir(parents=True)
    shards = {
        "model-00001-of-00002.safetensors": {"a": torch.ones(2), "b": torch.arange(3)},
        "model-00002-of-00002.safetensors": {"c": torch.full((4,), 7, dtype=torch.bfloat16)},
    }
    for name, tensors in shards.items():
        save_file(tensors, root / name)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {"total_size": 40}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    return weight_map


@pytest.mark.parametrize("folder", ["", "transformer/"])
def test_tensors_are_found_in_their_shards(memory_store, tmp_path, folder):
    write_shards(tmp_path / "model" / folder)
    store = Counting(memory_store)
    ref = saved(tmp_path / "model", store, "files")
    opened = open_safetensors(ref, f"{folder}model.safetensors.index.json", store=store)

    assert opened.keys() == ["a", "b", "c"]
    assert opened.metadata() == {"total_size": 40}
    assert len(store.ranges) == 1  # the index; no shard was touched
    assert torch.equal(opened.get_tensor("b", framework="pt"), torch.arange(3))
    assert opened.info("c").dtype == "BF16"
    assert len(opened.get_bytes("c")) == 8
    with pytest.raises(SettingsError, match="no tensor 'd'"):
        opened.info("d")


def change_index(root, change):
    path = root / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda index: index.pop("weight_map"), "no weight_map"),
        (lambda index: index.update(weight_map={"a": 3}), "no weight_map"),
        (lambda index: index.update(metadata=[1]), "no weight_map"),
        (lambda index: index["weight_map"].update(a="absent.safetensors"), "does not have"),
        (lambda index: index["weight_map"].update(a="../../etc/passwd"), "does not have"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(memory_store, tmp_path, change, reason):
    write_shards(tmp_path / "model")
    change_index(tmp_path / "model", change)

    ref = saved(tmp_path / "model", memory_store)
    with pytest.raises(IntegrityError, match=reason):
        open_safetensors(ref, "model.safetensors.index.json", store=memory_store)


def test_a_tensor_that_is_not_where_the_index_says_is_the_indexs_fault(memory_store, tmp_path):
    write_shards(tmp_path / "model")
    change_index(
        tmp_path / "model",
        lambda index: index["weight_map"].update(a="model-00002-of-00002.safetensors"),
    )

    ref = saved(tmp_path / "model", memory_store)
    opened = open_safetensors(ref, "model.safetensors.index.json", store=memory_store)
    with pytest.raises(IntegrityError, match=r"index\.json.*'a' is in .*where it is not"):
        opened.get_tensor("a")


# Hostile headers --------------------------------------------------------------------------


class Bytes:
    """A file in memory, as the parser sees it."""

    path = "model.safetensors"

    def __init__(self, data):
        self._data = data
        self.size_bytes = len(data)

    def read(self, offset, length):
        assert offset + length <= self.size_bytes
        return bytearray(self._data[offset : offset + length])


def framed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE = {
    "nothing": b"",
    "less than a length": b"\1\0\0",
    "a header longer than the file": struct.pack("<Q", 100) + b"{}",
    "a header longer than memory": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "no header": struct.pack("<Q", 0),
    "a list": framed([]),
    "a number": framed(b"7"),
    "text that is not UTF-8": framed(b'{"\xff": 1}'),
    "UTF-16": framed('{"a": 1}'.encode("utf-16")),
    "a name twice": framed(b'{"a": {}, "a": {}}'),
    "deep nesting": framed(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "an endless number": framed(b'{"a": ' + b"9" * 10_000 + b"}"),
    "metadata that is no map": framed({"__metadata__": []}),
    "metadata that is no text": framed({"__metadata__": {"a": 1}}),
    "an entry that is no map": framed({"a": 3}),
    "an entry without a type": framed({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "a type that is no text": framed({"a": entry(dtype=3)}, bytes(8)),
    "a negative dimension": framed({"a": entry(shape=(-1, -2))}, bytes(8)),
    "a fraction": framed({"a": entry(shape=(2.0,))}, bytes(8)),
    "a truth": framed({"a": entry(shape=(True, 2))}, bytes(8)),
    "three offsets": framed({"a": entry(offsets=(0, 8, 8))}, bytes(8)),
    "offsets backwards": framed({"a": entry(shape=(0,), offsets=(8, 0))}, bytes(8)),
    "offsets beyond the file": framed({"a": entry(offsets=(8, 16))}, bytes(8)),
    "bytes that no tensor has": framed({"a": entry()}, bytes(12)),
    "a gap": framed({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "an overlap": framed({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "a shape that does not fit": framed({"a": entry(shape=(3,))}, bytes(8)),
    "a shape that overflows": framed({"a": entry(shape=(1 << 62, 4), offsets=(0, 0))}),
    "a shape of many dimensions": framed({"a": entry(shape=[1 << 62] * 100_000)}, bytes(8)),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_are_refused_here_as_by_the_reference(data, tmp_path):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises((SafetensorError, OSError)), safe_open(tmp_path / "x", "np"):
        pass

    started = time.monotonic()
    with pytest.raises(IntegrityError, match=r"model\.safetensors cannot be read"):
        read_header(Bytes(data))
    assert time.monotonic() - started < 2


def test_a_hostile_file_is_refused_when_it_is_opened(memory_store, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(HOSTILE["an overlap"])
    ref = saved(tmp_path / "model.safetensors", memory_store)

    with pytest.raises(IntegrityError, match="overlaps"):
        open_safetensors(ref, store=memory_store)


def test_a_type_from_the_future_hides_only_its_own_tensors():
    data = framed({"new": entry("F2", (32,)), "old": entry(offsets=(8, 16))}, bytes(16))

    _, tensors = read_header(Bytes(data))
    offset = len(data) - 16
    assert tensors["new"] == TensorInfo("new", "F2", (32,), 8, offset)
    assert tensors["old"] == TensorInfo("old", "F32", (2,), 8, offset + 8)


shapes = st.lists(st.integers(0, 5), max_size=4)
models = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(["U8", "F16", "F32", "I64"]), shapes),
    max_size=6,
)


@given(models)
def test_any_header_that_the_reference_writes_is_read_back(tmp_path_factory, model):
    kinds = {"U8": "u1", "F16": "f2", "F32": "f4", "I64": "i8"}
    path = Path(tmp_path_factory.mktemp("st")) / "x"
    save_numpy({name: np.zeros(shape, kinds[kind]) for name, (kind, shape) in model.items()}, path)

    _, tensors = read_header(Bytes(path.read_bytes()))
    assert {name: (one.dtype, list(one.shape)) for name, one in tensors.items()} == model
    for one in tensors.values():
        assert one.size_bytes == math.prod(one.shape) * np.dtype(kinds[one.dtype]).itemsize


@given(st.binary(max_size=40))
def test_no_bytes_make_the_parser_fail_in_another_way(data):
    for file in (data, framed(data), framed(b'{"a":' + data + b"}", bytes(8))):
        try:
            read_header(Bytes(file))
        except IntegrityError:
            continue
