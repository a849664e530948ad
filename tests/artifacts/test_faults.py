"""Every multi-step operation, with every one of its store calls failing in turn."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from hfflows.artifacts import (
    TransferReport,
    alias_history,
    delete_artifact,
    list_artifacts,
    load_artifact,
    save_artifact,
    set_alias,
    verify_artifact,
)
from hfflows.checkpoint import Checkpointer
from hfflows.errors import HfflowsError, StorageUnavailableError
from hfflows.identity import RunIdentity
from hfflows.storage import open_store
from hfflows.testing import FaultyStore

WHEN = ["before", "after"]
ME = RunIdentity("team", "flow", "train", run="run-1")


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    (root / "deep").mkdir(parents=True)
    (root / "large.bin").write_bytes(os.urandom((1 << 20) + 5))
    (root / "small.txt").write_text("small")
    (root / "deep" / "other.txt").write_text("other")
    return root


def calls_of(operation, store):
    counting = FaultyStore(store)
    operation(counting)
    return counting.calls


def assert_only_whole(store, at_most):
    listed = list_artifacts(store=store)
    assert len(listed) <= at_most
    for ref in listed:
        verify_artifact(ref, store=store)
    return listed


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("layout", ["packed", "files"])
def test_a_save_that_fails_at_any_call_leaves_nothing_or_the_whole(source, layout, when):
    def save(store):
        return save_artifact(source, name="m", storage_format=layout, store=store)

    for number in range(1, calls_of(save, open_store(f"memory://{os.urandom(8).hex()}")) + 1):
        store = open_store(f"memory://{os.urandom(8).hex()}")
        with pytest.raises(StorageUnavailableError):
            save(FaultyStore(store, fail_at=number, when=when))
        visible = assert_only_whole(store, at_most=1)

        again = save(store)
        assert again in assert_only_whole(store, at_most=len(visible) + 1)


@pytest.mark.parametrize("when", WHEN)
def test_a_load_that_fails_at_any_call_leaves_no_directory(source, tmp_path, memory_store, when):
    ref = save_artifact(source, name="m", storage_format="packed", store=memory_store)

    def load(store, path=tmp_path / "counted"):
        return load_artifact(ref.key, path, store=store)

    for number in range(1, calls_of(load, memory_store) + 1):
        with pytest.raises(StorageUnavailableError):
            load(FaultyStore(memory_store, fail_at=number, when=when), tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["counted", "source"]


@pytest.mark.parametrize("when", WHEN)
def test_a_delete_that_fails_at_any_call_leaves_the_artifact_whole_or_gone(source, when):
    def fresh():
        store = open_store(f"memory://{os.urandom(8).hex()}")
        return store, save_artifact(source, name="m", storage_format="files", store=store)

    store, ref = fresh()
    for number in range(1, calls_of(lambda s: delete_artifact(ref, store=s), store) + 1):
        store, victim = fresh()
        with pytest.raises(StorageUnavailableError):
            delete_artifact(victim, store=FaultyStore(store, fail_at=number, when=when))
        assert_only_whole(store, at_most=1)

        delete_artifact(victim, store=store)
        assert list(store.list("refs/")) == []
        assert list(store.list("files/")) == []


@pytest.mark.parametrize("when", WHEN)
def test_an_alias_whose_move_fails_points_to_the_old_or_the_new(source, memory_store, when):
    refs = [save_artifact(source, name=f"m{n}", store=memory_store) for n in range(2)]

    for number in range(
        1, calls_of(lambda s: set_alias("counted", refs[0], store=s), memory_store) + 1
    ):
        name = f"alias-{when}-{number}"
        set_alias(name, refs[0], store=memory_store)
        with pytest.raises(StorageUnavailableError):
            set_alias(name, refs[1], store=FaultyStore(memory_store, fail_at=number, when=when))
        assert alias_history(name, store=memory_store)[0].ref in refs

        set_alias(name, refs[1], store=memory_store)
        assert alias_history(name, store=memory_store)[0].ref == refs[1]


@pytest.mark.parametrize("when", WHEN)
def test_a_checkpoint_whose_save_fails_never_hides_the_one_before(source, when):
    def save(store):
        with Checkpointer(ME, load_policy="none", store=store) as checkpointer:
            checkpointer.save(source)

    for number in range(1, calls_of(save, open_store(f"memory://{os.urandom(8).hex()}")) + 1):
        store = open_store(f"memory://{os.urandom(8).hex()}")
        with Checkpointer(ME, store=store) as first:
            (first.directory / "state").write_text("kept")
            kept = first.save()
        with pytest.raises(StorageUnavailableError):
            save(FaultyStore(store, fail_at=number, when=when))

        with Checkpointer(ME, store=store) as resumed:
            if resumed.info == kept:
                assert (resumed.directory / "state").read_text() == "kept"
            else:  # only the reply of the very last call was lost
                assert (resumed.directory / "small.txt").read_text() == "small"


# Killed for real --------------------------------------------------------------------------

SAVER = """
import sys, hfflows
print("ready", flush=True)
hfflows.save_artifact(sys.argv[1], name="m", storage_format="packed")
print("saved", flush=True)
"""


def start_saver(source, s3, url):
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(source)],
        env={**os.environ, **s3.environ(), "HFFLOWS_STORE_URL": url},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
def test_a_killed_save_is_never_seen_and_the_next_one_sends_the_rest(local_s3, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(4):
        (source / f"{number}.bin").write_bytes(os.urandom(48 << 20))
    url = local_s3.url("killed")
    store = open_store(url, **local_s3.options())

    process = start_saver(source, local_s3, url)
    while sum(info.size_bytes for info in store.list("objects/")) < 80 << 20:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = sum(info.size_bytes for info in store.list("objects/"))

    assert list_artifacts(store=store) == []
    report = TransferReport()
    ref = save_artifact(source, name="m", storage_format="packed", report=report, store=store)
    assert report.bytes_sent <= report.bytes_covered - there  # what was in flight arrived too
    verify_artifact(ref, store=store)


@pytest.mark.slow
def test_a_reader_sees_only_whole_artifacts_while_saves_are_killed(local_s3, tmp_path):
    """Twenty saves, each killed at a random moment; every listed artifact is read whole."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.bin").write_bytes(os.urandom(2 << 20))
    url = local_s3.url("polled")
    store = open_store(url, **local_s3.options())
    seen, faults, stop = set(), [], threading.Event()

    def poll():
        while not stop.is_set():
            try:
                for ref in list_artifacts(store=store):
                    verify_artifact(ref, store=store)
                    seen.add(ref.key)
            except HfflowsError as error:
                faults.append(error)

    reader = threading.Thread(target=poll)
    reader.start()
    randomly = random.Random(7)
    saved = 0
    for _ in range(20):
        (source / "0.bin").write_bytes(os.urandom(2 << 20))
        process = start_saver(source, local_s3, url)
        time.sleep(randomly.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        saved += "saved" in process.communicate()[0]
    stop.set()
    reader.join()

    assert faults == []
    assert saved <= len(list_artifacts(store=store)) <= 20
    assert len(seen) <= len(list_artifacts(store=store))
