"""Keep a store from growing for ever: prune checkpoints, collect what nothing refers to.

Meant to run every night. Nothing is deleted on the night it is found: a plan is made, can be
looked at and undone for a day, and is applied by a later run.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from prefect import flow
from pydantic import BaseModel, Field

import hfflows
from hfflows.errors import SettingsError
from hfflows.tasks import collect_garbage, prune_checkpoints


class Retention(BaseModel):
    """Which checkpoints of a lineage to keep: those that any of these asks for."""

    newest: int | None = Field(5, ge=1, description="So many of the newest.")
    best: int | None = Field(None, ge=1, description="So many of the best by `metric`.")
    metric: str = Field("eval_loss", description="Number in the checkpoint's metadata.")
    mode: Literal["min", "max"] = "min"
    every_steps: int | None = Field(None, ge=1, description="The first of every so many steps.")
    younger_than_days: float | None = Field(None, gt=0)
    at_most_bytes: int | None = Field(None, ge=0, description="Limit on all of a lineage.")

    def policy(self) -> hfflows.RetentionPolicy:
        """Return what the flow applies.

        Raises:
            SettingsError: Nothing says what to keep.
        """
        wanted: list[hfflows.RetentionPolicy] = []
        if self.newest is not None:
            wanted.append(hfflows.KeepNewest(self.newest))
        if self.best is not None:
            wanted.append(hfflows.KeepBest(self.best, metric=self.metric, mode=self.mode))
        if self.every_steps is not None:
            wanted.append(hfflows.KeepEvery(self.every_steps))
        if self.younger_than_days is not None:
            wanted.append(hfflows.KeepYoungerThan(timedelta(days=self.younger_than_days)))
        limit = None if self.at_most_bytes is None else hfflows.KeepAtMostBytes(self.at_most_bytes)
        if not wanted and limit is None:
            msg = "Retention without any rule would give up every checkpoint but the newest."
            raise SettingsError(msg)
        kept_by_any = hfflows.KeepAny(tuple(wanted))
        if limit is None:
            return kept_by_any
        return kept_by_any & limit if wanted else limit


@flow(name="housekeeping", persist_result=True, result_serializer="json")
def housekeeping(
    retention: Retention | None = None,
    prefix: str | None = None,
    min_age_hours: float = 24,
    grace_hours: float = 24,
) -> dict[str, Any]:
    """Prune checkpoints and collect garbage in the store at `HFFLOWS_STORE_URL`.

    Args:
        retention: Which checkpoints to keep; `None` prunes none.
        prefix: Only lineages that begin so: `namespace/flow/task`.
        min_age_hours: Younger objects are not condemned.
        grace_hours: How long a plan can be undone.

    Returns:
        What was pruned and collected, in numbers.
    """
    pruned = prune_checkpoints(retention.policy(), prefix=prefix) if retention is not None else None
    collected = collect_garbage(min_age_hours=min_age_hours, grace_hours=grace_hours)
    return {"pruned": pruned, "collected": collected}
