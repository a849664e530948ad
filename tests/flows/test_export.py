"""The export flow and its tasks: from a Hub in this process to a verified export in a bucket."""

import json
import os

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterName,
)
from pydantic import ValidationError

import hfflows
from flows.export import ExportConfig, export
from hfflows.export import read_onnx_metadata
from hfflows.tasks import export_and_inject, inject_hub_metadata, verify_onnx
from tests.export.conftest import write_bert

OPTIONS = {"backend": "torchscript", "variants": ["int8"]}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "either repo_id"),
        ({"repo_id": "org/m", "model": "refs/model/m/1.json"}, "either repo_id"),
        ({"model": "refs/model/m/1.json", "revision": "main"}, "revision goes with repo_id"),
        ({"repo_id": "org/m", "variants": ["int4"]}, "variants"),
        ({"repo_id": "org/m", "quantise": True}, "quantise"),
    ],
    ids=str,
)
def test_parameters_that_make_no_sense_are_refused(config, said):
    with pytest.raises(ValidationError, match=said):
        ExportConfig(**config)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture
def hub(local_hub, local_s3, monkeypatch, model):
    variables = {
        **local_s3.environ(),
        **local_hub.environ(),
        "HF_TOKEN": local_hub.token,
        "HFFLOWS_STORE_URL": local_s3.url(os.urandom(4).hex()),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    local_hub.publish("org/model", model)
    return local_hub


def shown(run_name):
    """Return the UI artifacts of the flow run of this name."""
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=[run_name]))
        run = client.read_flow_runs(flow_run_filter=named)[0]
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
    return {artifact.key: artifact.data for artifact in found}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_a_hub_model_becomes_a_verified_export_and_is_not_made_twice(hub, monkeypatch):
    config = ExportConfig(repo_id="org/model", endpoint=hub.endpoint, **OPTIONS)
    first_run, second_run = os.urandom(4).hex(), os.urandom(4).hex()
    ref = export.with_options(flow_run_name=first_run)(config)

    assert (ref.kind, ref.name) == ("export", "org/model")
    with hfflows.open_file(ref, "model_int8.onnx") as stream:
        entries = read_onnx_metadata(stream)
    assert entries["hf_hub_id"] == "org/model"
    assert entries["hfflows_run"] == ref.producer.run != ""
    assert entries["hfflows_code_version"]
    seen = shown(first_run)
    assert "exported" in seen["hfflows-export-org-model"]
    rows = json.loads(seen["hfflows-verified-org-model"])
    assert [row["graph"] for row in rows] == ["model.onnx", "model_int8.onnx"]
    assert all(row["difference"] <= row["tolerance"] and row["onnxruntime_ms"] for row in rows)

    def refuse(*_, **__):
        pytest.fail("It was exported again.")

    monkeypatch.setattr("hfflows.export._export.run_worker", refuse)
    monkeypatch.setattr("hfflows.export._verify.run_worker", lambda *_, **__: {"graphs": {}})
    hub.reset_counts()
    again = export.with_options(flow_run_name=second_run)(config)

    assert again == ref
    assert "hit" in shown(second_run)["hfflows-export-org-model"]
    assert not [request for request in hub.requests if "/resolve/" in request.path]

    @flow
    def more():
        tuned = hfflows.save_model(hfflows.load_artifact(ref.parents[0].key), label="tuned")
        same = export_and_inject(ref.parents[0].key, name="org/model", **OPTIONS)
        said = inject_hub_metadata(
            ref, {"hf_license": "mit"}, repo_id="org/model", endpoint=hub.endpoint
        )
        with pytest.raises(hfflows.SettingsError, match="of kind 'model'"):
            verify_onnx(tuned)
        return same, said

    same, said = more()
    assert same == ref  # the same request by another task
    with hfflows.open_file(said, "model.onnx") as stream:
        entries = read_onnx_metadata(stream)
    assert entries["hf_license"] == "mit"
    assert entries["hf_hub_verified"] == "true"  # asked, this time
