"""From files at rest to a committed checkpoint."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from hfflows import keys
from hfflows.artifacts import TransferReport, commit_artifact, prune_lineage, scan
from hfflows.checkpoint._goodput import STEP, step_in
from hfflows.errors import IntegrityError, SettingsError, StorageError
from hfflows.refs import Producer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hfflows.artifacts import RetentionPolicy
    from hfflows.checkpoint._log import Log
    from hfflows.identity import RunIdentity
    from hfflows.refs import ArtifactRef, StorageFormat
    from hfflows.storage import Store


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """How one checkpoint is to be saved; see `Checkpointer.save`."""

    name: str
    latest: bool
    storage_format: StorageFormat
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        metadata: Mapping[str, Any] | None,
        step: int | None,
        *,
        latest: bool,
        storage_format: StorageFormat,
    ) -> Self:
        """Return options that later changes of `metadata` do not reach.

        Raises:
            SettingsError: `step` and the step in `metadata` differ.
        """
        kept = copy.deepcopy(dict(metadata or {}))
        if step is not None and kept.setdefault(STEP, step) != step:
            msg = f"step={step} and metadata[{STEP!r}]={kept[STEP]!r} differ; give one of them."
            raise SettingsError(msg)
        return cls(name, latest, storage_format, kept)

    @property
    def step(self) -> int | None:
        """How far training had got."""
        return step_in(self.metadata)


class Writer:
    """Commits the checkpoints of one identity, each newer than the one before.

    Args:
        identity: Who saves.
        store: Where to.
        retention: Which checkpoints to keep after each commit; `None` keeps all.
        log: Where it says what it could not do.
    """

    def __init__(
        self,
        identity: RunIdentity,
        store: Store,
        retention: RetentionPolicy | None,
        log: Log,
    ) -> None:
        self._identity, self._store = identity, store
        self._retention, self._log = retention, log
        self._newest_id: str | None = None
        self._lock = threading.Lock()
        self._bases: dict[str, ArtifactRef] = {}
        """By name, newest last: checkpoints whose objects are in the store for certain."""
        self.report = TransferReport()

    def commit(self, location: Path, options: SaveOptions) -> ArtifactRef:
        """Save what lies at `location`; when this returns, it survives the machine.

        Raises:
            As `hfflows.save_artifact`.
        """
        with self._lock:
            id_ = keys.new_id(after=self._newest())
            key = keys.checkpoint(self._identity, options.name, id=id_)
            ref = commit_artifact(
                scan(location),
                key=key.build(),
                kind=keys.CHECKPOINT_KIND,
                name=options.name,
                metadata=options.metadata,
                storage_format=options.storage_format,
                producer=Producer.of(self._identity),
                base=self._base(options.name),
                report=self.report,
                index_keys=key.latest() if options.latest else (),
                store=self._store,
            )
            self._newest_id = key.id
            self._build_on(ref)
        retain(ref, self._retention, store=self._store, log=self._log)
        return ref

    def find_newest(self) -> None:
        """Ask the store what the next checkpoint must be newer than; once, ahead of a commit."""
        with self._lock:
            self._newest()

    def build_on(self, ref: ArtifactRef) -> None:
        """Take it that a checkpoint's objects are in the store: it was just loaded."""
        with self._lock:
            self._build_on(ref)

    def forget(self, reference_key: str) -> None:
        """Rely no longer on the objects of a checkpoint that was deleted."""
        with self._lock:
            kept = {name: ref for name, ref in self._bases.items() if ref.key != reference_key}
            self._bases = kept

    def _build_on(self, ref: ArtifactRef) -> None:
        self._bases.pop(ref.name, None)
        self._bases[ref.name] = ref

    def _base(self, name: str) -> ArtifactRef | None:
        """Return what is most like the next save: of its name, else the newest."""
        return self._bases.get(name) or next(reversed(self._bases.values()), None)

    def _newest(self) -> str | None:
        """Return the newest id of this lineage: the next one must sort before it."""
        if self._newest_id is None:
            self._newest_id = newest_id(self._identity, self._store)
        return self._newest_id


def newest_id(identity: RunIdentity, store: Store) -> str | None:
    """Return the newest id among an identity's checkpoints; one request."""
    first = next(iter(store.list(keys.lineage_prefix(identity))), None)
    return keys.id_of(first.key) if first is not None else None


def retain(
    newest: ArtifactRef,
    policy: RetentionPolicy | None,
    *,
    store: Store,
    log: Log,
) -> None:
    """Delete what the policy gives up; failing to never fails the save."""
    if policy is None:
        return
    try:
        prune_lineage(newest, policy, store=store)
    except (StorageError, IntegrityError) as error:
        log.warning("Older checkpoints stay for now, pruning them failed: %s", error)
