"""`@checkpoint`, `@model`, `@huggingface_hub` and `current`, without a server and in real runs."""

import asyncio
import contextvars
import inspect
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.blocks.system import Secret
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

import hfflows
from hfflows import KeepNewest, keys
from hfflows.errors import SettingsError
from hfflows.identity import RunIdentity
from hfflows.refs import ArtifactRef
from hfflows.tasks import checkpoint, current, huggingface_hub, model
from hfflows.tasks._hub_requests import ARGUMENTS, parse_repos
from hfflows.tasks._model_decorator import parse_models
from hfflows.testing import Fault

# Outside a run nothing is published: Prefect would start a server for it, and warn.
pytestmark = pytest.mark.filterwarnings("error:Artifact creation outside:FutureWarning")

ME = RunIdentity("team", "flow", "train", run="run-1")
FILES = {"config.json": b"{}", "weights.bin": os.urandom(100_000)}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """Return an empty store, which is the default one."""
    monkeypatch.setenv("HFFLOWS_STORE_URL", str(tmp_path / "store"))
    return hfflows.open_store()


@pytest.fixture
def hub(local_hub, monkeypatch):
    local_hub.publish("org/model", FILES)
    monkeypatch.setenv("HF_TOKEN", local_hub.token)
    return local_hub


@pytest.fixture
def at(hub):
    """Return what makes a dict of arguments for the local Hub."""
    return lambda repo_id="org/model", **more: {
        "repo_id": repo_id,
        "endpoint": hub.endpoint,
        **more,
    }


@pytest.fixture
def temporary(tmp_path):
    """Return a root for temporary directories, which must be empty in the end."""
    root = tmp_path / "temporary"
    root.mkdir()
    yield root
    assert list(root.iterdir()) == []


@pytest.fixture
def saved(store, tmp_path):
    """Return references of two saved models by name."""
    refs = {}
    for name in ("base", "teacher"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.bin").write_bytes(name.encode() * 100)
        refs[name] = hfflows.save_model(tmp_path / name, label=name)
    return refs


# Around a function ----------------------------------------------------------------------------


@pytest.mark.parametrize("decorator", [checkpoint, model, huggingface_hub])
def test_name_signature_and_docstring_stay(decorator):
    def train(lr: float, *, epochs: int = 3, **more: str) -> int:
        """Train."""

    for wrapped in (decorator(train), decorator()(train)):
        assert (wrapped.__name__, wrapped.__doc__) == ("train", "Train.")
        assert inspect.signature(wrapped) == inspect.signature(train)
        assert list(flow(wrapped).parameters.properties)[:2] == ["lr", "epochs"]
        assert inspect.getsource(wrapped) == inspect.getsource(train)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
)
def test_the_order_does_not_matter(order):
    def body(a, b=2):
        assert current.checkpoint.directory.is_dir()
        assert dict(current.model.loaded) == dict(current.huggingface_hub.loaded) == {}
        return a, b

    for index in order:
        body = (checkpoint(identity=ME), model, huggingface_hub())[index](body)

    assert body(1, b=3) == (1, 3)
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        body()


@pytest.mark.parametrize("name", ["checkpoint", "model", "huggingface_hub"])
def test_current_names_the_missing_decorator(name):
    with pytest.raises(SettingsError, match=rf"current\.{name} is there only .* under @{name}"):
        getattr(current, name)


@pytest.mark.usefixtures("store")
def test_current_is_over_when_the_body_is():
    @model
    def body(outlive):
        outlive.append(current.model)
        view = []

        def later():
            ended.wait()
            try:
                _ = current.model
            except SettingsError as error:
                view.append(error)

        thread = threading.Thread(target=contextvars.copy_context().run, args=(later,))
        thread.start()
        return thread, view

    ended = threading.Event()
    thread, view = body([])
    ended.set()
    thread.join()
    assert "after the body" in str(view[0])
    with pytest.raises(SettingsError, match="only in the body"):
        _ = current.model


@pytest.mark.usefixtures("store")
def test_nested_bodies_see_their_own_and_then_the_outer_one_again():
    @checkpoint(identity=RunIdentity("team", "flow", "inner"))
    def inner():
        return current.checkpoint.identity.task, current.model

    @model
    @checkpoint(identity=ME)
    def outer():
        outer_model = current.model
        assert inner() == ("inner", outer_model)
        return current.checkpoint.identity.task

    assert outer() == "train"


@pytest.mark.usefixtures("store")
def test_a_thread_of_the_users_own_is_told_what_to_do():
    @model
    def body():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: current.model).exception()

    assert "hand it to them" in str(body())


@pytest.mark.parametrize("decorator", [checkpoint, model, huggingface_hub])
def test_only_plain_functions_are_wrapped(decorator):
    def generator():
        yield 1

    async def async_generator():
        yield 1

    def plain():
        pass

    for wrong, message in [
        (task(plain), "stands above @task; put it below"),
        (flow(plain), "stands above @flow; put it below"),
        (generator, "cannot wrap the generator"),
        (async_generator, "cannot wrap the generator"),
        ("eager", "its arguments are keywords"),
        (str, "plain functions"),
        (decorator(plain), "twice"),
    ]:
        with pytest.raises(SettingsError, match=f"@{decorator.__name__} .*{message}"):
            decorator(wrong)


# What the arguments mean -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "asked"),
    [
        (None, []),
        ([], []),
        ("org/model", [("org/model", "model", None, None)]),
        (["bert"], [("bert", "model", None, None)]),
        (["org/a@v1", "org/b"], [("org/a", "model", "v1", None), ("org/b", "model", None, None)]),
        (["org/a@refs/pr/3"], [("org/a", "model", "refs/pr/3", None)]),
        ([("org/a@v1", "./dir")], [("org/a", "model", "v1", Path("dir"))]),
        ([("org/a", Path("dir"))], [("org/a", "model", None, Path("dir"))]),
        ([("org/a", None)], [("org/a", "model", None, None)]),
        ([{"repo_id": "org/a", "repo_type": "dataset"}], [("org/a", "dataset", None, None)]),
        ([({"repo_id": "a", "revision": "v"}, "dir")], [("a", "model", "v", Path("dir"))]),
    ],
)
def test_the_forms_of_a_repo_to_load(load, asked):
    assert [(r.repo_id, r.repo_type, r.revision, r.path) for r in parse_repos(load)] == asked


def test_a_dict_takes_the_arguments_of_snapshot_download():
    options = {"allow_patterns": ["*.json"], "force_download": True, "token": "hf_secret"}

    (request,) = parse_repos([{"repo_id": "org/a", **options}])

    assert request.options == options
    assert "hf_secret" not in repr(request)
    assert {"repo_type", "revision", "ignore_patterns", "max_age", "endpoint"} <= ARGUMENTS


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (("org/a", "./dir"), "a repo id or a list, got tuple"),
        ({"repo_id": "org/a"}, "a repo id or a list, got dict"),
        ([("org/a", "b", "c")], "a tuple is .repo, path., got 3 parts"),
        ([3], "an id or a dict of arguments, got int"),
        ([{"revision": "v1"}], "needs a 'repo_id'"),
        (
            [{"repo_id": "org/a", "patterns": "*"}],
            "org/a: patterns cannot be given.*allow_patterns",
        ),
        ([{"repo_id": "org/a", "local_dir": "x"}], r"local_dir .* Write \(repo, path\)"),
        ([{"repo_id": "org/a", "store": None}], "store cannot be given"),
        ([{"repo_id": "org/a", "repo_type": "modle"}], "repo_type='modle' is none of model"),
        ([{"repo_id": "org/a@v1", "revision": "v2"}], "another revision"),
        (["org/a@"], "names no repo"),
        (["@v1"], "names no repo"),
        (["org/a", "org/a@main"], "'org/a@main' twice"),
        (["org/a", {"repo_id": "org/a", "allow_patterns": "*.json"}], "join their patterns"),
        ([("org/a", "dir"), ("org/b", "./dir")], "'dir' twice"),
    ],
)
def test_a_repo_to_load_that_is_wrong_is_refused_at_decoration(load, message):
    with pytest.raises(SettingsError, match=message):
        huggingface_hub(load=load)


def test_an_unknown_scope_is_refused_at_decoration():
    with pytest.raises(SettingsError, match="cache_scope='team' is none of checkpoint, flow"):
        huggingface_hub(cache_scope="team")(lambda: None)


@pytest.mark.parametrize(
    ("load", "pairs"),
    [
        (None, []),
        ("base", [("base", None)]),
        (["base", "teacher"], [("base", None), ("teacher", None)]),
        (["base", ("teacher", "d")], [("base", None), ("teacher", Path("d"))]),
        ([("base", None)], [("base", None)]),
    ],
)
def test_the_forms_of_a_model_to_load(load, pairs):
    assert list(parse_models(load)) == pairs


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (("base", "dir"), "a parameter's name or a list"),
        ([3], "3 is neither a parameter's name nor"),
        (["base", "base"], "twice"),
        ([("base", "d"), ("teacher", "./d")], "twice"),
        (["bsae"], r"body: load names 'bsae', which is none of its parameters \(base, teacher\)"),
    ],
)
def test_a_model_to_load_that_is_wrong_is_refused_at_decoration(load, message):
    def body(base, teacher):
        pass

    with pytest.raises(SettingsError, match=message):
        model(load=load)(body)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_policy": "freshest"}, "load_policy='freshest' is none of fresh, eager, none"),
        ({"key": "{flod}"}, r"key='{flod}' names 'flod', which is none of its parameters \(fold"),
        ({"key": "{}"}, "names ''"),
        ({"key": "{fold"}, "is no template"),
        ({"key": 3}, "neither text nor a function"),
    ],
)
def test_wrong_checkpoint_arguments_are_refused_at_decoration(options, message):
    with pytest.raises(SettingsError, match=message):
        checkpoint(**options)(lambda fold, config=None: None)


class Config:
    name = "large"


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("key", "item"),
    [
        (None, ""),
        ("always", "always"),
        ("{fold}", "3"),
        ("{config.name}-{fold:02d}", "large-03"),
        (lambda parameters: f"f{parameters['fold']}", "f3"),
    ],
)
def test_a_key_is_made_of_the_parameters(key, item):
    @checkpoint(identity=ME, key=key)
    def body(fold=3, config=Config):
        return current.checkpoint.identity.item

    assert body() == item


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("{fold.missing}", "cannot be filled in: AttributeError"),
        ("{fold[x]}", "cannot be filled in: TypeError"),
        ("", "came out as ''"),
        (lambda _: 3, "came out as 3"),
    ],
)
def test_a_key_that_does_not_come_out_as_text_is_refused(key, message):
    @checkpoint(identity=ME, key=key)
    def body(fold=3):
        raise AssertionError

    with pytest.raises(SettingsError, match=message):
        body()


def test_a_checkpoint_outside_a_run_needs_an_identity(store):
    @checkpoint
    def train():
        raise AssertionError

    with pytest.raises(SettingsError, match="train is under @checkpoint and there is no Prefect"):
        train()


# @checkpoint without Prefect ---------------------------------------------------------------


def test_a_body_resumes_and_leaves_no_directory(store, temporary):
    @checkpoint(identity=ME, temp_dir_root=temporary, store=store.url)
    def train(*, fail):
        state = current.checkpoint.directory / "state"
        before = int(state.read_text()) if current.checkpoint.is_loaded else 0
        assert current.checkpoint.info == current.checkpoint.latest()
        state.write_text(str(before + 1))
        current.checkpoint.save(metadata={"step": before}, block=False)
        if fail:
            raise RuntimeError
        return before

    for _ in range(2):
        with pytest.raises(RuntimeError):
            train(fail=True)
    assert train(fail=False) == 2


def test_a_failed_background_save_fails_the_task_at_its_end(store, temporary):
    @checkpoint(identity=ME, temp_dir_root=temporary, store=store)
    def train():
        (current.checkpoint.directory / "state").touch()
        current.checkpoint.save(metadata={"loss": float("nan")}, block=False)

    with pytest.raises(SettingsError, match="finite numbers"):
        train()


def test_a_termination_signal_passes_after_the_save_under_way(store, temporary):
    @checkpoint(identity=ME, temp_dir_root=temporary)
    def train():
        (current.checkpoint.directory / "state").touch()
        current.checkpoint.save(block=False)
        raise TerminationSignal(signal=signal.SIGTERM)

    with pytest.raises(TerminationSignal):
        train()
    assert len(hfflows.list_artifacts("checkpoint")) == 1


def test_retention_is_applied(store):
    @checkpoint(identity=ME, retention=KeepNewest(2))
    def train():
        for step in range(4):
            current.checkpoint.save(metadata={"step": step})
        return [ref.metadata["step"] for ref in current.checkpoint.list()]

    assert train() == [3, 2]


def test_checkpoints_are_loaded_in_every_form_into_directories_that_go(store, temporary, tmp_path):
    @checkpoint(identity=ME, temp_dir_root=temporary)
    def train():
        (current.checkpoint.directory / "state").write_text("1")
        ref = current.checkpoint.save(name="best")
        current.checkpoint.save(name="last")
        paths = [current.checkpoint.load(form) for form in (ref, ref.model_dump(), ref.key)]
        paths.append(current.checkpoint.load(ref, tmp_path / "kept"))
        assert [(path / "state").read_text() for path in paths] == ["1"] * 4
        assert [found["key"] for found in current.checkpoint.list("best", as_dict=True)] == [
            ref.key
        ]
        assert current.checkpoint.list(name="best", attempt="001") == [ref]
        assert current.checkpoint.list(attempt="002") == []
        with pytest.raises(hfflows.CheckpointNotFoundError):
            current.checkpoint.load(ref.key.replace(".best.", ".worst."))
        return paths

    *gone, kept = train()
    assert [path.exists() for path in (*gone, kept)] == [False] * 3 + [True]


# @model without Prefect --------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", [lambda ref: ref, lambda ref: ref.model_dump(), lambda ref: ref.key]
)
def test_a_parameter_is_loaded_whatever_form_its_reference_has(saved, temporary, form):
    @model(load="base", temp_dir_root=temporary)
    def body(base):
        path = current.model.loaded["base"]
        assert current.model.info["base"] == current.model.loaded.info["base"] == saved["base"]
        assert (path / "weights.bin").read_bytes() == b"base" * 100
        return path

    assert not body(form(saved["base"])).exists()


def test_several_parameters_are_loaded_and_a_given_path_stays(saved, temporary, tmp_path):
    @model(load=["base", ("teacher", tmp_path / "t")], temp_dir_root=temporary)
    def body(base=saved["base"], **more):
        assert list(current.model.loaded) == ["base", "teacher"]
        assert len(current.model.loaded) == 2
        assert "student" not in current.model.loaded
        assert current.model.loaded.get("student") is None
        with pytest.raises(KeyError, match=r"'student' was not loaded by @model.*base, teacher"):
            current.model.loaded["student"]
        return dict(current.model.loaded)

    paths = body(teacher=saved["teacher"])
    assert paths["teacher"] == tmp_path / "t"
    assert (tmp_path / "t" / "weights.bin").read_bytes() == b"teacher" * 100
    assert body(teacher=saved["teacher"])["teacher"] == tmp_path / "t"  # a retry finds it there


@pytest.mark.parametrize("change", ["other", "longer", "link", "more"])
def test_a_given_path_with_something_else_in_it_is_not_touched(saved, temporary, tmp_path, change):
    path = tmp_path / "t"
    hfflows.load_model(saved["base"], path)
    weights = path / "weights.bin"
    match change:
        case "other":
            weights.write_bytes(b"x" * 400)
        case "longer":
            weights.write_bytes(b"base" * 101)
        case "more":
            (path / "more").touch()
        case "link":
            (path / "out").symlink_to("/etc")
    before = weights.read_bytes()

    @model(load=[("base", path)], temp_dir_root=temporary)
    def body(base):
        raise AssertionError

    with pytest.raises(hfflows.TargetError, match="is not empty"):
        body(saved["base"])
    assert weights.read_bytes() == before


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (None, SettingsError, "body was called without a value for 'base'"),
        ({"key": "x"}, SettingsError, "not a reference"),
        ("org/model", SettingsError, "not the key of an artifact"),
        (3, SettingsError, "A reference is an ArtifactRef or its dict, got int"),
    ],
)
def test_a_parameter_without_a_reference_is_refused(saved, temporary, value, error, message):
    @model(load="base", temp_dir_root=temporary)
    def body(base=None):
        raise AssertionError

    with pytest.raises(error, match=message):
        body(value)


def test_nothing_is_left_when_the_second_model_or_the_body_fails(store, saved, temporary):
    @model(load=["base", "teacher"], temp_dir_root=temporary)
    def body(base, teacher):
        current.model.load(base)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        body(saved["base"], saved["teacher"])
    store.delete([info.key for info in store.list(keys.files_prefix(saved["teacher"].key))])
    with pytest.raises(hfflows.IntegrityError, match="missing"):
        body(saved["base"], saved["teacher"])


def test_a_model_is_saved_with_what_was_loaded_as_its_parents(saved, temporary):
    @model(load="base", temp_dir_root=temporary)
    def body(base, **options):
        return current.model.save(current.model.loaded["base"], metadata={"f1": 1.0}, **options)

    ref = body(saved["base"], label="mine", storage_format="packed")
    assert (ref.kind, ref.name, ref.storage_format) == ("model", "mine", "packed")
    assert [parent.key for parent in ref.parents] == [saved["base"].key]
    assert body(saved["base"], label="mine", parents=[]).parents == ()
    with pytest.raises(SettingsError, match="needs label="):
        body(saved["base"])


def test_a_reference_from_another_store_is_loaded_from_there(
    saved, temporary, monkeypatch, tmp_path
):
    monkeypatch.setenv("HFFLOWS_STORE_URL", str(tmp_path / "elsewhere"))

    @model(load="base", temp_dir_root=temporary)
    def body(base):
        return current.model.save(current.model.loaded["base"], label="copy")

    assert body(saved["base"]).store_url.endswith("/elsewhere")


# @huggingface_hub without Prefect ------------------------------------------------------------


def test_every_form_of_load_is_on_disk_before_the_body(
    store, hub, at, temporary, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    hub.publish("org/other", FILES)
    hub.publish("org/third", FILES)
    hub.publish("org/data", {"rows.csv": "1"}, repo_type="dataset")
    load = [
        "org/model",
        ("org/other", tmp_path / "other"),
        at("org/third", allow_patterns=["*.json"]),
        (at("org/data", repo_type="dataset"), tmp_path / "data"),
    ]

    @huggingface_hub(load=load, temp_dir_root=temporary)
    def body():
        loaded, info = current.huggingface_hub.loaded, current.huggingface_hub.info
        assert list(loaded) == ["org/model", "org/other", "org/third", "org/data"]
        assert (loaded["org/model"] / "weights.bin").read_bytes() == FILES["weights.bin"]
        assert loaded["org/model@main"] == loaded["org/model"]
        assert loaded["datasets/org/data@main"] == tmp_path / "data"
        assert [path.name for path in loaded["org/third"].iterdir()] == ["config.json"]
        assert loaded.info["org/third"] == info["org/third"]
        assert info["org/third"].file_count == 1
        return loaded["org/model"], info["org/model"]

    path, ref = body()
    assert not path.exists()
    assert isinstance(ref, ArtifactRef)
    assert "/global/" in ref.key
    assert (tmp_path / "other" / "weights.bin").stat().st_size == 100_000
    hub.reset_counts()
    assert body()[1] == ref
    assert hub.count("resolve/") == 0


def test_two_revisions_of_one_repo_are_both_right(store, hub, at, temporary):
    first = hub.publish("org/model", {"v.txt": "one"})
    hub.publish("org/model", {"v.txt": "two"})
    load = [at(revision=first), at(), at("org/model", repo_type="dataset")]
    hub.publish("org/model", {"v.txt": "data"}, repo_type="dataset")

    @huggingface_hub(load=load, temp_dir_root=temporary)
    def body():
        loaded = current.huggingface_hub.loaded
        texts = {name: (path / "v.txt").read_text() for name, path in loaded.items()}
        assert "org/model" in loaded
        with pytest.raises(
            SettingsError, match=f"say which: 'org/model@{first}' or 'org/model@main'"
        ):
            loaded["org/model"]
        return texts

    assert body() == {f"org/model@{first}": "one", "org/model@main": "two"} | {
        "datasets/org/model": "data"
    }


def test_a_repo_that_cannot_be_had_leaves_no_directory_and_no_body(
    store, hub, at, temporary, tmp_path
):
    @huggingface_hub(load=[(at(), tmp_path / "kept"), at("org/none")], temp_dir_root=temporary)
    def body():
        raise AssertionError

    with pytest.raises(hfflows.RepoNotFoundError):
        body()
    assert not (tmp_path / "kept").exists()


def test_a_download_that_breaks_leaves_nothing(store, hub, at, temporary):
    hub.inject(Fault(match="/resolve/", status=403, times=100))

    @huggingface_hub(load=[at()], temp_dir_root=temporary)
    def body():
        raise AssertionError

    with pytest.raises(hfflows.HubError):
        body()
    assert hfflows.list_artifacts() == []


def test_repos_are_fetched_and_loaded_in_the_body_too(store, hub, at, temporary, tmp_path):
    options = at()
    options.pop("repo_id")

    @huggingface_hub(temp_dir_root=temporary)
    def body():
        hub_view = current.huggingface_hub
        ref = hub_view.snapshot_download(repo_id="org/model", allow_patterns="*.json", **options)
        assert ref["file_count"] == 1
        with hub_view.load("org/model@main", **options) as path:
            assert (path / "weights.bin").exists()
        assert not path.exists()
        for _ in range(2):
            with hub_view.load(repo_id="org/model", path=tmp_path / "kept", **options) as kept:
                assert kept == tmp_path / "kept"
        with pytest.raises(SettingsError, match="local_dir"):
            hub_view.snapshot_download("org/model", local_dir="x")
        return kept

    assert body().is_dir()


def test_a_narrow_scope_outside_a_run_is_refused(store, at, temporary):
    @huggingface_hub(load=[at()], cache_scope="flow", temp_dir_root=temporary)
    def body():
        raise AssertionError

    with pytest.raises(SettingsError, match="needs a run"):
        body()


# Coroutines ----------------------------------------------------------------------------------


def test_a_coroutine_function_has_all_three_and_blocks_nobody(store, saved, at, temporary):
    roots = {"temp_dir_root": temporary}

    @checkpoint(identity=ME, **roots)
    @model(load="base", **roots)
    @huggingface_hub(load=[at()], **roots)
    async def body(base, name):
        current.checkpoint.identity  # noqa: B018
        (current.checkpoint.directory / name).touch()
        await asyncio.sleep(0.01)
        ref = await asyncio.to_thread(current.checkpoint.save, name=name)
        assert (current.model.loaded["base"] / "weights.bin").exists()
        assert (current.huggingface_hub.loaded["org/model"] / "config.json").exists()
        return ref.name

    async def both():
        return await asyncio.gather(body(saved["base"], "a"), body(saved["base"], name="b"))

    assert inspect.iscoroutinefunction(body)
    assert asyncio.run(both()) == ["a", "b"]


@pytest.mark.parametrize("when", ["while it loads", "in its body"])
def test_a_cancelled_coroutine_leaves_nothing(store, at, hub, temporary, when):
    if when == "while it loads":
        hub.inject(Fault(match="/resolve/", stall_seconds=1))

    @huggingface_hub(load=[at()], temp_dir_root=temporary)
    async def body(begun):
        begun.set()
        await asyncio.sleep(60)

    async def cancel():
        begun = asyncio.Event()
        running = asyncio.ensure_future(body(begun))
        if when == "in its body":
            await begun.wait()
        while not hub.count("/resolve/"):
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert begun.is_set() == (when == "in its body")
        assert len(hfflows.list_artifacts()) == 1  # what was under way has ended
        assert list(temporary.iterdir()) == []

    asyncio.run(cancel())


# In real runs ----------------------------------------------------------------------------------


def in_runs(test):
    """Mark a test that starts flows on a real server."""
    return pytest.mark.slow(pytest.mark.usefixtures("prefect_api")(test))


@pytest.fixture
def s3_store(local_s3, monkeypatch):
    url = local_s3.url(os.urandom(4).hex())
    for name, value in {**local_s3.environ(), "HFFLOWS_STORE_URL": url}.items():
        monkeypatch.setenv(name, value)
    return hfflows.open_store()


def shown(run_id, key):
    """Return what a run published in the UI under a key, in any order."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    return [artifact.data for artifact in found if artifact.key == key]


def step(seen, *, fail_first):
    """Count on in the checkpoint's directory and fail as often as told."""
    state = current.checkpoint.directory / "state"
    assert state.exists() == current.checkpoint.is_loaded
    count = int(state.read_text()) if state.exists() else 0
    seen.append(count)
    state.write_text(str(count + 1))
    current.checkpoint.save(block=False)
    if count < fail_first:
        raise RuntimeError
    return count


@in_runs
def test_all_three_carry_a_training_run_through_its_retries(s3_store, at, hub, temporary):
    paths = []

    @task(retries=3)
    @checkpoint(load_policy="fresh", temp_dir_root=temporary)
    @huggingface_hub(load=[at()], cache_scope="flow", temp_dir_root=temporary)
    @model
    def train(epochs: int, fail_at: int):
        base = current.huggingface_hub.loaded["org/model"]
        state, begin = current.checkpoint.directory / "epoch", 0
        if current.checkpoint.is_loaded:
            begin = current.checkpoint.info.metadata["epoch"] + 1
            assert state.read_text() == str(begin - 1)
        for epoch in range(begin, epochs):
            state.write_text(str(epoch))
            current.checkpoint.save(name="epoch", metadata={"epoch": epoch})
            paths.append((begin, base, current.checkpoint.directory))
            if epoch == begin + fail_at:
                raise RuntimeError
        parents = [current.huggingface_hub.info["org/model"]]
        return current.model.save(base, metadata={"begin": begin}, parents=parents)

    @task
    @model(load=["trained"], temp_dir_root=temporary)
    def evaluate(trained):
        path = current.model.loaded["trained"]
        assert (path / "weights.bin").read_bytes() == FILES["weights.bin"]
        return current.model.info["trained"].metadata

    @flow(name="retrain")
    def retrain():
        trained = train(epochs=5, fail_at=1)
        return {"model": trained, "begin": evaluate(trained), "run": str(flow_run.id)}

    result = retrain()
    trained = result["model"]
    assert result["begin"] == {"begin": 4}
    assert [begin for begin, *_ in paths] == [0, 0, 2, 2, 4]
    assert not any(path.exists() for _, *both in paths for path in both)
    assert trained.name == "retrain/train"
    assert trained.parents[0].key.startswith("refs/snapshot/flow/retrain/")
    assert hub.count("/resolve/.*weights") == 1
    snapshots = shown(result["run"], "hfflows-snapshot-org-model")
    assert ["| outcome | miss |" in text for text in snapshots].count(True) == 1
    assert ["| outcome | hit |" in text for text in snapshots].count(True) == 2
    (model_page,) = shown(result["run"], "hfflows-model-retrain-train")
    assert trained.key in model_page


@in_runs
@pytest.mark.parametrize(("policy", "counts"), [("fresh", [0, 1, 2]), ("none", [0, 0, 0])])
def test_a_retry_resumes_unless_told_not_to(store, temporary, policy, counts):
    seen = []

    @task(retries=2)
    @checkpoint(load_policy=policy, temp_dir_root=temporary)
    def train(lr):
        return step(seen, fail_first=2)

    @flow
    def run():
        return train(0.1, return_state=True).is_completed(), len(hfflows.list_artifacts())

    assert run() == (policy == "fresh", 3)
    assert seen == counts


@in_runs
def test_mapped_items_keep_to_their_own_with_a_key_run_after_run(store, temporary):
    seen = []

    @task(retries=1)
    @checkpoint(load_policy="eager", key="fold-{fold}", temp_dir_root=temporary)
    def train(fold, seed):
        count = step(seen, fail_first=1)
        return current.checkpoint.identity.item, count, len(current.checkpoint.list())

    @flow
    def run(seed):
        return [future.result() for future in train.map([1, 2, 3], seed=seed)]

    assert run(1) == [("fold-1", 1, 1), ("fold-2", 1, 1), ("fold-3", 1, 1)]
    assert [count for _, count, _ in run(2)] == [2, 2, 2]
    assert sorted(seen) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@in_runs
def test_calls_that_would_share_a_lineage_are_asked_for_a_key(store, temporary):
    @task
    @checkpoint(load_policy="eager", temp_dir_root=temporary)
    def train(fold):
        return step([], fail_first=0)

    @flow
    def run(*folds):
        return [train(fold) for fold in folds]

    assert run(1) == [0]
    assert run(2) == [1]  # another run's inputs may differ
    with pytest.raises(SettingsError, match="train is called with different inputs in one run"):
        run(1, 2)


@in_runs
@pytest.mark.parametrize(("policy", "counts"), [("fresh", [0, 1, 0, 1]), ("eager", [0, 1, 2])])
def test_the_body_of_a_flow_has_checkpoints_too(store, temporary, policy, counts):
    seen = []

    @flow(retries=1)
    @checkpoint(load_policy=policy, temp_dir_root=temporary)
    def train(lr: float):
        return step(seen, fail_first=1)

    for lr in (0.1, 0.2):
        train(lr)
    assert seen == counts


@in_runs
def test_tasks_at_the_same_time_never_mix_current(store, saved, temporary):
    meet = threading.Barrier(2)

    @task(cache_policy=NO_CACHE)
    @model(load="base", temp_dir_root=temporary)
    @checkpoint(key="{name}", temp_dir_root=temporary)
    def train(name, base):
        seen = set()
        for _ in range(20):
            meet.wait(30)
            text = (current.model.loaded["base"] / "weights.bin").read_text()
            seen.add((current.checkpoint.identity.item, text[: len(name)]))
        (current.checkpoint.directory / name).touch()
        current.checkpoint.save()
        return seen

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
    def run():
        futures = train.map(list(saved), [saved[name] for name in saved])
        return [future.result() for future in futures]

    assert run() == [{("base", "base")}, {("teacher", "teacher")}]


@in_runs
def test_a_task_called_from_a_decorated_one_has_no_part_in_it(store, temporary):
    @task
    def helper():
        return current.checkpoint.directory

    @task
    @checkpoint(temp_dir_root=temporary)
    def train():
        with pytest.raises(SettingsError, match="put @checkpoint on this one too"):
            helper()
        with pytest.raises(SettingsError, match="put @checkpoint on this one too"):
            helper.submit().result()
        return current.checkpoint.identity.task

    @flow
    def run():
        return train()

    assert run() == "train"


@in_runs
def test_checkpoints_of_another_task_are_listed(store, temporary):
    @task(retries=1)
    @checkpoint(temp_dir_root=temporary)
    def prepare(part):
        step([], fail_first=1)
        current.checkpoint.save(name="whole", metadata={"part": part})

    @task
    @checkpoint(temp_dir_root=temporary)
    def train():
        view = current.checkpoint
        latest = view.list(task=prepare)
        first = {ref.producer.attempt for ref in view.list(task="prepare", full_namespace=True)}
        first -= {ref.producer.attempt for ref in latest}
        return (
            sorted(ref.metadata["part"] for ref in view.list("whole", task=prepare)),
            len(latest),
            [len(view.list(task="prepare", attempt=attempt)) for attempt in sorted(first)],
            view.list(),
        )

    @flow
    def run(*parts):
        for part in parts:
            prepare(part)
        return train()

    assert run("a", "b") == (["a", "b"], 4, [1, 1], [])
    assert run("a")[:2] == (["a"], 2)


@in_runs
@pytest.mark.parametrize("scope", [None, "flow"])
def test_a_snapshot_is_scoped_and_takes_its_token_from_a_block(
    store, hub, at, temporary, monkeypatch, scope
):
    hub.publish("org/private", FILES, private=True)
    Secret(value=hub.token).save("decorator-token", overwrite=True, _sync=True)
    monkeypatch.delenv("HF_TOKEN")

    @task
    @huggingface_hub(
        load=[at("org/private")],
        cache_scope=scope,
        token_block="decorator-token",
        temp_dir_root=temporary,
    )
    def fetch(item):
        return current.huggingface_hub.info["org/private"].key

    @flow(name="a-flow")
    def run():
        return [future.result() for future in fetch.map([1, 2])]

    where = "flow/a-flow/" if scope else "checkpoint/default/a-flow/fetch/=/"
    assert all(key.startswith(f"refs/snapshot/{where}") for key in run())
    assert not any(hub.token.encode() in store.get(info.key) for info in store.list(""))


PROCESS_FLOW = """
import os
from prefect import flow, task
from prefect.task_runners import ProcessPoolTaskRunner
from hfflows.tasks import checkpoint, current, model

@task(retries=1)
@checkpoint(key="{name}")
@model(load="base")
def train(name, base):
    assert (current.model.loaded["base"] / "weights.bin").exists()
    current.checkpoint.save()
    if not current.checkpoint.is_loaded:
        raise RuntimeError("killed")
    return current.checkpoint.identity.item, os.getpid()

@flow(task_runner=ProcessPoolTaskRunner(max_workers=1))
def run(base):
    return train.submit("a", base).result()

if __name__ == "__main__":
    item, process = run(os.environ["BASE"])
    print("ITEM", item, process != os.getpid())
"""


@in_runs
def test_the_process_runner_runs_decorated_tasks(saved, tmp_path, prefect_server):
    script = tmp_path / "process_flow.py"
    script.write_text(PROCESS_FLOW)
    environ = {**os.environ, **prefect_server.environ(), "BASE": saved["base"].key}

    done = subprocess.run(
        [sys.executable, str(script)], env=environ, capture_output=True, text=True, check=False
    )

    assert "ITEM a True" in done.stdout, done.stderr[-3000:]


@in_runs
def test_a_coroutine_task_resumes_too(store, temporary):
    seen = []

    @task(retries=1)
    @checkpoint(key="{fold}", temp_dir_root=temporary)
    async def train(fold):
        await asyncio.sleep(0)
        return step(seen, fail_first=1), current.checkpoint.identity.item

    @flow
    async def run():
        return await asyncio.gather(train("a"), train("b"))

    assert asyncio.run(run()) == [(1, "a"), (1, "b")]
    assert sorted(seen) == [0, 0, 1, 1]
