"""Whether this process was told to end by SIGTERM, and how long it has left.

A handler that somebody installed stays, and is noticed beside: Prefect looks whether the
handler is its own before it reschedules or cancels a run. Only where nobody handles SIGTERM
there is a handler of ours, until the last watcher leaves:

| a body that | is told by |
|---|---|
| never looks at `is_preempted` | `SystemExit(143)` at once, so that `finally` and contexts run |
| looks at it | what it sees there; `SystemExit(143)` once it, or the grace period, is over |

Signals belong to the main thread: a watch that begins in another thread sees what a watch in
the main thread notices, and nothing without one. A forked child begins anew.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hfflows.checkpoint._wakeup import Wakeup
from hfflows.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

GRACE_VARIABLE = "HFFLOWS_GRACE_SECONDS"
DEFAULT_GRACE_SECONDS = 30.0  # between SIGTERM and SIGKILL: Kubernetes, and Prefect's cancel
MOST_RESERVE_SECONDS = 5.0
EXIT_STATUS = 128 + signal.SIGTERM


def grace_budget(grace_seconds: float | None) -> float:
    """Return how much of the grace period saves may use; the rest is for what comes after.

    Args:
        grace_seconds: From SIGTERM to SIGKILL; `None` means `HFFLOWS_GRACE_SECONDS`, else 30.

    Raises:
        SettingsError: Not a number of seconds.
    """
    given = os.environ.get(GRACE_VARIABLE) if grace_seconds is None else grace_seconds
    try:
        seconds = float(given or 0) if given not in (None, "") else DEFAULT_GRACE_SECONDS
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        msg = f"The grace period {given!r} (or {GRACE_VARIABLE}) is not a number of seconds."
        raise SettingsError(msg)
    return seconds - _reserve(seconds)


def _reserve(grace_seconds: float) -> float:
    return min(MOST_RESERVE_SECONDS, grace_seconds / 5)


class Preemption:
    """What this process knows of its end; there is one, `PREEMPTION`."""

    def __init__(self) -> None:
        # The handler runs in the main thread, perhaps while that holds the lock.
        self._lock = threading.RLock()
        self._budgets: list[float] = []
        self._wakeup: Wakeup | None = None
        self._has_handler = False
        self._timer: threading.Timer | None = None
        self._noticed_at: float | None = None
        self._is_polled = False
        self._is_deferred = False

    @property
    def noticed_at(self) -> float | None:
        """When SIGTERM came, on the monotonic clock."""
        wakeup = self._wakeup
        if self._noticed_at is None and wakeup is not None:
            wakeup.drain()  # the listening thread may not have had its turn yet
        return self._noticed_at

    @property
    def is_deferred(self) -> bool:
        """Whether the end was put off for a body that looks."""
        return self._is_deferred

    def poll(self) -> bool:
        """Return whether SIGTERM came, and count this process as one that looks."""
        self._is_polled = True
        return self.noticed_at is not None

    def notice(self) -> None:
        """Write down that SIGTERM came; the first time counts."""
        if self._noticed_at is None:
            self._noticed_at = time.monotonic()

    def join(self, budget_seconds: float) -> None:
        """Begin to watch, as one of any number of watchers."""
        with self._lock:
            self._budgets.append(budget_seconds)
            if threading.current_thread() is threading.main_thread():
                self._install()

    def leave(self, budget_seconds: float) -> None:
        """End one's watch; the last to leave puts everything back."""
        with self._lock:
            self._budgets.remove(budget_seconds)
            if not self._budgets:
                self._stop_timer()
                if threading.current_thread() is threading.main_thread():
                    self._uninstall()
                self._noticed_at, self._is_polled, self._is_deferred = None, False, False

    def handle(self, number: int) -> None:
        """Do what a signal calls for that nobody else handles.

        Raises:
            SystemExit: Unless the body looks, and has time left.
        """
        if not self._budgets:  # the last watcher left in a thread, which cannot take us out
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        is_first = self._noticed_at is None
        self.notice()
        self._is_deferred = is_first and self._is_polled
        if not self._is_deferred:
            raise SystemExit(EXIT_STATUS)
        budget = min(self._budgets)
        seconds = budget + _reserve(budget * 1.25) / 2  # after what waits for the budget's end
        self._timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
        self._timer.daemon = True
        self._timer.start()

    def begin_anew(self) -> None:
        """Forget everything, in a forked child: its parent's watchers are not here."""
        self._lock = threading.RLock()
        self._uninstall()
        self._budgets.clear()
        self._timer, self._noticed_at = None, None
        self._is_polled, self._is_deferred = False, False

    def _install(self) -> None:
        if self._has_handler or self._wakeup is not None:
            return
        current = signal.getsignal(signal.SIGTERM)
        if current is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _on_sigterm)
            self._has_handler = True
        elif callable(current):
            self._wakeup = Wakeup.installed(signal.SIGTERM, self.notice)

    def _uninstall(self) -> None:
        if self._has_handler:
            self._has_handler = False
            if signal.getsignal(signal.SIGTERM) is _on_sigterm:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._wakeup is not None:
            self._wakeup.remove()
            self._wakeup = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


PREEMPTION = Preemption()


def _on_sigterm(number: int, _frame: FrameType | None) -> None:
    PREEMPTION.handle(number)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PREEMPTION.begin_anew)


@contextmanager
def watch_preemption(*, grace_seconds: float | None = None) -> Iterator[None]:
    """Notice SIGTERM while the body runs: for flows that submit what they train.

        @flow
        def retrain():
            with watch_preemption():
                train.submit().result()

    A task that Prefect runs in a thread is not told that its process ends, and no thread but
    the main one can ask. Around its submission, in the body of the flow, this does; then
    `current.checkpoint.is_preempted` is true in the thread as soon as SIGTERM has come. A task
    that is called directly needs none of it.

    Args:
        grace_seconds: From SIGTERM to SIGKILL; `None` means `HFFLOWS_GRACE_SECONDS`, else 30.

    Raises:
        SettingsError: Not in the main thread, or not a number of seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        msg = "watch_preemption belongs in the main thread: signals are noticed nowhere else."
        raise SettingsError(msg)
    budget = grace_budget(grace_seconds)
    PREEMPTION.join(budget)
    try:
        yield
    finally:
        PREEMPTION.leave(budget)
