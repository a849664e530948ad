"""Config and preprocessor from an ONNX file alone: where they are looked for, and what is wrong."""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import onnx
import pytest

import hfflows
from hfflows.export import (
    HubConfigLoader,
    inject_hub_metadata,
    load_config,
    load_preprocessor,
)
from hfflows.export._config import _loader as config_module
from hfflows.export._config._cache import MOST_KEPT, ConfigCache, default_root
from hfflows.export._config._dispatch import auto_class
from tests.export.models import write_tokenizer
from tests.export.test_metadata import small_model

COMMIT = "c0ffee" + "0" * 34
BERT = {"model_type": "bert", "hidden_size": 32, "id2label": {"0": "bad", "1": "good"}}
FILES = {"config.json": json.dumps(BERT), "vocab.txt": "a\nb\n", "model.safetensors": b"\0" * 2000}


@pytest.fixture
def path(tmp_path):
    onnx.save(small_model(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "kept"


@pytest.fixture
def exported(path, local_hub):
    """Return a file exported from a commit of a Hub on which `main` has moved on since."""
    commit = local_hub.publish("org/model", FILES)
    local_hub.publish("org/model", {"config.json": "{}"})
    inject(path, "org/model", commit)
    local_hub.reset_counts()
    return path


def inject(path, repo_id, commit, **more):
    origin = {"hf_model_type": "hub", "hf_hub_id": repo_id, "hf_hub_revision": commit}
    return inject_hub_metadata(path, origin | more)


@pytest.fixture
def loader(local_hub, memory_store, cache_dir):
    return HubConfigLoader(
        memory_store, token=local_hub.token, endpoint=local_hub.endpoint, cache_dir=cache_dir
    )


# Where the files come from ---------------------------------------------------------------


def test_small_files_of_the_recorded_commit_come_once(
    exported, loader, local_hub, memory_store, cache_dir, monkeypatch
):
    monkeypatch.setattr("hfflows.hub._client.time.sleep", lambda _: None)
    directory = loader.files_of(exported)

    assert sorted(os.listdir(directory)) == ["config.json", "vocab.txt"]
    assert json.loads((directory / "config.json").read_text())["id2label"]["1"] == "good"
    assert local_hub.count("safetensors") == 0
    assert local_hub.leaked_tokens == []

    local_hub.down()
    memory_store.delete([info.key for info in memory_store.list("")])
    assert loader.files_of(exported) == directory  # kept on this machine
    other = HubConfigLoader(memory_store, cache_dir=cache_dir, trust_remote_code=True)
    with pytest.raises(hfflows.HubError):  # which needs the code too: other files
        other.files_of(exported)


def test_a_snapshot_in_the_store_needs_no_hub_and_nothing_is_written(
    exported, loader, local_hub, memory_store, cache_dir
):
    ref = hfflows.snapshot_download(
        "org/model",
        revision=hfflows.read_onnx_metadata(exported)["hf_hub_revision"],
        token=local_hub.token,
        endpoint=local_hub.endpoint,
        cache_scope="flow",
        identity=hfflows.RunIdentity(namespace="team", flow="f", task="t", run="r", attempt="1"),
        store=memory_store,
    )
    inject(
        exported,
        "org/model",
        ref.metadata["commit_hash"],
        hfflows_model_key=ref.key,
        hfflows_model_digest=ref.digest,
    )
    local_hub.down()
    before = [info.key for info in memory_store.list("")]

    assert sorted(os.listdir(loader.files_of(exported))) == ["config.json", "vocab.txt"]
    assert [info.key for info in memory_store.list("")] == before


@pytest.mark.parametrize("change", ["digest", "commit", "repo", "gone", "nonsense"])
def test_an_artifact_that_is_not_what_is_recorded_is_not_taken(
    path, loader, local_hub, memory_store, tmp_path, change
):
    commit = local_hub.publish("org/model", FILES)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    claims = {
        "repo_id": "org/x" if change == "repo" else "org/model",
        "commit_hash": COMMIT if change == "commit" else commit,
    }
    ref = hfflows.save_artifact(
        tmp_path / "other", kind="snapshot", name="x", metadata=claims, store=memory_store
    )
    key = "refs/x.json" if change == "nonsense" else ref.key
    digest = "0" * 64 if change == "digest" else ref.digest
    inject(path, "org/model", commit, hfflows_model_key=key, hfflows_model_digest=digest)
    if change == "gone":
        hfflows.delete_artifact(ref, store=memory_store)

    assert (loader.files_of(path) / "vocab.txt").is_file()


def test_force_download_asks_the_hub_again(exported, loader, local_hub):
    directory = loader.files_of(exported)
    (directory / "config.json").write_text("{}")
    local_hub.reset_counts()

    again = loader.files_of(exported, force_download=True)
    assert local_hub.count(r"/resolve/.*config\.json") == 1
    assert json.loads((again / "config.json").read_text()) == BERT


def test_the_short_revision_of_earlier_writers_is_followed_but_runs_no_code(
    path, loader, local_hub, memory_store
):
    commit = local_hub.publish("org/model", FILES)
    old = {"hf_model_type": "hub", "hf_hub_id": "org/model", "hf_hub_revision": commit[:8]}
    onnx.save(small_model(old), path)

    assert json.loads((loader.files_of(path) / "config.json").read_text()) == BERT
    local_hub.down()
    assert (loader.files_of(path) / "config.json").is_file()
    with pytest.raises(hfflows.MetadataError, match="no full commit"):
        HubConfigLoader(memory_store, trust_remote_code=True).files_of(path)


def test_what_the_store_was_asked_for_is_found_beside_a_reference(exported, loader, memory_store):
    ref = hfflows.save_artifact(exported, kind="export", name="x", store=memory_store)
    assert loader.files_of(ref) == loader.files_of(exported)
    assert loader.extract_metadata(ref)["hf_hub_id"] == "org/model"


# What is wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "does not say"),
        ({"hf_model_type": "hub", "hf_hub_id": "org/model"}, "does not say"),
        ({"hf_model_type": "local", "hfflows_model_key": "refs/x"}, "does not say"),
        ({"hf_model_type": "other"}, "does not say"),
        (
            {"hf_model_type": "hub", "hf_hub_id": "a/b", "hf_hub_revision": "main"},
            "names no commit",
        ),
        (
            {
                "hf_model_type": "hub",
                "hf_hub_id": "a/b",
                "hf_hub_revision": COMMIT,
                "hf_subfolder": "../../etc",
            },
            "hf_subfolder",
        ),
    ],
)
def test_a_file_that_leads_nowhere_says_so(path, loader, local_hub, entries, said):
    onnx.save(small_model(entries), path)

    with pytest.raises(hfflows.MetadataError, match=said):
        loader.load_from_onnx(path)
    assert local_hub.count() == 0


def test_missing_gated_and_private_repos_are_errors_of_their_own(
    path, local_hub, memory_store, cache_dir
):
    gated = local_hub.publish("org/gated", FILES)
    local_hub.gate("org/gated")
    private = local_hub.publish("org/private", FILES, private=True)
    outsider = local_hub.add_token("outsider")
    cases = [
        ("org/none", COMMIT, hfflows.RepoNotFoundError),
        ("org/gated", COMMIT, hfflows.RevisionNotFoundError),
        ("org/gated", gated, hfflows.GatedRepoError),
        ("org/private", private, hfflows.RepoNotFoundError),
    ]
    for repo_id, commit, expected in cases:
        inject(path, repo_id, commit)
        token = local_hub.token if expected is hfflows.RevisionNotFoundError else outsider
        loader = HubConfigLoader(
            memory_store, token=token, endpoint=local_hub.endpoint, cache_dir=cache_dir
        )
        with pytest.raises(expected) as caught:
            loader.load_from_onnx(path)
        assert token not in str(caught.value)
    allowed = local_hub.add_token("insider", gated_access=["org/gated"])
    inject(path, "org/gated", gated)
    loader = HubConfigLoader(
        memory_store, token=allowed, endpoint=local_hub.endpoint, cache_dir=cache_dir
    )
    assert (loader.files_of(path) / "config.json").is_file()


def test_offline_and_down_are_told_apart(exported, loader, local_hub, monkeypatch):
    monkeypatch.setattr("hfflows.hub._client.time.sleep", lambda _: None)
    with monkeypatch.context() as patch:
        patch.setenv("HFFLOWS_HUB_OFFLINE", "1")
        with pytest.raises(hfflows.ArtifactNotFoundError, match="HFFLOWS_HUB_OFFLINE"):
            loader.load_from_onnx(exported)
    local_hub.down()
    with pytest.raises(hfflows.HubUnavailableError, match="cannot be reached"):
        loader.load_from_onnx(exported)
    local_hub.up()
    loader.files_of(exported)
    monkeypatch.setenv("HFFLOWS_HUB_OFFLINE", "1")
    assert loader.files_of(exported).is_dir()


# Kept on this machine --------------------------------------------------------------------


def fill(**contents):
    def write(directory):
        (directory / "deep").mkdir(parents=True)
        for name, content in contents.items():
            (directory / name).write_text(content)
            (directory / "deep" / name).write_text(content)

    return write


@pytest.mark.parametrize("damage", ["change", "cut", "add", "remove", "link", "manifest"])
def test_files_that_were_changed_are_as_good_as_none(tmp_path, damage):
    cache = ConfigCache(tmp_path / "cache")
    identity = ("hub", "org/model", COMMIT)
    assert cache.find(identity) is None
    directory = cache.add(identity, fill(a="text", b=""))
    assert cache.find(identity) == directory
    assert cache.find((*identity, "*.py")) is None
    if damage == "change":
        (directory / "deep" / "a").write_text("TEXT")
    elif damage == "cut":
        (directory / "a").write_text("")
    elif damage == "add":
        (directory / "deep" / "more.py").touch()
    elif damage == "remove":
        (directory / "b").unlink()
    elif damage == "link":
        (directory / "b").unlink()
        (directory / "b").symlink_to(directory / "deep" / "b")
    else:
        (directory.parent / "manifest.json").write_text("[")

    assert cache.find(identity) is None
    assert cache.add(identity, fill(a="text", b="")) == directory
    assert (cache.find(identity) / "a").read_text() == "text"


def test_many_at_once_keep_one_whole_directory(tmp_path):
    cache = ConfigCache(tmp_path / "cache")

    def once(_):
        directory = cache.find(("x",)) or cache.add(("x",), fill(a="text"))
        return directory, (directory / "a").read_text()

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(once, range(200)))
    assert len(set(found)) == 1
    assert found[0][1] == "text"
    assert len(os.listdir(tmp_path / "cache")) == 1


def test_a_fill_that_fails_leaves_nothing(tmp_path):
    cache = ConfigCache(tmp_path / "cache")

    def fails(directory):
        directory.mkdir()
        (directory / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.add(("x",), fails)
    assert os.listdir(tmp_path / "cache") == []


def test_those_used_least_recently_go_first_and_what_a_kill_left(tmp_path):
    cache = ConfigCache(tmp_path / "cache")
    old = time.time() - 100_000
    for number in range(MOST_KEPT + 5):
        entry = tmp_path / "cache" / f"{number:064x}"
        entry.mkdir(parents=True)
        (entry / "manifest.json").write_text("{}")
        used_at = old + number if number < MOST_KEPT else time.time()
        os.utime(entry / "manifest.json", (used_at, used_at))
    (tmp_path / "cache" / ".new-killed").mkdir()
    os.utime(tmp_path / "cache" / ".new-killed", (old, old))
    cache.add(("x",), fill(a="text"))

    names = set(os.listdir(tmp_path / "cache"))
    assert ".new-killed" not in names
    assert len(names) == MOST_KEPT
    assert f"{5:064x}" not in names
    assert f"{6:064x}" in names


def test_where_nothing_can_be_kept_it_lasts_for_the_process(
    exported, local_hub, memory_store, tmp_path, caplog
):
    (tmp_path / "file").touch()
    loader = HubConfigLoader(
        memory_store,
        token=local_hub.token,
        endpoint=local_hub.endpoint,
        cache_dir=tmp_path / "file" / "below",
    )
    directory = loader.files_of(exported)

    assert (directory / "config.json").is_file()
    assert "this process only" in caplog.text
    assert loader.files_of(exported) == directory


def test_the_root_is_the_caches_or_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert default_root() == tmp_path / "user" / "hfflows" / "configs"
    monkeypatch.setenv("HFFLOWS_CACHE_DIR", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "configs"


# Which class reads it --------------------------------------------------------------------

FEATURES = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": True}
IMAGES = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
OLD_IMAGES = {"feature_extractor_type": "ViTFeatureExtractor", "image_mean": [0.5], "size": 16}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer.json": {}}, "AutoTokenizer"),  # BERT
        ({"vocab.json": {}, "merges.txt": {}}, "AutoTokenizer"),  # GPT-2
        ({"spiece.model": {}}, "AutoTokenizer"),  # T5
        ({"source.spm": {}, "target.spm": {}}, "AutoTokenizer"),  # Marian
        ({"preprocessor_config.json": IMAGES}, "AutoImageProcessor"),  # ViT
        ({"preprocessor_config.json": OLD_IMAGES}, "AutoImageProcessor"),
        ({"preprocessor_config.json": FEATURES}, "AutoFeatureExtractor"),  # Wav2Vec2, classifier
        ({"preprocessor_config.json": FEATURES, "vocab.json": {}}, "AutoProcessor"),  # CTC
        ({"preprocessor_config.json": FEATURES, "tokenizer.json": {}}, "AutoProcessor"),  # Whisper
        ({"preprocessor_config.json": IMAGES, "tokenizer.json": {}}, "AutoProcessor"),  # CLIP
        ({"processor_config.json": {}, "tokenizer.json": {}}, "AutoProcessor"),
    ],
)
def test_the_files_say_which_class_reads_them(tmp_path, files, expected):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert auto_class(tmp_path) == expected


@pytest.mark.parametrize("content", ["{", "[]", "\udcff", "[" * 100_000])
def test_a_preprocessor_config_that_is_none_says_so(tmp_path, content):
    data = content.encode(errors="surrogateescape")
    (tmp_path / "preprocessor_config.json").write_bytes(data)
    with pytest.raises(hfflows.ExportError, match=r"preprocessor_config\.json"):
        auto_class(tmp_path)


# With transformers -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("text")
    (directory / "config.json").write_text(json.dumps(BERT))
    write_tokenizer(directory)
    return directory


@pytest.fixture
def text_model(path, local_hub, text_files):
    inject(path, "org/text", local_hub.publish("org/text", text_files))
    return path


@pytest.mark.slow
def test_each_thread_keeps_its_own(text_model, loader, local_hub):
    config, tokenizer = loader.load_from_onnx(text_model)
    assert config.id2label[1] == "good"
    assert tokenizer("the rain")["input_ids"]

    local_hub.down()
    assert loader.load_from_onnx(text_model) == (config, tokenizer)
    assert loader.load_preprocessor(text_model) is tokenizer
    assert loader.load_config(text_model) is config
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(loader.load_from_onnx, text_model).result()
    assert other[1] is not tokenizer


@pytest.mark.slow
def test_threads_with_different_lengths_do_not_disturb_each_other(text_model, loader):
    """A fast tokenizer that is shared silently gives other threads' lengths."""
    loader.files_of(text_model)

    def lengths(length):
        _, tokenizer = loader.load_from_onnx(text_model)
        options = {"truncation": True, "padding": "max_length", "max_length": length}
        return {len(tokenizer("the rain", **options)["input_ids"]) for _ in range(200)}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lengths, [8, 16, 32, 64])) == [{8}, {16}, {32}, {64}]


@pytest.mark.slow
def test_the_session_keeps_those_used_last_and_forgets_when_forced(
    path, loader, local_hub, monkeypatch
):
    monkeypatch.setattr(config_module, "LOADED_KEPT", 2)
    commits = {
        repo_id: local_hub.publish(repo_id, {"config.json": json.dumps(BERT)})
        for repo_id in ("org/a", "org/b", "org/c")
    }

    def load(repo_id):
        inject(path, repo_id, commits[repo_id])
        return loader.load_config(path)

    a, b = load("org/a"), load("org/b")
    assert load("org/a") is a
    load("org/c")
    assert load("org/a") is a
    assert load("org/b") is not b
    with pytest.raises(hfflows.ExportError, match="no tokenizer"):
        loader.load_from_onnx(path, force_download=True)
    assert load("org/b") is not b


@pytest.mark.slow
def test_a_subfolder_holds_config_and_preprocessor(path, loader, local_hub, text_files):
    inside = {f"text_encoder/{file.name}": file.read_bytes() for file in text_files.iterdir()}
    commit = local_hub.publish("org/parts", inside | {"config.json": "{}"})
    inject(path, "org/parts", commit, hf_subfolder="text_encoder")

    config, tokenizer = loader.load_from_onnx(path)
    assert config.model_type == "bert"
    assert tokenizer.mask_token == "[MASK]"


@pytest.mark.slow
def test_audio_models_get_their_own_preprocessor(tmp_path):
    import transformers

    letters = {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 3}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(
        str(tmp_path / "vocab.json"), unk_token="[UNK]", pad_token="[PAD]"
    )
    extractor = transformers.Wav2Vec2FeatureExtractor()
    extractor.save_pretrained(tmp_path / "classifier")
    processor = transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer)
    processor.save_pretrained(tmp_path / "ctc")
    for directory in ("classifier", "ctc"):
        (tmp_path / directory / "config.json").write_text('{"model_type": "wav2vec2"}')

    assert isinstance(load_preprocessor(tmp_path / "classifier"), type(extractor))
    assert isinstance(load_preprocessor(tmp_path / "ctc"), transformers.Wav2Vec2Processor)


@pytest.mark.slow
def test_files_that_nothing_can_read_are_an_export_error(tmp_path, text_files):
    for file in text_files.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{")  # tokenizers raises a bare Exception
    with pytest.raises(hfflows.ExportError, match="AutoTokenizer cannot load"):
        load_preprocessor(tmp_path)


# A repo's own code -----------------------------------------------------------------------

CODE = """
from pathlib import Path
import transformers
Base = getattr(transformers, "PreTrainedConfig", None) or transformers.PretrainedConfig
with Path({marker!r}).open("a") as file:
    file.write({text!r} + "\\n")
class OwnConfig(Base):
    model_type = "own-{text}"
    said = {text!r}
"""


def own_code(marker, text):
    auto_map = {"AutoConfig": "configuration_own.OwnConfig"}
    return {
        "config.json": json.dumps({"model_type": f"own-{text}", "auto_map": auto_map}),
        "configuration_own.py": CODE.format(marker=str(marker), text=text),
    }


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """Let transformers keep the code that it runs in a directory of this test."""
    import transformers.dynamic_module_utils as module

    monkeypatch.setattr(module, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])


@pytest.mark.slow
@pytest.mark.usefixtures("own_modules")
def test_code_runs_only_when_asked_and_only_that_of_the_recorded_commit(
    path, local_hub, memory_store, cache_dir, tmp_path
):
    marker = tmp_path / "marker"
    commit = local_hub.publish("org/own", own_code(marker, "recorded"))
    local_hub.publish("org/own", own_code(marker, "later"))
    inject(path, "org/own", commit)
    options = {"token": local_hub.token, "endpoint": local_hub.endpoint, "cache_dir": cache_dir}

    with pytest.raises(hfflows.ExportError, match="pass trust_remote_code=True"):
        HubConfigLoader(memory_store, **options).load_config(path)
    assert not marker.exists()
    trusting = HubConfigLoader(memory_store, trust_remote_code=True, **options)
    assert trusting.load_config(path).said == "recorded"
    assert set(marker.read_text().split()) == {"recorded"}
    with pytest.raises(hfflows.ExportError, match="pass trust_remote_code=True"):
        HubConfigLoader(memory_store, **options).load_config(path)  # nor from what is kept


@pytest.mark.slow
@pytest.mark.usefixtures("own_modules")
def test_code_beside_a_config_runs_only_when_asked(tmp_path):
    (tmp_path / "model").mkdir()
    for name, content in own_code(tmp_path / "marker", "here").items():
        (tmp_path / "model" / name).write_text(content)

    with pytest.raises(hfflows.ExportError, match="pass trust_remote_code=True"):
        load_config(tmp_path / "model")
    assert not (tmp_path / "marker").exists()
    assert load_config(tmp_path / "model", trust_remote_code=True).said == "here"


@pytest.mark.slow
@pytest.mark.usefixtures("own_modules")
def test_code_of_another_repo_is_never_run(path, local_hub, memory_store, cache_dir, tmp_path):
    marker = tmp_path / "marker"
    local_hub.publish("org/evil", own_code(marker, "evil"))
    auto_map = {"AutoConfig": "org/evil--configuration_own.OwnConfig"}
    files = {"config.json": json.dumps({"model_type": "own-evil", "auto_map": auto_map})}
    inject(path, "org/own", local_hub.publish("org/own", files))
    loader = HubConfigLoader(
        memory_store,
        token=local_hub.token,
        endpoint=local_hub.endpoint,
        cache_dir=cache_dir,
        trust_remote_code=True,
    )

    with pytest.raises(hfflows.ExportError, match="another repo"):
        loader.load_config(path)
    assert not marker.exists()
    assert local_hub.count("evil") == 0
