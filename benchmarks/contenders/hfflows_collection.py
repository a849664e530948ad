"""Ours: a store of very many objects, and the collection of those that nothing refers to."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import hfflows
from hfflows import keys
from hfflows.artifacts import Segment, Tree, TreeFile, create_document

_WRITES_IN_FLIGHT = 32
_OBJECT = b"x"
_NOW = timedelta(0)


class HfflowsCollection:
    """Plans and applies collections of one store."""

    def __init__(self, bucket: str) -> None:
        self._store = hfflows.open_store(f"s3://{bucket}")

    def fill(self, source: str, artifacts: int, objects_each: int) -> None:
        """Write artifacts of so many objects each, the way commits leave them."""
        first = hfflows.save_artifact(source, name="bench", store=self._store)
        with ThreadPoolExecutor(_WRITES_IN_FLIGHT) as pool:
            for number in range(artifacts):
                key = keys.artifact("bench", f"m{number}", id=keys.new_id())
                held = [_random_key() for _ in range(objects_each)]
                list(pool.map(lambda name: self._store.put(name, _OBJECT), held))
                tree = Tree(
                    tuple(
                        TreeFile(f"{at:06}", 1, name[-64:], False, (_segment(name),))
                        for at, name in enumerate(held)
                    )
                )
                create_document(self._store, keys.tree(key), tree.to_body())
                reference = first.model_copy(update={"key": key, "digest": tree.digest})
                create_document(self._store, key, reference.model_dump(mode="json"))

    def litter(self, count: int) -> None:
        """Write objects that nothing refers to."""
        with ThreadPoolExecutor(_WRITES_IN_FLIGHT) as pool:
            list(pool.map(lambda _: self._store.put(_random_key(), _OBJECT), range(count)))

    def plan(self) -> dict[str, Any]:
        """Condemn what is garbage; returns the plan's id and how much it condemns."""
        plan = hfflows.plan_collection(min_age=_NOW, grace=_NOW, store=self._store)
        return {"id": plan.id, "condemned": plan.object_count}

    def apply(self, plan_id: str) -> int:
        """Apply a plan; returns how many objects were deleted."""
        return hfflows.apply_collection(plan_id, store=self._store).deleted_count

    def undo(self, plan_id: str) -> None:
        """Withdraw a plan."""
        hfflows.undo_collection(plan_id, store=self._store)

    def save(self, source: str) -> dict[str, Any]:
        """Save an artifact, while a plan may be waiting."""
        ref = hfflows.save_artifact(
            source, name="saved", storage_format="packed", store=self._store
        )
        return ref.model_dump(mode="json")


def _random_key() -> str:
    return keys.object_key(hashlib.sha256(os.urandom(16)).hexdigest())


def _segment(key: str) -> Segment:
    return Segment(key, 0, 1, key[-64:])
