import inspect
import json
import logging
import os
import time
from itertools import accumulate

import huggingface_hub
import pytest

import hfflows
from hfflows.artifacts import TransferReport
from hfflows.artifacts import _pipeline as pipeline
from hfflows.hub import _client as client_module
from hfflows.hub import _options as options_module
from hfflows.hub import (
    fetch_snapshot,
    inspect_snapshot,
    load_snapshot,
    push_to_hub,
    repair_snapshot,
    snapshot_download,
)
from hfflows.identity import RunIdentity
from hfflows.storage import open_store
from hfflows.testing import Fault, LocalHub
from hfflows.testing._http import Response

WEIGHTS = os.urandom(3_000_000)
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "onnx/model.onnx": os.urandom(40_000),
    "empty.txt": b"",
}
REPO = "org/model"


@pytest.fixture
def commit(hub):
    return hub.publish(REPO, FILES)


def nothing_saved(store):
    return not list(store.list("refs/"))


def test_a_repo_is_copied_whole_with_its_subfolders(ask, commit, memory_store, tmp_path):
    result = ask()
    path = hfflows.load_artifact(result.ref, tmp_path / "m", store=memory_store)

    assert (result.outcome, result.commit_hash) == ("miss", commit)
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    assert (path / ".gitattributes").exists()
    assert result.ref.metadata["commit_hash"] == commit
    assert result.ref.metadata["revision"] == "main"


@pytest.mark.parametrize("repo_type", ["model", "dataset", "space"])
def test_every_repo_type_is_copied(ask, hub, memory_store, repo_type, tmp_path):
    hub.publish("org/thing", {"a.txt": b"a", "b.bin": WEIGHTS}, repo_type=repo_type)

    ref = ask("org/thing", repo_type=repo_type).ref
    assert (hfflows.load_artifact(ref, tmp_path / "x", store=memory_store) / "a.txt").read_bytes()


def test_a_cached_commit_costs_no_hub_request_and_two_of_the_store(ask, hub, commit, local_s3):
    store = open_store(local_s3.url(os.urandom(4).hex()), **local_s3.options())
    first = ask(revision=commit, store=store)
    hub.reset_counts()
    before = local_s3.requests()
    second = ask(revision=commit, store=store)
    after = local_s3.requests()

    assert second.outcome == "hit"
    assert second.ref == first.ref
    assert hub.requests == []
    assert sum(after.values()) - sum(before.values()) <= 2
    assert second.report.bytes_sent == 0


def test_a_cached_branch_costs_one_request_and_none_within_max_age(ask, hub, commit):
    ask()
    hub.reset_counts()
    assert ask().outcome == "hit"
    assert len(hub.requests) == 1

    hub.reset_counts()
    assert ask(max_age=3600).outcome == "hit"
    assert hub.requests == []


def test_max_age_runs_out(ask, hub, commit):
    ask()
    moved = hub.publish(REPO, {"config.json": b"{}"})

    assert ask(max_age=3600).commit_hash == commit
    time.sleep(0.05)
    again = ask(max_age=0.01)
    assert (again.commit_hash, again.outcome) == (moved, "refreshed")


def test_a_branch_that_moved_is_never_served_stale(ask, hub, commit):
    ask()
    moved = hub.publish(REPO, FILES | {"config.json": b'{"new": 1}'})

    result = ask()
    assert (result.outcome, result.commit_hash) == ("refreshed", moved)
    assert ask(revision=commit).outcome == "hit"


def test_content_the_store_has_is_not_downloaded_again(ask, hub, commit):
    ask()
    hub.publish("other/copy", {"weights.safetensors": WEIGHTS, "new.json": b"[]"})
    hub.reset_counts()

    result = ask("other/copy")
    assert result.outcome == "miss"
    assert hub.bytes_sent < 10_000
    assert result.report.bytes_sent < 10_000


def test_the_hub_being_down_serves_the_last_commit_and_says_so(ask, hub, commit, caplog):
    ask()
    hub.down()

    result = ask()
    assert (result.outcome, result.commit_hash) == ("stale", commit)
    assert "last known commit" in caplog.text
    with pytest.raises(hfflows.HubUnavailableError, match="cannot be reached"):
        ask(stale_if_error=False)
    with pytest.raises(hfflows.HubUnavailableError):
        ask(force_download=True)
    with pytest.raises(hfflows.HubUnavailableError):
        ask(allow_patterns=["*.json"], revision="v1")


def test_patterns_move_only_what_they_select(ask, hub, commit, memory_store, tmp_path):
    result = ask(allow_patterns=["*.json"], ignore_patterns="tok*")

    path = hfflows.load_artifact(result.ref, tmp_path / "m", store=memory_store)
    assert [file.name for file in path.iterdir()] == ["config.json"]
    assert hub.count(r"safetensors") == 0


def test_a_subset_is_served_from_a_fuller_snapshot(ask, hub, commit, memory_store, tmp_path):
    ask(revision=commit)
    hub.reset_counts()

    part = ask(revision=commit, allow_patterns=["*.json"])
    narrower = ask(revision=commit, allow_patterns="*.json", ignore_patterns=["tok*"])
    assert (part.outcome, narrower.outcome) == ("hit", "hit")
    assert hub.requests == []
    path = hfflows.load_artifact(part.ref, tmp_path / "m", store=memory_store)
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "tokenizer.json"]
    assert ask(revision=commit, allow_patterns=["*.json"]).ref == part.ref


def test_a_fuller_request_is_not_served_from_a_subset(ask, commit):
    ask(revision=commit, allow_patterns=["*.json"])

    result = ask(revision=commit)
    assert result.outcome == "refreshed"
    assert result.ref.file_count == len(FILES) + 1


def test_patterns_that_select_nothing_are_an_error(ask, commit, memory_store):
    with pytest.raises(hfflows.EntryNotFoundError, match="none of its 6 files"):
        ask(allow_patterns=["*.gguf"])
    assert nothing_saved(memory_store)


def test_an_entry_is_seen_by_its_scope_only(ask, hub, commit):
    def me(flow, task):
        return RunIdentity("team", flow, task)

    ask(revision=commit, identity=me("f", "a"))
    assert ask(revision=commit, identity=me("f", "a")).outcome == "hit"
    hub.reset_counts()
    assert ask(revision=commit, identity=me("f", "b")).outcome == "miss"
    assert hub.count("safetensors") == 0  # bytes are shared underneath

    ask(revision=commit, identity=me("f", "a"), cache_scope="flow")
    assert ask(revision=commit, identity=me("f", "b"), cache_scope="flow").outcome == "hit"
    assert ask(revision=commit, identity=me("g", "b"), cache_scope="flow").outcome == "miss"

    ask(revision=commit, cache_scope="global")
    assert ask(revision=commit, identity=me("x", "y"), cache_scope="global").outcome == "hit"


def test_force_download_replaces_what_readers_see_and_mends_it(ask, hub, commit, memory_store):
    first = ask(revision=commit)
    broken = next(info.key for info in memory_store.list("objects/"))
    memory_store.put(broken, bytes(next(memory_store.list("objects/")).size_bytes))

    second = ask(revision=commit, force_download=True)
    assert second.outcome == "refreshed"
    assert ask(revision=commit).ref == second.ref != first.ref
    hfflows.verify_artifact(second.ref, store=memory_store)


# Faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault(match="safetensors", origin="cdn", cut_after=1_000_000),
        Fault(match="safetensors", origin="cdn", cut_after=1_000_000, how="reset"),
        Fault(match="safetensors", origin="cdn", hang_up=True, times=2),
        Fault(match="safetensors", origin="cdn", status=503, times=2),
        Fault(match="safetensors", origin="cdn", status=403),
        Fault(match="resolve", status=500, times=2),
        Fault(match="resolve", status=429, retry_after=1),
        Fault(match="revision", status=503, times=2),
        Fault(match="revision", status=429, rate_limit='"api";r=0;t=1'),
        Fault(match="tree", hang_up=True),
        Fault(match="config.json", flip_at=3),
        Fault(match="safetensors", origin="cdn", flip_at=70_000),
    ],
    ids=lambda fault: repr(fault)[6:60],
)
def test_a_passing_fault_is_survived_with_the_right_bytes(
    ask, hub, commit, memory_store, fault, tmp_path
):
    hub.inject(fault)

    path = hfflows.load_artifact(ask().ref, tmp_path / "m", store=memory_store)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_cut_body_is_continued_where_it_ended(ask, hub, commit):
    hub.inject(Fault(match="safetensors", origin="cdn", cut_after=2_000_000))
    hub.reset_counts()
    ask()

    assert hub.bytes_sent < len(WEIGHTS) + 1_000_000


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(match="resolve", status=503, times=None), hfflows.HubUnavailableError),
        (
            Fault(match="safetensors", origin="cdn", status=404, times=None),
            hfflows.HubUnavailableError,
        ),
        (Fault(match="revision", status=429, retry_after=900), hfflows.HubUnavailableError),
        (Fault(match="safetensors", origin="cdn", flip_at=5, times=None), hfflows.IntegrityError),
        (Fault(match="config.json", flip_at=5, times=None), hfflows.IntegrityError),
    ],
    ids=["503", "cdn-404", "429-for-long", "flipped-lfs", "flipped-git"],
)
def test_a_lasting_fault_is_one_typed_error_and_nothing_is_visible(
    ask, hub, commit, memory_store, fault, error
):
    hub.inject(fault)

    began = time.monotonic()
    with pytest.raises(error, match="org/model"):
        ask()
    assert time.monotonic() - began < 5
    assert nothing_saved(memory_store)
    hub.clear_faults()
    assert ask().outcome == "miss"


# Access ------------------------------------------------------------------------------------


def test_what_does_not_exist_says_what_to_check(ask, commit, memory_store):
    with pytest.raises(hfflows.RepoNotFoundError, match=r"org/none.*Check the name"):
        ask("org/none")
    with pytest.raises(hfflows.RevisionNotFoundError, match="no revision 'v9'"):
        ask(revision="v9")
    with pytest.raises(hfflows.RevisionNotFoundError):
        ask(revision="f" * 40)
    assert nothing_saved(memory_store)


def test_a_gated_repo_needs_its_terms_accepted(ask, hub, commit, memory_store):
    hub.gate(REPO)
    stranger = hub.add_token("stranger")
    guest = hub.add_token("guest", gated_access=[REPO])

    for token in (stranger, ""):
        with pytest.raises(hfflows.GatedRepoError, match=f"accept its terms at .*{REPO}") as caught:
            ask(token=token)
        assert "hf_" not in str(caught.value)
    assert hub.count("resolve") == 0  # refused before anything large
    assert nothing_saved(memory_store)
    assert ask(token=guest).outcome == "miss"


def test_a_private_repo_looks_missing_and_a_token_opens_it(ask, hub, memory_store):
    hub.publish("org/secret", FILES, private=True)

    with pytest.raises(hfflows.RepoNotFoundError, match="private"):
        ask("org/secret", token=hub.add_token("stranger"))
    assert ask("org/secret").outcome == "miss"


def test_a_wrong_token_says_so(ask, commit):
    with pytest.raises((hfflows.HubAccessError, hfflows.RepoNotFoundError)) as caught:
        ask(token="hf_wrongwrongwrong")
    assert "hf_wrong" not in str(caught.value)


def test_a_disabled_repo_says_so(ask, hub, commit):
    hub.disable(REPO)

    with pytest.raises(hfflows.HubError, match="disabled"):
        ask()


def test_the_token_reaches_the_hub_only_and_no_document(ask, hub, commit, memory_store):
    ask()

    assert hub.leaked_tokens == []
    assert any(request.has_token for request in hub.requests)
    for info in memory_store.list(""):
        assert hub.token.encode() not in bytes(memory_store.get(info.key))


@pytest.mark.parametrize(
    "options",
    [
        {"repo_id": "a/b/c"},
        {"repo_id": "../x"},
        {"repo_type": "modle"},
        {"cache_scope": "team"},
        {"cache_scope": "flow"},
        {"max_age": -1},
        {"max_age": float("nan")},
        {"max_workers": 0},
        {"etag_timeout": 0},
        {"repo_type": "kernel"},
        {"force_download": True, "local_files_only": True},
        {"cache_dir": "/tmp/x"},
        {"local_dir": "/tmp/x"},
        {"tqdm_class": object},
    ],
)
def test_bad_input_is_refused_before_any_request(ask, hub, commit, options):
    hub.reset_counts()
    with pytest.raises(hfflows.SettingsError):
        ask(**options)
    assert hub.requests == []


def test_a_file_name_that_would_leave_its_tree_is_refused(ask, hub, memory_store):
    hub.publish("org/bad", {"CON.txt": b"x", "a.txt": b"y"})

    with pytest.raises(hfflows.UnsafePathError):
        ask("org/bad")
    assert nothing_saved(memory_store)


def test_the_token_that_is_needed_is_named(ask, hub, commit):
    hub.gate(REPO)
    hub.publish("org/secret", FILES, private=True)

    for repo_id, advice in ((REPO, "account that accepted"), ("org/secret", "of its organization")):
        with pytest.raises(hfflows.HubError, match=advice) as caught:
            ask(repo_id, token=False)
        assert "No token was sent. Pass token=" in str(caught.value)
        with pytest.raises(hfflows.HubError, match=advice) as caught:
            ask(repo_id, token=hub.add_token("stranger"))
        assert "The token that was sent is not of such an account" in str(caught.value)


# The client's own parameters -----------------------------------------------------------------


class ListeningHub(LocalHub):
    """Keeps each request's headers and when it was served; answers as told."""

    def __init__(self):
        super().__init__()
        self.heard = {"hub": [], "cdn": []}
        self.served = []
        self.body = None

    def _handle_hub(self, request):
        self._listen("hub", request)
        if self.body is None:
            return super()._handle_hub(request)
        return Response(200, {"Content-Type": "application/json"}, self.body)

    def _handle_cdn(self, request):
        self._listen("cdn", request)
        began = time.monotonic()
        time.sleep(0.02)
        self.served += [(began, 1), (time.monotonic(), -1)]
        return super()._handle_cdn(request)

    def _listen(self, origin, request):
        self.heard[origin].append({name.lower(): value for name, value in request.headers.items()})


@pytest.fixture
def listening(no_waits):
    with ListeningHub() as hub:
        hub.publish(REPO, FILES)
        yield hub


@pytest.fixture
def tell(listening, memory_store):
    def fetch(repo_id=REPO, **options):
        settings = {"endpoint": listening.endpoint, "token": listening.token}
        return fetch_snapshot(repo_id, store=memory_store, **(settings | options))

    return fetch


def test_all_that_the_client_takes_is_taken_but_where_it_writes():
    theirs = {*inspect.signature(huggingface_hub.snapshot_download).parameters}
    # 1.0 took them away: proxies are in the environment, and nothing else resumes or not.
    theirs -= {"proxies", "resume_download", "local_dir_use_symlinks"}

    assert theirs <= {*inspect.signature(snapshot_download).parameters}
    for function in (fetch_snapshot, inspect_snapshot, load_snapshot):
        assert theirs - {"dry_run"} <= {*inspect.signature(function).parameters}
    listed = {*options_module.SnapshotOptions.__annotations__, "repo_id"}
    assert listed == {*options_module.SnapshotRequest.__dataclass_fields__}


@pytest.mark.parametrize("name", ["cache_dir", "local_dir", "tqdm_class"])
def test_where_the_client_writes_to_has_no_meaning_and_says_why(ask, commit, name):
    with pytest.raises(hfflows.SettingsError, match=rf"{name}= has no meaning.*(store|report=)"):
        ask(**{name: "/tmp/x"})


def test_an_option_that_does_not_exist_is_a_type_error(ask, commit):
    with pytest.raises(TypeError, match="allow_pattern"):
        ask(allow_pattern="*.json")


def test_who_asks_is_said_and_own_headers_stay_at_the_hub(tell, listening, memory_store, caplog):
    caplog.set_level(logging.DEBUG)
    tell(
        library_name="my-trainer",
        library_version="7.1",
        user_agent={"team": "nlp"},
        headers={"X-Proxy-Key": "s3cret"},
    )

    assert listening.heard["hub"]
    for headers in listening.heard["hub"]:
        assert headers["user-agent"].startswith("my-trainer/7.1; ")
        assert f"hfflows/{hfflows.__version__}" in headers["user-agent"]
        assert "team/nlp" in headers["user-agent"]
        assert headers["x-proxy-key"] == "s3cret"
    assert listening.heard["cdn"]
    for headers in listening.heard["cdn"]:
        assert not {"x-proxy-key", "authorization"} & headers.keys()
    assert "s3cret" not in caplog.text
    for info in memory_store.list(""):
        assert b"s3cret" not in bytes(memory_store.get(info.key))


def test_own_headers_do_not_follow_a_redirect_of_the_api(tell, listening):
    """The HTTP client by itself would take them along to another origin."""
    with ListeningHub() as elsewhere:
        elsewhere.body = json.dumps({"sha": listening.publish(REPO, FILES)}).encode()
        there = {"Location": f"{elsewhere.endpoint}/moved"}
        listening.inject(Fault(match="revision/main", status=307, headers=there))
        tell(headers={"X-Proxy-Key": "s3cret"})

    [headers] = elsewhere.heard["hub"]
    assert not {"x-proxy-key", "authorization"} & headers.keys()


def test_hfflows_names_itself_and_an_own_header_wins(tell, listening):
    tell(token="hf_wrong", headers={"Authorization": f"Bearer {listening.token}"})
    listening.heard["hub"].clear()
    tell(user_agent="extra/1")

    agents = {headers["user-agent"] for headers in listening.heard["hub"]}
    assert all(agent.startswith(f"hfflows/{hfflows.__version__}; ") for agent in agents)
    assert all("extra/1" in agent for agent in agents)


def test_the_token_may_be_insisted_on_or_forbidden(ask, hub, commit, monkeypatch):
    hub.publish("org/secret", {"a": b"a"}, private=True)
    with pytest.raises(hfflows.HubAccessError, match=r"token=True.*it has none"):
        ask("org/secret", token=True)

    monkeypatch.setenv("HF_TOKEN", hub.token)
    for token in (True, None):
        assert ask("org/secret", token=token, force_download=True).ref
    with pytest.raises(hfflows.RepoNotFoundError):
        ask("org/secret", token=False)
    monkeypatch.setattr(client_module.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    with pytest.raises(hfflows.RepoNotFoundError):
        ask("org/secret", token=None)


def test_an_answer_that_does_not_come_is_given_up_after_etag_timeout(ask, hub, commit):
    hub.inject(Fault(match="revision", stall_seconds=5, times=None))

    began = time.monotonic()
    with pytest.raises(hfflows.HubUnavailableError, match="cannot be reached"):
        ask(etag_timeout=0.1)
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(("workers", "at_once"), [(1, {1}), (2, {2}), (8, {3, 4})])
def test_max_workers_bounds_the_requests_at_once(tell, listening, workers, at_once, monkeypatch):
    monkeypatch.setattr(pipeline, "LEAST_IN_FLIGHT", pipeline.READS_AHEAD)  # though it is small
    listening.publish("org/many", {f"{n}.onnx": os.urandom(1_000_001) for n in range(12)})
    tell("org/many", max_workers=workers)

    running = [change for _when, change in sorted(listening.served)]
    assert max(accumulate(running)) in at_once


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"sha": "../../x"}', b'{"sha": null}'])
def test_a_hub_that_is_none_is_a_clear_error(tell, listening, body):
    listening.body = body

    with pytest.raises(hfflows.HubError, match=r"org/model: .* no Hub does"):
        tell()


def test_an_answer_that_is_no_json_is_a_passing_fault(tell, listening):
    listening.body = b"<html>proxy</html>"

    with pytest.raises(hfflows.HubUnavailableError, match=r"org/model.*not JSON"):
        tell()


# Without the Hub ---------------------------------------------------------------------------


@pytest.fixture(
    params=["argument", "HFFLOWS_HUB_OFFLINE", "HF_HUB_OFFLINE", "HF_HUB_OFFLINE, set late"]
)
def ask_offline(request, ask, hub, monkeypatch):
    def fetch(*arguments, **options):
        if request.param == "argument":
            return ask(*arguments, local_files_only=True, **options)
        with monkeypatch.context() as patch:
            if request.param == "HF_HUB_OFFLINE":
                patch.setattr(client_module.constants, "HF_HUB_OFFLINE", True)
            else:
                patch.setenv(request.param.partition(",")[0], "1")
            return ask(*arguments, **options)

    return fetch


def test_offline_the_store_serves_what_it_has(ask, ask_offline, hub, commit):
    ask()
    hub.reset_counts()

    assert ask_offline(revision=commit).outcome == "hit"
    assert ask_offline(max_age=3600).outcome == "hit"
    assert ask_offline(revision=commit, allow_patterns=["*.json"]).outcome == "hit"
    assert hub.requests == []


def test_offline_a_branch_is_what_it_was_and_that_is_said(ask, ask_offline, hub, commit, caplog):
    ask()
    hub.publish(REPO, {"config.json": b"{}"})

    result = ask_offline()
    assert (result.outcome, result.commit_hash) == ("stale", commit)
    assert "forbids asking the Hub" in caplog.text
    with pytest.raises(hfflows.ArtifactNotFoundError):
        ask_offline(stale_if_error=False)


def test_offline_what_the_store_lacks_is_a_lasting_error(ask, ask_offline, hub, commit):
    ask(allow_patterns=["*.json"])
    hub.reset_counts()

    for options in ({}, {"revision": commit}, {"revision": "v1"}, {"revision": "f" * 40}):
        began = time.monotonic()
        with pytest.raises(hfflows.ArtifactNotFoundError, match=r"org/model.*forbids") as caught:
            ask_offline(**options)
        assert not caught.value.transient
        assert time.monotonic() - began < 0.5  # nothing is waited for
    with pytest.raises(hfflows.SettingsError, match="force_download"):
        ask_offline(force_download=True)
    assert hub.requests == []


def test_enforced_no_call_reaches_the_hub(ask, hub, commit, options, memory_store, monkeypatch):
    ref = ask().ref
    memory_store.delete([info.key for info in memory_store.list("objects/")])
    hub.reset_counts()
    monkeypatch.setenv("HFFLOWS_HUB_OFFLINE", "true")

    with pytest.raises(hfflows.SettingsError, match="HFFLOWS_HUB_OFFLINE forbids") as caught:
        repair_snapshot(ref, **options)
    assert not caught.value.transient
    with pytest.raises(hfflows.SettingsError, match="HFFLOWS_HUB_OFFLINE forbids"):
        push_to_hub(ref, "org/new", **options)
    with pytest.raises(hfflows.ArtifactNotFoundError):
        inspect_snapshot("org/other", **options)
    assert hub.requests == []


# Loading -----------------------------------------------------------------------------------


def test_load_snapshot_cleans_up_unless_given_a_path(commit, options, tmp_path):
    with load_snapshot(REPO, **options) as path:
        assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert not path.exists()

    with load_snapshot(REPO, path=tmp_path / "kept", **options) as path:
        assert path == tmp_path / "kept"
    assert (path / "config.json").exists()


def test_memory_stays_bounded_by_reading_in_ranges(hub, options, tmp_path):
    blob = tmp_path / "big"
    blob.mkdir()
    with (blob / "model.safetensors").open("wb") as file:
        for _ in range(20):
            file.write(os.urandom(4_000_000))
    hub.publish("org/big", blob)
    report = TransferReport()
    ref = fetch_snapshot("org/big", report=report, **options).ref

    assert ref.size_bytes > 80_000_000
    assert report.bytes_read >= 80_000_000
    ranges = [request.range for request in hub.requests if request.origin == "cdn"]
    assert len(ranges) == 5  # 16 MiB each
    assert hub.count("resolve/.*safetensors") <= 4  # the signed URL is used again


def test_snapshot_download_returns_the_reference(commit, options):
    ref = snapshot_download(REPO, revision=commit, **options)
    assert (ref.kind, ref.name) == ("snapshot", REPO)
