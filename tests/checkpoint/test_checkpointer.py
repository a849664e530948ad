import logging
import os
from dataclasses import replace

import pytest

from hfflows import keys
from hfflows.artifacts import KeepBest, KeepNewest, list_artifacts, read_tree
from hfflows.artifacts._documents import encode_document, read_document
from hfflows.checkpoint import Checkpointer, load_model, save_model
from hfflows.errors import (
    CheckpointNotFoundError,
    SettingsError,
    StorageUnavailableError,
)
from hfflows.identity import RunIdentity
from hfflows.storage import open_store
from hfflows.testing import FaultyStore
from tests.artifacts.weights import KIB, Counting, Training

ME = RunIdentity("team", "retrain", "train", run="run-1", attempt="001")


def save(checkpointer, text, **options):
    (checkpointer.directory / "state.txt").write_text(text)
    return checkpointer.save(**options)


def text_in(checkpointer):
    return (checkpointer.directory / "state.txt").read_text()


def test_the_first_attempt_begins_with_an_empty_directory(store):
    with Checkpointer(ME, store=store) as checkpointer:
        assert not checkpointer.is_loaded
        assert checkpointer.info is None
        assert checkpointer.latest() is None
        assert list(checkpointer.directory.iterdir()) == []


def test_fresh_resumes_the_same_run_whatever_the_attempt(store):
    with Checkpointer(ME, store=store) as first:
        save(first, "one", metadata={"epoch": 1})
        two = save(first, "two", metadata={"epoch": 2})

    with Checkpointer(replace(ME, attempt="002"), store=store) as second:
        assert second.is_loaded
        assert second.info == two
        assert second.info.metadata == {"epoch": 2}
        assert text_in(second) == "two"


def test_fresh_never_sees_another_run_task_or_item(store):
    with Checkpointer(ME, store=store) as first:
        save(first, "mine")

    for change in ({"run": "run-2"}, {"task": "tune"}, {"item": "lr=1"}, {"namespace": "other"}):
        with Checkpointer(replace(ME, **change), store=store) as other:
            assert not other.is_loaded


def test_eager_takes_the_newest_of_any_run_of_this_identity(store):
    with Checkpointer(ME, store=store) as first:
        save(first, "old run")
    with Checkpointer(replace(ME, run="run-2"), store=store) as second:
        newest = save(second, "newer run")

    with Checkpointer(replace(ME, run="run-3"), load_policy="eager", store=store) as third:
        assert third.info == newest
        assert text_in(third) == "newer run"
    with Checkpointer(replace(ME, task="tune"), load_policy="eager", store=store) as other:
        assert not other.is_loaded


def test_none_loads_nothing_though_there_is_something(store):
    with Checkpointer(ME, store=store) as first:
        save(first, "one")

    with Checkpointer(ME, load_policy="none", store=store) as second:
        assert not second.is_loaded
        assert list(second.directory.iterdir()) == []


def test_a_checkpoint_not_meant_as_latest_is_listed_but_not_resumed(store):
    with Checkpointer(ME, store=store) as first:
        kept = save(first, "resume here")
        side = save(first, "best so far", name="best", latest=False)

    with Checkpointer(ME, store=store) as second:
        assert second.info == kept
        assert second.list() == [side, kept]


def test_the_newest_wins_even_when_the_clock_jumps_back(memory_store, monkeypatch):
    with Checkpointer(ME, store=memory_store) as first:
        save(first, "before the jump")
    monkeypatch.setattr(keys.time, "time_ns", lambda: 1_600_000_000_000_000_000)
    with Checkpointer(replace(ME, attempt="002"), store=memory_store) as second:
        save(second, "after the jump")

    with Checkpointer(replace(ME, attempt="003"), store=memory_store) as third:
        assert text_in(third) == "after the jump"


def break_newest(store, ref):
    key = next(iter(read_tree(ref, store=store).object_keys()))
    store.put(key, b"X" * len(store.get(key)))


def test_a_broken_newest_is_marked_and_the_next_good_one_loaded(store, caplog):
    with Checkpointer(ME, store=store) as first:
        good = save(first, "good")
        bad = save(first, "broken later")
    break_newest(store, bad)

    with caplog.at_level(logging.WARNING), Checkpointer(ME, store=store) as second:
        assert second.info == good
        assert text_in(second) == "good"
        assert second.latest() == good
    assert bad.key in caplog.text
    assert store.head(keys.broken(bad.key)) is not None

    with Checkpointer(ME, store=store) as third:  # the mark spares it the second look
        third.identity  # noqa: B018
        assert bad in third.list()


def test_when_every_checkpoint_is_broken_training_starts_over_and_says_so(store, caplog):
    with Checkpointer(ME, store=store) as first:
        break_newest(store, save(first, "only one"))

    with caplog.at_level(logging.WARNING), Checkpointer(ME, store=store) as second:
        assert not second.is_loaded
        assert list(second.directory.iterdir()) == []
    assert "broken" in caplog.text


def test_a_save_killed_before_its_commit_is_not_there(memory_store):
    with Checkpointer(ME, store=memory_store) as first:
        whole = save(first, "whole")
        killed = save(first, "killed")
    memory_store.delete([killed.key])  # all was written but the reference, which is last

    with Checkpointer(ME, store=memory_store) as second:
        assert second.info == whole
        assert second.list() == [whole]


def test_finding_the_newest_takes_two_requests_at_any_number(local_s3):
    store = open_store(local_s3.url("newest"), **local_s3.options())
    with Checkpointer(ME, store=store) as checkpointer:
        for number in range(12):
            save(checkpointer, str(number))
        before = sum(local_s3.requests().values())
        checkpointer.latest()

    assert sum(local_s3.requests().values()) - before == 2


def test_unchanged_content_is_not_sent_again(memory_store):
    with Checkpointer(ME, store=memory_store) as checkpointer:
        (checkpointer.directory / "frozen.bin").write_bytes(os.urandom(4 << 20))
        for number in range(5):
            save(checkpointer, str(number))

        assert checkpointer.report.bytes_covered > 20 << 20
        assert checkpointer.report.bytes_sent < 5 << 20


def test_a_resumed_attempt_does_not_send_what_it_loaded(memory_store):
    with Checkpointer(ME, store=memory_store) as first:
        (first.directory / "frozen.bin").write_bytes(os.urandom(4 << 20))
        save(first, "1")

    with Checkpointer(ME, store=memory_store) as second:
        save(second, "2")
        assert second.report.bytes_sent < 1 << 20


@pytest.mark.parametrize("name", ["best.model", "v1.2.3", "a/b", "..", "ü", "new\nline", "x" * 60])
def test_any_name_is_listed_and_found_again(store, name):
    with Checkpointer(ME, store=store) as checkpointer:
        other = save(checkpointer, "0")
        named = save(checkpointer, "1", name=name)

        assert checkpointer.list(name=name) == [named]
        assert checkpointer.list() == [named, other]
        assert checkpointer.list(name="never saved") == []


def test_listing_by_attempt_task_and_namespace(store):
    attempts = [replace(ME, attempt="001"), replace(ME, attempt="002")]
    refs = []
    for identity in attempts:
        with Checkpointer(identity, load_policy="none", store=store) as checkpointer:
            refs.append(save(checkpointer, identity.attempt))
    with Checkpointer(replace(ME, run="run-0"), load_policy="none", store=store) as checkpointer:
        elsewhere = save(checkpointer, "other run")
        assert checkpointer.list() == [elsewhere]
        assert checkpointer.list(full_namespace=True) == [elsewhere, *reversed(refs)]

    with Checkpointer(ME, store=store) as checkpointer:
        assert checkpointer.list() == [refs[1], refs[0]]
        assert checkpointer.list(attempt="001") == [refs[0]]
        assert checkpointer.list(task="another") == []
    with Checkpointer(replace(ME, task="evaluate"), store=store) as checkpointer:
        assert checkpointer.list(task="train") == [refs[1], refs[0]]


def test_two_writers_with_one_name_do_not_mix(memory_store, tmp_path):
    one, other = (Checkpointer(ME, load_policy="none", store=memory_store) for _ in range(2))
    refs = save(one, "A"), save(other, "B")

    texts = [
        (one.load(ref, tmp_path / str(n)) / "state.txt").read_text() for n, ref in enumerate(refs)
    ]

    assert texts == ["A", "B"]
    assert refs[0].key != refs[1].key


def test_a_path_of_ones_own_is_saved_as_it_is(memory_store, tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"w")

    with Checkpointer(ME, store=memory_store) as checkpointer:
        ref = checkpointer.save(tmp_path / "weights.bin", name="file")
        path = checkpointer.load(ref, tmp_path / "out")

    assert (path / "weights.bin").read_bytes() == b"w"


def test_a_save_in_the_background_keeps_what_was_there_when_it_was_called(store):
    with Checkpointer(ME, store=store) as checkpointer:
        (checkpointer.directory / "state.txt").write_text("as it was")
        future = checkpointer.save(block=False)
        (checkpointer.directory / "state.txt").write_text("overwritten while saving")
        checkpointer.wait()
        ref = future.result()

    with Checkpointer(ME, store=store) as second:
        assert second.info == ref
        assert text_in(second) == "as it was"


def test_the_error_of_a_background_save_surfaces_at_the_next(local_s3):
    options = local_s3.options() | {"endpoint": "http://127.0.0.1:9"}
    dead = open_store(local_s3.url("dead"), **options)

    with Checkpointer(ME, load_policy="none", store=dead) as checkpointer:
        (checkpointer.directory / "state.txt").write_text("x")
        checkpointer.save(block=False)
        with pytest.raises(StorageUnavailableError):
            checkpointer.save(block=False)


def test_a_failing_task_shows_its_own_error_not_the_uploads(local_s3, caplog):
    options = local_s3.options() | {"endpoint": "http://127.0.0.1:9"}
    dead = open_store(local_s3.url("dead"), **options)

    with (
        pytest.raises(ZeroDivisionError),
        Checkpointer(ME, load_policy="none", store=dead) as checkpointer,
    ):
        (checkpointer.directory / "state.txt").write_text("x")
        checkpointer.save(block=False)
        raise ZeroDivisionError

    assert "background save failed" in caplog.text


def test_leaving_deletes_the_temporary_directory(memory_store, tmp_path):
    with Checkpointer(ME, temp_dir_root=tmp_path / "made", store=memory_store) as checkpointer:
        directory = checkpointer.directory
        assert directory.is_relative_to(tmp_path / "made")
        save(checkpointer, "x", block=False)

    assert list((tmp_path / "made").iterdir()) == []


def test_a_deleted_checkpoint_is_named_as_one(memory_store, tmp_path):
    with Checkpointer(ME, store=memory_store) as checkpointer:
        ref = save(checkpointer, "x")
        memory_store.delete([ref.key, keys.tree(ref.key)])
        with pytest.raises(CheckpointNotFoundError):
            checkpointer.load(ref, tmp_path / "o")


def test_an_unknown_policy_is_refused():
    with pytest.raises(SettingsError, match="fresh, eager, none"):
        Checkpointer(ME, load_policy="latest")


def test_models_are_saved_with_their_parents_and_loaded_by_reference(store, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    with Checkpointer(ME, store=store) as checkpointer:
        parent = save(checkpointer, "x")

    ref = save_model(
        tmp_path / "m", label="news", metadata={"f1": 0.9}, parents=[parent], store=store
    )

    assert ref.parents == (parent.as_parent(),)
    assert list_artifacts("model", store=store) == [ref]
    assert (load_model(ref, tmp_path / "o", store=store) / "config.json").read_text() == "{}"


def test_a_truncated_checkpoint_reference_is_passed_over(memory_store, caplog):
    with Checkpointer(ME, store=memory_store) as first:
        whole = save(first, "whole")
        torn = save(first, "torn")
    memory_store.put(torn.key, memory_store.get(torn.key)[:40])

    with Checkpointer(ME, store=memory_store) as second:
        assert second.info == whole
        caplog.clear()
        assert second.list() == [whole]
        assert torn.key in caplog.text
        assert [entry.key for entry in second.entries()] == [torn.key, whole.key]


def test_a_tree_with_unsafe_paths_is_passed_over_like_any_broken_checkpoint(memory_store, caplog):
    with Checkpointer(ME, store=memory_store) as first:
        good = save(first, "good")
        bad = save(first, "bad")
    body = read_document(memory_store, keys.tree(bad.key))
    body["files"][0][0] = "../state.txt"
    memory_store.put(keys.tree(bad.key), encode_document(body))

    with Checkpointer(ME, store=memory_store) as second:
        assert second.info == good
        assert text_in(second) == "good"
        assert [one.ref for one in second.passed_over] == [bad]
        assert second.latest() == good
    assert bad.key in caplog.text
    assert memory_store.head(keys.broken(bad.key)) is not None


def test_a_listing_without_metadata_reads_nothing(memory_store):
    with Checkpointer(ME, store=memory_store) as first:
        refs = [save(first, "x", name=name) for name in ("last", "best", "last")]
    with Checkpointer(replace(ME, attempt="002"), store=memory_store) as second:
        refs.append(save(second, "y", name="last"))
    with Checkpointer(replace(ME, run="run-2"), store=memory_store) as other:
        elsewhere = save(other, "z")

    store = Counting(memory_store)
    checkpointer = Checkpointer(ME, store=store)
    found = checkpointer.entries()
    assert [name for name, _ in store.calls] == ["list"]
    assert [(one.key, one.name, one.attempt) for one in found] == [
        (ref.key, ref.name, ref.producer.attempt) for ref in reversed(refs)
    ]
    assert [one.key for one in checkpointer.entries("last", attempt="001")] == [
        refs[2].key,
        refs[0].key,
    ]
    assert checkpointer.entries(full_namespace=True)[0].key == elsewhere.key
    assert checkpointer.entries(task="other") == []


# Retention --------------------------------------------------------------------------------


def test_retention_is_applied_after_each_commit(memory_store, tmp_path):
    policy = KeepNewest(2) | KeepBest(1, metric="loss")
    with Checkpointer(ME, retention=policy, store=memory_store) as checkpointer:
        for step, loss in enumerate([3, 1, 5, 4, 2]):
            (checkpointer.directory / "state").write_text(str(step))
            checkpointer.save(metadata={"step": step, "loss": loss})
        (checkpointer.directory / "state").write_text("best")
        checkpointer.save(name="best")

    with Checkpointer(ME, store=memory_store) as resumed:
        kept = [ref.metadata["step"] for ref in resumed.list(name="checkpoint")]
        assert kept == [4, 3, 1]
        assert len(resumed.list(name="best")) == 1
        assert (resumed.directory / "state").read_text() == "best"


def test_a_store_that_cannot_delete_fails_no_save(memory_store, caplog):
    class CannotDelete(FaultyStore):
        def delete(self, keys):
            if any(key.startswith("refs/") for key in keys):
                raise StorageUnavailableError("no deletes today")
            super().delete(keys)

    store = CannotDelete(memory_store)
    with Checkpointer(ME, retention=KeepNewest(1), store=store) as checkpointer:
        for step in range(3):
            (checkpointer.directory / "state").write_text(str(step))
            checkpointer.save()

    assert "pruning them failed" in caplog.text
    with Checkpointer(ME, store=memory_store) as resumed:
        assert len(resumed.list()) == 3


def test_saves_of_several_names_each_build_on_the_last_of_their_own(memory_store, tmp_path):
    """Partly trained weights and a file that has nothing in common with them, by turns."""
    training = Training(20, {"w": 100 * KIB}, lambda layer, _name: layer % 10 == 9)
    weights, samples = tmp_path / "model.safetensors", tmp_path / "samples.bin"
    with Checkpointer(ME, load_policy="none", store=memory_store) as checkpointer:
        for _ in range(4):
            weights.write_bytes(training.step())
            samples.write_bytes(os.urandom(200))
            checkpointer.save(weights, name="weights")
            checkpointer.save(samples, name="samples")
        sent = checkpointer.report.bytes_sent

    whole, trained = 20 * 100 * KIB, 2 * 100 * KIB
    assert sent < whole + 3 * trained + 50 * KIB


def test_the_first_save_of_a_name_builds_on_the_newest_of_another(memory_store, tmp_path):
    training = Training(20, {"w": 100 * KIB}, lambda layer, _name: layer % 10 == 9)
    weights = tmp_path / "model.safetensors"
    with Checkpointer(ME, load_policy="none", store=memory_store) as checkpointer:
        for name in ("last", "best"):
            weights.write_bytes(training.step())
            checkpointer.save(weights, name=name)
        sent = checkpointer.report.bytes_sent

    assert sent < (20 + 2) * 100 * KIB + 50 * KIB
