"""Stores that fail, hang or are far away."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hfflows.errors import SettingsError, StorageUnavailableError
from hfflows.storage import Store
from hfflows.testing import FaultyStore, SlowStore, StoreTests


class TestFaultyStoreWithoutFaults(StoreTests):
    @pytest.fixture
    def store(self, memory_store):
        return FaultyStore(memory_store)

    @pytest.fixture
    def raw(self, memory_store):
        return memory_store


class TestSlowStore(StoreTests):
    @pytest.fixture
    def store(self, memory_store):
        return SlowStore(memory_store, latency_seconds=0.0001, bytes_per_second=10e9)

    @pytest.fixture
    def raw(self, memory_store):
        return memory_store


@pytest.mark.parametrize(("when", "is_there"), [("before", False), ("after", True)])
def test_a_fault_comes_before_the_effect_or_after_it(memory_store, when, is_there):
    faulty = FaultyStore(memory_store, fail_at=2, when=when)
    faulty.put("a", b"1")

    with pytest.raises(StorageUnavailableError, match="injected"):
        faulty.put("b", b"1")
    faulty.put("c", b"1")

    assert (memory_store.head("b") is not None) is is_there
    assert memory_store.head("c") is not None
    assert faulty.calls == 3


def test_only_the_named_methods_count(memory_store):
    faulty = FaultyStore(memory_store, fail_at=1, only={"create"})
    faulty.put("a", b"1")
    faulty.get("a")
    assert faulty.calls == 0

    with pytest.raises(StorageUnavailableError):
        faulty.create("b", b"1")
    assert faulty.calls == 1


def test_a_method_that_no_store_has_is_refused(memory_store):
    with pytest.raises(SettingsError, match="upload"):
        FaultyStore(memory_store, only={"put", "upload"})


def test_a_call_hangs_until_it_is_released_and_then_takes_effect(memory_store):
    with FaultyStore(memory_store, fail_at=1, when="hang") as stuck:
        assert not stuck.wait_until_hanging(timeout=0)
        thread = threading.Thread(target=stuck.put, args=("k", b"late"))
        thread.start()

        assert stuck.wait_until_hanging(timeout=10)
        assert memory_store.head("k") is None
        stuck.put("other", b"1")  # only one call hangs
        assert thread.is_alive()

        stuck.release()
        thread.join(10)
    assert not thread.is_alive()
    assert memory_store.get("k") == b"late"


def test_the_end_of_the_block_releases(memory_store):
    with FaultyStore(memory_store, fail_at=1, when="hang") as stuck:
        thread = threading.Thread(target=stuck.get, args=("k",), daemon=True)
        memory_store.put("k", b"1")
        thread.start()
        assert stuck.wait_until_hanging(timeout=10)
    thread.join(10)

    assert not thread.is_alive()


def test_latency_is_paid_by_every_call_and_shared_by_none(memory_store):
    slow = SlowStore(memory_store, latency_seconds=0.05)

    began = time.monotonic()
    for number in range(4):
        slow.put(f"k/{number}", b"")
    assert time.monotonic() - began >= 0.2

    began = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: slow.put(f"k/{number}", b""), range(16)))
    assert 0.05 <= time.monotonic() - began < 0.4


def test_a_long_listing_pays_for_each_page(memory_store):
    for number in range(2001):
        memory_store.put(f"k/{number:04d}", b"")
    slow = SlowStore(memory_store, latency_seconds=0.05)

    began = time.monotonic()
    assert len(list(slow.list("k/"))) == 2001
    assert time.monotonic() - began >= 0.15
    began = time.monotonic()
    next(iter(slow.list("k/")))
    assert time.monotonic() - began < 0.1


def test_all_calls_share_the_line(memory_store):
    slow = SlowStore(memory_store, bytes_per_second=10e6)
    memory_store.put("k", bytes(500_000))

    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(slow.get, "k"),
            pool.submit(slow.get_range, "k", 0, 500_000),
            pool.submit(slow.put, "a", bytes(500_000)),
            pool.submit(slow.put_stream, "b", [bytes(250_000)] * 2),
        ]
        for call in calls:
            call.result()

    assert 0.2 <= time.monotonic() - began < 1


@pytest.mark.parametrize("settings", [{"latency_seconds": -1}, {"bytes_per_second": 0}])
def test_a_line_that_cannot_be_is_refused(memory_store, settings):
    with pytest.raises(SettingsError):
        SlowStore(memory_store, **settings)


def test_wrappers_are_stores_and_say_what_they_wrap(memory_store):
    for wrapped in (FaultyStore(memory_store), SlowStore(memory_store)):
        assert isinstance(wrapped, Store)
        assert wrapped.url == memory_store.url
        assert wrapped.has_conditional_create


def test_the_rest_of_testing_does_without_pytest():
    code = (
        "import sys; sys.modules['pytest'] = None; import hfflows.testing as t; "
        "t.FaultyStore, t.LocalS3\n"
        "try: t.StoreTests\nexcept ImportError: print('needs pytest')"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "needs pytest"
