"""Situations in which metaflow-checkpoint loses, mixes or hides data; here nothing is lost.

A save that is killed, a full disk and hostile archives are in `tests/artifacts`.
"""

import datetime
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from hfflows import keys
from hfflows.artifacts import (
    KeepNewest,
    collect_garbage,
    delete_artifact,
    lineage,
    list_artifacts,
    load_artifact,
    prune_artifacts,
    read_document,
    read_tree,
    save_artifact,
    verify_artifact,
)
from hfflows.artifacts._documents import encode_document
from hfflows.checkpoint import Checkpointer, load_model, save_model
from hfflows.errors import (
    AccessDeniedError,
    CheckpointNotFoundError,
    IntegrityError,
    SettingsError,
    StorageUnavailableError,
    UnsafePathError,
)
from hfflows.identity import RunIdentity
from hfflows.storage import open_store

ME = RunIdentity("team", "retrain", "train", run="run-1", attempt="001")
LAYOUTS = ["packed", "files", "tar"]
NOW = datetime.timedelta(0)
SECONDS = 20
"""What fails, fails sooner; the ancestor takes minutes."""


def write(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def content_of(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def save(store, files, identity=ME, layout="packed", **options):
    with Checkpointer(identity, load_policy="none", store=store) as checkpointer:
        write(checkpointer.directory, files)
        return checkpointer.save(storage_format=layout, **options)


def keys_in(store):
    return {info.key for info in store.list("")}


def content_keys(store):
    return {key for key in keys_in(store) if key.startswith(("objects/", "files/", "tars/"))}


def collect(store):
    for _ in range(2):
        collect_garbage(min_age=NOW, grace=NOW, abandoned_after=NOW, store=store)


# Damage in the store ----------------------------------------------------------------------

FILES = {"one.bin": os.urandom(2 << 20), "two.bin": os.urandom(2 << 20), "state.json": b"{}"}


def flip(store, objects):
    data = bytearray(store.get(objects[0]))
    data[len(data) // 4 : len(data) // 4 + 16] = bytes(16)
    store.put(objects[0], data)


def truncate(store, objects):
    store.put(objects[0], store.get(objects[0])[:-10_000])


def lose_one(store, objects):
    store.delete(objects[:1])


def lose_all(store, objects):
    store.delete(objects)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage", [flip, truncate, lose_one, lose_all])
def test_damage_is_an_error_that_names_the_file_and_the_one_before_is_resumed(
    store, tmp_path, layout, damage
):
    save(store, {"state": b"good"}, name="good")
    bad = save(store, FILES, layout=layout, name="bad")
    tree = read_tree(bad, store=store)
    largest = sorted(tree.object_keys(), key=lambda key: -len(store.get(key)))
    damage(store, largest)

    with pytest.raises(IntegrityError) as caught:
        load_model(bad, tmp_path / "out", store=store)
    assert caught.value.facts["path"] in FILES
    assert caught.value.facts["key"] in largest
    assert list(tmp_path.glob("*out*")) == []
    with Checkpointer(ME, store=store) as resumed:
        assert resumed.info.name == "good"
        assert content_of(resumed.directory) == {"state": b"good"}


def test_a_torn_reference_hides_no_other_checkpoint(store):
    whole = save(store, {"state": b"whole"}, name="whole")
    torn = save(store, {"state": b"torn"}, name="torn")
    store.put(torn.key, store.get(torn.key)[:100])

    with Checkpointer(ME, store=store) as resumed:
        assert resumed.info == whole
        assert resumed.list(name="whole") == [whole]
        with pytest.raises(IntegrityError, match="cut short or damaged") as caught:
            resumed.load(torn.key)
    assert caught.value.facts["key"] == torn.key


# One name ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_checkpointers_with_one_name_make_two_checkpoints(store, tmp_path, layout):
    refs = []
    for number in (1, 2):
        files = {f"{number}": b"own", "common": b"%d" % number}
        refs.append(save(store, files, layout=layout, name="same"))

    assert refs[0].key != refs[1].key
    for number, ref in enumerate(refs, start=1):
        path = load_model(ref, tmp_path / f"{number}", store=store)
        assert content_of(path) == {f"{number}": b"own", "common": b"%d" % number}
    with Checkpointer(ME, store=store) as resumed:
        assert resumed.info == refs[1]
        assert resumed.list(name="same") == refs[::-1]


SAVER = """
import sys
from hfflows import Checkpointer, RunIdentity
number = sys.argv[1]
me = RunIdentity("team", "retrain", "train", run="run-1", attempt="001")
with Checkpointer(me, load_policy="none") as checkpointer:
    (checkpointer.directory / number).write_text("own")
    (checkpointer.directory / "common").write_text(number)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(5):
        print(checkpointer.save(name="same", storage_format=sys.argv[2]).key, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["packed", "files"])
def test_two_processes_at_once_with_one_name_do_not_mix(local_s3, tmp_path, layout):
    url = local_s3.url(os.urandom(4).hex())
    environment = {**os.environ, **local_s3.environ(), "HFFLOWS_STORE_URL": url}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SAVER, number, layout],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in "12"
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    saved = [process.communicate(timeout=60)[0].split() for process in processes]

    store = open_store(url, **local_s3.options())
    assert {len(found) for found in saved} == {5}
    assert {ref.key for ref in list_artifacts("checkpoint", store=store)} == {*saved[0], *saved[1]}
    for number, found in zip("12", saved, strict=True):
        for index, key in enumerate(found):
            path = load_artifact(key, tmp_path / f"{number}-{index}", store=store)
            assert content_of(path) == {number: b"own", "common": number.encode()}


# Deleting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_delete_deletes_that_one_and_its_bytes(store, layout):
    refs = [
        save(store, {"state": b"%d" % n, "w": os.urandom(1 << 20)}, layout=layout, name=f"v{n}")
        for n in range(1, 13)
    ]
    sizes = {ref.key: len(content_keys(store)) for ref in refs}
    doomed = read_tree(refs[0], store=store).object_keys()

    delete_artifact(refs[0], store=store)
    collect(store)

    assert not doomed & content_keys(store)
    assert sizes  # every object that is left belongs to one that is left
    for ref in refs[1:]:
        verify_artifact(ref, store=store)
    with Checkpointer(ME, store=store) as resumed:
        assert resumed.info == refs[-1]
        assert resumed.list() == refs[:0:-1]


def test_the_parent_of_a_checkpoint_may_go_and_the_next_run_resumes(store, tmp_path):
    parent = save_model(write(tmp_path / "m", {"w": b"w"}), label="base", store=store)
    first = save(store, {"state": b"1"})
    model = save_model(tmp_path / "m", label="news", parents=[parent, first], store=store)
    second = save(store, {"state": b"2"}, replace(ME, run="run-2"))

    for doomed in (parent, first):
        delete_artifact(doomed, store=store)
    collect(store)

    eager = Checkpointer(replace(ME, run="run-3"), load_policy="eager", store=store)
    with eager as resumed:
        assert resumed.info == second
        assert content_of(resumed.directory) == {"state": b"2"}
    assert {r.key: r.state for r in lineage(model, store=store).ancestors} == {
        parent.key: "gone",
        first.key: "gone",
    }


def test_when_the_newest_was_deleted_the_one_before_is_the_newest(store):
    first, second, third = (save(store, {"state": b"%d" % n}) for n in range(3))

    delete_artifact(third, store=store)

    with Checkpointer(ME, store=store) as resumed:
        assert resumed.latest() == resumed.info == second
        assert content_of(resumed.directory) == {"state": b"1"}
        with pytest.raises(CheckpointNotFoundError, match="deleted"):
            resumed.load(third.key)
        collect(store)
        with pytest.raises(CheckpointNotFoundError, match="deleted"):
            resumed.load(third)
    prune_artifacts(KeepNewest(1), kind="checkpoint", store=store)
    assert list_artifacts(store=store) == [second]
    assert first not in list_artifacts(store=store)


# What is saved ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_there_is_not_saved(memory_store, tmp_path, layout):
    with Checkpointer(ME, store=memory_store) as checkpointer:
        with pytest.raises(SettingsError, match="does not exist"):
            checkpointer.save(tmp_path / "missing", storage_format=layout)
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "dangling").symlink_to("nowhere")
        kept = checkpointer.save(tmp_path / "m", storage_format=layout)
    assert [ref.key for ref in list_artifacts(store=memory_store)] == [kept.key]
    path = load_model(kept, tmp_path / "out", store=memory_store)
    assert (path / "dangling").readlink() == Path("nowhere")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [str, Path], ids=["text", "path"])
def test_a_path_may_be_text_or_not(memory_store, tmp_path, layout, make):
    write(tmp_path / "m", {"a": b"1"})

    with Checkpointer(ME, store=memory_store) as checkpointer:
        ref = checkpointer.save(make(tmp_path / "m"), storage_format=layout)

    path = load_model(ref, make(tmp_path / "out"), store=memory_store)
    assert content_of(path) == {"a": b"1"}


AWKWARD = [
    "a?1", "a?2", "two\nlines", "a#b", "50%", "a%3Fb", "a+b", "a b", " lead", "trail ", "trail.",
    "ü", "u\u0308x", "模型", "😀", ".hidden", "..dots", "...", "-rf", "~", "a;b", "a&b=c", "'", '"',
    "a*b", "<>|", "10:30", "$HOME", "`x`", "\x01", "\x7f", "=3F", "refs", "x" * 200, "d/e?f/g#h",
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_awkward_names_come_back_as_they_were(store, tmp_path, layout):
    files = {name: name.encode() for name in AWKWARD}
    write(tmp_path / "m", files)

    with Checkpointer(ME, store=store) as checkpointer:
        ref = checkpointer.save(tmp_path / "m", storage_format=layout)

    assert content_of(load_model(ref, tmp_path / "out", store=store)) == files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_folders_links_and_modes_are_kept(store, tmp_path, layout):
    root = write(tmp_path / "m", {"real/file": b"1", "run.sh": b"#!", "plain": b"2", "zero": b""})
    (root / "run.sh").chmod(0o750)
    (root / "plain").chmod(0o640)
    (root / "empty" / "deep").mkdir(parents=True)
    (root / "folder-link").symlink_to("real")
    (root / "real" / "file-link").symlink_to("../plain")
    os.utime(root / "plain", (1, 1))

    with Checkpointer(ME, store=store) as checkpointer:
        ref = checkpointer.save(root, storage_format=layout)
    path = load_model(ref, tmp_path / "out", store=store)

    assert content_of(path) == content_of(root)
    assert (path / "empty" / "deep").is_dir()
    assert (path / "folder-link").readlink() == Path("real")
    assert (path / "real" / "file-link").read_bytes() == b"2"
    assert os.access(path / "run.sh", os.X_OK)
    assert not os.access(path / "plain", os.X_OK)
    assert (path / "zero").stat().st_size == 0
    assert (path / "plain").stat().st_mtime > time.time() - 3600  # when it was loaded


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_file_or_none_is_a_checkpoint_too(store, tmp_path, layout):
    write(tmp_path, {"one.pt": b"weights", "zero": b""})
    (tmp_path / "nothing").mkdir()
    expected = {"one.pt": {"one.pt": b"weights"}, "zero": {"zero": b""}, "nothing": {}}

    for name, files in expected.items():
        with Checkpointer(ME, load_policy="none", store=store) as checkpointer:
            ref = checkpointer.save(tmp_path / name, storage_format=layout)
        assert ref.file_count == len(files)
        assert content_of(load_model(ref, tmp_path / f"out-{name}", store=store)) == files


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_name_that_is_not_unicode_is_refused_at_once(local_s3, tmp_path, layout):
    store = open_store(local_s3.url(os.urandom(4).hex()), **local_s3.options())
    (tmp_path / "m").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "m") + b"/caf\xe9")).write_bytes(b"1")
    began = time.monotonic()

    with Checkpointer(ME, store=store) as checkpointer, pytest.raises(UnsafePathError) as caught:
        checkpointer.save(tmp_path / "m", storage_format=layout)

    assert "not valid Unicode" in str(caught.value)
    assert time.monotonic() - began < 5
    assert keys_in(store) == set()


# Names and metadata -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["best.model", "v1.2.3", "a/b", "/", ".", "..", "../x", "", "new\nline", "ü?#%+ "]
)
def test_any_name_is_saved_listed_and_loaded_by_its_key(store, tmp_path, name):
    save(store, {"state": b"other"}, name="other")
    ref = save(store, {"state": b"named"}, name=name)

    assert ref.name == name
    with Checkpointer(ME, store=store) as checkpointer:
        assert checkpointer.list(name=name) == [ref]
        assert len(checkpointer.list()) == 2
        assert checkpointer.info == ref
        assert content_of(checkpointer.load(ref.key, tmp_path / "out")) == {"state": b"named"}


def test_a_name_too_long_is_refused_before_anything_is_written(memory_store, tmp_path):
    write(tmp_path / "m", {"a": b"1"})
    with Checkpointer(ME, store=memory_store) as checkpointer:
        for name in ("x" * 300, "\ud800"):
            with pytest.raises(SettingsError, match="name"):
                checkpointer.save(tmp_path / "m", name=name)

    assert keys_in(memory_store) == set()


class Odd:
    def __repr__(self):
        return "Odd()"


NAN = float("nan")


@pytest.mark.parametrize(
    "value",
    [
        NAN, float("inf"), -float("inf"), [1, NAN], {"deep": {"x": NAN}}, Odd(), Odd, {1, 2},
        b"bytes", 1j, Decimal(1), datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC), Path("x"),
        {1: "number"}, {None: 1}, "\ud800", range(3),
    ],
    ids=repr,
)  # fmt: skip
def test_metadata_that_json_cannot_hold_is_refused_before_anything_is_written(
    memory_store, tmp_path, value
):
    write(tmp_path / "m", {"a": b"1"})
    with (
        Checkpointer(ME, store=memory_store) as checkpointer,
        pytest.raises(SettingsError, match="metadata"),
    ):
        checkpointer.save(tmp_path / "m", metadata={"x": value})

    assert keys_in(memory_store) == set()


@pytest.mark.parametrize(
    "value",
    [
        0, -1, 2**70, 0.1, 1e300, -0.0, True, None, "", "ü😀\n\0", [], {}, [1, [2, {"a": None}]],
        {"": {"/": 1}}, "x" * 100_000,
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_metadata_that_json_can_hold_comes_back_as_it_was(store, value):
    ref = save(store, {"a": b"1"}, metadata={"x": value, "ü/?": 1})

    with Checkpointer(ME, store=store) as resumed:
        found = resumed.info.metadata["x"]
        assert found == value
        assert type(found) is type(value)
        assert resumed.list() == [ref]


# Archives and trees that lie --------------------------------------------------------------


@pytest.mark.parametrize("path", ["../out", "/abs", "a/../../out", "C:\\x", "a\0b", "con"])
def test_a_stored_tree_that_points_elsewhere_writes_nothing(memory_store, tmp_path, path):
    ref = save(memory_store, {"state": b"1"}, layout="tar")
    key = keys.tree(ref.key)
    body = read_document(memory_store, key)
    body["files"][0][0] = path
    memory_store.put(key, encode_document(body))

    with pytest.raises((UnsafePathError, IntegrityError)):
        load_model(ref, tmp_path / "deep" / "target", store=memory_store)
    assert [p for p in tmp_path.rglob("*") if p.name != "deep"] == []


# This machine -----------------------------------------------------------------------------


def test_the_root_of_temporary_directories_is_made(memory_store, tmp_path):
    root = tmp_path / "not" / "there"

    with Checkpointer(ME, temp_dir_root=root, store=memory_store) as checkpointer:
        assert root in checkpointer.directory.parents
        write(checkpointer.directory, {"a": b"1"})
        checkpointer.save()

    assert list(root.iterdir()) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saving_needs_no_room_for_a_second_copy(memory_store, tmp_path, monkeypatch, layout):
    write(tmp_path / "m", {"w": os.urandom(1 << 20)})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "full"))

    ref = save_artifact(tmp_path / "m", name="m", storage_format=layout, store=memory_store)

    verify_artifact(ref, store=memory_store)


def test_loading_never_mixes_into_what_is_there(memory_store, tmp_path):
    ref = save(memory_store, {"state": b"1"})
    write(tmp_path / "out", {"old": b"old"})

    with pytest.raises(OSError, match="not empty"):
        load_model(ref, tmp_path / "out", store=memory_store)
    assert content_of(tmp_path / "out") == {"old": b"old"}


# The store --------------------------------------------------------------------------------


def fails_within_seconds(store, error, reason):
    began = time.monotonic()
    with pytest.raises(error, match=reason), Checkpointer(ME, store=store) as checkpointer:
        checkpointer.save()
    with pytest.raises(error, match=reason):
        list_artifacts(store=store)
    assert time.monotonic() - began < SECONDS


def test_a_wrong_secret_fails_within_seconds_with_the_reason(local_s3):
    options = {**local_s3.options(), "secret_access_key": "wrong"}

    fails_within_seconds(open_store(local_s3.url("x"), **options), AccessDeniedError, "secret|key")


def test_an_unknown_key_fails_within_seconds_with_the_reason(local_s3):
    options = {**local_s3.options(), "access_key_id": "nobody"}

    fails_within_seconds(open_store(local_s3.url("x"), **options), AccessDeniedError, "key")


@pytest.mark.slow
def test_a_dead_endpoint_fails_within_seconds_with_the_reason(local_s3):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = {**local_s3.options(), "endpoint": f"http://127.0.0.1:{port}"}

    fails_within_seconds(
        open_store(local_s3.url("x"), **options),
        StorageUnavailableError,
        "sending request.* Check the endpoint",
    )
