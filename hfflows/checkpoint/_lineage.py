"""The checkpoints that are there: of one identity, or by reference."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts import delete_artifact, load_artifact, read_refs, resolve_ref
from hfflows.errors import ArtifactNotFoundError, CheckpointNotFoundError, IntegrityError

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from hfflows.artifacts import RefLike
    from hfflows.checkpoint._log import Log
    from hfflows.identity import RunIdentity
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store


@dataclass(frozen=True, slots=True)
class CheckpointEntry:
    """What a listing says of a checkpoint; the checkpoint itself was not read.

    Attributes:
        key: Its key: `load` and `delete` take it in place of a reference.
        name: Name that it was saved under.
        attempt: Attempt that saved it.
    """

    key: str
    name: str
    attempt: str


class Lineage:
    """What is in the store of one identity's checkpoints.

    Args:
        identity: Whose.
        store: Where they lie.
        log: Where it says what it passed over; `None` means the logger `hfflows.checkpoint`.
    """

    def __init__(self, identity: RunIdentity, store: Store, log: Log | None = None) -> None:
        self.identity = identity
        self.store = store
        """Where they lie."""
        self._log: Log = log or logging.getLogger("hfflows.checkpoint")

    def load(self, ref: RefLike, path: str | os.PathLike[str] | None = None) -> Path:
        """Copy any checkpoint into a directory; see `hfflows.load_artifact`.

        Raises:
            CheckpointNotFoundError: It was never saved here, or it was deleted.
        """
        try:
            return load_artifact(ref, path, store=self.store)
        except ArtifactNotFoundError as error:
            raise CheckpointNotFoundError(str(error), **error.facts) from error

    def entries(
        self,
        name: str | None = None,
        *,
        task: str | None = None,
        attempt: str | None = None,
        full_namespace: bool = False,
    ) -> list[CheckpointEntry]:
        """Return what is to be listed, newest first, and read none: a request for each 1,000.

        Args:
            name: Only those saved under this name.
            task: Of this task instead of the running one, in the same flow.
            attempt: Only those of this attempt.
            full_namespace: From every run of the lineage, not only this one.
        """
        identity = self.identity if task is None else replace(self.identity, task=task)
        token = None if full_namespace else keys.run_token(identity)
        found = []
        for info in self.store.list(keys.lineage_prefix(identity)):
            key = keys.parse_checkpoint(info.key)
            if (
                token in (None, key.run_token)
                and name in (None, key.name)
                and attempt in (None, key.attempt)
            ):
                found.append(CheckpointEntry(info.key, key.name, key.attempt))
        return found

    def list(
        self,
        name: str | None = None,
        *,
        task: str | None = None,
        attempt: str | None = None,
        full_namespace: bool = False,
    ) -> list[ArtifactRef]:
        """Return checkpoints, newest first; one that cannot be read is left out with a warning.

        Args:
            name: Only those saved under this name.
            task: Of this task instead of the running one, in the same flow.
            attempt: Only those of this attempt.
            full_namespace: From every run of the lineage, not only this one.
        """
        found = self.entries(name, task=task, attempt=attempt, full_namespace=full_namespace)
        wanted = [entry.key for entry in found]
        return [*read_refs(wanted, on_damage=self._pass_over, store=self.store)]

    def delete(self, ref: RefLike, *, force: bool = False) -> None:
        """Delete a checkpoint: it is neither listed nor resumed from any more.

        What was made from it keeps its lineage; the newest of the others is the latest then.
        The space comes back with `hfflows.collect_garbage`.

        Args:
            ref: The reference, its dict, or its key.
            force: Delete it although an alias points to it.

        Raises:
            CheckpointNotFoundError: It was never saved here, or it was deleted.
            SettingsError: Not a checkpoint.
            ArtifactInUseError: An alias points to it.
        """
        key = ref if isinstance(ref, str) else ref["key"]
        keys.parse_checkpoint(key)
        try:
            resolve_ref(key, store=self.store)
        except ArtifactNotFoundError as error:
            raise CheckpointNotFoundError(str(error), **error.facts) from error
        delete_artifact(key, force=force, store=self.store)

    def _pass_over(self, error: IntegrityError) -> None:
        self._log.warning("A checkpoint is unreadable and was passed over: %s", error)
