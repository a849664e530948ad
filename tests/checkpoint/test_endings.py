"""How a process ends, and what becomes of the saves under way: scripts of their own."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hfflows.checkpoint import Checkpointer, watch_preemption
from hfflows.checkpoint._preemption import PREEMPTION, grace_budget
from hfflows.errors import SettingsError
from hfflows.identity import RunIdentity
from hfflows.storage import open_store

ME = RunIdentity("team", "flow", "train", run="run")

PRELUDE = """
import logging, os, signal, sys, time
from pathlib import Path
from hfflows.checkpoint import Checkpointer
from hfflows.errors import StorageUnavailableError
from hfflows.identity import RunIdentity
from hfflows.storage import open_store
from hfflows.testing import FaultyStore, SlowStore

logging.basicConfig(format="LOG %(message)s")
root = Path(sys.argv[1])
store = open_store(root / "store")

def checkpointer(latency=0.1, **options):
    me = RunIdentity("team", "flow", "train", run="run")
    (root / "temporary").mkdir(exist_ok=True)
    slow = SlowStore(store, latency_seconds=latency)
    return Checkpointer(me, store=slow, temp_dir_root=root / "temporary", **options)

def save(ckpt, text, **options):
    (ckpt.directory / "state.txt").write_text(text)
    return ckpt.save(metadata={"text": text}, **({"block": False} | options))

def say(word):
    print(word, flush=True)

def sleep():
    for _ in range(3000):
        time.sleep(0.01)
    say("never told to end")
"""


class Script:
    """A process, started; what it says is read line by line."""

    def __init__(self, root, body):
        self.root = root
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + body, str(root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def hear(self, word):
        line = self.process.stdout.readline().strip()
        assert line == word, self.process.communicate()[1]

    def end(self, number=None):
        """Send a signal, wait, and return (exit status, what it said, its log)."""
        if number is not None:
            self.process.send_signal(number)
        said, log = self.process.communicate(timeout=60)
        return self.process.returncode, said.split("\n")[:-1], log

    def saved(self):
        ckpt = Checkpointer(ME, store=open_store(self.root / "store"))
        return [ref.metadata["text"] for ref in ckpt.list()]

    def is_clean(self):
        return list((self.root / "temporary").iterdir()) == []


@pytest.fixture
def script(tmp_path):
    started = []

    def start(body):
        started.append(Script(tmp_path, body))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


# The interpreter's end -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("last_line", "status"),
    [("", 0), ("sys.exit(3)", 3), ("raise ZeroDivisionError", 1)],
    ids=["end", "exit", "error"],
)
def test_a_script_without_a_context_loses_no_save(script, last_line, status):
    one = script(
        f"ckpt = checkpointer(max_in_flight=2)\nsave(ckpt, 'a')\nsave(ckpt, 'b')\n{last_line}"
    )
    assert one.end()[0] == status
    assert one.saved() == ["b", "a"]
    assert one.is_clean()


@pytest.mark.slow
def test_an_error_at_the_end_is_in_the_log(script):
    one = script("""
class Down(FaultyStore):
    def _call(self, method, key, function):
        if method in {"put", "create"}:
            raise StorageUnavailableError("the store is down")
        return super()._call(method, key, function)
store = Down(store)
save(checkpointer(), "lost")
""")
    status, _, log = one.end()
    assert status == 0
    assert log.count("LOG A checkpoint was not saved in the background: the store is down") == 1


# SIGKILL --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_between_stage_and_commit_the_one_before_stands(script):
    one = script("""
save(checkpointer(0), "before", block=True)
store = FaultyStore(store, fail_at=1, when="hang", only={"create"})
with checkpointer(0) as ckpt:
    save(ckpt, "killed")
    store.wait_until_hanging(30)
    say("all but committed")
    sleep()
""")
    one.hear("all but committed")
    assert one.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert one.saved() == ["before"]
    with Checkpointer(ME, store=open_store(one.root / "store")) as ckpt:
        assert (ckpt.directory / "state.txt").read_text() == "before"
        (ckpt.directory / "state.txt").write_text("after")
        ckpt.save(metadata={"text": "after"})
    assert one.saved() == ["after", "before"]


# SIGTERM --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_where_nobody_handles_it_the_save_is_finished_and_the_process_ends(script):
    one = script("with checkpointer() as ckpt:\n  save(ckpt, 'a')\n  say('ready')\n  sleep()")
    one.hear("ready")
    began = time.monotonic()
    assert one.end(signal.SIGTERM)[:2] == (143, [])
    assert time.monotonic() - began < 10
    assert one.saved() == ["a"]
    assert one.is_clean()


@pytest.mark.slow
def test_without_a_context_too(script):
    one = script("ckpt = checkpointer()\nsave(ckpt, 'a')\nsay('ready')\nsleep()")
    one.hear("ready")
    assert one.end(signal.SIGTERM)[:2] == (143, [])
    assert one.saved() == ["a"]
    assert one.is_clean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("with checkpointer(0.3) as ckpt:\n  save(ckpt, 'a')\n  say('ready')\nsay('on')", 143),
        ("ckpt = checkpointer(0.3)\nsave(ckpt, 'a')\nsay('ready')", 0),
    ],
    ids=["context", "script"],
)
def test_when_it_comes_while_the_last_save_is_finished_that_goes_on(script, body, status):
    one = script(body)
    one.hear("ready")
    time.sleep(0.3)
    assert one.end(signal.SIGTERM) == (status, [], "")
    assert one.saved() == ["a"]
    assert one.is_clean()


@pytest.mark.slow
def test_a_handler_that_is_there_is_called_as_ever(script):
    one = script("""
def handler(number, frame):
    say("theirs")
signal.signal(signal.SIGTERM, handler)
with checkpointer(grace_seconds=20) as ckpt:
    save(ckpt, "a")
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not ckpt.is_preempted and ckpt.grace_seconds_left is None
    say("ready")
    while not ckpt.is_preempted:
        time.sleep(0.01)
    say(15 < ckpt.grace_seconds_left <= 16)
assert signal.getsignal(signal.SIGTERM) is handler
assert signal.set_wakeup_fd(-1) == -1
""")
    one.hear("ready")
    assert one.end(signal.SIGTERM) == (0, ["theirs", "True"], "")
    assert one.saved() == ["a"]


@pytest.mark.slow
def test_a_handler_that_raises_ends_the_body_within_the_grace_period(script):
    one = script("""
class Terminated(BaseException):
    pass
def handler(number, frame):
    raise Terminated
signal.signal(signal.SIGTERM, handler)
try:
    with checkpointer(5, grace_seconds=1) as ckpt:
        (root / "state").touch()
        ckpt.save(root / "state", block=False, name="late")
        try:
            say("ready")
            sleep()
        finally:
            say(ckpt.is_preempted)
except Terminated:
    say("passed on")
    os._exit(5)
""")
    one.hear("ready")
    began = time.monotonic()
    status, said, log = one.end(signal.SIGTERM)
    assert (status, said) == (5, ["True", "passed on"])
    assert time.monotonic() - began < 4
    assert "LOG Checkpoint 'late' is dropped, the process ends" in log
    assert one.saved() == []


@pytest.mark.slow
def test_a_body_that_looks_saves_once_more_and_leaves(script):
    one = script("""
with checkpointer(0) as ckpt:
    save(ckpt, "a", block=True)
    assert not ckpt.is_preempted
    say("ready")
    while not ckpt.is_preempted:
        time.sleep(0.01)
    (ckpt.directory / "state.txt").write_text("last")
    assert ckpt.fits(1)
    ref = ckpt.save_if_it_fits(metadata={"text": "last"}, step=7)
    say(ref.metadata["step"])
say("not reached")
""")
    one.hear("ready")
    assert one.end(signal.SIGTERM)[:2] == (143, ["7"])
    assert one.saved() == ["last", "a"]


@pytest.mark.slow
def test_what_does_not_fit_is_not_begun(script):
    one = script("""
with checkpointer(0.2, grace_seconds=1.5) as ckpt:
    save(ckpt, "a", block=True)
    assert not ckpt.is_preempted
    say("ready")
    while not ckpt.is_preempted:
        time.sleep(0.01)
    (ckpt.directory / "state.txt").write_text("last")
    say(ckpt.fits(1 << 30))
    say(ckpt.save_if_it_fits(name="last"))
    say(ckpt.goodput().saves_dropped)
""")
    one.hear("ready")
    status, said, log = one.end(signal.SIGTERM)
    assert (status, said) == (143, ["False", "None", "1"])
    assert "LOG Checkpoint 'last' is dropped, the process ends: it takes" in log
    assert one.saved() == ["a"]


@pytest.mark.slow
def test_what_takes_too_long_after_all_is_given_up(script):
    one = script("""
with checkpointer(0.6, grace_seconds=2.5) as ckpt:
    ckpt.is_preempted
    say("ready")
    while not ckpt.is_preempted:
        time.sleep(0.01)
    (ckpt.directory / "state.txt").write_text("last")
    say(ckpt.save_if_it_fits(name="last"))
    os._exit(0)
""")
    one.hear("ready")
    _, said, log = one.end(signal.SIGTERM)
    assert said == ["None"]
    assert "'last' is dropped, the process ends: it took too long" in log
    assert one.saved() == []


@pytest.mark.slow
def test_a_body_that_looks_and_stays_is_ended_with_the_grace_period(script):
    one = script("""
with checkpointer(0, grace_seconds=1) as ckpt:
    ckpt.is_preempted
    save(ckpt, "a", block=True)
    say("ready")
    sleep()
""")
    one.hear("ready")
    began = time.monotonic()
    assert one.end(signal.SIGTERM)[:2] == (143, [])
    assert 0.7 < time.monotonic() - began < 5
    assert one.saved() == ["a"]


@pytest.mark.slow
@pytest.mark.parametrize("theirs", [True, False])
def test_a_forked_child_dies_of_it_alone(script, theirs):
    handler = "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(9))" if theirs else ""
    one = script(f"""
import multiprocessing
{handler}
with checkpointer(0) as ckpt:
    save(ckpt, "a", block=True)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    child.start()
    time.sleep(0.2)
    child.terminate()
    child.join(10)
    say(child.exitcode)
    say(ckpt.is_preempted)
    say(ckpt.directory.is_dir())
""")
    status, said, log = one.end()
    assert (status, said) == (0, ["9" if theirs else "-15", "False", "True"]), log


# In this process --------------------------------------------------------------------------------


@pytest.fixture
def heard():
    """Handle SIGTERM as somebody else would, and return what came."""
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    yield heard
    signal.signal(signal.SIGTERM, before)


def test_a_body_in_a_thread_sees_what_the_main_thread_watches_for(memory_store, heard):
    seen, ready = [], threading.Event()

    def body():
        with Checkpointer(ME, store=memory_store) as ckpt:
            seen.append(ckpt.is_preempted)
            ready.set()
            deadline = time.monotonic() + 10
            while not ckpt.is_preempted and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(ckpt.is_preempted)

    thread = threading.Thread(target=body)
    with watch_preemption():
        thread.start()
        assert ready.wait(10)
        os.kill(os.getpid(), signal.SIGTERM)
        thread.join()
    assert seen == [False, True]
    assert heard == [signal.SIGTERM]
    assert PREEMPTION.noticed_at is None  # for the next one
    assert signal.set_wakeup_fd(-1) == -1


def test_a_thread_cannot_watch():
    raised = []

    def body():
        try:
            with watch_preemption():
                pass
        except SettingsError as error:
            raised.append(str(error))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert "main thread" in raised[0]


def test_an_event_loops_descriptor_is_left_alone(memory_store, heard):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    try:
        with Checkpointer(ME, store=memory_store) as ckpt:
            os.kill(os.getpid(), signal.SIGTERM)
            assert os.read(reader, 1) == bytes([signal.SIGTERM])
            assert not ckpt.is_preempted
    finally:
        assert signal.set_wakeup_fd(-1) == writer
    assert heard == [signal.SIGTERM]


def test_everything_is_put_back(memory_store):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with Checkpointer(ME, store=memory_store), watch_preemption():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(("given", "budget"), [(None, 25), (60, 55), (10, 8), (0, 0)])
def test_a_part_of_the_grace_period_is_kept_for_what_comes_after(given, budget):
    assert grace_budget(given) == budget


def test_the_grace_period_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("HFFLOWS_GRACE_SECONDS", "120")
    assert grace_budget(None) == 115
    assert grace_budget(30) == 25
