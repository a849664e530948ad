"""A real Prefect server for the tests that need one, started once."""

import pytest

from hfflows.testing import LocalPrefect


@pytest.fixture(scope="session")
def prefect_server():
    """Return a running server; it costs 10 seconds, so the session shares it."""
    with LocalPrefect() as server:
        yield server


@pytest.fixture
def prefect_api(prefect_server):
    """Point this process's Prefect client at the server."""
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    settings = {
        PREFECT_API_URL: prefect_server.api_url,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # its thread adds a second to each flow
    }
    with temporary_settings(settings):
        yield prefect_server
