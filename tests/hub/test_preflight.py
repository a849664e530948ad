"""What a fetch would move and need, told from listings and headers alone."""

import json
import os
import shutil
import struct
from collections import namedtuple

import pytest

import hfflows
from hfflows.hub import (
    SnapshotPlan,
    fetch_snapshot,
    inspect_snapshot,
    load_snapshot,
    snapshot_download,
)
from hfflows.hub import _weights as weights_module
from hfflows.testing import FaultyStore

REPO = "org/model"


def safetensors(**tensors):
    """Return a file with tensors of these (dtype, shape, bytes per value)."""
    header, offset = {}, 0
    for name, (dtype, shape, width) in tensors.items():
        size = width
        for count in shape:
            size *= count
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + os.urandom(offset)


def header_bytes(data):
    return 8 + struct.unpack("<Q", data[:8])[0]


WEIGHTS = safetensors(embed=("BF16", [1000, 512], 2), norm=("F32", [512], 4), scale=("F32", [], 4))
FILES = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": os.urandom(1_200_000),
    "big.onnx": os.urandom(1_100_000),
}


@pytest.fixture
def commit(local_hub):
    return local_hub.publish(REPO, FILES)


def keys_in(store):
    return sorted(info.key for info in store.list(""))


def test_a_plan_says_what_a_fetch_then_does(commit, local_hub, options, memory_store):
    plan = inspect_snapshot(REPO, **options)
    result = fetch_snapshot(REPO, **options)

    assert (plan.commit_hash, plan.revision, plan.access, plan.is_held) == (
        commit,
        "main",
        "granted",
        False,
    )
    assert plan.size_bytes == plan.missing_bytes == result.ref.size_bytes
    assert len(plan.files) == result.ref.file_count
    assert result.report.bytes_read == plan.missing_bytes
    assert plan.left_out == ("pytorch_model.bin",)
    assert inspect_snapshot(REPO, allow_pickles=True, **options).left_out == ()


def test_only_headers_are_read_and_nothing_is_written(commit, local_hub, options, memory_store):
    plan = inspect_snapshot(REPO, **options)

    [weights] = plan.weights
    assert (weights.path, weights.parameter_count) == ("model.safetensors", 512_513)
    assert weights.dtypes == {"BF16": 512_000, "F32": 513}
    from_cdn = [request for request in local_hub.requests if request.origin == "cdn"]
    assert {request.range for request in from_cdn} == {
        "bytes=0-7",
        f"bytes=8-{header_bytes(WEIGHTS) - 1}",
    }
    assert sum(request.bytes_sent for request in from_cdn) == header_bytes(WEIGHTS)
    assert local_hub.count(r"resolve/.*(bin|onnx|json)") == 0
    assert keys_in(memory_store) == []


def test_dry_run_is_the_same_and_can_be_a_result(commit, options):
    plan = snapshot_download(REPO, dry_run=True, **options)

    assert plan == inspect_snapshot(REPO, **options)
    assert SnapshotPlan.model_validate_json(plan.model_dump_json()) == plan
    assert plan.model_dump()["missing_bytes"] == plan.missing_bytes > 0
    assert isinstance(snapshot_download(REPO, dry_run=False, **options), hfflows.ArtifactRef)


def test_content_the_store_has_under_another_repo_is_not_missing(commit, local_hub, options):
    fetch_snapshot(REPO, **options)
    local_hub.publish("other/copy", {"renamed.onnx": FILES["big.onnx"], "new.json": b"[1]"})

    plan = inspect_snapshot("other/copy", **options)
    stored = {file.path: file.is_stored for file in plan.files}
    assert stored == {"renamed.onnx": True, "new.json": False, ".gitattributes": False}
    result = fetch_snapshot("other/copy", **options)
    assert result.report.bytes_read == plan.missing_bytes


def test_content_whose_objects_are_gone_is_missing(commit, local_hub, options, memory_store):
    fetch_snapshot(REPO, **options)
    memory_store.delete([info.key for info in memory_store.list("objects/")])
    local_hub.publish("other/copy", {"renamed.onnx": FILES["big.onnx"]})

    plan = inspect_snapshot("other/copy", **options)
    assert plan.missing_bytes == plan.size_bytes


def test_what_the_store_holds_needs_no_hub(commit, local_hub, options, memory_store):
    fresh = inspect_snapshot(REPO, revision=commit, **options)
    fetch_snapshot(REPO, revision=commit, allow_pickles=True, **options)
    before = keys_in(memory_store)
    local_hub.reset_counts()
    plan = inspect_snapshot(REPO, revision=commit, **options)
    part = inspect_snapshot(REPO, revision=commit, allow_patterns=["*.json"], **options)

    assert local_hub.requests == []
    assert (plan.is_held, plan.missing_bytes, plan.access) == (True, 0, "granted")
    assert plan.weights == fresh.weights
    assert plan.left_out == fresh.left_out
    assert [(file.path, file.size_bytes) for file in plan.files] == [
        (file.path, file.size_bytes) for file in fresh.files
    ]
    assert [file.path for file in part.files] == ["config.json"]
    assert keys_in(memory_store) == before  # not even the part is saved
    again = inspect_snapshot(REPO, revision=commit, force_download=True, **options)
    assert again.missing_bytes == again.size_bytes


def test_headers_of_a_held_snapshot_are_read_alone(commit, options, memory_store):
    fetch_snapshot(REPO, revision=commit, **options)
    moved = []

    class Counting(FaultyStore):
        def get_range(self, key, offset, length):
            moved.append(length)
            return super().get_range(key, offset, length)

    inspect_snapshot(REPO, revision=commit, **options | {"store": Counting(memory_store)})
    assert sum(moved) == header_bytes(WEIGHTS)


def test_the_disk_it_names_is_what_a_load_asks_for(commit, options, tmp_path, monkeypatch):
    plan = inspect_snapshot(REPO, **options)
    usage = namedtuple("usage", "free")
    free = plan.disk_bytes - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(free))

    with pytest.raises(hfflows.DiskSpaceError), load_snapshot(REPO, path=tmp_path / "m", **options):
        pass
    free = plan.disk_bytes
    with load_snapshot(REPO, path=tmp_path / "m", **options):
        pass


# Weights in several files ------------------------------------------------------------------


SHARDS = {
    "model-00001-of-00002.safetensors": safetensors(a=("F16", [10, 10], 2)),
    "model-00002-of-00002.safetensors": safetensors(b=("F8_E4M3", [7], 1), c=("F16", [3], 2)),
}
INDEX = {
    "metadata": {"total_size": 213},
    "weight_map": {name: sorted(SHARDS)[name > "a"] for name in ("a", "b", "c")},
}


def sharded(**changes):
    return {**SHARDS, "model.safetensors.index.json": json.dumps(INDEX | changes)}


def test_an_index_makes_its_files_one_set(local_hub, options):
    local_hub.publish(REPO, {**sharded(), "vae/model.safetensors": WEIGHTS})

    sharded_set, vae = inspect_snapshot(REPO, **options).weights
    assert sharded_set.path == "model.safetensors.index.json"
    assert sharded_set.dtypes == {"F16": 103, "F8_E4M3": 7}
    assert (sharded_set.parameter_count, sharded_set.size_bytes) == (110, 213)
    assert vae.path == "vae/model.safetensors"


def test_patterns_that_leave_shards_out_leave_the_index_out(local_hub, options):
    local_hub.publish(REPO, sharded())

    plan = inspect_snapshot(REPO, allow_patterns=["*.json", "*-00001-*"], **options)
    assert [weights.path for weights in plan.weights] == [min(SHARDS)]
    assert inspect_snapshot(REPO, allow_patterns=["*.json"], **options).weights == ()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"model.safetensors": b"\xff" * 8 + b"x" * 100}, "claims a header"),
        ({"model.safetensors": b"short"}, "too short"),
        ({"model.safetensors": WEIGHTS + b"more"}, "its tensors end"),
        (sharded(weight_map={"lost": min(SHARDS)}), "where it is not"),
        (sharded(weight_map=[]), "no weight_map"),
    ],
    ids=["length", "short", "longer", "index", "no-index"],
)
def test_weights_that_could_not_be_loaded_are_told_before_they_are_fetched(
    local_hub, options, files, reason
):
    local_hub.publish(REPO, files)

    with pytest.raises(hfflows.IntegrityError, match=reason):
        inspect_snapshot(REPO, **options)


def test_a_header_is_read_up_to_a_limit(commit, local_hub, options, monkeypatch):
    monkeypatch.setattr(weights_module, "MAX_HEADER_BYTES", 100)

    with pytest.raises(hfflows.IntegrityError, match="longer than 100"):
        inspect_snapshot(REPO, **options)
    sent = [request.bytes_sent for request in local_hub.requests if request.origin == "cdn"]
    assert sent == [8]


# Access ------------------------------------------------------------------------------------


def test_a_gated_repo_shows_its_files_and_says_what_to_do(commit, local_hub, options):
    local_hub.gate(REPO)
    stranger = local_hub.add_token("stranger")
    local_hub.reset_counts()
    plan = inspect_snapshot(REPO, **options | {"token": stranger})

    assert (plan.access, plan.commit_hash) == ("gated", commit)
    assert f"accept its terms at {local_hub.endpoint}/{REPO}" in plan.advice
    assert plan.size_bytes > len(WEIGHTS)
    assert plan.weights == ()
    assert local_hub.count("resolve") == 0
    guest = local_hub.add_token("guest", gated_access=[REPO])
    assert inspect_snapshot(REPO, **options | {"token": guest}).access == "granted"


def test_a_private_repo_and_none_look_the_same(local_hub, options):
    local_hub.publish("org/secret", FILES, private=True)
    stranger = local_hub.add_token("stranger")

    hidden = inspect_snapshot("org/secret", **options | {"token": stranger})
    absent = inspect_snapshot("org/none", **options)
    assert (hidden.access, absent.access) == ("hidden", "hidden")
    assert (hidden.commit_hash, hidden.files, hidden.size_bytes) == (None, (), 0)
    assert "private" in hidden.advice
    assert stranger not in hidden.model_dump_json()
    assert inspect_snapshot("org/secret", **options).access == "granted"


def test_what_is_no_question_of_access_is_an_error(commit, local_hub, options):
    with pytest.raises(hfflows.RevisionNotFoundError):
        inspect_snapshot(REPO, revision="v9", **options)
    with pytest.raises(hfflows.EntryNotFoundError):
        inspect_snapshot(REPO, allow_patterns=["*.gguf"], **options)
    with pytest.raises(hfflows.SettingsError):
        inspect_snapshot("a/b/c", **options)


def test_flagged_files_are_listed_and_not_refused(commit, local_hub, options):
    local_hub.flag(REPO, "big.onnx")
    local_hub.flag(REPO, "pytorch_model.bin")

    assert inspect_snapshot(REPO, **options).flagged_files == {"big.onnx": "unsafe"}
