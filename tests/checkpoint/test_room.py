"""Temporary directories: whose they are, and who deletes them when that process was killed."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hfflows.checkpoint import Checkpointer
from hfflows.checkpoint import _room as room_module
from hfflows.checkpoint._room import make_room, sweep
from hfflows.identity import RunIdentity

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are locks on Linux only")

ME = RunIdentity("team", "flow", "train", run="run")

SAVING = """
import sys
from pathlib import Path
from hfflows.checkpoint import Checkpointer
from hfflows.identity import RunIdentity
from hfflows.storage import open_store
from hfflows.testing import FaultyStore

root = Path(sys.argv[1])
store = FaultyStore(open_store(root / "store"), fail_at=1, when="hang", only={"create"})
me = RunIdentity("team", "flow", "train", run="theirs")
with Checkpointer(me, store=store, temp_dir_root=root / "temporary") as ckpt:
    (ckpt.directory / "state").write_text("theirs")
    ckpt.save(block=False)
    store.wait_until_hanging(30)
    print(ckpt.directory, flush=True)
    sys.stdin.read()
"""


class Saving:
    """A process in the middle of a save in the background."""

    def __init__(self, root):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SAVING, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def room(self):
        return Path(self.process.stdout.readline().strip()).parent

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.mark.slow
def test_what_a_killed_process_left_is_deleted_and_a_live_ones_is_not(
    memory_store, tmp_path, caplog
):
    killed, alive = Saving(tmp_path), Saving(tmp_path)
    try:
        rooms = [one.room() for one in (killed, alive)]
        for room in rooms:
            assert len(list(room.glob("staged-*/tree/state"))) == 1
        killed.kill()

        with (
            caplog.at_level(logging.INFO),
            Checkpointer(ME, temp_dir_root=tmp_path / "temporary", store=memory_store) as mine,
        ):
            assert mine.directory.is_dir()
            assert not rooms[0].exists()
            assert (rooms[1] / "checkpoint" / "state").read_text() == "theirs"
            assert list(rooms[1].glob("staged-*/tree/state"))
        assert str(rooms[0]) in caplog.text
        assert list((tmp_path / "temporary").iterdir()) == [rooms[1]]
    finally:
        killed.kill()
        alive.kill()
    assert sweep(tmp_path / "temporary") == [rooms[1]]
    assert list((tmp_path / "temporary").iterdir()) == []


def abandoned(root):
    """Return the room of a process that ended without a chance to delete it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, bytes(make_room(root).path))
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as stream:
        return Path(os.fsdecode(stream.read()))


def test_a_room_is_kept_while_a_forked_child_may_use_it(tmp_path):
    told, tell = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.close(tell)
        make_room(tmp_path)
        if os.fork() == 0:
            os.read(told, 1)  # ends when the test closes the other end
        os._exit(0)
    os.close(told)
    os.waitpid(parent, 0)

    assert sweep(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 1
    os.close(tell)
    deadline = time.monotonic() + 10
    while not sweep(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


def without_mark(room, monkeypatch):
    (room / ".owner").unlink()


def with_a_foreign_mark(room, monkeypatch):
    (room / ".owner").write_text("not a boot id")


def of_another_boot(room, monkeypatch):
    (room / ".owner").write_text("8c2f5b3e-0000-4000-8000-000000000000")


def of_another_user(room, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 65533)


def of_another_name(room, monkeypatch):
    room.rename(room.with_name("mine-" + room.name))


def behind_a_link(room, monkeypatch):
    elsewhere = room.parent.parent / "elsewhere"
    room.rename(elsewhere)
    room.symlink_to(elsewhere)


@pytest.mark.parametrize(
    "make",
    [
        without_mark,
        with_a_foreign_mark,
        of_another_boot,
        of_another_user,
        of_another_name,
        behind_a_link,
    ],
)
def test_what_is_not_surely_a_dead_process_s_stays(tmp_path, monkeypatch, make):
    root = tmp_path / "root"
    room = abandoned(root)
    (room / "file").write_text("kept")
    make(room, monkeypatch)

    assert sweep(root) == []
    assert len(list(tmp_path.rglob("file"))) == 1


def test_an_abandoned_room_is_deleted_with_all_that_is_in_it(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("x")
    room = abandoned(tmp_path)
    (room / "checkpoint" / "deep").mkdir(parents=True)
    (room / "checkpoint" / "deep" / "file").write_text("x")
    (room / "link").symlink_to(kept)

    assert sweep(tmp_path) == [room]
    assert list(tmp_path.iterdir()) == [kept]
    assert sweep(tmp_path / "not there") == []


def test_the_rooms_of_one_process_are_safe_from_each_other(tmp_path):
    rooms = [make_room(tmp_path) for _ in range(3)]

    assert sweep(tmp_path) == []
    for room in rooms:
        room.remove()
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_sweep_at_once_one_deletes_each_room(tmp_path):
    rooms = [abandoned(tmp_path) for _ in range(8)]
    begin, swept = threading.Barrier(4), []

    def run():
        begin.wait()
        swept.extend(sweep(tmp_path))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(swept) == sorted(rooms)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_is_interrupted_is_finished_by_the_next(tmp_path):
    room = abandoned(tmp_path)
    (room / "checkpoint").mkdir()
    child = os.fork()
    if child == 0:
        room_module.shutil.rmtree = lambda *_args, **_options: os._exit(7)
        sweep(tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

    assert sweep(tmp_path) == [room]
    assert list(tmp_path.iterdir()) == []


def test_where_there_are_no_locks_a_room_is_used_and_never_swept(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(room_module.fcntl, "flock", refuse)
    room = make_room(tmp_path)
    assert list(room.path.iterdir()) == []
    monkeypatch.undo()

    assert sweep(tmp_path) == []
    room.remove()
    assert list(tmp_path.iterdir()) == []
