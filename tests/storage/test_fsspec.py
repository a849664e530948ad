"""What is particular to stores on fsspec."""

import os
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from hfflows.errors import ObjectExistsError, SettingsError, StorageError, StorageUnavailableError
from hfflows.storage import _s3fs, open_store
from hfflows.storage._fsspec import FsspecStore, _modified_at
from hfflows.storage._fsspec_files import DirectoryStore, LocalStore


@pytest.fixture
def bucket(local_s3):
    """A bucket of its own, so that its requests can be counted."""
    return local_s3.create_bucket(f"b-{os.urandom(4).hex()}")


@pytest.fixture
def counted(bucket, local_s3):
    return open_store(f"s3://{bucket}/x", engine="fsspec", **local_s3.options())


def test_each_call_to_s3_is_one_request(counted, bucket, local_s3):
    counted.put("k", b"0123456789")
    counted.create("c", b"")
    counted.get("k")
    counted.get_range("k", 2, 3)
    assert counted.head("absent") is None
    list(counted.list("none/"))
    counted.delete(["k", "c", "absent"])

    requests = local_s3.requests(bucket)
    assert requests.pop("PUT") == 2
    assert requests.pop("GET") == 3
    assert requests.pop("LIST") == 1
    assert sum(requests.values()) == 1, requests


def test_a_listing_costs_a_request_a_page_and_only_when_it_is_reached(counted, bucket, local_s3):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: counted.put(f"p/{n:04d}", b""), range(1500)))

    next(iter(counted.list("p/")))
    assert local_s3.requests(bucket)["LIST"] == 1
    assert next(iter(counted.list("p/", after="p/1200"))).key == "p/1201"
    assert local_s3.requests(bucket)["LIST"] == 2
    assert len(list(counted.list("p/"))) == 1500
    assert local_s3.requests(bucket)["LIST"] == 4


def test_deletes_go_in_batches_of_a_thousand(counted, bucket, local_s3):
    counted.delete([f"k/{number}" for number in range(2500)])

    assert sum(local_s3.requests(bucket).values()) == 3


def test_a_long_stream_takes_the_memory_of_a_few_parts(counted, monkeypatch):
    part = 5 << 20
    monkeypatch.setattr(_s3fs, "PART_BYTES", part)
    piece = bytes(1 << 20)
    counted.put_stream("warm", [piece] * 20)

    tracemalloc.start()
    counted.put_stream("big", (piece for _ in range(150)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert counted.head("big").size_bytes == 150 << 20
    assert peak < (2 * _s3fs.PARTS_IN_FLIGHT + 4) * part, peak / part


FORKING = """
import os, sys, hfflows
store = hfflows.open_store(sys.argv[1], engine="fsspec")
store.put("parent", b"1")
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
store.put("child", store.get("parent"))
assert len(list(store.list(""))) == 2
"""


def test_a_store_on_s3_survives_a_fork(s3_url, local_s3):
    done = subprocess.run(
        [sys.executable, "-c", FORKING, s3_url],
        env={**os.environ, **local_s3.environ()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert open_store(s3_url, **local_s3.options()).get("child") == b"1"


def test_an_object_store_behind_fsspec_decides_between_creators(s3_url, local_s3):
    """The way gcsfs creates: by `pipe_file(mode="create")`."""
    plain = open_store(s3_url, engine="fsspec", **local_s3.options())
    store = FsspecStore(s3_url, plain._connect, has_conditional_create=True)

    def create(number):
        try:
            store.create(f"locks/{number % 20}", b"%d" % number)
        except ObjectExistsError:
            return None
        return number % 20

    with ThreadPoolExecutor(8) as pool:
        winners = [won for won in pool.map(create, range(160)) if won is not None]

    assert sorted(winners) == list(range(20))


def test_a_name_with_wildcards_deletes_only_itself(s3_url, local_s3):
    plain = open_store(s3_url, engine="fsspec", **local_s3.options())
    store = FsspecStore(s3_url, plain._connect)
    for key in ("d/a", "d/b", "d/*"):
        store.put(key, b"")

    store.delete(["d/*"])

    assert [info.key for info in store.list("d/")] == ["d/a", "d/b"]


def test_a_file_system_of_a_known_protocol_is_a_store(tmp_path):
    store = open_store(f"local://{tmp_path}/with%20space")

    store.put("a/b", b"1")

    assert isinstance(store, LocalStore)
    assert (tmp_path / "with space" / "a" / "b").read_bytes() == b"1"


def test_what_a_killed_writer_left_is_not_listed(tmp_path):
    store = open_store(tmp_path, engine="fsspec")
    (tmp_path / ".hfflows-incoming").mkdir()
    (tmp_path / ".hfflows-incoming" / "0123").write_bytes(b"half")
    store.put("a", b"1")

    assert [info.key for info in store.list("")] == ["a"]
    assert os.listdir(tmp_path / ".hfflows-incoming") == ["0123"]


def test_a_directory_is_listed_no_further_than_it_is_read(tmp_path):
    class Counting(LocalFileSystem):
        asked = 0

        def ls(self, path, detail=False, **kwargs):
            Counting.asked += 1
            return super().ls(path, detail=detail, **kwargs)

    store = DirectoryStore("dirs://lazy", lambda: (Counting(), str(tmp_path)))
    for number in range(20):
        store.put(f"d/{number:02d}/k", b"")

    Counting.asked = 0
    assert next(iter(store.list("d/"))).key == "d/00/k"
    assert Counting.asked == 2
    Counting.asked = 0
    assert [info.key for info in store.list("d/", after="d/18/k")] == ["d/19/k"]
    assert Counting.asked == 3


def test_an_object_at_the_name_of_a_directory_is_refused(tmp_path):
    store = open_store(tmp_path, engine="fsspec")
    store.put("a/b", b"1")

    with pytest.raises(StorageError, match="objects below this key"):
        store.put("a", b"2")

    assert [info.key for info in store.list("")] == ["a/b"]


def test_a_connection_that_broke_is_made_again(tmp_path):
    class Breaking(LocalFileSystem):
        is_up = True

        def cat_file(self, *args, **kwargs):
            if not self.is_up:
                raise ConnectionResetError("connection lost")
            return super().cat_file(*args, **kwargs)

    made = []

    def connect():
        made.append(Breaking(skip_instance_cache=True))
        return made[-1], str(tmp_path)

    store = DirectoryStore("dirs://breaking", connect, turns=threading.RLock())
    store.put("k", b"1")
    made[0].is_up = False

    with pytest.raises(StorageUnavailableError, match="connection lost"):
        store.get("k")
    assert store.get("k") == b"1"
    assert len(made) == 2


def test_options_that_do_not_fit_are_refused_at_the_first_use(monkeypatch):
    class Strict(LocalFileSystem):
        protocol = "strict"

        def __init__(self, *, host):
            super().__init__()

    fsspec.register_implementation("strict", Strict, clobber=True)
    store = open_store("strict://here/x", port=1)

    with pytest.raises(SettingsError, match="port"):
        store.get("k")


@pytest.mark.parametrize(
    "info",
    [
        {"LastModified": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)},
        {"mtime": 1767323045.0},
        {"updated": "2026-01-02T03:04:05+00:00"},
        {"updated": "2026-01-02T03:04:05Z"},
        {"mtime": datetime(2026, 1, 2, 3, 4, 5)},  # noqa: DTZ001 - as sftp says it
    ],
)
def test_the_time_of_an_object_is_found_wherever_a_file_system_says_it(info):
    assert _modified_at(info) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_an_object_whose_time_nobody_knows_is_new():
    assert (datetime.now(UTC) - _modified_at({})).total_seconds() < 5
