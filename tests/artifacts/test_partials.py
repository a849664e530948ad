"""Files whose fetch was cut off go on where it stopped, on whatever machine."""

import hashlib
import os
from datetime import timedelta

import pytest

import hfflows.artifacts._partials as partials
import hfflows.artifacts._pipeline as pipeline
from hfflows import keys
from hfflows.artifacts import (
    Sources,
    TransferReport,
    collect_garbage,
    commit_artifact,
    verify_artifact,
)
from hfflows.errors import StorageUnavailableError
from hfflows.testing import FaultyStore
from tests.artifacts.support import Remote

PIECE = 1 << 20
PIECES = 12


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(pipeline, "OBJECT_BYTES", PIECE)
    monkeypatch.setattr(partials, "RESUMED_FROM_BYTES", 4 * PIECE)


def save(store, source, **options):
    return commit_artifact(
        Sources(files=[source]),
        key=keys.artifact("model", "m", id=keys.new_id()),
        kind="model",
        name="m",
        store=store,
        **options,
    )


def cut_off(store, data, after):
    """Save until so many objects are there, then fail; return what the origin was asked for."""
    source = Remote(data)
    with pytest.raises(StorageUnavailableError):
        save(FaultyStore(store, fail_at=after, only={"put"}), source)
    return source.bytes_read


@pytest.mark.parametrize("after", [4, 9, 17])
def test_what_reached_the_store_is_not_fetched_again(store, after):
    data = os.urandom(PIECES * PIECE)
    cut_off(store, data, after)
    noted = len(list(store.list("partials/")))
    source, report = Remote(data), TransferReport()

    ref = save(store, source, report=report)

    assert noted >= 1
    assert source.bytes_read == (PIECES - noted) * PIECE == report.bytes_read
    verify_artifact(ref, store=store)
    assert list(store.list("partials/")) == []


def test_a_note_that_is_wrong_costs_a_fetch_and_nothing_else(memory_store):
    data = os.urandom(PIECES * PIECE)
    cut_off(memory_store, data, 17)
    noted = sorted(info.key for info in memory_store.list("partials/"))
    damaged, missing = (keys.object_key(keys.parse_partial(key)[2]) for key in noted[:2])
    memory_store.put(damaged, os.urandom(PIECE))
    memory_store.delete([missing])
    lying = keys.partial(hashlib.sha256(data).hexdigest(), 11 * PIECE, PIECE, "0" * 64)
    memory_store.put(lying, b"")
    source = Remote(data)

    ref = save(memory_store, source)

    assert source.bytes_read == (PIECES - len(noted) + 2) * PIECE
    verify_artifact(ref, store=memory_store)
    assert list(memory_store.list("partials/")) == []


def test_small_files_leave_no_notes(memory_store):
    save(memory_store, Remote(os.urandom(3 * PIECE)))
    with pytest.raises(StorageUnavailableError):
        save(FaultyStore(memory_store, fail_at=4, only={"put"}), Remote(os.urandom(3 * PIECE)))

    assert list(memory_store.list("partials/")) == []


def test_notes_of_what_was_never_finished_are_collected(memory_store):
    cut_off(memory_store, os.urandom(PIECES * PIECE), 9)
    now = timedelta(0)

    for _ in range(2):
        collect_garbage(min_age=now, grace=now, abandoned_after=now, store=memory_store)

    assert [info.key for info in memory_store.list("") if not info.key.startswith("refs/")] == []
