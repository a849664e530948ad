"""Ours under Prefect: a flow run with a task that saves very many checkpoints."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import flow, task

from hfflows.tasks import checkpoint, current

_POLL_SECONDS = 0.005


@task
@checkpoint(temp_dir_root=".")
def fit(checkpoints: int, saved: str, go_on: str) -> float:
    """Save so many, say so, wait until the end may come, and return when it began."""
    state = current.checkpoint.directory / "state"
    for step in range(1, checkpoints + 1):
        state.write_text(str(step))
        current.checkpoint.save(step=step)
    Path(saved).touch()
    while not Path(go_on).exists():
        time.sleep(_POLL_SECONDS)
    return time.perf_counter()


@flow
def train(checkpoints: int, saved: str, go_on: str) -> float:
    """Return how long the end of the task takes: from its body's return to the flow."""
    returned = fit(checkpoints, saved, go_on)
    return time.perf_counter() - returned


class PrefectTask:
    """Flow runs on the server that `PREFECT_API_URL` names; `HFFLOWS_STORE_URL` is set here."""

    def __init__(self, bucket: str) -> None:
        os.environ["HFFLOWS_STORE_URL"] = f"s3://{bucket}"

    def train(self, checkpoints: int, saved: str, go_on: str) -> float:
        """Run the flow; `saved` appears when all are saved, the end waits for `go_on`."""
        return train(checkpoints, saved, go_on)
