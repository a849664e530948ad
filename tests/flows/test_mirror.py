"""The mirror flow: repos side by side, one failing, on Dask, and a push that runs it."""

import json
import os
import time
from pathlib import Path

import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId

import hfflows
from flows.mirror import MirroredRepo, mirror
from hfflows.errors import HubAccessError, SettingsError
from hfflows.hub import _wire
from hfflows.tasks import hub_webhook, refresh_on_push
from hfflows.testing import Fault

ROOT = Path(__file__).parents[2]
PUSH = {
    "event": {"action": "update", "scope": "repo.content"},
    "repo": {"type": "model", "name": "org/one", "id": "1", "private": False},
    "updatedRefs": [
        {"ref": "refs/heads/main", "oldSha": "a" * 40, "newSha": "b" * 40},
        {"ref": "refs/heads/gone", "oldSha": "a" * 40, "newSha": None},
        {"ref": "refs/tags/v1", "oldSha": None, "newSha": "b" * 40},
    ],
}


@pytest.fixture
def hub(local_hub, local_s3, monkeypatch):
    variables = {
        **local_s3.environ(),
        **local_hub.environ(),
        "HF_TOKEN": local_hub.token,
        "HFFLOWS_STORE_URL": local_s3.url(os.urandom(4).hex()),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name in ("one", "two"):
        local_hub.publish(
            f"org/{name}", {"config.json": b"{}", "model.safetensors": os.urandom(100_000)}
        )
    return local_hub


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_repos_are_brought_in_and_kept(hub):
    repos = [
        MirroredRepo(repo_id="org/one"),
        MirroredRepo(repo_id="org/two", allow_patterns=["*.json"]),
    ]

    first = mirror(repos, endpoint=hub.endpoint)
    hub.publish("org/one", {"config.json": b'{"changed": true}'})
    again = mirror(repos, endpoint=hub.endpoint)

    assert [row["outcome"] for row in first] == ["miss", "miss"]
    assert [row["outcome"] for row in again] == ["refreshed", "hit"]
    assert again[0]["bytes moved"] < 20_000  # the weights were there
    assert again[0]["commit"] != first[0]["commit"]
    for row in (*first, *again):
        hfflows.verify_artifact(row["key"])


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_repo_that_fails_does_not_keep_the_others(hub):
    repos = [MirroredRepo(repo_id="org/nothing"), MirroredRepo(repo_id="org/one")]

    with pytest.raises(RuntimeError, match="1 of 2 repos failed: org/nothing@main"):
        mirror(repos, endpoint=hub.endpoint)

    assert [ref.name for ref in hfflows.list_artifacts("snapshot")] == ["org/one"]


@pytest.fixture
def dask_cluster(hub):
    """Return the address of two worker processes that know the store: as two machines do."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
def test_workers_of_dask_share_the_repos_and_the_limit(hub, dask_cluster, prefect_api, monkeypatch):
    from prefect_dask import DaskTaskRunner

    def refuse():
        pytest.fail("A repo was fetched in the flow's own process.")

    monkeypatch.setattr(_wire, "check_online", refuse)
    prefect_api.cli("gcl", "create", "mirror", "--limit", "1")
    hub.inject(Fault(match=r"GET .*/resolve/.*safetensors", stall_seconds=3, times=2))
    names = ["org/one", "org/two", "org/nothing"]
    repos = [MirroredRepo(repo_id=name) for name in names]
    on_dask = mirror.with_options(task_runner=DaskTaskRunner(address=dask_cluster))

    with pytest.raises(RuntimeError, match="1 of 3 repos failed: org/nothing@main"):
        on_dask(repos, endpoint=hub.endpoint, concurrency_limit="mirror")

    fetches = [request for request in hub.requests if "safetensors" in request.path]
    starts = [request.time for request in fetches if request.origin == "hub"]
    assert len(starts) == 2  # each repo once
    assert starts[1] - starts[0] > 3  # and not both at a time
    rows = json.loads(Artifact.get("hfflows-mirror").data)
    assert [row["repo"] for row in rows] == names
    assert [row["outcome"] for row in rows[:2]] == ["miss", "miss"]
    for row in rows[:2]:
        hfflows.verify_artifact(row["key"])


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_push_schedules_a_run_for_that_repo(hub):
    deployment_id = mirror.from_source(
        source=str(ROOT), entrypoint="flows/mirror.py:mirror"
    ).deploy("pushed", work_pool_name=work_pool(), parameters={"repos": []}, print_next_steps=False)
    refresh_on_push("mirror/pushed")
    refresh_on_push("mirror/pushed")  # replaces the first

    runs = []
    deadline = time.monotonic() + 60
    while not runs and time.monotonic() < deadline:
        # The server loads automations every now and then: events before that are not seen.
        assert hub_webhook(PUSH) == ["org/one@main"]
        time.sleep(2)
        runs = runs_of(deployment_id)

    assert runs
    repo = {"repo_id": "org/one", "repo_type": "model", "revision": "main"}
    assert all(run.parameters["repos"] == [repo] for run in runs)


def work_pool():
    from prefect.client.schemas.actions import WorkPoolCreate

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="mirror-pool", type="process"), overwrite=True)
    return "mirror-pool"


def runs_of(deployment_id):
    only = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]))
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(flow_run_filter=only)


def test_a_webhook_with_the_wrong_secret_starts_nothing():
    for secret in (None, "", "wrong"):
        with pytest.raises(HubAccessError):
            hub_webhook(PUSH, secret=secret, expected_secret="right")


@pytest.mark.parametrize("body", [{}, {"repo": "org/one"}, {"repo": {}, "updatedRefs": 3}])
def test_something_else_than_a_webhook_is_refused(body):
    with pytest.raises(SettingsError):
        hub_webhook(body)


def test_a_webhook_about_a_discussion_is_no_push():
    assert hub_webhook({"repo": PUSH["repo"], "discussion": {"id": 1}}) == []
