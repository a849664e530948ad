"""The tasks in real flow runs, on a real Hub and a real bucket."""

import os
import subprocess

import pytest
from prefect import flow, task
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.runtime import flow_run

import hfflows
from hfflows import Checkpointer
from hfflows.hub import CardContent
from hfflows.tasks import (
    list_checkpoints,
    load_model,
    promote_model,
    push_to_hub,
    retry_if_transient,
    run_identity,
    save_model,
    snapshot_download,
)
from hfflows.testing import Fault

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]

FILES = {"config.json": b"{}", "weights.bin": os.urandom(100_000)}
NO_DELAY = {"retry_delay_seconds": 0, "retry_jitter_factor": None}


@pytest.fixture
def hub(local_hub, monkeypatch):
    local_hub.publish("org/model", FILES)
    monkeypatch.setenv("HF_TOKEN", local_hub.token)
    return local_hub


@pytest.fixture
def url(local_s3, monkeypatch):
    url = local_s3.url(os.urandom(4).hex())
    for name, value in {**local_s3.environ(), "HFFLOWS_STORE_URL": url}.items():
        monkeypatch.setenv(name, value)
    return url


def run(body):
    """Run `body` in a flow; return what it returned and what the run's log says."""

    @flow(name="a-flow")
    def a_flow():
        return body(), str(flow_run.id)

    value, run_id = a_flow()
    return value, run_id


def artifacts_of(run_id):
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    return {artifact.key: artifact.data for artifact in found}


def test_a_snapshot_becomes_a_model_and_is_shown_in_the_ui(hub, url):
    def body():
        snapshot = snapshot_download("org/model", endpoint=hub.endpoint)
        path = load_model(snapshot)
        return snapshot, save_model(path, label="team/copy", parents=[snapshot])

    (snapshot, model), run_id = run(body)
    assert (snapshot.kind, model.kind) == ("snapshot", "model")
    assert model.digest == snapshot.digest
    assert model.parents[0].key == snapshot.key
    assert model.producer.run == run_id
    assert (model.producer.flow, model.producer.task) == ("a-flow", "save_model")
    shown = artifacts_of(run_id)
    assert "miss" in shown["hfflows-snapshot-org-model"]
    assert model.key in shown["hfflows-model-team-copy"]


def test_a_checkpoint_is_promoted_and_the_alias_points_to_it(url, tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"weights")

    def body():
        with Checkpointer(run_identity(key="")) as checkpointer:
            saved = checkpointer.save(tmp_path / "weights.bin", metadata={"loss": 1})
        return saved, promote_model(saved, label="news", alias="production")

    (saved, model), run_id = run(body)
    assert (model.kind, model.parents) == ("model", (saved.as_parent(),))
    assert hfflows.resolve_alias("production") == model
    assert model.producer.flow == "a-flow"
    assert any(model.key in data for data in artifacts_of(run_id).values())


def test_a_snapshot_is_a_hit_the_second_time_and_scoped_to_the_task(hub, url):
    commit = hub.publish("org/model", FILES)

    def body(scope=None):
        options = {"revision": commit, "endpoint": hub.endpoint, "cache_scope": scope}
        return lambda: snapshot_download("org/model", **options)

    first, _ = run(body())
    hub.reset_counts()
    second, run_id = run(body())
    assert second == first
    assert hub.requests == []
    assert "hit" in artifacts_of(run_id)["hfflows-snapshot-org-model"]
    assert "/checkpoint/default/a-flow/snapshot_download/" in first.key
    flow_wide, _ = run(body("flow"))
    assert "/flow/a-flow/" in flow_wide.key


def test_a_model_is_published_with_a_token_from_a_secret_block(hub, url, tmp_path, monkeypatch):
    Secret(value=hub.token).save("hub-token", overwrite=True, _sync=True)
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights.bin").write_bytes(b"1")

    def body():
        model = save_model(tmp_path / "m", label="m")
        return push_to_hub(
            model,
            "local-user/m",
            card=CardContent(title="m"),
            token_block="hub-token",
            endpoint=hub.endpoint,
        )

    published, run_id = run(body)
    assert published["files"] == ["weights.bin", "README.md"]
    assert published["url"] in "".join(artifacts_of(run_id).values())
    assert hub.token not in str(published)


def test_a_passing_fault_is_retried_and_a_lasting_error_is_not(hub, url):
    hub.inject(Fault(match="/api/models", status=503, times=8))
    once = snapshot_download.with_options(**NO_DELAY)
    hub.reset_counts()

    def body():
        return once("org/model", endpoint=hub.endpoint)

    snapshot, _ = run(body)
    assert snapshot.file_count == 3
    assert hub.count("revision/main") > 6  # more than one try of the task

    hub.reset_counts()
    with pytest.raises(hfflows.RepoNotFoundError):
        run(lambda: once("org/none", endpoint=hub.endpoint))
    assert hub.count("org/none") == 1


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (hfflows.StorageUnavailableError("x"), 3),
        (hfflows.SettingsError("x"), 1),
        (hfflows.IntegrityError("x"), 1),
        (RuntimeError("x"), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_retried(error, calls):
    seen = []

    @task(retries=2, retry_condition_fn=retry_if_transient)
    def failing():
        seen.append(1)
        raise error

    with pytest.raises(type(error)):
        run(failing)
    assert len(seen) == calls


def test_checkpoints_of_a_task_are_listed_from_another_flow(url):
    @task(name="train")
    def train(step):
        with Checkpointer(run_identity(key="a")) as checkpointer:
            (checkpointer.directory / "state").write_text(str(step))
            return checkpointer.save(name="epoch", metadata={"step": step})

    saved = [run(lambda step=step: train(step))[0] for step in (1, 2)]
    listed, _ = run(lambda: list_checkpoints("train", flow="a-flow", key="a"))
    assert [ref.key for ref in listed] == [ref.key for ref in reversed(saved)]
    assert run(lambda: list_checkpoints("train", name="other", key="a"))[0] == []


# What goes wrong: one clear error, nothing left -------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """Return a directory on a file system of one megabyte."""
    directory = tmp_path / "small"
    directory.mkdir()
    options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system here")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk_is_found_before_the_first_byte(url, tmp_path, small_disk):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights.bin").write_bytes(os.urandom(2_000_000))
    model = hfflows.save_artifact(tmp_path / "m", name="m")

    with pytest.raises(hfflows.DiskSpaceError, match="free"):
        run(lambda: load_model(model, small_disk / "out"))
    assert list(small_disk.iterdir()) == []


def test_gated_without_a_token_says_where_to_accept(hub, url, monkeypatch):
    hub.gate("org/model")
    monkeypatch.setenv("HF_TOKEN", hub.add_token("stranger"))

    with pytest.raises(hfflows.GatedRepoError, match=r"accept its terms at .*org/model"):
        run(lambda: snapshot_download("org/model", endpoint=hub.endpoint))
    assert hfflows.list_artifacts() == []


def test_an_unknown_revision_says_where_to_look(hub, url):
    with pytest.raises(hfflows.RevisionNotFoundError, match="branches and tags"):
        run(lambda: snapshot_download("org/model", revision="v9", endpoint=hub.endpoint))
    assert hfflows.list_artifacts() == []


def test_wrong_bucket_keys_are_not_retried_and_not_shown(hub, url, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-wrong-wrong")
    hub.reset_counts()

    with pytest.raises(hfflows.AccessDeniedError, match="AWS_SECRET_ACCESS_KEY") as caught:
        run(lambda: snapshot_download("org/model", endpoint=hub.endpoint))
    assert "wrong-wrong" not in str(caught.value)
    assert hub.count("resolve/") == 0  # nothing was downloaded to be thrown away


def test_a_store_that_cannot_be_reached_says_so(url, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x").touch()
    once = save_model.with_options(retries=0)

    with pytest.raises(hfflows.StorageUnavailableError, match="AWS_ENDPOINT_URL"):
        run(lambda: once(tmp_path / "m", label="m"))


def test_no_secret_is_in_the_log_of_a_run(hub, url, local_s3):
    _, run_id = run(lambda: snapshot_download("org/model", endpoint=hub.endpoint))
    with get_client(sync_client=True) as client:
        flow_filter = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
        text = "\n".join(log.message for log in client.read_logs(flow_filter))
    assert hub.token not in text
    assert local_s3.secret_key not in text
