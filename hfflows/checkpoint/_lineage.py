"""The checkpoints that are there: of one identity, or by reference."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts import delete_artifact, load_artifact, read_refs, resolve_ref
from hfflows.errors import ArtifactNotFoundError, CheckpointNotFoundError

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from hfflows.artifacts import RefLike
    from hfflows.identity import RunIdentity
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store


class Lineage:
    """What is in the store of one identity's checkpoints.

    Args:
        identity: Whose.
        store: Where they lie.
    """

    def __init__(self, identity: RunIdentity, store: Store) -> None:
        self.identity = identity
        self.store = store
        """Where they lie."""

    def load(self, ref: RefLike, path: str | os.PathLike[str] | None = None) -> Path:
        """Copy any checkpoint into a directory; see `hfflows.load_artifact`.

        Raises:
            CheckpointNotFoundError: It was never saved here, or it was deleted.
        """
        try:
            return load_artifact(ref, path, store=self.store)
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
        for info in self.store.list(keys.lineage_prefix(identity)):
            key = keys.parse_checkpoint(info.key)
            if (
                token in (None, key.run_token)
                and name in (None, key.name)
                and attempt in (None, key.attempt)
            ):
                found.append(info.key)
        return [*read_refs(found, store=self.store)]

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
