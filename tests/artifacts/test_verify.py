import os
import random

import pytest

from hfflows import keys
from hfflows.artifacts import (
    delete_artifact,
    load_artifact,
    read_tree,
    resolve_alias,
    save_artifact,
    set_alias,
    verify_all,
    verify_artifact,
)
from hfflows.artifacts._objects import object_sizes
from hfflows.checkpoint import Checkpointer
from hfflows.errors import HfflowsError, IntegrityError, SettingsError
from hfflows.identity import RunIdentity
from hfflows.storage import open_store
from hfflows.testing import FaultyStore

LAYOUTS = ["packed", "files", "tar"]
LEVELS = ["size", "sample", "full"]


class CountingStore(FaultyStore):
    """A store that counts the calls of each kind."""

    def __init__(self, store):
        super().__init__(store)
        self.reads = 0
        self.heads = 0

    def get_range(self, key, offset, length):
        self.reads += 1
        return super().get_range(key, offset, length)

    def head(self, key):
        self.heads += 1
        return super().head(key)


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    root.mkdir()
    (root / "large.bin").write_bytes(os.urandom((1 << 20) + 5))
    (root / "small.txt").write_text("small")
    (root / "other.txt").write_text("other")
    (root / "nothing").write_text("")
    return root


def segment_of(ref, path, store):
    file = next(file for file in read_tree(ref, store=store).files if file.path == path)
    return file.segments[0]


def flip(store, key, at, bit=0):
    data = bytearray(store.get(key))
    data[at] ^= 1 << bit
    store.put(key, data)


# A sound artifact --------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sound_artifact_passes_and_the_report_says_what_was_read(store, source, layout, level):
    ref = save_artifact(source, name="m", storage_format=layout, store=store)

    report = verify_artifact(ref, level=level, store=store)
    assert (report.level, report.files) == (level, 4)
    assert report.objects == {"packed": 2, "files": 3, "tar": 1}[layout]
    assert report.bytes_read == (0 if level == "size" else ref.size_bytes)


def test_size_reads_no_content(memory_store, source):
    ref = save_artifact(source, name="m", store=memory_store)
    counting = CountingStore(memory_store)

    verify_artifact(ref, level="size", store=counting)
    assert counting.reads == 0


def test_the_sizes_of_many_objects_take_few_requests(memory_store, tmp_path):
    root = tmp_path / "many"
    root.mkdir()
    for number in range(300):
        (root / f"{number}.txt").write_text(str(number))
    ref = save_artifact(root, name="m", store=memory_store)
    counting = CountingStore(memory_store)

    assert verify_artifact(ref, level="size", store=counting).objects == 300
    assert counting.calls <= 3


def test_a_store_full_of_others_is_not_listed_to_its_end(memory_store, tmp_path):
    root = tmp_path / "some"
    root.mkdir()
    for number in range(20):
        (root / f"{number}.bin").write_bytes(os.urandom(1 << 20))
    ref = save_artifact(root, name="m", storage_format="packed", store=memory_store)
    for number in range(5000):
        memory_store.put(f"objects/{number % 256:02x}/{number:064x}", b"")
    counting = CountingStore(memory_store)

    verify_artifact(ref, level="size", store=counting)
    assert 0 < counting.heads < 20  # those that the listing did not come to


def test_a_sample_reads_what_it_may_and_is_repeatable(memory_store, tmp_path):
    root = tmp_path / "some"
    root.mkdir()
    for number in range(8):
        (root / f"{number}.bin").write_bytes(os.urandom(1 << 20))
    ref = save_artifact(root, name="m", storage_format="packed", store=memory_store)
    damaged = segment_of(ref, "5.bin", memory_store).key
    flip(memory_store, damaged, 77)

    def finds(seed, sample_bytes):
        try:
            report = verify_artifact(
                ref, level="sample", sample_bytes=sample_bytes, seed=seed, store=memory_store
            )
        except IntegrityError as error:
            return error.problems == [f"5.bin: the object {damaged} is damaged."]
        assert report.bytes_read <= max(sample_bytes, 1 << 20)
        return False

    found = [finds(seed, 3 << 20) for seed in range(20)]
    assert {True, False} == set(found)
    assert found == [finds(seed, 3 << 20) for seed in range(20)]
    assert any(finds(seed, 1) for seed in range(40))  # one segment at least
    assert finds(0, 8 << 20)


def test_an_unknown_level_is_refused(memory_store, source):
    ref = save_artifact(source, name="m", store=memory_store)

    with pytest.raises(SettingsError, match="size, sample, full"):
        verify_artifact(ref, level="deep", store=memory_store)


# Damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("what", ["missing", "cut short"])
def test_what_is_missing_is_named_at_every_level(memory_store, source, layout, level, what):
    ref = save_artifact(source, name="m", storage_format=layout, store=memory_store)
    segment = segment_of(ref, "large.bin", memory_store)
    if what == "missing":
        memory_store.delete([segment.key])
    else:
        data = bytes(memory_store.get(segment.key))
        memory_store.put(segment.key, data[: segment.offset + segment.length - 1])

    with pytest.raises(IntegrityError, match=ref.key) as caught:
        verify_artifact(ref, level=level, store=memory_store)
    assert f"large.bin: the object {segment.key} is {what}." in caught.value.problems


def test_every_file_of_a_damaged_object_is_named(memory_store, source):
    (source / "twin.bin").write_bytes((source / "large.bin").read_bytes())
    ref = save_artifact(source, name="m", storage_format="packed", store=memory_store)
    shared = segment_of(ref, "large.bin", memory_store).key
    pack = segment_of(ref, "small.txt", memory_store).key
    flip(memory_store, shared, 9)
    memory_store.delete([pack])

    with pytest.raises(IntegrityError) as caught:
        verify_artifact(ref, store=memory_store)
    assert sorted(caught.value.problems) == [
        f"large.bin: the object {shared} is damaged.",
        f"other.txt: the object {pack} is missing.",
        f"small.txt: the object {pack} is missing.",
        f"twin.bin: the object {shared} is damaged.",
    ]


def every_object(store):
    """Return (key, size) of all that an artifact and an alias put into the store."""
    found = {info.key: info.size_bytes for info in store.list("")}
    assert {key.partition("/")[0] for key in found} >= {"refs", "trees", "aliases"}
    return found


def positions(size, randomly):
    """First, last, and some between: a class of positions each."""
    inner = [randomly.randrange(size) for _ in range(6)]
    return sorted({0, size - 1, size // 2, *inner})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_flipped_byte_anywhere_is_found_and_named(memory_store, tmp_path, layout):
    root = tmp_path / "m"
    root.mkdir()
    for name in ("config.json", "tokenizer.json", "weights.bin"):
        (root / name).write_bytes(os.urandom(700))
    (root / "large.bin").write_bytes(os.urandom((1 << 20) + 1))
    ref = save_artifact(
        root, name="m", metadata={"step": 3}, storage_format=layout, store=memory_store
    )
    set_alias("production", ref, store=memory_store)
    segments = [s for file in read_tree(ref, store=memory_store).files for s in file.segments]
    randomly = random.Random(11)
    flips = 0

    for key, size in every_object(memory_store).items():
        is_content = key.startswith(("objects/", "files/", "tars/"))
        for at in positions(size, randomly):
            covered = any(s.key == key and s.offset <= at < s.offset + s.length for s in segments)
            if is_content and not covered:
                assert layout == "tar"  # its headers and padding are not of any file
                continue
            bit = randomly.randrange(8)
            flip(memory_store, key, at, bit)
            flips += 1
            with pytest.raises(HfflowsError, match=key):
                target = resolve_alias("production", store=memory_store)
                load_artifact(target.key, tmp_path / "out", store=memory_store)
            assert not (tmp_path / "out").exists()
            if not key.startswith("aliases/"):
                with pytest.raises(HfflowsError, match=key):
                    verify_artifact(ref.key, store=memory_store)
            flip(memory_store, key, at, bit)
    load_artifact(ref.key, tmp_path / "out", store=memory_store)
    assert flips > 25


def test_a_flipped_index_entry_changes_nothing_that_is_loaded(memory_store):
    """What lies under `latest/` is a key without content: nothing in it can be wrong."""
    me = RunIdentity("team", "flow", "train", run="run-1")
    with Checkpointer(me, store=memory_store) as checkpointer:
        (checkpointer.directory / "state").write_text("42")
        ref = checkpointer.save()
    for info in list(memory_store.list("latest/")):
        memory_store.put(info.key, b"\xff\xff")

    with Checkpointer(me, store=memory_store) as resumed:
        assert resumed.info == ref


# A whole store -----------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_whole_store_is_judged_artifact_by_artifact(store, source, level):
    whole = save_artifact(source, name="whole", storage_format="packed", store=store)
    short = save_artifact(source, name="short", store=store)
    treeless = save_artifact(source, name="treeless", store=store)
    garbled = save_artifact(source, name="garbled", store=store)
    export = save_artifact(source, kind="export", name="e", store=store)
    gone = save_artifact(source, name="gone", store=store)
    delete_artifact(gone, store=store)
    store.delete([keys.file_key(short.key, "small.txt"), keys.tree(treeless.key)])
    flip(store, garbled.key, 100)

    verdicts = {verdict.key: verdict for verdict in verify_all(level=level, store=store)}
    assert list(verdicts) == sorted([whole.key, short.key, treeless.key, garbled.key, export.key])
    assert {key for key, verdict in verdicts.items() if verdict.report} == {whole.key, export.key}
    assert "small.txt" in str(verdicts[short.key].error)
    assert garbled.key in str(verdicts[garbled.key].error)
    assert [v.key for v in verify_all("export", level=level, store=store)] == [export.key]


def test_what_artifacts_share_is_read_once(memory_store, source):
    refs = [
        save_artifact(source, name=f"m{number}", storage_format="packed", store=memory_store)
        for number in range(3)
    ]
    flip(memory_store, segment_of(refs[0], "other.txt", memory_store).key, 0)
    counting = CountingStore(memory_store)

    verdicts = list(verify_all(level="full", store=counting))
    assert counting.reads == 2
    assert [verdict.error.problems for verdict in verdicts] == [verdicts[0].error.problems] * 3
    assert len(verdicts[0].error.problems) == 1


def test_a_whole_store_takes_two_requests_an_artifact_and_a_listing(memory_store, source):
    for number in range(20):
        save_artifact(source, name=f"m{number}", store=memory_store)
    counting = CountingStore(memory_store)

    assert sum(verdict.report is not None for verdict in verify_all(store=counting)) == 20
    assert counting.calls <= 2 * 20 + 4


def test_a_store_that_fails_is_an_error_and_no_verdict(memory_store, source):
    save_artifact(source, name="m", store=memory_store)
    broken = FaultyStore(memory_store, fail_at=5)

    with pytest.raises(HfflowsError, match="injected"):
        list(verify_all(store=broken))


def test_sizes_are_the_same_listed_or_asked_for(tmp_path):
    store = open_store(tmp_path / "store")
    wanted = [f"objects/{number:02x}/{number:064x}" for number in range(40)]
    for number, key in enumerate(wanted[::2]):
        store.put(key, b"x" * number)

    sizes = object_sizes(store, wanted)
    assert sizes == {key: number for number, key in enumerate(wanted[::2])}
    assert object_sizes(store, wanted[:6]) == {k: v for k, v in sizes.items() if k in wanted[:6]}


def test_names_that_begin_others_are_found_in_whatever_order_they_are_listed(local_s3, tmp_path):
    """SeaweedFS lists part by part: `b/00` before `b-00`, other stores the other way."""
    store = open_store(local_s3.url(os.urandom(6).hex()), **local_s3.options())
    (tmp_path / "source" / "b").mkdir(parents=True)
    for number in range(30):
        (tmp_path / "source" / "b" / f"{number:02}").write_bytes(b"x")
        (tmp_path / "source" / f"b-{number:02}").write_bytes(b"y")
    (tmp_path / "source" / "a").write_bytes(b"z")

    ref = save_artifact(tmp_path / "source", name="m", storage_format="files", store=store)

    assert verify_artifact(ref, level="size", store=store).objects == 61
