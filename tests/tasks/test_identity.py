from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prefect import flow, task
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.results import ResultStore
from pydantic import BaseModel, SecretStr

from hfflows import Checkpointer
from hfflows.errors import SettingsError
from hfflows.refs import Producer
from hfflows.tasks import producer, run_identity


@task
def train(value=None):
    return value


@flow(name="retrain")
def retrain():
    pass


def identity_in(
    parameters=None,
    *,
    flow_run_id=None,
    task_run_id=None,
    counts=(1, 1),
    key=None,
    start_time=None,
    **options,
):
    """Return what `run_identity` says in made-up contexts: no server, no waiting."""
    flow_run = FlowRun(
        id=flow_run_id or uuid4(), flow_id=uuid4(), run_count=counts[0], name="some-name"
    )
    task_run = TaskRun(
        id=task_run_id or uuid4(),
        task_key=train.task_key,
        dynamic_key=str(uuid4()),
        flow_run_id=flow_run.id,
        run_count=counts[1],
        name="train-a1b",
    )
    with (
        FlowRunContext.model_construct(
            flow_run=flow_run, flow=retrain, parameters={}, result_store=ResultStore()
        ),
        TaskRunContext.model_construct(
            task=train,
            task_run=task_run,
            parameters=parameters or {},
            result_store=ResultStore(),
            persist_result=False,
            **({"start_time": start_time} if start_time is not None else {}),
        ),
    ):
        return run_identity(key=key, **options)


@pytest.fixture(autouse=True)
def _no_namespace(monkeypatch):
    monkeypatch.delenv("HFFLOWS_NAMESPACE", raising=False)


def test_all_attempts_of_a_run_share_its_scope_and_differ_in_the_attempt():
    run = uuid4()
    attempts = [
        identity_in({"lr": 1}, flow_run_id=run, counts=counts)
        for counts in [(1, 1), (1, 2), (2, 1)]
    ]

    assert len({identity.run for identity in attempts}) == 1
    assert len({identity.attempt for identity in attempts}) == 3
    assert sorted(attempts, key=lambda i: i.attempt) == attempts
    assert {(i.namespace, i.flow, i.task, i.item) for i in attempts} == {
        ("default", "retrain", "train", "")
    }


def test_a_task_run_that_is_repeated_as_if_for_the_first_time_is_another_attempt():
    run, task_run, began = uuid4(), uuid4(), datetime(2026, 11, 21, tzinfo=UTC)
    attempts = [
        identity_in(
            {"lr": 1},
            flow_run_id=run,
            task_run_id=task_run,
            start_time=began + timedelta(milliseconds=late),
        ).attempt
        for late in (0, 1, 10**6, 10**9)
    ]

    assert len(set(attempts)) == 4
    assert sorted(attempts) == attempts


def test_another_run_has_another_scope():
    assert identity_in().run != identity_in().run


def test_calls_are_told_apart_by_their_inputs():
    run = uuid4()

    def scope(value):
        return identity_in({"value": value}, flow_run_id=run).run

    assert scope(1) != scope(2)
    assert scope({"a": 1, "b": [2]}) == scope({"b": [2], "a": 1})
    assert scope(Path("x")) == scope("x")


def test_an_explicit_key_stands_instead_of_the_inputs():
    run = uuid4()
    one, other = (
        identity_in({"value": object()}, flow_run_id=run, key=key) for key in ("lr=1", "lr=2")
    )

    assert (one.item, other.item) == ("lr=1", "lr=2")
    assert one.run == other.run


def test_inputs_that_are_no_json_ask_for_a_key():
    with pytest.raises(SettingsError, match="key="):
        identity_in({"value": object()})


class Config(BaseModel):
    lr: float
    token: SecretStr


def test_secrets_are_no_part_of_identity():
    run = uuid4()
    one, other = (
        identity_in({"config": Config(lr=1, token=token)}, flow_run_id=run) for token in ("a", "b")
    )

    assert one.run == other.run


def test_the_namespace_is_the_argument_else_the_variable(monkeypatch):
    monkeypatch.setenv("HFFLOWS_NAMESPACE", "team")

    assert identity_in().namespace == "team"
    assert identity_in(namespace="me").namespace == "me"


def test_outside_a_run_there_is_no_identity_and_an_empty_producer():
    with pytest.raises(SettingsError, match="no Prefect run"):
        run_identity()
    assert producer() == Producer()


# Real runs -------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch, tmp_path):
    monkeypatch.setenv("HFFLOWS_STORE_URL", str(tmp_path / "store"))
    return []


def checkpointed(seen, fail_first, **options):
    """Return a step that saves a checkpoint and fails as often as it is told to."""
    with Checkpointer(run_identity(**options)) as checkpointer:
        state = checkpointer.directory / "state"
        count = int(state.read_text()) if state.exists() else 0
        seen.append(count)
        state.write_text(str(count + 1))
        checkpointer.save()
        if count < fail_first:
            msg = "killed"
            raise RuntimeError(msg)
    return count


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_retried_task_resumes(seen):
    @task(retries=2)
    def step(number):
        return checkpointed(seen, fail_first=2)

    @flow
    def run():
        return step(1)

    assert run() == 2
    assert seen == [0, 1, 2]
    assert run() == 2  # a run of its own begins anew
    assert seen == [0, 1, 2, 0, 1, 2]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_retried_flow_resumes_its_tasks(seen):
    @task
    def step():
        return checkpointed(seen, fail_first=1)

    @flow(retries=1)
    def run():
        return step()

    assert run() == 1
    assert seen == [0, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_task_in_a_subflow_resumes_when_the_parent_is_retried(seen):
    @task
    def step():
        return checkpointed(seen, fail_first=1)

    @flow
    def child():
        return step()

    @flow(retries=1)
    def parent():
        return child()

    assert parent() == 1
    assert seen == [0, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_mapped_items_keep_to_their_own_checkpoints(seen):
    @task(retries=1)
    def step(item):
        return item, checkpointed(seen, fail_first=1)

    @flow
    def run():
        return [future.result() for future in step.map(["a", "b", "c"])]

    assert run() == [("a", 1), ("b", 1), ("c", 1)]
    assert sorted(seen) == [0, 0, 0, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_task_without_a_flow_has_an_identity_too(seen):
    @task(retries=1)
    def step():
        return run_identity().flow, checkpointed(seen, fail_first=1)

    assert step() == ("-", 1)
