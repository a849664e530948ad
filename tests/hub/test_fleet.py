"""Many workers, one download; and a worker that dies while it fetches."""

import os
import time

import pytest

import hfflows.artifacts._pipeline as pipeline
import hfflows.hub._snapshot as snapshots
from hfflows.artifacts import verify_artifact
from hfflows.hub import fetch_snapshot
from hfflows.identity import RunIdentity
from hfflows.storage import open_store
from tests.processes import PROCESSES

REPO = "org/model"
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model-1.safetensors": os.urandom(20 << 20),
    "model-2.safetensors": os.urandom(12 << 20),
}
SIZE = sum(map(len, FILES.values()))


def fetch(url, options, hub, environment, results, *, scope="global", item=""):
    """Fetch in a process of its own."""
    os.environ.update(environment)
    snapshots.LEASE_SECONDS = 2.0
    identity = RunIdentity("team", "flow", "task", item, run="run") if scope != "global" else None
    result = fetch_snapshot(
        REPO, identity=identity, cache_scope=scope, store=open_store(url, **options), **hub
    )
    results.put((result.outcome, result.ref.key, result.ref.digest))


@pytest.fixture
def fleet(local_hub, local_s3):
    return Fleet(local_hub, local_s3)


class Fleet:
    def __init__(self, hub, s3):
        self.hub, self.url, self.options = hub, s3.url(os.urandom(6).hex()), s3.options()
        self.store = open_store(self.url, **self.options)
        self.results = PROCESSES.Queue()

    def worker(self, **options):
        hub = {"endpoint": self.hub.endpoint, "token": self.hub.token}
        arguments = (self.url, self.options, hub, self.hub.environ(), self.results)
        process = PROCESSES.Process(target=fetch, args=arguments, kwargs=options)
        process.start()
        return process

    def stored_bytes(self):
        return sum(info.size_bytes for info in self.store.list("objects/"))


@pytest.mark.slow
def test_sixteen_cold_workers_make_one_download(fleet):
    fleet.hub.publish(REPO, FILES)

    workers = [fleet.worker() for _ in range(16)]
    answers = [fleet.results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()

    assert sorted(outcome for outcome, _, _ in answers) == ["hit"] * 15 + ["miss"]
    assert len({(key, digest) for _, key, digest in answers}) == 1
    assert fleet.hub.bytes_sent <= 1.02 * SIZE
    verify_artifact(answers[0][1], store=fleet.store)


@pytest.mark.slow
def test_cold_items_with_a_scope_each_move_the_weights_once(fleet):
    fleet.hub.publish(REPO, FILES)

    workers = [fleet.worker(scope="checkpoint", item=str(number)) for number in range(4)]
    answers = [fleet.results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()

    assert [outcome for outcome, _, _ in answers] == ["miss"] * 4
    assert len({key for _, key, _ in answers}) == 4
    assert fleet.hub.bytes_sent <= 1.02 * SIZE


@pytest.mark.slow
def test_when_the_worker_that_fetches_is_killed_another_one_goes_on(fleet):
    large = {"model.safetensors": os.urandom(192 << 20)}
    fleet.hub.publish(REPO, large)
    first = fleet.worker()
    while fleet.stored_bytes() < 64 << 20:
        assert first.is_alive()
        time.sleep(0.01)
    second = fleet.worker()
    first.kill()
    killed_at = time.monotonic()

    outcome, key, _ = fleet.results.get(timeout=60)
    second.join()

    assert outcome == "miss"
    assert time.monotonic() - killed_at < 2 + 10
    window = (pipeline.READS_AHEAD + pipeline.UPLOADS_IN_FLIGHT + 1) * pipeline.OBJECT_BYTES
    assert fleet.hub.bytes_sent <= (192 << 20) + window  # what was in flight is fetched again
    verify_artifact(key, store=fleet.store)
