import contextlib
import os
from datetime import timedelta

import pytest

import hfflows
from hfflows import keys
from hfflows.artifacts import (
    TransferReport,
    apply_collection,
    commit_artifact,
    commit_selection,
    plan_collection,
    read_tree,
    save_artifact,
    scan,
)
from hfflows.errors import CollectionBusyError
from hfflows.hub import repair_snapshot, snapshot_download
from hfflows.testing import Fault, FaultyStore

REPO = "org/model"
MIB = 1 << 20
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}" * 500,
    "model.safetensors": os.urandom(20 * MIB),
    "onnx/model.onnx": os.urandom(2 * MIB),
}


@pytest.fixture
def commit(hub):
    return hub.publish(REPO, FILES)


@pytest.fixture
def ref(hub, commit, options):
    ref = snapshot_download(REPO, allow_patterns=[*FILES], **options)
    hub.reset_counts()
    return ref


@pytest.fixture
def repair(hub, options):
    def run(ref, **given):
        return repair_snapshot(ref, **(options | given))

    return run


def segments(ref, path, store):
    return next(f for f in read_tree(ref, store=store).files if f.path == path).segments


def flip(store, key, at=0):
    data = bytearray(store.get(key))
    data[at] ^= 1
    store.put(key, data)


def file_bytes(hub):
    """Bytes of files that left the Hub, documents not counted."""
    return sum(
        record.bytes_sent
        for record in hub.requests
        if record.origin == "cdn" or "/resolve/" in record.path
    )


def everything(store):
    return {info.key: bytes(store.get(info.key)) for info in store.list("")}


def test_a_sound_snapshot_costs_no_hub_request(hub, ref, repair, memory_store):
    report = repair(ref)

    assert (report.files, report.objects, report.bytes_fetched) == ((), (), 0)
    assert hub.requests == []


@pytest.mark.parametrize("damage", ["flipped", "missing", "cut short"])
def test_one_bad_range_of_a_large_file_is_fetched_alone(hub, ref, repair, memory_store, damage):
    before = everything(memory_store)
    bad = segments(ref, "model.safetensors", memory_store)[1]
    if damage == "flipped":
        flip(memory_store, bad.key, 12345)
    elif damage == "missing":
        memory_store.delete([bad.key])
    else:
        memory_store.put(bad.key, bytes(memory_store.get(bad.key))[:-1])
    transfer = TransferReport()

    report = repair(ref.key, report=transfer)
    assert report.files == ("model.safetensors",)
    assert report.objects == (bad.key,)
    assert report.bytes_fetched == bad.length == 4 * MIB
    assert bad.length <= file_bytes(hub) <= bad.length + 10_000
    assert transfer.bytes_read == transfer.bytes_sent == bad.length
    assert everything(memory_store) == before
    hfflows.verify_artifact(ref, store=memory_store)


def test_one_flipped_byte_among_small_files_fetches_that_file_alone(hub, ref, repair, memory_store):
    before = everything(memory_store)
    (bad,) = segments(ref, "tokenizer.json", memory_store)
    flip(memory_store, bad.key, bad.offset)

    report = repair(ref)
    assert (report.files, report.bytes_fetched) == (("tokenizer.json",), bad.length)
    assert file_bytes(hub) < 2 * bad.length
    assert everything(memory_store) == before


def test_a_missing_pack_of_small_files_is_filled_again(hub, ref, repair, memory_store):
    before = everything(memory_store)
    (bad,) = segments(ref, "config.json", memory_store)
    memory_store.delete([bad.key])

    report = repair(ref)
    assert report.files == ("config.json", "tokenizer.json")
    assert report.bytes_fetched == len(before[bad.key])
    assert everything(memory_store) == before
    assert hub.count("safetensors") == 0


def test_many_bad_objects_are_repaired_in_one_go(hub, ref, repair, memory_store):
    before = everything(memory_store)
    memory_store.delete([info.key for info in memory_store.list("objects/")])

    assert repair(ref).bytes_fetched == ref.size_bytes
    assert everything(memory_store) == before


@pytest.fixture
def part(ref, memory_store):
    """Return a selection: the object that holds its file holds another one too."""
    return commit_selection(
        ref,
        ["config.json"],
        None,
        key=keys.artifact("snapshot", "part", id=keys.new_id()),
        metadata=ref.metadata,
        store=memory_store,
    )


def test_an_object_shared_with_other_artifacts_is_put_back_when_the_rest_is_sound(
    ref, part, repair, memory_store
):
    before = everything(memory_store)
    (bad,) = segments(part, "config.json", memory_store)
    flip(memory_store, bad.key, bad.offset)

    assert repair(part).objects == (bad.key,)
    assert everything(memory_store) == before
    hfflows.verify_artifact(ref, store=memory_store)


def test_where_others_bytes_are_lost_too_the_files_move_and_the_reference_stays(
    ref, part, repair, memory_store, tmp_path
):
    (bad,) = segments(part, "config.json", memory_store)
    memory_store.delete([bad.key])
    reference = memory_store.get(part.key)

    report = repair(part)
    (moved,) = segments(part, "config.json", memory_store)
    assert report.objects == (moved.key,) != (bad.key,)
    assert memory_store.get(part.key) == reference
    assert memory_store.head(bad.key) is None
    loaded = hfflows.load_artifact(part, tmp_path / "out", store=memory_store)
    assert (loaded / "config.json").read_bytes() == FILES["config.json"]

    assert repair(ref).objects == (bad.key,)  # the other one has its own repair
    hfflows.verify_artifact(part, store=memory_store)
    hfflows.verify_artifact(ref, store=memory_store)


class Collected(FaultyStore):
    """A store in which somebody plans and applies a collection right after the n-th call."""

    def __init__(self, store, number):
        super().__init__(store)
        self._number = number

    def _call(self, method, key, function):
        result = super()._call(method, key, function)
        if self.calls == self._number:
            now = timedelta(0)
            plan = plan_collection(min_age=now, grace=now, store=self._store)
            with contextlib.suppress(CollectionBusyError):
                apply_collection(plan, store=self._store)
        return result


def test_a_collection_in_the_middle_of_a_repair_takes_nothing_from_it(
    ref, part, repair, memory_store
):
    (bad,) = segments(part, "config.json", memory_store)
    sound = everything(memory_store)
    memory_store.delete([bad.key])
    counting = FaultyStore(memory_store)
    repair(part, store=counting)
    for number in range(1, counting.calls + 1):
        for key in set(everything(memory_store)) - set(sound):
            memory_store.delete([key])
        for key, data in sound.items():
            memory_store.put(key, data)
        memory_store.delete([bad.key])

        repair(part, store=Collected(memory_store, number))
        hfflows.verify_artifact(part, store=memory_store)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_repair_that_fails_at_any_call_can_be_repeated(ref, part, repair, memory_store, when):
    (small,) = segments(part, "config.json", memory_store)
    large = segments(ref, "onnx/model.onnx", memory_store)[0]
    sound = everything(memory_store)

    def damage():
        for key in set(everything(memory_store)) - set(sound):
            memory_store.delete([key])
        for key, data in sound.items():
            memory_store.put(key, data)
        memory_store.delete([small.key])
        flip(memory_store, large.key)

    damage()
    counting = FaultyStore(memory_store)
    repair(part, store=counting)
    for number in range(1, counting.calls + 1):
        damage()
        try:
            repair(part, store=FaultyStore(memory_store, fail_at=number, when=when))
        except hfflows.StorageUnavailableError:
            read_tree(part, store=memory_store)  # the old one or the new one, but one
        repair(part)
        hfflows.verify_artifact(part, store=memory_store)
        repair(ref)
        hfflows.verify_artifact(ref, store=memory_store)


# What cannot be repaired -------------------------------------------------------------------


def test_what_did_not_come_from_the_hub_says_so(repair, hub, ref, memory_store, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a").write_text("a")
    model = save_artifact(tmp_path / "m", name="m", metadata=ref.metadata, store=memory_store)
    unpinned = commit_selection(
        ref,
        None,
        None,
        key=keys.artifact("snapshot", "unpinned", id=keys.new_id()),
        metadata={**ref.metadata, "commit_hash": "main"},
        store=memory_store,
    )

    for other in (model, unpinned):
        with pytest.raises(hfflows.SettingsError, match="not a snapshot of a Hub commit"):
            repair(other)
    assert hub.requests == []


def test_a_readable_object_is_not_patched(repair, ref, memory_store, tmp_path):
    (tmp_path / "config.json").write_bytes(FILES["config.json"])
    readable = commit_artifact(
        scan(tmp_path / "config.json"),
        key=keys.artifact("snapshot", "readable", id=keys.new_id()),
        kind="snapshot",
        name="readable",
        metadata=ref.metadata,
        storage_format="files",
        store=memory_store,
    )
    key = keys.file_key(readable.key, "config.json")
    flip(memory_store, key)
    damaged = bytes(memory_store.get(key))

    with pytest.raises(hfflows.SettingsError, match="not of layout `packed`"):
        repair(readable)
    assert bytes(memory_store.get(key)) == damaged


def test_a_damaged_tree_says_so(repair, hub, ref, memory_store):
    flip(memory_store, keys.tree(ref.key), 200)

    with pytest.raises(hfflows.IntegrityError, match=keys.tree(ref.key)):
        repair(ref)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("file", "other"),
    [
        ("model.safetensors", os.urandom(20 * MIB)),  # its announced sha256 differs
        ("config.json", b"another!"),  # so does the size
        ("config.json", b'{"model_type": "gpt2"}'),  # only the bytes do
        ("config.json", None),
    ],
    ids=["sha256", "size", "bytes", "gone"],
)
def test_a_hub_that_has_something_else_now_changes_nothing(
    hub, ref, memory_store, commit, file, other
):
    """The same commit of another Hub: what a rewritten repo looks like."""
    bad = segments(ref, file, memory_store)[-1]
    flip(memory_store, bad.key, bad.offset)
    before = everything(memory_store)
    changed = {**FILES, file: other} if other is not None else {**FILES}
    if other is None:
        del changed[file]
    commit_now = hub.publish("org/rewritten", changed)
    body = {**ref.metadata, "repo_id": "org/rewritten", "commit_hash": commit_now}
    rewritten = ref.model_copy(update={"metadata": body})

    with pytest.raises(
        hfflows.IntegrityError, match=rf"{file}: its origin no longer|no longer has the {file}"
    ):
        repair_snapshot(rewritten, endpoint=hub.endpoint, token=hub.token, store=memory_store)
    assert everything(memory_store) == before


def test_a_flip_on_the_way_is_survived_once_and_never_stored(hub, ref, repair, memory_store):
    bad = segments(ref, "model.safetensors", memory_store)[0]
    flip(memory_store, bad.key)
    before = everything(memory_store)
    hub.inject(Fault(match="safetensors", origin="cdn", flip_at=5, times=2))

    with pytest.raises(hfflows.IntegrityError, match=r"model\.safetensors"):
        repair(ref)
    assert everything(memory_store) == before
    hub.inject(Fault(match="safetensors", origin="cdn", flip_at=5))
    assert repair(ref).bytes_fetched == 2 * bad.length
    hfflows.verify_artifact(ref, store=memory_store)


def test_access_errors_come_through(hub, ref, repair, memory_store):
    flip(memory_store, segments(ref, "config.json", memory_store)[0].key)
    hub.gate(REPO)

    with pytest.raises(hfflows.GatedRepoError):
        repair(ref, token=hub.add_token("stranger"))
    hub.down()
    with pytest.raises(hfflows.HubUnavailableError):
        repair(ref)
