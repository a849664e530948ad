"""From Prefect's run contexts to a `RunIdentity`.

What was measured on Prefect 3.8.8 decides what is taken: every flow retry gives each task
a new task run id, and mapped calls have no index, so neither is identity. Stable over all
retries are the root flow run's id, the path of tracking task runs below it, the task's
name, and the call's inputs.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext
from pydantic import BaseModel, SecretBytes, SecretStr

from hfflows.errors import SettingsError
from hfflows.identity import RunIdentity
from hfflows.refs import ArtifactRef, Producer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect.client.schemas.objects import TaskRun
    from prefect.context import RunContext

NAMESPACE_VARIABLE = "HFFLOWS_NAMESPACE"
DEFAULT_NAMESPACE = "default"
NO_FLOW = "-"
"""Flow part of the identity of a task that is called outside any flow."""


def run_identity(*, key: str | None = None, namespace: str | None = None) -> RunIdentity:
    """Return who is running: for `Checkpointer`, snapshots and producers.

    Call it in the body of a task (or of a flow) and in its own thread.

    Args:
        key: Tells calls of one task apart, run after run: a mapped item's name, a set of
            hyperparameters. Without one, calls inside one run are told apart by their
            inputs, and all runs share one lineage.
        namespace: Separates lineages; `None` means `HFFLOWS_NAMESPACE`, else the
            deployment's name, else `default`.

    Raises:
        SettingsError: Outside a run; or no `key` and inputs that are no JSON values, which
            would let two calls share their checkpoints.
    """
    task_context, flow_context = TaskRunContext.get(), FlowRunContext.get()
    if task_context is None and flow_context is None:
        msg = "There is no Prefect run here; call this inside a task or a flow."
        raise SettingsError(msg)
    flow_run = flow_context.flow_run if flow_context is not None else None
    flow = flow_context.flow.name if flow_context is not None and flow_context.flow else NO_FLOW
    scope = _run_scope(flow_run) if flow_run is not None else ""
    flow_count = flow_run.run_count if flow_run is not None else 0
    where = namespace or os.environ.get(NAMESPACE_VARIABLE) or _namespace_of(flow_run)
    if task_context is None:
        attempt = f"{flow_count:03d}-000-{_start_of(flow_context)}"
        return RunIdentity(where, flow, flow, key or "", scope, attempt)
    task_run = task_context.task_run
    scope = scope or str(task_run.id)
    if key is None:
        scope += f"/{_inputs_digest(task_context.parameters, flow)}"
    return RunIdentity(
        namespace=where,
        flow=flow,
        task=task_context.task.name,
        item=key or "",
        run=scope,
        attempt=(
            f"{flow_count:03d}-{task_run.run_count:03d}-{_start_of(task_context)}"
            f"-{task_run.id.hex[-8:]}"
        ),
    )


def producer() -> Producer:
    """Return what a reference says of who made it; empty outside a run."""
    if TaskRunContext.get() is None and FlowRunContext.get() is None:
        return Producer()
    return Producer.of(run_identity(key=""))


def _start_of(context: RunContext | None) -> str:
    """Return when a body began, in milliseconds and hexadecimal digits that sort.

    Dask and Ray repeat a task as the same task run, with the same count; a subflow's count
    begins anew with each retry of its parent.
    """
    return f"{round(context.start_time.timestamp() * 1000):x}" if context is not None else ""


def _namespace_of(flow_run: Any) -> str:
    if flow_run is None or flow_run.deployment_id is None:
        return DEFAULT_NAMESPACE
    return _deployment_name(flow_run.deployment_id)


@lru_cache(maxsize=256)
def _deployment_name(deployment_id: UUID) -> str:
    with get_client(sync_client=True) as client:
        return client.read_deployment(deployment_id).name


def _run_scope(flow_run: Any) -> str:
    """Return what stays the same over all retries of the outermost flow run.

    A subflow's own id changes on most retries; the name and the call counter of the task
    run that tracks it do not. Two API reads a level, none for a flow that is not nested.
    """
    path: list[str] = []
    flow_run_id, parent_id = flow_run.id, flow_run.parent_task_run_id
    while parent_id is not None:
        tracking = _tracking_task_run(parent_id)
        path.append(f"{tracking.name}.{tracking.dynamic_key}")
        if tracking.flow_run_id is None:
            break
        flow_run_id, parent_id = tracking.flow_run_id, _parent_of(tracking.flow_run_id)
    return "/".join([str(flow_run_id), *reversed(path)])


@lru_cache(maxsize=256)
def _tracking_task_run(task_run_id: UUID) -> TaskRun:
    with get_client(sync_client=True) as client:
        return client.read_task_run(task_run_id)


@lru_cache(maxsize=256)
def _parent_of(flow_run_id: UUID) -> UUID | None:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(flow_run_id).parent_task_run_id


def _inputs_digest(parameters: Mapping[str, Any], flow: str) -> str:
    """Return a digest that is equal for equal calls, whatever the attempt."""
    try:
        text = json.dumps(
            {name: _plain(value) for name, value in parameters.items()}, sort_keys=True
        )
    except (TypeError, ValueError, RecursionError) as error:
        msg = (
            f"A task of flow {flow!r} got inputs that are not JSON values ({error}); "
            "pass run_identity(key=…) to tell its calls apart."
        )
        raise SettingsError(msg) from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Return a JSON value that stands for an input; secrets stand for nothing."""
    match value:
        case SecretStr() | SecretBytes():
            plain: Any = None
        case ArtifactRef():
            plain = ["artifact", value.kind, value.digest]
        case BaseModel():
            fields = {name: _plain(getattr(value, name)) for name in type(value).model_fields}
            plain = [type(value).__qualname__, fields]
        case dict():
            plain = {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            plain = [_plain(item) for item in value]
        case set() | frozenset():
            plain = sorted(json.dumps(_plain(item), sort_keys=True) for item in value)
        case os.PathLike() | UUID():
            plain = str(value)
        case _:
            plain = value
    return plain
