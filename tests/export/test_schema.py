"""The table of entries: what writer, reader, JSON Schema and docs agree on; and the Hub's part."""

import json
import re
import uuid
from pathlib import Path

import onnx
import pytest
from jsonschema import Draft202012Validator

import hfflows
from hfflows.export import (
    FIELDS,
    hub_entries,
    inject_hub_metadata,
    json_schema,
    parse_metadata,
    read_onnx_metadata,
)
from hfflows.export._onnx._json_schema import SCHEMA_ID
from hfflows.export._onnx._schema import ENTRIES, entries_of
from hfflows.testing import Fault
from tests.export.test_metadata import small_model

DOCS = Path(__file__).parents[2] / "docs"
COMMIT = "c0ffee" + "0" * 34
LOCAL = {"hf_model_type": "local", "hf_export_timestamp": "2026-11-21T09:00:00+00:00"}
KEY = "refs/model/news/00000000000000-00000000.json"
PARENT = {"kind": "model", "key": KEY, "digest": "a" * 64}

# A value, its text, and what the text is read as; then values that are refused.
CASES = {
    "hf_hub_id": ("org/model", "org/model", "org/model", ["a b", "a/b/c", "-x", "x@main", ""]),
    "hf_hub_revision": (COMMIT, COMMIT, COMMIT, [COMMIT[:8], "main", COMMIT.upper(), ""]),
    "hf_hub_verified": (True, "true", True, ["yes", 1, ""]),
    "hf_source": ("artifact", "artifact", "artifact", ["Hub", ""]),
    "hf_subfolder": ("a/b c", "a/b c", "a/b c", ["../a", "/a", "a/../b", "a//b", ".", "a/.", ""]),
    "hf_base_model": (("a/b", "c"), "a/b,c", ["a/b", "c"], [["a,b"], [1], {"a": 1}]),
    "hf_private": ("True", "true", True, ["maybe"]),
    "hf_gated": (False, "false", False, [True, "yes", 1]),
    "hf_model_downloads": (7, "7", 7, [-1, 1.5, "many"]),
    "hf_opset": ("20", "20", 20, ["latest"]),
    "hf_trust_remote_code": (False, "false", False, [0]),
    "hf_parity_max_difference": (5.9e-08, "5.9e-08", 5.9e-08, ["small", "1e", "nan"]),
    "hf_export_timestamp": (
        "2026-11-21T09:00:00Z",
        "2026-11-21T09:00:00Z",
        None,
        ["2026-11-21T09:00:00", "2026-11-21", "2026-13-21T09:00:00Z", "20261121T090000Z"],
    ),
    "hf_pooling": (
        {"mode": "mean", "normalize": True},
        '{"mode":"mean","normalize":true}',
        {"mode": "mean", "normalize": True},
        [{}, {"mode": 1}, {"mode": "x", "normalize": "yes"}, "x", "[]", {"mode": float("nan")}],
    ),
    "hf_export_settings": ({"opset": None}, '{"opset":null}', {"opset": None}, ["x", "1", [1]]),
    "hf_export_versions": ({"é": "1"}, '{"é":"1"}', {"é": "1"}, [{"a": 1}, "{", "NaN"]),
    "hfflows_parents": ([PARENT], json.dumps([PARENT], separators=(",", ":")), [PARENT], [
        PARENT, [{}], [PARENT | {"digest": "0"}], ["x"], "[" * 100_000]),
    "hfflows_model_key": (KEY, KEY, KEY, ["model", "refs/x", ""]),
    "hfflows_graph_sha256": ("0" * 64, "0" * 64, "0" * 64, ["0" * 63, "g" * 64]),
    "hf_task": (3, "3", "3", [[], {}, object()]),
    "hf_unknown": ("x", "x", "x", [["a"]]),
}  # fmt: skip


@pytest.mark.parametrize("key", CASES)
def test_each_entry_has_one_spelling_that_is_read_back(key):
    given, text, value, _ = CASES[key]
    entries = entries_of(LOCAL | {key: given})

    assert entries[key] == text
    read = parse_metadata(entries)[key]
    assert read == value if value is not None else read.tzinfo is not None
    Draft202012Validator(json_schema()).validate(entries)


@pytest.mark.parametrize("key", CASES)
def test_what_an_entry_may_not_be_is_refused_and_named(key):
    *_, refused = CASES[key]
    for value in refused:
        with pytest.raises(hfflows.MetadataError, match=key):
            entries_of(LOCAL | {key: value})


@pytest.mark.parametrize("key", CASES)
def test_the_published_schema_refuses_what_the_writer_refuses(key):
    """As far as the keywords reach that validators go by: not into what a text is the JSON of."""
    form = ENTRIES[key].form.schema() if key in ENTRIES else {"type": "string"}
    is_judged = form.keys() & {"pattern", "enum"} and key != "hf_export_timestamp"
    *_, refused = CASES[key]
    for value in filter(lambda value: is_judged and isinstance(value, str), refused):
        assert not Draft202012Validator(form).is_valid(value), value


def test_schemas_of_contents_say_what_the_writer_goes_by():
    for key in ("hf_pooling", "hf_export_settings", "hf_export_versions", "hfflows_parents"):
        content = Draft202012Validator(ENTRIES[key].form.schema()["contentSchema"])
        given, *_, refused = CASES[key]
        assert content.is_valid(given)
        values = [value for value in refused if not isinstance(value, str)]
        assert values
        for value in values:
            is_json = "nan" not in str(value)
            assert not (is_json and content.is_valid(value)), value


def test_the_published_schema_is_legal_and_its_id_stays():
    Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert uuid.UUID(SCHEMA_ID) == uuid.uuid5(uuid.NAMESPACE_OID, "hfflows:onnx-metadata:1")
    # Written by json.dumps(json_schema(), indent=2, ensure_ascii=False).
    published = json.loads((DOCS / "onnx-metadata.schema.json").read_text(encoding="utf-8"))
    assert published == json_schema()


def test_the_schema_asks_for_what_leads_back():
    validator = Draft202012Validator(json_schema())
    entries = entries_of(LOCAL)
    assert validator.is_valid(entries | {"author": "a foreign entry"})
    assert not validator.is_valid(entries | {"hf_model_type": "hub"})
    assert not validator.is_valid({"hf_model_type": "local"})


def test_the_docs_list_every_entry():
    page = (DOCS / "metadata.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(hf\w+)` \| (.+) \|$", page, re.MULTILINE))
    assert rows == {key: meaning.replace("|", "\\|") for key, meaning in FIELDS.items()}


def test_the_examples_of_the_docs_run_as_printed(
    local_hub, memory_store, tmp_path, monkeypatch, capsys
):
    page = (DOCS / "metadata.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    local_hub.publish("org/model", {"config.json": "{}"})
    local_hub.publish("org/model", {"config.json": "{}"}, revision="v1.0")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", local_hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", local_hub.token)
    monkeypatch.setenv("HFFLOWS_STORE_URL", memory_store.url)
    monkeypatch.chdir(tmp_path)
    onnx.save(small_model(), "model.onnx")
    names = {}
    for block in blocks[:-1]:  # the last one needs a tokenizer: see test_config.py
        exec(block, names)

    assert len(blocks) == 5
    assert capsys.readouterr().out.splitlines()[0] == "fill-mask"
    assert names["export"].kind == "export"


# Earlier writers -------------------------------------------------------------------------

FOUNDING = {
    "hf_hub_id": "bert-base-uncased",
    "hf_hub_revision": "86b5e093",
    "hf_model_type": "hub",
    "hf_export_version": "0.9.0",
    "hf_export_timestamp": "2025-07-04T12:00:00.123456",
    "hf_pipeline_tag": "fill-mask",
    "hf_library_name": "transformers",
    "hf_base_model": "None",
    "hf_downloads": "12",
    "hf_likes": "3",
    "hf_private": "False",
    "hf_gated": "False",
}


@pytest.fixture
def path(tmp_path):
    onnx.save(small_model({"author": "someone"}), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_what_the_founding_design_wrote_is_read(tmp_path):
    onnx.save(small_model(FOUNDING), tmp_path / "old.onnx")
    entries = read_onnx_metadata(tmp_path / "old.onnx")

    assert entries == FOUNDING
    found = parse_metadata(entries)
    assert (found["hf_model_downloads"], found["hf_model_likes"]) == (12, 3)
    assert (found["hf_private"], found["hf_gated"]) == (False, False)
    assert found["hf_hub_revision"] == "86b5e093"
    assert "hf_downloads" not in found


def test_every_founding_name_is_written(path):
    mended = {**FOUNDING, "hf_hub_revision": COMMIT, "hf_model_downloads": 12}
    mended["hf_export_timestamp"] += "+00:00"
    del mended["hf_downloads"]
    written = inject_hub_metadata(path, mended)

    assert written.keys() >= mended.keys() - {"hf_likes"}
    assert (written["hf_model_downloads"], written["hf_model_likes"]) == ("12", "3")
    assert (written["hf_private"], written["hf_gated"]) == ("false", "false")


# From the Hub ----------------------------------------------------------------------------

CARD = """---
license: apache-2.0
language: [en, de]
base_model: org/base
pipeline_tag: text-classification
library_name: transformers
tags: [news, '{tag}']
---
# A model
"""


@pytest.fixture
def published(local_hub):
    """Return a Hub with a repo, and the commit before its card was changed."""
    commit = local_hub.publish("org/model", {"README.md": CARD.format(tag="first")})
    local_hub.publish("org/model", {"README.md": CARD.format(tag="second"), "more": "x"})
    return local_hub, commit


def test_the_cards_facts_of_the_recorded_commit_come_with_one_request(path, published):
    hub, commit = published
    hub.reset_counts()
    options = {"token": hub.token, "endpoint": hub.endpoint}
    written = inject_hub_metadata(path, repo_id="org/model", revision=commit, **options)

    assert hub.count() == 1
    assert (
        written.items()
        >= {
            "hf_model_type": "hub",
            "hf_source": "hub",
            "hf_hub_id": "org/model",
            "hf_hub_revision": commit,
            "hf_hub_verified": "true",
            "hf_license": "apache-2.0",
            "hf_language": "en,de",
            "hf_base_model": "org/base",
            "hf_pipeline_tag": "text-classification",
            "hf_library_name": "transformers",
            "hf_private": "false",
            "hf_gated": "false",
        }.items()
    )
    assert "first" in written["hf_tags"].split(",")
    assert "second" not in written["hf_tags"]
    assert not {"hf_model_downloads", "hf_model_likes"} & written.keys()
    assert hub.token.encode() not in path.read_bytes()
    assert read_onnx_metadata(path) == {"author": "someone"} | written


def test_a_branch_is_recorded_as_its_commit_and_counters_when_asked_for(published):
    hub, commit = published
    hub.gate("org/model", "manual")
    found = hub_entries("org/model", counters=True, token=hub.token, endpoint=hub.endpoint)

    assert re.fullmatch("[0-9a-f]{40}", found["hf_hub_revision"])
    assert found["hf_hub_revision"] != commit
    assert (found["hf_model_downloads"], found["hf_model_likes"]) == (0, 0)
    assert found["hf_gated"] == "manual"


def test_what_the_caller_says_counts_unless_it_is_another_origin(path, published):
    hub, commit = published
    options = {"repo_id": "org/model", "token": hub.token, "endpoint": hub.endpoint}
    written = inject_hub_metadata(path, {"hf_license": "mit", "hf_task": "x"}, **options)
    assert (written["hf_license"], written["hf_task"]) == ("mit", "x")

    before = path.read_bytes()
    with pytest.raises(hfflows.MetadataError, match="asked about"):
        inject_hub_metadata(path, {"hf_hub_revision": commit}, **options)
    assert path.read_bytes() == before


def test_nobody_is_asked_for_the_sake_of_a_file_that_is_no_model(published, tmp_path):
    hub, _ = published
    hub.reset_counts()
    (tmp_path / "page.onnx").write_text("<html>")
    options = {"repo_id": "org/model", "token": hub.token, "endpoint": hub.endpoint}

    with pytest.raises(hfflows.MetadataError, match="HTML"):
        inject_hub_metadata(tmp_path / "page.onnx", **options)
    with pytest.raises(hfflows.SettingsError, match="cannot be opened"):
        inject_hub_metadata(tmp_path / "none.onnx", **options)
    assert hub.count() == 0


def test_a_private_repo_is_recorded_as_such(local_hub):
    commit = local_hub.publish("org/secret", {"config.json": "{}"}, private=True)
    found = hub_entries("org/secret", commit, token=local_hub.token, endpoint=local_hub.endpoint)

    assert found["hf_private"] is True
    with pytest.raises(hfflows.RepoNotFoundError):
        hub_entries("org/secret", commit, token=False, endpoint=local_hub.endpoint)


@pytest.mark.parametrize("allow_unverified", [False, True])
def test_a_repo_or_commit_that_the_hub_does_not_have_is_an_error_always(
    path, published, allow_unverified
):
    hub, _ = published
    before = path.read_bytes()
    options = {"allow_unverified": allow_unverified, "token": hub.token, "endpoint": hub.endpoint}

    with pytest.raises(hfflows.RepoNotFoundError):
        inject_hub_metadata(path, repo_id="org/other", revision=COMMIT, **options)
    with pytest.raises(hfflows.RevisionNotFoundError):
        inject_hub_metadata(path, repo_id="org/model", revision=COMMIT, **options)
    assert path.read_bytes() == before


@pytest.mark.parametrize("how", ["down", "offline", "broken"])
def test_a_hub_that_cannot_be_asked_is_an_error_or_recorded(
    path, published, monkeypatch, caplog, how
):
    hub, commit = published
    monkeypatch.setattr("hfflows.hub._client.time.sleep", lambda _: None)
    if how == "down":
        hub.down()
    elif how == "offline":
        monkeypatch.setenv("HFFLOWS_HUB_OFFLINE", "1")
    else:
        hub.inject(Fault(match="", status=503, times=None))
    options = {"repo_id": "org/model", "token": hub.token, "endpoint": hub.endpoint}
    expected = hfflows.SettingsError if how == "offline" else hfflows.HubUnavailableError

    with pytest.raises(expected):
        inject_hub_metadata(path, revision=commit, **options)
    with pytest.raises(expected):  # a branch leads nowhere that could be found again
        inject_hub_metadata(path, revision="main", allow_unverified=True, **options)
    assert read_onnx_metadata(path) == {"author": "someone"}
    written = inject_hub_metadata(path, revision=commit, allow_unverified=True, **options)
    assert (written["hf_hub_verified"], written["hf_hub_revision"]) == ("false", commit)
    assert "taken on trust" in caplog.text


@pytest.mark.parametrize("repo_id", ["hello world", "org/model@main", "a/b/c"])
def test_what_is_no_repo_id_is_refused_before_anybody_is_asked(path, local_hub, repo_id):
    with pytest.raises(hfflows.SettingsError):
        inject_hub_metadata(path, repo_id=repo_id, endpoint=local_hub.endpoint)
    assert local_hub.count() == 0
