"""Ours: `Checkpointer`, and stores that hold very many checkpoints."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import hfflows
from hfflows import keys
from hfflows.artifacts import create_document
from hfflows.identity import RunIdentity

if TYPE_CHECKING:
    from hfflows.checkpoint import LoadPolicy
    from hfflows.refs import ArtifactRef

_WRITES_IN_FLIGHT = 32


class HfflowsCheckpoints:
    """Checkpoints of one task, each operation by a checkpointer of its own."""

    def __init__(self, bucket: str) -> None:
        self._store = hfflows.open_store(f"s3://{bucket}")

    def save(self, source: str) -> dict[str, Any]:
        """Save a checkpoint; returns the reference."""
        return self._checkpointer().save(source).model_dump(mode="json")

    def load(self, saved: dict[str, Any], target: str) -> None:
        """Load a checkpoint by its reference."""
        self._checkpointer().load(saved, target)

    def latest(self, load_policy: LoadPolicy) -> str | None:
        """Return the key of the newest checkpoint in the policy's scope."""
        newest = self._checkpointer(load_policy).latest()
        return newest.key if newest is not None else None

    def read_all(self) -> list[str]:
        """Read all checkpoints of this run, metadata included; returns their keys."""
        return [ref.key for ref in self._checkpointer().list()]

    def entries(self) -> list[str]:
        """List all checkpoints of this run, of which nothing is read; returns their keys."""
        return [entry.key for entry in self._checkpointer().entries()]

    def fill(
        self, source: str, count: int, runs: int, metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Write `count` checkpoints, the way commits leave them, in the names of several runs.

        The first is saved for real, with `metadata`; the others share its objects and have
        their own reference, tree and index entries.

        Returns:
            `saved`: a reference to load. `eager` and `fresh`: keys of the newest checkpoint
            of all runs, and of the run that the other operations are done in.
        """
        first = self._checkpointer().save(source, metadata=metadata)
        tree = bytes(self._store.get(keys.tree(first.key)))
        newest: str | None = keys.id_of(first.key)
        made = []
        for number in range(1, count):
            key = keys.checkpoint(
                _identity(number % runs), first.name, id=keys.new_id(after=newest)
            )
            newest = key.id
            made.append(key)
        with ThreadPoolExecutor(_WRITES_IN_FLIGHT) as pool:
            list(pool.map(partial(self._copy, first, tree), made))
        ours = [key.build() for key in made if key.run_token == keys.run_token(_identity(0))]
        return {
            "saved": first.model_dump(mode="json"),
            "eager": made[-1].build() if made else first.key,
            "fresh": ours[-1] if ours else first.key,
        }

    def _copy(self, first: ArtifactRef, tree: bytes, key: keys.CheckpointKey) -> None:
        reference = first.model_copy(update={"key": key.build()})
        self._store.put(keys.tree(reference.key), tree)
        for index_key in key.latest():
            self._store.put(index_key, b"{}")
        create_document(self._store, reference.key, reference.model_dump(mode="json"))

    def _checkpointer(self, load_policy: LoadPolicy = "none") -> hfflows.Checkpointer:
        return hfflows.Checkpointer(_identity(0), load_policy=load_policy, store=self._store)


def _identity(run: int) -> RunIdentity:
    return RunIdentity(namespace="bench", flow="train", task="fit", run=f"run-{run}")
