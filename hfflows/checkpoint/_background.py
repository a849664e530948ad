"""Saves under way in the background: one after the other, so many at most, none forgotten.

One thread commits them in the order in which they were asked for. Whoever wants to know of
one asks its `PendingSave`; an error that nobody asked for is handed out once, by
`take_errors`.

At the end of the interpreter they are finished before `concurrent.futures` stops: it does so
before any `atexit` function runs, and from then on no save can send its pieces.

A signal handler may raise anywhere in the main thread, also between taking a lock of a `Future`
and giving it back. So what this module itself waits for is plain attributes, and no save
depends on a lock that the main thread takes.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread
import logging
import os
import threading
import time
import weakref
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

from hfflows.refs import ArtifactRef

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from hfflows.checkpoint._staging import StagedBy

    _Item = tuple["PendingSave", Callable[[], ArtifactRef]]

logger = logging.getLogger("hfflows.checkpoint")

_LONGEST_PAUSE_SECONDS = 0.02


class PendingSave(concurrent.futures.Future[ArtifactRef]):
    """A save in the background: a `Future` of its reference.

    Attributes:
        name: Name that the checkpoint is listed by.
        is_skipped: Nothing was saved, because too many saves were under way; `result` then
            raises `concurrent.futures.CancelledError`.
        staged_by: How its files were put aside: `move`, `reflink`, `copy`; `None` when they
            were not, and the call waited for the save instead.
        size_bytes: Size of its files.
    """

    def __init__(
        self, name: str, *, size_bytes: int = 0, staged_by: StagedBy | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.size_bytes = size_bytes
        self.staged_by = staged_by
        self.is_skipped = False
        self.is_told = False
        """Whether its error has reached somebody."""
        self.is_over = False
        self.error: BaseException | None = None

    @classmethod
    def skipped(cls, name: str) -> PendingSave:
        """Return one that was not begun."""
        save = cls(name)
        save.is_skipped = True
        save.give_up()
        return save

    def run(self, job: Callable[[], ArtifactRef]) -> None:
        """Be what comes of `job`, unless it was given up."""
        if self.is_over:
            return
        ref: ArtifactRef | None = None
        with _Recorded() as recorded:
            ref = job()
        self.error = recorded.error
        self.is_over = True  # before anything that takes a lock
        if self.error is not None:
            self.set_exception(self.error)
        elif ref is not None:
            self.set_result(ref)

    def give_up(self) -> None:
        """Be over without a result, if it has not begun."""
        self.is_over = True
        super().cancel()
        self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Return false: a save that was asked for is not taken back."""
        return False

    def result(self, timeout: float | None = None) -> ArtifactRef:
        """Return the reference, once the checkpoint is committed.

        Raises:
            TimeoutError: It was not within `timeout` seconds.
            concurrent.futures.CancelledError: It was skipped, or dropped at the end.
            As `hfflows.save_artifact`.
        """
        super().exception(timeout)  # raises what says that it is not over
        self.is_told = True
        return super().result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the error, once the save is over; `None` when it was committed."""
        error = super().exception(timeout)
        self.is_told = True
        return error


class BackgroundSaves:
    """The saves of one checkpointer.

    Args:
        max_in_flight: How many may be put aside and not yet committed.
        seconds_left: How long saves may still take; `None` is as long as they need.
    """

    def __init__(self, max_in_flight: int, seconds_left: Callable[[], float | None]) -> None:
        self._max_in_flight = max_in_flight
        self._seconds_left = seconds_left
        self._queue: SimpleQueue[_Item | None] | None = None
        self._asked_for: list[PendingSave] = []
        self._pid = os.getpid()

    @property
    def is_full(self) -> bool:
        """Whether another one would be too many."""
        return len(self.unfinished()) >= self._max_in_flight

    def unfinished(self) -> list[PendingSave]:
        """Return those that are not over, in the order in which they were asked for."""
        if os.getpid() != self._pid:  # a forked child: the thread that saves is its parent's
            self._queue, self._asked_for, self._pid = None, [], os.getpid()
        return [save for save in self._asked_for if not save.is_over]

    def submit(self, save: PendingSave, job: Callable[[], ArtifactRef]) -> None:
        """Let `job` run after those that came before it; `save` gets what comes of it."""
        if self._queue is None:
            self._queue = SimpleQueue()
            weakref.finalize(self, self._queue.put, None)
            name = "hfflows-checkpoint"
            threading.Thread(target=_work, args=(self._queue,), name=name, daemon=True).start()
            _at_exit.add(self)
        self._asked_for.append(save)
        self._queue.put((save, job))

    def wait_for_room(self) -> None:
        """Return when another one would not be too many."""
        _wait_while(lambda: self.is_full)

    def wait(self, seconds: float | None = None) -> bool:
        """Return whether all are over, after `seconds` at the latest."""
        return _wait_while(lambda: bool(self.unfinished()), seconds)

    def wait_for(self, save: PendingSave, seconds: float | None = None) -> bool:
        """Return whether this one is over, after `seconds` at the latest."""
        return _wait_while(lambda: not save.is_over, seconds)

    def take_errors(self) -> list[BaseException]:
        """Return the errors of saves that are over, each once, and forget these saves."""
        unfinished = self.unfinished()
        over = [save for save in self._asked_for if save not in unfinished]
        self._asked_for = unfinished
        untold = [save for save in over if not save.is_told]
        for save in untold:
            save.is_told = True
        return [save.error for save in untold if save.error is not None]

    def drop(self) -> list[PendingSave]:
        """Give up what is not over and return it; the one that has begun may be committed yet."""
        dropped, self._asked_for = self.unfinished(), []
        for save in dropped[1:]:
            save.give_up()
        if self._queue is not None:
            self._queue.put(None)
            self._queue = None
        _at_exit.discard(self)
        return dropped

    def finish_at_exit(self) -> None:
        """Wait for what is under way when the interpreter ends, and log what is lost."""
        if not self.wait(self._seconds_left()):
            for save in self.unfinished():
                logger.warning("Checkpoint %r is dropped: no time is left to save it", save.name)
        for error in self.take_errors():
            logger.error("A checkpoint was not saved in the background: %s", error)


class _Recorded:
    """Keeps the exception that ends its body, for another thread to raise."""

    error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> bool:
        self.error = error
        return True


def _work(queue: SimpleQueue[_Item | None]) -> None:
    """Run what comes, until nothing will."""
    while (item := queue.get()) is not None:
        save, job = item
        save.run(job)
        del item, save, job  # or they would live until the next comes


def _wait_while(is_so: Callable[[], bool], seconds: float | None = None) -> bool:
    """Return whether it is no longer so, after `seconds` at the latest."""
    deadline = None if seconds is None else time.monotonic() + seconds
    pause = 0.0005
    while is_so():
        if deadline is not None and time.monotonic() >= deadline:
            return False
        left = pause if deadline is None else max(0.0, deadline - time.monotonic())
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    return True


_at_exit: weakref.WeakSet[BackgroundSaves] = weakref.WeakSet()


def _finish_all() -> None:
    for saves in list(_at_exit):
        try:
            saves.finish_at_exit()
        except SystemExit:  # SIGTERM has come now: from here on there is only so much time
            saves.finish_at_exit()


# Private, but there is no other way in: these run in reverse order, so this one before that of
# `concurrent.futures.thread`, whose executors refuse all work from then on.
getattr(threading, "_register_atexit", atexit.register)(_finish_all)
