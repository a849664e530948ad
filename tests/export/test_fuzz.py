"""Reader and writer of metadata on bytes that nobody meant: errors of ours, and no harm.

What the files mean is judged by others: protobuf's own parser, onnx's checker, ONNX Runtime, and
a second, simple reader of the outermost fields.
"""

import io
import time
import tracemalloc

import onnx
import onnxruntime
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import hfflows
from hfflows.export import inject_hub_metadata, read_onnx_metadata
from hfflows.export._onnx._ranged import RangedFile
from hfflows.export._onnx._schema import DIGEST, is_ours
from tests.export.test_metadata import HUB, small_model

NUMBERED = b"".join(number.to_bytes(4, "big") for number in range(750_000))
METADATA = 14
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
LONG = st.builds(lambda text, times: text * times, TEXT, st.sampled_from([1, 1, 1, 170]))


# Other readers ---------------------------------------------------------------------------


def varint(value):
    encoded = b""
    while value > 0x7F:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])


def read_varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 0x80:
            return value, at


def outermost(data):
    """Return number and bytes of each field of the outermost message."""
    at, found = 0, []
    while at < len(data):
        begin = at
        tag, at = read_varint(data, at)
        if tag & 7 == 0:
            _, at = read_varint(data, at)
        elif tag & 7 == 2:
            length, at = read_varint(data, at)
            at += length
        else:
            at += {1: 8, 5: 4}[tag & 7]
        assert at <= len(data)  # cut short
        found.append((tag >> 3, data[begin:at]))
    return found


def without_metadata(data):
    return b"".join(field for number, field in outermost(data) if number != METADATA)


def parsed(data):
    """Return the model without metadata as protobuf reads it; `None` when it cannot."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return None
    del model.metadata_props[:]
    return model.SerializeToString(deterministic=True)


def check_written(before, after, written):
    """Judge a file that was written into: only entries of ours differ."""
    assert without_metadata(after) == without_metadata(before)
    assert parsed(after) == parsed(before)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(before)
    except DecodeError:
        return
    foreign = {prop.key: prop.value for prop in model.metadata_props if not is_ours(prop.key)}
    model.ParseFromString(after)
    found = [(prop.key, prop.value) for prop in model.metadata_props]
    assert dict(found) == foreign | written
    assert len(found) == len(dict(found))


# Whole files -----------------------------------------------------------------------------


def pieces_of(model):
    """Return the bytes of each field of a model, one by one."""
    return [field for _, field in outermost(model.SerializeToString())]


def entry(key, value):
    return onnx.ModelProto(metadata_props=[{"key": key, "value": value}]).SerializeToString()


def with_functions():
    model = small_model()
    node = helper.make_node("Add", ["a", "a"], ["b"])
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "Double", ["a"], ["b"], [node], opset))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


@settings(max_examples=120)
@given(
    data=st.data(),
    entries=st.lists(st.tuples(TEXT.map("z{}".format), LONG), max_size=6),
    ours=st.dictionaries(
        TEXT.map("hf_x{}".format), LONG.filter(lambda text: "//" not in text), max_size=4
    ),
    old=st.lists(st.tuples(TEXT.map("hfflows_{}".format), LONG), max_size=3),
    in_place=st.booleans(),
)
def test_fields_in_any_order_are_read_and_written_as_others_do(
    tmp_path_factory, data, entries, ours, old, in_place
):
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    model = with_functions() if data.draw(st.booleans()) else small_model()
    unknown = data.draw(st.sampled_from([[], [b"\xf8\x01\x05"], [b"\xfa\x01\x03abc"]]))
    props = [entry(key, value) for key, value in [*entries, *old]]
    content = b"".join(data.draw(st.permutations([*pieces_of(model), *unknown, *props])))
    path.write_bytes(content)
    theirs = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert read_onnx_metadata(path) == theirs

    written = inject_hub_metadata(path, HUB | ours, in_place=in_place)
    after = path.read_bytes()
    check_written(content, after, written)
    assert list(read_onnx_metadata(path))[-1] == DIGEST
    onnx.checker.check_model(after)
    session = onnxruntime.InferenceSession(after, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == read_onnx_metadata(path)
    inject_hub_metadata(path, HUB | ours, in_place=not in_place)
    assert path.read_bytes() == after


# Damaged files ---------------------------------------------------------------------------

WHOLE = small_model({"author": "someone", "hf_old": "x" * 200, "tokens": "a,b"})
SAMPLES = [
    WHOLE.SerializeToString(),
    with_functions().SerializeToString(),
    b"".join(reversed(pieces_of(WHOLE))),
    entry("first", "1") + small_model({"last": "2"}).SerializeToString(),
]
NUMBERS = [0, 1, 127, 128, 1 << 14, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


@st.composite
def damaged(draw):
    """Return a model with some bytes changed, cut out, put in, or taken from another."""
    content = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        how = draw(st.sampled_from(["flip", "cut", "insert", "number", "splice", "end", "repeat"]))
        if how == "flip" and at < len(content):
            content[at] ^= draw(st.integers(1, 255))
        elif how == "cut":
            del content[at : at + draw(st.integers(1, 40))]
        elif how == "insert":
            content[at:at] = draw(st.binary(max_size=12))
        elif how == "number":
            content[at : at + 2] = varint(draw(st.sampled_from(NUMBERS)))
        elif how == "splice":
            other = draw(st.sampled_from(SAMPLES))
            begin = draw(st.integers(0, len(other)))
            content[at:at] = other[begin : begin + draw(st.integers(1, 300))]
        elif how == "end":
            del content[at:]
        else:
            begin = draw(st.integers(0, at))
            content[at:at] = content[begin:at] * draw(st.integers(1, 3))
    return bytes(content)


@settings(max_examples=500)
@given(content=damaged() | st.binary(max_size=200), in_place=st.booleans())
@example(content=b"", in_place=True)
@example(content=b"\x3a\x00\x42\x00\x08\x01", in_place=True)
def test_damage_is_an_error_or_harmless(tmp_path_factory, content, in_place):
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(content)
    try:
        entries = read_onnx_metadata(path)
    except hfflows.MetadataError:
        entries = None
    try:
        written = inject_hub_metadata(path, HUB, in_place=in_place)
    except hfflows.MetadataError:
        assert path.read_bytes() == content
        return
    assert entries is not None
    check_written(content, path.read_bytes(), written)
    assert read_onnx_metadata(path).items() >= written.items()


@given(content=damaged(), cuts=st.lists(st.integers(0, 3000), max_size=20))
def test_a_stream_of_pieces_gives_what_a_file_does(content, cuts):
    def read(offset, length):
        assert offset >= 0
        assert 0 < length <= len(content) - offset
        return content[offset : offset + length]

    def result(stream):
        try:
            return read_onnx_metadata(stream)
        except hfflows.MetadataError as error:
            return str(error).partition(" ")[2]

    ranged, plain = RangedFile(read, len(content), "The stream"), io.BytesIO(content)
    for position in cuts:
        ranged.seek(position)
        plain.seek(position)
        assert ranged.read(position % 97) == plain.read(position % 97)
        assert ranged.tell() == plain.tell()
    assert ranged.seek(-1, io.SEEK_END) == len(content) - 1 if content else True
    ours, theirs = result(ranged), result(plain)
    if isinstance(theirs, dict):
        assert ours == theirs
    else:
        assert isinstance(ours, str)


@given(offsets=st.lists(st.integers(0, 3_000_000), min_size=1, max_size=8))
def test_a_stream_of_pieces_reads_right_wherever_it_is_asked(offsets):
    stream = RangedFile(lambda at, length: NUMBERED[at : at + length], len(NUMBERED), "x")
    for offset in offsets:
        stream.seek(offset)
        assert stream.read(20_000) == NUMBERED[offset : offset + 20_000]


# Files that cost -------------------------------------------------------------------------

HEAD = onnx.ModelProto(ir_version=9, opset_import=[{"version": 17}]).SerializeToString()
GRAPH = onnx.ModelProto(graph=small_model().graph).SerializeToString()
HOLE = 1_500_000_000
COSTLY = {
    "an-entry-as-large-as-a-model": (HEAD + GRAPH + b"\x72" + varint(HOLE), HOLE),
    "an-opset-as-large-as-a-model": (HEAD + GRAPH + b"\x42" + varint(HOLE), HOLE),
    "a-graph-that-is-a-hole": (HEAD + b"\x3a" + varint(HOLE), HOLE),
    "more-than-the-file-has": (HEAD + GRAPH + b"\x3a" + varint(1 << 60), 0),
    "fields-without-end": (HEAD + GRAPH + b"\x28\x00" * 400_000, 0),
    "entries-without-end": (HEAD + GRAPH + b"\x72\x00" * 400_000, 0),
    "one-opset-of-many-parts": (HEAD + GRAPH + b"\x42" + varint(400_001) + b"\x10" * 400_001, 0),
    "zeros": (b"", HOLE),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_would_cost_much_is_refused_soon(tmp_path, name):
    content, hole = COSTLY[name]
    path = tmp_path / f"{name}.onnx"
    with path.open("wb") as file:
        file.write(content)
        file.truncate(len(content) + hole)
    tracemalloc.start()
    began = time.perf_counter()
    try:
        for function in (read_onnx_metadata, lambda path: inject_hub_metadata(path, HUB)):
            with pytest.raises(hfflows.MetadataError, match=name):
                function(path)
        took, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16_000_000
    assert took < 20  # seconds, tracing and a busy machine included
    assert path.stat().st_size == len(content) + hole


def test_a_message_in_a_message_in_a_message_is_not_followed(tmp_path):
    content = b""
    for _ in range(5_000):
        content = b"\x3a" + varint(len(content)) + content
    (tmp_path / "deep.onnx").write_bytes(HEAD + content)
    with pytest.raises(hfflows.MetadataError, match="deep"):
        read_onnx_metadata(tmp_path / "deep.onnx")


# External data ---------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
def test_a_graph_with_external_data_runs_as_before(tmp_path, in_place):
    model = small_model()
    del model.graph.initializer[:]
    weights = helper.make_tensor("one", TensorProto.FLOAT, [1000], [3.0] * 1000)
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights), "one")
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    before = (tmp_path / "w.data").read_bytes()
    inject_hub_metadata(path, HUB | {"hf_x": "é" * 5_000}, in_place=in_place)

    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = onnx.numpy_helper.to_array(weights)
    assert (session.run(None, {"x": x})[0] == x + 3).all()
    assert (tmp_path / "w.data").read_bytes() == before
