"""What an attempt got done, and what keeping it safe took."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from hfflows.artifacts import TransferReport
    from hfflows.refs import ArtifactRef

STEP = "step"
"""Where a checkpoint's metadata says how far training had got."""

_TELLING_BYTES = 1 << 20
"""The time of a smaller save is latency, and says nothing of how fast bytes move."""

Outcome = Literal["saved", "skipped", "failed", "dropped"]


@dataclass(frozen=True, slots=True)
class Goodput:
    """The account of one attempt.

    Attributes:
        seconds: How long it has run.
        first_step: Step of the checkpoint it began from; `None` when that had none.
        last_step: Highest step it has saved or tried to.
        steps_repeated: Steps it trained although an earlier attempt had saved them, in
            checkpoints that could not be loaded. What died unsaved is not known.
        restarts: Earlier attempts of this run that left a checkpoint.
        saves: Checkpoints committed.
        saves_skipped: Not begun, because too many were under way.
        saves_failed: Ended by an error.
        saves_dropped: Given up, because the process had to end.
        load_seconds: To find and load the checkpoint it began from.
        blocked_seconds: That training stood still for saves.
        background_seconds: That saves took beside training.
        bytes_covered: Size of the files in all checkpoints.
        bytes_sent: What of it had to be sent.
    """

    seconds: float
    first_step: int | None = None
    last_step: int | None = None
    steps_repeated: int = 0
    restarts: int = 0
    saves: int = 0
    saves_skipped: int = 0
    saves_failed: int = 0
    saves_dropped: int = 0
    load_seconds: float = 0.0
    blocked_seconds: float = 0.0
    background_seconds: float = 0.0
    bytes_covered: int = 0
    bytes_sent: int = 0

    @property
    def steps_done(self) -> int | None:
        """Steps this attempt got further; `None` when no save named one."""
        if self.last_step is None:
            return None
        return max(0, self.last_step - (self.first_step or 0))

    @property
    def blocked_share(self) -> float:
        """Share of the time that training stood still for saves."""
        return self.blocked_seconds / self.seconds if self.seconds > 0 else 0.0


class Meter:
    """Writes down what goes into a `Goodput`; used from several threads.

    Args:
        clock: Seconds, from anywhere.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = defaultdict(float)
        self._outcomes: Counter[Outcome] = Counter()
        self._recent: list[tuple[int, float, bool]] = []
        self._first_step: int | None = None
        self._last_step: int | None = None
        self._reached_before: int | None = None
        self._restarts = 0

    def began_from(
        self, first_step: int | None, *, reached_before: int | None, restarts: int
    ) -> None:
        """Say what this attempt begins from, and how far the earlier ones had come."""
        self._first_step, self._reached_before = first_step, reached_before
        self._restarts = restarts

    def reached(self, step: int | None) -> None:
        """Say that training has got to a step."""
        if step is not None and (self._last_step is None or step > self._last_step):
            self._last_step = step

    def ended(self, outcome: Outcome, number: int = 1) -> None:
        """Count saves that came to an end."""
        with self._lock:
            self._outcomes[outcome] += number

    @contextmanager
    def timed(self, what: Literal["load", "blocked", "background"]) -> Iterator[None]:
        """Add the time that the body takes."""
        began = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[what] += self._clock() - began

    def measured(
        self, commit: Callable[[], ArtifactRef], *, beside_others: bool = False
    ) -> ArtifactRef:
        """Return what `commit` returns, and count how it went and how long it took.

        Args:
            commit: Saves.
            beside_others: It stood back for others, and took as long as they let it.
        """
        began = self._clock()
        try:
            ref = commit()
        except BaseException:
            self.ended("failed")
            raise
        self.ended("saved")
        with self._lock:
            taken = self._clock() - began
            self._recent = [*self._recent[-2:], (ref.size_bytes, taken, beside_others)]
        return ref

    def seconds_for(self, size_bytes: int) -> float:
        """Return how long a save of this size takes once training stands still.

        By the slowest of the last three; of saves that stood back for training by the
        fastest, where there are no others. Without a save to go by it is nothing: then trying
        is the only way to know.
        """
        with self._lock:
            recent = [*self._recent]
        taken: dict[bool, list[float]] = {True: [], False: []}
        for size, seconds, beside_others in recent:
            scale = max(1.0, size_bytes / max(size, _TELLING_BYTES))
            taken[beside_others].append(seconds * scale)
        return max(taken[False], default=min(taken[True], default=0.0))

    def goodput(self, report: TransferReport) -> Goodput:
        """Return the account so far."""
        repeated = 0
        if self._last_step is not None and self._reached_before is not None:
            reached = min(self._last_step, self._reached_before)
            repeated = max(0, reached - (self._first_step or 0))
        with self._lock:
            return Goodput(
                seconds=self._clock() - self._began,
                first_step=self._first_step,
                last_step=self._last_step,
                steps_repeated=repeated,
                restarts=self._restarts,
                saves=self._outcomes["saved"],
                saves_skipped=self._outcomes["skipped"],
                saves_failed=self._outcomes["failed"],
                saves_dropped=self._outcomes["dropped"],
                load_seconds=self._seconds["load"],
                blocked_seconds=self._seconds["blocked"],
                background_seconds=self._seconds["background"],
                bytes_covered=report.bytes_covered,
                bytes_sent=report.bytes_sent,
            )


def step_in(metadata: Mapping[str, Any]) -> int | None:
    """Return the step that a checkpoint's metadata names."""
    step = metadata.get(STEP)
    return step if isinstance(step, int) and not isinstance(step, bool) else None
