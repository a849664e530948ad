"""A limit that a fleet shares: what must be fetched waits for a slot, what is there does not."""

import contextvars
import os
import threading
import time

import pytest
from prefect import flow
from prefect.concurrency.sync import concurrency

from hfflows.tasks import hub_slot, snapshot_download

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]

FILES = {"config.json": b"{}", "model.safetensors": os.urandom(100_000)}


def test_without_a_name_there_is_no_limit(monkeypatch):
    monkeypatch.delenv("HFFLOWS_HUB_CONCURRENCY_LIMIT", raising=False)
    assert hub_slot() is None


def test_a_fetch_waits_for_a_slot_and_a_hit_does_not(
    prefect_server, local_hub, local_s3, monkeypatch
):
    variables = {
        **local_s3.environ(),
        "HF_TOKEN": local_hub.token,
        "HFFLOWS_STORE_URL": local_s3.url(os.urandom(4).hex()),
        "HFFLOWS_HUB_CONCURRENCY_LIMIT": "hub",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    prefect_server.cli("gcl", "create", "hub", "--limit", "1")
    warm, cold = (local_hub.publish(f"org/{name}", FILES) for name in ("warm", "cold"))

    @flow
    def fetch(name, commit):
        return snapshot_download(
            f"org/{name}", revision=commit, endpoint=local_hub.endpoint, cache_scope="global"
        )

    fetch("warm", warm)
    before = local_hub.bytes_sent
    here = contextvars.copy_context()  # which server to talk to
    waiting = threading.Thread(target=here.run, args=(fetch, "cold", cold))
    with concurrency("hub", occupy=1):
        waiting.start()
        assert fetch("warm", warm).name == "org/warm"
        time.sleep(5)
        assert waiting.is_alive()
        assert local_hub.bytes_sent == before
    waiting.join(60)
    assert not waiting.is_alive()
    assert local_hub.bytes_sent - before >= 100_000
