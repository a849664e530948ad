"""Who writes: the identity under which checkpoints and scoped snapshots are kept."""

from __future__ import annotations

from dataclasses import dataclass

from hfflows.errors import SettingsError

MAX_PART_BYTES = 200
"""Longest identity part, in UTF-8 bytes: a key segment must stay a legal file name."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """One task of one run, as storage sees it.

    `namespace`, `flow`, `task` and `item` name a **lineage**: the checkpoints that
    successive runs of the same work share. `run` and `attempt` say which execution
    wrote a checkpoint; they never decide whether there is something to resume.

    Args:
        namespace: User, team or environment that separates lineages.
        flow: Name of the flow.
        task: Name of the task, stable over edits of its code.
        item: Tells calls of one task apart; empty for a task with a single lineage.
        run: Identifies the run across its retries, crashes and reschedules.
        attempt: Identifies one execution inside the run; unique, sorts by start.
    """

    namespace: str
    flow: str
    task: str
    item: str = ""
    run: str = ""
    attempt: str = "001"

    def __post_init__(self) -> None:
        for part in ("namespace", "flow", "task"):
            if not getattr(self, part):
                msg = f"RunIdentity needs a {part}; it was empty."
                raise SettingsError(msg, part=part)
        for part in ("namespace", "flow", "task", "item", "run", "attempt"):
            if len(getattr(self, part).encode()) > MAX_PART_BYTES:
                msg = f"RunIdentity {part} is longer than {MAX_PART_BYTES} bytes; shorten it."
                raise SettingsError(msg, part=part)
