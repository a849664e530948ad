"""Flow runs that are told to end: a real server, a real worker, real signals.

`HFFLOWS_KILLS=100` kills the run under the worker a hundred times.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.states import AwaitingRetry, Pending

import hfflows
from hfflows.tasks._restarts import count_restarts

KILLS = int(os.environ.get("HFFLOWS_KILLS", "1"))
ROOT = Path(__file__).parents[2]
POOL = "preempted"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.timeout(400 + 30 * KILLS),
]


class Run:
    """One flow run, and what its tasks wrote down."""

    def __init__(self, deployment_id, path, steps):
        self.path = path
        with get_client(sync_client=True) as client:
            parameters = {"path": str(path), "steps": steps}
            made = client.create_flow_run_from_deployment(deployment_id, parameters=parameters)
        self.id = made.id

    def read(self):
        with get_client(sync_client=True) as client:
            return client.read_flow_run(self.id)

    def states(self):
        with get_client(sync_client=True) as client:
            return client.read_flow_run_states(self.id)

    def wait_for(self, *names):
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            if (state := self.read().state) is not None and state.name in names:
                return state
            time.sleep(0.1)
        pytest.fail(f"the run is {self.read().state}, not {names}")

    def noted(self, word):
        """Return the numbers noted under a word so far."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [int(line.split()[1]) for line in lines if line.startswith(f"{word} ")]

    def wait_until(self, word, number):
        deadline = time.monotonic() + 90
        while len(self.noted(word)) < number:
            assert time.monotonic() < deadline, self.read().state
            time.sleep(0.02)

    def signal(self, number):
        os.kill(int(self.read().infrastructure_pid.rpartition(":")[2]), number)

    def go_on(self):
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(self.id, AwaitingRetry(), force=True)


def steps_saved():
    refs = hfflows.list_artifacts("checkpoint")
    return sorted(ref.metadata["step"] for ref in refs)


@pytest.fixture
def deployed(prefect_server, tmp_path, monkeypatch):
    """Return what deploys one of the flows, for a store of its own."""
    monkeypatch.setenv("HFFLOWS_STORE_URL", str(tmp_path / "store"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if POOL not in prefect_server.cli("work-pool", "ls"):
        prefect_server.cli("work-pool", "create", POOL, "--type", "process")

    def deploy(flow, *, steps=60):
        entrypoint = f"tests/tasks/preempted_flows.py:{flow}"
        name = os.urandom(4).hex()
        prefect_server.cli("deploy", entrypoint, "--name", name, "--pool", POOL, directory=ROOT)
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(f"{flow}/{name}")
        return Run(found.id, tmp_path / "notes", steps)

    return deploy


@pytest.fixture
def worker(prefect_server, deployed):
    with prefect_server.worker(POOL, directory=ROOT):
        yield


@pytest.mark.usefixtures("worker")
def test_a_run_under_a_worker_survives_sigterm_and_sigkill(deployed):
    steps = 60 + 8 * (KILLS - 1)  # more than are taken until the last signal
    run = deployed("direct", steps=steps)
    moments = random.Random(7)
    numbers = [signal.SIGTERM] + [signal.SIGKILL] * KILLS
    asked = begins = 0
    for start, number in enumerate(numbers, 1):
        run.wait_until("begins", start)
        run.wait_until("asked", len(run.noted("asked")) + 1)
        time.sleep(moments.uniform(0, 0.2))
        run.signal(number)
        run.wait_for("Crashed")
        asked, saved = run.noted("asked")[-1], steps_saved()
        assert saved == [*range(1, saved[-1] + 1)]  # each once, none twice
        assert saved[-1] in (asked, asked + 1) or number == signal.SIGKILL
        begins = saved[-1]
        run.go_on()
        run.wait_until("begins", start + 1)
        assert run.noted("begins")[-1] == begins
    assert run.wait_for("Completed").name == "Completed"
    assert steps_saved() == [*range(1, steps + 1)]
    assert run.noted("restarts") == [*range(len(numbers) + 1)]
    assert run.read().run_count == len(numbers) + 1
    assert count_restarts(run.states()) == len(numbers)
    with get_client(sync_client=True) as client:
        only = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        (page,) = [
            artifact.data
            for artifact in client.read_artifacts(artifact_filter=only)
            if artifact.key == "hfflows-goodput-training"
        ]
    rows = {row["what"]: row["value"] for row in json.loads(page)}
    # An attempt that was killed before its first commit left nothing to be counted by.
    attempts = {ref.producer.attempt for ref in hfflows.list_artifacts("checkpoint")}
    assert rows["restarts survived"] == str(len(attempts) - 1)


@pytest.mark.usefixtures("worker")
def test_a_submitted_task_sees_it_and_saves_once_more(deployed):
    run = deployed("submitted", steps=400)
    run.wait_until("asked", 3)
    run.signal(signal.SIGTERM)
    run.wait_for("Crashed")
    assert run.noted("saved") == [run.noted("asked")[-1]] == steps_saved()


@pytest.mark.usefixtures("worker")
def test_cancelling_a_run_still_works_and_loses_no_save(deployed, prefect_server):
    run = deployed("direct", steps=400)
    run.wait_until("asked", 3)
    prefect_server.cli("flow-run", "cancel", str(run.id))
    run.wait_for("Cancelled")
    assert steps_saved()[-1] in (run.noted("asked")[-1], run.noted("asked")[-1] + 1)


def execute(run, prefect_server):
    """Start `prefect flow-run execute`, as in a container that may be evicted."""
    behaviour = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}
    command = [sys.executable, "-m", "prefect", "flow-run", "execute", str(run.id)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **prefect_server.environ(), **behaviour}
    )


def test_an_evicted_run_is_rescheduled_and_goes_on(deployed, prefect_server):
    run = deployed("direct", steps=40)
    first = execute(run, prefect_server)
    run.wait_until("asked", 3)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0
    assert run.wait_for("AwaitingRetry").name == "AwaitingRetry"
    saved = steps_saved()[-1]
    assert saved in (run.noted("asked")[-1], run.noted("asked")[-1] + 1)

    with get_client(sync_client=True) as client:  # as a worker does that picks the run up
        client.set_flow_run_state(run.id, Pending())
    second = execute(run, prefect_server)
    assert second.wait(60) == 0
    assert run.read().state.name == "Completed"
    assert run.noted("begins") == [0, saved]
    assert steps_saved() == [*range(1, 41)]
    assert run.noted("restarts") == [0, 1]
