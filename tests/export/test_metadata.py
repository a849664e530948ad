import contextlib
import io
import os
import resource
import shutil
import stat
import struct

import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import hfflows
from hfflows.export import (
    check_onnx_files,
    inject_hub_metadata,
    read_onnx_metadata,
)
from hfflows.export._onnx import _rewrite
from hfflows.export._onnx._file import LARGEST_BYTES
from hfflows.export._onnx._schema import DIGEST, EXPORT_TIMESTAMP
from hfflows.testing._store_wrapper import StoreWrapper

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


def test_what_was_read_can_be_written_again(path, in_place):
    inject_hub_metadata(path, HUB | {"hf_task": "x"})
    before = path.read_bytes()
    entries = {key: value for key, value in read_onnx_metadata(path).items() if key[:2] == "hf"}
    inject_hub_metadata(path, entries, in_place=in_place)

    assert path.read_bytes() == before


@pytest.mark.parametrize("by_kernel", [True, False])
def test_it_does_not_matter_in_how_many_pieces_a_file_is_copied(path, monkeypatch, by_kernel):
    twin = path.with_name("twin.onnx")
    shutil.copyfile(path, twin)
    inject_hub_metadata(twin, HUB)

    monkeypatch.setattr(_rewrite, "_COPY_BYTES", 7)
    if not by_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
        monkeypatch.delattr(os, "posix_fadvise", raising=False)
    inject_hub_metadata(path, HUB)
    assert path.read_bytes() == twin.read_bytes()


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
        ({"hf_x": ["a"]}, "must be text"),
        ({"hf_x": float("nan")}, "finite"),
        ({"hf_x": "\ud800"}, "Unicode"),
        ({EXPORT_TIMESTAMP: "yesterday"}, "ISO 8601"),
        ({"hfflows_store_url": "https://key:secret@host/b"}, "user or password"),
        ({"hf_x": "the token is hf_secret" + "a" * 30}, "token of the Hub"),
        ({"hf_hub_revision": "hf_secret" + "a" * 30}, "token of the Hub"),
        ({"hf_x": "x" * ((1 << 20) + 1)}, "1,048,577 bytes"),
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
    "gzip": b"\x1f\x8b\x08" + bytes(60),
    "textproto": b'ir_version: 9\ngraph {\n  name: "g"\n}\n',
    "weights-data": struct.pack("<64f", *range(64)),
    "safetensors": SAFETENSORS,
    "zeros": bytes(1000),
    "random": bytes(range(256)) * 8,
    "ort": b"\x18\0\0\0ORTM" + bytes(100),
    "cut-in-the-graph": MODEL[:60],
    "cut-in-the-tail": MODEL[:-2],
    "cut-in-a-graph-at-the-end": (
        onnx.ModelProto(ir_version=8, opset_import=[{"version": 17}]).SerializeToString()
        + onnx.ModelProto(graph=small_model().graph).SerializeToString()[:-4]
    ),
    "two-graphs": MODEL + onnx.ModelProto(graph=small_model().graph).SerializeToString(),
    "no-opset": onnx.ModelProto(ir_version=8, graph=small_model().graph).SerializeToString(),
    "a-string-of-200-MB": MODEL + b"\x72\x80\x80\x80\x64" + bytes(64),
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


def test_mode_and_owner_are_kept_and_nothing_is_left_beside(path, tmp_path, in_place):
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    owner = (path.stat().st_uid, path.stat().st_gid)
    path.chmod(0o640)
    inject_hub_metadata(path, HUB, in_place=in_place)

    assert (path.stat().st_uid, path.stat().st_gid) == owner
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


@pytest.fixture
def full_disk():
    """Let no file of this process grow past a size, which fails as a full disk does."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def at(size_bytes):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return at


def test_a_disk_that_is_full_half_way_leaves_the_file_as_it_was(path, full_disk, in_place):
    inject_hub_metadata(path, HUB)
    before = path.read_bytes()

    entries = HUB | {"hf_x": "x" * 100_000}
    with full_disk(len(before) + 5_000), pytest.raises(hfflows.TargetError, match="as it was"):
        inject_hub_metadata(path, entries, in_place=in_place)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_pipe_and_a_directory_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    for name in ("pipe.onnx", ""):
        with pytest.raises(hfflows.SettingsError, match="not a file"):
            read_onnx_metadata(tmp_path / name)
        with pytest.raises(hfflows.SettingsError, match="cannot be opened"):
            inject_hub_metadata(tmp_path / name, HUB, in_place=True)


# Where from ------------------------------------------------------------------------------


class Counting(StoreWrapper):
    """Counts ranged reads, and what they move."""

    def __init__(self, store):
        super().__init__(store)
        self.moved = []

    def _call(self, method, key, function):
        found = function()
        if method == "get_range":
            self.moved.append(len(memoryview(found).cast("B")))
        return found


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """Return a directory with a model of 40 MB, its metadata behind the weights."""
    path = tmp_path_factory.mktemp("heavy") / "model.onnx"
    model = small_model(FOREIGN)
    weights = helper.make_tensor("w", TensorProto.UINT8, [40_000_000], bytes(40_000_000), raw=True)
    model.graph.initializer.append(weights)
    onnx.save(model, path)
    inject_hub_metadata(path, HUB | {"hf_x": "x" * 5_000}, in_place=True)
    return path.parent


@pytest.mark.parametrize("how", ["reference", "dict", "key", "stream", "url"])
@pytest.mark.parametrize("storage_format", ["files", "packed", "tar"])
def test_two_small_pieces_are_moved_of_a_file_in_a_store(heavy, memory_store, how, storage_format):
    store = Counting(memory_store)
    ref = hfflows.save_artifact(
        heavy, kind="export", name="x", storage_format=storage_format, store=memory_store
    )
    if how == "stream":
        with hfflows.open_file(ref, "model.onnx", store=store) as stream:
            found = read_onnx_metadata(stream)
    elif how == "url":
        memory_store.put("plain/model.onnx", (heavy / "model.onnx").read_bytes())
        found = read_onnx_metadata(f"{memory_store.url}/plain/model.onnx", store=store)
    else:
        source = {"reference": ref, "dict": ref.model_dump(mode="json"), "key": ref.key}[how]
        found = read_onnx_metadata(source, store=store)

    assert found == read_onnx_metadata(heavy / "model.onnx")
    assert len(store.moved) <= 2
    assert sum(store.moved) <= 16 * 1024


def test_a_small_object_is_read_with_one_request(path, memory_store):
    memory_store.put("model.onnx", path.read_bytes())
    store = Counting(memory_store)

    assert read_onnx_metadata(f"{store.url}/model.onnx", store=store) == FOREIGN
    assert store.moved == [path.stat().st_size]


def test_metadata_of_any_size_come_from_any_store(path, store):
    inject_hub_metadata(path, HUB | {"hf_x": "x" * 300_000, "hf_y": "y" * 1_000_000})
    ref = hfflows.save_artifact(path.parent, kind="export", name="x", store=store)

    assert read_onnx_metadata(ref, store=store) == read_onnx_metadata(path)
    store.put("a b/model.onnx", path.read_bytes())
    url = f"{store.url}/a b/model.onnx"
    assert read_onnx_metadata(url, store=store) == read_onnx_metadata(path)


def test_a_url_names_its_store(path, tmp_path, memory_store):
    memory_store.put("model.onnx", path.read_bytes())

    assert read_onnx_metadata(f"{memory_store.url}/model.onnx") == FOREIGN
    assert read_onnx_metadata(path.as_uri()) == FOREIGN
    with pytest.raises(hfflows.ObjectNotFoundError, match="no object"):
        read_onnx_metadata(f"{memory_store.url}/other.onnx")
    with pytest.raises(hfflows.SettingsError, match="does not lie in"):
        read_onnx_metadata("s3://bucket/model.onnx", store=memory_store)
    with pytest.raises(hfflows.SettingsError, match="cannot be opened"):
        read_onnx_metadata((tmp_path / "none" / "model.onnx").as_uri())
    assert not (tmp_path / "none").exists()
    with pytest.raises(hfflows.SettingsError, match="no file on this machine"):
        inject_hub_metadata(f"{memory_store.url}/model.onnx", HUB)


@pytest.mark.parametrize("source", [None, 1, b"model.onnx", io.StringIO("x"), ["model.onnx"]])
def test_what_is_no_source_says_what_there_are(source):
    with pytest.raises(hfflows.SettingsError, match="got "):
        read_onnx_metadata(source)
    with pytest.raises(hfflows.SettingsError, match="got "):
        inject_hub_metadata(source, HUB)


def test_another_file_of_an_artifact_is_named(path, memory_store):
    path.rename(path.with_name("encoder_model.onnx"))
    ref = hfflows.save_artifact(path.parent, kind="export", name="x", store=memory_store)

    found = read_onnx_metadata(ref, file="encoder_model.onnx", store=memory_store)
    assert found == FOREIGN
    with pytest.raises(hfflows.ArtifactNotFoundError, match=r"no file 'model\.onnx'"):
        read_onnx_metadata(ref, store=memory_store)


def test_onnx_runtimes_own_format_is_read_with_it(path):
    written = inject_hub_metadata(path, HUB)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".ort"))
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    assert read_onnx_metadata(path.with_suffix(".ort")) == FOREIGN | written
    with pytest.raises(hfflows.MetadataError, match="ONNX Runtime's own format"):
        inject_hub_metadata(path.with_suffix(".ort"), HUB)


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
