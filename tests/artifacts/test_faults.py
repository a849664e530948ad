"""Every multi-step operation, with every one of its store calls failing in turn."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from hfflows import keys
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
from tests.artifacts.support import new_store
from tests.processes import PROCESSES

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
@pytest.mark.parametrize("layout", ["packed", "files", "tar"])
def test_a_save_that_fails_at_any_call_leaves_nothing_or_the_whole(source, layout, when):
    def save(store):
        return save_artifact(source, name="m", storage_format=layout, store=store)

    # The very last call withdraws the announcement: when it fails, the save has succeeded.
    for number in range(1, calls_of(save, new_store())):
        store = new_store()
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
        store = new_store()
        return store, save_artifact(source, name="m", storage_format="files", store=store)

    store, ref = fresh()
    for number in range(1, calls_of(lambda s: delete_artifact(ref, store=s), store) + 1):
        store, victim = fresh()
        with pytest.raises(StorageUnavailableError):
            delete_artifact(victim, store=FaultyStore(store, fail_at=number, when=when))
        assert_only_whole(store, at_most=1)

        delete_artifact(victim, store=store)
        assert list(store.list("refs/")) == []


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

    for number in range(1, calls_of(save, new_store())):
        store = new_store()
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


# Calls that hang ---------------------------------------------------------------------------


def every_hanging_call(prepare, operation):
    """Yield, for each call of an operation, the store while that call hangs; then release it.

    Args:
        prepare: Returns a fresh store and what the operation works on.
        operation: Called with a store and that.
    """
    store, subject = prepare()
    total = calls_of(lambda counting: operation(counting, subject), store)
    for number in range(1, total + 1):
        store, subject = prepare()
        with FaultyStore(store, fail_at=number, when="hang") as stuck:
            thread = threading.Thread(target=operation, args=(stuck, subject))
            thread.start()
            assert stuck.wait_until_hanging(timeout=30)
            yield store, subject
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("layout", ["packed", "files", "tar"])
def test_while_a_save_hangs_at_any_call_others_go_on_and_it_ends_well(source, layout):
    def save(store, _):
        return save_artifact(source, name="m", storage_format=layout, store=store)

    stores = []
    for store, _ in every_hanging_call(lambda: (new_store(), None), save):
        seen = len(assert_only_whole(store, at_most=1))
        again = save(store, None)
        assert again in assert_only_whole(store, at_most=seen + 1)
        stores.append(store)
    for store in stores:
        assert len(assert_only_whole(store, at_most=2)) == 2


def test_while_a_delete_hangs_the_artifact_is_whole_or_gone(source):
    def prepare():
        store = new_store()
        return store, save_artifact(source, name="m", storage_format="files", store=store)

    for store, ref in every_hanging_call(prepare, lambda s, ref: delete_artifact(ref, store=s)):
        assert_only_whole(store, at_most=1)
        delete_artifact(ref, store=store)
        assert list(store.list("refs/")) == []


def test_while_a_promotion_hangs_the_alias_points_to_the_old_or_the_new(source):
    def prepare():
        store = new_store()
        refs = [save_artifact(source, name=f"m{n}", store=store) for n in range(3)]
        set_alias("production", refs[0], store=store)
        return store, refs

    def promote(store, refs):
        set_alias("production", refs[1], store=store)

    for store, refs in every_hanging_call(prepare, promote):
        assert alias_history("production", store=store)[0].ref in refs[:2]
        set_alias("production", refs[2], store=store)
        assert alias_history("production", store=store)[0].ref == refs[2]


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


def save_once(source, url, options, ready):
    store = open_store(url, **options)
    ready.set()
    save_artifact(source, name="m", storage_format="packed", store=store)


class Poller:
    """Reads every artifact it ever sees listed, whole, until it is told to stop."""

    def __init__(self, store):
        self.faults = []
        self._store = store
        self._seen = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _poll(self):
        while not self._stop.is_set():
            try:
                listed = {info.key for info in self._store.list(keys.REFS)}
                for key in listed - self._seen:
                    verify_artifact(key, store=self._store)
                    self._seen.add(key)
            except HfflowsError as error:
                self.faults.append(error)


@pytest.mark.slow
def test_a_reader_sees_only_whole_artifacts_while_200_saves_are_killed(local_s3, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.bin").write_bytes(os.urandom(1 << 20))
    url = local_s3.url("polled")
    store = open_store(url, **local_s3.options())
    randomly = random.Random(7)
    finished = 0
    with Poller(store) as poller:
        for _ in range(200):
            (source / "0.bin").write_bytes(randomly.randbytes(1 << 20))
            ready = PROCESSES.Event()
            saver = PROCESSES.Process(
                target=save_once, args=(source, url, local_s3.options(), ready)
            )
            saver.start()
            ready.wait(30)
            time.sleep(randomly.uniform(0, 0.08))
            saver.kill()
            saver.join()
            finished += saver.exitcode == 0

    listed = list_artifacts(store=store)
    assert poller.faults == []
    assert finished <= len(listed) < 200  # some were killed before their commit
    for ref in listed:
        verify_artifact(ref, store=store)
