"""When a checkpoint is saved: now, beside training, or as long as there is time."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from hfflows.artifacts import scan
from hfflows.checkpoint._background import BackgroundSaves, PendingSave
from hfflows.checkpoint._preemption import PREEMPTION, grace_budget
from hfflows.checkpoint._staging import remove, stage
from hfflows.errors import DiskSpaceError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hfflows.checkpoint._goodput import Meter
    from hfflows.checkpoint._log import Log
    from hfflows.checkpoint._writer import SaveOptions, Writer
    from hfflows.refs import ArtifactRef

WhenFull = Literal["wait", "skip"]
OnError = Literal["raise", "warn"]

_LEAST_PRIORITY = 19  # a nice value, see sched(7)


@dataclass(frozen=True, slots=True)
class SavePolicy:
    """What is done about saves that are many, late or failed.

    Args:
        max_in_flight: How many saves with `block=False` may be put aside and not committed.
        when_full: With so many under way the next one `wait`s, or it is `skip`ped.
        on_error: A failed background save is `raise`d by the next save, by `wait` or at the
            end; or it is logged (`warn`), and the next save is a new try.
        grace_seconds: From SIGTERM to SIGKILL; `None` means `HFFLOWS_GRACE_SECONDS`, else 30.
        nice: How far background saves stand back for training: 0, as an equal, to 19.

    Raises:
        SettingsError: An unknown word, or a number that makes no sense.
    """

    max_in_flight: int = 1
    when_full: WhenFull = "wait"
    on_error: OnError = "raise"
    grace_seconds: float | None = None
    nice: int = _LEAST_PRIORITY

    def __post_init__(self) -> None:
        check_option("when_full", self.when_full, get_args(WhenFull))
        check_option("on_error", self.on_error, get_args(OnError))
        grace_budget(self.grace_seconds)
        if self.max_in_flight < 1:
            msg = f"max_in_flight={self.max_in_flight}: one save at least must be allowed."
            raise SettingsError(msg)
        if self.nice not in range(_LEAST_PRIORITY + 1):
            msg = f"nice={self.nice!r} is none of the whole numbers from 0 to {_LEAST_PRIORITY}."
            raise SettingsError(msg)


def check_option(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices.

    Raises:
        SettingsError: Names the option and the choices.
    """
    if value not in choices:
        msg = f"{name}={value!r} is none of {', '.join(choices)}."
        raise SettingsError(msg)


class Saver:
    """The saves of one checkpointer.

    Args:
        writer: Commits what is at rest.
        policy: How many at once, and what of those that fail.
        meter: Gets the account.
        log: Where it says what was skipped, dropped or failed.
    """

    def __init__(self, writer: Writer, policy: SavePolicy, meter: Meter, log: Log) -> None:
        self._writer, self._policy = writer, policy
        self.budget_seconds = grace_budget(policy.grace_seconds)
        """How much of the grace period is for saves."""
        self._meter, self._log = meter, log
        self._told_to_end_at: float | None = None
        self._background = BackgroundSaves(policy.max_in_flight, self.seconds_left)

    def seconds_left(self) -> float | None:
        """Return how long saves may still take; `None` while nobody told us to end."""
        moments = (PREEMPTION.noticed_at, self._told_to_end_at)
        told = min((moment for moment in moments if moment is not None), default=None)
        if told is None:
            return None
        return max(0.0, told + self.budget_seconds - time.monotonic())

    def seconds_needed(self, size_bytes: int) -> float:
        """Return how long it takes to save so much more, by the last saves."""
        waiting = sum(save.size_bytes for save in self._background.unfinished())
        return self._meter.seconds_for(waiting + size_bytes)

    def now(self, source: Path, options: SaveOptions) -> ArtifactRef:
        """Save, after those under way."""
        self.wait()
        self._meter.reached(options.step)
        return self._commit(source, options)

    def later(
        self, source: Path, options: SaveOptions, *, room: Callable[[], Path], move: bool
    ) -> PendingSave:
        """Put aside what lies at `source` now, and save it in the background.

        Args:
            source: What to save.
            options: How.
            room: Makes the directory in which it is put aside.
            move: It is given away.
        """
        self._tell(self._background.take_errors())
        self._meter.reached(options.step)
        if self._background.is_full:
            if self._policy.when_full == "skip":
                return self._skipped(options)
            self._background.wait_for_room()
            self._tell(self._background.take_errors())
        try:
            staged = stage(source, room(), move=move)
        except DiskSpaceError as error:
            return self._at_once(source, options, error, move=move)

        def job() -> ArtifactRef:
            try:
                return self._commit_in_background(staged.path, options, nice=self._policy.nice)
            finally:
                staged.remove()

        save = PendingSave(options.name, size_bytes=staged.size_bytes, staged_by=staged.by)
        self._background.submit(save, job)
        return save

    def in_time(self, source: Path, options: SaveOptions) -> ArtifactRef | None:
        """Save if it can be done before this process ends; else return `None` and say so."""
        left = self.seconds_left()
        if left is None:
            return self.now(source, options)
        self._meter.reached(options.step)
        size_bytes = sum(file.size_bytes for file in scan(source).files)
        needed = self.seconds_needed(size_bytes)
        if needed > left:
            self._drop(options.name, f"it takes {needed:.1f} s, {left:.1f} s are left")
            return None
        save = PendingSave(options.name, size_bytes=size_bytes)
        self._background.submit(save, lambda: self._commit_in_background(source, options))
        if self._background.wait_for(save, self.seconds_left()):
            return save.result()
        self._drop(options.name, "it took too long")
        return None

    def wait(self) -> None:
        """Return when nothing is under way, and raise what went wrong since the last time."""
        self._background.wait()
        self._tell(self._background.take_errors())

    def finish(self, error: BaseException | None) -> None:
        """End with what is under way; `error` is what ends the body.

        An exception that is no `Exception` ends the process, or the task: Prefect's
        `TerminationSignal`, `CancelledError`, `SystemExit`. Then only so much time is left, also
        when it comes no earlier than now.
        """
        try:
            self._finish(error)
        except Exception:
            raise
        except BaseException as told:
            self._finish(told)
            raise

    def _finish(self, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, Exception):
            self._told_to_end_at = time.monotonic()
        if not self._background.wait(self.seconds_left()):
            for save in self._background.drop():
                self._drop(save.name, "it took too long")
        errors = self._background.take_errors()
        if error is None:
            self._tell(errors)
        elif self._policy.on_error == "raise":
            for one in errors:
                self._log.warning("A background save failed while the task was failing: %s", one)

    def close(self) -> None:
        """Give up what is under way."""
        self._background.drop()

    def _commit(self, location: Path, options: SaveOptions, *, nice: int = 0) -> ArtifactRef:
        def commit() -> ArtifactRef:
            if nice:
                # The store's client may begin threads now, which stay and serve others too.
                self._writer.find_newest()
                _stand_back(nice)
            return self._writer.commit(location, options)

        return self._meter.measured(commit, beside_others=nice > 0)

    def _commit_in_background(
        self, location: Path, options: SaveOptions, *, nice: int = 0
    ) -> ArtifactRef:
        try:
            with self._meter.timed("background"):
                return self._commit(location, options, nice=nice)
        except Exception as error:
            if self._policy.on_error == "warn":
                self._log.warning("Checkpoint %r was not saved: %s", options.name, error)
            raise

    def _at_once(
        self, source: Path, options: SaveOptions, error: DiskSpaceError, *, move: bool
    ) -> PendingSave:
        """Save without a copy, while training waits: late is better than not."""
        self._log.warning(
            "Checkpoint %r cannot be put aside, so training waits for it: %s", options.name, error
        )

        def job() -> ArtifactRef:
            ref = self._commit_in_background(source, options)
            if move:
                remove(source)
            return ref

        save = PendingSave(options.name)
        self._background.submit(save, job)
        self._background.wait_for(save)
        return save

    def _skipped(self, options: SaveOptions) -> PendingSave:
        self._meter.ended("skipped")
        self._log.warning(
            "Checkpoint %r is skipped: %d are under way, and no more may be",
            options.name,
            self._policy.max_in_flight,
        )
        return PendingSave.skipped(options.name)

    def _drop(self, name: str, reason: str) -> None:
        self._meter.ended("dropped")
        self._log.warning(
            "Checkpoint %r is dropped, the process ends: %s. The last committed one stands",
            name,
            reason,
        )

    def _tell(self, errors: list[BaseException]) -> None:
        """Raise the first of the errors, unless the user wants them in the log only."""
        if not errors or self._policy.on_error == "warn":
            return
        for other in errors[1:]:
            self._log.warning("Another background save failed: %s", other)
        raise errors[0]


def _stand_back(nice: int) -> None:
    """Let this thread, and those that it starts from now on, run when others leave time.

    A thread cannot take it back without being root. Linux only: elsewhere the number that
    names a thread means a process. Where it is forbidden, the save is as important as training.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            if nice > os.getpriority(os.PRIO_PROCESS, thread):
                os.setpriority(os.PRIO_PROCESS, thread, nice)
