"""Leases: one holder at a time, taken over from the dead, whatever fails on the way."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest

from hfflows import keys
from hfflows.artifacts import _leases as leases
from hfflows.artifacts import acquire_lease, lease
from hfflows.errors import (
    LeaseLostError,
    LeaseUnavailableError,
    ObjectExistsError,
    SettingsError,
    StorageError,
    StorageUnavailableError,
)
from hfflows.storage import open_store
from hfflows.testing import FaultyStore
from tests.artifacts.support import new_store

WHEN = ["before", "after"]


def parts_of(store, name="work"):
    return [info.key.partition(".")[2] for info in store.list(keys.lease_prefix(name))]


class Wrapper:
    """A store that passes everything on, for a test to change one thing."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)


# One holder ------------------------------------------------------------------------------


def test_a_second_worker_waits_until_the_first_is_done(store):
    with lease("work", store=store, holder="first") as held:
        assert not held.is_lost
        held.check()
        with pytest.raises(LeaseUnavailableError, match="'work' is held by first") as caught:
            acquire_lease("work", store=store, timeout_seconds=0)
        assert (caught.value.holder, caught.value.epoch) == ("first", 1)

    assert acquire_lease("work", store=store, timeout_seconds=0).epoch == 2


def test_a_release_is_seen_long_before_the_lease_expires(memory_store):
    held = acquire_lease("work", store=memory_store, ttl_seconds=3600)
    threading.Timer(0.2, held.release).start()

    started = time.monotonic()
    acquire_lease("work", store=memory_store, timeout_seconds=10)
    assert 0.1 < time.monotonic() - started < 3


def test_a_lease_is_released_when_the_work_fails(memory_store):
    with pytest.raises(KeyboardInterrupt), lease("work", store=memory_store):
        raise KeyboardInterrupt

    acquire_lease("work", store=memory_store, timeout_seconds=0)


def test_a_timeout_is_kept(memory_store):
    acquire_lease("work", store=memory_store)

    started = time.monotonic()
    with pytest.raises(LeaseUnavailableError):
        acquire_lease("work", store=memory_store, timeout_seconds=0.3)
    assert 0.3 <= time.monotonic() - started < 2


def test_names_are_any_text_and_do_not_meet(store):
    names = ["a", "a/b", "a/b/c", "ü ?", "x" * 1000, "x" * 1001]
    held = [acquire_lease(name, store=store, timeout_seconds=0) for name in names]

    assert [one.epoch for one in held] == [1] * len(names)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), 1e9])
def test_a_ttl_that_makes_no_sense_is_refused(memory_store, ttl):
    with pytest.raises(SettingsError, match="ttl_seconds"):
        acquire_lease("work", store=memory_store, ttl_seconds=ttl)


def test_epochs_only_grow_and_the_prefix_stays_small(store):
    for epoch in range(1, 8):
        with lease("work", store=store) as held:
            held.renew()
            held.renew()
            assert held.epoch == epoch
            assert parts_of(store) == ["beat-2.json", "claim.json"]
    assert len(parts_of(store)) == 3


# Races -----------------------------------------------------------------------------------


def assert_never_two(intervals):
    """Check (epoch, begin, end): one holder for each epoch, and none while another holds."""
    epochs = [epoch for epoch, _begin, _end in intervals]
    assert sorted(epochs) == list(range(1, len(epochs) + 1))
    ordered = sorted(intervals)
    for (_, _, end), (_, begin, _) in itertools.pairwise(ordered):
        assert end <= begin


def hold_once(store, times=1):
    intervals = []
    for _ in range(times):
        held = acquire_lease("work", store=store, ttl_seconds=10, timeout_seconds=60)
        begin = time.monotonic()
        time.sleep(0.002)
        intervals.append((held.epoch, begin, time.monotonic()))
        held.release()
    return intervals


def test_of_sixteen_threads_one_holds_each_epoch(store):
    with ThreadPoolExecutor(16) as pool:
        runs = [pool.submit(hold_once, store, 2) for _ in range(16)]
        assert_never_two([interval for run in runs for interval in run.result()])


RIVAL = """
import sys, time
from hfflows.artifacts import acquire_lease
from hfflows.storage import open_store
store = open_store(sys.argv[1])
for _ in range(6):
    held = acquire_lease("work", store=store, ttl_seconds=10, timeout_seconds=60)
    begin = time.monotonic()
    time.sleep(0.01)
    print(held.epoch, begin, time.monotonic(), flush=True)
    held.release()
"""


def start(script, local_s3, url):
    return subprocess.Popen(
        [sys.executable, "-c", script, url],
        env={**os.environ, **local_s3.environ()},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_of_four_processes_one_holds_each_epoch(local_s3):
    url = local_s3.url(os.urandom(6).hex())
    rivals = [start(RIVAL, local_s3, url) for _ in range(4)]
    lines = [line for rival in rivals for line in rival.communicate()[0].splitlines()]

    assert len(lines) == 24
    assert_never_two([(int(e), float(b), float(f)) for e, b, f in map(str.split, lines)])


def test_a_claim_that_comes_after_its_rivals_were_swept_away_does_not_count(memory_store):
    """It finds its epoch's key free, since a later holder deleted the claim that was there."""
    rivals = []

    class LateCreate(Wrapper):
        def create(self, key, data):
            if not rivals:
                for _ in range(2):
                    rivals.append(acquire_lease("work", store=self._store))
                    rivals[-1].release()
                rivals.append(acquire_lease("work", store=self._store))
            self._store.create(key, data)

    with pytest.raises(LeaseUnavailableError):
        acquire_lease("work", store=LateCreate(memory_store), timeout_seconds=0)

    rivals[-1].renew()
    assert rivals[-1].epoch == 3
    assert {keys.parse_lease_part(i.key)[0] for i in memory_store.list("leases/")} == {3}


def test_a_worker_that_is_paused_while_it_claims_does_not_hold_and_epochs_go_on(memory_store):
    class Paused(Wrapper):
        def create(self, key, data):
            self._store.create(key, data)
            time.sleep(0.3)

    acquire_lease("work", store=memory_store).release()
    with pytest.raises(LeaseUnavailableError):
        acquire_lease("work", store=Paused(memory_store), ttl_seconds=0.2, timeout_seconds=0)

    assert acquire_lease("work", store=memory_store, timeout_seconds=5).epoch == 3


# Expiry ----------------------------------------------------------------------------------


def test_a_holder_that_falls_silent_is_replaced_after_its_ttl_and_told(memory_store):
    silent = acquire_lease("work", store=memory_store, ttl_seconds=0.5)

    started = time.monotonic()
    held = acquire_lease("work", store=memory_store, ttl_seconds=30, timeout_seconds=10)
    assert 0.5 <= time.monotonic() - started < 2
    assert held.epoch == 2
    assert silent.is_lost
    with pytest.raises(LeaseLostError, match="'work'"):
        silent.check()
    with pytest.raises(LeaseLostError):
        silent.renew()
    assert parts_of(memory_store) == ["claim.json"]  # no sign of life of the dead

    silent.release()  # must not end the lease of the next one
    with pytest.raises(LeaseUnavailableError):
        acquire_lease("work", store=memory_store, timeout_seconds=0)


def test_heartbeats_keep_a_lease_for_many_ttls(memory_store):
    with lease("work", store=memory_store, ttl_seconds=0.6) as held:
        with pytest.raises(LeaseUnavailableError):
            acquire_lease("work", store=memory_store, timeout_seconds=2)
        held.check()


def test_a_holder_learns_of_a_newer_epoch_at_its_next_renewal(memory_store):
    held = acquire_lease("work", store=memory_store)
    memory_store.put(keys.lease_part("work", 2, "claim"), b"{}")

    assert not held.is_lost
    with pytest.raises(LeaseLostError):
        held.renew()
    assert held.is_lost


class OldStore(Wrapper):
    """A store in which everything was written some hours ago."""

    def __init__(self, store, hours):
        super().__init__(store)
        self._age = timedelta(hours=hours)

    def list(self, prefix, *, after=None):
        for info in self._store.list(prefix, after=after):
            yield replace(info, modified_at=info.modified_at - self._age)


def test_a_lease_older_than_any_clock_is_wrong_is_taken_at_once(memory_store):
    acquire_lease("work", store=memory_store)
    with pytest.raises(LeaseUnavailableError):
        acquire_lease("work", store=OldStore(memory_store, hours=0.9), timeout_seconds=0)

    held = acquire_lease("work", store=OldStore(memory_store, hours=1.1), timeout_seconds=0)
    assert held.epoch == 2


HOLDER = """
import sys, time
from hfflows.artifacts import lease
from hfflows.storage import open_store
from tests.artifacts.support import new_store
with lease("work", store=open_store(sys.argv[1]), holder="doomed", ttl_seconds=1) as held:
    print("held", flush=True)
    while not held.is_lost:
        time.sleep(0.02)
    print("lost", flush=True)
"""


@pytest.fixture
def doomed(local_s3):
    url = local_s3.url(os.urandom(6).hex())
    process = start(HOLDER, local_s3, url)
    assert process.stdout.readline() == "held\n"
    yield process, open_store(url, **local_s3.options())
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_the_lease_of_a_killed_process_is_taken_over_after_its_ttl(doomed):
    process, store = doomed
    with pytest.raises(LeaseUnavailableError, match="doomed"):
        acquire_lease("work", store=store, timeout_seconds=1.5)  # it is alive
    process.kill()

    started = time.monotonic()
    held = acquire_lease("work", store=store, timeout_seconds=20)
    assert held.epoch == 2
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_a_paused_process_learns_when_it_resumes_that_it_lost_the_lease(doomed):
    process, store = doomed
    process.send_signal(signal.SIGSTOP)
    with lease("work", store=store, ttl_seconds=30, timeout_seconds=20) as held:
        process.send_signal(signal.SIGCONT)

        assert process.communicate(timeout=20)[0] == "lost\n"
        held.renew()
        assert held.epoch == 2


# Faults ----------------------------------------------------------------------------------


def calls_of(operation):
    counting = FaultyStore(new_store())
    operation(counting)
    return counting.calls


def hold_and_renew(store):
    held = acquire_lease("work", store=store, ttl_seconds=0.3, timeout_seconds=0)
    held.renew()
    held.release()


@pytest.mark.parametrize("when", WHEN)
def test_whichever_call_fails_the_next_worker_gets_the_lease(when):
    for number in range(1, calls_of(hold_and_renew) + 1):
        store = new_store()
        with contextlib.suppress(StorageUnavailableError, LeaseLostError):
            hold_and_renew(FaultyStore(store, fail_at=number, when=when))
        held = acquire_lease("work", store=store, timeout_seconds=5)
        assert held.epoch in {1, 2}
        assert [part for part in parts_of(store) if part == "claim.json"] == ["claim.json"]


def test_a_claim_whose_reply_is_lost_is_known_as_our_own(memory_store):
    class SaysItExists(Wrapper):
        """A client that sent the claim twice: the first one landed, its reply did not."""

        def create(self, key, data):
            self._store.create(key, data)
            raise ObjectExistsError(f"{key} exists.", key=key)

    assert acquire_lease("work", store=SaysItExists(memory_store), timeout_seconds=0).epoch == 1

    # The second call is the create; its failure comes after its effect.
    lost = FaultyStore(memory_store, fail_at=2, when="after")
    assert acquire_lease("other", store=lost, timeout_seconds=0).epoch == 1


def test_a_heartbeat_that_fails_is_tried_again(memory_store, caplog):
    flaky = FaultyStore(memory_store, fail_at=4)  # look, claim, confirm, then the heartbeat
    with lease("work", store=flaky, ttl_seconds=0.9) as held:
        time.sleep(1.5)
        held.check()
    assert "is tried again" in caplog.text


class Dead(Wrapper):
    is_dead = False

    def put(self, key, data):
        if self.is_dead:
            raise StorageUnavailableError("gone")
        self._store.put(key, data)


def test_a_holder_cut_off_from_the_store_loses_the_lease_and_its_work_goes_on(memory_store, caplog):
    store = Dead(memory_store)
    with lease("work", store=store, ttl_seconds=0.6) as held:
        store.is_dead = True
        time.sleep(0.8)
        assert held.is_lost


def test_a_release_that_fails_is_logged_and_the_lease_expires(memory_store, caplog):
    store = Dead(memory_store)
    with lease("work", store=store, ttl_seconds=0.5):
        store.is_dead = True

    assert "is not released and expires" in caplog.text
    assert acquire_lease("work", store=memory_store, timeout_seconds=5).epoch == 2


def test_a_holder_that_may_not_delete_holds_all_the_same(memory_store):
    class NoDelete(Wrapper):
        def delete(self, keys):
            raise StorageError("denied")

    for epoch in (1, 2, 3):
        with lease("work", store=NoDelete(memory_store)) as held:
            assert held.epoch == epoch


@pytest.mark.parametrize("claim", [b"", b"{}", b"[]", b"\xff\xfe"])
def test_a_damaged_claim_expires_after_the_waiters_own_ttl(memory_store, claim):
    memory_store.put(keys.lease_part("work", 7, "claim"), claim)
    with pytest.raises(LeaseUnavailableError, match="held by somebody"):
        acquire_lease("work", store=memory_store, ttl_seconds=0.4, timeout_seconds=0.2)

    held = acquire_lease("work", store=memory_store, ttl_seconds=0.4, timeout_seconds=5)
    assert held.epoch == 8


def test_what_is_no_part_of_a_lease_is_neither_read_nor_deleted(memory_store):
    stray = keys.lease_prefix("work") + "0000.readme"
    memory_store.put(stray, b"hands off")

    with lease("work", store=memory_store) as held:
        assert held.epoch == 1
    assert memory_store.get(stray) == b"hands off"


class NotConditional(Wrapper):
    """A store that writes whatever is there; a rival's claim lands right after ours."""

    has_conditional_create = False

    def create(self, key, data):
        self._store.put(key, data)
        threading.Timer(0.05, self._store.put, (key, b"a rival's")).start()


def test_without_conditional_create_a_claim_counts_only_if_it_stays(memory_store, monkeypatch):
    monkeypatch.setattr(leases, "_SETTLE_SECONDS", 0.3)

    with pytest.raises(LeaseUnavailableError):
        acquire_lease("work", store=NotConditional(memory_store), timeout_seconds=0)
    assert parts_of(memory_store) == ["claim.json"]
