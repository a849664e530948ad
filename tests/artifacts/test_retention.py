"""Retention policies against a table and an oracle, and what pruning never deletes."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfflows import keys
from hfflows.artifacts import (
    KeepAll,
    KeepAny,
    KeepAtMostBytes,
    KeepBest,
    KeepEvery,
    KeepNewest,
    KeepYoungerThan,
    list_artifacts,
    prune_artifacts,
    save_artifact,
    set_alias,
    superfluous,
)
from hfflows.checkpoint import Checkpointer
from hfflows.errors import IntegrityError, SettingsError
from hfflows.identity import RunIdentity
from hfflows.refs import ArtifactRef

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
STEP = timedelta(minutes=10)


def lineage(*metadata, size_bytes=100):
    """Return references, newest first, with these metadata; one every ten minutes."""
    return [
        ArtifactRef(
            kind="model",
            key=f"refs/model/m/{number:014x}-00000000.json",
            name="m",
            digest="0" * 64,
            size_bytes=size_bytes,
            file_count=1,
            storage_format="packed",
            created_at=NOW - number * STEP,
            metadata=values,
        )
        for number, values in enumerate(metadata)
    ]


def numbers_kept(policy, refs):
    kept = policy.kept(refs, now=NOW)
    return [number for number, ref in enumerate(refs) if ref.key in kept]


def steps(*values):
    return [{"step": value} for value in values]


def losses(*values):
    return [{"loss": value} for value in values]


@pytest.mark.parametrize(
    ("policy", "metadata", "kept"),
    [
        (KeepNewest(2), steps(5, 4, 3), [0, 1]),
        (KeepNewest(9), steps(5, 4, 3), [0, 1, 2]),
        (KeepBest(1, metric="loss"), losses(0.3, 0.1, 0.2), [1]),
        (KeepBest(2, metric="loss", mode="max"), losses(0.3, 0.1, 0.2), [0, 2]),
        (KeepBest(1, metric="loss"), losses(0.1, 0.1), [0]),
        (KeepBest(2, metric="loss"), [{"loss": float("nan")}, {"loss": "low"}, {}], []),
        (KeepBest(1, metric="loss"), [{"loss": True}, {"loss": 2}], [1]),
        (KeepEvery(100), steps(301, 250, 201, 200, 107, 99, 0), [0, 3, 4, 6]),
        (KeepEvery(10, key="epoch"), [{"epoch": 20}, {"epoch": 19}, {"step": 10}], [0, 1]),
        (KeepYoungerThan(timedelta(minutes=20)), steps(3, 2, 1), [0, 1]),
        (KeepAtMostBytes(250), steps(3, 2, 1), [0, 1]),
        (KeepAtMostBytes(0), steps(3, 2, 1), []),
        (KeepNewest(1) | KeepEvery(100), steps(250, 200, 100), [0, 1, 2]),
        (KeepNewest(1) | KeepBest(1, metric="loss"), losses(3, 1, 2), [0, 1]),
        (KeepNewest(2) & KeepEvery(100), steps(250, 200, 100), [1]),
        ((KeepNewest(2) | KeepEvery(100)) & KeepAtMostBytes(100), steps(250, 200, 100), [0]),
    ],
)
def test_policies(policy, metadata, kept):
    assert numbers_kept(policy, lineage(*metadata)) == kept


def test_operators_make_the_named_values():
    one, other = KeepNewest(1), KeepEvery(5)

    assert one | other == KeepAny((one, other))
    assert one & other == KeepAll((one, other))
    assert hash(one | other)


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeepNewest(0),
        lambda: KeepBest(0, metric="loss"),
        lambda: KeepBest(1, metric="loss", mode="lowest"),
        lambda: KeepEvery(0),
        lambda: KeepYoungerThan(timedelta(0)),
        lambda: KeepAtMostBytes(-1),
        lambda: KeepAll(()),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_when_it_is_made(make):
    with pytest.raises(SettingsError):
        make()


policies = st.recursive(
    st.one_of(
        st.builds(KeepNewest, st.integers(1, 5)),
        st.builds(KeepBest, st.integers(1, 3), metric=st.just("loss")),
        st.builds(KeepEvery, st.integers(1, 4)),
        st.builds(KeepAtMostBytes, st.integers(0, 600)),
    ),
    lambda inner: st.builds(
        lambda a, b, both: a & b if both else a | b, inner, inner, st.booleans()
    ),
    max_leaves=4,
)


@given(
    policy=policies,
    metadata=st.lists(
        st.fixed_dictionaries({}, optional={"step": st.integers(0, 9), "loss": st.floats(0, 1)}),
        max_size=8,
    ),
    protected=st.sets(st.integers(0, 7)),
)
def test_the_newest_and_the_protected_stay_and_composition_is_set_algebra(
    policy, metadata, protected
):
    refs = lineage(*metadata)
    names = {refs[number].key for number in protected if number < len(refs)}

    gone = {ref.key for ref in superfluous(refs, policy, protected=names, now=NOW)}

    assert gone.isdisjoint(names)
    assert not refs or refs[0].key not in gone
    assert gone == {ref.key for ref in refs[1:]} - policy.kept(refs, now=NOW) - names
    for other in (KeepNewest(2), KeepEvery(3)):
        either, both = policy.kept(refs, now=NOW), other.kept(refs, now=NOW)
        assert (policy | other).kept(refs, now=NOW) == either | both
        assert (policy & other).kept(refs, now=NOW) == either & both


# Pruning a store ----------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    (tmp_path / "weights").write_bytes(b"w")
    return tmp_path / "weights"


def test_pruning_looks_at_each_name_by_itself(memory_store, source):
    for name in ("a", "a", "b", "b", "b"):
        save_artifact(source, name=name, store=memory_store)

    would = prune_artifacts(KeepNewest(1), kind="model", dry_run=True, store=memory_store)
    assert len(list_artifacts(store=memory_store)) == 5
    report = prune_artifacts(KeepNewest(1), kind="model", store=memory_store)

    assert report == would
    assert [ref.name for ref in report.deleted] == ["a", "b", "b"]
    assert sorted(ref.name for ref in list_artifacts(store=memory_store)) == ["a", "b"]
    assert list(report.kept) == list_artifacts(store=memory_store)


def test_pruning_keeps_what_an_alias_points_to(memory_store, source):
    old, middle, new = (save_artifact(source, name="m", store=memory_store) for _ in range(3))
    set_alias("production", old, store=memory_store)

    report = prune_artifacts(KeepNewest(1), kind="model", store=memory_store)

    assert list(report.deleted) == [middle]
    assert list_artifacts(store=memory_store) == [new, old]


def test_checkpoints_of_different_names_runs_and_tasks(memory_store, source):
    """Names and identities are lineages of their own; runs of one identity are not."""
    for task in ("train", "finetune"):
        for run in ("run-1", "run-2"):
            me = RunIdentity("team", "flow", task, run=run)
            with Checkpointer(me, load_policy="none", store=memory_store) as checkpointer:
                for step in range(3):
                    checkpointer.save(source, metadata={"step": step})
                checkpointer.save(source, name="best.ckpt")

    report = prune_artifacts(KeepNewest(2), kind="checkpoint", store=memory_store)

    left = [
        (ref.producer.task, ref.name, ref.producer.run)
        for ref in list_artifacts("checkpoint", store=memory_store)
    ]
    assert len(report.deleted) == 8
    for task in ("train", "finetune"):
        assert left.count((task, "checkpoint", "run-2")) == 2
        assert left.count((task, "best.ckpt", "run-1")) == 1
        assert left.count((task, "best.ckpt", "run-2")) == 1
    me = RunIdentity("team", "flow", "train", run="run-1")
    with Checkpointer(me, load_policy="eager", store=memory_store) as checkpointer:
        assert checkpointer.is_loaded


def test_snapshots_of_other_commits_and_selections():
    prefixes = [
        keys.snapshot_prefix("global/", "model", "org/name", commit * 40) for commit in "ab"
    ]
    whole = [keys.snapshot(prefix, "all", id=keys.new_id()) for prefix in prefixes]
    part = keys.snapshot(prefixes[0], "0123456789abcdef", id=keys.new_id())

    assert keys.lineage_of(whole[0]) == keys.lineage_of(whole[1])
    assert keys.lineage_of(part) != keys.lineage_of(whole[0])


def test_a_damaged_reference_stops_pruning_before_anything_is_deleted(memory_store, source):
    refs = [save_artifact(source, name="m", store=memory_store) for _ in range(3)]
    memory_store.put(refs[0].key, b"{}")

    with pytest.raises(IntegrityError):
        prune_artifacts(KeepNewest(1), kind="model", store=memory_store)
    assert len(list(memory_store.list("refs/"))) == 3
