"""Flows that `test_results.py` runs in processes of their own: one produces, another uses."""

import sys
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

import hfflows
from hfflows.tasks import load_model, save_model


@flow(persist_result=True, result_serializer="json")
def produce(path: str) -> dict[str, hfflows.ArtifactRef | str]:
    model = save_model(path, label="made-here", metadata={"step": 7})
    get_run_logger().info("saved %s", model.key)
    return {"model": model, "run": str(flow_run.id)}


@flow
def consume(run_id: UUID) -> str:
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(run_id).state.result()
    assert isinstance(found["model"], hfflows.ArtifactRef)
    return load_model(found["model"])


if __name__ == "__main__":
    if sys.argv[1] == "produce":
        print("RUN", produce(sys.argv[2])["run"])
    else:
        print("PATH", consume(UUID(sys.argv[2])))
