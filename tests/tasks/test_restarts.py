"""How often a run lost its process, by the history of its states."""

from datetime import UTC, datetime, timedelta

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType

from hfflows.errors import SettingsError
from hfflows.tasks import limit_restarts
from hfflows.tasks._restarts import count_restarts

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
TYPES = {
    "Scheduled": StateType.SCHEDULED,
    "AwaitingRetry": StateType.SCHEDULED,
    "Pending": StateType.PENDING,
    "Running": StateType.RUNNING,
    "Retrying": StateType.RUNNING,
    "Paused": StateType.PAUSED,
    "Suspended": StateType.PAUSED,
    "Failed": StateType.FAILED,
    "Crashed": StateType.CRASHED,
    "Completed": StateType.COMPLETED,
}


def states(text):
    return [
        State(type=TYPES[name], name=name, timestamp=BEGIN + timedelta(seconds=number))
        for number, name in enumerate(text.split())
    ]


@pytest.mark.parametrize(
    ("history", "restarts"),
    [
        ("Scheduled Pending Running", 0),
        ("Scheduled Pending Running AwaitingRetry Retrying", 0),  # a failure, retried in place
        ("Scheduled Pending Running Crashed AwaitingRetry Pending Running", 1),
        ("Scheduled Pending Running Crashed Crashed AwaitingRetry Pending Running", 1),
        ("Scheduled Pending Running AwaitingRetry Pending Retrying", 1),  # rescheduled by SIGTERM
        ("Scheduled Pending Running Failed AwaitingRetry Pending Running", 0),  # by hand
        ("Scheduled Pending Running Suspended Scheduled Pending Running", 0),
        (
            (
                "Pending Running Crashed AwaitingRetry Pending Running AwaitingRetry Retrying "
                "Crashed AwaitingRetry Pending Running"
            ),
            2,
        ),
        ("Pending Running Failed AwaitingRetry Pending Running Crashed Pending Running", 1),
        ("", 0),
    ],
)
def test_only_lost_processes_count(history, restarts):
    assert count_restarts(states(history)) == restarts
    assert count_restarts(reversed(states(history))) == restarts


def test_outside_a_flow_it_says_so():
    with pytest.raises(SettingsError, match="body of a flow"):
        limit_restarts(3)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_retries_of_failures_are_no_restarts_and_too_many_restarts_end_the_run():
    seen = []

    @flow(retries=2)
    def run():
        seen.append(limit_restarts(0))
        if len(seen) < 3:
            raise RuntimeError
        from prefect.runtime import flow_run

        with get_client(sync_client=True) as client:
            for name in ("Crashed", "Pending", "Running"):
                client.set_flow_run_state(
                    flow_run.id, State(type=TYPES[name], name=name), force=True
                )
        with pytest.raises(SettingsError, match="lost its process 1 times, 0 are accepted"):
            limit_restarts(0)
        return limit_restarts(1)

    assert run() == 1
    assert seen == [0, 0, 0]
