import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from huggingface_hub import HfApi, ModelCard

import hfflows
from hfflows.hub import CardContent, Metric, push_to_hub
from hfflows.hub._card import BEGIN, END, render_card
from hfflows.testing import Fault

REPO = "local-user/news"
FILES = {
    "config.json": b"{}",
    "model.safetensors": os.urandom(2_000_000),
    "sub/tokenizer.json": b"[1]",
}


@pytest.fixture
def hub(local_hub):
    return local_hub


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def directory(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "model"


@pytest.fixture
def ref(directory, memory_store):
    return hfflows.save_artifact(directory, kind="export", name="news", store=memory_store)


@pytest.fixture
def push(hub, memory_store):
    def publish(ref, repo_id=REPO, **options):
        settings = {"endpoint": hub.endpoint, "token": hub.token, "store": memory_store}
        return push_to_hub(ref, repo_id, **(settings | options))

    return publish


@pytest.fixture
def card():
    return CardContent(
        title="news",
        pipeline_tag="text-classification",
        base_model="org/base",
        dataset_name="20 Newsgroups",
        metrics=[Metric(type="accuracy", name="Accuracy", value=0.9583)],
    )


def downloaded(api, path, revision=None):
    with TemporaryDirectory() as cache:
        found = api.hf_hub_download(REPO, path, revision=revision, cache_dir=cache)
        return Path(found).read_bytes()


def test_files_and_card_arrive_in_one_private_commit(push, ref, card, api):
    result = push(ref, card=card)

    info = api.model_info(REPO)
    assert info.private is True
    assert info.sha == result.commit_hash
    assert {name: downloaded(api, name) for name in FILES} == FILES
    assert sorted(result.files) == ["README.md", *sorted(FILES)]
    assert len(api.list_repo_commits(REPO)) == 2  # the repo's first, and ours
    found = ModelCard(downloaded(api, "README.md").decode())
    assert found.data.pipeline_tag == "text-classification"
    assert found.data.base_model == "org/base"
    assert found.data.eval_results[0].metric_value == 0.9583
    assert ref.key in found.text
    assert "0.9583" in found.text


def test_publishing_again_makes_no_commit_and_sends_nothing(push, ref, card, api, hub):
    first = push(ref, card=card)
    hub.reset_counts()
    again = push(ref, card=card)

    assert (again.commit_hash, again.files, again.bytes_uploaded) == (first.commit_hash, [], 0)
    assert hub.bytes_received < 2_000
    assert hub.count("/commit/", method="POST") == 0


def test_only_what_changed_is_in_the_next_commit(push, ref, directory, memory_store, api):
    push(ref)
    (directory / "config.json").write_bytes(b'{"a": 1}')
    changed = hfflows.save_artifact(directory, kind="export", name="news", store=memory_store)

    assert push(changed).files == ["config.json"]
    assert downloaded(api, "config.json") == b'{"a": 1}'


def test_human_text_and_fields_in_the_card_are_kept(push, ref, card, hub, api):
    push(ref, card=card)
    text = downloaded(api, "README.md").decode()
    edited = text.replace("---\n\n# news", "license: mit\n---\n\n# news\n\nWritten by hand.")
    hub.publish(REPO, FILES | {"README.md": edited + "\nAt the end.\n"})

    better = card.model_copy(update={"metrics": [Metric(type="accuracy", value=0.97)]})
    push(ref, card=better)
    found = ModelCard(downloaded(api, "README.md").decode())
    assert "Written by hand." in found.text
    assert "At the end." in found.text
    assert found.data.license == "mit"
    assert found.data.eval_results[0].metric_value == 0.97
    assert found.text.count(BEGIN) == found.text.count(END) == 1
    assert "0.9583" not in str(found)


def test_text_in_a_card_cannot_end_our_part(ref, card):
    nasty = card.model_copy(update={"summary": f"a {END} b | c", "title": "t\n---\nx: 1"})
    text = render_card(nasty, ref, None)

    assert text.count(END) == 1
    assert render_card(nasty, ref, text) == text


def test_an_existing_repo_keeps_its_visibility_and_other_files(push, ref, hub, api):
    hub.publish(REPO, {"extra.txt": b"x"})
    push(ref, private=True)

    assert api.model_info(REPO).private is False
    assert downloaded(api, "extra.txt") == b"x"


def test_a_branch_a_tag_and_a_pull_request(push, ref, hub, api):
    hub.publish(REPO, {"extra.txt": b"x"})
    head = api.model_info(REPO).sha

    on_branch = push(ref, revision="candidate", tag="v1")
    assert api.model_info(REPO).sha == head
    assert api.model_info(REPO, revision="v1").sha == on_branch.commit_hash
    proposed = push(ref, create_pr=True)
    assert proposed.pr_url
    assert api.model_info(REPO).sha == head


def test_a_new_repo_can_be_published_to_a_branch(push, ref, api):
    push(ref, revision="candidate")
    assert downloaded(api, "config.json", revision="candidate") == b"{}"


def test_a_branch_that_moved_is_not_overwritten(push, ref, hub, api):
    parent = hub.publish(REPO, {"extra.txt": b"x"})
    hub.publish(REPO, {"extra.txt": b"y"})

    with pytest.raises(hfflows.HubError, match="moved since"):
        push(ref, parent_commit=parent)
    assert "config.json" not in api.list_repo_files(REPO)


def test_a_token_that_may_not_write_changes_nothing(push, ref, hub, api):
    hub.publish(REPO, {"extra.txt": b"x"})

    for token in (hub.add_token("reader"), hub.add_token("writer", role="write")):
        with pytest.raises(hfflows.HubAccessError) as caught:
            push(ref, token=token)
        assert token not in str(caught.value)
    assert "config.json" not in api.list_repo_files(REPO)
    with pytest.raises(hfflows.HubAccessError):
        push(ref, "somebody/else", token=hub.add_token("writer2", role="write"))


def test_a_publish_that_failed_half_way_is_finished_by_the_next(push, ref, hub, api):
    hub.inject(Fault(match="POST .*/commit/", hang_up=True, applied=True, times=1))
    try:
        push(ref)
    except hfflows.HubUnavailableError:
        push(ref)
    assert {name: downloaded(api, name) for name in FILES} == FILES
    assert len(api.list_repo_commits(REPO)) == 2  # the lost reply's commit was recognised


def test_a_card_beside_a_readme_of_its_own_is_refused_before_anything(
    push, directory, memory_store, card, hub
):
    (directory / "README.md").write_text("mine")
    ref = hfflows.save_artifact(directory, name="x", store=memory_store)

    with pytest.raises(hfflows.SettingsError, match="README"):
        push(ref, card=card)
    assert hub.requests == []


def test_the_result_is_plain_json(push, ref):
    document = push(ref).to_json()
    assert document["url"].endswith(REPO)
    assert document["pr_url"] is None


# ONNX files ------------------------------------------------------------------------------


def field(number, content):
    return bytes([number << 3 | 2, len(content)]) + content


def with_external_weights():
    """Return a graph with 16 bytes of weights in `w.data`, by hand: onnx is not everywhere."""
    facts = {b"location": b"w.data", b"length": b"16"}
    entries = [field(13, field(1, key) + field(2, value)) for key, value in facts.items()]
    tensor = field(8, b"weight") + b"".join(entries) + bytes([14 << 3, 1])
    return bytes([1 << 3, 9]) + field(7, field(5, tensor)) + field(8, bytes([2 << 3, 17]))


@pytest.fixture
def onnx_directory(tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(with_external_weights())
    (tmp_path / "onnx" / "w.data").write_bytes(bytes(16))
    return tmp_path / "onnx"


def saved(directory, store):
    return hfflows.save_artifact(directory, kind="export", name="x", store=store)


def test_an_onnx_model_goes_with_the_weights_beside_it(push, onnx_directory, memory_store):
    assert push(saved(onnx_directory, memory_store)).files == ["model.onnx", "w.data"]


def test_an_onnx_model_without_its_weights_is_not_published(
    push, onnx_directory, memory_store, hub
):
    (onnx_directory / "w.data").unlink()
    ref = saved(onnx_directory, memory_store)
    hub.reset_counts()
    with pytest.raises(hfflows.ExportError, match=f"{ref.key} was not published: model.onnx needs"):
        push(ref)
    assert hub.count("/") == 0  # nothing was asked, made or sent


def test_what_is_called_onnx_and_is_not_is_not_published(push, onnx_directory, memory_store):
    (onnx_directory / "other.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(hfflows.ExportError, match=r"other\.onnx is damaged"):
        push(saved(onnx_directory, memory_store))
