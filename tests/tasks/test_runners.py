"""`@checkpoint` on every task runner: a mapped item goes on from what it saved itself."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import hfflows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path):
    return hfflows.open_store(tmp_path / "store")


@pytest.fixture
def run(store, prefect_server):
    """Return what runs the flow in a process of its own, with one item for each death.

    It returns for each item its steps, which are [item, run count, task run, process].
    """

    def run_on(runner, *deaths):
        known = {**prefect_server.environ(), "HFFLOWS_STORE_URL": store.url}
        done = subprocess.run(
            [sys.executable, "-m", "tests.tasks.runner_flows", runner, *deaths],
            cwd=ROOT,
            env={**os.environ, **known},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
        assert lines, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        process, found = json.loads(lines[-1].removeprefix("FOUND "))
        for item, steps in enumerate(found):
            assert {step[0] for step in steps} == {str(item)}
        elsewhere = {step[3] != str(process) for steps in found for step in steps}
        assert elsewhere == {runner != "threads"}
        return [[step[1:] for step in steps] for steps in found]

    return run_on


def checkpoints_of_each_call(store):
    refs = hfflows.list_artifacts("checkpoint", store=store)
    # Each attempt has saved one, and an attempt is no other's, whoever started it again.
    assert len({(ref.producer.run, ref.producer.attempt) for ref in refs}) == len(refs)
    return sorted(Counter(ref.producer.run for ref in refs).values())


@pytest.mark.parametrize("runner", ["threads", "processes"])
def test_a_retry_goes_on_from_its_own_item(run, store, runner):
    found = run(runner, "raised", "raised", "raised")

    for (first_count, first_run, _), (count, task_run, _) in found:
        assert (first_count, count) == ("1", "2")
        assert first_run == task_run
    assert checkpoints_of_each_call(store) == [2, 2, 2]


def test_a_killed_process_of_the_pool_goes_on_in_the_next_attempt_of_the_flow(run, store):
    [[first, second]] = run("processes", "killed")

    assert first[0] == second[0] == "1"
    assert first[1] != second[1]  # another task run
    assert checkpoints_of_each_call(store) == [2]


@pytest.mark.parametrize("runner", ["dask", "ray"])
def test_a_retry_and_a_task_whose_worker_is_killed_go_on(run, store, runner):
    raised, killed = run(runner, "raised", "killed")

    assert [count for count, _, _ in raised] == ["1", "2"]
    # Started anew as if for the first time, and as the same task run.
    assert [count for count, _, _ in killed] == ["1", "1"]
    assert raised[0][1:] == raised[1][1:]
    assert killed[0][1] == killed[1][1]
    assert killed[0][2] != killed[1][2]
    assert checkpoints_of_each_call(store) == [2, 2]


def test_retries_of_dask_itself_go_on(run, store):
    found = run("dask", "dask-retries")

    for (first_count, first_run, _), (count, task_run, _) in found:
        assert (first_count, count) == ("1", "1")
        assert first_run == task_run
    assert checkpoints_of_each_call(store) == [2, 2]
