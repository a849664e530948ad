"""`deployments/` on a real Prefect server: deployed as documented, fit for the flow."""

import re
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.utilities.importtools import import_object

ROOT = Path(__file__).parents[2]
PREFECT_YAML = ROOT / "deployments" / "prefect.yaml"
DEPLOYMENTS = yaml.safe_load(PREFECT_YAML.read_text(encoding="utf-8"))["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["entrypoint"])
def test_entrypoint_and_parameters_fit_the_flow(deployment):
    path, _, name = deployment["entrypoint"].partition(":")
    flow = import_object(f"{ROOT / path}:{name}")

    assert flow.validate_parameters(deployment["parameters"])
    assert deployment["schedules"]


def test_no_secret_is_written_into_a_deployment():
    text = PREFECT_YAML.read_text(encoding="utf-8")
    assert not re.search(r"(?im)^[^#]*(token|secret|password|access_key)", text)


@pytest.mark.slow
def test_all_is_deployed_to_a_process_pool_with_a_schedule(prefect_api):
    prefect_api.cli("work-pool", "create", "hfflows", "--type", "process", "--overwrite")
    prefect_api.cli("deploy", "--all", "--prefect-file", "deployments/prefect.yaml", directory=ROOT)
    prefect_api.cli(
        "automation", "create", "--from-file", "deployments/automations.yaml", directory=ROOT
    )

    with get_client(sync_client=True) as client:
        found = client.read_deployment_by_name("retrain/nightly")
        pool = client.read_work_pool(found.work_pool_name)
    assert pool.type == "process"
    assert [schedule.schedule.cron for schedule in found.schedules] == ["0 3 * * *"]
    assert found.global_concurrency_limit.limit == 1
    assert found.pull_steps == [
        {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
    ]
    environ = found.job_variables["env"]
    assert environ["PREFECT_DEFAULT_RESULT_STORAGE_BLOCK"] == "s3-bucket/hfflows-results"
    assert "resume-crashed" in prefect_api.cli("automation", "ls")
