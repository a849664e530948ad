"""Where files are cut: at their tensors and records, whatever else they claim."""

import io
import os
import zipfile
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hfflows.artifacts._cuts as cuts
import hfflows.artifacts._pipeline as pipeline
from hfflows.artifacts._cuts import pieces_of, plain_ends, segment_ends
from tests.artifacts.weights import KIB, MIB, safetensors, torch_zip


def ends_of(data, head_bytes=16 * MIB):
    def read(offset, length):
        assert offset + length <= len(data)
        return data[offset : offset + length]

    return segment_ends(len(data), data[:head_bytes], read)


def segments_of(data):
    """Return the bytes of each segment."""
    return [data[low:high] for low, high in pairwise([0, *ends_of(data)])]


def test_a_large_tensor_is_a_segment_and_small_neighbours_share_one():
    sizes = {"q": 300 * KIB, "norm": 4 * KIB, "bias": KIB, "k": 70 * KIB, "o": 200 * KIB}
    tensors = {name: os.urandom(size) for name, size in sizes.items()}

    header, *rest = segments_of(safetensors(tensors))

    assert header.startswith(len(header[8:]).to_bytes(8, "little"))
    assert rest == [
        tensors["q"],
        tensors["norm"] + tensors["bias"],
        tensors["k"],
        tensors["o"],
    ]


def test_a_run_of_small_tensors_is_cut_into_groups():
    tensors = {f"{n:03}": os.urandom(10 * KIB) for n in range(40)}

    groups = segments_of(safetensors(tensors))[1:]

    assert [len(group) for group in groups] == [70 * KIB] * 5 + [50 * KIB]


def test_what_a_tensor_becomes_does_not_depend_on_what_comes_before_it():
    tensors = {"a": os.urandom(7 * MIB), "b": os.urandom(3 * MIB)}
    more = {"first": os.urandom(2 * MIB + 5)} | tensors

    alone = segments_of(safetensors(tensors, {"format": "pt"}))
    behind = segments_of(safetensors(more, {"format": "pt", "step": "1000000"}))

    assert [len(part) for part in alone[1:]] == [5 * MIB, 2 * MIB, 3 * MIB]
    assert behind[-3:] == alone[1:]


def test_many_tensors_make_no_more_segments_than_a_tree_can_hold():
    tensors = {f"{n:05}": bytes(70 * KIB) for n in range(2000)}

    assert len(ends_of(safetensors(tensors))) <= 640 + 1


def test_a_record_of_a_zip_is_a_segment_wherever_it_lies():
    weights = {f"data/{n}": os.urandom(200 * KIB + n) for n in range(5)}

    before = segments_of(torch_zip({"data.pkl": b"x" * 100} | weights))
    after = segments_of(torch_zip({"data.pkl": b"x" * 201} | weights))

    for content in weights.values():
        assert content in before
        assert content in after


@pytest.mark.slow
def test_records_are_found_in_what_torch_writes():
    import torch

    file = io.BytesIO()
    weights = [torch.frombuffer(bytearray(os.urandom(300_000)), dtype=torch.uint8) for _ in "abc"]
    torch.save({"step": 255, "weights": weights}, file)

    segments = segments_of(file.getvalue())

    assert all(bytes(weight.numpy()) in segments for weight in weights)


def test_a_directory_behind_the_head_takes_one_more_read():
    data = torch_zip({f"data/{n}": os.urandom(100 * KIB) for n in range(9)})
    reads = []

    def read(offset, length):
        reads.append((offset, length))
        return data[offset : offset + length]

    ends = segment_ends(len(data), data[: 200 * KIB], read)

    assert ends == ends_of(data)
    assert reads == [(len(data) - 64 * KIB, 64 * KIB)]


def longer(data):
    return len(data).to_bytes(8, "little") + data[8:]


@pytest.mark.parametrize(
    "data",
    [
        bytes(MIB),
        os.urandom(MIB),
        longer(safetensors({"a": bytes(MIB)})),
        safetensors({"a": bytes(MIB)})[:-1],
        safetensors({"a": bytes(MIB)}) + b"x",
        safetensors({}),
        (1 << 63).to_bytes(8, "little") + bytes(MIB),
        (9 * MIB).to_bytes(8, "little") + b"{" + b" " * (10 * MIB),
        (MIB).to_bytes(8, "little") + b"[" * MIB,
        (MIB).to_bytes(8, "little") + b"9" * MIB,
        b"PK\x03\x04" + bytes(MIB),
        torch_zip({"a": bytes(MIB)})[:-30],
    ],
    ids=range(12),
)
def test_a_file_that_lies_is_cut_like_any_other(data):
    assert ends_of(data) is None


def test_a_header_behind_the_head_is_not_fetched():
    data = safetensors({f"{n}": b"x" for n in range(100)})

    assert ends_of(data, head_bytes=50) is None


def test_a_directory_too_large_to_be_looked_at_is_not(monkeypatch):
    data = torch_zip({f"{n}": bytes(100) for n in range(3000)})
    monkeypatch.setattr(cuts, "LARGEST_HEADER_BYTES", 100 * KIB)

    assert ends_of(data, head_bytes=MIB // 8) is None


@st.composite
def weight_files(draw):
    """Files that are, or nearly are, of a known format."""
    sizes = draw(st.lists(st.integers(0, 400), max_size=12))
    tensors = {f"t{n}": os.urandom(size) for n, size in enumerate(sizes)}
    data = bytearray(draw(st.sampled_from([safetensors, torch_zip]))(tensors))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        data[at] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(1, len(data)))] if draw(st.booleans()) else data)


@given(data=st.one_of(st.binary(min_size=1, max_size=2000), weight_files()), head=st.integers(0))
def test_segments_cover_any_file_once_and_in_order(data, head):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "OBJECT_BYTES", 256)
        patch.setattr(cuts, "LARGEST_PART_BYTES", 80)
        patch.setattr(cuts, "SMALLEST_GROUP_BYTES", 16)
        patch.setattr(cuts, "LARGEST_GROUP_BYTES", 64)
        ends = ends_of(data, head_bytes=head) or plain_ends(len(data))
        pieces = list(pieces_of(ends))

    assert all(low < high for low, high in pairwise([0, *ends]))
    assert ends[-1] == len(data)
    assert [offset for offset, _ in pieces] == [
        sum(sum(lengths) for _, lengths in pieces[:n]) for n in range(len(pieces))
    ]
    assert sum(sum(lengths) for _, lengths in pieces) == len(data)
    assert all(sum(lengths) <= 256 for _, lengths in pieces)


@given(data=st.binary(max_size=400))
def test_no_bytes_make_the_reader_of_zips_fail(data):
    whole = b"PK\x03\x04" + data + torch_zip({"a": b"1"})[-80:]

    ends = ends_of(whole)

    assert ends is None or ends[-1] == len(whole)


def test_zip_files_of_others_are_cut_too():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", os.urandom(300 * KIB))
        archive.writestr("b", os.urandom(300 * KIB))

    assert len(ends_of(file.getvalue())) == 3
