"""A snapshot in the cache of huggingface_hub, as the real client and transformers see it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir
from huggingface_hub import snapshot_download as client_download
from huggingface_hub.errors import LocalEntryNotFoundError

import hfflows
from hfflows.hub import fetch_snapshot, load_into_hf_cache, load_snapshot
from hfflows.storage import open_store
from hfflows.testing import FaultyStore

REPO = "org/model"
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": os.urandom(1_500_000),
    "onnx/deep/model.onnx": os.urandom(40_000),
    "merges.txt": "grüße\n".encode(),
    "empty.txt": b"",
    "vocab.bin": b"text in LFS for its name",
}


@pytest.fixture
def commit(local_hub):
    return local_hub.publish(REPO, FILES)


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


@pytest.fixture
def fetch(local_hub, store):
    def ask(**options):
        settings = {"endpoint": local_hub.endpoint, "token": local_hub.token, "store": store}
        return fetch_snapshot(REPO, **(settings | options)).ref

    return ask


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def offline(cache, **options):
    return Path(client_download(REPO, cache_dir=cache, local_files_only=True, **options))


def content_of(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def shape_of(repo):
    """Return every blob, link and reference: what a client could tell apart."""
    shape = {}
    for path in sorted(repo.rglob("*")):
        name = path.relative_to(repo).as_posix()
        if path.is_symlink():
            shape[name] = str(path.readlink())
        elif path.is_file() and not name.startswith((".", "trees/")):
            shape[name] = path.read_bytes()
    return shape


def test_the_client_finds_it_offline(fetch, commit, cache):
    directory = load_into_hf_cache(fetch(), cache)

    assert directory == offline(cache) == offline(cache, revision=commit)
    found = content_of(directory)
    assert {name: found[name] for name in FILES} == FILES
    file = hf_hub_download(REPO, "onnx/deep/model.onnx", cache_dir=cache, local_files_only=True)
    assert Path(file).read_bytes() == FILES["onnx/deep/model.onnx"]


def test_it_is_what_the_client_would_have_written(fetch, commit, local_hub, cache, tmp_path):
    load_into_hf_cache(fetch(), cache)
    client_download(
        REPO, cache_dir=tmp_path / "theirs", endpoint=local_hub.endpoint, token=local_hub.token
    )

    folder = "models--org--model"
    assert shape_of(cache / folder) == shape_of(tmp_path / "theirs" / folder)


def test_the_client_fetches_nothing_more_when_it_is_online_again(fetch, commit, local_hub, cache):
    load_into_hf_cache(fetch(), cache)
    local_hub.reset_counts()

    client_download(REPO, cache_dir=cache, endpoint=local_hub.endpoint, token=local_hub.token)
    assert local_hub.count("resolve", method="GET") == 0
    assert local_hub.count("", origin="cdn") == 0


def test_transformers_loads_by_name_offline(local_hub, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    source, home = tmp_path / "source", tmp_path / "home"
    transformers.BertConfig(hidden_size=32, vocab_size=3).save_pretrained(source)
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "rain": 1, "train": 2}, unk_token="[UNK]"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(source)
    local_hub.publish("org/bert", source)
    with load_snapshot(
        "org/bert",
        path=home / "hub",
        layout="hf_cache",
        endpoint=local_hub.endpoint,
        token=local_hub.token,
        store=open_store(tmp_path / "store"),
    ) as directory:
        assert directory.is_relative_to(home / "hub")
    local_hub.down()

    code = """
from transformers import AutoConfig, AutoTokenizer
print(AutoConfig.from_pretrained("org/bert").hidden_size)
print(AutoTokenizer.from_pretrained("org/bert")("rain")["input_ids"])
"""
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[:2] == ["32", "[1]"], done.stderr[-2000:]


def test_without_a_path_it_goes_to_the_clients_own_cache_and_stays(
    local_hub, commit, store, cache, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    options = {"endpoint": local_hub.endpoint, "token": local_hub.token, "store": store}
    with load_snapshot(REPO, layout="hf_cache", **options) as directory:
        pass

    assert offline(cache) == directory
    with (
        pytest.raises(hfflows.SettingsError, match="layout='tar'"),
        load_snapshot(REPO, layout="tar", **options),
    ):
        pass


def test_an_existing_cache_is_merged_into(fetch, commit, local_hub, cache):
    theirs = {"cache_dir": cache, "endpoint": local_hub.endpoint, "token": local_hub.token}
    local_hub.publish("other/repo", {"a.txt": b"a"})
    client_download("other/repo", **theirs)
    client_download(REPO, **theirs)
    moved = local_hub.publish(REPO, FILES | {"config.json": b'{"new": 1}'})
    hf_hub_download(REPO, "config.json", revision=moved, **theirs)  # a part of the new commit

    load_into_hf_cache(fetch(), cache)
    assert content_of(offline(cache))["config.json"] == b'{"new": 1}'
    assert content_of(offline(cache)).keys() >= FILES.keys()
    assert content_of(offline(cache, revision=commit))["config.json"] == FILES["config.json"]
    report = scan_cache_dir(cache)
    assert not report.warnings
    assert {repo.repo_id for repo in report.repos} == {REPO, "other/repo"}
    large = [repo.size_on_disk for repo in report.repos if repo.repo_id == REPO]
    assert sum(large) < 1.1 * sum(map(len, FILES.values()))  # what did not change is there once


def test_loading_again_moves_nothing(fetch, commit, store, cache):
    ref = fetch()
    load_into_hf_cache(ref, cache)
    counted = FaultyStore(store)

    load_into_hf_cache(ref, cache, store=counted)
    assert counted.calls == 1  # the list of files


def test_a_part_and_then_the_rest_make_one_snapshot(fetch, commit, cache):
    load_into_hf_cache(fetch(allow_patterns=["*.json"]), cache)
    assert content_of(offline(cache)) == {"config.json": FILES["config.json"]}

    load_into_hf_cache(fetch(), cache)
    assert content_of(offline(cache)).keys() == {*FILES, ".gitattributes"}


def test_a_blob_that_was_cut_short_is_replaced(fetch, commit, cache):
    directory = load_into_hf_cache(fetch(), cache)
    os.truncate(directory / "model.safetensors", 1000)

    load_into_hf_cache(fetch(), cache)
    assert (directory / "model.safetensors").read_bytes() == FILES["model.safetensors"]


@pytest.mark.parametrize("reason", ["setting", "file system"])
def test_without_symlinks_files_are_copied(fetch, commit, cache, monkeypatch, reason):
    if reason == "setting":
        monkeypatch.setenv("HF_HUB_DISABLE_SYMLINKS", "1")
    else:
        monkeypatch.setattr(os, "symlink", lambda *_: (_ for _ in ()).throw(PermissionError(1, "")))
    directory = load_into_hf_cache(fetch(), cache)

    assert not any(path.is_symlink() for path in cache.rglob("*"))
    assert {name: content_of(offline(cache))[name] for name in FILES} == FILES
    assert load_into_hf_cache(fetch(), cache) == directory


def test_a_revision_names_the_commit_only_if_it_is_none(fetch, commit, local_hub, cache):
    load_into_hf_cache(fetch(revision=commit), cache)
    assert not (cache / "models--org--model" / "refs").exists()
    with pytest.raises(LocalEntryNotFoundError):
        offline(cache)

    api = huggingface_hub.HfApi(endpoint=local_hub.endpoint, token=local_hub.token)
    api.create_pull_request(REPO, title="pull")
    load_into_hf_cache(fetch(revision="refs/pr/1"), cache, revision="refs/pr/1")
    assert offline(cache, revision="refs/pr/1").exists()
    load_into_hf_cache(fetch(revision=commit), cache, revision="main")
    assert offline(cache).name == commit


@pytest.mark.parametrize("revision", ["../../../x", "a//b", "..", "a\\b"])
def test_a_revision_that_would_leave_the_cache_is_refused(fetch, commit, cache, revision):
    with pytest.raises(hfflows.SettingsError, match="no name"):
        load_into_hf_cache(fetch(), cache, revision=revision)
    assert not cache.exists()


def test_only_snapshots_of_a_commit_go_there(fetch, commit, store, cache, tmp_path):
    (tmp_path / "x").write_text("x")
    model = hfflows.save_artifact(tmp_path / "x", name="m", store=store)
    forged = fetch().model_dump()
    forged["metadata"]["commit_hash"] = "../../outside"

    for ref in (model, forged):
        with pytest.raises(hfflows.SettingsError, match="not a snapshot"):
            load_into_hf_cache(ref, cache, store=store)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_to_says_so(fetch, commit, cache):
    cache.write_text("in the way")

    with pytest.raises(hfflows.TargetError, match="cannot be written to"):
        load_into_hf_cache(fetch(), cache)


# Half ------------------------------------------------------------------------------------


def test_a_damaged_store_leaves_the_cache_as_it_was(fetch, commit, store, cache):
    ref = fetch()
    largest = max(store.list("objects/"), key=lambda info: info.size_bytes)
    store.put(largest.key, bytes(largest.size_bytes))

    with pytest.raises(hfflows.IntegrityError):
        load_into_hf_cache(ref, cache)
    left = [path.name for path in cache.rglob("*") if path.is_file()]
    assert left == ["lock"]


def test_a_store_that_fails_at_any_call_leaves_the_cache_as_it_was(fetch, commit, store, cache):
    ref, calls = fetch(), FaultyStore(store)
    load_into_hf_cache(ref, cache / "sound", store=calls)

    for call in range(1, calls.calls + 1):
        with pytest.raises(hfflows.StorageUnavailableError):
            load_into_hf_cache(ref, cache, store=FaultyStore(store, fail_at=call))
        with pytest.raises(LocalEntryNotFoundError):
            offline(cache)
        with pytest.raises(LocalEntryNotFoundError):
            offline(cache, revision=commit)


KILLED = """
import json, os, shutil, sys
from pathlib import Path
from hfflows.hub import load_into_hf_cache
from hfflows.storage import open_store
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

store, before, cache, ref = sys.argv[1:]
ref = json.loads(ref)

def state(place, **options):
    try:
        at = Path(snapshot_download("org/model", cache_dir=place, local_files_only=True, **options))
    except LocalEntryNotFoundError:
        return None
    return at.name, sorted(p.relative_to(at).as_posix() for p in at.rglob("*") if p.is_file())

def die_at(step):
    count = 0
    def hook(event, _args):
        nonlocal count
        count += event in {"os.rename", "os.symlink", "os.mkdir"}
        if count == step:
            os._exit(9)  # as SIGKILL: no handler, no `finally`
    return hook

seen, status = [], 9
for step in range(1, 100):
    place = f"{cache}/{step}"
    shutil.copytree(before, place, symlinks=True)
    child = os.fork()
    if child == 0:
        sys.addaudithook(die_at(step))
        load_into_hf_cache(ref, place, store=open_store(store))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    seen.append([state(place), state(place, revision=ref["metadata"]["commit_hash"])])
    if status == 0:
        break
print(json.dumps(seen))
"""


def test_killed_at_any_step_a_reader_has_the_old_snapshot_or_the_new(
    fetch, commit, store, local_hub, tmp_path
):
    load_into_hf_cache(fetch(allow_patterns=["*.json"]), tmp_path / "before")
    moved = local_hub.publish(REPO, FILES | {"config.json": b"{}"})
    ref = fetch()
    arguments = [str(store.url), tmp_path / "before", tmp_path / "after", ref.model_dump_json()]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert len(seen) > 10
    old, new = [commit, ["config.json"]], [moved, sorted({*FILES, ".gitattributes"})]
    for step, (by_branch, by_commit) in enumerate(seen, 1):
        assert by_branch in (old, new)
        assert by_commit in (None, new)
        assert by_branch == old or by_commit == new
        cache = tmp_path / "after" / str(step)  # and the next load completes it, without a trace
        load_into_hf_cache(ref, cache)
        assert content_of(offline(cache))["config.json"] == b"{}"
        workplaces = (cache / "models--org--model" / ".hfflows").iterdir()
        assert [path.name for path in workplaces] == ["lock"]
    assert old in (by_branch for by_branch, _ in seen)
    assert seen[-1] == [new, new]


def test_several_processes_fill_one_cache_at_once(fetch, commit, store, cache):
    ref = fetch()
    code = """
import json, sys
from hfflows.hub import load_into_hf_cache
from hfflows.storage import open_store
load_into_hf_cache(json.loads(sys.argv[1]), sys.argv[2], store=open_store(sys.argv[3]))
"""
    arguments = [ref.model_dump_json(), str(cache), str(store.url)]
    running = [subprocess.Popen([sys.executable, "-c", code, *arguments]) for _ in range(4)]

    assert [process.wait() for process in running] == [0, 0, 0, 0]
    found = content_of(offline(cache))
    assert {name: found[name] for name in FILES} == FILES
    assert not scan_cache_dir(cache).warnings
