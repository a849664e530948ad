"""Models: saved, loaded by whatever names them, and made of checkpoints without a copy."""

import os

import pytest

from hfflows.artifacts import (
    collect_garbage,
    copy_artifact,
    delete_artifact,
    export_bundle,
    import_bundle,
    list_artifacts,
    read_tree,
    resolve_alias,
    set_alias,
    verify_artifact,
)
from hfflows.checkpoint import Checkpointer, load_model, promote_model, save_model
from hfflows.errors import (
    ArtifactNotFoundError,
    CollectionBusyError,
    SaveRevokedError,
    SettingsError,
    StorageUnavailableError,
)
from hfflows.identity import RunIdentity
from hfflows.refs import Producer
from hfflows.storage import open_store
from hfflows.testing import FaultyStore
from tests.artifacts.interleaving import NOW, outcomes_of_all_meetings
from tests.artifacts.support import empty_stores

ME = RunIdentity("team", "retrain", "train", run="run-1", attempt="001")
LAYOUTS = ["packed", "files", "tar"]


@pytest.fixture(autouse=True)
def _emptied_stores():
    yield
    empty_stores()


@pytest.fixture
def other_store():
    store = open_store(f"memory://{os.urandom(8).hex()}")
    yield store
    store.delete([info.key for info in store.list("")])


@pytest.fixture
def model_files(tmp_path):
    root = tmp_path / "model"
    (root / "empty").mkdir(parents=True)
    (root / "config.json").write_text("{}")
    (root / "nothing").write_bytes(b"")
    (root / "weights.bin").write_bytes(os.urandom((1 << 20) + 7))
    return root


def content_of(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def checkpoint(files, store, layout="packed", **options):
    with Checkpointer(ME, store=store) as checkpointer:
        return checkpointer.save(files, storage_format=layout, **options)


def contents(store):
    """Return the keys under which bytes of files lie."""
    return {
        info.key for info in store.list("") if info.key.startswith(("objects/", "files/", "tars/"))
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_loads_by_reference_dict_or_key(store, model_files, tmp_path, layout):
    ref = save_model(
        model_files, label="team/news", metadata={"f1": 0.9}, storage_format=layout, store=store
    )

    assert (ref.kind, ref.name, ref.storage_format) == ("model", "team/news", layout)
    assert ref.metadata == {"f1": 0.9}
    for number, name in enumerate([ref, ref.model_dump(mode="json"), ref.key]):
        path = load_model(name, tmp_path / f"out-{number}", store=store)
        assert content_of(path) == content_of(model_files)
        assert (path / "empty").is_dir()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_promotion_moves_no_byte(store, model_files, tmp_path, layout):
    saved = checkpoint(model_files, store, layout, name="best", metadata={"loss": 1, "epoch": 3})
    before = contents(store)

    model = promote_model(saved, label="news", metadata={"loss": 0.5}, store=store)

    assert contents(store) == before
    assert (model.kind, model.name, model.digest) == ("model", "news", saved.digest)
    assert model.storage_format == layout
    assert model.metadata == {"loss": 0.5, "epoch": 3}
    assert model.parents == (saved.as_parent(),)
    assert list_artifacts("model", store=store) == [model]
    assert content_of(load_model(model.key, tmp_path / "out", store=store)) == content_of(
        model_files
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("first", ["checkpoint", "model"])
def test_either_outlives_the_other(memory_store, model_files, tmp_path, layout, first):
    saved = checkpoint(model_files, memory_store, layout)
    model = promote_model(saved, label="news", store=memory_store)
    doomed, stays = (saved, model) if first == "checkpoint" else (model, saved)

    delete_artifact(doomed, store=memory_store)
    for _ in range(2):
        collect_garbage(min_age=NOW, grace=NOW, abandoned_after=NOW, store=memory_store)

    assert content_of(load_model(stays, tmp_path / "out", store=memory_store)) == content_of(
        model_files
    )
    verify_artifact(stays, store=memory_store)
    delete_artifact(stays, store=memory_store)
    for _ in range(2):
        collect_garbage(min_age=NOW, grace=NOW, abandoned_after=NOW, store=memory_store)
    assert contents(memory_store) == set()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_promoted_model_travels(memory_store, other_store, model_files, tmp_path, layout):
    model = promote_model(
        checkpoint(model_files, memory_store, layout), label="news", store=memory_store
    )
    third = open_store(tmp_path / "third")

    copied = copy_artifact(model, to=other_store, store=memory_store)
    export_bundle([model], tmp_path / "model.tar", store=memory_store)
    [unpacked] = import_bundle(tmp_path / "model.tar", store=third)

    for number, (ref, there) in enumerate([(copied, other_store), (unpacked, third)]):
        verify_artifact(ref, store=there)
        path = load_model(ref, tmp_path / f"{number}", store=there)
        assert content_of(path) == content_of(model_files)


def test_who_promoted_it_and_what_else_it_was_made_from_is_recorded(memory_store, model_files):
    saved = checkpoint(model_files, memory_store)
    other = save_model(model_files, label="teacher", store=memory_store)

    model = promote_model(
        saved.model_dump(mode="json"),
        label="news",
        parents=[other.key],
        producer=Producer.of(ME),
        store=memory_store,
    )

    assert model.parents == (saved.as_parent(), other.as_parent())
    assert model.producer.task == "train"


def test_a_model_becomes_an_alias_and_the_next_one_takes_it_over(memory_store, model_files):
    models = [
        promote_model(checkpoint(model_files, memory_store), label="news", store=memory_store)
        for _ in range(2)
    ]
    before = contents(memory_store)

    for model in models:
        set_alias("production", model, store=memory_store)
        assert resolve_alias("production", store=memory_store) == model

    assert contents(memory_store) == before


def test_what_is_not_there_is_not_promoted(memory_store, model_files):
    saved = checkpoint(model_files, memory_store)
    delete_artifact(saved, store=memory_store)

    for name in (saved, saved.key, saved.model_dump(mode="json")):
        with pytest.raises(ArtifactNotFoundError, match="deleted"):
            promote_model(name, label="news", store=memory_store)
    assert list_artifacts(store=memory_store) == []


@pytest.mark.parametrize("label", ["", "/", "a//b", "x" * 500])
def test_a_label_that_is_no_name_is_refused_before_anything_is_written(
    memory_store, model_files, label
):
    saved = checkpoint(model_files, memory_store)
    before = {info.key for info in memory_store.list("")}

    with pytest.raises(SettingsError, match="name"):
        promote_model(saved, label=label, store=memory_store)
    with pytest.raises(SettingsError, match="name"):
        save_model(model_files, label=label, store=memory_store)
    assert {info.key for info in memory_store.list("")} == before


@pytest.mark.parametrize("is_condemned", [False, True], ids=["sound", "condemned by a plan"])
def test_a_promotion_that_meets_a_collection_at_any_two_calls_is_whole_or_not_there(
    model_files, is_condemned
):
    def operation(store, ref):
        try:
            promote_model(ref, label="news", store=store)
        except (SaveRevokedError, ArtifactNotFoundError, CollectionBusyError) as error:
            assert list_artifacts("model", prefix="news", store=store) == []
            return type(error).__name__
        return "promoted"

    outcomes = outcomes_of_all_meetings(model_files, operation, is_condemned=is_condemned)

    if is_condemned:
        assert outcomes == {"CollectionBusyError", "ArtifactNotFoundError"}
    else:
        assert outcomes == {"promoted", "SaveRevokedError", "ArtifactNotFoundError"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_promotion_that_fails_at_any_call_leaves_nothing_or_the_whole(
    memory_store, model_files, when
):
    saved = checkpoint(model_files, memory_store)
    counting = FaultyStore(memory_store)
    promote_model(saved, label="counted", store=counting)

    for number in range(1, counting.calls):
        with pytest.raises(StorageUnavailableError):
            promote_model(
                saved,
                label=f"n{number}",
                store=FaultyStore(memory_store, fail_at=number, when=when),
            )
        for ref in list_artifacts("model", store=memory_store):
            verify_artifact(ref, store=memory_store)
        again = promote_model(saved, label=f"n{number}", store=memory_store)
        assert read_tree(again, store=memory_store).digest == saved.digest
