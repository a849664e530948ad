"""How often a run lost its process: a budget apart from `retries`, which is for failures.

Prefect's `retries` count only what ended in `Failed`. A run whose process was killed or told
to go is started again by an automation, by `PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR=reschedule`
or by hand, without a limit, and `flow_run.run_count` counts those starts and the retries alike.
The history of a run's states tells them apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext

from hfflows.errors import SettingsError
from hfflows.tasks._support import run_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prefect.client.schemas.objects import State


def limit_restarts(most: int) -> int:
    """Give up a run whose process has died too often, and return how often it has.

        @flow(retries=2)              # failures of the code
        def retrain():
            limit_restarts(10)        # preemptions, crashes, lost machines

    Call it at the beginning of a flow. Retries of failures do not count, nor do retries by
    hand of a run that had failed.

    Args:
        most: How many restarts are accepted.

    Raises:
        SettingsError: Outside a flow, or the run has been restarted more often.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        msg = "limit_restarts belongs in the body of a flow; there is no flow run here."
        raise SettingsError(msg)
    with get_client(sync_client=True) as client:
        restarts = count_restarts(client.read_flow_run_states(context.flow_run.id))
    if restarts > most:
        msg = (
            f"This run lost its process {restarts} times, {most} are accepted. See the end of its "
            "log for what kills it; a new run begins with a new budget."
        )
        raise SettingsError(msg)
    if restarts:
        run_logger().info("Restart %d of at most %d: the process before was lost", restarts, most)
    return restarts


def count_restarts(states: Iterable[State]) -> int:
    """Return how many of a run's starts followed the loss of a process.

    A process begins with `Pending`: a retry of a failure in the same process has none. When
    the run had failed or finished before, the start is a retry by hand.
    """
    restarts, has_run, is_new_process, was_over = 0, False, False, False
    for state in sorted(states, key=lambda state: state.timestamp):
        if state.type is StateType.RUNNING:
            restarts += has_run and is_new_process and not was_over
            has_run, is_new_process, was_over = True, False, False
        elif state.type is StateType.PENDING:
            is_new_process = True
        elif state.type in (StateType.FAILED, StateType.COMPLETED, StateType.PAUSED):
            was_over = True
    return restarts
