"""What an artifact was made from and what was made from it, whatever became of either."""

import dataclasses

import pytest

from hfflows import keys
from hfflows.artifacts import (
    copy_artifact,
    delete_artifact,
    lineage,
    promote_artifact,
    save_artifact,
    set_alias,
)
from hfflows.errors import ArtifactNotFoundError
from tests.artifacts.weights import Counting


@pytest.fixture
def make(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights").write_bytes(b"weights")

    def save(store, name, *parents, kind="model"):
        return save_artifact(tmp_path / "m", kind=kind, name=name, parents=parents, store=store)

    return save


@pytest.fixture
def family(make, origin):
    """Return a snapshot, two checkpoints of it, a model of both and its export."""
    snapshot = make(origin, "base", kind="origin")
    first = make(origin, "first", snapshot, kind="training")
    second = make(origin, "second", snapshot, kind="training")
    model = make(origin, "model", first, second)
    export = make(origin, "onnx", model, kind="export")
    return snapshot, first, second, model, export


def seen(relatives):
    return {relative.key: (relative.distance, relative.state) for relative in relatives}


def test_lineage_goes_both_ways(family, origin):
    snapshot, first, second, model, export = family

    found = lineage(model, store=origin)

    assert found.ref == model
    assert seen(found.ancestors) == {
        first.key: (1, "there"),
        second.key: (1, "there"),
        snapshot.key: (2, "there"),
    }
    assert seen(found.descendants) == {export.key: (1, "there")}
    assert set(found.ancestors[-1].via) == {first.key, second.key}
    assert found.ancestors[0].ref == first

    above = lineage(snapshot.key, store=origin)
    assert above.ancestors == ()
    assert [relative.distance for relative in above.descendants] == [1, 1, 2, 3]
    assert set(above.descendants[2].via) == {first.key, second.key}


def test_what_was_deleted_is_shown_as_gone_and_hides_nobody_else(family, origin):
    snapshot, first, second, model, export = family
    delete_artifact(first, store=origin)
    delete_artifact(model, store=origin)

    assert seen(lineage(export, store=origin).ancestors) == {model.key: (1, "gone")}
    assert seen(lineage(second, store=origin).ancestors) == {snapshot.key: (1, "there")}
    gone = lineage(model, store=origin)
    assert seen(gone.ancestors) == {
        first.key: (1, "gone"),
        second.key: (1, "there"),
        snapshot.key: (2, "there"),
    }
    assert seen(gone.descendants) == {export.key: (1, "there")}
    [relative] = lineage(export, store=origin).ancestors
    assert (relative.kind, relative.digest, relative.ref) == ("model", model.digest, None)
    with pytest.raises(ArtifactNotFoundError):
        lineage(model.key, store=origin)


def test_a_parent_in_another_store_is_elsewhere_unless_it_was_copied_too(family, origin, target):
    _snapshot, first, second, model, _export = family
    copied = copy_artifact(model, to=target, store=origin)
    copy_artifact(second, to=target, store=origin)

    found = {relative.key: relative for relative in lineage(copied, store=target).ancestors}

    assert (found[first.key].state, found[first.key].store_url) == ("elsewhere", origin.url)
    assert (found[second.key].state, found[second.key].store_url) == ("there", target.url)


def test_a_damaged_reference_is_named_and_stops_nothing(family, origin):
    snapshot, first, second, model, export = family
    origin.put(first.key, origin.get(first.key)[:50])

    found = lineage(model, store=origin)

    assert seen(found.ancestors) == {
        first.key: (1, "unreadable"),
        second.key: (1, "there"),
        snapshot.key: (2, "there"),
    }
    assert found.unreadable == (first.key,)
    assert seen(found.descendants) == {export.key: (1, "there")}


def test_artifacts_that_name_each_other_are_each_shown_once(make, memory_store):
    first = make(memory_store, "first")
    second = make(memory_store, "second", first)
    circle = first.model_copy(update={"parents": (second.as_parent(), second.as_parent())})

    found = lineage(circle, store=memory_store)

    assert seen(found.ancestors) == {second.key: (1, "there")}
    assert found.ancestors[0].via == (first.key,)
    assert seen(found.descendants) == {second.key: (1, "there")}


def test_the_cost_is_a_listing_and_a_read_each(family, origin):
    store = Counting(origin)

    lineage(family[3], store=store)
    assert len(store.of("list")) == 1
    assert len(store.of("get")) == 3 + 5  # ancestors, and all there are

    store.calls.clear()
    lineage(family[3], kinds=["export"], store=store)
    assert len(store.of("get")) == 3 + 1

    store.calls.clear()
    lineage(family[3], descendants=False, store=store)
    assert (len(store.of("list")), len(store.of("get"))) == (0, 3)

    store.calls.clear()
    lineage(family[3], ancestors=False, store=store)
    assert len(store.of("get")) == 5


def test_it_cannot_be_changed(family, origin):
    found = lineage(family[3], store=origin)

    with pytest.raises(dataclasses.FrozenInstanceError):
        found.ancestors = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.ancestors[0].state = "gone"


def test_a_promotion_and_its_alias_lead_back_to_the_checkpoint(make, memory_store):
    checkpoint = make(memory_store, "c", kind="training")
    model = promote_artifact(checkpoint, kind="model", name="m", store=memory_store)
    entry = set_alias("production", model, store=memory_store)

    found = lineage(entry.ref, store=memory_store)

    assert seen(found.ancestors) == {checkpoint.key: (1, "there")}
    delete_artifact(checkpoint, store=memory_store)
    memory_store.delete([keys.tree(checkpoint.key)])
    assert seen(lineage(entry.ref, store=memory_store).ancestors) == {checkpoint.key: (1, "gone")}
