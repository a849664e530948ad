"""The worker's own cache: free second loads, never a wrong byte, never a failed load."""

import errno
import hashlib
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfflows.artifacts import (
    LocalCache,
    Segment,
    TreeFile,
    default_cache,
    load_artifact,
    save_artifact,
)
from hfflows.artifacts import _cache_files as cache_files
from hfflows.errors import IntegrityError, SettingsError, StorageUnavailableError
from hfflows.storage import open_store
from hfflows.testing import FaultyStore

LINKS = ["reflink", "copy", "hardlink"]


class Counting(FaultyStore):
    """A store that counts the bytes read from its objects; documents come whole."""

    bytes_read = 0

    def get_range(self, key, offset, length):
        self.bytes_read += length
        return super().get_range(key, offset, length)

    def stream_range(self, key, offset, length):
        self.bytes_read += length
        return super().stream_range(key, offset, length)


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    (root / "deep").mkdir(parents=True)
    (root / "large.bin").write_bytes(os.urandom((17 << 20) + 5))  # two segments
    (root / "small.txt").write_text("small")
    (root / "deep" / "other.txt").write_text("other")
    (root / "zero").write_bytes(b"")
    (root / "empty").mkdir()
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "not-run.sh").write_text("#!/bin/sh\n")
    (root / "deep" / "link").symlink_to("../run.sh")
    return root


def assert_same(one, other):
    assert (
        subprocess.run(["diff", "-r", "--no-dereference", one, other], check=False).returncode == 0
    )


def entries_of(cache):
    return sorted((cache.path / "files").glob("*/*"))


def fill(store, tmp_path, cache, content=b"content", name="first"):
    (tmp_path / "file").write_bytes(content)
    ref = save_artifact(tmp_path / "file", name="m", store=store)
    load_artifact(ref, tmp_path / name, cache=cache, store=store)
    return ref


@pytest.mark.parametrize("layout", ["packed", "files"])
@pytest.mark.parametrize("link", LINKS)
def test_the_second_load_reads_no_file_from_the_store(memory_store, source, tmp_path, link, layout):
    store, cache = Counting(memory_store), LocalCache(tmp_path / "cache", link=link)
    ref = save_artifact(source, name="m", storage_format=layout, store=store)
    first = load_artifact(ref, tmp_path / "first", cache=cache, store=store)
    read = store.bytes_read

    second = load_artifact(ref, tmp_path / "second", cache=cache, store=store)
    assert store.bytes_read == read > 0
    for loaded in (first, second):
        assert_same(source, loaded)
        assert os.access(loaded / "run.sh", os.X_OK)
        assert not os.access(loaded / "not-run.sh", os.X_OK)
        assert (loaded / "empty").is_dir()
        assert str((loaded / "deep" / "link").readlink()) == "../run.sh"
    assert cache.size_bytes == ref.size_bytes
    assert cache.verify() == []


def test_the_environment_names_a_cache_for_every_load(memory_store, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HFFLOWS_CACHE_DIR", str(tmp_path / "cache"))
    store = Counting(memory_store)
    ref = save_artifact(source, name="m", store=store)
    load_artifact(ref, tmp_path / "first", store=store)
    read = store.bytes_read

    load_artifact(ref, tmp_path / "second", store=store)
    assert store.bytes_read == read


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("20 GB", 20 * 1000**3), ("64GiB", 64 * 1024**3), ("5k", 5000), ("7B", 7)],
)
def test_a_limit_may_have_a_unit(tmp_path, monkeypatch, text, size):
    monkeypatch.setenv("HFFLOWS_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("HFFLOWS_CACHE_MAX_BYTES", text)

    assert default_cache().max_bytes == size


@pytest.mark.parametrize("text", ["x", "-1", "0", "1.5GB", "10 apples", "GB"])
def test_a_limit_that_is_no_size_is_refused(memory_store, source, tmp_path, monkeypatch, text):
    ref = save_artifact(source, name="m", store=memory_store)
    monkeypatch.setenv("HFFLOWS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HFFLOWS_CACHE_MAX_BYTES", text)

    with pytest.raises(SettingsError, match="HFFLOWS_CACHE_MAX_BYTES"):
        load_artifact(ref, tmp_path / "out", store=memory_store)


@pytest.mark.parametrize("settings", [{"max_bytes": 0}, {"link": "symlink"}])
def test_settings_that_make_no_sense_are_refused(tmp_path, settings):
    with pytest.raises(SettingsError):
        LocalCache(tmp_path, **settings)


def test_only_what_is_missing_is_fetched(memory_store, source, tmp_path):
    store, cache = Counting(memory_store), LocalCache(tmp_path / "cache")
    ref = save_artifact(source, name="m", storage_format="files", store=store)
    load_artifact(ref, tmp_path / "part", allow_patterns="large.bin", cache=cache, store=store)
    read = store.bytes_read

    load_artifact(ref, tmp_path / "whole", cache=cache, store=store)
    assert store.bytes_read - read == ref.size_bytes - (source / "large.bin").stat().st_size


def test_a_cached_artifact_that_was_deleted_is_not_loaded(memory_store, tmp_path):
    cache = LocalCache(tmp_path / "cache")
    ref = fill(memory_store, tmp_path, cache)
    memory_store.delete([info.key for info in memory_store.list("")])

    with pytest.raises(FileNotFoundError):
        load_artifact(ref, tmp_path / "second", cache=cache, store=memory_store)


# Whose files ------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["reflink", "copy"])
def test_loaded_files_are_the_callers_to_change(memory_store, tmp_path, link):
    cache = LocalCache(tmp_path / "cache", link=link)
    ref = fill(memory_store, tmp_path, cache)
    with (tmp_path / "first" / "file").open("r+b") as file:
        file.write(b"CHANGED")

    second = load_artifact(ref, tmp_path / "second", cache=cache, store=memory_store)
    assert (second / "file").read_bytes() == b"content"
    assert os.access(second / "file", os.W_OK)


def test_hard_links_are_read_only_and_take_no_space(memory_store, tmp_path):
    cache = LocalCache(tmp_path / "cache", link="hardlink")
    ref = fill(memory_store, tmp_path, cache)
    second = load_artifact(ref, tmp_path / "second", cache=cache, store=memory_store)

    [entry] = entries_of(cache)
    assert entry.samefile(second / "file")
    assert entry.samefile(tmp_path / "first" / "file")
    assert (second / "file").stat().st_mode & 0o777 == 0o444


def test_a_hard_link_that_was_written_to_is_dropped_and_fetched_again(
    memory_store, tmp_path, caplog
):
    cache = LocalCache(tmp_path / "cache", link="hardlink")
    ref = fill(memory_store, tmp_path, cache)
    spoilt = tmp_path / "first" / "file"
    spoilt.chmod(0o644)
    with spoilt.open("r+b") as file:
        file.write(b"CHANGED")

    second = load_artifact(ref, tmp_path / "second", cache=cache, store=memory_store)
    assert (second / "file").read_bytes() == b"content"
    assert "was changed since it was cached" in caplog.text
    assert cache.verify() == []


# Damage -----------------------------------------------------------------------------------


def truncate(entry):
    entry.chmod(0o644)
    os.truncate(entry, 3)


def rewrite(entry):
    entry.chmod(0o644)
    entry.write_bytes(b"CONTENT")


def replace(entry):
    """Put another file in its place, with the time of the old one."""
    status = entry.stat()
    other = entry.with_name("other")
    other.write_bytes(b"CONTENT")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(entry)


@pytest.mark.parametrize("damage", [truncate, rewrite, replace])
def test_a_damaged_entry_is_a_miss_that_is_logged(memory_store, tmp_path, caplog, damage):
    cache = LocalCache(tmp_path / "cache")
    ref = fill(memory_store, tmp_path, cache)
    [entry] = entries_of(cache)
    damage(entry)

    second = load_artifact(ref, tmp_path / "second", cache=cache, store=memory_store)
    assert (second / "file").read_bytes() == b"content"
    assert str(entry) in caplog.text
    assert cache.verify() == []
    assert len(entries_of(cache)) == 1


def test_verify_finds_what_the_file_system_does_not_tell(memory_store, tmp_path):
    cache = LocalCache(tmp_path / "cache")
    ref = fill(memory_store, tmp_path, cache)
    [entry] = entries_of(cache)
    status = entry.stat()
    rewrite(entry)
    os.utime(entry, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert cache.verify() == [entry.name[:64]]
    assert entries_of(cache) == []
    second = load_artifact(ref, tmp_path / "second", cache=cache, store=memory_store)
    assert (second / "file").read_bytes() == b"content"


def test_verifying_is_no_use_of_an_entry(memory_store, tmp_path):
    cache = LocalCache(tmp_path / "cache")
    fill(memory_store, tmp_path, cache)
    [entry] = entries_of(cache)
    os.utime(entry, ns=(12345, entry.stat().st_mtime_ns))

    assert cache.verify() == []
    assert entry.stat().st_atime_ns == 12345


def test_what_is_no_entry_is_never_placed(memory_store, tmp_path):
    cache = LocalCache(tmp_path / "cache")
    ref = fill(memory_store, tmp_path, cache)
    [entry] = entries_of(cache)
    entry.rename(entry.with_name(entry.name[:64]))

    load_artifact(ref, tmp_path / "second", cache=cache, store=memory_store)
    assert cache.verify() == [""]


def test_a_tree_that_lies_about_a_file_poisons_no_other_artifact(tmp_path, caplog):
    """Its segments verify, but do not add up to the sha256 it states for the file."""
    cache = LocalCache(tmp_path / "cache")
    (tmp_path / "evil").write_bytes(b"evil" * 2)
    half = Segment("k", 0, 4, "0" * 64)
    lying = TreeFile("evil", 8, "a" * 64, is_executable=False, segments=(half, half))

    cache.insert([lying], tmp_path)
    assert entries_of(cache) == []
    assert "is not what its tree says" in caplog.text


def test_damage_in_the_store_is_found_and_not_cached(memory_store, tmp_path):
    cache = LocalCache(tmp_path / "cache")
    (tmp_path / "file").write_bytes(b"content")
    ref = save_artifact(tmp_path / "file", name="m", storage_format="packed", store=memory_store)
    [key] = [info.key for info in memory_store.list("objects/")]
    memory_store.put(key, b"CONTENT")

    with pytest.raises(IntegrityError):
        load_artifact(ref, tmp_path / "out", cache=cache, store=memory_store)
    assert entries_of(cache) == []


# A cache that cannot be used --------------------------------------------------------------


def test_a_full_disk_in_the_cache_does_not_fail_the_load(
    memory_store, source, tmp_path, caplog, monkeypatch
):
    cache = LocalCache(tmp_path / "cache", link="copy")
    ref = save_artifact(source, name="m", store=memory_store)

    def full(descriptor, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    monkeypatch.setattr(cache_files.shutil, "copyfileobj", full)
    assert_same(source, load_artifact(ref, tmp_path / "out", cache=cache, store=memory_store))
    assert "No space left" in caplog.text
    assert entries_of(cache) == []
    assert list((cache.path / "tmp").iterdir()) == []


def test_a_cache_that_cannot_be_written_does_not_fail_the_load(
    memory_store, source, tmp_path, caplog
):
    (tmp_path / "cache").write_text("a file where the directory should be")
    ref = save_artifact(source, name="m", store=memory_store)
    cache = LocalCache(tmp_path / "cache")

    assert_same(source, load_artifact(ref, tmp_path / "out", cache=cache, store=memory_store))
    assert "not all are cached" in caplog.text


def test_an_entry_that_cannot_be_read_is_fetched(memory_store, tmp_path, monkeypatch, caplog):
    cache = LocalCache(tmp_path / "cache")
    ref = fill(memory_store, tmp_path, cache)

    def broken(*_args, **_options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("hfflows.artifacts._cache.clone_or_copy", broken)
    second = load_artifact(ref, tmp_path / "second", cache=cache, store=memory_store)
    assert (second / "file").read_bytes() == b"content"
    assert "Input/output error" in caplog.text


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_load_that_fails_at_any_call_leaves_the_cache_right(memory_store, source, tmp_path, when):
    ref = save_artifact(source, name="m", storage_format="packed", store=memory_store)
    counting = FaultyStore(memory_store)
    load_artifact(ref, tmp_path / "counted", store=counting)

    for number in range(1, counting.calls + 1):
        cache = LocalCache(tmp_path / f"cache-{number}")
        store = FaultyStore(memory_store, fail_at=number, when=when)
        with pytest.raises(StorageUnavailableError):
            load_artifact(ref, tmp_path / "out", cache=cache, store=store)
        assert cache.verify() == []
        loaded = load_artifact(ref, tmp_path / f"{number}", cache=cache, store=memory_store)
        assert_same(source, loaded)


# Eviction ---------------------------------------------------------------------------------


def file_of(root, number, size):
    content = f"{number:0{size}}".encode()
    digest = hashlib.sha256(content).hexdigest()
    (root / str(number)).write_bytes(content)
    segment = Segment("key", 0, size, digest)
    return TreeFile(str(number), size, digest, is_executable=False, segments=(segment,))


SIZES = (100, 200, 300, 400)
actions = st.lists(st.tuples(st.integers(0, 1), st.sampled_from(SIZES)), max_size=25)


@given(actions, st.integers(250, 1200))
def test_the_least_recently_used_go_first(tmp_path_factory, uses, limit):
    root = tmp_path_factory.mktemp("eviction")
    cache = LocalCache(root / "cache", max_bytes=limit)
    expected: dict[str, int] = {}  # oldest use first
    for step, (number, size) in enumerate(uses):
        file = file_of(root, number * 1000 + size, size)
        missing = cache.place([file], root / f"out-{step}")
        assert [one.sha256 for one in missing] == [file.sha256] * (file.sha256 not in expected)

        cache.insert(missing, root)
        used = expected.pop(file.sha256, None)
        if used is None and size <= limit:
            while sum(expected.values()) + size > limit:
                expected.pop(next(iter(expected)))
        if size <= limit:
            expected[file.sha256] = size
        assert {entry.name[:64] for entry in entries_of(cache)} == set(expected)
        assert cache.size_bytes == sum(expected.values()) <= limit


def test_of_an_artifact_larger_than_the_cache_as_much_is_kept_as_fits(tmp_path):
    cache = LocalCache(tmp_path / "cache", max_bytes=700)
    files = [file_of(tmp_path, number, 300) for number in range(4)]

    cache.insert(files, tmp_path)
    assert cache.size_bytes == 600


def test_an_insert_beside_another_one_keeps_to_the_limit(tmp_path):
    other, late, early = (file_of(tmp_path, number, 300) for number in range(3))

    class Overtaken(LocalCache):
        def _insert_one(self, file, loaded, workplace):
            LocalCache(self.path, max_bytes=500).insert([early], tmp_path)
            super()._insert_one(file, loaded, workplace)

    cache = Overtaken(tmp_path / "cache", max_bytes=500)
    cache.insert([late], tmp_path)
    assert [entry.name[:64] for entry in entries_of(cache)] == [late.sha256]

    cache = LocalCache(tmp_path / "cache", max_bytes=500)
    cache.insert([other], tmp_path)
    assert [entry.name[:64] for entry in entries_of(cache)] == [other.sha256]


def test_clear_leaves_nothing(memory_store, tmp_path):
    cache = LocalCache(tmp_path / "cache")
    cache.clear()  # of nothing
    fill(memory_store, tmp_path, cache)
    cache.clear()

    assert cache.size_bytes == 0
    assert [path for path in cache.path.rglob("*") if path.is_file()] == [cache.path / "lock"]


# Several processes ------------------------------------------------------------------------

WORKER = """
import sys, tempfile
from pathlib import Path
from hfflows.artifacts import LocalCache, load_artifact
from hfflows.storage import open_store
store, cache = open_store(sys.argv[1]), LocalCache(sys.argv[2], max_bytes=int(sys.argv[3]))
print("ready", flush=True)
sys.stdin.readline()
for key in sys.argv[4:] * 3:
    with tempfile.TemporaryDirectory() as scratch:
        loaded = load_artifact(key, Path(scratch) / "out", cache=cache, store=store)
        for path in loaded.iterdir():
            assert path.read_bytes() == path.name.encode() * 50_000, path
"""


def artifacts_of(tmp_path, store, count):
    references = []
    for number in range(count):
        root = tmp_path / f"source-{number}"
        root.mkdir()
        for part in range(6):
            name = f"{number}-{part}"
            (root / name).write_bytes(name.encode() * 50_000)
        references.append(save_artifact(root, name=f"m{number}", store=store))
    return references


def start(script, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
def test_processes_share_a_cache_that_is_too_small_for_them(tmp_path):
    url = (tmp_path / "store").as_uri()
    references = artifacts_of(tmp_path, open_store(url), 4)
    limit = references[0].size_bytes * 2
    names = [ref.key for ref in references]
    workers = [
        start(WORKER, url, tmp_path / "cache", limit, *order) for order in (names, names[::-1])
    ]
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]

    cache = LocalCache(tmp_path / "cache")
    assert 0 < cache.size_bytes <= limit
    assert cache.verify() == []
    assert list((cache.path / "tmp").iterdir()) == []


KILLED = """
import os, sys, time
from hfflows.artifacts import LocalCache, _cache, load_artifact
from hfflows.storage import open_store
def stop_here(path, *rest):
    os.write(1, b"ready\\n")  # whole, since several threads come here
    time.sleep(60)
_cache.touch = stop_here
cache = LocalCache(sys.argv[2])
load_artifact(sys.argv[3], sys.argv[4], cache=cache, store=open_store(sys.argv[1]))
"""


@pytest.mark.slow
def test_an_insert_that_is_killed_leaves_nothing_that_is_used(tmp_path):
    url = (tmp_path / "store").as_uri()
    store = open_store(url)
    [ref] = artifacts_of(tmp_path, store, 1)
    cache = LocalCache(tmp_path / "cache")
    process = start(KILLED, url, cache.path, ref.key, tmp_path / "killed")

    cache.insert([], tmp_path)
    other = fill(store, tmp_path, cache, content=b"of a live process")  # must not sweep it
    assert len(list((cache.path / "tmp").iterdir())) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()

    assert cache.verify() == []
    assert cache.size_bytes == other.size_bytes
    loaded = load_artifact(ref, tmp_path / "again", cache=cache, store=store)
    assert_same(tmp_path / "source-0", loaded)
    assert list((cache.path / "tmp").iterdir()) == []
    assert cache.size_bytes == other.size_bytes + ref.size_bytes
