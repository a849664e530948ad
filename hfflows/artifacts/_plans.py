"""Plans: what a collection is about to delete, written down where every writer looks.

    plans/<id>/condemned-<n>.json   {"keys": [[key, bytes], …]}, at most `PART_KEYS` of them
    plans/<id>/plan.json            {"created_at", "grace_seconds", "parts", …}: written last
    plans/<id>/awaited.json         {"saves": [key, …]}: announced at that moment
    plans/<id>/decision.json        {"decision": "apply" | "undo", …}: created once, one wins
    plans/<id>/clock.json           written to learn what time the store has
    plans/<id>/done.json            all is deleted, by another collector than the one that began

A key that a plan condemns is dead from the first part on: writers neither reuse nor write
it, not even when the plan is undone meanwhile. That is what makes deleting it safe.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts._documents import read_document
from hfflows.errors import ObjectNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Set

    from hfflows.storage import Store

HEADER = "plan"
AWAITED = "awaited"
DECISION = "decision"
CLOCK = "clock"
DONE = "done"
PART = "condemned-"
PART_KEYS = 20_000
"""Keys in one part: about 2 MB of JSON."""

_HELD_PARTS = 256
_parts: dict[tuple[str, str], dict[str, int]] = {}
_lock = threading.Lock()


def part_name(number: int) -> str:
    """Return the name of a plan's n-th list of condemned keys."""
    return f"{PART}{number:06d}"


def plan_parts(store: Store) -> dict[str, list[str]]:
    """Return the parts of every plan in the store, plans newest first: one request."""
    plans: defaultdict[str, list[str]] = defaultdict(list)
    for info in store.list(keys.PLANS):
        plan_id, part = keys.plan_of(info.key)
        plans[plan_id].append(part)
    return dict(plans)


def read_part(store: Store, plan_id: str, part: str) -> dict[str, int]:
    """Return {condemned key: bytes} of one part; a part never changes, so it is read once."""
    key = keys.plan_part(plan_id, part)
    with _lock:
        held = _parts.get((store.url, key))
    if held is not None:
        return held
    content = {str(name): int(size) for name, size in read_document(store, key)["keys"]}
    with _lock:
        while len(_parts) >= _HELD_PARTS:
            _parts.pop(next(iter(_parts)))
        _parts[store.url, key] = content
    return content


@dataclass(frozen=True, slots=True)
class Condemned:
    """What a writer must treat as absent, as of its own look at the plans."""

    plans: tuple[tuple[str, tuple[dict[str, int], ...]], ...] = ()
    """(plan id, its parts), oldest plan first."""

    def __contains__(self, key: str) -> bool:
        return any(key in part for _plan_id, parts in self.plans for part in parts)

    def any_of(self, wanted: Iterable[str]) -> str | None:
        """Return one of these keys that is condemned, if any is."""
        return next((key for key in wanted if key in self), None)

    def usable(self, object_key: str) -> str:
        """Return the key under which an object may be looked for and written.

        Its own, or a successor of it when plans condemn that.
        """
        for plan_id, parts in self.plans:
            if any(object_key in part for part in parts):
                object_key = keys.successor_of(object_key, plan_id)
        return object_key


def read_condemned(store: Store, *, only: Set[str] | None = None) -> Condemned:
    """Return what the plans in the store condemn: one request when there are none.

    Args:
        store: Where to look.
        only: Ids of the plans to read; `None` means all, also those still being written.
    """
    found = {
        plan_id: parts
        for plan_id, parts in plan_parts(store).items()
        if only is None or plan_id in only
    }
    oldest_first = sorted(_read_plans(store, found), key=lambda plan: plan[0], reverse=True)
    return Condemned(tuple(oldest_first))


def _read_plans(
    store: Store, found: dict[str, list[str]]
) -> Iterator[tuple[str, tuple[dict[str, int], ...]]]:
    for plan_id, parts in found.items():
        lists = [part for part in parts if part.startswith(PART)]
        try:
            yield plan_id, tuple(read_part(store, plan_id, part) for part in lists)
        except ObjectNotFoundError:
            # Being removed: applied or undone. What it condemned may still be on its way
            # out, and what is gone is found gone when it is looked for.
            continue
