"""Pickles that safetensors replace are left out; what the Hub's scanners flag is refused."""

import os

import pytest

import hfflows
from hfflows import keys
from hfflows.artifacts import commit_selection
from hfflows.hub import _client as client_module
from hfflows.hub._safety import pickles_with_safetensors
from hfflows.storage import open_store

REPO = "org/model"
PICKLE = b"\x80\x02not really" + os.urandom(200_000)
FILES = {
    "config.json": b"{}",
    "modeling_evil.py": b"raise SystemExit('executed')",
    "model.safetensors": os.urandom(2_000_000),
    "pytorch_model.bin": PICKLE,
    "training_args.bin": b"\x80\x02args",
}
SAFE = {*FILES, ".gitattributes"} - {"pytorch_model.bin"}


@pytest.fixture
def commit(hub):
    return hub.publish(REPO, FILES)


def names_in(result, store):
    return {file.path for file in hfflows.artifacts.read_tree(result.ref, store=store).files}


@pytest.mark.parametrize(
    ("paths", "redundant"),
    [
        ("model.safetensors pytorch_model.bin", "pytorch_model.bin"),
        ("model.fp16.safetensors pytorch_model.fp16.bin", "pytorch_model.fp16.bin"),
        ("model.fp16.safetensors pytorch_model.bin", ""),
        ("adapter_model.safetensors adapter_model.bin", "adapter_model.bin"),
        ("v1-5.safetensors v1-5.ckpt v1-4.ckpt", "v1-5.ckpt"),
        ("x.safetensors x.pt x.pth x.pkl x.pickle x.onnx", "x.pickle x.pkl x.pt x.pth"),
        (
            "unet/diffusion_pytorch_model.safetensors unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.bin",
        ),
        ("a/model.safetensors b/pytorch_model.bin pytorch_model.bin", ""),
        (
            """model-00001-of-00002.safetensors model-00002-of-00002.safetensors
            model.safetensors.index.json pytorch_model-00001-of-00002.bin
            pytorch_model-00002-of-00002.bin pytorch_model.bin.index.json""",
            """pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin
            pytorch_model.bin.index.json""",
        ),
        (
            """model.fp16-00001-of-00001.safetensors pytorch_model.bin.index.fp16.json
            pytorch_model-00001-of-00001.fp16.bin""",
            "pytorch_model-00001-of-00001.fp16.bin pytorch_model.bin.index.fp16.json",
        ),
        ("model-00001-of-00002.safetensors pytorch_model.bin", ""),  # a shard is missing
        ("model.safetensors model.bin training_args.bin optimizer.pt rng_state.pth", ""),
        ("model.safetensors pytorch_modeling.bin", ""),
        ("consolidated.00.pth model.safetensors", ""),
    ],
)
def test_a_pickle_is_redundant_when_its_own_weights_are_all_there(paths, redundant):
    assert sorted(pickles_with_safetensors(paths.split())) == redundant.split()


def test_redundant_pickles_are_not_fetched(ask, hub, commit, memory_store, caplog):
    caplog.set_level("INFO", logger="hfflows")
    result = ask()

    assert names_in(result, memory_store) == SAFE
    assert hub.count("pytorch_model") == 0
    assert hub.bytes_sent < 2_100_000
    assert "left out pytorch_model.bin" in caplog.text
    assert "allow_pickles=True" in caplog.text


def test_python_files_are_kept_and_not_executed(ask, commit, memory_store, tmp_path):
    path = hfflows.load_artifact(ask().ref, tmp_path / "m", store=memory_store)

    assert (path / "modeling_evil.py").read_bytes() == FILES["modeling_evil.py"]


def test_a_hit_without_pickles_costs_no_hub_request_and_two_of_the_store(
    ask, hub, commit, local_s3
):
    store = open_store(local_s3.url(os.urandom(4).hex()), **local_s3.options())
    first = ask(revision=commit, store=store)
    hub.reset_counts()
    before = sum(local_s3.requests().values())
    second = ask(revision=commit, store=store)

    assert sum(local_s3.requests().values()) - before <= 2
    assert (second.outcome, second.ref) == ("hit", first.ref)
    assert hub.requests == []


def test_allow_pickles_fetches_only_what_was_left_out(ask, hub, commit, memory_store):
    ask(revision=commit)
    hub.reset_counts()
    result = ask(revision=commit, allow_pickles=True)

    assert names_in(result, memory_store) == {*FILES, ".gitattributes"}
    assert keys.selection_of(result.ref.key) == keys.EVERYTHING
    assert hub.count("model.safetensors", method="GET", status=206) == 0
    hub.reset_counts()
    assert ask(revision=commit, allow_pickles=True).ref == result.ref
    assert hub.requests == []


def test_who_takes_no_pickles_is_served_from_a_snapshot_with_them(ask, hub, commit, memory_store):
    with_pickles = ask(revision=commit, allow_pickles=True)
    hub.reset_counts()
    result = ask(revision=commit)

    assert (result.outcome, hub.requests) == ("hit", [])
    assert names_in(result, memory_store) == SAFE
    assert result.ref != with_pickles.ref
    assert ask(revision=commit).ref == result.ref


def test_without_redundant_pickles_both_ask_for_the_same_snapshot(ask, hub, memory_store):
    commit = hub.publish("org/plain", {"model.safetensors": b"s", "optimizer.pt": b"p"})
    first = ask("org/plain", revision=commit)
    hub.reset_counts()

    assert keys.selection_of(first.ref.key) == keys.EVERYTHING
    assert ask("org/plain", revision=commit, allow_pickles=True).ref == first.ref
    assert hub.requests == []


def test_a_snapshot_of_an_older_version_that_says_nothing_is_looked_at(
    ask, hub, commit, memory_store
):
    """Its reference has no word on pickles, and it holds them."""
    full = ask(revision=commit, allow_pickles=True).ref
    said = {"allow_pickles", "redundant_pickles", "flagged_files"}
    old = {name: value for name, value in full.metadata.items() if name not in said}
    key = keys.snapshot(f"{full.key.rpartition('/')[0]}/", "all", id=keys.new_id(after=None))
    commit_selection(full, None, None, key=key, metadata=old, store=memory_store)
    hfflows.delete_artifact(full, store=memory_store)
    hub.reset_counts()

    assert names_in(ask(revision=commit), memory_store) == SAFE
    assert ask(revision=commit, allow_pickles=True).ref.key == key
    assert hub.requests == []


@pytest.mark.parametrize(
    ("options", "has_pickle"),
    [
        ({"allow_patterns": ["*.bin", "*.json"]}, True),
        ({"allow_patterns": ["*.bin", "*.safetensors"]}, True),
        ({"allow_patterns": "pytorch_model*"}, True),
        ({"allow_patterns": ["*model*"]}, False),
        ({"allow_patterns": ["*"], "ignore_patterns": ["*.json"]}, False),
        ({"ignore_patterns": ["*.safetensors"]}, True),
    ],
)
def test_patterns_that_ask_for_a_pickle_win(ask, commit, memory_store, options, has_pickle):
    for _from_hub_then_from_store in range(2):
        names = names_in(ask(revision=commit, **options), memory_store)
        assert ("pytorch_model.bin" in names) is has_pickle


def test_a_subset_is_served_from_a_snapshot_without_pickles_if_it_needs_none(
    ask, hub, commit, memory_store
):
    ask(revision=commit)
    hub.reset_counts()
    assert ask(revision=commit, allow_patterns=["*.json"]).outcome == "hit"
    assert names_in(ask(revision=commit, allow_patterns=["model*"]), memory_store) == {
        "model.safetensors",
        "modeling_evil.py",
    }
    assert hub.requests == []

    pickled = ask(revision=commit, ignore_patterns=["*.safetensors"])
    assert "pytorch_model.bin" in names_in(pickled, memory_store)
    assert hub.count("pytorch_model.bin") > 0


def test_in_a_dataset_a_pickle_is_no_second_copy(ask, hub, memory_store):
    hub.publish("org/data", {"x.safetensors": b"s", "x.pkl": b"p"}, repo_type="dataset")

    assert "x.pkl" in names_in(ask("org/data", repo_type="dataset"), memory_store)


# What scanners found -----------------------------------------------------------------------


def test_a_flagged_file_is_refused_unless_allowed(ask, hub, commit, memory_store):
    hub.flag(REPO, "training_args.bin")

    with pytest.raises(hfflows.HubError, match=r"flagged training_args\.bin \(unsafe\)") as caught:
        ask()
    assert "allow_flagged=True" in str(caught.value)
    assert not caught.value.transient
    assert hub.count("resolve") == 0  # refused before anything moved
    assert not list(memory_store.list("refs/"))

    assert "training_args.bin" not in names_in(
        ask(ignore_patterns=["training_args.bin"]), memory_store
    )
    allowed = ask(allow_flagged=True)
    assert "training_args.bin" in names_in(allowed, memory_store)
    assert allowed.ref.metadata["flagged_files"] == {"training_args.bin": "unsafe"}


def test_a_flagged_file_that_somebody_allowed_is_refused_to_others(ask, hub, commit):
    hub.flag(REPO, "training_args.bin")
    ask(revision=commit, allow_flagged=True)
    hub.reset_counts()

    with pytest.raises(hfflows.HubError, match="flagged"):
        ask(revision=commit)
    with pytest.raises(hfflows.HubError, match="flagged"):
        ask(revision=commit, allow_patterns=["train*"])
    assert ask(revision=commit, allow_patterns=["*.json"]).outcome == "hit"
    assert ask(revision=commit, allow_flagged=True).outcome == "hit"
    assert hub.requests == []


def test_a_flagged_pickle_that_is_left_out_hurts_nobody(ask, hub, commit):
    hub.flag(REPO, "pytorch_model.bin")

    assert ask().outcome == "miss"
    with pytest.raises(hfflows.HubError, match=r"pytorch_model\.bin"):
        ask(allow_pickles=True)


def test_what_is_merely_suspicious_is_fetched_and_said(ask, hub, commit, caplog):
    hub.flag(REPO, "training_args.bin", level="suspicious")

    assert ask().outcome == "miss"
    assert "training_args.bin suspicious" in caplog.text


def test_a_hub_without_scanners_flags_nothing(ask, hub, commit, monkeypatch):
    monkeypatch.setattr(client_module.HubClient, "_info", lambda self, *_, **__: {"sha": commit})

    assert ask().outcome == "miss"
