"""What the ancestor's `@huggingface_hub` got wrong, each as a case that is right here.

Elsewhere: two revisions of one repo in one `load=` (tests/tasks/test_decorators.py), many
cold processes with one download (test_fleet.py), patterns that select nothing and revisions
that do not exist, cold (test_snapshot.py), single damaged objects mended (test_repair.py).
"""

import base64
import bz2
import gzip
import lzma
import os
import zlib
from datetime import timedelta
from itertools import permutations

import pytest

import hfflows
from hfflows import KeepNewest, keys
from hfflows.artifacts import (
    apply_collection,
    plan_collection,
    prune_artifacts,
    read_tree,
)
from hfflows.hub import repair_snapshot
from hfflows.identity import RunIdentity
from hfflows.storage import open_store
from hfflows.testing import Fault

REPO = "org/model"
FILES = {
    "config.json": b'{"v": 1}',
    "tokenizer.json": b"{}",
    "model.safetensors": os.urandom(1_500_000),
    "onnx/model.onnx": os.urandom(30_000),
}
NEWER = FILES | {"config.json": b'{"v": 2}', "model.safetensors": os.urandom(1_500_000)}
ME = RunIdentity("team", "flow", "train", "a", run="run-1")
SCOPES = ["checkpoint", "flow", "global"]


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


@pytest.fixture
def memory_store(store):
    """Let `ask` use a store on disk: what is deleted there is gone."""
    return store


@pytest.fixture
def files_of(store, tmp_path):
    """Return what loads all files of a reference but the one that every repo has."""

    def load(ref):
        path = hfflows.load_artifact(ref, tmp_path / f"loaded-{os.urandom(4).hex()}", store=store)
        return {
            file.relative_to(path).as_posix(): file.read_bytes()
            for file in path.rglob("*")
            if file.is_file() and file.name != ".gitattributes"
        }

    return load


def only(suffix, files=FILES, *, but=False):
    return {name: data for name, data in files.items() if name.endswith(suffix) is not but}


# What is asked for -------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("first", [0, 2, 3])
def test_revision_and_patterns_are_part_of_what_is_asked_for(ask, hub, files_of, scope, first):
    """The ancestor served whatever came first to every later call."""
    v1 = hub.publish(REPO, FILES)
    hub.publish(REPO, NEWER)
    asked = [
        ({"allow_patterns": ["*.json"]}, only(".json", NEWER)),
        ({}, NEWER),
        ({"ignore_patterns": ["*.json"]}, only(".json", NEWER, but=True)),
        ({"revision": v1}, FILES),
        ({"revision": v1, "allow_patterns": ["*.json"]}, only(".json")),
    ]
    for options, files in (*asked[first:], *asked[:first], *asked):
        result = ask(identity=ME, cache_scope=scope, **options)
        assert files_of(result.ref) == files
    for unknown in ("v9", "f" * 40):
        with pytest.raises(hfflows.RevisionNotFoundError, match="branches and tags"):
            ask(identity=ME, cache_scope=scope, revision=unknown, allow_patterns=["*.json"])


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("order", [*permutations(["allow_patterns", "ignore_patterns", None])])
def test_ignored_is_never_what_was_allowed(ask, hub, files_of, scope, order):
    commit = hub.publish(REPO, FILES)
    right = {
        "allow_patterns": only(".json"),
        "ignore_patterns": only(".json", but=True),
        None: FILES,
    }
    for name in (*order, *order):
        patterns = {name: ["*.json"]} if name else {}
        ref = ask(revision=commit, identity=ME, cache_scope=scope, **patterns).ref
        assert files_of(ref) == right[name]


def test_patterns_that_select_nothing_are_refused_from_the_store_too(ask, hub, store):
    commit = hub.publish(REPO, FILES)
    ask(revision=commit)
    hub.reset_counts()
    listed = hfflows.list_artifacts(store=store)

    with pytest.raises(hfflows.EntryNotFoundError, match=f"none of its {len(FILES) + 1} files"):
        ask(revision=commit, allow_patterns=["*.gguf"])
    assert hfflows.list_artifacts(store=store) == listed
    assert hub.requests == []


def test_no_revision_and_main_are_one_entry(ask, hub, store):
    hub.publish(REPO, FILES)
    first = ask()

    for name in ("main", None):
        again = ask(revision=name)
        assert (again.outcome, again.ref, again.revision) == ("hit", first.ref, "main")
        hub.reset_counts()
        assert ask(revision=name, max_age=3600).ref == first.ref
        assert hub.requests == []
    assert hfflows.list_artifacts(store=store) == [first.ref]
    assert len(list(store.list("revisions/"))) == 1


def test_what_is_kept_is_the_repo_and_nothing_of_the_client(ask, hub, store, tmp_path):
    hub.publish(REPO, FILES)
    refs = [ask().ref, ask(allow_patterns=["*.json"]).ref, ask(force_download=True).ref]

    for ref, files in zip(refs, (FILES, only(".json"), FILES), strict=True):
        own = {".gitattributes"} if len(files) == len(FILES) else set()
        tree = read_tree(ref, store=store)
        assert {file.path for file in tree.files} == files.keys() | own
        assert (tree.directories, tree.symlinks) == ((), ())
        path = hfflows.load_artifact(ref, tmp_path / keys.id_of(ref.key), store=store)
        loaded = {name.relative_to(path).as_posix() for name in path.rglob("*") if name.is_file()}
        assert loaded == files.keys() | own
    assert not [info.key for info in store.list("") if ".cache" in info.key]


# A forced refresh --------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("has_moved", [True, False])
def test_after_a_forced_refresh_this_run_and_later_runs_see_the_new_copy(
    ask, hub, files_of, scope, has_moved
):
    """The ancestor's older copy had the higher version, and won in every later run."""
    hub.publish(REPO, FILES)
    for _ in range(3):
        first = ask(identity=ME, cache_scope=scope, force_download=True)
    commit = hub.publish(REPO, NEWER) if has_moved else first.commit_hash

    forced = ask(identity=ME, cache_scope=scope, force_download=True)
    assert (forced.outcome, forced.commit_hash) == ("refreshed", commit)
    assert forced.ref.key != first.ref.key
    for run in ("run-1", "run-2"):
        me = RunIdentity(ME.namespace, ME.flow, ME.task, ME.item, run=run)
        for options in ({}, {"max_age": 3600}, {"revision": commit}, {"local_files_only": True}):
            later = ask(identity=me, cache_scope=scope, **options)
            assert later.ref == forced.ref
    assert files_of(forced.ref) == (NEWER if has_moved else FILES)


def test_a_forced_refresh_wins_though_its_machines_clock_is_behind(ask, hub, monkeypatch):
    commit = hub.publish(REPO, FILES)
    ask()
    an_hour_ago = keys.time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(keys.time, "time_ns", lambda: an_hour_ago)

    forced = ask(force_download=True)
    for options in ({}, {"revision": commit}):
        assert ask(**options).ref == forced.ref


def collect(store):
    """Keep the newest of everything and delete what nothing refers to, at once."""
    now = timedelta(0)
    prune_artifacts(KeepNewest(1), kind="snapshot", store=store)
    apply_collection(plan_collection(min_age=now, grace=now, store=store), store=store)


def stored(store):
    return {info.key: bytes(store.get(info.key)) for info in store.list("")}


@pytest.mark.parametrize("has_moved", [True, False])
def test_what_a_forced_refresh_superseded_is_collected(ask, hub, store, files_of, has_moved):
    hub.publish(REPO, FILES)
    old = ask().ref
    tree = read_tree(old, store=store)
    if has_moved:
        hub.publish(REPO, NEWER)
    new = ask(force_download=True)

    collect(store)
    left = stored(store)
    assert not {old.key, keys.tree(old.key)} & left.keys()
    assert {key for key in left if key.startswith("refs/")} == {new.ref.key}
    still_needed = {*read_tree(new.ref, store=store).object_keys()}
    assert {key for key in left if key.startswith("objects/")} == still_needed
    assert (set(tree.object_keys()) <= still_needed) is not has_moved
    gone = FILES["model.safetensors"][:1000]
    assert any(gone in data for data in left.values()) is not has_moved
    assert files_of(new.ref) == (NEWER if has_moved else FILES)
    hub.reset_counts()
    again = ask(max_age=3600)
    assert (again.outcome, again.ref, hub.requests) == ("hit", new.ref, [])
    with pytest.raises(hfflows.ArtifactNotFoundError):
        hfflows.load_artifact(old.key, store=store)


def test_bytes_that_another_snapshot_refers_to_stay(ask, hub, store, files_of):
    hub.publish(REPO, FILES)
    hub.publish("org/copy", FILES)
    ask()
    copy = ask("org/copy").ref
    hub.publish(REPO, {"config.json": b"{}"})
    ask(force_download=True)

    collect(store)
    assert files_of(copy) == FILES


# A download that fails ---------------------------------------------------------------------


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_nothing_of_a_failed_download_is_in_another_repos_snapshot(
    ask, hub, store, files_of, repo_type
):
    shards = {f"model-{n}.safetensors": os.urandom(1_200_000) for n in range(3)}
    other = {"rows.csv": b"1,2", "config.json": b'{"other": 1}'}
    hub.publish(REPO, FILES | shards)
    hub.publish("org/other", other, repo_type=repo_type)
    hub.inject(Fault(match="model-2", origin="cdn", status=503, times=None))

    with pytest.raises(hfflows.HubUnavailableError, match=r"org/model/model-2\.safetensors"):
        ask()
    ref = ask("org/other", repo_type=repo_type).ref
    assert files_of(ref) == other
    assert hfflows.list_artifacts(store=store) == [ref]
    hub.clear_faults()
    assert files_of(ask().ref) == FILES | shards


# A store that lost something ---------------------------------------------------------------


def missing(store, key, at):
    store.delete([key])


def cut_short(store, key, at):
    store.put(key, bytes(store.get(key))[:at])


def flipped(store, key, at):
    data = bytearray(store.get(key))
    data[at] ^= 1
    store.put(key, data)


@pytest.mark.parametrize("damage", [missing, cut_short, flipped])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("patterns", [None, ["*.json", "model.*"]])
def test_a_damaged_entry_is_refused_or_mended_and_never_short(
    ask, hub, store, files_of, tmp_path, damage, file, patterns
):
    """The ancestor loaded what was left of it, without a word."""

    def hit(ref):
        [segment] = next(f for f in read_tree(ref, store=store).files if f.path == file).segments
        damage(store, segment.key, segment.offset + segment.length - 1)
        return segment.key

    options = {"revision": hub.publish(REPO, FILES)}
    ask(**options)
    options["allow_patterns"] = patterns
    served = ask(**options).ref
    target, key = tmp_path / "target", hit(served)
    with pytest.raises(hfflows.IntegrityError, match=key) as caught:
        hfflows.load_artifact(served, target, store=store)
    assert file in str(caught.value) or damage is not flipped  # others share the object
    assert not target.exists()

    wanted = FILES if patterns is None else {k: v for k, v in FILES.items() if "onnx" not in k}
    repair_snapshot(served, endpoint=hub.endpoint, token=hub.token, store=store)
    assert files_of(ask(**options).ref) == wanted
    hit(served)
    assert files_of(ask(force_download=True, **options).ref) == wanted
    assert files_of(ask(**options).ref) == wanted


@pytest.mark.parametrize("damage", [missing, cut_short, flipped])
def test_an_entry_with_a_damaged_tree_is_refused_and_fetched_anew_on_demand(
    ask, hub, store, files_of, tmp_path, damage
):
    commit = hub.publish(REPO, FILES)
    ref = ask(revision=commit).ref
    damage(store, keys.tree(ref.key), 200)

    error = hfflows.ArtifactNotFoundError if damage is missing else hfflows.IntegrityError
    with pytest.raises(error, match=ref.key.removeprefix("refs/")):
        hfflows.load_artifact(ask(revision=commit).ref, tmp_path / "target", store=store)
    assert not (tmp_path / "target").exists()
    part = ask(revision=commit, allow_patterns=["*.json"])  # cannot be cut out of it
    assert (part.outcome, files_of(part.ref)) == ("refreshed", only(".json"))
    assert files_of(ask(revision=commit, force_download=True).ref) == FILES
    assert files_of(ask(revision=commit).ref) == FILES


@pytest.mark.parametrize("damage", [missing, cut_short, flipped])
@pytest.mark.parametrize("patterns", [None, ["*.json"]])
def test_an_entry_with_a_damaged_reference_is_as_good_as_none(
    ask, hub, store, files_of, damage, patterns, caplog
):
    commit = hub.publish(REPO, FILES)
    ref = ask(revision=commit).ref
    damage(store, ref.key, 200)

    again = ask(revision=commit, allow_patterns=patterns)
    assert again.outcome == ("miss" if damage is missing else "refreshed")
    assert (f"{ref.key} is" in caplog.text) is (damage is not missing)
    assert files_of(again.ref) == (only(".json") if patterns else FILES)
    hub.reset_counts()
    assert ask(revision=commit, allow_patterns=patterns).ref == again.ref
    assert hub.requests == []


# The token ---------------------------------------------------------------------------------


def unpacked(data):
    """Yield the bytes, and what they are the compressed form of, as far as that goes."""
    yield data
    for decompress in (gzip.decompress, zlib.decompress, bz2.decompress, lzma.decompress):
        try:
            inner = decompress(data)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError):
            continue
        yield from unpacked(inner)


def holders_of(store, secret):
    """Return the keys under which the secret lies: plain, in hex or base64, or compressed."""
    encoded = base64.b64encode(secret.encode()).rstrip(b"=")
    forms = {secret.encode(), secret.encode().hex().encode(), encoded, encoded[2:-2]}
    return [
        key
        for key, data in stored(store).items()
        if secret in key or any(form in part for part in unpacked(data) for form in forms)
    ]


def test_a_secret_in_a_store_would_be_found(store):
    secret = "hf_" + os.urandom(17).hex()
    text = f"xx{secret}xx".encode()
    forms = [text, text.hex().encode(), base64.b64encode(secret.encode()), gzip.compress(text)]
    for number, data in enumerate((*forms, lzma.compress(gzip.compress(text)))):
        store.put(f"objects/{number}", data)
    store.put("objects/innocent", os.urandom(100))
    store.put(f"refs/{secret}", b"")

    assert len(holders_of(store, secret)) == 6


def test_the_token_is_nowhere_in_the_store(ask, hub, store, monkeypatch):
    """The ancestor wrote the arguments of `load=` into its metadata, this one among them."""
    hub.publish("org/secret", FILES, private=True)
    for scope in SCOPES:
        me = {"identity": ME, "cache_scope": scope}
        ask("org/secret", **me)
        ask("org/secret", allow_patterns=["*.json"], **me)
        hub.publish("org/secret", NEWER if scope == "flow" else FILES, private=True)
        ask("org/secret", max_age=0, **me)
        ask("org/secret", force_download=True, headers={"X-Key": hub.token}, **me)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    ask("org/secret", token=None, revision="main", identity=None)
    hub.inject(Fault(match="/resolve/", status=503, times=None))
    with pytest.raises(hfflows.HubError):
        ask("org/secret", force_download=True)
    hub.down()
    assert ask("org/secret").outcome == "stale"

    assert stored(store)
    assert holders_of(store, hub.token) == []


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("scope", [None, *SCOPES])
def test_four_cold_mapped_items_make_one_download_and_keep_no_token(
    local_hub, store, monkeypatch, scope
):
    """The ancestor made four downloads and four copies, and kept the token in clear."""
    from prefect import flow, task
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
    from prefect.runtime import flow_run

    from hfflows.tasks import current, huggingface_hub

    commit = local_hub.publish("org/secret", FILES, private=True)
    arguments = {
        "repo_id": "org/secret",
        "endpoint": local_hub.endpoint,
        "token": local_hub.token,
    }

    @task
    @huggingface_hub(load=[arguments], cache_scope=scope, store=store)
    def use(item):
        path = current.huggingface_hub.loaded["org/secret"]
        weights = (path / "model.safetensors").read_bytes()
        return current.huggingface_hub.info["org/secret"].key, weights == FILES["model.safetensors"]

    @flow(name="a-flow")
    def fan_out():
        return str(flow_run.id), [future.result() for future in use.map(range(4))]

    run_id, found = fan_out()
    assert {is_right for _key, is_right in found} == {True}
    [key] = {key for key, _is_right in found}
    assert f"/{commit}/" in key
    assert local_hub.bytes_sent <= 1.02 * sum(map(len, FILES.values())) + 20_000  # documents
    assert local_hub.count("/resolve/.*safetensors") == 1
    assert holders_of(store, local_hub.token) == []
    with get_client(sync_client=True) as client:
        shown = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    assert shown
    assert not any(local_hub.token in str(artifact.data) for artifact in shown)


# Who sees what -----------------------------------------------------------------------------

OTHERS = {
    "the same": ({}, "checkpoint flow global"),
    "another run": ({"run": "run-2"}, "checkpoint flow global"),
    "another attempt": ({"attempt": "002"}, "checkpoint flow global"),
    "another item": ({"item": "b"}, "flow global"),
    "no item": ({"item": ""}, "flow global"),
    "another task": ({"task": "train2"}, "flow global"),
    "another namespace": ({"namespace": "team2"}, "flow global"),
    "another flow": ({"flow": "flow2"}, "global"),
    "another in all": ({"namespace": "n", "flow": "f", "task": "t"}, "global"),
    # Names that would be the same key if they were joined as they are:
    "a slash moved": ({"flow": "flow/train", "task": "a", "item": ""}, "global"),
    "a slash in the namespace": ({"namespace": "team/flow", "flow": "train"}, "global"),
    "dots": ({"flow": "..", "task": "flow"}, "global"),
    "quoted": ({"item": "=61"}, "flow global"),
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("who", OTHERS)
def test_an_entry_is_served_to_those_of_its_scope_alone(ask, hub, scope, who):
    commit = hub.publish(REPO, FILES)
    changes, sees = OTHERS[who]
    own = {name: getattr(ME, name) for name in ME.__dataclass_fields__}
    mine = {"identity": ME, "cache_scope": scope}
    theirs = {"identity": RunIdentity(**own | changes), "cache_scope": scope}
    ref = ask(**mine).ref
    hub.reset_counts()

    for options in ({"revision": commit}, {"max_age": 3600}, {"allow_patterns": ["*.json"]}):
        if scope in sees.split():
            result = ask(**theirs, local_files_only=True, **options)
            assert result.commit_hash == commit
            assert result.ref == ref or "allow_patterns" in options
        else:
            with pytest.raises(hfflows.ArtifactNotFoundError, match="local_files_only"):
                ask(**theirs, local_files_only=True, **options)
    assert hub.requests == []
    if scope not in sees.split():
        assert ask(**theirs).outcome == "miss"
        assert ask(**mine).ref == ref


@pytest.mark.parametrize("saved_under", SCOPES)
@pytest.mark.parametrize("asked_under", SCOPES)
def test_an_entry_is_not_served_under_another_scope(ask, hub, saved_under, asked_under):
    commit = hub.publish(REPO, FILES)
    ask(identity=ME, cache_scope=saved_under)
    hub.reset_counts()

    result = ask(revision=commit, identity=ME, cache_scope=asked_under)
    assert result.outcome == ("hit" if saved_under == asked_under else "miss")
    assert hub.count(r"safetensors") == 0  # bytes are shared underneath in any case
    assert (hub.requests == []) == (saved_under == asked_under)


def test_without_a_scope_it_is_the_checkpoints_in_a_run_and_everybodys_outside(ask, hub):
    hub.publish(REPO, FILES)

    assert ask(identity=ME).ref == ask(identity=ME, cache_scope="checkpoint").ref
    assert ask().ref == ask(cache_scope="global").ref
    assert ask().ref.key != ask(identity=ME).ref.key
    for scope in ("checkpoint", "flow"):
        with pytest.raises(hfflows.SettingsError, match="needs a run"):
            ask(cache_scope=scope)
