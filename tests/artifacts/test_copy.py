import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from hfflows import keys
from hfflows.artifacts import (
    TransferReport,
    apply_collection,
    commit_selection,
    copy_artifact,
    create_document,
    delete_artifact,
    list_artifacts,
    load_artifact,
    plan_collection,
    read_tree,
    resolve_ref,
    save_artifact,
    verify_artifact,
)
from hfflows.artifacts._receive import Receiver
from hfflows.artifacts._saves import revoke_save
from hfflows.checkpoint import Checkpointer
from hfflows.errors import (
    CollectionBusyError,
    IntegrityError,
    ObjectExistsError,
    SaveRevokedError,
    StorageUnavailableError,
)
from hfflows.identity import RunIdentity
from hfflows.refs import Producer
from hfflows.storage import open_store
from hfflows.testing import FaultyStore
from tests.artifacts.support import content_of, new_store

LAYOUTS = ["packed", "files", "tar"]
NOW = {"min_age": timedelta(0), "grace": timedelta(0)}
ME = RunIdentity("team", "flow", "train", run="run-1")


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    (root / "deep" / "empty").mkdir(parents=True)
    (root / "large.bin").write_bytes(os.urandom((17 << 20) + 5))
    (root / "small.txt").write_text("small")
    (root / "deep" / "other.txt").write_text("other")
    (root / "deep" / "nothing").write_text("")
    return root


def nothing_visible(store):
    return list_artifacts(store=store) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_is_the_same_artifact_in_another_store(origin, store, source, tmp_path, layout):
    parent = save_artifact(source, name="parent", store=origin)
    ref = save_artifact(
        source,
        name="m",
        metadata={"step": 3},
        parents=[parent],
        producer=Producer(flow="f"),
        storage_format=layout,
        store=origin,
    )
    report = TransferReport()
    copy = copy_artifact(ref.key, to=store, store=origin, report=report)

    assert copy == ref.model_copy(update={"store_url": store.url})
    assert resolve_ref(ref.key, store=store) == copy
    loaded = load_artifact(copy, tmp_path / "out", store=store)
    assert content_of(loaded) == content_of(source)
    assert (loaded / "deep" / "empty").is_dir()
    assert report.bytes_sent == report.bytes_read >= ref.size_bytes == report.bytes_covered


def test_readable_files_are_readable_in_the_target_too(origin, target, source):
    ref = save_artifact(source, name="m", store=origin)
    copy_artifact(ref, to=target, store=origin)

    for path, data in content_of(source).items():
        assert bytes(target.get(keys.file_key(ref.key, path))) == data


@pytest.mark.parametrize("layout", ["files", "tar"])
def test_what_holds_no_byte_of_a_file_is_copied_for_other_tools(origin, target, tmp_path, layout):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "nothing").write_text("")
    ref = save_artifact(tmp_path / "m", name="m", storage_format=layout, store=origin)
    copy_artifact(ref, to=target, store=origin)

    def readable(store):
        tops = ("files/", "tars/")
        return {info.key: bytes(store.get(info.key)) for top in tops for info in store.list(top)}

    assert readable(target) == readable(origin) != {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copying_again_moves_nothing(origin, target, source, layout):
    ref = save_artifact(source, name="m", storage_format=layout, store=origin)
    first = copy_artifact(ref, to=target, store=origin)
    before = list(target.list(""))
    report = TransferReport()

    assert copy_artifact(ref, to=target, store=origin, report=report) == first
    assert (report.bytes_sent, report.bytes_read) == (0, 0)
    assert list(target.list("")) == before


def test_a_copy_within_a_store_changes_nothing(origin, source):
    ref = save_artifact(source, name="m", store=origin)

    assert copy_artifact(ref, to=origin, store=origin) == ref


def test_what_the_target_has_is_not_moved(origin, target, source):
    first = save_artifact(source, name="m", storage_format="packed", store=origin)
    copy_artifact(first, to=target, store=origin)
    (source / "small.txt").write_text("changed")
    second = save_artifact(source, name="m", storage_format="packed", store=origin)
    report = TransferReport()
    copy_artifact(second, to=target, store=origin, report=report)

    assert report.bytes_sent == len("changed") + len("other")
    assert report.objects_reused == 2
    verify_artifact(second.key, store=target)


def test_another_artifact_under_the_key_is_left_alone(origin, target, source):
    ref = save_artifact(source, name="m", store=origin)
    (source / "small.txt").write_text("another content")
    other = save_artifact(source, name="m", store=new_store())
    body = other.model_copy(update={"key": ref.key})
    create_document(target, ref.key, body.model_dump(mode="json"))
    before = list(target.list(""))

    with pytest.raises(ObjectExistsError, match="something else at refs/model/m/"):
        copy_artifact(ref, to=target, store=origin)
    assert list(target.list("")) == before


def test_a_readable_key_with_something_else_is_left_alone(origin, target, source):
    ref = save_artifact(source, name="m", store=origin)
    key = keys.file_key(ref.key, "small.txt")
    target.put(key, b"not ours")

    with pytest.raises(ObjectExistsError, match=r"small\.txt"):
        copy_artifact(ref, to=target, store=origin)
    assert bytes(target.get(key)) == b"not ours"
    assert nothing_visible(target)


def test_a_copied_checkpoint_is_what_the_next_run_resumes_from(origin, target):
    with Checkpointer(ME, store=origin) as checkpointer:
        (checkpointer.directory / "state").write_text("42")
        ref = checkpointer.save()
    copy = copy_artifact(ref, to=target, store=origin)

    with Checkpointer(ME, store=target) as resumed:
        assert resumed.info == copy
        assert (resumed.directory / "state").read_text() == "42"


def test_a_checkpoint_that_policies_must_not_pick_stays_so(origin, target):
    with Checkpointer(ME, store=origin) as checkpointer:
        (checkpointer.directory / "state").write_text("42")
        ref = checkpointer.save(latest=False)
    copy_artifact(ref, to=target, store=origin)

    with Checkpointer(ME, store=target) as other:
        assert other.info is None


def test_a_selection_takes_its_objects_whole_and_the_rest_follows(origin, target, source):
    whole = save_artifact(source, name="m", storage_format="packed", store=origin)
    key = keys.artifact("model", "part", id=keys.new_id())
    part = commit_selection(whole, ["small.txt"], None, key=key, metadata={}, store=origin)
    report = TransferReport()
    copy_artifact(part, to=target, store=origin, report=report)
    assert report.bytes_sent == len("small") + len("other")
    verify_artifact(part.key, store=target)

    report = TransferReport()
    copy_artifact(whole, to=target, store=origin, report=report)
    assert report.bytes_sent == whole.size_bytes - len("small") - len("other")


def test_copies_at_the_same_time_do_not_hurt_each_other(origin, store, source):
    ref = save_artifact(source, name="m", storage_format="files", store=origin)

    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(lambda _: copy_artifact(ref, to=store, store=origin), range(4)))
    assert len(set(map(str, copies))) == 1
    verify_artifact(copies[0], store=store)
    assert list(store.list("saves/")) == []


# Damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_is_not_passed_on(origin, target, source, layout):
    ref = save_artifact(source, name="m", storage_format=layout, store=origin)
    file = next(f for f in read_tree(ref, store=origin).files if f.path == "large.bin")
    segment = file.segments[-1]
    data = bytearray(origin.get(segment.key))
    data[segment.offset + segment.length - 1] ^= 1
    origin.put(segment.key, data)

    with pytest.raises(IntegrityError, match=f"large.bin: the object {segment.key} is damaged"):
        copy_artifact(ref, to=target, store=origin)
    assert nothing_visible(target)
    assert segment.key not in [info.key for info in target.list("")]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("what", ["missing", "cut short"])
def test_what_is_missing_is_said_before_anything_moves(origin, target, source, layout, what):
    ref = save_artifact(source, name="m", storage_format=layout, store=origin)
    file = next(f for f in read_tree(ref, store=origin).files if f.path == "large.bin")
    segment = file.segments[-1]
    if what == "missing":
        origin.delete([segment.key])
    else:
        data = bytes(origin.get(segment.key))
        origin.put(segment.key, data[: segment.offset + segment.length - 1])

    with pytest.raises(IntegrityError, match=f"large.bin: the object {segment.key} is {what}"):
        copy_artifact(ref, to=target, store=origin)
    assert list(target.list("")) == []


# Collections -------------------------------------------------------------------------------


def leave_behind(ref, target, store):
    """Copy and delete: what is left in the target is garbage under the very same keys."""
    copy_artifact(ref, to=target, store=store)
    delete_artifact(ref.key, store=target)


def test_objects_that_are_condemned_are_sent_beside(origin, target, source, tmp_path):
    ref = save_artifact(source, name="m", storage_format="packed", store=origin)
    other = save_artifact(source, name="other", storage_format="packed", store=origin)
    leave_behind(other, target, origin)
    plan = plan_collection(**NOW, store=target)

    report = TransferReport()
    copy_artifact(ref, to=target, store=origin, report=report)
    assert report.bytes_sent == ref.size_bytes
    apply_collection(plan, store=target)
    verify_artifact(ref.key, store=target)

    again = new_store()  # the successors' names stay behind
    copy_artifact(ref.key, to=again, store=target)
    assert read_tree(ref.key, store=again) == read_tree(ref, store=origin)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_waits_while_its_own_remains_are_condemned(origin, target, source, layout):
    ref = save_artifact(source, name="m", storage_format=layout, store=origin)
    leave_behind(ref, target, origin)
    plan = plan_collection(**NOW, store=target)

    with pytest.raises(CollectionBusyError, match="another attempt"):
        copy_artifact(ref, to=target, store=origin)
    assert nothing_visible(target)
    apply_collection(plan, store=target)
    copy_artifact(ref, to=target, store=origin)
    verify_artifact(ref.key, store=target)


def test_a_key_that_a_collection_barred_says_how_to_free_it(origin, target, source):
    ref = save_artifact(source, name="m", store=origin)
    revoke_save(target, keys.new_save(ref.key), plan_id="p")
    before = [info.key for info in target.list("")]

    with pytest.raises(SaveRevokedError, match="hfflows delete"):
        copy_artifact(ref, to=target, store=origin)
    assert [info.key for info in target.list("")] == before
    delete_artifact(ref.key, store=target)
    copy_artifact(ref, to=target, store=origin)


def test_two_copies_that_saw_different_collections_do_not_cut_each_other(
    origin, target, source, monkeypatch
):
    """The slower one began before the plan and reuses what the plan condemns."""
    ref = save_artifact(source, name="m", storage_format="packed", store=origin)
    garbage = save_artifact(source, name="other", storage_format="packed", store=origin)
    leave_behind(garbage, target, origin)
    plan = None

    def faster_copy_and_collection(receiver, save, arrival):
        nonlocal plan
        monkeypatch.undo()
        plan = plan_collection(**NOW, store=target)
        copy_artifact(ref, to=target, store=origin)
        with pytest.raises(CollectionBusyError, match="under way"):
            apply_collection(plan, store=target)
        return receiver.commit(save, arrival)

    monkeypatch.setattr(Receiver, "commit", faster_copy_and_collection)
    copy_artifact(ref, to=target, store=origin)
    verify_artifact(ref.key, store=target)
    apply_collection(plan, store=target)
    verify_artifact(ref.key, store=target)


def test_the_tree_of_an_unfinished_copy_is_not_replaced(origin, target, source):
    ref = save_artifact(source, name="m", storage_format="packed", store=origin)
    create_document(target, keys.tree(ref.key), {"by": "another copy"})

    with pytest.raises(CollectionBusyError, match=r"another attempt.*collect_garbage"):
        copy_artifact(ref, to=target, store=origin)
    assert nothing_visible(target)


# Faults ------------------------------------------------------------------------------------


def calls_of(operation):
    counting = FaultyStore(new_store())
    operation(counting)
    return counting.calls


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_that_fails_at_any_call_leaves_nothing_or_the_whole(origin, source, layout, when):
    ref = save_artifact(source, name="m", storage_format=layout, store=origin)

    def copy(target, **options):
        return copy_artifact(ref, to=target, store=origin, **options)

    total = calls_of(copy)
    failed = 0
    for number in range(1, total + 1):
        target = new_store()
        try:
            copy(FaultyStore(target, fail_at=number, when=when))
        except StorageUnavailableError:
            failed += 1
        else:
            verify_artifact(ref.key, store=target)
        for visible in list_artifacts(store=target):
            verify_artifact(visible, store=target)
        there = sum(
            info.size_bytes for top in ("objects/", "files/", "tars/") for info in target.list(top)
        )

        report = TransferReport()
        copy(target, report=report)
        verify_artifact(ref.key, store=target)
        assert report.bytes_sent + there <= ref.size_bytes + 8192  # tar's own headers
    # A "no such object" cannot fail after its effect; an announcement may stay behind.
    assert failed >= total - 2


def test_a_source_that_fails_at_any_call_leaves_nothing_visible(origin, source):
    ref = save_artifact(source, name="m", storage_format="packed", store=origin)
    counting = FaultyStore(origin)
    copy_artifact(ref.key, to=new_store(), store=counting)

    for number in range(1, counting.calls + 1):
        target = new_store()
        with pytest.raises(StorageUnavailableError):
            copy_artifact(ref.key, to=target, store=FaultyStore(origin, fail_at=number))
        assert nothing_visible(target)


COPIER = """
import sys, hfflows
source, target, key = sys.argv[1:]
print("ready", flush=True)
hfflows.copy_artifact(key, to=hfflows.open_store(target), store=hfflows.open_store(source))
"""


@pytest.mark.slow
def test_a_killed_copy_goes_on_where_it_ended(local_s3, tmp_path):
    root = tmp_path / "m"
    root.mkdir()
    (root / "large.bin").write_bytes(os.urandom(160 << 20))
    store = open_store(tmp_path / "store")
    ref = save_artifact(root, name="m", storage_format="packed", store=store)
    url = local_s3.url("killed-copy")
    target = open_store(url, **local_s3.options())

    process = subprocess.Popen(
        [sys.executable, "-c", COPIER, store.url, url, ref.key],
        env={**os.environ, **local_s3.environ()},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    while sum(info.size_bytes for info in target.list("objects/")) < 64 << 20:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = sum(info.size_bytes for info in target.list("objects/"))

    assert nothing_visible(target)
    report = TransferReport()
    copy_artifact(ref, to=target, store=store, report=report)
    assert report.bytes_sent <= ref.size_bytes - there  # what was in flight arrived too
    verify_artifact(ref.key, store=target)


MOVER = r"""
import re, sys, hfflows
origin, target, bundle, third, key = sys.argv[1:]
origin, target, third = map(hfflows.open_store, (origin, target, third))
def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+)", status.read())[1]) // 1024
before = peak()
hfflows.copy_artifact(key, to=target, store=origin)
hfflows.import_bundle(hfflows.export_bundle([key], bundle, store=target), store=third)
hfflows.verify_artifact(key, store=third)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["packed", "tar"])
def test_memory_stays_bounded_whatever_the_size(local_s3, tmp_path, layout):
    """Copy to S3, bundle, import: 480 MiB pass through."""
    root = tmp_path / "m"
    root.mkdir()
    with (root / "large.bin").open("wb") as file:
        for _ in range(30):
            file.write(os.urandom(16 << 20))
    store = open_store(tmp_path / "store")
    ref = save_artifact(root, name="m", storage_format=layout, store=store)

    target = local_s3.url(f"memory-{layout}")
    where = [store.url, target, str(tmp_path / "b.tar"), str(tmp_path / "third"), ref.key]
    grown = subprocess.run(
        [sys.executable, "-c", MOVER, *where],
        # glibc keeps what threads freed, an arena each; two arenas show what we hold ourselves.
        env={**os.environ, **local_s3.environ(), "MALLOC_ARENA_MAX": "2"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert 0 < int(grown.stdout) < 400  # MiB
