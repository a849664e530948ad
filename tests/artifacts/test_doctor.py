"""The doctor: sound stores are found sound, each broken promise is found and named."""

import os
import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from hfflows.artifacts import Finding, diagnose
from hfflows.artifacts._doctor_checks import CHECKS
from hfflows.cli import _doctor as command
from hfflows.errors import (
    AccessDeniedError,
    ObjectExistsError,
    StorageError,
    StorageUnavailableError,
)
from hfflows.testing import FaultyStore

SMALL = 1 << 20


class Wrapper:
    """A store that passes everything on, for one promise to be broken."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)


class NotAtomic(Wrapper):
    """Looks whether the key is free, then writes."""

    def create(self, key, data):
        if self._store.head(key) is not None:
            raise ObjectExistsError(f"{key} exists.", key=key)
        time.sleep(0.05)
        self._store.put(key, data)


class CreateOverwrites(Wrapper):
    def create(self, key, data):
        self._store.put(key, data)


class SaysItCannot(NotAtomic):
    has_conditional_create = False


class Unsorted(Wrapper):
    def list(self, prefix, *, after=None):
        return iter(list(self._store.list(prefix, after=after))[::-1])


class SortedByWords(Wrapper):
    def list(self, prefix, *, after=None):
        return iter(sorted(self._store.list(prefix, after=after), key=lambda i: i.key.lower()))


class ForgetsAfter(Wrapper):
    def list(self, prefix, *, after=None):
        return self._store.list(prefix)


class OnePage(Wrapper):
    def list(self, prefix, *, after=None):
        return iter(list(self._store.list(prefix, after=after))[:1000])


class Truncating(Wrapper):
    """A range past the end gives what there is."""

    def get_range(self, key, offset, length):
        return self._store.get(key)[offset : offset + length]


class OffByOne(Wrapper):
    def get_range(self, key, offset, length):
        return self._store.get_range(key, offset, max(length - 1, 0))


class LyingDelete(Wrapper):
    """Of a batch only the first is deleted, and nobody is told."""

    def delete(self, keys):
        self._store.delete(list(keys)[:1])


class NoDelete(Wrapper):
    def delete(self, keys):
        raise AccessDeniedError("AccessDenied", key=keys[0])


class Skewed(Wrapper):
    skew = timedelta(hours=1)

    def head(self, key):
        info = self._store.head(key)
        return info and replace(info, modified_at=info.modified_at + self.skew)


class SlightlySkewed(Skewed):
    skew = -timedelta(minutes=2)


class ReadOnly(Wrapper):
    def put(self, key, data):
        raise AccessDeniedError("AccessDenied: you may not.", key=key)


class Unreachable(Wrapper):
    def put(self, key, data):
        raise StorageUnavailableError("Connection refused.", key=key)


class LosesParts(Wrapper):
    def put_stream(self, key, chunks):
        self._store.put(key, b"".join(chunks)[:-1])


class ChangesLineEnds(Wrapper):
    def put(self, key, data):
        self._store.put(key, data if len(data) > 1000 else data.replace(b"\r\n", b"\n"))


class NoUnicode(Wrapper):
    def put(self, key, data):
        if "=" in key:
            raise StorageError("InvalidKey", key=key)
        self._store.put(key, data)


class StaleReads(Wrapper):
    """A cache in front: the first thing read is what is read."""

    def __init__(self, store):
        super().__init__(store)
        self._seen = {}

    def get(self, key, **options):
        return self._seen.setdefault(key, self._store.get(key, **options))


class ForgetsTheNewest(Wrapper):
    """A listing that trails a little behind."""

    def __init__(self, store):
        super().__init__(store)
        self._put = None

    def put(self, key, data):
        self._store.put(key, data)
        self._put = key

    def list(self, prefix, *, after=None):
        newest, self._put = self._put, None
        return (info for info in self._store.list(prefix, after=after) if info.key != newest)


BROKEN = {
    NotAtomic: [("conditional create", "fail", "writers created the same key")],
    CreateOverwrites: [("conditional create", "fail", "second create")],
    SaysItCannot: [("conditional create", "warn", "cannot decide")],
    Unsorted: [("listing", "fail", "not in their order")],
    SortedByWords: [("listing", "fail", "not in their order")],
    ForgetsAfter: [("listing", "fail", "is not the rest")],
    OnePage: [("listing", "fail", "had 1,000")],
    Truncating: [("ranged reads", "fail", "past the end")],
    OffByOne: [("ranged reads", "fail", "are not the object's")],
    LyingDelete: [("delete", "fail", "still there")],
    NoDelete: [("delete", "fail", "do not allow it. AccessDenied")],
    Skewed: [("clock", "fail", "3,600 s ahead of")],
    SlightlySkewed: [("clock", "warn", "120 s behind")],
    ReadOnly: [("write and read", "fail", "do not allow it. AccessDenied")],
    Unreachable: [("write and read", "fail", "Connection refused")],
    LosesParts: [("large object", "fail", "another sha256")],
    ChangesLineEnds: [("content", "fail", "came back changed")],
    NoUnicode: [("key names", "fail", "InvalidKey"), ("listing", "fail", "InvalidKey")],
    StaleReads: [("read after write", "fail", "what was there before")],
    ForgetsTheNewest: [
        ("key names", "fail", "did not come back"),
        ("list after write", "fail", "lacked 1"),
        ("listing", "fail", "had 1,057"),
    ],
}


def test_a_sound_store_is_sound_in_every_way_and_left_as_it_was(store):
    store.put("doctor/of-somebody-else", b"")

    started = time.monotonic()
    findings = diagnose(store, large_bytes=33 << 20)
    assert time.monotonic() - started < 10
    assert [(one.check, one.verdict) for one in findings] == [(one.name, "ok") for one in CHECKS]
    assert [info.key for info in store.list("")] == ["doctor/of-somebody-else"]


@pytest.mark.parametrize("wrapper", BROKEN, ids=lambda wrapper: wrapper.__name__)
def test_a_broken_promise_is_found_and_no_other(memory_store, wrapper):
    findings = diagnose(wrapper(memory_store), large_bytes=SMALL)

    wrong = [one for one in findings if one.verdict != "ok"]
    assert [(one.check, one.verdict) for one in wrong] == [
        (check, verdict) for check, verdict, _detail in BROKEN[wrapper]
    ]
    for one, (_check, _verdict, detail) in zip(wrong, BROKEN[wrapper], strict=True):
        assert detail in one.detail
        assert one.meaning == next(c.if_not for c in CHECKS if c.name == one.check)
    if wrapper is not NoDelete:
        assert list(memory_store.list("")) == []


def test_what_may_not_be_deleted_is_named_in_the_log(memory_store, caplog):
    diagnose(NoDelete(memory_store), large_bytes=SMALL)

    [prefix] = {info.key.rpartition("doctor/")[2][:23] for info in memory_store.list("doctor/")}
    assert f"Objects under doctor/{prefix}/ could not be deleted" in caplog.text


@pytest.mark.parametrize("number", [1, 4, 40, 100, 300, 1100])
def test_an_interrupted_diagnosis_leaves_nothing(memory_store, number):
    class Interrupted(FaultyStore):
        def put(self, key, data):
            super().put(key, data)
            if self.calls >= number:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diagnose(Interrupted(memory_store), large_bytes=SMALL)
    assert list(memory_store.list("")) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_passing_fault_is_a_finding_and_leaves_nothing(memory_store, when):
    methods = {"get", "get_range", "head", "put", "put_stream", "list", "delete"}
    for number in (1, 2, 6, 30, 80, 110, 500, 1160):
        store = FaultyStore(memory_store, fail_at=number, when=when, only=methods)
        findings = diagnose(store, large_bytes=SMALL)

        assert store.calls > number
        wrong = [one for one in findings if one.verdict != "ok"]
        assert [one.verdict for one in wrong] == ["fail"]
        assert "injected fault" in wrong[0].detail
        assert list(memory_store.list("")) == []


@pytest.mark.parametrize("verdict", ["ok", "warn", "fail"])
def test_the_command_prints_a_line_per_check_and_fails_with_the_store(
    tmp_path, capsys, monkeypatch, verdict
):
    finding = Finding("clock", verdict, "The clock is 3 s behind.", "Set the clock.")
    monkeypatch.setattr(command.hfflows, "diagnose", lambda store, **_: [finding])
    options = SimpleNamespace(store=str(tmp_path), large_mb=40)

    assert command._doctor(options) == (1 if verdict == "fail" else 0)
    output = capsys.readouterr().out
    assert f"{verdict:<4}  clock" in output
    assert "The clock is 3 s behind." in output
    assert ("Set the clock." in output) == (verdict != "ok")


def test_the_command_runs_against_a_real_directory(tmp_path, capsys):
    options = SimpleNamespace(store=os.fspath(tmp_path), large_mb=1)

    assert command._doctor(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("ok")]) == len(CHECKS)
