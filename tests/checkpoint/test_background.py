"""`save(block=False)`: staged, bounded, in order, and no error lost."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from hfflows.artifacts import set_alias
from hfflows.checkpoint import Checkpointer, PendingSave
from hfflows.checkpoint import _staging as staging
from hfflows.errors import (
    ArtifactInUseError,
    CheckpointNotFoundError,
    IntegrityError,
    SettingsError,
    StorageUnavailableError,
)
from hfflows.identity import RunIdentity
from hfflows.testing import FaultyStore, SlowStore

ME = RunIdentity("team", "retrain", "train", run="run-1", attempt="001")
ROOM = {"checkpoint", ".owner"}
"""What lies in the temporary directory of a checkpointer, once nothing is put aside."""


def checkpointer(store, **options):
    return Checkpointer(ME, load_policy="none", store=store, **options)


def save(ckpt, text, **options):
    (ckpt.directory / "state.txt").write_text(text)
    return ckpt.save(**({"block": False} | options))


def text_of(ckpt, ref, tmp_path):
    return (ckpt.load(ref, tmp_path / os.urandom(4).hex()) / "state.txt").read_text()


class Gate(FaultyStore):
    """A store whose objects wait at a gate."""

    def __init__(self, store):
        super().__init__(store)
        self.opened = threading.Event()

    def _call(self, method, key, function):
        if method in {"put", "put_stream", "create"}:
            assert self.opened.wait(30)
        return super()._call(method, key, function)


class Failing(FaultyStore):
    """A store that takes nothing while `is_down`."""

    is_down = True

    def _call(self, method, key, function):
        if self.is_down and method in {"put", "put_stream", "create"}:
            raise StorageUnavailableError(f"{key}: the store is down.", key=key)
        return super()._call(method, key, function)


# Staged safely ---------------------------------------------------------------------------


def shared_blocks(descriptor, request, source):
    """Be the kernel of a file system that can share blocks."""
    assert request == staging._FICLONE
    os.write(descriptor, os.pread(source, 1 << 20, 0))
    return 0


@pytest.fixture(params=["copy", "reflink", "move"])
def way(request, monkeypatch):
    """Return how files are put aside."""
    if request.param == "reflink":
        monkeypatch.setattr(staging.fcntl, "ioctl", shared_blocks)
    elif request.param == "copy":  # whatever the file system of the tests can do
        monkeypatch.setattr(staging, "_clone", lambda *_: False)
    return request.param


def test_what_is_written_after_the_call_is_not_in_the_checkpoint(memory_store, tmp_path, way):
    gate = Gate(memory_store)
    with checkpointer(gate) as ckpt:
        for name in ("weights.bin", "deep/optimizer.bin"):
            (ckpt.directory / name).parent.mkdir(exist_ok=True)
            (ckpt.directory / name).write_bytes(b"as it was")
        (ckpt.directory / "empty").mkdir()
        (ckpt.directory / "link").symlink_to("weights.bin")
        (ckpt.directory / "deep/optimizer.bin").chmod(0o755)
        pending = ckpt.save(block=False, move=way == "move")
        assert (pending.staged_by, pending.size_bytes) == (way, 18)
        assert not pending.done()

        if way == "move":
            assert list(ckpt.directory.iterdir()) == []
            (ckpt.directory / "weights.bin").write_bytes(b"anew")
        else:  # in place, as a hard link would show
            with (ckpt.directory / "weights.bin").open("r+b") as file:
                file.write(b"rewritten")
            (ckpt.directory / "deep/optimizer.bin").unlink()
        gate.opened.set()
        ref = pending.result(30)

        loaded = ckpt.load(ref, tmp_path / "out")
    assert (loaded / "weights.bin").read_bytes() == b"as it was"
    assert (loaded / "deep/optimizer.bin").read_bytes() == b"as it was"
    assert os.access(loaded / "deep/optimizer.bin", os.X_OK)
    assert (loaded / "link").readlink().name == "weights.bin"
    assert (loaded / "empty").is_dir()


def test_a_single_file_keeps_its_name(memory_store, tmp_path, way):
    (tmp_path / "weights.bin").write_bytes(b"w")
    with checkpointer(memory_store) as ckpt:
        pending = ckpt.save(tmp_path / "weights.bin", block=False, move=way == "move")
        assert (tmp_path / "weights.bin").exists() == (way != "move")
        loaded = ckpt.load(pending.result(30), tmp_path / "out")
    assert (loaded / "weights.bin").read_bytes() == b"w"


def test_a_path_of_another_file_system_is_copied_when_it_is_given_away(memory_store, small_disk):
    given = small_disk / "given"
    given.mkdir()
    (given / "state.txt").write_text("x")
    with checkpointer(memory_store) as ckpt:
        pending = ckpt.save(given, block=False, move=True)
        assert pending.staged_by == "copy"
        assert not given.exists()
        assert pending.result(30).size_bytes == 1


def test_metadata_is_as_it_was_too(memory_store):
    gate = Gate(memory_store)
    metadata = {"losses": [1]}
    with checkpointer(gate, max_in_flight=2) as ckpt:
        ckpt.save(block=False)
        pending = ckpt.save(block=False, metadata=metadata)  # waits for the one before
        metadata["losses"].append(2)
        gate.opened.set()
        assert pending.result(30).metadata == {"losses": [1]}


def test_a_file_that_changes_while_it_is_put_aside_is_an_error(memory_store, monkeypatch):
    copyfile = staging.shutil.copyfile

    def copy_and_disturb(source, target):
        copyfile(source, target)
        source.write_text("longer than before")

    monkeypatch.setattr(staging, "_clone", lambda *_: False)
    monkeypatch.setattr(staging.shutil, "copyfile", copy_and_disturb)
    with checkpointer(memory_store) as ckpt, pytest.raises(IntegrityError, match="changed while"):
        save(ckpt, "short")


def test_what_cannot_be_saved_is_refused_at_once(memory_store, tmp_path):
    with checkpointer(memory_store) as ckpt:
        with pytest.raises(SettingsError, match="does not exist"):
            ckpt.save(tmp_path / "missing", block=False)
        with pytest.raises(SettingsError, match="block=False"):
            ckpt.save(move=True)


@pytest.fixture
def small_disk(tmp_path):
    """Return a directory on a file system of one megabyte."""
    directory = tmp_path / "small"
    directory.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system here")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.parametrize("move", [False, True])
def test_without_room_for_a_copy_training_waits_and_nothing_is_lost(
    memory_store, small_disk, tmp_path, caplog, move
):
    given = tmp_path / "given"
    given.mkdir()
    (given / "weights.bin").write_bytes(os.urandom(2 << 20))
    with checkpointer(memory_store, temp_dir_root=small_disk) as ckpt:
        pending = ckpt.save(given, block=False, move=move)
        assert pending.done()
        assert pending.staged_by is None
        assert given.exists() != move
        assert pending.result().size_bytes == 2 << 20
        assert ckpt.latest() == pending.result()
        assert {path.name for path in ckpt.directory.parent.iterdir()} == ROOM
    assert "training waits for it" in caplog.text


# So many at most --------------------------------------------------------------------------


def test_the_next_save_waits_for_the_one_under_way(memory_store):
    gate = Gate(memory_store)
    with checkpointer(gate) as ckpt:
        first = save(ckpt, "one")
        opener = threading.Timer(0.3, gate.opened.set)
        opener.start()
        began = time.monotonic()
        second = save(ckpt, "two")
        assert time.monotonic() - began > 0.25
        assert first.done()
        opener.join()
        assert [ref.key for ref in (second.result(30), first.result())] == [
            ref.key for ref in ckpt.list()
        ]


def test_the_next_save_is_skipped_and_says_so(memory_store, tmp_path, caplog):
    gate = Gate(memory_store)
    with checkpointer(gate, when_full="skip", max_in_flight=2) as ckpt:
        kept = [save(ckpt, "one"), save(ckpt, "two")]
        skipped = save(ckpt, "three", name="third", step=3)
        assert isinstance(skipped, PendingSave)
        assert (skipped.is_skipped, skipped.cancelled(), skipped.done()) == (True, True, True)
        assert not any(save.is_skipped for save in kept)
        assert "'third' is skipped: 2 are under way" in caplog.text
        gate.opened.set()
        ckpt.wait()
        assert [text_of(ckpt, ref, tmp_path) for ref in ckpt.list()] == ["two", "one"]
        assert not save(ckpt, "four").is_skipped
        ckpt.wait()
        goodput = ckpt.goodput()
        assert (goodput.saves, goodput.saves_skipped, goodput.last_step) == (3, 1, 3)


def test_commits_come_in_the_order_of_the_saves(memory_store, tmp_path):
    with checkpointer(SlowStore(memory_store, latency_seconds=0.005), max_in_flight=4) as ckpt:
        pending = [save(ckpt, str(number)) for number in range(4)]
        pending.append(save(ckpt, "4", block=True))  # after those under way
        assert all(one.done() for one in pending[:4])
        assert [text_of(ckpt, ref, tmp_path) for ref in ckpt.list()] == list("43210")


def test_only_committed_checkpoints_count(memory_store):
    gate = Gate(memory_store)
    with checkpointer(memory_store) as ckpt:
        before = save(ckpt, "before", block=True)
    with checkpointer(gate) as ckpt:
        pending = save(ckpt, "under way")
        assert ckpt.latest() == before
        assert ckpt.list() == [before]
        with Checkpointer(replace(ME, attempt="002"), store=memory_store) as other:
            assert other.info == before
        gate.opened.set()
        assert pending.result(30) == ckpt.latest()


# No error is lost, none is told twice -------------------------------------------------------


def test_an_error_is_raised_by_the_next_save_only(memory_store):
    store = Failing(memory_store)
    with checkpointer(store) as ckpt:
        save(ckpt, "lost")
        with pytest.raises(StorageUnavailableError):
            save(ckpt, "not begun")
        store.is_down = False
        ckpt.wait()
        assert save(ckpt, "saved").result(30) == ckpt.latest()


@pytest.mark.parametrize("how", ["wait", "end", "result", "exception"])
def test_an_error_surfaces_once_wherever_it_is_asked_for(memory_store, how):
    store = Failing(memory_store)
    ckpt = checkpointer(store)
    pending = save(ckpt, "lost")
    with pytest.raises(StorageUnavailableError):
        if how == "wait":
            ckpt.wait()
        elif how == "end":
            ckpt.__exit__(None, None, None)
        elif how == "result":
            pending.result(30)
        else:
            raise pending.exception(30)
    store.is_down = False
    save(ckpt, "saved", block=True)
    with ckpt:
        pass


def test_a_failed_save_can_be_only_logged(memory_store, caplog):
    store = Failing(memory_store)
    with checkpointer(store, on_error="warn") as ckpt:
        save(ckpt, "lost", name="first")
        ckpt.wait()
        assert caplog.text.count("'first' was not saved") == 1
        store.is_down = False
        assert save(ckpt, "saved").result(30) == ckpt.latest()
        store.is_down = True
        save(ckpt, "lost", name="last")
    assert caplog.text.count("was not saved") == 2
    assert ckpt.goodput().saves_failed == 2


def test_the_error_of_a_save_that_waits_is_its_own(memory_store):
    with (
        checkpointer(Failing(memory_store), on_error="warn") as ckpt,
        pytest.raises(StorageUnavailableError),
    ):
        save(ckpt, "lost", block=True)


def test_staged_files_go_with_the_save_that_needed_them(memory_store, tmp_path):
    store = Failing(memory_store)
    with checkpointer(store, temp_dir_root=tmp_path, on_error="warn") as ckpt:
        for is_down in (True, False):
            store.is_down = is_down
            save(ckpt, "x")
            ckpt.wait()
            assert {path.name for path in ckpt.directory.parent.iterdir()} == ROOM
    assert list(tmp_path.iterdir()) == []


def test_the_end_is_bounded_when_the_process_is_told_to_end(memory_store, caplog):
    gate = Gate(memory_store)
    began = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        checkpointer(gate, grace_seconds=0.5, max_in_flight=2) as ckpt,
    ):
        under_way, queued = save(ckpt, "one", name="one"), save(ckpt, "two", name="two")
        raise KeyboardInterrupt
    assert 0.3 < time.monotonic() - began < 5
    assert "'one' is dropped" in caplog.text
    assert "'two' is dropped" in caplog.text
    assert queued.cancelled()
    assert ckpt.goodput().saves_dropped == 2
    gate.opened.set()
    assert under_way.exception(30) is not None  # its files are gone; nothing is committed
    assert ckpt.list() == []


def test_the_end_of_a_failing_body_is_not(memory_store):
    gate = Gate(memory_store)
    threading.Timer(0.5, gate.opened.set).start()
    with (
        pytest.raises(ZeroDivisionError),
        checkpointer(gate, grace_seconds=0.1) as ckpt,
    ):
        save(ckpt, "one")
        raise ZeroDivisionError
    assert len(ckpt.list()) == 1


def test_a_forked_child_neither_waits_for_its_parents_save_nor_deletes_its_files(memory_store):
    gate = Gate(memory_store)
    with checkpointer(gate) as ckpt:
        pending = save(ckpt, "parent's")
        child = os.fork()
        if child == 0:
            try:
                ckpt.wait()
                ckpt.close()
            finally:
                os._exit(0)
        deadline = time.monotonic() + 10
        while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert done == (child, 0)
        assert ckpt.directory.is_dir()
        gate.opened.set()
        assert pending.result(30) == ckpt.latest()


# Priority --------------------------------------------------------------------------------


class Noted(FaultyStore):
    """A store that notes the nice value of the threads that write to it."""

    nice = ()

    def _call(self, method, key, function):
        if method in {"put", "put_stream", "create"}:
            self.nice += (os.getpriority(os.PRIO_PROCESS, threading.get_native_id()),)
        return super()._call(method, key, function)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
@pytest.mark.parametrize(("options", "nice"), [({}, 19), ({"nice": 3}, 3), ({"nice": 0}, 0)])
def test_background_saves_stand_back_and_others_do_not(memory_store, options, nice):
    before = os.getpriority(os.PRIO_PROCESS, 0)
    store = Noted(memory_store)
    with checkpointer(store, **options) as ckpt:
        (ckpt.directory / "large.bin").write_bytes(os.urandom(1 << 20))
        save(ckpt, "beside").result()
        assert set(store.nice) == {max(before, nice)}
        store.nice = ()
        save(ckpt, "after", block=True)

    assert set(store.nice) == {before}


# Options, steps, deletion -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"when_full": "drop"}, "when_full='drop' is none of wait, skip"),
        ({"on_error": "ignore"}, "on_error='ignore' is none of raise, warn"),
        ({"max_in_flight": 0}, "max_in_flight=0"),
        ({"grace_seconds": -1}, "grace period -1"),
        ({"nice": 20}, "nice=20 is none of the whole numbers from 0 to 19"),
        ({"nice": 0.5}, "nice=0.5"),
    ],
)
def test_wrong_options_are_refused(memory_store, options, message):
    with pytest.raises(SettingsError, match=message):
        checkpointer(memory_store, **options)


def test_a_grace_period_in_the_environment_must_be_a_number(memory_store, monkeypatch):
    monkeypatch.setenv("HFFLOWS_GRACE_SECONDS", "soon")
    with pytest.raises(SettingsError, match="HFFLOWS_GRACE_SECONDS"):
        checkpointer(memory_store)


def test_a_step_is_kept_in_the_metadata(memory_store):
    with checkpointer(memory_store) as ckpt:
        assert save(ckpt, "x", step=5, metadata={"a": 1}).result(30).metadata == {"a": 1, "step": 5}
        assert save(ckpt, "x", step=5, metadata={"step": 5}, block=True).metadata == {"step": 5}
        with pytest.raises(SettingsError, match="step=5 and metadata"):
            ckpt.save(step=5, metadata={"step": 6})


def test_a_deleted_checkpoint_is_gone_and_the_one_before_is_the_latest(memory_store, tmp_path):
    with checkpointer(memory_store) as ckpt:
        refs = [save(ckpt, text, block=True) for text in ("one", "two", "three")]
        ckpt.delete(refs[2])
        assert ckpt.latest() == refs[1]
        assert ckpt.list() == [refs[1], refs[0]]
        with pytest.raises(CheckpointNotFoundError):
            ckpt.delete(refs[2])
        with pytest.raises(SettingsError, match="not the key of a checkpoint"):
            ckpt.delete("refs/model/x/y.json")
        set_alias("production", refs[0], store=memory_store)
        with pytest.raises(ArtifactInUseError, match="production"):
            ckpt.delete(refs[0].key)
        ckpt.delete(refs[0].model_dump(mode="json"), force=True)
        assert ckpt.list() == [refs[1]]
        again = save(ckpt, "four", block=True)
        assert text_of(ckpt, again, tmp_path) == "four"


def test_saves_of_given_paths_load_nothing(memory_store, tmp_path):
    with checkpointer(memory_store) as ckpt:
        save(ckpt, "there", block=True)
    (tmp_path / "state.txt").write_text("x")
    counting = FaultyStore(memory_store, only={"get", "get_range", "stream_range"})
    ckpt = Checkpointer(ME, store=counting)
    ckpt.save(tmp_path / "state.txt", block=False, name="other").result(30)
    assert counting.calls <= 2  # the plans of collections; not the checkpoint that is there
    ckpt.close()
