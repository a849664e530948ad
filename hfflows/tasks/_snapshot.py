"""The task that copies a Hub repo into the store."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.blocks.system import Secret
from prefect.cache_policies import DEFAULT
from prefect.concurrency.sync import concurrency

from hfflows.hub import fetch_snapshot
from hfflows.keys import CacheScope, RepoType
from hfflows.refs import ArtifactRef
from hfflows.storage import open_store
from hfflows.tasks._identity import run_identity
from hfflows.tasks._support import retry_if_transient, run_logger, show_ref

if TYPE_CHECKING:
    from hfflows.hub import Slot, SnapshotResult

HUB_LIMIT_VARIABLE = "HFFLOWS_HUB_CONCURRENCY_LIMIT"

TASK_OPTIONS: dict[str, Any] = {
    "persist_result": True,
    "result_serializer": "json",
    "retries": 3,
    "retry_delay_seconds": [2, 10, 30],
    "retry_jitter_factor": 0.3,
    "retry_condition_fn": retry_if_transient,
}
"""How hfflows's own tasks are set up; change them with `task.with_options(…)`."""


@task(name="snapshot_download", cache_policy=DEFAULT - "token_block", **TASK_OPTIONS)
def snapshot_download(
    repo_id: str,
    *,
    revision: str | None = None,
    repo_type: RepoType = "model",
    allow_patterns: list[str] | str | None = None,
    ignore_patterns: list[str] | str | None = None,
    allow_pickles: bool = False,
    allow_flagged: bool = False,
    cache_scope: CacheScope | None = None,
    max_age: timedelta | float | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    stale_if_error: bool = True,
    token_block: str | None = None,
    endpoint: str | None = None,
    concurrency_limit: str | None = None,
    store: str | None = None,
) -> ArtifactRef:
    """Copy a Hub repo at a commit into the store, once, and return its reference.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag, `refs/pr/N` or commit; `None` means `main`. A full commit
            that the store has needs no Hub request.
        repo_type: `model`, `dataset` or `space`.
        allow_patterns: Only files that match one of these.
        ignore_patterns: Not the files that match one of these.
        allow_pickles: Also fetch pickled weights that are there as safetensors too.
        allow_flagged: Also fetch files that the Hub's scanners found unsafe.
        cache_scope: Who sees the entry; `None` means `checkpoint`: this task's lineage.
        max_age: How long a branch's commit may be taken from memory, in seconds.
        force_download: Fetch again, and let later readers see the new copy.
        local_files_only: Serve what the store holds and never ask the Hub.
        stale_if_error: Serve the last known commit when the Hub does not answer.
        token_block: Name of a Prefect `Secret` block with a Hub token; `None` means
            `HF_TOKEN` or `hf auth login`. A token is never a parameter.
        endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`.
        concurrency_limit: Name of a global concurrency limit under which files are fetched;
            `None` means `HFFLOWS_HUB_CONCURRENCY_LIMIT`, if set. What the store
            holds takes no slot.
        store: URL; `None` means `HFFLOWS_STORE_URL`.

    Raises:
        As `hfflows.snapshot_download`.
    """
    result = fetch_snapshot(
        repo_id,
        revision=revision,
        repo_type=repo_type,
        allow_patterns=allow_patterns,
        ignore_patterns=ignore_patterns,
        allow_pickles=allow_pickles,
        allow_flagged=allow_flagged,
        cache_scope=cache_scope,
        max_age=max_age,
        force_download=force_download,
        local_files_only=local_files_only,
        stale_if_error=stale_if_error,
        token=token_from_block(token_block),
        endpoint=endpoint,
        identity=run_identity(key=""),
        slot=hub_slot(concurrency_limit),
        store=open_store(store),
    )
    report_snapshot(result)
    return result.ref


def report_snapshot(result: SnapshotResult) -> None:
    """Say in the run's log and in the UI how a snapshot was come by."""
    name, moved = result.ref.name, f"{result.report.bytes_sent:,} bytes"
    run_logger().info(
        "Snapshot %s@%s: %s, %s moved of %s",
        name,
        result.commit_hash,
        result.outcome,
        moved,
        f"{result.ref.size_bytes:,}",
    )
    show_ref(
        result.ref,
        f"Snapshot of {name}",
        outcome=result.outcome,
        revision=result.revision,
        commit=f"`{result.commit_hash}`",
        moved=moved,
    )


def hub_slot(limit: str | None = None) -> Slot | None:
    """Return what waits for a slot of the fleet's limit on the Hub, if one is configured.

    Args:
        limit: Name of a global concurrency limit; `None` means the one that
            `HFFLOWS_HUB_CONCURRENCY_LIMIT` names.
    """
    name = limit or os.environ.get(HUB_LIMIT_VARIABLE)
    return partial(concurrency, name, occupy=1) if name else None


def token_from_block(name: str | None) -> str | None:
    """Return the Hub token in a Prefect `Secret` block, where it is used and not before."""
    if name is None:
        return None
    block: Any = Secret.load(name, _sync=True)  # type: ignore[call-arg] # consumed by Prefect
    return str(block.get())
