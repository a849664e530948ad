"""Pruning and collection as tasks and as a flow, in real flow runs."""

import os
from datetime import timedelta

import pytest
from prefect import flow

import hfflows
from flows.housekeeping import Retention, housekeeping
from hfflows import KeepAll, KeepAny, KeepAtMostBytes, KeepBest, KeepNewest, KeepYoungerThan
from hfflows.errors import SettingsError
from hfflows.identity import RunIdentity
from hfflows.tasks import collect_garbage, prune_checkpoints

ME = RunIdentity("team", "flow", "train", run="run-1")


@pytest.mark.parametrize(
    ("retention", "policy"),
    [
        (Retention(), KeepAny((KeepNewest(5),))),
        (
            Retention(newest=1, best=2, metric="f1", mode="max"),
            KeepAny((KeepNewest(1), KeepBest(2, metric="f1", mode="max"))),
        ),
        (
            Retention(newest=None, younger_than_days=2, at_most_bytes=10),
            KeepAll((KeepAny((KeepYoungerThan(timedelta(days=2)),)), KeepAtMostBytes(10))),
        ),
        (Retention(newest=None, at_most_bytes=10), KeepAtMostBytes(10)),
    ],
)
def test_retention_as_plain_numbers(retention, policy):
    assert retention.policy() == policy


def test_retention_without_a_rule_is_refused():
    with pytest.raises(SettingsError, match="without any rule"):
        Retention(newest=None).policy()


@pytest.fixture
def checkpoints(local_s3, monkeypatch, tmp_path):
    """Save four checkpoints into a bucket's prefix, which becomes the default store."""
    url = local_s3.url(os.urandom(4).hex())
    for name, value in {**local_s3.environ(), "HFFLOWS_STORE_URL": url}.items():
        monkeypatch.setenv(name, value)
    with hfflows.Checkpointer(ME, load_policy="none", temp_dir_root=tmp_path) as checkpointer:
        saved = []
        for step in range(4):
            (checkpointer.directory / "weights").write_bytes(os.urandom(1000))
            saved.append(checkpointer.save(metadata={"eval_loss": [3, 1, 2, 4][step]}))
    return saved


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_the_tasks_prune_and_collect(checkpoints):
    @flow
    def night():
        pruned = prune_checkpoints(KeepBest(1, metric="eval_loss"))
        return pruned, [collect_garbage(min_age_hours=0, grace_hours=0) for _ in range(2)]

    pruned, (first, second) = night()

    newest, best = checkpoints[3], checkpoints[1]
    assert pruned["deleted"] == 2
    assert {*pruned["deleted_keys"]} == {checkpoints[0].key, checkpoints[2].key}
    assert hfflows.list_artifacts("checkpoint") == [newest, best]
    assert first["deleted"] == 0
    assert first["condemned"] >= 4  # two trees, two objects
    assert second["deleted"] == first["condemned"]
    assert second["plan"] is None
    for ref in (newest, best):
        hfflows.verify_artifact(ref)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_the_flow_does_both(checkpoints):
    result = housekeeping(Retention(newest=2), min_age_hours=0, grace_hours=0)

    assert result["pruned"]["deleted"] == 2
    assert result["collected"]["condemned"] >= 4
    assert hfflows.list_artifacts("checkpoint") == [checkpoints[3], checkpoints[2]]
    assert housekeeping()["collected"]["deleted"] == result["collected"]["condemned"]
