import os
import re
import subprocess
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hfflows.artifacts._packed as packed
import hfflows.artifacts._pipeline as pipeline
import hfflows.artifacts._read as reading
import hfflows.artifacts._runs as runs
from hfflows import keys
from hfflows.artifacts import (
    Announced,
    LocalFile,
    Sources,
    TransferReport,
    commit_artifact,
    delete_artifact,
    list_artifacts,
    load_artifact,
    matches,
    open_file,
    read_tree,
    save_artifact,
    select,
    verify_artifact,
)
from hfflows.errors import (
    ArtifactNotFoundError,
    DiskSpaceError,
    IntegrityError,
    SettingsError,
    StorageUnavailableError,
    TargetError,
    UnsafePathError,
)
from hfflows.storage import open_store
from hfflows.testing import FaultyStore
from tests.artifacts.support import content_of, new_store

LAYOUTS = ["packed", "files", "tar"]


def write_tree(root, files):
    for path, data in files.items():
        location = root / path
        location.parent.mkdir(parents=True, exist_ok=True)
        location.write_bytes(data)
    return root


@pytest.fixture
def source(tmp_path):
    root = write_tree(
        tmp_path / "source",
        {
            "config.json": b"{}",
            "weights.bin": os.urandom(3 * (1 << 20) + 17),
            "deep/er/vocab.txt": b"word\n" * 100,
            "zero": b"",
            "a?1": b"1",
            "a?2": b"2",
            "new\nline": b"n",
            "ünï cödé #%+": b"u",
            "n" * 250: b"long",
        },
    )
    (root / "empty").mkdir()
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "deep" / "link").symlink_to("../run.sh")
    return root


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_directory_comes_back_as_it_was(store, source, tmp_path, layout):
    ref = save_artifact(source, name="m", storage_format=layout, store=store)
    path = load_artifact(ref, tmp_path / "out", store=store)

    assert (
        subprocess.run(["diff", "-r", "--no-dereference", source, path], check=False).returncode
        == 0
    )
    assert os.access(path / "run.sh", os.X_OK)
    assert not os.access(path / "config.json", os.X_OK)
    assert (path / "empty").is_dir()
    assert str((path / "deep" / "link").readlink()) == "../run.sh"
    assert ref.size_bytes == sum(map(len, content_of(source).values()))


def test_all_layouts_name_equal_content_by_one_digest(memory_store, source):
    refs = [
        save_artifact(source, name="m", storage_format=layout, store=memory_store)
        for layout in LAYOUTS
    ]

    assert len({ref.digest for ref in refs}) == 1
    assert len({ref.key for ref in refs}) == len(LAYOUTS)


def test_layout_files_leaves_objects_that_other_tools_can_read(memory_store, source):
    ref = save_artifact(source, name="team/m", storage_format="files", store=memory_store)

    assert memory_store.get(keys.files_prefix(ref.key) + "config.json") == b"{}"
    assert keys.files_prefix(ref.key).startswith("files/model/team/m/")


def test_a_single_file_is_saved_under_its_own_name(memory_store, source, tmp_path):
    ref = save_artifact(source / "config.json", name="m", store=memory_store)

    assert content_of(load_artifact(ref, tmp_path / "o", store=memory_store)) == {
        "config.json": b"{}"
    }


def test_a_key_or_a_dict_loads_as_the_reference_does(memory_store, source, tmp_path):
    ref = save_artifact(source, name="m", store=memory_store)

    for number, form in enumerate((ref.key, ref.model_dump(mode="json"), ref)):
        out = load_artifact(form, tmp_path / str(number), store=memory_store)
        assert content_of(out) == content_of(source)


def test_the_reference_remembers_its_store(memory_store, source):
    ref = save_artifact(source, name="m", store=memory_store)

    path = load_artifact(ref)  # no store given

    assert content_of(path) == content_of(source)


def test_patterns_move_only_the_bytes_they_select(local_s3, source, tmp_path):
    store = open_store(local_s3.url("patterns"), **local_s3.options())
    ref = save_artifact(source, name="m", storage_format="packed", store=store)
    _received, sent_before = local_s3.traffic()

    path = load_artifact(ref, tmp_path / "o", allow_patterns="*.json", store=store)

    assert content_of(path) == {"config.json": b"{}"}
    assert local_s3.traffic()[1] - sent_before < 100_000


@given(
    files=st.dictionaries(
        st.text("abcd", min_size=1, max_size=3), st.binary(max_size=700), max_size=9
    )
)
def test_any_mix_of_sizes_survives_packing(files):
    """Sizes around every boundary: the limits are shrunk, not the logic."""
    with pytest.MonkeyPatch.context() as patch, TemporaryTree(files) as (root, out):
        patch.setattr(pipeline, "OBJECT_BYTES", 128)
        patch.setattr(packed, "PACK_BELOW_BYTES", 64)
        patch.setattr(pipeline, "LOOK_BEFORE_BYTES", 100)
        patch.setattr(runs, "RUN_BYTES", 128)
        store = open_store(f"memory://{root}")
        ref = save_artifact(root, name="m", storage_format="packed", store=store)

        assert content_of(load_artifact(ref, out, store=store)) == files
        assert all(info.size_bytes <= 128 for info in store.list("objects/"))


class TemporaryTree:
    def __init__(self, files):
        self.files = files

    def __enter__(self):
        import tempfile
        from pathlib import Path

        self.holder = tempfile.TemporaryDirectory()
        root = Path(self.holder.name)
        (root / "in").mkdir()
        return write_tree(root / "in", self.files), root / "out"

    def __exit__(self, *_error):
        self.holder.cleanup()


# Deduplication ---------------------------------------------------------------------------


def test_nothing_is_sent_twice(store, source):
    save_artifact(source, name="m", storage_format="packed", store=store)
    report = TransferReport()

    save_artifact(source, name="again", storage_format="packed", report=report, store=store)

    assert report.bytes_covered > 3 << 20
    assert report.bytes_sent < 64 << 10


def test_one_changed_file_sends_that_file(store, tmp_path):
    root = write_tree(tmp_path / "s", {f"{n}.bin": os.urandom(2 << 20) for n in range(4)})
    base = save_artifact(root, name="m", storage_format="packed", store=store)
    (root / "2.bin").write_bytes(os.urandom(2 << 20))
    report = TransferReport()

    save_artifact(root, name="m", storage_format="packed", base=base, report=report, store=store)

    assert report.bytes_sent == 2 << 20


def test_content_announced_by_its_digest_is_not_read_again(memory_store, tmp_path):
    root = write_tree(tmp_path / "s", {"w.safetensors": os.urandom(5 << 20)})
    saved = read_tree(save_artifact(root, name="m", store=memory_store), store=memory_store)
    source = announced_file(root / "w.safetensors", saved.files[0].sha256)
    reports = [TransferReport(), TransferReport()]

    for report in reports:
        commit_artifact(
            Sources(files=[source]),
            key=keys.artifact("model", "m", id=keys.new_id()),
            kind="model",
            name="m",
            report=report,
            store=memory_store,
        )

    assert [report.bytes_read for report in reports] == [5 << 20, 0]


def test_bytes_that_are_not_what_was_announced_are_never_committed(memory_store, tmp_path):
    root = write_tree(tmp_path / "s", {"w": b"other bytes"})

    with pytest.raises(IntegrityError, match="announced"):
        commit_artifact(
            Sources(files=[announced_file(root / "w", "0" * 64)]),
            key=keys.artifact("model", "m", id=keys.new_id()),
            kind="model",
            name="m",
            store=memory_store,
        )

    assert list_artifacts(store=memory_store) == []


def announced_file(location, sha256):
    status = location.stat()
    return LocalFile(
        location.name,
        status.st_size,
        False,
        location,
        status.st_mtime_ns,
        Announced("sha256", sha256),
    )


# Damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_flipped_byte_anywhere_is_found_and_named(memory_store, source, tmp_path, layout):
    ref = save_artifact(source, name="m", storage_format=layout, store=memory_store)
    for info in list(memory_store.list("")):
        good = memory_store.get(info.key)
        if not good:
            continue
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 0x40
        memory_store.put(info.key, bytes(bad))

        with pytest.raises(IntegrityError, match=r".") as caught:
            load_artifact(ref.key, tmp_path / "o", store=memory_store)

        assert info.key in str(caught.value)
        assert not (tmp_path / "o").exists()
        assert list(tmp_path.iterdir()) == [source]
        memory_store.put(info.key, good)
    load_artifact(ref.key, tmp_path / "o", store=memory_store)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_or_short_object_is_an_error_that_names_the_file(store, source, tmp_path, layout):
    ref = save_artifact(source, name="m", storage_format=layout, store=store)
    file = next(f for f in read_tree(ref, store=store).files if f.path == "weights.bin")
    key, end = file.segments[0].key, file.segments[0].offset + file.segments[0].length
    short = store.get(key)[: end - 1]

    for damage in (lambda: store.put(key, short), lambda: store.delete([key])):
        damage()
        with pytest.raises(IntegrityError, match=re.escape(key)):
            load_artifact(ref, tmp_path / "o", store=store)
        with pytest.raises(IntegrityError, match=r"weights\.bin"):
            verify_artifact(ref, store=store)
        assert not (tmp_path / "o").exists()


def test_a_sound_artifact_verifies(memory_store, source):
    ref = save_artifact(source, name="m", store=memory_store)

    verify_artifact(ref, store=memory_store)


def test_a_tree_of_another_artifact_is_refused(memory_store, source, tmp_path):
    one = save_artifact(source, name="one", store=memory_store)
    (source / "config.json").write_bytes(b"[]")
    other = save_artifact(source, name="other", store=memory_store)
    memory_store.put(keys.tree(one.key), memory_store.get(keys.tree(other.key)))

    with pytest.raises(IntegrityError, match="other files"):
        load_artifact(one, tmp_path / "o", store=memory_store)


# Bad input -------------------------------------------------------------------------------


def test_a_missing_path_is_refused_and_leaves_nothing(memory_store, tmp_path):
    with pytest.raises(SettingsError, match="nothing to save"):
        save_artifact(tmp_path / "nope", name="m", store=memory_store)

    assert list(memory_store.list("")) == []


@pytest.mark.parametrize(
    "metadata", [{"when": object()}, {"nan": float("nan")}, {1: "x"}, {"b": b"bytes"}]
)
def test_metadata_that_is_no_json_is_refused_before_any_upload(memory_store, source, metadata):
    with pytest.raises(SettingsError, match="metadata"):
        save_artifact(source, name="m", metadata=metadata, store=memory_store)

    assert list(memory_store.list("")) == []


def test_a_link_out_of_the_directory_is_refused_before_any_upload(memory_store, source):
    (source / "secret").symlink_to("/etc/passwd")

    with pytest.raises(UnsafePathError, match="secret"):
        save_artifact(source, name="m", store=memory_store)

    assert list(memory_store.list("")) == []


def test_a_pipe_is_refused(memory_store, source):
    os.mkfifo(source / "pipe")

    with pytest.raises(SettingsError, match="pipe"):
        save_artifact(source, name="m", store=memory_store)


def test_an_unknown_layout_is_refused(memory_store, source):
    with pytest.raises(SettingsError, match="zip"):
        save_artifact(source, name="m", storage_format="zip", store=memory_store)


def test_a_file_that_changes_while_it_is_saved_is_an_error(memory_store, source):
    changing = announced_file(source / "weights.bin", "0" * 64)
    (source / "weights.bin").write_bytes(b"rewritten")

    with pytest.raises(IntegrityError, match="changed"):
        commit_artifact(
            Sources(files=[changing]),
            key=keys.artifact("model", "m", id=keys.new_id()),
            kind="model",
            name="m",
            store=memory_store,
        )


def test_a_directory_with_something_in_it_is_never_mixed_into(memory_store, source, tmp_path):
    ref = save_artifact(source, name="m", store=memory_store)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine").write_text("keep")

    with pytest.raises(TargetError, match="not empty"):
        load_artifact(ref, tmp_path / "o", store=memory_store)
    with pytest.raises(TargetError, match="is a file"):
        load_artifact(ref, source / "config.json", store=memory_store)

    assert content_of(tmp_path / "o") == {"mine": b"keep"}


def test_an_empty_directory_is_filled(memory_store, source, tmp_path):
    ref = save_artifact(source, name="m", store=memory_store)
    (tmp_path / "o").mkdir()

    assert content_of(load_artifact(ref, tmp_path / "o", store=memory_store)) == content_of(source)


def test_a_disk_too_small_is_said_before_the_first_byte(
    memory_store, source, tmp_path, monkeypatch
):
    ref = save_artifact(source, name="m", store=memory_store)
    small = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr(reading.shutil, "disk_usage", lambda _path: small)

    with pytest.raises(DiskSpaceError, match="1,048,576 bytes free"):
        load_artifact(ref, tmp_path / "o", store=memory_store)

    assert list(tmp_path.iterdir()) == [source]


def test_a_really_full_disk_leaves_nothing_behind(memory_store, source, tmp_path, monkeypatch):
    """A file size limit makes writes fail half way, as a full disk does."""
    import resource
    import signal

    ref = save_artifact(source, name="m", store=memory_store)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(TargetError, match="Nothing was left"):
            load_artifact(ref, tmp_path / "o", store=memory_store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert list(tmp_path.iterdir()) == [source]


def test_an_unknown_key_says_that_nothing_is_there(memory_store):
    key = keys.artifact("model", "m", id=keys.new_id())

    with pytest.raises(ArtifactNotFoundError, match="never saved there, or it was deleted"):
        load_artifact(key, store=memory_store)
    with pytest.raises(SettingsError, match="not the key"):
        load_artifact("models/m", store=memory_store)


def test_an_unreachable_store_leaves_no_directory_behind(local_s3, source, tmp_path):
    options = local_s3.options()
    ref = save_artifact(source, name="m", store=open_store(local_s3.url("un"), **options))
    dead = open_store(local_s3.url("un"), **options | {"endpoint": "http://127.0.0.1:9"})

    with pytest.raises(StorageUnavailableError):
        load_artifact(ref, tmp_path / "o", store=dead)

    assert list(tmp_path.iterdir()) == [source]


# Listing and deleting --------------------------------------------------------------------


def test_listing_is_newest_first_by_kind_and_name(store, source):
    refs = [
        save_artifact(source / "config.json", kind=kind, name=name, store=store)
        for kind, name in [("model", "a"), ("model", "a"), ("model", "b/c"), ("export", "a")]
    ]

    assert list_artifacts("model", store=store) == [refs[1], refs[0], refs[2]]
    assert list_artifacts("model", prefix="b", store=store) == [refs[2]]
    assert len(list_artifacts(store=store)) == 4
    with pytest.raises(SettingsError):
        list_artifacts(prefix="a", store=store)


def test_a_deleted_artifact_is_gone_and_its_neighbours_are_not(store, source, tmp_path):
    one, other = (save_artifact(source, name=name, store=store) for name in ("v1", "v10"))

    delete_artifact(one, store=store)

    assert list_artifacts(store=store) == [other]
    with pytest.raises(ArtifactNotFoundError):
        load_artifact(one.key, tmp_path / "o", store=store)
    load_artifact(other.key, tmp_path / "o", store=store)


class Chopped(FaultyStore):
    """A store whose streamed ranges come in pieces of the sizes given, over and over."""

    def __init__(self, store, sizes):
        super().__init__(store)
        self._sizes = sizes

    def stream_range(self, key, offset, length):
        data = b"".join(map(bytes, super().stream_range(key, offset, length)))
        sizes = cycle(self._sizes)
        while data:
            size = next(sizes)
            yield data[:size]
            data = data[size:]


@given(
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    layout=st.sampled_from(LAYOUTS),
    chosen=st.sampled_from([None, ["b*"], ["a", "c", "deep/*"]]),
    damaged=st.booleans(),
)
def test_bytes_that_arrive_in_any_pieces_land_where_they_belong(sizes, layout, chosen, damaged):
    files = {"a": b"a" * 300, "b1": b"", "b2": b"b" * 999, "c": b"c", "deep/d": bytes(2000)}
    with pytest.MonkeyPatch.context() as patch, TemporaryTree(files) as (root, out):
        patch.setattr(pipeline, "OBJECT_BYTES", 512)
        store = new_store()
        ref = save_artifact(root, name="m", storage_format=layout, store=store)
        if damaged:
            segment = select(read_tree(ref, store=store), chosen, None).files[-1].segments[0]
            data = bytearray(store.get(segment.key))
            data[segment.offset] ^= 1
            store.put(segment.key, bytes(data))
            with pytest.raises(IntegrityError, match=re.escape(segment.key)):
                load_artifact(ref, out, allow_patterns=chosen, store=Chopped(store, sizes))
            assert not out.exists()
            return
        load_artifact(ref, out, allow_patterns=chosen, store=Chopped(store, sizes))
        wanted = {path for path in files if matches(path, chosen, None)}
        assert {path: (out / path).read_bytes() for path in wanted} == {
            path: files[path] for path in wanted
        }


# Random access ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_opens_for_random_access(memory_store, source, layout, monkeypatch):
    monkeypatch.setattr(pipeline, "OBJECT_BYTES", 1 << 20)
    ref = save_artifact(source, name="m", storage_format=layout, store=memory_store)
    expected = (source / "weights.bin").read_bytes()

    with open_file(ref, "weights.bin", store=memory_store) as stream:
        assert stream.read(10) == expected[:10]
        assert stream.seek(-5, os.SEEK_END) == len(expected) - 5
        assert stream.read() == expected[-5:]
        assert stream.seek((1 << 20) - 3) == (1 << 20) - 3
        assert stream.read(6) == expected[(1 << 20) - 3 : (1 << 20) + 3]
        stream.seek(0)
        assert stream.read() == expected
    with pytest.raises(ArtifactNotFoundError, match="nope"):
        open_file(ref, "nope", store=memory_store)
