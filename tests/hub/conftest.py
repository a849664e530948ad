import pytest

from hfflows.hub import fetch_snapshot


@pytest.fixture
def no_waits(monkeypatch):
    """Shorten what is waited before a request is repeated to a hundredth."""
    monkeypatch.setattr("random.uniform", lambda low, high: 0.01)


@pytest.fixture
def hub(local_hub, no_waits):
    """Return a Hub whose faults are waited out in no time."""
    return local_hub


@pytest.fixture
def options(local_hub, memory_store):
    """Return what every call needs to use this Hub and an empty store."""
    return {"endpoint": local_hub.endpoint, "token": local_hub.token, "store": memory_store}


@pytest.fixture
def ask(hub, memory_store):
    """Return `fetch_snapshot` with a repo, this Hub and an empty store, unless given others."""

    def fetch(repo_id="org/model", **given):
        settings = {"endpoint": hub.endpoint, "token": hub.token, "store": memory_store}
        return fetch_snapshot(repo_id, **(settings | given))

    return fetch
