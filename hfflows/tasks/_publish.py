"""The task that publishes an artifact to the Hub."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.cache_policies import DEFAULT

from hfflows import hub
from hfflows.refs import ArtifactRef
from hfflows.storage import open_store
from hfflows.tasks._snapshot import TASK_OPTIONS, token_from_block
from hfflows.tasks._support import run_logger, show, table


@task(name="push_to_hub", cache_policy=DEFAULT - "token_block", **TASK_OPTIONS)
def push_to_hub(
    ref: ArtifactRef,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    card: hub.CardContent | None = None,
    commit_message: str | None = None,
    token_block: str | None = None,
    endpoint: str | None = None,
    store: str | None = None,
) -> dict[str, Any]:
    """Publish an artifact's files and a card to a Hub repo; private unless asked otherwise.

    Files go from the store to the Hub without a copy on disk; what the Hub has already is
    not sent, and publishing the same content again makes no new commit.

    Args:
        ref: What to publish.
        repo_id: `org/name`; made if absent.
        private: Visibility of a repo that is made now; an existing one keeps its own.
        revision: Branch to commit to; `None` means `main`.
        create_pr: Open a pull request instead.
        card: What the model card says; human text in the card is kept.
        commit_message: `None` says what was published.
        token_block: Name of a Prefect `Secret` block; `None` means `HF_TOKEN`.
        endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`.
        store: URL; `None` means `HFFLOWS_STORE_URL`.

    Returns:
        `repo_id`, `commit_hash`, `url`, `pr_url`, `files`, `bytes_uploaded`.

    Raises:
        As `hfflows.push_to_hub`.
    """
    result = hub.push_to_hub(
        ref,
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        card=card,
        commit_message=commit_message,
        token=token_from_block(token_block),
        endpoint=endpoint,
        store=open_store(store),
    )
    run_logger().info("Published %s at %s: %s", repo_id, result.commit_hash, result.url)
    document = result.to_json()
    show(f"hfflows-published-{repo_id}", f"## Published {repo_id}\n\n{table(document)}\n")
    return document
