"""A training run, ended at random moments: it goes on, and ends as if nothing had happened.

`HFFLOWS_KILLS=100` makes it a hundred of each kind.
"""

import contextlib
import os
import random
import signal
import subprocess
import time

import pytest

from hfflows.checkpoint import Checkpointer
from hfflows.identity import RunIdentity
from hfflows.storage import open_store
from tests.checkpoint import training
from tests.processes import PROCESSES

KILLS = int(os.environ.get("HFFLOWS_KILLS", "5"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400 + 20 * KILLS)]


class Forked:
    """One attempt in a process of its own, and what it says."""

    def __init__(self, *arguments):
        self._hear, say = PROCESSES.Pipe(duplex=False)
        self._process = PROCESSES.Process(target=training.forked, args=(arguments, say))
        self._process.start()
        say.close()

    @property
    def pid(self):
        return self._process.pid

    def hear(self):
        """Return the next it says; `None` when it has ended."""
        try:
            return self._hear.recv()
        except EOFError:
            return None

    def end(self):
        """Return its exit status and what else it said."""
        said = list(iter(self.hear, None))
        self._process.join()
        return self._process.exitcode, said


class Trial:
    """Runs of training that are ended again and again, until each has come to its end.

    Args:
        root: Where the store and everything temporary lies.
        kind: A process in which to train.
        disturb: Ends the attempt it is given, or makes it end.
        arguments: For each attempt, after its number.
    """

    def __init__(self, root, *, kind=Forked, disturb=None, arguments=lambda _: []):
        self.store_path, self.temporary = root / "store", root / "temporary"
        self.kind, self.disturb, self.arguments = kind, disturb, arguments
        self.moments = random.Random(7)
        self.ended = 0
        self.restarts = 0
        self.seconds = 0.0
        """How long an undisturbed attempt trains."""
        self.expected = self.attempt("undisturbed", 1, disturb=False)

    def newest_step(self, run):
        """Return the step of the newest committed checkpoint, as it is in the store."""
        me = RunIdentity("team", "flow", "train", run=run)
        newest = Checkpointer(me, store=open_store(self.store_path)).latest()
        return newest.metadata["step"] if newest is not None else 0

    def attempt(self, run, number, *, disturb=True):
        """Return the digest of the final weights; `None` when the attempt did not get there."""
        before = self.newest_step(run)
        names = ["--run", run, "--attempt", str(number), "--temporary", str(self.temporary)]
        one = self.kind(str(self.store_path), *names, *self.arguments(number))
        assert one.hear() == ["begins", before]  # nothing that was committed is done again
        if disturb and self.disturb is not None:
            time.sleep(self.moments.uniform(0, self.seconds))
            self.disturb(one)
        began = time.monotonic()
        status, said = one.end()
        self.seconds = self.seconds or time.monotonic() - began
        asked = [step for what, step in said if what == "asked"]
        newest = self.newest_step(run)
        assert before <= newest <= max([before, *asked]) + training.SAVE_EVERY
        if status == 143:
            assert newest >= max([before, *asked])  # what was under way was finished
        if said and said[-1][0] == "done":
            return said[-1][1]
        assert status != 0
        self.ended += 1
        return None

    def go_on(self, times):
        """End attempts until so many have been, and bring each run to its end."""
        runs = 0
        while self.ended < times:
            runs += 1
            number, digest = 0, None
            while digest is None:
                number += 1
                assert number < 100
                digest = self.attempt(f"run-{runs}", number, disturb=self.ended < times)
            assert digest == self.expected
            assert self.newest_step(f"run-{runs}") == training.STEPS
            self.restarts += number - 1


def send(number):
    """Return a disturbance: a signal, if the attempt is still there to get it."""

    def disturb(one):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, number)

    return disturb


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_killed_at_random_moments_it_ends_with_the_same_weights(tmp_path, number):
    trial = Trial(tmp_path, disturb=send(number))
    trial.go_on(KILLS)
    assert trial.restarts == trial.ended >= KILLS


def test_with_torch_dropout_and_adam_it_does_too(tmp_path):
    arguments = ["--torch", "--step-seconds", "0.01"]
    trial = Trial(tmp_path, disturb=send(signal.SIGKILL), arguments=lambda _: arguments)
    trial.go_on(KILLS)


def test_with_a_store_that_fails_now_and_then(tmp_path):
    trial = Trial(tmp_path)
    trial.arguments = lambda _: ["--flaky"]
    trial.go_on(KILLS)


def test_with_a_clock_that_jumps_back_an_hour_between_attempts(tmp_path):
    trial = Trial(
        tmp_path,
        disturb=send(signal.SIGKILL),
        arguments=lambda number: ["--clock-back", str(3600 * (number - 1))],
    )
    trial.go_on(KILLS)


@pytest.fixture
def small_disk(tmp_path):
    """Return a directory on a file system of a few megabytes."""
    directory = tmp_path / "small"
    directory.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={16 + 4 * KILLS}m", "tmpfs", str(directory)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system here")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_with_a_disk_that_is_full_now_and_then(small_disk):
    filler = small_disk / "filler"

    def fill(_):
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while file.write(b"x" * 65536):
                file.flush()

    class Filled(Forked):
        def end(self):
            try:
                return super().end()
            finally:
                filler.unlink(missing_ok=True)

    trial = Trial(small_disk, kind=Filled, disturb=fill)
    trial.go_on(KILLS)
