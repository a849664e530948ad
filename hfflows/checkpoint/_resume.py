"""What a load policy begins from: the newest checkpoint in its scope that is whole.

Whether there is something to resume is decided by a committed checkpoint in scope, never
by a counter: `fresh` looks at this run of this task, `eager` at its whole lineage.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal

from hfflows import keys
from hfflows.artifacts import create_document, load_artifact, resolve_ref
from hfflows.checkpoint._goodput import step_in
from hfflows.errors import (
    ArtifactNotFoundError,
    IntegrityError,
    ObjectExistsError,
    UnsafePathError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from hfflows.checkpoint._log import Log
    from hfflows.identity import RunIdentity
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

LoadPolicy = Literal["fresh", "eager", "none"]

BROKEN = (IntegrityError, ArtifactNotFoundError, UnsafePathError)
"""What says of a checkpoint that no attempt will ever load it; another error may pass."""

_ONE_LISTING = 1000  # keys that a store answers at once


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A checkpoint that is newer than what was loaded, and broken."""

    ref: ArtifactRef
    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """What an attempt begins from.

    Attributes:
        loaded: The checkpoint whose files are in the directory now; `None` means nothing.
        passed_over: Broken ones, newest first.
        reached_step: Highest step that earlier attempts are known to have saved.
        restarts: How many earlier attempts of this run have left a checkpoint.
    """

    loaded: ArtifactRef | None = None
    passed_over: tuple[PassedOver, ...] = ()
    reached_step: int | None = None
    restarts: int = 0

    @property
    def step(self) -> int | None:
        """Step that the loaded checkpoint names."""
        return step_in(self.loaded.metadata) if self.loaded is not None else None


class Resumption:
    """Finds checkpoints as a policy says.

    Args:
        identity: Who resumes.
        policy: Which checkpoints it may begin from.
        store: Where they lie.
        log: Where it says what was found.
    """

    def __init__(
        self,
        identity: RunIdentity,
        policy: LoadPolicy,
        store: Store,
        log: Log,
    ) -> None:
        self._identity, self._policy = identity, policy
        self._store, self._log = store, log

    def into(self, directory: Path) -> Resumed:
        """Load the newest whole checkpoint into an absent directory, if there is one."""
        if self._policy == "none":
            return Resumed()
        listing = (info.key for info in self._store.list(self._prefix()))
        first = [*islice(listing, _ONE_LISTING)]
        passed_over, steps, loaded = [], [], None
        for ref in self._refs(chain(first, listing)):
            steps.append(step_in(ref.metadata))
            try:
                load_artifact(ref, directory, store=self._store)
            except BROKEN as error:
                mark_broken(ref, error, store=self._store, log=self._log)
                passed_over.append(PassedOver(ref, str(error)))
            else:
                loaded = ref
                break
        if loaded is not None:
            attempt = loaded.producer.attempt
            self._log.info(
                "Resuming from checkpoint %r of attempt %s: %s", loaded.name, attempt, loaded.key
            )
        reached = max((step for step in steps if step is not None), default=None)
        return Resumed(loaded, tuple(passed_over), reached, self._restarts(first))

    def candidates(self) -> Iterator[ArtifactRef]:
        """Yield what the policy may load, newest first; reads no more than is asked for."""
        yield from self._refs(info.key for info in self._store.list(self._prefix()))

    def _prefix(self) -> str:
        return keys.latest_prefix(self._identity, "lineage" if self._policy == "eager" else "run")

    def _refs(self, index_keys: Iterable[str]) -> Iterator[ArtifactRef]:
        for key in index_keys:
            try:
                yield resolve_ref(keys.checkpoint_of_latest(key), store=self._store)
            except ArtifactNotFoundError:
                continue  # its save was killed before the commit
            except IntegrityError as error:
                self._log.warning("A checkpoint is unreadable and was passed over: %s", error)

    def _restarts(self, index_keys: Iterable[str]) -> int:
        token = keys.run_token(self._identity)
        found = [keys.parse_checkpoint(keys.checkpoint_of_latest(key)) for key in index_keys]
        attempts = {key.attempt for key in found if key.run_token == token}
        return len(attempts - {self._identity.attempt})


def mark_broken(
    ref: ArtifactRef,
    error: Exception,
    *,
    store: Store,
    log: Log,
) -> None:
    """Keep later loads off a broken checkpoint; it stays listed, for repair."""
    log.warning(
        "Checkpoint %s is broken and is passed over, an older one is tried: %s", ref.key, error
    )
    body = {"reason": str(error), "found_at": datetime.now(UTC).isoformat()}
    try:
        create_document(store, keys.broken(ref.key), body)
    except ObjectExistsError:
        log.debug("%s was marked before", ref.key)
    store.delete(keys.parse_checkpoint(ref.key).latest())
