"""What the UI of a run shows of its checkpoints, and names that outlive a rename."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.runtime import flow_run

import hfflows
from hfflows.artifacts import read_tree
from hfflows.checkpoint import SavePolicy
from hfflows.errors import SettingsError
from hfflows.identity import RunIdentity
from hfflows.tasks import checkpoint, current, model
from hfflows.tasks._checkpoint_pages import show_goodput

ME = RunIdentity("team", "flow", "train", run="run-1")

in_runs = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("HFFLOWS_STORE_URL", str(tmp_path / "store"))
    return hfflows.open_store()


def shown(run_id, key):
    """Return what a run published in the UI under a key, oldest first."""
    with get_client(sync_client=True) as client:
        only = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        found = client.read_artifacts(artifact_filter=only)
    return [one.data for one in sorted(found, key=lambda one: one.created) if one.key == key]


def rows(page):
    return {row["what"]: row["value"] for row in json.loads(page)}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_each_attempt_ends_with_a_table(caplog):
    @task(retries=1)
    @checkpoint
    def train():
        ckpt = current.checkpoint
        begin = ckpt.info.metadata["step"] if ckpt.is_loaded else 0
        for step in range(begin + 1, begin + 4):
            (ckpt.directory / "state").write_text(str(step))
            ckpt.save(step=step, block=step % 2 == 0)
        if not begin:
            raise RuntimeError

    @flow
    def run():
        train()
        return str(flow_run.id)

    with caplog.at_level(logging.INFO):
        first, second = map(rows, shown(run(), "hfflows-goodput-train"))
    assert first["steps done"] == "3"
    assert second["steps done"] == "3 (from step 3)"
    assert (first["restarts survived"], second["restarts survived"]) == ("0", "1")
    assert second["saves"] == "3"
    assert "for 3 covered" in second["bytes sent"]
    assert "steps done 3 (from step 3); steps repeated 0; restarts survived 1" in caplog.text


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_broken_checkpoint_is_shown_as_passed_over(store):
    @task(retries=1)
    @checkpoint
    def train():
        if current.checkpoint.is_loaded:
            return current.checkpoint.info.metadata["step"]
        for step in (1, 2):
            (current.checkpoint.directory / "state").write_text(str(step))
            ref = current.checkpoint.save(step=step)
        store.put(next(iter(read_tree(ref, store=store).object_keys())), b"XX")
        raise RuntimeError(ref.key)

    @flow
    def run():
        return train(), str(flow_run.id)

    step, run_id = run()
    assert step == 1
    (page,) = shown(run_id, "hfflows-broken-train")
    broken, good = hfflows.list_artifacts("checkpoint")
    assert broken.key in page
    assert f"begins from checkpoint `{good.key}`" in page


def test_without_a_run_there_is_a_log_line_and_no_page(caplog):
    @checkpoint(identity=ME)
    def train():
        current.checkpoint.save(step=4)

    with caplog.at_level(logging.INFO):
        train()
    assert "Checkpoints of train: steps done 4" in caplog.text


def test_an_account_without_steps_or_with_losses_is_readable(caplog):
    goodput = hfflows.checkpoint.Goodput(
        seconds=10, saves=3, saves_skipped=2, saves_dropped=1, blocked_seconds=1
    )
    with caplog.at_level(logging.INFO):
        show_goodput(ME, goodput, in_log_only=True)
    assert "steps done not named" in caplog.text
    assert "saves 3, 2 skipped, 1 dropped" in caplog.text
    assert "1.00 s of 10.00 s (10.0%)" in caplog.text


# Stable names ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_lineage_survives_a_rename():
    def body():
        count = len(current.checkpoint.list(full_namespace=True))
        current.checkpoint.save(step=count)
        return count, current.checkpoint.identity.task

    def train():
        return body()

    def fit():
        return body()

    options = {"load_policy": "eager", "task_name": "training", "key": "a"}
    before, after = (task(checkpoint(**options)(model(one))) for one in (train, fit))

    @task
    @checkpoint(key="a")
    def look(task):
        return len(current.checkpoint.list(task=task))

    @flow(name="retrain")
    def run(train):
        return train(), look(train), look("training"), look(train.name)

    assert (before.name, after.name) == ("train", "fit")
    assert run(before) == ((0, "training"), 1, 1, 0)
    assert run(after) == ((1, "training"), 1, 1, 0)


@pytest.mark.parametrize("name", ["", 3])
def test_a_task_name_is_text(name):
    with pytest.raises(SettingsError, match="task_name"):

        @checkpoint(task_name=name)
        def train():
            pass


def test_save_options_are_checked_at_decoration():
    with pytest.raises(SettingsError, match="when_full='drop'"):
        checkpoint(when_full="drop")


def test_save_options_reach_the_checkpointer(tmp_path: Path):
    options = SavePolicy(3, "skip", "warn", 60, 5)

    @checkpoint(identity=ME, **asdict(options))
    def train():
        return current.checkpoint._saver._policy

    assert train() == options
