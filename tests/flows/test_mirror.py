"""The mirror flow: repos side by side, one failing, and a push that runs it."""

import os
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId

import hfflows
from flows.mirror import MirroredRepo, mirror
from hfflows.errors import HubAccessError, SettingsError
from hfflows.tasks import hub_webhook, refresh_on_push

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
