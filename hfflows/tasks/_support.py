"""What every task does around its one call: log, show, decide on retries."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import httpx
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.exceptions import MissingContextError, PrefectException
from prefect.logging import get_logger, get_run_logger

from hfflows.errors import HfflowsError
from hfflows.tasks._current import in_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hfflows.refs import ArtifactRef

RunLogger = logging.Logger | logging.LoggerAdapter[logging.Logger]


def run_logger() -> RunLogger:
    """Return the run's logger, or Prefect's own outside a run."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("hfflows")


def retry_if_transient(task: Any, task_run: Any, state: Any) -> bool:
    """Retry what may pass by itself; a wrong key or a missing repo never does.

    For `@task(retry_condition_fn=retry_if_transient)`. Errors that are not ours are retried.
    """
    error = state.data if isinstance(state.data, BaseException) else None
    if error is None:
        error = state.result(raise_on_failure=False)
    return error.transient if isinstance(error, HfflowsError) else True


def show(key: str, markdown: str, *, description: str = "") -> None:
    """Publish a markdown artifact in the UI; failing to never fails a task."""
    _publish(create_markdown_artifact, key, markdown, description)


def show_table(key: str, rows: list[dict[str, Any]], *, description: str = "") -> None:
    """Publish a table artifact in the UI; failing to never fails a task."""
    _publish(create_table_artifact, key, rows, description)


def _publish(create: Any, key: str, content: Any, description: str) -> None:
    """Publish an artifact of this run.

    Outside a run there is no page it would belong to, and Prefect would start a server for it.
    """
    if not in_run():
        return
    plain_key = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-") or "hfflows"
    try:
        # Said explicitly: in a coroutine's task Prefect would return a coroutine instead.
        create(content, key=plain_key, description=description, _sync=True)
    except (PrefectException, httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
        run_logger().debug("The UI artifact %s was not published: %s", plain_key, error)


def table(rows: Mapping[str, Any]) -> str:
    """Return a two-column markdown table."""
    lines = ["| | |", "|---|---|"]
    lines += [
        f"| {name} | {_cell(value)} |" for name, value in rows.items() if value not in ("", None)
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def show_ref(ref: ArtifactRef, title: str, **rows: Any) -> None:
    """Publish what a task saved: name, key, size, digest and parents."""
    facts = {
        "name": ref.name,
        "key": f"`{ref.key}`",
        "store": ref.store_url,
        "size": f"{ref.size_bytes:,} bytes in {ref.file_count} files",
        "digest": f"`{ref.digest[:16]}…`",
        **rows,
        "parents": ", ".join(f"`{parent.key}`" for parent in ref.parents),
    }
    show(f"hfflows-{ref.kind}-{ref.name}", f"## {title}\n\n{table(facts)}\n")
