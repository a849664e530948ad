"""A checkpoint costs what changed since the one it builds on, and loads like any other."""

import os
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hfflows.artifacts._cuts as cuts
import hfflows.artifacts._packed as packed
import hfflows.artifacts._partials as partials
import hfflows.artifacts._pipeline as pipeline
from hfflows import keys
from hfflows.artifacts import (
    KeepNewest,
    Sources,
    TransferReport,
    collect_garbage,
    commit_artifact,
    copy_artifact,
    delete_artifact,
    export_bundle,
    import_bundle,
    list_artifacts,
    load_artifact,
    open_safetensors,
    prune_artifacts,
    read_tree,
    repair_artifact,
    save_artifact,
    scan,
    verify_artifact,
)
from hfflows.errors import (
    ArtifactNotFoundError,
    SaveRevokedError,
    StorageUnavailableError,
)
from hfflows.testing import FaultyStore
from tests.artifacts.interleaving import NOW, outcomes_of_all_meetings
from tests.artifacts.support import Remote, content_of, new_store
from tests.artifacts.weights import KIB, MIB, Counting, Training, safetensors, torch_zip

LAYER = {"down": 300 * KIB, "k": 70 * KIB, "norm": KIB, "o": 140 * KIB, "q": 140 * KIB} | {
    "up": 300 * KIB,
    "v": 70 * KIB,
}


@pytest.fixture
def small_objects(monkeypatch):
    """A MiB, so that a small model takes many."""
    monkeypatch.setattr(pipeline, "OBJECT_BYTES", MIB)


def stored_bytes(store):
    return sum(info.size_bytes for info in store.list(""))


def save(root, store, **options):
    return save_artifact(root, name="m", storage_format="packed", store=store, **options)


def train(training, root, store, steps):
    """Save after each step, each save built on the one before; return the references."""
    refs = []
    for _ in range(steps):
        root.mkdir(exist_ok=True)
        (root / "model.safetensors").write_bytes(training.step())
        refs.append(save(root, store, base=refs[-1] if refs else None))
    return refs


# What a checkpoint costs ------------------------------------------------------------------


def every_tenth(layer, _name):
    return layer % 10 == 9


def last_layers(layer, _name):
    return layer >= 18


def adapters(_layer, name):
    return "lora" in name


@pytest.mark.usefixtures("small_objects")
@pytest.mark.parametrize("trained", [every_tenth, last_layers])
def test_ten_checkpoints_with_nine_tenths_frozen_take_two(memory_store, tmp_path, trained):
    training = Training(20, LAYER, trained)
    assert 0.09 < training.share < 0.11

    [first] = train(training, tmp_path / "m", memory_store, 1)
    once = stored_bytes(memory_store)
    base = first
    for _ in range(9):
        (tmp_path / "m" / "model.safetensors").write_bytes(training.step())
        base = save(tmp_path / "m", memory_store, base=base)

    assert stored_bytes(memory_store) <= 2.2 * once
    verify_artifact(base, store=memory_store)


@pytest.mark.usefixtures("small_objects")
def test_adapters_beside_a_frozen_model_cost_what_they_are(memory_store, tmp_path):
    shapes = dict(sorted((LAYER | {"q_lora_a": 8 * KIB, "q_lora_b": 8 * KIB}).items()))
    training = Training(10, shapes, adapters)
    assert 0.01 < training.share < 0.02

    train(training, tmp_path / "m", memory_store, 10)

    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert stored_bytes(memory_store) <= 1.2 * size


def test_a_checkpoint_in_which_all_changed_costs_all_of_it(memory_store, tmp_path):
    training = Training(5, LAYER, lambda _layer, _name: True)

    train(training, tmp_path / "m", memory_store, 3)

    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert 3 * size < stored_bytes(memory_store) < 3.01 * size


@pytest.mark.parametrize("kind", ["safetensors", "zip", "plain"])
def test_nothing_changed_costs_the_documents(memory_store, tmp_path, kind):
    weights = {f"{n:03}": os.urandom(100 * KIB) for n in range(300)}
    write = {"safetensors": safetensors, "zip": torch_zip, "plain": lambda w: b"".join(w.values())}
    (tmp_path / "model.bin").write_bytes(write[kind](weights))
    base = save(tmp_path / "model.bin", memory_store)
    before, report = stored_bytes(memory_store), TransferReport()

    save(tmp_path / "model.bin", memory_store, base=base, report=report)

    assert report.bytes_sent == 0
    assert stored_bytes(memory_store) - before <= 64 * KIB


@pytest.mark.parametrize("kind", ["safetensors", "zip", "plain"])
def test_a_change_in_the_middle_costs_three_objects_at_most(memory_store, tmp_path, kind):
    weights = {f"{n:03}": os.urandom(100 * KIB + n) for n in range(200)}
    write = {"safetensors": safetensors, "zip": torch_zip, "plain": lambda w: b"".join(w.values())}
    data = bytearray(write[kind](weights))
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    base = save(path, memory_store)
    before, sent = stored_bytes(memory_store), len(list(memory_store.list("objects/")))
    middle = len(data) // 2
    data[middle : middle + 64 * KIB] = os.urandom(64 * KIB)
    path.write_bytes(data)

    ref = save(path, memory_store, base=base)

    assert len(list(memory_store.list("objects/"))) - sent == 1
    most = 16 * MIB if kind == "plain" else 300 * KIB  # two tensors, where there are some
    assert stored_bytes(memory_store) - before <= most + 64 * KIB
    verify_artifact(ref, store=memory_store)


def test_of_small_files_those_are_sent_that_changed(memory_store, tmp_path):
    for number in range(50):
        (tmp_path / f"{number}").write_bytes(os.urandom(10_000))
    base = save(tmp_path, memory_store)
    (tmp_path / "7").write_bytes(b"changed")
    report = TransferReport()

    ref = save(tmp_path, memory_store, base=base, report=report)

    assert report.bytes_sent == len(b"changed")
    assert (report.objects_sent, report.objects_reused) == (1, 1)
    verify_artifact(ref, store=memory_store)


def test_what_occurs_twice_is_sent_once(memory_store, tmp_path):
    tied = os.urandom(3 * MIB)
    (tmp_path / "model.safetensors").write_bytes(safetensors({"embed": tied, "head": tied}))
    (tmp_path / "copy.safetensors").write_bytes(safetensors({"embed": tied, "head": tied}))
    files, report = content_of(tmp_path), TransferReport()

    ref = save(tmp_path, memory_store, report=report)

    assert report.bytes_sent < 3 * MIB + 1000
    load_artifact(ref, tmp_path / "out", store=memory_store)
    assert content_of(tmp_path / "out") == files


def test_a_tensor_that_moved_to_another_file_is_found(memory_store, tmp_path):
    weights = {f"{n}": os.urandom(900 * KIB) for n in range(8)}
    (tmp_path / "model.safetensors").write_bytes(safetensors(weights))
    base = save(tmp_path, memory_store)
    halves = [dict(list(weights.items())[:3]), dict(list(weights.items())[3:])]
    (tmp_path / "model.safetensors").unlink()
    for number, half in enumerate(halves):
        (tmp_path / f"model-{number}.safetensors").write_bytes(safetensors(half))
    report = TransferReport()

    ref = save(tmp_path, memory_store, base=base, report=report)

    assert report.bytes_sent < 5 * KIB
    verify_artifact(ref, store=memory_store)


def test_a_base_that_was_deleted_or_damaged_is_not_built_on(memory_store, tmp_path):
    (tmp_path / "a").write_bytes(os.urandom(100 * KIB))
    deleted, damaged = save(tmp_path, memory_store), save(tmp_path, memory_store)
    memory_store.delete([deleted.key])
    memory_store.put(keys.tree(damaged.key), b"{}")

    for base in (deleted, damaged):
        report = TransferReport()
        verify_artifact(save(tmp_path, memory_store, base=base, report=report), store=memory_store)
        assert report.bytes_sent == 100 * KIB


def test_sending_anew_sends_all(memory_store, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors({"a": os.urandom(2 * MIB), "b": os.urandom(3 * MIB)}))
    base = save(path, memory_store)
    [broken] = read_tree(base, store=memory_store).object_keys()
    memory_store.put(broken, bytes(5 * MIB))
    report = TransferReport()

    ref = commit_artifact(
        scan(path),
        key=keys.artifact("model", "m", id=keys.new_id()),
        kind="model",
        name="m",
        base=base,
        resend=True,
        report=report,
        store=memory_store,
    )

    assert report.bytes_sent == path.stat().st_size
    verify_artifact(ref, store=memory_store)
    verify_artifact(base, store=memory_store)


# Loading what many saves wrote ------------------------------------------------------------


@pytest.fixture
def spread(tmp_path, origin, small_objects):
    """Return an artifact whose bytes lie in the objects of many saves, and its files."""
    training = Training(12, {"a": 100 * KIB, "norm": KIB, "up": 200 * KIB}, every_tenth)
    refs = train(training, tmp_path / "m", origin, 1)
    for number in range(12):
        training._trained = lambda layer, _name, now=number: layer == now
        (tmp_path / "m" / "model.safetensors").write_bytes(training.step())
        (tmp_path / "m" / "state.json").write_text(str(number))
        refs.append(save(tmp_path / "m", origin, base=refs[-1]))
    return refs, content_of(tmp_path / "m")


def test_it_loads_with_few_requests(spread, origin, tmp_path):
    refs, files = spread
    store = Counting(origin)

    load_artifact(refs[-1], tmp_path / "out", store=store)

    assert content_of(tmp_path / "out") == files
    objects = read_tree(refs[-1], store=origin).object_keys()
    reads = store.of("get_range", "stream_range")
    assert len(objects) >= 12
    assert len(reads) <= 2 * len(objects)


def test_all_that_is_done_with_artifacts_is_done_with_it(spread, origin, target, tmp_path):
    refs, files = spread
    elsewhere = new_store()
    bundle = tmp_path / "x.tar"

    verify_artifact(refs[-1], store=origin)
    copied = copy_artifact(refs[-1], to=target, store=origin)
    export_bundle([ref.key for ref in refs], bundle, store=origin)
    import_bundle(bundle, store=elsewhere)

    for number, store in enumerate([target, elsewhere]):
        load_artifact(copied.key, tmp_path / f"{number}", store=store)
        assert content_of(tmp_path / f"{number}") == files
    opened = open_safetensors(refs[-1], store=elsewhere)
    tensor = opened.get_bytes("layers.3.up")
    assert bytes(tensor) in files["model.safetensors"]


def test_a_damaged_part_of_it_is_repaired(spread, origin):
    refs, files = spread
    largest = max(
        (s for file in read_tree(refs[-1], store=origin).files for s in file.segments),
        key=lambda segment: segment.length,
    )
    data = bytearray(origin.get(largest.key))
    data[largest.offset + 5] ^= 1
    origin.put(largest.key, data)

    report = repair_artifact(
        refs[-1],
        lambda _files: lambda path, offset, length: files[path][offset : offset + length],
        report=TransferReport(),
        store=origin,
    )

    assert report.objects == (largest.key,)
    assert report.bytes_fetched == largest.length
    for ref in refs:
        verify_artifact(ref, store=origin)


def test_an_object_stays_while_any_checkpoint_needs_a_part_of_it(spread, origin, tmp_path):
    refs, files = spread
    before = stored_bytes(origin)
    prune_artifacts(KeepNewest(1), kind="model", store=origin)
    for _ in range(2):
        collect_garbage(min_age=NOW, grace=NOW, abandoned_after=NOW, store=origin)

    assert [ref.key for ref in list_artifacts(store=origin)] == [refs[-1].key]
    load_artifact(refs[-1], tmp_path / "out", store=origin)
    assert content_of(tmp_path / "out") == files
    assert stored_bytes(origin) < before


# Any file, any history --------------------------------------------------------------------


@st.composite
def histories(draw):
    """Some versions of a few files that lie about what they are."""
    count = draw(st.integers(1, 3))
    tensors = [
        {f"t{n}": os.urandom(draw(st.integers(0, 300))) for n in range(draw(st.integers(1, 6)))}
        for _ in range(count)
    ]
    versions = []
    for _ in range(draw(st.integers(1, 4))):
        files = {}
        for number, named in enumerate(tensors):
            for name in draw(st.sets(st.sampled_from(sorted(named)))):
                named[name] = os.urandom(len(named[name]))
            write = draw(st.sampled_from([safetensors, torch_zip]))
            data = bytearray(write(named))
            for _ in range(draw(st.integers(0, 2))):
                data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
            files[f"{number}.bin"] = bytes(data[: draw(st.integers(0, 2000))])
        versions.append(files)
    return versions


@given(versions=histories())
@settings(max_examples=40)
def test_every_version_comes_back_whatever_its_header_claims(tmp_path_factory, versions):
    root = tmp_path_factory.mktemp("history")
    store = new_store()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "OBJECT_BYTES", 256)
        patch.setattr(packed, "PACK_BELOW_BYTES", 100)
        patch.setattr(pipeline, "LOOK_BEFORE_BYTES", 120)
        patch.setattr(cuts, "LARGEST_PART_BYTES", 80)
        patch.setattr(cuts, "SMALLEST_GROUP_BYTES", 16)
        refs = []
        for number, files in enumerate(versions):
            place = root / f"in-{number}"
            place.mkdir()
            for path, data in files.items():
                (place / path).write_bytes(data)
            refs.append(save(place, store, base=refs[-1] if refs else None))

    for number, (ref, files) in enumerate(zip(refs, versions, strict=True)):
        assert content_of(load_artifact(ref, root / f"out-{number}", store=store)) == files
    assert all(info.size_bytes <= 256 for info in store.list("objects/"))


# Reading ----------------------------------------------------------------------------------


def commit(sources, store, **options):
    return commit_artifact(
        Sources(files=sources),
        key=keys.artifact("model", "m", id=keys.new_id()),
        kind="model",
        name="m",
        store=store,
        **options,
    )


@pytest.mark.parametrize("number", [1, 3])
def test_a_file_is_read_once_and_in_pieces(memory_store, monkeypatch, number):
    monkeypatch.setattr(pipeline, "OBJECT_BYTES", MIB)
    sources = [
        Remote(safetensors({f"{n}": os.urandom(130 * KIB + n) for n in range(20)}), f"{index}")
        for index in range(number)
    ]
    report = TransferReport()

    ref = commit(sources, memory_store, report=report)

    for source in sources:
        assert source.bytes_read == source.size_bytes
        assert source.reads == 3  # 7, 7 and 6 tensors
    assert report.bytes_read == sum(source.size_bytes for source in sources)
    verify_artifact(ref, store=memory_store)


@pytest.mark.parametrize("after", [1, 2, 5, 8])
def test_a_save_that_was_cut_off_goes_on_at_the_tensors_it_had(memory_store, monkeypatch, after):
    monkeypatch.setattr(pipeline, "OBJECT_BYTES", MIB)
    monkeypatch.setattr(partials, "RESUMED_FROM_BYTES", 4 * MIB)
    data = safetensors({f"{n}": os.urandom(300 * KIB) for n in range(40)})
    with pytest.raises(StorageUnavailableError):
        commit([Remote(data)], FaultyStore(memory_store, fail_at=2 * after, only={"put"}))
    noted = [keys.parse_partial(info.key) for info in memory_store.list("partials/")]
    source, report = Remote(data), TransferReport()

    ref = commit([source], memory_store, report=report)

    # Of a file whose first piece is not there a whole object's worth is read to see its header.
    more = 0 if noted and min(noted)[0] == 0 else MIB
    missing = len(data) - sum(length for _, length, _ in noted)
    assert missing <= source.bytes_read <= missing + more
    assert report.bytes_read == source.bytes_read
    verify_artifact(ref, store=memory_store)
    assert list(memory_store.list("partials/")) == []


def test_content_in_many_segments_is_found_with_few_requests(memory_store):
    source = Remote(safetensors({f"{n:03}": os.urandom(200 * KIB) for n in range(300)}))
    commit([source], memory_store)
    store, report = Counting(memory_store), TransferReport()

    commit([source], store, report=report)

    assert report.bytes_read == 0
    assert report.objects_reused == 4
    assert len(store.of("head", prefix="objects/")) == 4


class Endless:
    """A large file that is made when it is read."""

    path, is_executable, announced = "model.safetensors", False, None

    def __init__(self, pieces):
        self.size_bytes = pieces * pipeline.OBJECT_BYTES

    def read(self, offset, length):
        return os.urandom(length)


class Forgetting(Counting):
    """A store that keeps documents only."""

    def put(self, key, data):
        time.sleep(0.002)
        if not key.startswith("objects/"):
            self._store.put(key, data)


def test_memory_is_bounded_whatever_the_size(memory_store, monkeypatch):
    monkeypatch.setattr(pipeline, "OBJECT_BYTES", MIB)
    tracemalloc.start()
    try:
        commit([Endless(60), Endless(60)], Forgetting(memory_store))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 18 * MIB


# Collections ------------------------------------------------------------------------------


@pytest.mark.parametrize("is_condemned", [False, True], ids=["sound", "condemned by a plan"])
def test_a_base_that_goes_at_any_call_of_the_save_loses_nothing(tmp_path, is_condemned):
    (tmp_path / "model.safetensors").write_bytes(
        safetensors({"a": os.urandom(600 * KIB), "b": os.urandom(600 * KIB)})
    )
    (tmp_path / "small").write_bytes(b"small")

    def operation(store, base):
        try:
            save(tmp_path, store, base=base)
        except SaveRevokedError:
            return "revoked"
        return "saved"

    outcomes = outcomes_of_all_meetings(tmp_path, operation, is_condemned=is_condemned)

    assert "saved" in outcomes
    assert is_condemned or outcomes == {"saved", "revoked"}


def test_a_tree_that_outlived_its_objects_is_no_base(memory_store, tmp_path):
    (tmp_path / "a").write_bytes(os.urandom(100 * KIB))
    base = save(tmp_path, memory_store)
    delete_artifact(base, store=memory_store)
    memory_store.delete(sorted(read_tree(base, store=memory_store).object_keys()))

    verify_artifact(save(tmp_path, memory_store, base=base), store=memory_store)
    with pytest.raises(ArtifactNotFoundError):
        load_artifact(base.key, tmp_path / "out", store=memory_store)
