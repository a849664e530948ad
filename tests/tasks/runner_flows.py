"""A flow that `test_runners.py` runs in a process of its own, on the runner it names.

Prefect's process pool has threads that know a server only from the environment.
"""

import atexit
import json
import os
import shutil
import signal
import sys
import tempfile

from prefect import flow, task
from prefect.context import FlowRunContext, TaskRunContext
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from hfflows.tasks import checkpoint, current


@task(retries=1)
@checkpoint
def train(fold: int, death: str) -> list[list[str]]:
    """Do a step, save it, and die of it unless there was one before."""
    me = TaskRunContext.get().task_run
    steps = current.checkpoint.directory / "steps"
    with steps.open("a") as file:
        print(fold, me.run_count, me.id, os.getpid(), file=file)
    current.checkpoint.save()
    if not current.checkpoint.is_loaded:
        if death == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("lost")
    return [line.split() for line in steps.read_text().splitlines()]


@flow
def train_all(deaths: list[str]) -> list[list[list[str]]]:
    return train.map(list(range(len(deaths))), deaths).result()


@flow
def train_with_retries_of_dask() -> list[list[list[str]]]:
    """Let Dask repeat a task that raised, and Prefect not."""
    dask = FlowRunContext.get().task_runner.client
    once = train.with_options(retries=0)
    return dask.gather([dask.submit(once, fold, "raised", retries=1) for fold in (0, 1)])


def on_threads():
    return ThreadPoolTaskRunner(max_workers=2)


def on_processes():
    return ProcessPoolTaskRunner(max_workers=2)


def on_dask():
    from prefect_dask import DaskTaskRunner

    cluster = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=cluster)


def on_ray():
    from prefect_ray import RayTaskRunner

    # Sockets lie below it, whose paths have 107 bytes at most.
    root = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    settings = {"num_cpus": 2, "include_dashboard": False, "_temp_dir": root}
    return RayTaskRunner(init_kwargs=settings)


def main(runner: str, *deaths: str) -> None:
    task_runner = globals()[f"on_{runner}"]()
    if deaths == ("dask-retries",):
        found = train_with_retries_of_dask.with_options(task_runner=task_runner)()
    else:
        # What Prefect's process pool does not start again, the flow's own retry does.
        retries = 1 if runner == "processes" else 0
        found = train_all.with_options(task_runner=task_runner, retries=retries)([*deaths])
    print("FOUND", json.dumps([os.getpid(), found]))


if __name__ == "__main__":
    main(*sys.argv[1:])
