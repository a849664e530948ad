"""What an attempt got done: the account itself, and what a `Checkpointer` puts into it."""

from dataclasses import replace
from itertools import count

import pytest

from hfflows.artifacts import TransferReport, read_tree
from hfflows.checkpoint import Checkpointer, Goodput
from hfflows.checkpoint._goodput import Meter, step_in
from hfflows.identity import RunIdentity
from hfflows.testing import SlowStore

ME = RunIdentity("team", "retrain", "train", run="run-1", attempt="001")


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def saved(clock, seconds, size_bytes=0):
    """Return a commit that takes so long."""

    class Ref:
        pass

    def commit():
        clock.now += seconds
        ref = Ref()
        ref.size_bytes = size_bytes
        return ref

    return commit


def test_nothing_done_is_nothing(clock):
    assert Meter(clock).goodput(TransferReport()) == Goodput(seconds=0.0)
    assert Goodput(0.0).blocked_share == 0
    assert Goodput(0.0).steps_done is None


def test_times_outcomes_and_bytes_add_up(clock):
    meter, report = Meter(clock), TransferReport(bytes_covered=10, bytes_sent=4)
    with meter.timed("load"):
        clock.now += 3
    for _ in range(2):
        with meter.timed("blocked"):
            meter.measured(saved(clock, 1))
    with meter.timed("background"), pytest.raises(ZeroDivisionError):
        clock.now += 5
        meter.measured(lambda: 1 / 0)
    meter.ended("skipped")
    meter.ended("dropped", 2)
    goodput = meter.goodput(report)
    assert goodput == Goodput(
        seconds=10,
        saves=2,
        saves_failed=1,
        saves_skipped=1,
        saves_dropped=2,
        load_seconds=3,
        blocked_seconds=2,
        background_seconds=5,
        bytes_covered=10,
        bytes_sent=4,
    )
    assert goodput.blocked_share == 0.2


@pytest.mark.parametrize(
    ("first", "before", "last", "done", "repeated"),
    [
        (None, None, None, None, 0),
        (None, None, 7, 7, 0),
        (40, 40, 100, 60, 0),
        (40, 50, 100, 60, 10),  # the newest, of step 50, was broken
        (40, 50, 44, 4, 4),  # and it did not get there again
        (None, 50, 100, 100, 50),  # none could be loaded
        (40, 40, 40, 0, 0),
    ],
)
def test_steps(clock, first, before, last, done, repeated):
    meter = Meter(clock)
    meter.began_from(first, reached_before=before, restarts=1)
    for step in (last, (last or 1) - 1 if last else None, None):
        meter.reached(step)
    goodput = meter.goodput(TransferReport())
    assert (goodput.steps_done, goodput.steps_repeated) == (done, repeated)


@pytest.mark.parametrize(
    ("recent", "size", "seconds"),
    [
        ([], 1 << 30, 0),
        ([(100 << 20, 2)], 100 << 20, 2),
        ([(100 << 20, 2)], 300 << 20, 6),
        ([(100 << 20, 2)], 1 << 20, 2),  # a smaller one is not counted on to be faster
        ([(100 << 20, 2), (100 << 20, 1)], 100 << 20, 2),  # the slowest counts
        ([(100 << 20, 9), *[(100 << 20, 1)] * 3], 100 << 20, 1),  # of the last three
        ([(3, 0.02)], 10, 0.02),
        ([(3, 0.02)], 10 << 20, 0.2),  # not a gibibyte a day
    ],
)
def test_how_long_a_save_will_take(clock, recent, size, seconds):
    meter = Meter(clock)
    for size_bytes, took in recent:
        meter.measured(saved(clock, took, size_bytes))
    assert meter.seconds_for(size) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("recent", "seconds"),
    [
        ([(9, True), (5, True), (7, True)], 5),  # no longer than that when nothing else runs
        ([(9, True), (1, False), (2, False)], 2),
        ([(1, False), (9, True), (8, True), (7, True)], 7),
    ],
)
def test_saves_that_stood_back_say_little_of_how_long_the_last_one_takes(clock, recent, seconds):
    meter = Meter(clock)
    for took, beside_others in recent:
        meter.measured(saved(clock, took, 100 << 20), beside_others=beside_others)
    assert meter.seconds_for(100 << 20) == seconds


@pytest.mark.parametrize(
    ("metadata", "step"),
    [({}, None), ({"step": 3}, 3), ({"step": "3"}, None), ({"step": True}, None)],
)
def test_the_step_in_metadata(metadata, step):
    assert step_in(metadata) == step


def test_a_checkpointer_keeps_the_account(memory_store):
    attempts = (replace(ME, attempt=f"{number:03d}") for number in count(1))
    for number, identity in zip(range(3), attempts, strict=False):
        with Checkpointer(identity, store=SlowStore(memory_store, latency_seconds=0.01)) as ckpt:
            for step in range(10 * number, 10 * number + 10, 5):
                (ckpt.directory / "state").write_text(str(step))
                ckpt.save(step=step + 5, block=number % 2 == 0)
            ckpt.wait()
            goodput = ckpt.goodput()
        assert goodput.restarts == number
        assert goodput.first_step == (10 * number or None)
        assert (goodput.steps_done, goodput.saves) == (10, 2)
        assert goodput.bytes_covered >= goodput.bytes_sent > 0
        assert 0.05 < goodput.blocked_seconds < goodput.seconds
        assert (goodput.background_seconds > 0.05) == (number == 1)
        assert goodput.load_seconds > 0


def test_steps_in_broken_checkpoints_are_repeated(memory_store):
    with Checkpointer(ME, store=memory_store) as ckpt:
        for step in (10, 20):
            (ckpt.directory / "state").write_text(str(step))
            broken = ckpt.save(step=step)
    memory_store.put(next(iter(read_tree(broken, store=memory_store).object_keys())), b"XX")
    with Checkpointer(replace(ME, attempt="002"), store=memory_store) as ckpt:
        assert [one.ref for one in ckpt.passed_over] == [broken]
        assert "is damaged" in ckpt.passed_over[0].reason
        ckpt.save(step=30)
        goodput = ckpt.goodput()
    assert (goodput.first_step, goodput.steps_done, goodput.steps_repeated) == (10, 20, 10)
    assert goodput.restarts == 1
