"""Several processes: who they save for, and parts that commit together or not at all."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect import flow, task

from hfflows.artifacts import (
    FileRange,
    TransferReport,
    Tree,
    apply_collection,
    collect_garbage,
    delete_artifact,
    list_artifacts,
    load_artifact,
    new_file,
    plan_collection,
    read_ranges,
    read_tree,
    save_artifact,
    scan,
    verify_artifact,
    write_part,
)
from hfflows.artifacts import _new_file as new_files
from hfflows.checkpoint import Checkpointer
from hfflows.checkpoint._distributed import begin_save
from hfflows.errors import (
    ArtifactNotFoundError,
    CollectionBusyError,
    IntegrityError,
    SaveRevokedError,
    SettingsError,
)
from hfflows.identity import IDENTITY_VARIABLE, RunIdentity
from hfflows.storage import open_store
from hfflows.tasks import checkpoint, current
from tests.checkpoint import ranks
from tests.checkpoint.ranks import ME

ROOT = Path(__file__).parents[2]
NOW = timedelta(0)


# Who a process saves for --------------------------------------------------------------------


def test_an_identity_comes_through_a_real_environment():
    identity = replace(ME, item='lr=1, é \n\0 "quoted" \' $HOME', attempt="002.1")
    code = (
        "from hfflows.identity import RunIdentity, inherited_store_url as url\n"
        "import json, dataclasses as d\n"
        "print(json.dumps([d.asdict(RunIdentity.from_environment()), url()]))"
    )
    environment = identity.to_environment(store_url="s3://bucket/prefix")

    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )

    fields, url = json.loads(done.stdout)
    assert RunIdentity(**fields) == identity
    assert url == "s3://bucket/prefix"


def test_no_credential_is_in_the_environment_that_is_handed_on():
    store = open_store(
        "s3://bucket/prefix", access_key_id="the-key", secret_access_key="the-secret"
    )

    environment = Checkpointer(ME, store=store).environment

    assert list(environment) == [IDENTITY_VARIABLE]
    assert "s3://bucket/prefix" in environment[IDENTITY_VARIABLE]
    assert "the-" not in environment[IDENTITY_VARIABLE]


def test_a_checkpointer_from_the_environment_is_that_of_the_task(tmp_path, monkeypatch):
    with Checkpointer(ME, store=open_store(tmp_path)) as parent:
        for name, value in parent.environment.items():
            monkeypatch.setenv(name, value)
        child = Checkpointer.from_environment(load_policy="eager")

        (parent.directory / "state").touch()
        ref = parent.save()

    assert child.identity == ME
    assert child.load_policy == "eager"
    assert child.latest() == ref


def test_a_store_in_the_memory_of_another_process_is_refused(memory_store, monkeypatch):
    for name, value in Checkpointer(ME, store=memory_store).environment.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match="in its own memory"):
        Checkpointer.from_environment()
    assert Checkpointer.from_environment(store=memory_store).identity == ME


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "is not set"),
        ("", "is not set"),
        ("{", "does not hold"),
        ("null", "does not hold"),
        ('{"format_version": 2}', "does not hold"),
        ('{"format_version": 2, "identity": 7}', "format version 2"),
        ('{"format_version": 1, "identity": {"namespace": "n"}}', "does not hold"),
        ('{"format_version": 1, "identity": []}', "does not hold"),
    ],
)
def test_an_environment_that_names_no_task_is_refused(monkeypatch, text, words):
    if text is not None:
        monkeypatch.setenv(IDENTITY_VARIABLE, text)

    with pytest.raises(SettingsError, match=words):
        Checkpointer.from_environment()


# Parts without torch ------------------------------------------------------------------------


def begin(store):
    return begin_save(ME, name="checkpoint", metadata=None, latest=True, store=store)


def files_in(directory, **contents):
    directory.mkdir(exist_ok=True)
    for name, text in contents.items():
        (directory / name).write_text(text)
    return scan(directory)


def test_parts_are_visible_together_and_not_before(store, tmp_path):
    with begin(store) as save:
        one = write_part(files_in(tmp_path / "a", one="1", both="same"), store=store)
        (tmp_path / "b" / "logs").mkdir(parents=True)
        other = write_part(files_in(tmp_path / "b", two="2", both="same"), store=store)
        assert list_artifacts(store=store) == []
        ref = save.commit([one, other])

    assert list_artifacts(store=store) == [ref]
    assert list(store.list("saves/")) == []
    path = load_artifact(ref, tmp_path / "out", store=store)
    assert {file.name: file.read_text() for file in path.iterdir() if file.is_file()} == {
        "one": "1",
        "two": "2",
        "both": "same",
    }
    assert (path / "logs").is_dir()


def test_different_files_under_one_path_are_refused(memory_store, tmp_path):
    with pytest.raises(SettingsError, match="'state'"), begin(memory_store) as save:
        save.commit(
            write_part(files_in(tmp_path / text, state=text), store=memory_store) for text in "ab"
        )

    assert list_artifacts(store=memory_store) == []
    assert list(memory_store.list("saves/")) == []


def test_a_directory_that_only_one_part_has_filled_is_no_clash(memory_store, tmp_path):
    (tmp_path / "a" / "logs").mkdir(parents=True)
    (tmp_path / "b" / "logs").mkdir(parents=True)
    (tmp_path / "b" / "logs" / "1").touch()
    with begin(memory_store) as save:
        ref = save.commit(
            write_part(scan(tmp_path / name), store=memory_store) for name in ("a", "b")
        )

    tree = read_tree(ref, store=memory_store)
    assert (tree.directories, [file.path for file in tree.files]) == ((), ["logs/1"])


def test_a_writer_whose_look_was_before_the_plan_keeps_what_it_reuses(memory_store, tmp_path):
    """The collection sees the announcement, which is that of the whole save."""
    content = os.urandom(300_000)
    garbage = garbage_of(content, memory_store, tmp_path)

    with begin(memory_store) as save, new_file("f", store=memory_store) as file:
        plan = plan_collection(min_age=NOW, grace=NOW, store=memory_store)
        assert plan.object_count
        file.write(content)
        part = Tree((file.finish(),))
        assert part.object_keys() == garbage
        with pytest.raises(CollectionBusyError):
            apply_collection(plan, store=memory_store)
        ref = save.commit([part])
    apply_collection(plan, store=memory_store)

    verify_artifact(ref, store=memory_store)


def test_a_writer_whose_look_was_after_the_plan_sends_again(memory_store, tmp_path):
    content = os.urandom(300_000)
    garbage = garbage_of(content, memory_store, tmp_path)

    plan = plan_collection(min_age=NOW, grace=NOW, store=memory_store)
    with begin(memory_store) as save, new_file("f", store=memory_store) as file:
        apply_collection(plan, store=memory_store)  # does not wait for a save that has seen it
        file.write(content)
        part = Tree((file.finish(),))
        assert not part.object_keys() & garbage
        ref = save.commit([part])

    verify_artifact(ref, store=memory_store)


def garbage_of(content, store, tmp_path):
    """Return the keys of objects that hold `content` and that nothing leads to."""
    (tmp_path / "doomed").write_bytes(content)
    doomed = save_artifact(tmp_path / "doomed", name="m", storage_format="packed", store=store)
    keys = read_tree(doomed, store=store).object_keys()
    delete_artifact(doomed, store=store)
    return keys


def test_a_save_that_a_collection_gave_up_cannot_commit(memory_store, tmp_path):
    garbage_of(b"x" * 1000, memory_store, tmp_path)
    with pytest.raises(SaveRevokedError), begin(memory_store) as save:
        part = write_part(files_in(tmp_path / "a", state="1"), store=memory_store)
        plan = plan_collection(min_age=NOW, grace=NOW, store=memory_store)
        apply_collection(plan, abandoned_after=NOW, store=memory_store)
        save.commit([part])

    assert list_artifacts(store=memory_store) == []


# A file of unknown size, and ranges of files ------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    items=st.lists(st.binary(max_size=700), max_size=12),
    cuts=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), max_size=5),
)
def test_items_are_read_back_by_their_ranges(memory_store, items, cuts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_files, "LARGEST_OBJECT_BYTES", 500)
        patch.setattr(new_files, "ALONE_FROM_BYTES", 300)
        with new_file("f", store=memory_store) as file:
            wanted = []
            for item in items:
                file.begin_item(len(item))
                wanted.append(FileRange("f", file.tell(), len(item)))
                file.write(item)
            written = file.finish()
    whole = b"".join(items)
    assert written.size_bytes == len(whole)
    tree = Tree((written,))
    ends = [sorted(min(end, len(whole)) for end in cut) for cut in cuts]
    wanted += [FileRange("f", low, high - low) for low, high in ends]

    found = dict(read_ranges(tree, wanted, store=memory_store))

    assert {number: stream.read() for number, stream in found.items()} == {
        number: whole[offset : offset + length]
        for number, (_path, offset, length) in enumerate(wanted)
    }


def test_large_items_are_found_again_wherever_they_stand(memory_store):
    large, sent = os.urandom(3_000_000), []
    for before in (b"", b"short"):
        report = TransferReport()
        with new_file("f", store=memory_store, report=report) as file:
            for item in (before, large, b"after"):
                file.begin_item(len(item))
                file.write(item)
            file.finish()
        sent.append(report.bytes_sent)

    assert sent == [3_000_005, 10]


def test_an_item_of_16_mib_and_a_little_is_one_object(memory_store):
    with new_file("f", store=memory_store) as file:
        file.begin_item(1 << 24)
        file.write(bytes((1 << 24) + 1500))
        assert len(file.finish().segments) == 1


@pytest.mark.parametrize("what", ["damaged", "missing", "cut short"])
def test_a_range_of_wrong_bytes_is_never_yielded(memory_store, what):
    with new_file("f", store=memory_store) as file:
        for item in (b"a" * 100, b"b" * 100, b"c" * 100):
            file.begin_item(100)
            file.write(item)
        tree = Tree((file.finish(),))
    (key,) = tree.object_keys()
    data = memory_store.get(key)
    broken = {"damaged": data[:150] + b"X" + data[151:], "cut short": data[:150]}
    memory_store.delete([key])
    if what in broken:
        memory_store.put(key, broken[what])
        found = read_ranges(tree, [FileRange("f", 0, 100)], store=memory_store)
        assert [stream.read() for _number, stream in found] == [b"a" * 100]

    with pytest.raises(IntegrityError, match=what) as caught:
        list(read_ranges(tree, [FileRange("f", 120, 10)], store=memory_store))
    assert (caught.value.path, caught.value.key) == ("f", key)


def test_a_range_that_no_file_has_is_refused(memory_store):
    with new_file("f", store=memory_store) as file:
        file.write(b"12345")
        tree = Tree((file.finish(),))

    for wanted in (FileRange("f", 3, 3), FileRange("g", 0, 1)):
        with pytest.raises(ArtifactNotFoundError, match=repr(wanted.path)):
            list(read_ranges(tree, [wanted], store=memory_store))


# Ranks --------------------------------------------------------------------------------------


@pytest.fixture
def where(tmp_path):
    return (tmp_path / "store").as_uri(), {}


def parts_of(tmp_path, size):
    for rank in range(size):
        files_in(tmp_path / str(rank), **{f"optimizer-{rank}": str(rank), "config": "of all ranks"})
    return str(tmp_path)


@pytest.mark.slow
def test_saving_together_needs_a_process_group(where, tmp_path):
    (alone,) = ranks.run_ranks(1, ranks.save_parts, where, str(tmp_path), rendezvous=None)

    assert alone.error.startswith("SettingsError")
    assert "init_process_group" in alone.error


@pytest.mark.slow
def test_ranks_save_their_files_as_one_checkpoint(where, tmp_path):
    directory = parts_of(tmp_path, 4)

    outcomes = ranks.run_ranks(4, ranks.save_parts, where, directory, rendezvous=tmp_path / "r")

    (ref,) = list_artifacts(store=open_store(where[0]))
    files = ["config", *(f"optimizer-{rank}" for rank in range(4))]
    assert [outcome.value for outcome in outcomes] == [(ref.key, files)] * 4
    assert Checkpointer(ME, store=open_store(where[0])).latest() == ref


@pytest.mark.slow
@pytest.mark.parametrize("how", ["different files", "no files", "killed"])
def test_when_one_rank_fails_nothing_is_saved_and_all_know(where, tmp_path, how):
    directory, store = Path(parts_of(tmp_path, 2)), open_store(where[0])
    if how == "different files":
        (directory / "1" / "config").write_text("of this rank")
    elif how == "no files":
        (directory / "1" / "config").unlink()
        (directory / "1" / "optimizer-1").unlink()
        (directory / "1").rmdir()
    deadly_rank = 1 if how == "killed" else None

    one, other = ranks.run_ranks(
        2, ranks.save_parts, where, str(directory), deadly_rank, rendezvous=tmp_path / "r"
    )

    words = {"different files": "'config'", "no files": "Rank 1 failed", "killed": ""}[how]
    assert one.error
    assert words in one.error
    assert other.error
    assert (other.exit_code == -9) == (how == "killed")
    assert list_artifacts(store=store) == []
    assert list(store.list("saves/")) == []


@pytest.mark.slow
def test_ranks_that_save_at_once_never_meet(where, tmp_path):
    outcomes = ranks.run_ranks(4, ranks.save_many, where, 10, rendezvous=tmp_path / "r")

    store = open_store(where[0])
    saved = {key for outcome in outcomes for key in outcome.value}
    assert len(saved) == 40
    assert {ref.key for ref in Checkpointer(ME, store=store).list("step")} == saved
    assert len({ref.digest for ref in list_artifacts(store=store)}) == 40
    collect_garbage(min_age=NOW, grace=NOW, store=store)


# Inside a task ------------------------------------------------------------------------------


def run_in_subprocess(*command):
    environment = os.environ | current.checkpoint.environment | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", *command], env=environment, cwd=ROOT, timeout=120, check=True
    )


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_what_a_tasks_subprocesses_save_is_the_tasks_and_its_retry_goes_on(local_s3, monkeypatch):
    for name, value in local_s3.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HFFLOWS_STORE_URL", local_s3.url(os.urandom(4).hex()))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    listed = []

    @task(retries=1)
    @checkpoint(key="sub")
    def alone():
        run_in_subprocess("tests.checkpoint.in_subprocess", "alone")
        listed.append([(ref.name, ref.metadata) for ref in current.checkpoint.list()])
        if len(listed) == 1:
            msg = "the machine went away"
            raise RuntimeError(msg)

    @task(retries=1)
    @checkpoint(load_policy="none", key="ranks")
    def together():
        run_in_subprocess(*torchrun, "tests.checkpoint.in_subprocess", "together")
        listed.append([(ref.name, ref.metadata) for ref in current.checkpoint.list("shards")])
        assert (
            len(current.checkpoint.list("rank-0", attempt=current.checkpoint.identity.attempt)) == 3
        )
        assert (
            len(current.checkpoint.list("rank-1", attempt=current.checkpoint.identity.attempt)) == 3
        )
        if len(listed) == 3:
            msg = "the machine went away"
            raise RuntimeError(msg)

    @flow
    def train():
        alone()
        together()

    train()

    assert listed == [
        [("alone", {"count": 1})],
        [("alone", {"count": 2}), ("alone", {"count": 1})],
        [("shards", {"counts": [1, 1, 1]})],
        [("shards", {"counts": [2, 2, 2]}), ("shards", {"counts": [1, 1, 1]})],
    ]
