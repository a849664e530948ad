"""`torch.distributed.checkpoint` on the store: real ranks, real kills, other world sizes."""

import os
import pickle
import subprocess
import sys
from datetime import timedelta
from itertools import count

import pytest

from hfflows import keys
from hfflows.artifacts import (
    KeepNewest,
    collect_garbage,
    list_artifacts,
    load_artifact,
    read_tree,
    save_artifact,
    verify_artifact,
)
from hfflows.checkpoint import Checkpointer
from hfflows.storage import open_store
from tests.checkpoint import ranks
from tests.checkpoint.ranks import ME

pytestmark = pytest.mark.slow

NAMES = count()
NOW = timedelta(0)


@pytest.fixture
def where(request, tmp_path):
    """Return (URL, options) of an empty store that every process can open."""
    if getattr(request, "param", "file") == "file":
        return (tmp_path / "store").as_uri(), {}
    s3 = request.getfixturevalue("local_s3")
    return s3.url(os.urandom(6).hex()), s3.options()


@pytest.fixture
def store(where):
    return open_store(where[0], **where[1])


@pytest.fixture
def run(tmp_path):
    """Return a function that runs ranks; when none is to fail, it returns what they returned."""

    def run(size, function, *args, may_fail=False):
        rendezvous = tmp_path / f"rendezvous-{next(NAMES)}"
        outcomes = ranks.run_ranks(size, function, *args, rendezvous=rendezvous)
        if may_fail:
            return outcomes
        assert not any(outcome.error for outcome in outcomes), outcomes[0].error
        return [outcome.value for outcome in outcomes]

    return run


def saved_by(run, size, where, *seeds, retention=None):
    """Save on so many ranks; return the keys, on which all ranks agree."""
    outcomes = run(size, ranks.save, where, seeds, None, retention)
    saved = [key for key, _sent in outcomes[0]]
    assert all([key for key, _sent in outcome] == saved for outcome in outcomes)
    return saved


def checkpointer_on(store):
    return Checkpointer(ME, load_policy="none", store=store)


@pytest.mark.parametrize("where", ["file", "s3"], indirect=True)
def test_what_two_ranks_saved_is_one_checkpoint(run, where, store):
    (key,) = saved_by(run, 2, where, 1)

    (ref,) = list_artifacts(store=store)
    assert ref == checkpointer_on(store).latest()
    assert (ref.key, ref.kind, ref.metadata) == (key, "checkpoint", {"seed": 1})
    assert (ref.producer.task, ref.producer.run) == (ME.task, ME.run)
    assert [file.path for file in read_tree(ref, store=store).files] == [
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
    ]
    verify_artifact(ref, store=store)
    assert list(store.list("saves/")) == []
    assert run(2, ranks.load, where, key, 1)[0][0] == []


@pytest.mark.parametrize(("saved_on", "loaded_on"), [(2, 4), (4, 2), (2, 1), (1, 2)])
def test_it_is_loaded_on_another_number_of_ranks(run, where, saved_on, loaded_on):
    (key,) = saved_by(run, saved_on, where, 1)

    loaded = run(loaded_on, ranks.load, where, key, 1)

    assert [wrong for wrong, _read_bytes in loaded] == [[]] * loaded_on


def test_a_rank_reads_what_it_needs_and_no_more(run, where, store):
    (key,) = saved_by(run, 4, where, 1)
    size = {file.path: file.size_bytes for file in read_tree(key, store=store).files}

    loaded = run(4, ranks.load, where, key, 1)

    for rank, (_wrong, read_bytes) in enumerate(loaded):
        # A rank's own shards, and what all have, which one of them saved.
        assert read_bytes - size[".metadata"] < size[f"__{rank}_0.distcp"] + 20_000
    assert sum(size.values()) > 4 * 1_000_000


def test_what_did_not_change_is_not_sent_again(run, where):
    outcomes = run(2, ranks.save, where, [1, 2])

    for (_one, first), (_two, second) in outcomes:
        assert first > 3_000_000  # of "large" 2 MiB a rank, of "frozen" one
        assert 2_000_000 < second < 2_200_000


def test_torch_reads_what_we_saved_and_we_what_torch_saved(run, where, tmp_path):
    saved_by(run, 2, where, 1)

    assert run(1, ranks.exchange_with_torch, where, str(tmp_path / "theirs")) == [[]]


@pytest.mark.parametrize(
    ("where", "kind"), [("file", "thread"), ("s3", "process")], indirect=["where"]
)
def test_an_asynchronous_save_holds_what_was_there_when_it_began(request, run, where, store, kind):
    # The process opens the store by itself: from its URL, with the environment's credentials.
    environment = request.getfixturevalue("local_s3").environ() if kind == "process" else {}

    saved = run(2, ranks.save_asynchronously, where, kind, environment)

    (ref,) = list_artifacts(store=store)
    assert saved == [ref.key] * 2
    assert ref.name == "in-the-background"
    assert run(2, ranks.load, where, ref.key, 1)[0][0] == []


@pytest.mark.parametrize(
    "deadly",
    [
        (1, "put", "objects/", 1),
        (1, "put", "objects/", 2),
        (0, "put", "objects/", 2),
        (0, "put", "trees/", 1),
        (0, "create", "refs/", 1),
    ],
    ids=str,
)
def test_a_rank_killed_while_it_saves_leaves_nothing_and_the_retry_resumes(
    run, where, store, deadly
):
    outcomes = run(2, ranks.save, where, [1, 2], deadly, may_fail=True)

    killed, other = outcomes[deadly[0]], outcomes[1 - deadly[0]]
    assert killed.exit_code == -9
    assert other.error
    assert other.exit_code == 0
    (ref,) = list_artifacts(store=store)
    assert ref.metadata == {"seed": 1}
    # A coordinator that lives says that nothing comes of the save; of a dead one a collection
    # takes the key.
    assert len(list(store.list("saves/"))) == (0 if deadly[0] else 1)
    assert run(2, ranks.resume, where) == [(1, [])] * 2

    (key,) = saved_by(run, 2, where, 2)
    for _night in range(2):
        collect_garbage(min_age=NOW, grace=NOW, abandoned_after=NOW, store=store)
    assert list(store.list("saves/")) == []
    assert {found.key for found in list_artifacts(store=store)} == {ref.key, key}
    verify_artifact(ref, store=store)
    verify_artifact(key, store=store)
    assert checkpointer_on(store).latest().key == key


def test_a_damaged_shard_is_named_by_the_rank_that_needs_it(run, where, store):
    (key,) = saved_by(run, 2, where, 1)
    shard = read_tree(key, store=store).files[2]
    segment = max(shard.segments, key=lambda segment: segment.length)
    flip_byte(store, segment.key, segment.offset + segment.length // 2)

    outcomes = run(2, ranks.load, where, key, 1, may_fail=True)

    for outcome in outcomes:  # all ranks fail together, and know why
        assert list(outcome.by_rank) == [1]
        assert outcome.by_rank[1].startswith(
            f"IntegrityError: __1_0.distcp: the object {segment.key}"
        )


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("path", [".metadata", "__0_0.distcp"])
def test_a_broken_newest_is_marked_and_all_ranks_load_the_one_before(run, where, store, path, size):
    assert run(size, ranks.resume, where) == [None] * size
    _one, two = saved_by(run, 2, where, 1, 2)
    damage(store, two, path)

    assert run(size, ranks.resume, where, "none") == [None] * size
    assert run(size, ranks.resume, where) == [(1, [])] * size

    assert checkpointer_on(store).latest().metadata == {"seed": 1}
    assert store.head(keys.broken(two)) is not None


def test_when_none_is_whole_nobody_goes_on_with_a_mixture(run, where, store):
    for key in saved_by(run, 2, where, 1, 2):
        damage(store, key, "__1_0.distcp")

    for outcome in run(2, ranks.resume, where, may_fail=True):
        assert outcome.error.startswith("IntegrityError: No whole checkpoint is left")


def damage(store, key, path):
    (file,) = [file for file in read_tree(key, store=store).files if file.path == path]
    segment = file.segments[0]  # of a tensor that differs from seed to seed
    flip_byte(store, segment.key, segment.offset + segment.length // 2)


def flip_byte(store, key, offset):
    data = bytearray(store.get(key))
    data[offset] ^= 1
    store.put(key, data)


def test_retention_is_applied_and_the_rest_collected(run, where, store):
    saved = saved_by(run, 2, where, 1, 2, 3, retention=KeepNewest(1))

    (ref,) = list_artifacts(store=store)
    assert ref.key == saved[-1]
    for _night in range(2):
        collect_garbage(min_age=NOW, grace=NOW, store=store)
    verify_artifact(ref, store=store)
    assert run(2, ranks.load, where, ref.key, 3)[0][0] == []


def test_a_save_that_would_commit_each_rank_alone_is_refused(run, where, store):
    outcomes = run(2, ranks.save_without_collectives, where, may_fail=True)

    assert all("use_collectives=False" in outcome.error for outcome in outcomes)
    assert list_artifacts(store=store) == []


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"echo > {self.path}",))


def test_metadata_that_would_run_code_is_not_read(run, where, store, tmp_path):
    (tmp_path / "model").mkdir()
    was_run = tmp_path / "was-run"
    (tmp_path / "model" / ".metadata").write_bytes(pickle.dumps({"a": Hostile(was_run)}))
    ref = save_artifact(tmp_path / "model", name="m", store=store)

    (outcome,) = run(1, ranks.read_metadata, where, ref.key, may_fail=True)

    assert outcome.error.startswith("IntegrityError")
    assert "posix.system" in outcome.error
    assert not was_run.exists()


def test_an_artifact_of_another_kind_is_refused_by_name(run, where, store, tmp_path):
    (tmp_path / "weights").write_bytes(b"x")
    ref = save_artifact(tmp_path / "weights", name="m", store=store)

    (outcome,) = run(1, ranks.read_metadata, where, ref.key, may_fail=True)

    assert outcome.error.startswith("SettingsError")
    assert ref.key in outcome.error


def test_the_directory_form_has_every_shard(run, where, store, tmp_path):
    (key,) = saved_by(run, 2, where, 1)

    path = load_artifact(key, tmp_path / "out", store=store)

    assert sorted(file.name for file in path.iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
    ]


def test_importing_checkpoints_loads_no_torch():
    code = "import sys, hfflows.checkpoint; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"
