"""What the demo does once its servers run: two runs, a kill, and a second flow."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

import hfflows
from demo import material
from hfflows.errors import HfflowsError
from hfflows.refs import parse_ref
from hfflows.tasks import save_result_storage

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

    from hfflows.testing import LocalHub, LocalPrefect, LocalS3

ROOT = Path(__file__).parent.parent
DATASET = "newsgroups"
EPOCHS = 3
KILL_AFTER_EPOCH = 2
LOG_SECONDS = 10.0  # Prefect sends a run's last lines after its state
RUN_SECONDS = 300.0


@dataclass
class Job:
    """One demo; the steps are called in order."""

    s3: LocalS3
    hub: LocalHub
    prefect: LocalPrefect
    scratch: Path
    say: Callable[..., None]
    parameters: dict[str, Any] = field(default_factory=dict)
    deployment_id: UUID = field(default_factory=uuid4)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    run_ids: list[UUID] = field(default_factory=list)

    def prepare(self, *, train_rows: int, test_rows: int, publish_to: str) -> None:
        """Put the base model on the Hub and the texts in the store; deploy the flow."""
        self.say("Preparing: base model on the Hub, texts in the store, the deployment", head=True)
        base = material.extract_base_model(self.scratch / "base")
        commit = self.hub.publish(material.BASE_REPO_ID, base)
        texts = material.write_dataset(
            self.scratch / "texts", train_rows=train_rows, test_rows=test_rows
        )
        dataset = hfflows.save_artifact(
            texts, kind="dataset", name=DATASET, storage_format="packed"
        )
        slug = save_result_storage(store_url=os.environ["HFFLOWS_STORE_URL"])
        self.prefect.cli("work-pool", "create", "hfflows", "--type", "process")
        self.prefect.cli(
            "deploy", "--all", "--prefect-file", "deployments/prefect.yaml", directory=ROOT
        )
        self.prefect.cli(
            "automation", "create", "--from-file", "deployments/automations.yaml", directory=ROOT
        )
        with get_client(sync_client=True) as client:
            self.deployment_id = client.read_deployment_by_name("retrain/nightly").id
        self.parameters = {
            "config": {
                "repo_id": material.BASE_REPO_ID,
                "revision": commit,
                "dataset": DATASET,
                "publish_to": publish_to,
                "epochs": EPOCHS,
            }
        }
        self.say(f"base model  {material.BASE_REPO_ID}@{commit}")
        self.say(
            f"texts       {dataset.key} ({train_rows * 4} to train on, {test_rows * 4} held out)"
        )
        self.say(f"results     Prefect block {slug}, in the same bucket")
        self.say("deployment  retrain/nightly, by `prefect deploy --all`, every night at 03:00")
        self.say("automation  resume-crashed: a run whose process died is scheduled again")

    def first_run(self) -> None:
        """Run the flow, kill its process after a checkpoint, let the same run go on."""
        self.say("Run 1: cold, and its process is killed during training", head=True)
        measure = _Measure(self.s3, self.hub)
        run = self._start()
        self._wait_for_checkpoints(run.id, KILL_AFTER_EPOCH)
        pid = self._kill(run.id)
        self.say(f"SIGKILL to process {pid} after the checkpoint of epoch {KILL_AFTER_EPOCH}")
        self._wait_for(run.id, "CRASHED")
        self.say(
            "the worker saw it crash; ten seconds later the automation schedules the same run again"
        )
        done = self._wait_for(run.id, "COMPLETED", passing=("CRASHED",))
        self._report(done, measure)
        self._prove_no_epoch_twice(run.id)
        self._show_export()

    def second_run(self) -> None:
        """Run the flow again, undisturbed: the snapshot costs nothing now."""
        self.say("Run 2: warm", head=True)
        measure = _Measure(self.s3, self.hub)
        run = self._start()
        done = self._wait_for(run.id, "COMPLETED")
        self._report(done, measure)

    def use_from_another_process(self) -> None:
        """Let a flow in a process of its own use run 1's export, knowing only the run's id."""
        self.say("Another flow, in another process, uses the export of run 1", head=True)
        done = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", "demo.use", str(self.run_ids[0])],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            msg = f"The second flow failed:\n{done.stderr[-2000:]}"
            raise HfflowsError(msg)
        self.say(done.stdout.strip())

    def where_to_look(self) -> None:
        """Say where everything is."""
        export = parse_ref(self.outcomes[-1]["export"])
        self.say("Where to look", head=True)
        self.say("the flow          flows/retrain.py, deployed by deployments/prefect.yaml")
        self.say(f"in the store      {export.store_url}/{export.key}")
        self.say(f"its files         {export.store_url}/files/{export.key[5:-5]}/")
        self.say(f"alias production  {hfflows.resolve_alias('production').key}")
        self.say("logs              .demo/prefect/server.log, .demo/prefect/worker.log")
        self.say("with the servers  make demo KEEP=1 leaves them up to be looked at")

    # Flow runs ---------------------------------------------------------------------------

    def _start(self) -> FlowRun:
        with get_client(sync_client=True) as client:
            run = client.create_flow_run_from_deployment(
                self.deployment_id, parameters=self.parameters
            )
        self.run_ids.append(run.id)
        self.say(f"flow run {run.name}: {self.prefect.ui_url}/runs/flow-run/{run.id}")
        return run

    def _read(self, run_id: UUID) -> FlowRun:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(run_id)

    def _wait_for(self, run_id: UUID, state_type: str, *, passing: tuple[str, ...] = ()) -> FlowRun:
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            run = self._read(run_id)
            if run.state is not None and run.state.type.value == state_type:
                return run
            is_final = run.state is not None and run.state.is_final()
            if is_final and run.state.type.value not in passing:  # type: ignore[union-attr]
                break
            time.sleep(0.25)
        msg = f"The flow run did not get to {state_type}.\n" + "\n".join(self._log(run_id)[-25:])
        raise HfflowsError(msg)

    def _wait_for_checkpoints(self, run_id: UUID, count: int) -> None:
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            if len(hfflows.list_artifacts("checkpoint")) >= count:
                return
            run = self._read(run_id)
            if run.state is not None and run.state.is_final():
                break
            time.sleep(0.1)
        msg = "The flow run saved no checkpoint.\n" + "\n".join(self._log(run_id)[-25:])
        raise HfflowsError(msg)

    def _kill(self, run_id: UUID) -> int:
        infrastructure = self._read(run_id).infrastructure_pid or ""
        pid = int(infrastructure.rpartition(":")[2])
        os.kill(pid, signal.SIGKILL)
        return pid

    def _log(self, run_id: UUID) -> list[str]:
        with get_client(sync_client=True) as client:
            records = client.read_logs(
                LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), limit=200
            )
        return [record.message for record in sorted(records, key=lambda item: item.timestamp)]

    def _whole_log(self, run_id: UUID) -> list[str]:
        deadline = time.monotonic() + LOG_SECONDS
        while time.monotonic() < deadline:
            lines = self._log(run_id)
            if any(line.startswith("alias ") for line in lines):
                break
            time.sleep(0.25)
        return lines

    # What is shown -----------------------------------------------------------------------

    def _report(self, run: FlowRun, measure: _Measure) -> None:
        outcome: dict[str, Any] = _result(run)
        self.outcomes.append(outcome)
        wanted = re.compile(
            r"^(Snapshot |resumed|trained epoch|checkpoints|accuracy|Export |ONNX|Published|alias)"
        )
        for line in self._whole_log(run.id):
            if wanted.match(line):
                self.say(f"  | {line}")
        metrics = outcome["evaluation"]["metrics"]
        self.say(f"process starts       {run.run_count}")
        self.say(
            f"Hub requests         {measure.base_requests()} for the base model, "
            f"{measure.publish_requests()} to publish"
        )
        self.say(f"bytes from the Hub   {measure.hub_bytes():,}")
        self.say(
            f"bytes to the store   {measure.store_received():,}; "
            f"from the store {measure.store_sent():,}"
        )
        self.say(
            f"accuracy             {metrics['accuracy']:.4f} on {metrics['rows']} held-out texts"
        )
        verification = outcome["verification"]
        self.say(
            f"ONNX against torch   same label on {verification['agreeing']} "
            f"of {verification['rows']} held-out texts"
        )
        self.say(f"published            {outcome['published']['url']}")
        self.say(f"model card           {outcome['published']['url']}/blob/main/README.md")

    def _prove_no_epoch_twice(self, run_id: UUID) -> None:
        trained = [
            int(found[1])
            for line in self._log(run_id)
            if (found := re.match(r"trained epoch (\d+)/", line))
        ]
        history: Any = parse_ref(self.outcomes[-1]["model"]).metadata["history"]
        if trained != sorted(set(trained)):
            msg = f"Epochs were trained twice: {trained}"
            raise HfflowsError(msg)
        self.say("epochs trained       each once, over two processes:")
        for item in history:
            in_log = "" if item["epoch"] in trained else " (its log line died with the process)"
            self.say(
                f"  | epoch {item['epoch']}: attempt {item['attempt']}, "
                f"loss {item['loss']:.4f}{in_log}"
            )

    def _show_export(self) -> None:
        export = parse_ref(self.outcomes[-1]["export"])
        with hfflows.open_file(export, "model.onnx") as stream:
            metadata = hfflows.read_onnx_metadata(stream)
        self.say("metadata in model.onnx, read from the bucket by range:")
        for name, value in metadata.items():
            self.say(f"  | {name} = {textwrap.shorten(value, 90, placeholder=' …')}")


def _result(run: FlowRun) -> dict[str, Any]:
    outcome: Any = run.state.result() if run.state is not None else None
    return dict(outcome)


class _Measure:
    """Counts since it was made, at the servers."""

    def __init__(self, s3: LocalS3, hub: LocalHub) -> None:
        self._s3, self._hub = s3, hub
        self._received, self._sent = s3.traffic()
        hub.reset_counts()

    def base_requests(self) -> int:
        """Return how often the Hub was asked about the base model."""
        return sum(self._is_base(item.path) for item in self._hub.requests)

    def publish_requests(self) -> int:
        """Return how often it was asked anything else."""
        return sum(not self._is_base(item.path) for item in self._hub.requests)

    @staticmethod
    def _is_base(path: str) -> bool:
        return material.BASE_REPO_ID in path

    def hub_bytes(self) -> int:
        """Return what the Hub sent."""
        return sum(item.bytes_sent for item in self._hub.requests)

    def store_received(self) -> int:
        """Return what the store received."""
        return self._s3.traffic()[0] - self._received

    def store_sent(self) -> int:
        """Return what the store sent."""
        return self._s3.traffic()[1] - self._sent
