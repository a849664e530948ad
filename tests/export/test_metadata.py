import io
import os
import stat
import struct

import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import hfflows
from hfflows.export import check_onnx_files, inject_hub_metadata, read_onnx_metadata
from hfflows.export._metadata import LARGEST_BYTES
from hfflows.export._schema import DIGEST, EXPORT_TIMESTAMP

COMMIT = "c0ffee" + "0" * 34
HUB = {
    "hf_model_type": "hub",
    "hf_hub_id": "org/model",
    "hf_hub_revision": COMMIT,
    EXPORT_TIMESTAMP: "2026-11-21T09:00:00+00:00",
}
FOREIGN = {"author": "someone", "tokens": "a,b", "empty": ""}


def small_model(metadata=None):
    """Return `y = x + 1` on floats."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    graph = helper.make_graph([helper.make_node("Add", ["x", "one"], ["y"])], "g", [x], [y], [one])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="test"
    )
    helper.set_model_props(model, metadata or {})
    return model


@pytest.fixture
def path(tmp_path):
    onnx.save(small_model(FOREIGN), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture(params=[False, True], ids=["atomic", "in-place"])
def in_place(request):
    return request.param


def graph_bytes(path):
    return onnx.load(path).graph.SerializeToString(deterministic=True)


def test_onnx_and_the_runtime_read_what_was_written(path, in_place):
    graph = graph_bytes(path)
    written = inject_hub_metadata(path, HUB, in_place=in_place)

    assert written.items() >= HUB.items()
    assert read_onnx_metadata(path) == FOREIGN | written
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path))
    assert session.get_modelmeta().custom_metadata_map == FOREIGN | written
    assert {item.key: item.value for item in onnx.load(path).metadata_props} == FOREIGN | written
    assert graph_bytes(path) == graph
    assert onnx.load(path).producer_name == "test"
    assert list(written)[-1] == DIGEST


def test_the_same_metadata_again_gives_the_same_bytes(path, in_place):
    inject_hub_metadata(path, HUB, in_place=in_place)
    first = path.read_bytes()
    inject_hub_metadata(path, HUB, in_place=not in_place)

    assert path.read_bytes() == first


def test_old_entries_of_ours_are_replaced(path, in_place):
    inject_hub_metadata(path, HUB | {"hf_license": "mit"}, in_place=in_place)
    inject_hub_metadata(path, HUB | {"hf_task": "x"}, in_place=in_place)

    found = read_onnx_metadata(path)
    assert "hf_license" not in found
    assert found["hf_task"] == "x"


def test_values_become_text_and_none_is_left_out(path):
    written = inject_hub_metadata(
        path, HUB | {"hf_private": True, "hf_opset": 17, "hf_license": None, "hf_gated": "auto"}
    )

    assert (written["hf_private"], written["hf_opset"], written["hf_gated"]) == (
        "true",
        "17",
        "auto",
    )
    assert "hf_license" not in written


def test_source_date_epoch_decides_the_timestamp(path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    metadata = {key: value for key, value in HUB.items() if key != EXPORT_TIMESTAMP}

    assert inject_hub_metadata(path, metadata)[EXPORT_TIMESTAMP] == "2023-11-14T22:13:20+00:00"


@given(
    entries=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map("hf_x{}".format),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=400).filter(
            lambda text: "//" not in text
        ),
        max_size=8,
    ),
    foreign=st.dictionaries(
        st.text(min_size=1, max_size=9).map("z{}".format), st.text(max_size=50)
    ),
    in_place=st.booleans(),
)
def test_any_text_survives(tmp_path_factory, entries, foreign, in_place):
    path = tmp_path_factory.mktemp("x") / "model.onnx"
    foreign = {k: v for k, v in foreign.items() if (k + v).isprintable()}
    onnx.save(small_model(foreign), path)
    inject_hub_metadata(path, HUB | entries, in_place=in_place)

    found = read_onnx_metadata(path)
    assert found.items() >= (foreign | HUB | entries).items()
    assert {item.key: item.value for item in onnx.load(path).metadata_props} == found


@given(data=st.data())
def test_no_damage_makes_other_hub_metadata(tmp_path_factory, data):
    """Every cut and flip is an error, or leaves the Hub entries as they were, or drops them."""
    path = tmp_path_factory.mktemp("x") / "model.onnx"
    onnx.save(small_model(FOREIGN), path)
    written = inject_hub_metadata(path, HUB)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = read_onnx_metadata(io.BytesIO(bytes(content)))
    except hfflows.MetadataError:
        return
    ours = {key: value for key, value in found.items() if key.startswith("hf")}
    assert ours == written or DIGEST not in ours


# Entries that would lead nowhere ---------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hf_hub_revision": COMMIT[:8]}, "40 hex digits"),
        ({"hf_hub_revision": None}, "leads back"),
        ({"hf_hub_id": None}, "leads back"),
        ({"hf_model_type": "hub_unverified"}, "'hub' or 'local'"),
        ({"hf_model_type": None}, "'hub' or 'local'"),
        ({"author": "me"}, "begin with"),
        ({"hf_tags": ["a"]}, "must be text"),
        ({"hf_x": float("nan")}, "finite"),
        ({"hf_x": "\ud800"}, "Unicode"),
        ({EXPORT_TIMESTAMP: "yesterday"}, "ISO 8601"),
        ({"hfflows_store_url": "https://key:secret@host/b"}, "user or password"),
    ],
)
def test_bad_entries_are_refused_and_the_file_is_unchanged(path, changes, said):
    before = path.read_bytes()
    with pytest.raises(hfflows.MetadataError, match=said) as caught:
        inject_hub_metadata(path, HUB | changes)

    assert path.read_bytes() == before
    assert "secret" not in str(caught.value)


# Files that are something else -----------------------------------------------------------

SAFETENSORS = (8).to_bytes(8, "little") + b'{"a":1}  ' + bytes(64)
MODEL = small_model(FOREIGN).SerializeToString()
BAD_FILES = {
    "empty": b"",
    "text": b"ONNX model\n" * 10,
    "html": b"<!DOCTYPE html><html></html>",
    "json": b'{"a": 1}',
    "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "zip": b"PK\x03\x04" + bytes(60),
    "safetensors": SAFETENSORS,
    "zeros": bytes(1000),
    "random": bytes(range(256)) * 8,
    "ort": b"\x18\0\0\0ORTM" + bytes(100),
    "cut-in-the-graph": MODEL[:60],
    "cut-in-the-tail": MODEL[:-2],
    "two-graphs": MODEL + b"\x3a" + bytes([len(small_model().graph.SerializeToString()) & 0x7F]),
    "no-graph": onnx.ModelProto(ir_version=8).SerializeToString(),
    "tensor": helper.make_tensor("t", TensorProto.FLOAT, [2], [1, 2]).SerializeToString(),
    "concatenated": MODEL + MODEL,
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_not_an_onnx_model_says_so(tmp_path, name):
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(BAD_FILES[name])

    with pytest.raises(hfflows.MetadataError, match=name):
        read_onnx_metadata(path)
    with pytest.raises(hfflows.MetadataError):
        inject_hub_metadata(path, HUB)
    assert path.read_bytes() == BAD_FILES[name]
    assert os.listdir(tmp_path) == [path.name]


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(hfflows.SettingsError, match="cannot be opened"):
        read_onnx_metadata(tmp_path / "no.onnx")
    with pytest.raises(hfflows.SettingsError, match="cannot be opened"):
        inject_hub_metadata(tmp_path / "no.onnx", HUB)


# The file system -------------------------------------------------------------------------


def test_a_symlink_is_refused_and_a_hard_link_is_left_alone(path, tmp_path, in_place):
    (tmp_path / "link.onnx").symlink_to(path)
    (tmp_path / "hard.onnx").hardlink_to(path)
    before = path.read_bytes()

    with pytest.raises(hfflows.SettingsError, match="symlink"):
        inject_hub_metadata(tmp_path / "link.onnx", HUB, in_place=in_place)
    inject_hub_metadata(tmp_path / "hard.onnx", HUB, in_place=in_place)
    assert path.read_bytes() == before
    assert "hf_hub_id" in read_onnx_metadata(tmp_path / "hard.onnx")


def test_mode_is_kept_and_nothing_is_left_beside(path, tmp_path, in_place):
    path.chmod(0o640)
    inject_hub_metadata(path, HUB, in_place=in_place)

    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_a_file_that_would_pass_two_gigabytes_is_refused_and_unchanged(tmp_path):
    path = tmp_path / "large.onnx"
    model = small_model()
    head = model.SerializeToString()
    # A huge doc_string (field 6) that is a hole in a sparse file.
    length = LARGEST_BYTES - len(head) - 100
    varint = bytearray()
    rest = length
    while rest > 0x7F:
        varint.append(rest & 0x7F | 0x80)
        rest >>= 7
    varint.append(rest)
    with path.open("wb") as file:
        file.write(head + b"\x32" + bytes(varint))
        file.truncate(file.tell() + length)
    size = path.stat().st_size

    assert read_onnx_metadata(path) == {}
    with pytest.raises(hfflows.SettingsError, match="external data"):
        inject_hub_metadata(path, HUB)
    assert path.stat().st_size == size


def test_metadata_is_read_from_a_stored_artifact_by_range(path, store):
    inject_hub_metadata(path, HUB)
    ref = hfflows.save_artifact(path.parent, kind="export", name="x", store=store)

    with hfflows.open_file(ref, "model.onnx", store=store) as stream:
        assert read_onnx_metadata(stream)["hf_hub_id"] == "org/model"


# External data ---------------------------------------------------------------------------


@pytest.fixture
def external(tmp_path):
    directory = tmp_path / "external"
    directory.mkdir()
    model = small_model()
    del model.graph.initializer[:]
    ones = struct.pack("<4096f", *[1.0] * 4096)
    weights = helper.make_tensor("one", TensorProto.FLOAT, [4096], ones, raw=True)
    model.graph.initializer.append(weights)
    onnx.save(
        model, directory / "model.onnx", save_as_external_data=True, location="model.onnx.data"
    )
    return directory


def test_external_data_is_untouched_and_listed(external, in_place):
    before = (external / "model.onnx.data").read_bytes()
    inject_hub_metadata(external / "model.onnx", HUB, in_place=in_place)

    assert (external / "model.onnx.data").read_bytes() == before
    assert (external / "model.onnx").stat().st_size < 2000
    assert check_onnx_files(external) == ["model.onnx", "model.onnx.data"]


def test_a_set_that_is_not_whole_is_refused(external, tmp_path):
    data = external / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(hfflows.ExportError, match="16,383 bytes long"):
        check_onnx_files(external)
    data.unlink()
    with pytest.raises(hfflows.ExportError, match="missing"):
        check_onnx_files(external)
    (tmp_path / "outside").write_bytes(bytes(20_000))
    data.symlink_to(tmp_path / "outside")
    with pytest.raises(hfflows.ExportError, match="outside"):
        check_onnx_files(external)
    with pytest.raises(hfflows.ExportError, match=r"no \.onnx file"):
        check_onnx_files(tmp_path / "nothing")
