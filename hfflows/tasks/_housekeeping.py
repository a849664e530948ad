"""Tasks that keep a store from growing for ever."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from hfflows import artifacts, keys
from hfflows.artifacts import RetentionPolicy
from hfflows.errors import MissingDependencyError, StorageError
from hfflows.storage import Store, open_store
from hfflows.tasks._snapshot import TASK_OPTIONS
from hfflows.tasks._support import run_logger, show, table

_OPTIONS: dict[str, Any] = TASK_OPTIONS | {"cache_policy": NO_CACHE}  # it acts on what is there


@task(name="prune_checkpoints", **_OPTIONS)
def prune_checkpoints(
    policy: RetentionPolicy,
    *,
    prefix: str | None = None,
    dry_run: bool = False,
    store: str | None = None,
) -> dict[str, Any]:
    """Delete the checkpoints that a policy gives up, in every lineage.

    The newest of each lineage and what an alias points to stay. The space comes back with
    `collect_garbage`.

    Args:
        policy: What to keep, for example `KeepNewest(3) | KeepBest(1, metric="eval_loss")`.
        prefix: Only identities that begin so: `namespace/flow/task`.
        dry_run: Delete nothing, only say what would be.
        store: URL; `None` means `HFFLOWS_STORE_URL`.

    Returns:
        `kept` and `deleted`, each a count, and `deleted_keys`.

    Raises:
        As `hfflows.prune_artifacts`.
    """
    report = artifacts.prune_artifacts(
        policy, kind=keys.CHECKPOINT_KIND, prefix=prefix, dry_run=dry_run, store=open_store(store)
    )
    done = "would delete" if dry_run else "deleted"
    run_logger().info(
        "Pruning %s %s of %s checkpoints",
        done,
        len(report.deleted),
        len(report.deleted) + len(report.kept),
    )
    rows = {
        "policy": f"`{policy}`",
        "kept": len(report.kept),
        done: len(report.deleted),
        "their size": f"{sum(ref.size_bytes for ref in report.deleted):,} bytes",
    }
    show("hfflows-prune", f"## Checkpoints pruned\n\n{table(rows)}\n")
    return {
        "kept": len(report.kept),
        "deleted": len(report.deleted),
        "deleted_keys": [ref.key for ref in report.deleted],
    }


@task(name="collect_garbage", **_OPTIONS)
def collect_garbage(
    *, min_age_hours: float = 24, grace_hours: float = 24, store: str | None = None
) -> dict[str, Any]:
    """Delete what earlier runs condemned and is still garbage, and condemn what is new.

    Args:
        min_age_hours: Younger objects are passed over.
        grace_hours: How long a plan can be undone before a later run applies it.
        store: URL; `None` means `HFFLOWS_STORE_URL`.

    Returns:
        Counts and bytes of what was `deleted` and what was `condemned`, the `plan`'s id, and
        how many abandoned multipart uploads were aborted.

    Raises:
        As `hfflows.plan_collection`.
    """
    opened = open_store(store)
    reports, plan = artifacts.collect_garbage(
        min_age=timedelta(hours=min_age_hours),
        grace=timedelta(hours=grace_hours),
        abandoned_after=timedelta(hours=max(min_age_hours, grace_hours)),
        store=opened,
    )
    aborted = _abort_uploads(opened, timedelta(hours=max(min_age_hours, grace_hours)))
    deleted = sum(report.deleted_count for report in reports)
    deleted_bytes = sum(report.deleted_bytes for report in reports)
    run_logger().info(
        "Collection of %s: %s objects deleted (%s bytes), %s condemned (%s bytes) by plan %s",
        opened.url,
        deleted,
        f"{deleted_bytes:,}",
        plan.object_count,
        f"{plan.size_bytes:,}",
        plan.id,
    )
    rows = {
        "store": opened.url,
        "deleted": f"{deleted:,} objects, {deleted_bytes:,} bytes",
        "condemned": f"{plan.object_count:,} objects, {plan.size_bytes:,} bytes",
        "uploads aborted": aborted,
        "can be undone until": f"{plan.due_at:%Y-%m-%d %H:%M} UTC",
        "undo": f"`hfflows undo {plan.id}`" if plan.object_count else "",
    }
    show("hfflows-collection", f"## Collection\n\n{table(rows)}\n")
    return {
        "deleted": deleted,
        "deleted_bytes": deleted_bytes,
        "condemned": plan.object_count,
        "condemned_bytes": plan.size_bytes,
        "plan": plan.id if plan.object_count else None,
        "uploads_aborted": aborted,
    }


def _abort_uploads(store: Store, older_than: timedelta) -> int:
    try:
        return len(artifacts.abort_uploads(older_than=older_than, store=store))
    except (MissingDependencyError, StorageError) as error:
        run_logger().info("Abandoned uploads were not looked for: %s", error)
        return 0
