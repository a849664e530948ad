"""Save, find and load the checkpoints of one task, across everything that can kill it.

Whether there is something to resume is decided by a committed checkpoint in scope, never
by a counter: `fresh` looks at this run of this task, `eager` at its whole lineage.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args, overload

from hfflows import keys
from hfflows.artifacts import (
    TransferReport,
    commit_artifact,
    create_document,
    load_artifact,
    prune_lineage,
    read_refs,
    resolve_ref,
    scan,
)
from hfflows.errors import (
    ArtifactNotFoundError,
    CheckpointNotFoundError,
    IntegrityError,
    ObjectExistsError,
    SettingsError,
    StorageError,
)
from hfflows.refs import Producer
from hfflows.storage import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from hfflows.artifacts import RefLike, RetentionPolicy
    from hfflows.identity import RunIdentity
    from hfflows.refs import ArtifactRef, StorageFormat
    from hfflows.storage import Store

LoadPolicy = Literal["fresh", "eager", "none"]

logger = logging.getLogger("hfflows.checkpoint")


class Checkpointer:
    """The checkpoints of one task.

    The first touch of `directory`, `is_loaded` or `info` (or entering the context) looks for
    a checkpoint as the policy says and loads it. Leaving the context waits for saves under
    way and deletes the temporary directory.

    Args:
        identity: Who writes; inside a Prefect run, `hfflows.tasks.run_identity()`.
        load_policy: `fresh` loads the newest checkpoint of this run of this task: across
            retries, crashes and reschedules. `eager` loads the newest of this lineage from
            any run. `none` loads nothing.
        retention: Which of this lineage's checkpoints to keep, applied after each commit to
            those of the same name; `None` keeps all. The newest always stays.
        temp_dir_root: Where `directory` is made; `None` means the system's choice.
        store: Where checkpoints lie; `None` means `open_store()`.

    Raises:
        SettingsError: Unknown `load_policy`.
    """

    def __init__(
        self,
        identity: RunIdentity,
        *,
        load_policy: LoadPolicy = "fresh",
        retention: RetentionPolicy | None = None,
        temp_dir_root: str | os.PathLike[str] | None = None,
        store: Store | None = None,
    ) -> None:
        if load_policy not in get_args(LoadPolicy):
            msg = f"load_policy={load_policy!r} is none of {', '.join(get_args(LoadPolicy))}."
            raise SettingsError(msg)
        self.identity = identity
        self.load_policy = load_policy
        self.report = TransferReport()
        """What this checkpointer's saves moved, in sum."""
        self._store = store or open_store()
        self._retention = retention
        self._temp_dir_root = temp_dir_root
        self._root: Path | None = None
        self._loaded: ArtifactRef | None = None
        self._base: ArtifactRef | None = None
        self._newest_id: str | None = None
        self._uploader: ThreadPoolExecutor | None = None
        self._pending: Future[ArtifactRef] | None = None

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except Exception as upload:
            if error is None:
                raise
            logger.warning("A background save failed while the task was failing: %s", upload)
        finally:
            self.close()

    def close(self) -> None:
        """Delete the temporary directory; saves under way are not waited for."""
        if self._uploader is not None:
            self._uploader.shutdown(wait=False, cancel_futures=True)
            self._uploader = None
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root = None

    # What was loaded -------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """The working directory: the loaded checkpoint's files, or empty; yours to write."""
        return self._start() / "checkpoint"

    @property
    def is_loaded(self) -> bool:
        """Whether `directory` began as a checkpoint."""
        self._start()
        return self._loaded is not None

    @property
    def info(self) -> ArtifactRef | None:
        """The reference of the loaded checkpoint, with its metadata."""
        self._start()
        return self._loaded

    def _start(self) -> Path:
        if self._root is not None:
            return self._root
        if self._temp_dir_root is not None:
            Path(self._temp_dir_root).mkdir(parents=True, exist_ok=True)
        root = Path(tempfile.mkdtemp(prefix="hfflows-", dir=self._temp_dir_root))
        try:
            self._loaded = self._load_newest(root / "checkpoint")
            (root / "checkpoint").mkdir(exist_ok=True)
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
        self._root, self._base = root, self._loaded
        weakref.finalize(self, shutil.rmtree, root, ignore_errors=True)
        return root

    def _load_newest(self, directory: Path) -> ArtifactRef | None:
        if self.load_policy == "none":
            return None
        for ref in self._candidates():
            try:
                load_artifact(ref, directory, store=self._store)
            except (IntegrityError, ArtifactNotFoundError) as error:
                self._mark_broken(ref, error)
            else:
                logger.info("Resuming from checkpoint %r, %s", ref.name, ref.key)
                return ref
        return None

    def _candidates(self) -> Iterator[ArtifactRef]:
        """Yield what the policy may load, newest first; reads no more than is asked for."""
        scope: Literal["run", "lineage"] = "lineage" if self.load_policy == "eager" else "run"
        for info in self._store.list(keys.latest_prefix(self.identity, scope)):
            try:
                yield resolve_ref(keys.checkpoint_of_latest(info.key), store=self._store)
            except ArtifactNotFoundError:
                continue  # its save was killed before the commit
            except IntegrityError as error:
                logger.warning("A checkpoint is unreadable and was passed over: %s", error)

    def _mark_broken(self, ref: ArtifactRef, error: Exception) -> None:
        """Keep later loads off a broken checkpoint; it stays listed, for repair."""
        logger.warning(
            "Checkpoint %s is broken and is passed over, an older one is tried: %s", ref.key, error
        )
        body = {"reason": str(error), "found_at": datetime.now(UTC).isoformat()}
        try:
            create_document(self._store, keys.broken(ref.key), body)
        except ObjectExistsError:
            logger.debug("%s was marked before", ref.key)
        self._store.delete(keys.parse_checkpoint(ref.key).latest())

    def latest(self) -> ArtifactRef | None:
        """Return the newest checkpoint in the policy's scope: two requests, at any number."""
        return next(self._candidates(), None)

    # Saving ----------------------------------------------------------------------------

    @overload
    def save(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        name: str = ...,
        metadata: Mapping[str, Any] | None = ...,
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
        latest: bool = ...,
        storage_format: StorageFormat = ...,
        block: Literal[False],
    ) -> Future[ArtifactRef]: ...

    def save(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        name: str = "checkpoint",
        metadata: Mapping[str, Any] | None = None,
        latest: bool = True,
        storage_format: StorageFormat = "packed",
        block: bool = True,
    ) -> ArtifactRef | Future[ArtifactRef]:
        """Save a checkpoint; when this returns, it survives the machine.

        Args:
            path: File or directory to save; `None` means `directory`.
            name: Name to list it by.
            metadata: JSON values kept with it: epoch, loss.
            latest: Whether load policies may pick it.
            storage_format: `packed` sends only what the store has not.
            block: `False` copies the files aside and uploads in the background, one save at
                a time; its error is raised by the next `save`, by `wait` or at the end.

        Returns:
            The reference, or a future of it when `block` is false.

        Raises:
            As `hfflows.save_artifact`; also the error of an earlier background save.
        """
        source = self.directory if path is None else Path(path)
        self.wait()

        def commit(location: Path) -> ArtifactRef:
            return self._commit(
                location,
                name=name,
                metadata=metadata,
                latest=latest,
                storage_format=storage_format,
            )

        if block:
            return commit(source)
        staged = self._stage(source)
        if self._uploader is None:
            self._uploader = ThreadPoolExecutor(1, thread_name_prefix="hfflows-checkpoint")
        self._pending = self._uploader.submit(_commit_staged, commit, staged)
        return self._pending

    def wait(self) -> None:
        """Return when no save is under way.

        Raises:
            As `save`, when the background save failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _stage(self, source: Path) -> Path:
        """Return a private copy that training may not touch."""
        scan(source)  # refuses what cannot be saved, before the copy
        staged = Path(tempfile.mkdtemp(prefix="staged-", dir=self._start())) / source.name
        if source.is_dir():
            shutil.copytree(source, staged, symlinks=True)
        else:
            shutil.copy2(source, staged)
        return staged

    def _commit(
        self,
        location: Path,
        *,
        name: str,
        metadata: Mapping[str, Any] | None,
        latest: bool,
        storage_format: StorageFormat,
    ) -> ArtifactRef:
        key = keys.checkpoint(self.identity, name, id=keys.new_id(after=self._newest()))
        ref = commit_artifact(
            scan(location),
            key=key.build(),
            kind=keys.CHECKPOINT_KIND,
            name=name,
            metadata=metadata,
            storage_format=storage_format,
            producer=Producer.of(self.identity),
            base=self._base,
            report=self.report,
            index_keys=key.latest() if latest else (),
            store=self._store,
        )
        self._newest_id, self._base = key.id, ref
        self._retain(ref)
        return ref

    def _retain(self, committed: ArtifactRef) -> None:
        """Delete what the policy gives up; failing to never fails the save."""
        if self._retention is None:
            return
        try:
            prune_lineage(committed, self._retention, store=self._store)
        except (StorageError, IntegrityError) as error:
            logger.warning("Older checkpoints stay for now, pruning them failed: %s", error)

    def _newest(self) -> str | None:
        """Return the newest id of this lineage: the next one must sort before it."""
        if self._newest_id is None:
            prefix = keys.lineage_prefix(self.identity)
            first = next(iter(self._store.list(prefix)), None)
            self._newest_id = keys.id_of(first.key) if first is not None else None
        return self._newest_id

    # Others' checkpoints ---------------------------------------------------------------

    def load(self, ref: RefLike, path: str | os.PathLike[str] | None = None) -> Path:
        """Copy any checkpoint into a directory; see `hfflows.load_artifact`.

        Raises:
            CheckpointNotFoundError: It was never saved here, or it was deleted.
        """
        try:
            return load_artifact(ref, path, store=self._store)
        except ArtifactNotFoundError as error:
            raise CheckpointNotFoundError(str(error), **error.facts) from error

    def list(
        self,
        name: str | None = None,
        *,
        task: str | None = None,
        attempt: str | None = None,
        full_namespace: bool = False,
    ) -> list[ArtifactRef]:
        """Return checkpoints, newest first.

        Args:
            name: Only those saved under this name.
            task: Of this task instead of the running one, in the same flow.
            attempt: Only those of this attempt.
            full_namespace: From every run of the lineage, not only this one.
        """
        identity = self.identity if task is None else replace(self.identity, task=task)
        token = None if full_namespace else keys.run_token(identity)
        found = []
        for info in self._store.list(keys.lineage_prefix(identity)):
            key = keys.parse_checkpoint(info.key)
            if (
                token in (None, key.run_token)
                and name in (None, key.name)
                and attempt in (None, key.attempt)
            ):
                found.append(info.key)
        return [*read_refs(found, store=self._store)]


def _commit_staged(commit: Callable[[Path], ArtifactRef], staged: Path) -> ArtifactRef:
    try:
        return commit(staged)
    finally:
        shutil.rmtree(staged.parent, ignore_errors=True)
