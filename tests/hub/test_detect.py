import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from hypothesis import example, given
from hypothesis import strategies as st

import hfflows
from hfflows.errors import ArtifactNotFoundError, SettingsError
from hfflows.hub import _client as client_module
from hfflows.hub import snapshot_download
from hfflows.hub._detect import detect_model_source
from hfflows.hub._detect_local import MAX_READ_BYTES, read_source
from hfflows.hub._detect_names import HubName, Rejected, parse_hub_id, parse_source
from hfflows.testing import Fault

REPO = "org/model"
HOME = "https://huggingface.co"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40
FILES = {"config.json": '{"model_type": "bert"}', "tokenizer.json": "{}"}


@pytest.fixture
def hub(hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # what lies in the checkout must not be taken for a source
    return hub


@pytest.fixture
def commit(hub):
    return hub.publish(REPO, FILES)


@pytest.fixture
def detect(hub, options):
    def ask(source, **given):
        return detect_model_source(source, **(options | given))

    return ask


@pytest.fixture
def read(monkeypatch, tmp_path):
    """Return what a source is by itself; a request would go to nobody and take no time."""
    monkeypatch.chdir(tmp_path)
    return lambda source, **options: detect_model_source(source, verify=False, **options)


def directory(path, **files):
    path.mkdir(parents=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name.replace("__", ".")).write_text(text)
    return path


def loaded(**config):
    return SimpleNamespace(config=SimpleNamespace(**config))


# Ids --------------------------------------------------------------------------------------

VALID_IDS = [
    "gpt2",
    "org/model",
    "google/flan-t5-xl",
    "Qwen/Qwen2.5-0.5B_Instruct",
    "org/model@main",
    "org/model@v1.0",
    "gpt2@refs/pr/12",
    "org/model@refs/convert/parquet",
    "org/model@feature/new-head",
    "org/model@release@2",
    f"org/model@{COMMIT}",
    "org/model@0123456",
    "org/model@größe",
]


@pytest.mark.parametrize("text", VALID_IDS)
def test_an_id_is_read_and_spelled_back(read, text):
    repo_id, _, revision = text.partition("@")
    source = read(text)

    assert (source.kind, source.repo_id, source.revision) == ("hub", repo_id, revision or None)
    assert source.commit_hash == (COMMIT if revision == COMMIT else None)
    assert (source.detected_from, source.verification) == ("argument", "unverified")
    assert str(parse_hub_id(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "hello world",
            "-x",
            "x-",
            ".hidden",
            "org/",
            "//no",
            "org//model",
            "org/model/",
        ),
        *("org/model@", "@main", "org@/model", "a/b/c", "org--model", "org/a..b", "org/x.git"),
        *("x" * 200, "org/größe", "org/model\n", "org/model\x00", "my model.onnx", "model.onnx"),
        *("org/model@a b", "org/model@a..b", "org/model@-x", "org/model@x.lock", "org/model@x/"),
        *("org/model@a~1", "org/model@a^", "org/model@a:b", "org/model@@{1}", "org/model@\udc80"),
        *("./missing", "../missing", "/no/such/path", "~/no-such-path", "~nobody-here/x"),
        *("C:\\models\\bert", "D:/models/bert", "\\\\server\\share", "org\\model", ".\\x"),
        *("datasets/squad", "models/bert", "spaces/demo", "datasets/org/name"),
        *("s3://bucket/org/model", "hf://org/model", "file:///etc", "http://[", "://"),
    ],
)
def test_what_names_nothing_is_invalid_and_says_why(read, text):
    source = read(text)
    assert (source.kind, source.repo_id, source.path) == ("invalid", None, None)
    assert source.verification == "unverified"
    assert source.reason


@pytest.mark.parametrize("source", [3, b"org/model", None, ["org/model"], object(), {"a": 1}])
def test_another_type_is_a_wrong_call(read, source):
    with pytest.raises(SettingsError):
        read(source)


def test_a_path_of_bytes_is_a_wrong_call(read):
    class Raw(os.PathLike):
        def __fspath__(self):
            return b"org/model"

    with pytest.raises(SettingsError, match="fsdecode"):
        read(Raw())


@given(st.text() | st.from_regex(r"[a-z./:@\\~-]{0,12}(--|snapshots|://)?[a-z0-9./@-]{0,60}"))
@example("http://[::1")
@example("https://huggingface.co:port/org/model")
@example("\ud800")
@example("models--a--b/snapshots/" + COMMIT)
def test_no_text_makes_parsing_raise(text):
    assert isinstance(parse_source(text, endpoint=HOME), HubName | Rejected)
    assert read_source(text, HOME, None).kind in {"hub", "local", "local-compatible", "invalid"}


PART = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,20}[A-Za-z0-9])?", fullmatch=True)
REVISION = st.from_regex(r"[A-Za-z0-9](([/@+=.-]|%2F)?[A-Za-z0-9]){0,20}", fullmatch=True)


@given(PART, PART, st.none() | REVISION | st.just("refs/pr/7") | st.just(COMMIT))
def test_formatting_a_parsed_id_gives_it_back(namespace, name, revision):
    text = f"{namespace}/{name}" + ("" if revision is None else f"@{revision}")
    parsed = parse_hub_id(text)
    if isinstance(parsed, Rejected):  # only for what the Hub itself refuses
        hostile = ("--", "..", ".git", ".lock")
        assert any(part in text for part in hostile) or namespace in {"models", "datasets"}
    else:
        assert str(parsed) == text


# URLs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("org/model", ("org/model", "model", None)),
        ("org/model/", ("org/model", "model", None)),
        ("org/model/tree/v1.0", ("org/model", "model", "v1.0")),
        ("org/model/tree/main/onnx", ("org/model", "model", "main")),
        ("org/model/blob/main/config.json?download=true#L3", ("org/model", "model", "main")),
        (f"org/model/commit/{COMMIT}", ("org/model", "model", COMMIT)),
        ("org/model/tree/refs%2Fpr%2F1", ("org/model", "model", "refs/pr/1")),
        ("org/model/tree/refs/pr/1", ("org/model", "model", "refs/pr/1")),
        ("gpt2/tree/main", ("gpt2", "model", "main")),
        ("gpt2", ("gpt2", "model", None)),
        ("datasets/org/data/tree/main", ("org/data", "dataset", "main")),
        ("spaces/org/demo", ("org/demo", "space", None)),
    ],
)
@pytest.mark.parametrize("home", [HOME, "http://127.0.0.1:8080", "https://mirror.example/hub"])
def test_a_url_of_the_configured_hub_is_read(read, path, expected, home):
    source = read(f"{home}/{path}", endpoint=home)
    assert (source.repo_id, source.repo_type, source.revision) == expected
    assert (source.kind, source.detected_from) == ("hub", "url")
    assert source.commit_hash == (COMMIT if expected[2] == COMMIT else None)


@pytest.mark.parametrize(
    "url",
    [
        *("https://example.com/org/model", "http://huggingface.co/org/model"),
        *("https://huggingface.co.evil.example/org/model", "https://huggingface.co:444/org/model"),
        *("https://hf_secret@huggingface.co/org/model", "https://huggingface.co/"),
        *("https://huggingface.co/docs/transformers", "https://huggingface.co/datasets"),
        *("https://huggingface.co/org/model/tree", "https://huggingface.co/org/model/settings"),
        "https://huggingface.co/org/model/discussions/3",
    ],
)
def test_any_other_url_is_invalid_and_its_secrets_are_not_repeated(read, url):
    source = read(url, endpoint=HOME)
    assert (source.kind, source.repo_id) == ("invalid", None)
    assert "hf_secret" not in str(source)


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://hub", "http://", "http://["])
def test_an_endpoint_that_is_no_address_is_a_wrong_call(read, endpoint):
    with pytest.raises(SettingsError, match="endpoint="):
        read("org/model", endpoint=endpoint)


# The Hugging Face cache -------------------------------------------------------------------

SNAPSHOT = f"models--org--model/snapshots/{COMMIT}"


@pytest.mark.parametrize(
    ("path", "repo_id", "repo_type"),
    [
        (f"/home/me/.cache/huggingface/hub/{SNAPSHOT}", "org/model", "model"),
        (f"/mnt/any/place/{SNAPSHOT}/", "org/model", "model"),
        (f"{SNAPSHOT}/onnx/model.onnx", "org/model", "model"),
        (f"models--gpt2/snapshots/{COMMIT}/config.json", "gpt2", "model"),
        (f"x/datasets--org--data/snapshots/{COMMIT}", "org/data", "dataset"),
        (f"C:\\Users\\me\\hub\\models--Org--Name\\snapshots\\{COMMIT}", "Org/Name", "model"),
        (f"c:\\hub\\MODELS--Org--Name\\Snapshots\\{COMMIT.upper()}\\a.json", "Org/Name", "model"),
    ],
)
def test_a_cache_path_names_repo_and_commit_on_any_machine(read, path, repo_id, repo_type):
    source = read(path)
    assert (source.kind, source.repo_id, source.repo_type) == ("hub", repo_id, repo_type)
    assert (source.commit_hash, source.revision) == (COMMIT, None)
    assert (source.detected_from, source.path) == ("cache_path", None)


@pytest.mark.parametrize(
    "path",
    [
        *("models--org--model", "x/models--org--model/snapshots", "models--org--model/refs/main"),
        *("models--org--model/blobs/abc", "models--org--model/snapshots/main/config.json"),
        f"models--a--b--c/snapshots/{COMMIT}",
    ],
)
def test_a_cache_path_without_one_commit_is_not_taken_for_main(read, path):
    assert read(path).kind == "invalid"


def test_a_cache_folder_that_exists_is_not_taken_for_main_either(read, tmp_path):
    (tmp_path / SNAPSHOT).mkdir(parents=True)
    assert read("models--org--model").kind == "invalid"
    assert read(tmp_path / "models--org--model" / "snapshots").kind == "invalid"


@pytest.mark.parametrize("how", ["path", "string", "inside", "link", "file"])
def test_what_the_hub_client_downloaded_is_recognised(detect, hub, tmp_path, monkeypatch, how):
    commit = hub.publish(REPO, FILES)
    cache = tmp_path / "elsewhere"
    downloaded = huggingface_hub.snapshot_download(
        REPO, cache_dir=cache, endpoint=hub.endpoint, token=hub.token
    )
    link = tmp_path / "current"
    link.symlink_to(downloaded)
    monkeypatch.chdir(downloaded)
    asked = {
        "path": Path(downloaded),
        "string": downloaded,
        "inside": ".",
        "link": link,
        "file": f"{downloaded}/config.json",
    }[how]
    source = detect(asked)

    assert (source.kind, source.repo_id, source.commit_hash) == ("hub", REPO, commit)
    assert (source.path, source.verification) == (Path(asked), "verified")


# Local paths ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({}, "local"),
        ({"notes__txt": "config"}, "local"),
        ({"README__md": "---\nbase_model: org/base\n---\n"}, "local"),
        ({"config__json": "not JSON"}, "local"),
        ({"config__json": "[1, 2]"}, "local"),
        ({"config__json": "[" * 100_000}, "local"),
        ({"config__json": {"model_type": "bert"}}, "local-compatible"),
        ({"config__json": {}}, "local-compatible"),
        ({"model_index__json": {"_class_name": "X"}}, "local-compatible"),
        ({"adapter_config__json": {"peft_type": "LORA"}}, "local-compatible"),
        ({"tokenizer__json": "{}"}, "local-compatible"),
        ({"preprocessor_config__json": "{}"}, "local-compatible"),
    ],
)
@pytest.mark.parametrize("spelling", ["./out", "out", "absolute", "object"])
def test_a_directory_is_local_and_compatible_if_it_holds_what_is_needed(
    read, tmp_path, files, kind, spelling
):
    path = directory(tmp_path / "out", **files)
    source = read({"absolute": str(path), "object": path}.get(spelling, spelling))

    assert (source.kind, source.repo_id, source.commit_hash) == (kind, None, None)
    assert source.path.samefile(path)
    assert source.detected_from == "directory"


def test_a_file_is_local(read, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert (read("model.onnx").kind, read("model.onnx").path) == ("local", Path("model.onnx"))


def test_the_home_directory_is_found(read, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    directory(tmp_path / "m", config__json={})
    assert read("~/m").kind == "local-compatible"


def test_a_path_object_is_never_a_hub_id(read):
    source = read(Path("org/model"))
    assert source.kind == "invalid"
    assert "no such file" in source.reason


CARD = "---\nbase_model: {}\n---\n# Title\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config__json": {"_name_or_path": "org/a"}}, ("org/a", None, None, "config")),
        (
            {"config__json": {"_name_or_path": "org/a", "_commit_hash": COMMIT}},
            ("org/a", None, COMMIT, "config"),
        ),
        (
            {"config__json": {"_name_or_path": "org/a", "_commit_hash": "abc"}},
            ("org/a", None, None, "config"),
        ),
        (
            {"config__json": {"_name_or_path": f"/somewhere/{SNAPSHOT}/"}},
            ("org/model", None, COMMIT, "config"),
        ),
        ({"model_index__json": {"_name_or_path": "org/sd"}}, ("org/sd", None, None, "config")),
        (
            {"adapter_config__json": {"base_model_name_or_path": "org/b", "revision": COMMIT}},
            ("org/b", None, COMMIT, "adapter_config"),
        ),
        (
            {"config__json": {"model_type": "bert"}, "README__md": CARD.format("org/base")},
            ("org/base", None, None, "model_card"),
        ),
        (
            {"config__json": {}, "README__md": CARD.format("[org/base]")},
            ("org/base", None, None, "model_card"),
        ),
        (
            {"config__json": {"_name_or_path": "org/a"}, "README__md": CARD.format("org/base")},
            ("org/a", None, None, "config"),
        ),
        ({"config__json": {"_name_or_path": "/tmp/out"}}, (None, None, None, "directory")),
        ({"config__json": {"_name_or_path": "a b"}}, (None, None, None, "directory")),
        ({"config__json": {"_name_or_path": 7}}, (None, None, None, "directory")),
        ({"config__json": {"_name_or_path": ""}}, (None, None, None, "directory")),
        (
            {"config__json": {}, "README__md": CARD.format("[a/b, c/d]")},
            (None,) * 3 + ("directory",),
        ),
        ({"config__json": {}, "README__md": CARD.format("[")}, (None,) * 3 + ("directory",)),
        ({"config__json": {}, "README__md": "---\n- 1\n---\n"}, (None,) * 3 + ("directory",)),
    ],
)
def test_a_directory_says_what_it_was_made_from(read, tmp_path, files, expected):
    source = read(directory(tmp_path / "out", **files))
    assert source.kind == "local-compatible"  # whatever it came from: the files may differ
    found = (source.repo_id, source.revision, source.commit_hash, source.detected_from)
    assert found == expected


def test_a_trace_that_is_also_a_path_is_no_trace(read, tmp_path):
    directory(tmp_path / "runs" / "best")
    source = read(directory(tmp_path / "out", config__json={"_name_or_path": "runs/best"}))
    assert (source.repo_id, source.kind) == (None, "local-compatible")
    assert "runs/best" in source.reason


@pytest.mark.parametrize("file", ["config.json", "README.md"])
def test_a_huge_config_or_card_is_not_read(read, tmp_path, file):
    text = json.dumps({"_name_or_path": "org/a"}) if file == "config.json" else CARD.format("org/a")
    path = directory(tmp_path / "out", tokenizer__json="{}")
    (path / file).write_text(text)
    assert read(path).repo_id == "org/a"
    (path / file).write_text(text + " " * MAX_READ_BYTES)
    assert (read(path).repo_id, read(path).kind) == (None, "local-compatible")


# Loaded models and references -------------------------------------------------------------


@pytest.mark.parametrize("shape", ["object", "mapping"])
def test_a_loaded_model_says_what_it_was_loaded_from(read, shape):
    config = {"_name_or_path": "org/a", "_commit_hash": COMMIT}
    model = loaded(**config) if shape == "object" else SimpleNamespace(config=config)
    source = read(None, model=model)
    assert (source.kind, source.repo_id, source.commit_hash) == ("hub", "org/a", COMMIT)
    assert source.detected_from == "config"


def test_a_model_loaded_from_a_directory_leads_there(read, tmp_path):
    path = directory(tmp_path / "out", config__json={"_name_or_path": "org/a"})
    source = read(None, model=loaded(_name_or_path=str(path)))
    assert (source.kind, source.path, source.repo_id) == ("local-compatible", path, "org/a")


def test_a_model_whose_name_is_also_a_path_is_of_the_hub_only_with_a_commit(read, tmp_path):
    directory(tmp_path / "org" / "a", config__json={})
    assert read(None, model=loaded(_name_or_path="org/a")).path == Path("org/a")
    known = read(None, model=loaded(_name_or_path="org/a", _commit_hash=COMMIT))
    assert (known.kind, known.commit_hash, known.path) == ("hub", COMMIT, None)


def test_a_model_without_traces_changes_nothing(read):
    assert read("org/a@v1", model=loaded()) == read("org/a@v1")
    assert read("a b", model=loaded(_name_or_path="org/a")) == read("a b")


def test_a_model_loaded_from_a_cache_leads_to_the_hub(read, tmp_path):
    path = directory(tmp_path / SNAPSHOT, config__json={})
    source = read(None, model=loaded(_name_or_path=str(path), _commit_hash=None))
    assert (source.kind, source.repo_id, source.commit_hash) == ("hub", "org/model", COMMIT)
    assert source.path == path


@pytest.mark.parametrize(
    "model", [SimpleNamespace(), loaded(), loaded(_name_or_path=""), loaded(_name_or_path="/gone")]
)
def test_a_model_that_names_nothing_is_invalid(read, model):
    assert read(None, model=model).kind == "invalid"


def test_a_model_knows_the_commit_that_its_id_leaves_open(detect, hub):
    old = hub.publish(REPO, FILES)
    hub.publish(REPO, FILES | {"new.txt": "moved"})
    source = detect(REPO, model=loaded(_name_or_path=REPO, _commit_hash=old))
    assert (source.commit_hash, source.verification) == (old, "verified")

    typed = detect(f"{REPO}@gone", model=loaded(_name_or_path=REPO, _commit_hash=old))
    assert (typed.commit_hash, typed.verification) == (old, "not_found")


def test_a_model_says_what_a_directory_without_traces_was_made_from(read, tmp_path):
    path = directory(tmp_path / "out", config__json={})
    source = read(path, model=loaded(_name_or_path="org/a", _commit_hash=COMMIT))
    assert (source.kind, source.path) == ("local-compatible", path)
    assert (source.repo_id, source.commit_hash) == ("org/a", COMMIT)


@pytest.mark.parametrize(
    ("source", "config"),
    [
        ("org/a", {"_name_or_path": "org/b"}),
        (f"org/a@{OTHER}", {"_name_or_path": "org/a", "_commit_hash": COMMIT}),
    ],
)
def test_a_source_that_the_model_contradicts_is_invalid(read, source, config):
    answer = read(source, model=loaded(**config))
    assert (answer.kind, answer.repo_id) == ("invalid", None)
    assert config["_name_or_path"] in answer.reason


def test_a_directory_that_the_model_contradicts_is_local_and_no_more(read, tmp_path):
    path = directory(tmp_path / "out", config__json={"_name_or_path": "org/a"})
    source = read(path, model=loaded(_name_or_path="org/b"))
    assert (source.kind, source.repo_id) == ("local-compatible", None)
    assert "org/b" in source.reason


@pytest.mark.parametrize("shape", ["reference", "dict", "wrapped", "key"])
def test_a_snapshot_names_repo_and_commit(detect, hub, commit, memory_store, shape):
    ref = snapshot_download(REPO, endpoint=hub.endpoint, token=hub.token, store=memory_store)
    document = ref.model_dump(mode="json")
    asked = {
        "reference": ref,
        "dict": document,
        "wrapped": {"__class__": "hfflows.refs.ArtifactRef", "data": document},
        "key": ref.key,
    }[shape]
    source = detect(asked)

    assert (source.kind, source.repo_id, source.commit_hash) == ("hub", REPO, commit)
    assert (source.revision, source.detected_from) == ("main", "snapshot_reference")
    assert source.verification == "verified"


def test_an_artifact_that_is_no_snapshot_is_not_taken_for_its_base(read, tmp_path, memory_store):
    path = directory(tmp_path / "m", config__json={})
    claims = {"repo_id": REPO, "commit_hash": COMMIT}
    ref = hfflows.save_artifact(
        path, kind="model", name="tuned", metadata=claims, store=memory_store
    )
    source = read(ref, store=memory_store)
    assert (source.kind, source.repo_id) == ("invalid", None)
    assert "load it" in source.reason


@pytest.mark.parametrize(
    "claims",
    [
        *({"repo_id": None}, {"repo_id": "a b"}, {"repo_id": "org/model@v1"}),
        *({"commit_hash": None}, {"commit_hash": "main"}, {"repo_type": "bucket"}, {"revision": 1}),
    ],
)
def test_a_snapshot_that_names_no_commit_is_invalid(read, hub, commit, memory_store, claims):
    ref = snapshot_download(REPO, endpoint=hub.endpoint, token=hub.token, store=memory_store)
    assert read(ref).kind == "hub"
    assert read(ref.model_copy(update={"metadata": ref.metadata | claims})).kind == "invalid"


def test_a_key_with_nothing_at_it_is_invalid(read, hub, commit, memory_store):
    ref = snapshot_download(REPO, endpoint=hub.endpoint, token=hub.token, store=memory_store)
    hfflows.delete_artifact(ref, store=memory_store)
    with pytest.raises(ArtifactNotFoundError):
        hfflows.load_artifact(ref.key, store=memory_store)
    assert read(ref.key, store=memory_store).kind == "invalid"


# What the Hub says ------------------------------------------------------------------------


@pytest.mark.parametrize("revision", [None, "main", "v1", "refs/pr/1"])
def test_a_verified_revision_brings_its_commit(detect, hub, commit, revision, monkeypatch):
    api = huggingface_hub.HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_tag(REPO, tag="v1")
    operation = huggingface_hub.CommitOperationAdd("a.txt", b"a")
    with monkeypatch.context() as patch:  # 0.36 can read no other Hub's reply to a commit
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        request = api.create_commit(REPO, [operation], commit_message="pr", create_pr=True)
    source = detect(REPO if revision is None else f"{REPO}@{revision}")

    assert (source.verification, source.reason) == ("verified", None)
    assert source.revision == revision
    assert source.commit_hash == (request.oid if revision == "refs/pr/1" else commit)


@pytest.mark.parametrize("repo_type", ["dataset", "space"])
def test_repos_of_other_types_are_verified_by_url(detect, hub, repo_type):
    commit = hub.publish("org/thing", {"a.txt": b"a"}, repo_type=repo_type)
    source = detect(f"{hub.endpoint}/{repo_type}s/org/thing")
    assert (source.verification, source.commit_hash) == ("verified", commit)
    assert source.repo_type == repo_type


@pytest.mark.parametrize(
    "text", ["org/absent", f"{REPO}@absent", f"{REPO}@{OTHER}", "absent", "outputs/checkpoint-500"]
)
def test_what_the_hub_says_it_has_not_is_not_found(detect, commit, text):
    source = detect(text)
    assert (source.kind, source.verification) == ("hub", "not_found")
    assert source.reason


def test_to_a_stranger_a_private_repo_is_not_found(detect, hub):
    hub.publish("org/private", FILES, private=True)
    assert detect("org/private").verification == "verified"
    for token in (hub.add_token("stranger"), False):
        source = detect("org/private", token=token)
        assert (source.verification, source.commit_hash) == ("not_found", None)
        assert "private" in source.reason


def test_a_gated_repo_is_unreachable_without_access_and_its_commit_is_known(detect, hub, commit):
    hub.gate(REPO)
    for token in (hub.add_token("stranger"), False):
        source = detect(REPO, token=token)
        assert (source.kind, source.verification) == ("hub", "unreachable")
        assert source.commit_hash == commit
        assert "gated" in source.reason
    assert (
        detect(REPO, token=hub.add_token("guest", gated_access=[REPO])).verification == "verified"
    )


FAULTS = [
    *({"status": status} for status in (400, 401, 403, 404, 408, 418, 500, 503)),
    {"status": 429, "retry_after": 0},
    {"status": 429, "retry_after": 3600},
    {"status": 429, "retry_after": "Fri, 01 Jan 2100 00:00:00 GMT"},
    {"status": 429, "rate_limit": '"api";r=0;t=3600'},
    {"hang_up": True},
    {"stall_seconds": 1},
]
FAULTS_OF_A_BODY = [
    *({"status": 200}, {"status": 204}, {"cut_after": 10}, {"cut_after": 10, "how": "reset"}),
]


@pytest.mark.parametrize(
    ("match", "fault"),
    [
        *(("GET .*/revision/", fault) for fault in FAULTS + FAULTS_OF_A_BODY),
        *(("GET .*/auth-check", fault) for fault in FAULTS),  # its answer is the status alone
    ],
    ids=str,
)
def test_a_fault_is_never_taken_for_an_answer(detect, hub, commit, monkeypatch, fault, match):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.inject(Fault(match=match, times=None, **fault))
    source = detect(f"{REPO}@main")

    assert (source.kind, source.repo_id, source.path) == ("hub", REPO, None)
    assert source.verification == "unreachable"
    assert source.reason
    assert source.commit_hash == (commit if match.endswith("auth-check") else None)


@pytest.mark.parametrize("body", [b'{"sha": null}', b'{"sha": "main"}', b"{}", b"[]", b"<html>"])
def test_what_is_no_hub_is_unreachable(detect, monkeypatch, body):
    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(client_module.time, "sleep", lambda _seconds: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        Thread(target=site.serve_forever, daemon=True).start()
        source = detect(REPO, endpoint=f"http://127.0.0.1:{site.server_port}")
        site.shutdown()
    assert (source.verification, source.commit_hash) == ("unreachable", None)


def test_one_passing_fault_is_overcome(detect, hub, commit):
    hub.inject(Fault(match="/revision/", status=503))
    assert detect(REPO).verification == "verified"


def test_a_hub_that_is_down_is_unreachable(detect, hub, commit, tmp_path):
    hub.down()
    source = detect(f"{REPO}@v1")
    assert (source.kind, source.verification, source.commit_hash) == ("hub", "unreachable", None)

    path = directory(tmp_path / "out", config__json={"_name_or_path": REPO, "_commit_hash": commit})
    traced = detect(path)
    assert (traced.kind, traced.verification) == ("local-compatible", "unreachable")
    assert (traced.repo_id, traced.commit_hash) == (REPO, commit)


def test_a_disabled_repo_is_unreachable(detect, hub, commit):
    hub.disable(REPO)
    assert detect(REPO).verification == "unreachable"


def offline_by_variable(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def offline_by_client(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("go", [offline_by_variable, offline_by_client])
def test_offline_is_unreachable_and_makes_no_request(detect, hub, commit, monkeypatch, go):
    go(monkeypatch)
    for asked in (REPO, f"{REPO}@{commit}"):
        source = detect(asked)
        assert (source.kind, source.verification) == ("hub", "unreachable")
        assert "HF_HUB_OFFLINE" in source.reason
    assert hub.requests == []


def test_without_verify_there_is_no_request(detect, hub, commit, tmp_path):
    directory(tmp_path / "org" / "model", config__json={"_name_or_path": "org/other"})
    for asked in ("org/other@main", f"{hub.endpoint}/org/other", REPO, SNAPSHOT):
        assert detect(asked, verify=False).verification == "unverified"
    assert hub.requests == []


def test_what_a_branch_is_now_is_not_said_of_files_that_came_from_it(detect, commit, tmp_path):
    traced = detect(directory(tmp_path / "out", config__json={"_name_or_path": REPO}))
    assert (traced.repo_id, traced.verification, traced.commit_hash) == (REPO, "verified", None)
    model = detect(None, model=loaded(_name_or_path=REPO))
    assert (model.repo_id, model.verification, model.commit_hash) == (REPO, "verified", None)


def test_a_trace_is_verified_at_its_commit(detect, commit, tmp_path):
    for commit_hash, verdict in ((commit, "verified"), (OTHER, "not_found")):
        config = {"_name_or_path": REPO, "_commit_hash": commit_hash}
        source = detect(directory(tmp_path / commit_hash, config__json=config))
        assert (source.verification, source.commit_hash) == (verdict, commit_hash)


def test_a_path_wins_over_a_hub_id_and_both_are_said(detect, hub, commit, tmp_path):
    path = directory(tmp_path / "org" / "model", config__json={})
    source = detect(REPO)
    assert (source.kind, source.path) == ("local-compatible", Path(REPO))
    assert (source.repo_id, source.commit_hash) == (None, None)
    assert (source.hub_namesake, source.verification) == (REPO, "verified")

    for same in (f"./{REPO}", str(path), path):
        assert detect(same).hub_namesake is None
    hub.down()
    unknown = detect(REPO)
    assert (unknown.kind, unknown.hub_namesake) == ("local-compatible", None)
    assert unknown.verification == "unreachable"


def test_a_path_without_a_namesake_says_so(detect, commit, tmp_path):
    directory(tmp_path / "outputs")
    source = detect("outputs")
    assert (source.kind, source.hub_namesake) == ("local", None)
    assert source.verification == "not_found"


def test_a_path_may_have_a_namesake_beside_what_it_was_made_from(detect, commit, hub, tmp_path):
    hub.publish("org/base", FILES)
    directory(tmp_path / "org" / "model", config__json={"_name_or_path": "org/base"})
    source = detect(REPO)
    assert (source.repo_id, source.hub_namesake) == ("org/base", REPO)
    assert (source.kind, source.verification) == ("local-compatible", "verified")


# Secrets and documents --------------------------------------------------------------------


def test_the_token_goes_to_no_other_origin(detect, hub, commit):
    target = f"{hub.cdn_endpoint}/api/models/{REPO}/revision/main"
    hub.inject(Fault(match="/revision/", status=307, headers={"Location": target}))
    assert detect(REPO).verification == "unreachable"
    assert hub.count("/revision/", origin="cdn") > 0
    assert hub.leaked_tokens == []


def test_the_token_is_in_no_answer(detect, hub, commit, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_from_the_environment")
    hub.publish("org/private", FILES, private=True)
    hub.gate(REPO)
    for asked in (REPO, "org/private", "org/absent", f"{REPO}@absent"):
        for token in (hub.token, "hf_wrong", None):
            said = repr(detect(asked, token=token)) + json.dumps(detect(asked).to_json())
            assert not any(secret in said for secret in (hub.token, "hf_wrong", "hf_from_the"))


def test_a_wrong_token_is_unreachable(detect, commit):
    source = detect(REPO, token="hf_wrong")
    assert source.verification == "unreachable"


def test_an_answer_is_frozen_and_goes_through_json(detect, commit, tmp_path):
    directory(tmp_path / "out", config__json={"_name_or_path": REPO})
    for asked in (REPO, "out", "a b"):
        source = detect(asked)
        document = json.loads(json.dumps(source.to_json()))
        assert document == source.to_json()
        assert document["path"] == (None if source.path is None else os.fspath(source.path))
        with pytest.raises(AttributeError):
            source.kind = "hub"
