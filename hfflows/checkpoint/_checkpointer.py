"""Save, find and load the checkpoints of one task, across everything that can kill it."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, overload

from hfflows.checkpoint._distributed import inherited_store
from hfflows.checkpoint._goodput import Goodput, Meter
from hfflows.checkpoint._lineage import Lineage
from hfflows.checkpoint._preemption import EXIT_STATUS, PREEMPTION
from hfflows.checkpoint._resume import LoadPolicy, Resumed, Resumption
from hfflows.checkpoint._room import make_room, sweep
from hfflows.checkpoint._saver import OnError, SavePolicy, Saver, WhenFull, check_option
from hfflows.checkpoint._writer import SaveOptions, Writer
from hfflows.errors import SettingsError
from hfflows.identity import RunIdentity
from hfflows.storage import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from hfflows.artifacts import RefLike, RetentionPolicy, TransferReport
    from hfflows.checkpoint._background import PendingSave
    from hfflows.checkpoint._log import Log
    from hfflows.checkpoint._resume import PassedOver
    from hfflows.refs import ArtifactRef, StorageFormat
    from hfflows.storage import Store


class Checkpointer(Lineage):
    """The checkpoints of one task.

    The first touch of `directory`, `is_loaded` or `info` (or entering the context) looks for
    a checkpoint as the policy says and loads it. Leaving the context waits for saves under
    way, for as long as the process may still live, and deletes the temporary directory.

    Args:
        identity: Who writes; inside a Prefect run, `hfflows.tasks.run_identity()`.
        load_policy: `fresh` loads the newest checkpoint of this run of this task: across
            retries, crashes and reschedules. `eager` loads the newest of this lineage from
            any run. `none` loads nothing.
        retention: Which of this lineage's checkpoints to keep, applied after each commit to
            those of the same name; `None` keeps all. The newest always stays.
        temp_dir_root: Where `directory` is made; `None` means the system's choice. On the file
            system of what you save, saves with `block=False` can move it or share its blocks.
        max_in_flight: How many saves with `block=False` may be put aside and not committed.
        when_full: With so many under way the next one `wait`s, or it is `skip`ped.
        on_error: A failed background save is `raise`d by the next save, by `wait` or at the
            end; or it is logged (`warn`), and the next save is a new try.
        grace_seconds: From SIGTERM to SIGKILL; `None` means `HFFLOWS_GRACE_SECONDS`, else 30.
        nice: How far saves with `block=False` stand back for training where both want the
            processor: 0, as an equal, to 19; see nice(2). Linux only.
        log: Where it reports; `None` means the logger `hfflows.checkpoint`.
        store: Where checkpoints lie; `None` means `open_store()`.

    Raises:
        SettingsError: An unknown policy, or a number that makes no sense.
    """

    def __init__(
        self,
        identity: RunIdentity,
        *,
        load_policy: LoadPolicy = "fresh",
        retention: RetentionPolicy | None = None,
        temp_dir_root: str | os.PathLike[str] | None = None,
        max_in_flight: int = 1,
        when_full: WhenFull = "wait",
        on_error: OnError = "raise",
        grace_seconds: float | None = None,
        nice: int = 19,
        log: Log | None = None,
        store: Store | None = None,
    ) -> None:
        check_option("load_policy", load_policy, get_args(LoadPolicy))
        policy = SavePolicy(max_in_flight, when_full, on_error, grace_seconds, nice)
        super().__init__(identity, store or open_store(), log)
        self.load_policy = load_policy
        self._temp_dir_root = temp_dir_root
        self._meter = Meter()
        self._resumption = Resumption(identity, load_policy, self.store, self._log)
        self._writer = Writer(identity, self.store, retention, self._log)
        self._saver = Saver(self._writer, policy, self._meter, self._log)
        self._room: Path | None = None
        self._resumed: Resumed | None = None
        self._remove_room: Callable[[], object] = bool
        self._end_watch: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        self._watch()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with self._meter.timed("blocked"):
                self._saver.finish(error)
            is_put_off = PREEMPTION.is_deferred
        finally:
            self.close()
        in_main = threading.current_thread() is threading.main_thread()
        if error is None and is_put_off and in_main:
            raise SystemExit(EXIT_STATUS)  # what SIGTERM would have done, had the body not looked

    def close(self) -> None:
        """Delete the temporary directory; saves under way are not waited for."""
        self._saver.close()
        if self._room is not None:
            self._remove_room()
            self._room = self._resumed = None
        if self._end_watch is not None:
            self._end_watch()
            self._end_watch = None

    def delete(self, ref: RefLike, *, force: bool = False) -> None:  # docstring inherited
        super().delete(ref, force=force)
        self._writer.forget(ref if isinstance(ref, str) else ref["key"])

    # What was loaded -------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """The working directory: the loaded checkpoint's files, or empty; yours to write."""
        self._start()
        return self._own_room() / "checkpoint"

    @property
    def is_loaded(self) -> bool:
        """Whether `directory` began as a checkpoint."""
        return self._start().loaded is not None

    @property
    def info(self) -> ArtifactRef | None:
        """The reference of the loaded checkpoint, with its metadata."""
        return self._start().loaded

    @property
    def passed_over(self) -> tuple[PassedOver, ...]:
        """Broken checkpoints that are newer than the loaded one, newest first."""
        return self._start().passed_over

    def latest(self) -> ArtifactRef | None:
        """Return the newest checkpoint in the policy's scope: two requests, at any number."""
        return next(self._resumption.candidates(), None)

    def _own_room(self) -> Path:
        """Return the temporary directory of this checkpointer."""
        if self._room is None:
            for path in sweep(self._temp_dir_root):
                self._log.info("Deleted %s, which a killed process had left behind", path)
            room = make_room(self._temp_dir_root)
            # Saves under way hold the saver, and need the directory.
            self._remove_room = weakref.finalize(self._saver, room.remove)
            self._room = room.path
        return self._room

    def _start(self) -> Resumed:
        if self._resumed is not None:
            return self._resumed
        directory = self._own_room() / "checkpoint"
        with self._meter.timed("load"):
            resumed = self._resumption.into(directory)
        directory.mkdir(exist_ok=True)
        self._meter.began_from(
            resumed.step, reached_before=resumed.reached_step, restarts=resumed.restarts
        )
        if resumed.loaded is not None:
            self._writer.build_on(resumed.loaded)
        self._resumed = resumed
        return resumed

    # Saving ----------------------------------------------------------------------------

    @overload
    def save(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        name: str = ...,
        metadata: Mapping[str, Any] | None = ...,
        step: int | None = ...,
        latest: bool = ...,
        storage_format: StorageFormat = ...,
        block: Literal[True] = ...,
    ) -> ArtifactRef: ...

    @overload
    def save(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        name: str = ...,
        metadata: Mapping[str, Any] | None = ...,
        step: int | None = ...,
        latest: bool = ...,
        storage_format: StorageFormat = ...,
        block: Literal[False],
        move: bool = ...,
    ) -> PendingSave: ...

    def save(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        name: str = "checkpoint",
        metadata: Mapping[str, Any] | None = None,
        step: int | None = None,
        latest: bool = True,
        storage_format: StorageFormat = "packed",
        block: bool = True,
        move: bool = False,
    ) -> ArtifactRef | PendingSave:
        """Save a checkpoint; when this returns, it survives the machine, unless told not to wait.

        Args:
            path: File or directory to save; `None` means `directory`.
            name: Name to list it by.
            metadata: JSON values kept with it: epoch, loss.
            step: How far training has got; kept as `metadata["step"]`.
            latest: Whether load policies may pick it.
            storage_format: `packed` sends only what the store has not.
            block: `False` puts the files aside and saves them in the background, after those
                under way. From then on you may write to them again.
            move: With `block=False`, `path` is given away: it is renamed, where that is
                possible, and gone when this returns; `directory` is then empty again.

        Returns:
            The reference; or with `block=False` a `PendingSave`, which says so when the save
            was skipped, and is a future of the reference.

        Raises:
            SettingsError: `step` and `metadata` contradict each other; `move` with `block`.
            As `hfflows.save_artifact`; also the error of an earlier background save.
        """
        options = SaveOptions.of(name, metadata, step, latest=latest, storage_format=storage_format)
        source = self.directory if path is None else Path(path)
        with self._meter.timed("blocked"):
            if not block:
                self._watch()
                pending = self._saver.later(source, options, room=self._own_room, move=move)
                if path is None:
                    source.mkdir(exist_ok=True)
                return pending
            if move:
                msg = "move=True is for block=False: a save that waits has no need of a copy."
                raise SettingsError(msg)
            return self._saver.now(source, options)

    def wait(self) -> None:
        """Return when no save is under way.

        Raises:
            As `save`, when a background save failed.
        """
        with self._meter.timed("blocked"):
            self._saver.wait()

    # The end of the process ------------------------------------------------------------

    @property
    def is_preempted(self) -> bool:
        """Whether SIGTERM has come: the process will be killed when the grace period ends.

        A body that looks at this is not interrupted where nobody else handles SIGTERM: it has
        until `grace_seconds_left` to save, and to leave. See `watch_preemption` for tasks that
        Prefect runs in threads.
        """
        self._watch()
        return PREEMPTION.poll()

    @property
    def grace_seconds_left(self) -> float | None:
        """How long saves may still take; `None` while nobody told this process to end."""
        return self._saver.seconds_left()

    def fits(self, size_bytes: int) -> bool:
        """Return whether a save of so much will be done before this process ends.

        As fast as the slowest of the last three, after what is under way. Always true while
        nobody told this process to end, and as long as there is time without a save to go by.
        """
        left = self._saver.seconds_left()
        return left is None or self._saver.seconds_needed(size_bytes) < left

    def save_if_it_fits(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        name: str = "checkpoint",
        metadata: Mapping[str, Any] | None = None,
        step: int | None = None,
        latest: bool = True,
        storage_format: StorageFormat = "packed",
    ) -> ArtifactRef | None:
        """Save and wait, unless it cannot be done before this process ends; see `save`.

        Returns:
            The reference; `None` when it was not even tried, or did not get done. The log says
            so, and the last committed checkpoint stands.
        """
        options = SaveOptions.of(name, metadata, step, latest=latest, storage_format=storage_format)
        source = self.directory if path is None else Path(path)
        with self._meter.timed("blocked"):
            return self._saver.in_time(source, options)

    def _watch(self) -> None:
        if self._end_watch is None:
            PREEMPTION.join(self._saver.budget_seconds)
            self._end_watch = weakref.finalize(
                self._saver, PREEMPTION.leave, self._saver.budget_seconds
            )

    # What came of it -------------------------------------------------------------------

    @property
    def report(self) -> TransferReport:
        """What this checkpointer's saves moved, in sum."""
        return self._writer.report

    def goodput(self) -> Goodput:
        """Return what was done so far, and what keeping it safe took."""
        return self._meter.goodput(self.report)

    # Other processes -------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """What a subprocess needs to save for this task: merge it into its environment.

        One variable, with the identity and the URL of the store. Credentials are not in it:
        the subprocess has them from its own environment, or opens the store itself.
        """
        return self.identity.to_environment(store_url=self.store.url)

    @classmethod
    def from_environment(cls, *, store: Store | None = None, **options: Any) -> Self:
        """Return the checkpointer of the task that started this process with `environment`.

        Args:
            store: Where checkpoints lie; `None` means the store of that task, opened with this
                process's own credentials.
            **options: As for `Checkpointer`.

        Raises:
            SettingsError: No identity was handed over, or the store is in another process's
                memory.
        """
        return cls(RunIdentity.from_environment(), store=store or inherited_store(), **options)
