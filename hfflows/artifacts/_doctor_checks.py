"""The checks of the doctor: each asks one thing of a store and says what follows."""

from __future__ import annotations

import hashlib
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TypeVar

from hfflows import keys
from hfflows.errors import IntegrityError, ObjectExistsError, ObjectNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hfflows.storage import Store

Verdict = Literal["ok", "warn", "fail"]
Outcome = tuple[Verdict, str]
Item = TypeVar("Item")
Result = TypeVar("Result")

LARGE_BYTES = 40 * 1024 * 1024

_THREADS = 16
_PAGE = 1000  # keys in one answer of S3
_BLOCK = os.urandom(1024 * 1024)
_SKEW_WARN_SECONDS, _SKEW_FAIL_SECONDS = 30.0, 15 * 60.0  # S3 itself refuses beyond 15 minutes
_NAMES = ("a b", "ü", "模型", "🤗", "100%", "a+b&c=d", "~", ".", "..", "x" * 240, "-", "#?[]*'\"\\")


@dataclass(slots=True)
class Scratch:
    """A store and a prefix of it, with every key that was given out."""

    store: Store
    prefix: str
    large_bytes: int
    used: set[str] = field(default_factory=set)

    def key(self, name: str) -> str:
        """Return a key below the prefix; known from now on, however its write ends."""
        self.used.add(self.prefix + name)
        return self.prefix + name

    def left(self) -> list[str]:
        """Return the keys that may still be there: all, when they cannot be listed."""
        if not self.used:
            return []
        try:
            return [info.key for info in self.store.list(self.prefix)]
        except IntegrityError:
            return sorted(self.used)


@dataclass(frozen=True, slots=True)
class Check:
    """A question to a store."""

    name: str
    run: Callable[[Scratch], Outcome]
    if_ok: str
    if_not: str
    is_slow: bool = False
    """Whether others should not wait for it."""


def _write_and_read(scratch: Scratch) -> Outcome:
    store, key = scratch.store, scratch.key("hello")
    store.put(key, b"hello")
    info = store.head(key)
    if store.get(key) != b"hello" or info is None or info.size_bytes != len(b"hello"):
        return "fail", "An object came back other than it was written."
    absent = scratch.prefix + "absent"
    try:
        store.get(absent)
    except ObjectNotFoundError:
        if store.head(absent) is None:
            return "ok", "An object was written and read; an absent one is known to be absent."
    return "fail", "An object that is not there was found."


def _content(scratch: Scratch) -> Outcome:
    contents = [b"", b"\0", bytes(range(256)), b"\r\n" * 99, b'{"a": 1}', _BLOCK]
    for number, content in enumerate(contents):
        key = scratch.key(f"content/{number}")
        scratch.store.put(key, content)
        info = scratch.store.head(key)
        size = -1 if info is None else info.size_bytes
        if scratch.store.get(key) != content or size != len(content):
            return "fail", f"{len(content):,} bytes came back changed, or as {size:,} bytes."
    return "ok", f"{len(contents)} contents came back byte for byte, the empty one included."


def _key_names(scratch: Scratch) -> Outcome:
    names = {scratch.key(f"names/{keys.encode(name)}"): name for name in _NAMES}
    for key, name in names.items():
        scratch.store.put(key, name.encode())
    listed = {info.key for info in scratch.store.list(f"{scratch.prefix}names/")}
    for key, name in names.items():
        if key not in listed or scratch.store.get(key) != name.encode():
            return "fail", f"The name {name[:20]!r}, as the key {key[:80]}, did not come back."
    return "ok", f"{len(names)} names in many scripts came back from keys and listings."


def _conditional_create(scratch: Scratch) -> Outcome:
    store, key = scratch.store, scratch.key("create")
    store.create(key, b"first")
    try:
        store.create(key, b"second")
    except ObjectExistsError:
        pass
    else:
        return "fail", "A second create of one key succeeded."
    if not store.has_conditional_create:
        return "warn", "The store cannot decide between writers; hfflows looks, then writes."
    return _race(scratch, scratch.key("race"))


def _race(scratch: Scratch, key: str) -> Outcome:
    barrier = threading.Barrier(_THREADS)

    def create(writer: int) -> bool:
        barrier.wait()
        try:
            scratch.store.create(key, b"%d" % writer)
        except ObjectExistsError:
            return False
        return True

    won = [writer for writer, has_won in enumerate(_each(create, range(_THREADS))) if has_won]
    if len(won) > 1:
        return "fail", f"{len(won)} of {_THREADS} writers created the same key at once."
    # None: the winner's reply was lost on the way, and its retry found its own object.
    if won and scratch.store.get(key) != b"%d" % won[0]:
        return "fail", "The winner of a race is not whose object is there."
    return "ok", f"Of {_THREADS} writers at the same moment one won."


def _read_after_write(scratch: Scratch) -> Outcome:
    key = scratch.key("overwritten")
    for number in range(20):
        content = b"%d" % number
        scratch.store.put(key, content)
        if scratch.store.get(key) != content:
            return "fail", "A read after a write returned what was there before."
    return "ok", "20 writes were each seen by the next read."


def _list_after_write(scratch: Scratch) -> Outcome:
    expected = set()
    for number in range(20):
        expected.add(key := scratch.key(f"seen/{number}"))
        scratch.store.put(key, b"")
        listed = {info.key for info in scratch.store.list(f"{scratch.prefix}seen/")}
        if listed != expected:
            missing = len(expected - listed)
            return "fail", f"A listing right after a write lacked {missing} of {number + 1} keys."
    return "ok", "20 writes were each seen by the next listing."


def _listing(scratch: Scratch) -> Outcome:
    names = [f"{number:04}" for number in range(_PAGE + 50)]
    # By bytes, not by words. All side by side, as ids are: where a listing meets directories,
    # stores differ (SeaweedFS has `b/c` before `b-c`), and nothing of ours may rely on it.
    names += ["A", "Z", "_", "a", "b-c", "b.c", "b0", "c=C3=BC"]
    expected = sorted(scratch.key(f"list/{name}") for name in names)
    _each(lambda key: scratch.store.put(key, b""), expected)
    prefix = f"{scratch.prefix}list/"
    listed = [info.key for info in scratch.store.list(prefix)]
    if sorted(listed) != expected:
        return "fail", f"A listing of {len(expected):,} keys had {len(listed):,}, some wrong."
    if listed != expected:
        return "fail", f"A listing of {len(expected):,} keys is not in their order."
    for position in (0, len(expected) // 2, _PAGE - 1, len(expected) - 1):
        tail = [info.key for info in scratch.store.list(prefix, after=expected[position])]
        if tail != expected[position + 1 :]:
            return "fail", f"A listing after the key at {position:,} is not the rest."
    return "ok", f"{len(expected):,} keys in several pages came in order, from any key on."


def _ranges(scratch: Scratch) -> Outcome:
    store, key = scratch.store, scratch.key("ranges")
    store.put(key, _BLOCK)
    size = len(_BLOCK)
    for offset, length in ((0, 1), (0, size), (1000, 65536), (size - 1, 1), (size, 0), (7, 0)):
        if bytes(store.get_range(key, offset, length)) != _BLOCK[offset : offset + length]:
            return "fail", f"The {length:,} bytes from {offset:,} on are not the object's."
    for offset, length in ((size - 10, 11), (size, 1), (size + 5, 5)):
        try:
            store.get_range(key, offset, length)
        except IntegrityError:
            continue
        return "fail", f"A read of {length} bytes at {offset:,}, past the end, did not fail."
    return "ok", "Ranges are exact to the byte, and one past the end is an error."


def _large_object(scratch: Scratch) -> Outcome:
    key, sent = scratch.key("large"), hashlib.sha256()

    def blocks() -> Iterator[bytes]:
        for offset in range(0, scratch.large_bytes, len(_BLOCK)):
            block = (b"%016d" % offset + _BLOCK[16:])[: scratch.large_bytes - offset]
            sent.update(block)
            yield block

    started = time.perf_counter()
    scratch.store.put_stream(key, blocks())
    written = time.perf_counter()
    content = scratch.store.get(key)
    read = time.perf_counter()
    if hashlib.sha256(content).digest() != sent.digest():
        return "fail", f"{len(content):,} bytes came back with another sha256."
    size = scratch.large_bytes / 1e6
    up, down = size / (written - started), size / (read - written)
    return "ok", f"{size:,.0f} MB came back with their sha256: {up:,.0f} MB/s up, {down:,.0f} down."


def _clock(scratch: Scratch) -> Outcome:
    key = scratch.key("clock")
    before = datetime.now(UTC)
    scratch.store.put(key, b"")
    after = datetime.now(UTC)
    info = scratch.store.head(key)
    if info is None:
        return "fail", "An object was not there right after it was written."
    ahead = (info.modified_at - after).total_seconds()
    behind = (before - info.modified_at).total_seconds()
    skew, word = (ahead, "ahead of") if ahead > behind else (behind, "behind")
    detail = f"The store's clock is {max(skew, 0):,.0f} s {word} this machine's."
    if skew > _SKEW_FAIL_SECONDS:
        return "fail", detail
    return ("warn" if skew > _SKEW_WARN_SECONDS else "ok"), detail


def _latency(scratch: Scratch) -> Outcome:
    key = scratch.key("latency")
    writes = [_seconds(lambda: scratch.store.put(key, b"x" * 1024)) for _ in range(10)]
    reads = [_seconds(lambda: scratch.store.get(key)) for _ in range(10)]
    write, read = statistics.median(writes) * 1e3, statistics.median(reads) * 1e3
    return "ok", f"1 KiB takes {write:,.1f} ms to write and {read:,.1f} ms to read."


def _delete(scratch: Scratch) -> Outcome:
    """Delete everything the other checks wrote: what a batch must be able to do."""
    absent = [f"{scratch.prefix}absent/{number}" for number in range(3)]
    doomed = sorted(scratch.used)
    scratch.store.delete([*absent, *doomed])
    left = scratch.left()
    if left or scratch.store.head(doomed[0]) is not None:
        return "fail", f"{len(left):,} of {len(doomed):,} deleted objects are still there."
    scratch.used.clear()
    return "ok", f"{len(doomed):,} objects went in batches; absent ones did no harm."


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hfflows-doctor") as pool:
        return list(pool.map(function, items))


CHECKS = (
    Check(
        "write and read",
        _write_and_read,
        "Artifacts can be saved and loaded.",
        "Nothing can be saved here: check the bucket, the endpoint and the rights to get, put "
        "and head objects.",
    ),
    Check(
        "content",
        _content,
        "Bytes arrive as they were sent.",
        "Something changes bytes on the way. Every load of what was damaged will fail; do not "
        "use this store.",
    ),
    Check(
        "key names",
        _key_names,
        "Any name of a model, flow or file can be used.",
        "Artifacts with such names cannot be found again; keep to plain names, or use another "
        "store.",
    ),
    Check(
        "conditional create",
        _conditional_create,
        "Leases, aliases and commits have one winner.",
        "Leases and aliases can let two writers through: work may be done twice, and one of two "
        "moves of an alias at the same moment may be lost. Artifacts stay whole.",
        is_slow=True,  # SeaweedFS lets the losers of a race wait, a second at a time
    ),
    Check(
        "read after write",
        _read_after_write,
        "What is written is read.",
        "A worker may read what was there before its last write; results may be stale.",
    ),
    Check(
        "list after write",
        _list_after_write,
        "A new checkpoint is found at once.",
        "The newest checkpoint may be overlooked, so that a retry resumes from an older one; "
        "collection is not safe.",
    ),
    Check(
        "listing",
        _listing,
        "The newest of any number of checkpoints is one request away.",
        "The newest checkpoint is looked for at the wrong place: do not use load policies here.",
    ),
    Check(
        "ranged reads",
        _ranges,
        "Parts of files are loaded without the rest.",
        "Loads in parts, `open_file` and tensors by name fail or refuse what they get.",
    ),
    Check(
        "large object",
        _large_object,
        "Files of any size can be saved.",
        "Objects in several parts do not arrive: save with storage_format='packed', whose "
        "objects have one part.",
    ),
    Check(
        "clock",
        _clock,
        "Ages of objects can be trusted.",
        "Retention by age and collection's grace period are off by this much; set this "
        "machine's clock.",
    ),
    Check("latency", _latency, "For your information.", "The store could not be measured."),
    Check(
        "delete",
        _delete,
        "Retention and collection free what is no longer needed.",
        "Deleted artifacts keep taking space, and retention and collection do not work.",
    ),
)
"""`write and read` comes first: without it nothing else can be asked. `delete` comes last: it
deletes what the others wrote."""
