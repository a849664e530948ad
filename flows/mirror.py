"""Keep Hub repos in the store, ahead of those who will ask for them.

Each repo is a task run of its own; a repo that fails does not keep the others. Run it on a
schedule, and let a push to a repo run it too: `hfflows.tasks.refresh_on_push`.

It fetches in threads. For more than one machine give it another runner, in a file of yours that
you then deploy in its place:

    mirror = mirror.with_options(task_runner=DaskTaskRunner(address="tcp://scheduler:8786"))
"""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger, task, unmapped
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel, ConfigDict, Field

from hfflows import TransferReport, open_store
from hfflows.hub import fetch_snapshot
from hfflows.keys import RepoType
from hfflows.tasks import hub_slot, retry_if_transient, token_from_block

RUNNER: Any = ThreadPoolTaskRunner(max_workers=4)  # Prefect types it by what its tasks return


class MirroredRepo(BaseModel):
    """A repo to keep, and which of its files."""

    model_config = ConfigDict(extra="forbid")

    repo_id: str
    revision: str = Field("main", description="Branch, tag or commit.")
    repo_type: RepoType = "model"
    allow_patterns: list[str] | None = None
    ignore_patterns: list[str] | None = None
    allow_pickles: bool = False


@task(
    name="mirror_repo",
    task_run_name="{repo.repo_id}",
    retries=3,
    retry_delay_seconds=[2, 10, 60],
    retry_jitter_factor=0.3,
    retry_condition_fn=retry_if_transient,
    persist_result=True,
    result_serializer="json",
    cache_policy=NO_CACHE,  # asking the Hub what a branch is now is the point
)
def mirror_repo(
    repo: MirroredRepo,
    token_block: str | None = None,
    endpoint: str | None = None,
    concurrency_limit: str | None = None,
) -> dict[str, Any]:
    """Bring one repo into the store, for everybody, and say what moved."""
    report = TransferReport()
    result = fetch_snapshot(
        repo.repo_id,
        revision=repo.revision,
        repo_type=repo.repo_type,
        allow_patterns=repo.allow_patterns,
        ignore_patterns=repo.ignore_patterns,
        allow_pickles=repo.allow_pickles,
        cache_scope="global",
        stale_if_error=False,
        token=token_from_block(token_block),
        endpoint=endpoint,
        slot=hub_slot(concurrency_limit),
        report=report,
        store=open_store(),
    )
    get_run_logger().info("%s@%s: %s", repo.repo_id, result.commit_hash, result.outcome)
    return {
        "repo": repo.repo_id,
        "revision": repo.revision,
        "commit": result.commit_hash,
        "outcome": result.outcome,
        "bytes": result.ref.size_bytes,
        "bytes moved": report.bytes_sent,
        "key": result.ref.key,
    }


@flow(
    name="mirror",
    task_runner=RUNNER,
    persist_result=True,
    result_serializer="json",
)
def mirror(
    repos: list[MirroredRepo],
    token_block: str | None = None,
    endpoint: str | None = None,
    concurrency_limit: str | None = None,
) -> list[dict[str, Any]]:
    """Bring Hub repos into the store at `HFFLOWS_STORE_URL`.

    Args:
        repos: Which.
        token_block: Name of a Prefect `Secret` block with a Hub token; `None` means
            `HF_TOKEN`.
        endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`.
        concurrency_limit: Name of a global concurrency limit under which files are fetched.

    Returns:
        A row for each repo: commit, outcome (`hit`, `miss`, `refreshed`), bytes, key.

    Raises:
        RuntimeError: Some repos failed; the others are in the store. Names them.
    """
    settings = map(unmapped, (token_block, endpoint, concurrency_limit))
    submitted = mirror_repo.map(repos, *settings)
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    for repo, future in zip(repos, submitted, strict=True):
        future.wait()
        state = future.state
        if state.is_completed():
            rows.append(future.result())
        else:
            # Dask gives up on a task whose workers die, and its run says "running" for ever.
            reason = str(state.message) if state.is_final() else "Its worker was lost."
            failures.append(f"{repo.repo_id}@{repo.revision}: {reason}")
            rows.append({"repo": repo.repo_id, "revision": repo.revision, "outcome": reason})
    create_table_artifact(rows, key="hfflows-mirror", description="Repos kept in the store")
    if failures:
        msg = f"{len(failures)} of {len(repos)} repos failed: " + "; ".join(failures)
        raise RuntimeError(msg)
    return rows
