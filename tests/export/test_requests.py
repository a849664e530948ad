"""Asking for an export: options, limits on its process, variants, and asking twice."""

import json
import math
import os
import select
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import hfflows
from hfflows import keys
from hfflows.artifacts import commit_artifact, scan
from hfflows.export import (
    ExportSettings,
    export_onnx,
    fetch_export,
    inject_artifact,
    inject_hub_metadata,
    read_onnx_metadata,
    verify_export,
)
from hfflows.export import _export as export_module
from hfflows.export import _settings as settings_module
from hfflows.export._artifact import _Request
from hfflows.export._onnx._graphs import graph_sha256
from hfflows.export._process import group_memory_bytes, run_worker
from hfflows.export._provenance import Origin
from hfflows.export._variants import TOLERANCES, write_variants
from hfflows.export._verify import _check_parity
from hfflows.testing._store_wrapper import StoreWrapper

ROOT = Path(__file__).parents[2]
COMMIT = "c" * 40


# Options ---------------------------------------------------------------------------------


def test_settings_cross_the_process_boundary_unchanged():
    settings = ExportSettings(
        pipeline_tag="fill-mask",
        opset=18,
        backend="torchscript",
        variants=("fp16", "int8", "fp16"),
        pooling="graph",
        trust_remote_code=True,
        parity_tolerance=1,
    )

    assert settings.variants == ("int8", "fp16")  # one order, so that equal requests are equal
    assert ExportSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert ExportSettings.from_json({}) == ExportSettings()
    with pytest.raises(hfflows.SettingsError, match=r"'quantise'.*newer hfflows"):
        ExportSettings.from_json({"quantise": True})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pipeline_tag": ""}, "pipeline_tag=''"),
        ({"pipeline_tag": 3}, "pipeline_tag=3"),
        ({"opset": 7}, "opset=7 .*from 11"),
        ({"opset": True}, "opset=True"),
        ({"opset": 17.0}, "opset=17.0"),
        ({"dtype": "int4"}, "dtype='int4' is none of 'float32', 'float16'"),
        ({"backend": "magic"}, "backend='magic' is none of 'auto'"),
        ({"backend": ["auto"]}, "backend="),
        ({"variants": "int8"}, "variants='int8' must be a list"),
        ({"variants": ["int4"]}, "variants=.*'int8' and 'fp16'"),
        ({"variants": 8}, "variants=8"),
        ({"variants": ["fp16"], "dtype": "float16"}, "made from a float32 graph"),
        ({"pooling": "mean"}, "pooling='mean'"),
        ({"trust_remote_code": 1}, "trust_remote_code=1"),
        ({"parity_tolerance": -1}, "parity_tolerance=-1"),
        ({"parity_tolerance": float("nan")}, "parity_tolerance=nan"),
        ({"parity_tolerance": "1e-3"}, "parity_tolerance='1e-3'"),
        ({"timeout_seconds": 0}, "timeout_seconds=0"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds=inf"),
        ({"memory_limit_bytes": 0}, "memory_limit_bytes=0"),
        ({"memory_limit_bytes": 1.5}, "memory_limit_bytes=1.5"),
        ({"memory_limit_bytes": True}, "memory_limit_bytes=True"),
        ({"preprocessor": "x"}, "preprocessor= is for a loaded model"),
    ],
    ids=str,
)
def test_a_bad_option_is_refused_before_anything_is_touched(tmp_path, options, said):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")

    with pytest.raises(hfflows.SettingsError, match=said):
        export_onnx(tmp_path / "model", tmp_path / "deep" / "onnx", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


class Saves:
    """Has what a model of transformers has, as far as sources go."""

    def __init__(self, config=None, error=None):
        self.config, self.error = config, error

    def __repr__(self):  # names tests: an address would be another one in each process
        return "a model"

    def save_pretrained(self, directory):
        if self.error is not None:
            raise self.error
        Path(directory).mkdir(exist_ok=True)
        (Path(directory) / "saved").touch()


@pytest.mark.parametrize(
    ("source", "options", "error", "said"),
    [
        (3, {}, hfflows.SettingsError, "got int"),
        ("org/model", {}, hfflows.SettingsError, r"no config\.json.*snapshot_download"),
        ("refs/model/x", {}, hfflows.SettingsError, "not the key of an artifact"),
        ({"key": "x"}, {}, hfflows.SettingsError, "not a reference"),
        (Saves(), {}, hfflows.SettingsError, "Saves has no config"),
        (Saves({}), {"preprocessor": 3}, hfflows.SettingsError, "preprocessor is a int"),
        (Saves({}), {}, hfflows.SettingsError, r"Saves\.save_pretrained writes holds no config"),
        (
            Saves({}, NotImplementedError("on meta")),
            {},
            hfflows.ExportError,
            "Saves cannot be saved: on meta",
        ),
    ],
    ids=str,
)
def test_what_is_no_model_says_what_to_pass(
    tmp_path, monkeypatch, memory_store, source, options, error, said
):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(error, match=said):
        export_onnx(source, tmp_path / "onnx", store=memory_store, **options)
    assert not (tmp_path / "onnx").exists()


@pytest.fixture
def seen(monkeypatch):
    """Return what the worker would have been asked for: the request, and the files it found."""
    asked = {}

    def answer(request, scratch, **limits):
        source = Path(request["source"])
        asked.update(limits, settings=request["settings"], at=source.is_relative_to(scratch))
        asked["files"] = sorted(path.relative_to(source).as_posix() for path in source.rglob("*"))
        raise hfflows.ExportError("asked")

    monkeypatch.setattr(export_module, "run_worker", answer)
    return asked


@pytest.mark.parametrize("form", ["reference", "dict", "key"])
def test_a_stored_model_is_brought_in_without_its_copies_for_other_runtimes(
    tmp_path, memory_store, seen, form
):
    model = tmp_path / "model"
    for name in ("config.json", "model.safetensors", "onnx/model.onnx", "tf_model.h5"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).touch()
    ref = hfflows.save_artifact(model, name="m", store=memory_store)
    source = {"reference": ref, "dict": ref.model_dump(mode="json"), "key": ref.key}[form]

    with pytest.raises(hfflows.ExportError, match="asked"):
        export_onnx(
            source,
            tmp_path / "onnx",
            store=memory_store,
            opset=18,
            variants=["int8"],
            memory_limit_bytes=1 << 30,
            timeout_seconds=5,
        )
    assert seen["files"] == ["config.json", "model.safetensors"]
    assert seen["at"]
    assert (seen["memory_limit_bytes"], seen["timeout_seconds"]) == (1 << 30, 5)
    assert (seen["settings"]["opset"], seen["settings"]["variants"]) == (18, ["int8"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


# The process -----------------------------------------------------------------------------


def ask(scratch, do, *, limits=None, **options):
    return run_worker(
        {"do": do, **options},
        scratch,
        subject="The export of it",
        module="tests.export.fake_worker",
        **(limits or {}),
    )


def test_the_process_gets_no_secrets_and_keeps_code_to_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("SOME_SETTING", "1")
    found = ask(tmp_path, "environ")

    assert "SOME_SETTING" in found["environ"]
    assert not {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY"} & set(found["environ"])
    assert found["modules"] == str(tmp_path / "modules")


@pytest.mark.parametrize(
    ("do", "said"),
    [
        ("die", r"ended with status -9 \(killed, perhaps for want of memory\)\.\nIts last words"),
        ("fail", r"(?s)ended with status 1\..*RuntimeError: cannot go on"),
    ],
)
def test_a_process_that_dies_leaves_its_last_words(tmp_path, do, said):
    with pytest.raises(hfflows.ExportError, match=said) as caught:
        ask(tmp_path, do)
    assert caught.value.printed.startswith(f"says what it does: {do}")


def test_an_error_comes_back_as_its_own_class(tmp_path):
    with pytest.raises(hfflows.ParityError, match=r"^differs$") as caught:
        ask(tmp_path, "refuse")
    assert (caught.value.difference, caught.value.tolerance) == (2.5, 1.0)


@pytest.mark.parametrize("do", ["hold", "hold_in_a_child"])
def test_a_process_that_holds_too_much_is_stopped_with_its_children(tmp_path, do):
    limits = {"memory_limit_bytes": 150_000_000, "timeout_seconds": 60}

    with gone_after(tmp_path) as pids, pytest.raises(hfflows.ExportError) as caught:
        ask(tmp_path, do, bytes=200_000_000, pids=str(pids), limits=limits)
    assert "more than memory_limit_bytes=150,000,000, and was stopped" in str(caught.value)


def test_mapped_files_do_not_count_as_memory(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(200_000_000))
    limits = {"memory_limit_bytes": 150_000_000}

    found = ask(tmp_path, "map_a_file", file=str(tmp_path / "weights"), seconds=0.3, limits=limits)
    assert found == {"read": 0}
    assert group_memory_bytes(os.getpgid(0)) > 10_000_000


def test_a_process_that_takes_too_long_is_stopped_with_its_children(tmp_path):
    with gone_after(tmp_path) as pids, pytest.raises(hfflows.ExportError, match=r"than 1 s and"):
        ask(tmp_path, "wait", pids=str(pids), limits={"timeout_seconds": 1})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_outlives_the_one_who_asked(tmp_path, number):
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from hfflows.export._process import run_worker\n"
        # A shell's background jobs, and what they start, are deaf to it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "run_worker({'do': 'wait', 'pids': sys.argv[2]}, Path(sys.argv[1]), subject='It',"
        " module='tests.export.fake_worker')"
    )
    with gone_after(tmp_path) as pids:
        asking = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(pids)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        pids.wait()
        asking.send_signal(number)
        _, said = asking.communicate(timeout=20)
    assert asking.returncode != 0
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)


class gone_after:  # noqa: N801 - used as a context manager only
    """A pipe by which processes name themselves; at the end none of them may be left."""

    def __init__(self, directory):
        self._path = directory / "pids"
        os.mkfifo(self._path)
        # For both ends: neither this open nor the writer's has to wait for the other.
        self._pipe = os.open(self._path, os.O_RDWR)
        self._watched, self._are_known = [], False

    def __enter__(self):
        return self

    def __str__(self):
        return str(self._path)

    def wait(self):
        """Return when they have named themselves."""
        ready, _, _ = select.select([self._pipe], [], [], 30)
        assert ready, "no process named itself"
        for pid in os.read(self._pipe, 1000).split():
            with suppress(ProcessLookupError):  # gone already
                self._watched.append(os.pidfd_open(int(pid)))
        self._are_known = True

    def __exit__(self, *_):
        if not self._are_known:
            self.wait()
        for watched in self._watched:
            ended, _, _ = select.select([watched], [], [], 20)
            assert ended, "a process is left"
            os.close(watched)
        os.close(self._pipe)


# Variants --------------------------------------------------------------------------------


def write_graph(path, *, external=False, constant=True):
    """Write two layers on `x: float32[n, 64]`; return what they compute."""
    random = np.random.default_rng(0)
    first = random.normal(size=(64, 64)).astype(np.float32) / 8
    second = random.normal(size=(64, 3)).astype(np.float32) / 8
    weights = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])]
    if not constant:
        inputs += [helper.make_tensor_value_info("w", TensorProto.FLOAT, [64, 3])]
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["hidden"], name="one"),
        helper.make_node("Relu", ["hidden"], ["positive"], name="relu"),
        helper.make_node("MatMul", ["positive", "second"], ["logits"], name="two"),
    ]
    if not constant:
        weights = []
        nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"], name="one")]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = {"save_as_external_data": True, "location": f"{path.name}.data"} if external else {}
    onnx.save(model, path, **options)
    return lambda x: np.maximum(x @ first, 0) @ second


class Difference(float):
    agreement = 0.75


def comparing(compute, worst=None):
    """Return what the worker gives `write_variants`, and the paths it was called with."""
    x = np.random.default_rng(1).normal(size=(5, 64)).astype(np.float32)
    calls = []

    def compare(paths):
        calls.append(paths)
        if worst is not None:
            return worst
        differences = [
            np.abs(onnxruntime.InferenceSession(path).run(None, {"x": x})[0] - compute(x)).max()
            for path in map(str, paths.values())
        ]
        return Difference(max(differences))

    return compare, calls


@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
def test_variants_are_files_beside_every_graph_with_its_inputs_and_outputs(tmp_path, external):
    for name in ("encoder_model.onnx", "decoder_model.onnx"):
        compute = write_graph(tmp_path / name, external=external)
    compare, calls = comparing(compute)
    found = write_variants(tmp_path, ExportSettings(variants=("int8", "fp16")), compare)

    assert [item["variant"] for item in found] == ["int8", "fp16"]
    for item, paths in zip(found, calls, strict=True):
        names = {f"{stem}_{item['variant']}.onnx" for stem in ("encoder_model", "decoder_model")}
        assert {path.name for path in paths.values()} == names
        assert set(paths) == {"encoder_model.onnx", "decoder_model.onnx"}
        data = {f"{name}.data" for name in names} if external else set()
        assert set(item["files"]) == names | data
        assert item["size_bytes"] == sum((tmp_path / file).stat().st_size for file in item["files"])
        assert 0 < item["parity_max_difference"] < item["parity_tolerance"]
        assert item["parity_tolerance"] == TOLERANCES[item["variant"]]
        assert item["agreement"] == 0.75
        for path in paths.values():
            onnx.checker.check_model(str(path), full_check=True)
            graph = onnx.load(path).graph
            ports = [*graph.input, *graph.output]
            assert [port.name for port in ports] == ["x", "logits"]
            assert {port.type.tensor_type.elem_type for port in ports} == {TensorProto.FLOAT}
            assert ports[0].type.tensor_type.shape.dim[0].dim_param == "n"
            kinds = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2}
            expected = {"int8": TensorProto.INT8, "fp16": TensorProto.FLOAT16}[item["variant"]]
            assert kinds == {expected}
    float32 = sum(path.stat().st_size for path in tmp_path.glob("*_model.onnx*"))
    assert all(item["size_bytes"] < 0.8 * float32 for item in found)
    assert hfflows.export.check_onnx_files(tmp_path)


def test_variants_made_again_are_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        compare, _ = comparing(write_graph(tmp_path / name / "model.onnx"))
        write_variants(tmp_path / name, ExportSettings(variants=("int8", "fp16")), compare)

    for file in ("model_int8.onnx", "model_fp16.onnx"):
        first, second = (graph_sha256(tmp_path / name / file) for name in ("first", "second"))
        assert first == second


@pytest.mark.parametrize("variant", ["int8", "fp16"])
@pytest.mark.parametrize("worst", [2.0, float("nan")])
def test_a_variant_that_answers_differently_is_named(tmp_path, variant, worst):
    compute = write_graph(tmp_path / "model.onnx")
    compare, _ = comparing(compute, worst=worst)

    with pytest.raises(hfflows.ParityError, match=f"variant '{variant}' differs") as caught:
        write_variants(tmp_path, ExportSettings(variants=(variant,)), compare)
    assert (caught.value.variant, caught.value.tolerance) == (variant, TOLERANCES[variant])
    if not math.isnan(worst):  # a larger tolerance takes it
        settings = ExportSettings(variants=(variant,), parity_tolerance=3)
        assert write_variants(tmp_path, settings, compare)[0]["parity_tolerance"] == 3


def test_a_graph_without_weights_to_quantise_says_so(tmp_path):
    write_graph(tmp_path / "model.onnx", constant=False)

    with pytest.raises(hfflows.UnsupportedModelError, match="no variant 'int8'"):
        write_variants(tmp_path, ExportSettings(variants=("int8",)), lambda _: 0.0)


# Asking twice ----------------------------------------------------------------------------


def snapshot(store, directory, scope="global", commit=COMMIT):
    prefix = keys.snapshot_prefix(f"{scope}/", "model", "org/model", commit)
    facts = {"repo_type": "model", "repo_id": "org/model", "commit_hash": commit}
    return commit_artifact(
        scan(directory),
        key=keys.snapshot(prefix, "all", id=keys.new_id()),
        kind="snapshot",
        name="org/model",
        metadata=facts,
        store=store,
    )


def digest_of(
    ref, store, *, name="m", base=None, parents=(), entries=None, metadata=None, **settings
):
    origin = Origin.of(ref, base=base, parents=parents, store=store)
    asked = ExportSettings(**settings)
    request = _Request(name, origin, asked, entries or {}, metadata or {}, Path(), store)
    return request.digest


def test_equal_requests_have_one_digest_and_others_have_others(tmp_path, memory_store, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    first = snapshot(memory_store, tmp_path)
    other_scope = snapshot(memory_store, tmp_path, scope="flow/train")
    other_commit = snapshot(memory_store, tmp_path, commit="d" * 40)
    model = hfflows.save_artifact(tmp_path, name="m", parents=[first], store=memory_store)
    same_files = hfflows.save_artifact(tmp_path, name="m", parents=[first], store=memory_store)
    data = hfflows.save_artifact(tmp_path, kind="dataset", name="d", store=memory_store)

    def digest(ref=first, **options):
        return digest_of(ref, memory_store, **options)

    assert digest() == digest(other_scope) == digest(variants=[], parity_tolerance=1e-3)
    assert digest(model, base=first) == digest(model, base=other_scope)
    different = [
        digest(),
        digest(name="n"),
        digest(other_commit),
        digest(model),
        digest(model, base=other_commit),
        digest(same_files),  # equal files, and still another artifact
        digest(parents=[data]),
        digest(entries={"hf_license": "mit"}),
        digest(metadata={"f1": 1}),
        digest(opset=18),
        digest(variants=["int8"]),
        digest(backend="torchscript"),
        digest(trust_remote_code=True),
    ]
    monkeypatch.setattr(
        "hfflows.export._artifact.exporter_versions",
        lambda: settings_module.exporter_versions() | {"torch": "9.0"},
    )
    different.append(digest())
    assert len(set(different)) == len(different)
    with pytest.raises(hfflows.SettingsError, match="JSON values"):
        digest(metadata={"x": object()})


def test_an_exports_key_says_its_name_and_what_was_asked_for():
    key = keys.export("team/model", "ab12", id=keys.new_id())

    assert keys.is_reference(key)
    assert keys.lineage_of(key) == "refs/export/team/model"
    assert keys.is_export(key, "team/model", "ab12")
    for name, request in [("team", "ab12"), ("model", "ab12"), ("team/model", "b12")]:
        assert not keys.is_export(key, name, request)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": ""}, hfflows.SettingsError),
        ({"timeout_seconds": -1}, hfflows.SettingsError),
        ({"opset": "x"}, hfflows.SettingsError),
        ({"entries": {"hf_hub_revision": "main"}}, hfflows.MetadataError),
        ({"entries": {"license": "mit"}}, hfflows.MetadataError),
        ({"parents": ["refs/model/gone/00000000000000-00000000.json"]}, FileNotFoundError),
    ],
    ids=str,
)
def test_a_bad_request_for_an_artifact_is_refused_before_anything_is_done(
    tmp_path, memory_store, options, error
):
    (tmp_path / "config.json").write_text("{}")
    ref = hfflows.save_artifact(tmp_path, name="m", store=memory_store)
    before = [info.key for info in memory_store.list("")]

    with pytest.raises(error):
        fetch_export(ref, tmp_path / "work", store=memory_store, **{"name": "m", **options})
    assert [info.key for info in memory_store.list("")] == before
    assert not (tmp_path / "work").exists()


class Counting(StoreWrapper):
    def __init__(self, store):
        super().__init__(store)
        self.calls = []

    def _call(self, method, key, function):
        self.calls.append(method)
        return function()


@pytest.fixture(scope="module")
def asked_twice(bert, tmp_path_factory):
    """Export a tuned model with its variants, two workers at once; return what came of it."""
    store = hfflows.open_store(f"memory://{os.urandom(8).hex()}")
    base = snapshot(store, bert)
    data = hfflows.save_artifact(bert / "config.json", kind="dataset", name="rows", store=store)
    with hfflows.Checkpointer(hfflows.RunIdentity("t", "f", "train"), store=store) as checkpointer:
        state = checkpointer.save(bert)
    start = hfflows.save_artifact(bert, kind="start", name="s", parents=[base, data], store=store)
    model = hfflows.save_artifact(bert, name="tuned", parents=[state, start], store=store)
    scratch = tmp_path_factory.mktemp("scratch")

    def ask_for_it(number):
        return fetch_export(
            model,
            scratch / str(number),
            name="tuned",
            backend="torchscript",
            variants=["int8", "fp16"],
            metadata={"f1": 0.9},
            producer=hfflows.refs.Producer(run=f"run-{number}"),
            code_version="v1",
            store=store,
        )

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(ask_for_it, range(2)))
    return store, {"base": base, "data": data, "checkpoint": state}, model, results, scratch


@pytest.mark.slow
def test_two_workers_at_once_make_one_export(asked_twice):
    store, _, _, results, scratch = asked_twice

    assert sorted(result.outcome for result in results) == ["exported", "hit"]
    assert results[0].ref == results[1].ref
    assert [ref.key for ref in hfflows.list_artifacts("export", store=store)] == [
        results[0].ref.key
    ]
    assert len(list(scratch.glob("*/export/model.onnx"))) == 1
    made, found = sorted(results, key=lambda result: result.outcome)
    assert made.report.to_json() | {"directory": ""} == found.report.to_json() | {"directory": ""}


@pytest.mark.slow
def test_asking_again_is_a_listing_and_a_few_documents(asked_twice, tmp_path, monkeypatch):
    store, _, model, results, _ = asked_twice
    counting = Counting(store)

    def refuse(*_, **__):
        pytest.fail("It was exported again.")

    monkeypatch.setattr(export_module, "run_worker", refuse)
    options = {
        "backend": "torchscript",
        "variants": ["fp16", "int8"],
        "metadata": {"f1": 0.9},
        "store": counting,
    }
    found = fetch_export(model.key, tmp_path / "work", name="tuned", **options)

    assert (found.outcome, found.ref) == ("hit", results[0].ref)
    assert set(counting.calls) <= {"list", "get"}
    assert len(counting.calls) <= 8  # the model, its four ancestors, a listing, the export
    assert not (tmp_path / "work").exists()
    with pytest.raises(pytest.fail.Exception, match="exported again"):
        fetch_export(model, tmp_path / "work", name="tuned", force=True, **options)


@pytest.mark.slow
def test_a_damaged_export_is_passed_over(asked_twice, tmp_path, monkeypatch, caplog):
    store, _, model, results, _ = asked_twice
    key = results[0].ref.key
    whole = bytes(store.get(key))

    class Asked(Exception):  # noqa: N818 - ends the request where it would export
        pass

    def ask_worker(*_, **__):
        raise Asked

    monkeypatch.setattr(export_module, "run_worker", ask_worker)
    store.put(key, whole[:-3])
    try:
        with pytest.raises(Asked):
            fetch_export(
                model,
                tmp_path / "work",
                name="tuned",
                backend="torchscript",
                variants=["int8", "fp16"],
                metadata={"f1": 0.9},
                store=store,
            )
    finally:
        store.put(key, whole)
    assert "passed over" in caplog.text


@pytest.mark.slow
def test_every_graph_says_all_that_leads_back(asked_twice, tmp_path):
    store, made_from, model, results, _ = asked_twice
    ref = results[0].ref
    path = hfflows.load_artifact(ref, tmp_path / "onnx", store=store)
    graphs = {None: "model.onnx", "int8": "model_int8.onnx", "fp16": "model_fp16.onnx"}

    for variant, name in graphs.items():
        found = read_onnx_metadata(path / name)
        assert found.get("hf_variant") == variant
        assert found["hf_source"] == "artifact"
        assert found["hf_model_type"] == "local"
        assert (found["hf_hub_id"], found["hf_hub_revision"]) == ("org/model", COMMIT)
        assert (found["hfflows_model_key"], found["hfflows_model_digest"]) == (
            model.key,
            model.digest,
        )
        for kind, ancestor in made_from.items():
            assert found[f"hfflows_{kind}_key"] == ancestor.key
            assert found[f"hfflows_{kind}_digest"] == ancestor.digest
        assert found["hfflows_code_version"] == "v1"
        assert found["hfflows_run"] in ("run-0", "run-1")
        assert found["hfflows_graph_sha256"] == graph_sha256(path / name)
        assert found["hf_dtype"] == {None: "float32", "fp16": "float16"}.get(variant, "int8")
        assert found["hf_output_names"] == "logits"
        settings = ExportSettings.from_json(json.loads(found["hf_export_settings"]))
        assert settings == ExportSettings(backend="torchscript", variants=("int8", "fp16"))
        assert json.loads(found["hf_export_versions"])["onnxruntime"]
        figures = {item["variant"]: item for item in results[0].report.variants}
        figure = figures.get(variant, {}).get(
            "parity_max_difference", results[0].report.parity_max_difference
        )
        assert float(found["hf_parity_max_difference"]) == pytest.approx(figure)
    assert {parent.key for parent in ref.parents} == {model.key}
    assert ref.metadata["f1"] == 0.9


@pytest.mark.slow
def test_entries_are_added_to_a_stored_export(asked_twice, tmp_path):
    store, _, model, results, _ = asked_twice
    first = results[0].ref
    second = inject_artifact(
        first, tmp_path, {"hf_license": "apache-2.0", "hfflows_run": None}, store=store
    )

    assert [parent.key for parent in second.parents] == [first.key]
    for name in ("model.onnx", "model_int8.onnx", "model_fp16.onnx"):
        with hfflows.open_file(second, name, store=store) as stream:
            found = read_onnx_metadata(stream)
        assert found["hf_license"] == "apache-2.0"
        assert "hfflows_run" not in found
        assert found["hfflows_model_key"] == model.key
    with hfflows.open_file(first, "model.onnx", store=store) as stream:
        assert "hf_license" not in read_onnx_metadata(stream)
    with pytest.raises(hfflows.SettingsError, match="of kind 'model'"):
        inject_artifact(model, tmp_path / "x", {}, store=store)


@pytest.mark.slow
def test_a_stored_export_is_compared_once_more(asked_twice, tmp_path):
    store, _, model, results, _ = asked_twice
    ref = results[0].ref
    texts = ["the night train", "rain came back"]
    found = verify_export(ref, tmp_path / "there", texts=texts, store=store)

    assert found["model"] == model.key
    assert [row["graph"] for row in found["graphs"]] == [
        "model.onnx",
        "model_fp16.onnx",
        "model_int8.onnx",
    ]
    for row in found["graphs"]:
        assert 0 < row["difference"] <= row["tolerance"]
        assert row["onnxruntime_ms"] > 0
        assert row["torch_ms"] > 0
    json.dumps(found)


@pytest.mark.parametrize("difference", [0.2, float("nan")])
def test_a_stored_graph_that_answers_differently_is_named(difference):
    rows = [
        {"graph": "model.onnx", "difference": None, "tolerance": None},
        {"graph": "model_fp16.onnx", "difference": difference, "tolerance": 0.1},
    ]

    with pytest.raises(hfflows.ParityError, match=r"model_fp16\.onnx of refs/x differs"):
        _check_parity(rows, "refs/x")
    _check_parity(rows[:1], "refs/x")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"texts": "rain"}, hfflows.SettingsError, "must be a list"),
        ({"texts": []}, hfflows.SettingsError, "must be a list"),
        ({"timeout_seconds": 0}, hfflows.SettingsError, "timeout_seconds"),
        ({}, hfflows.SettingsError, "made with the model's own code"),
        ({"trust_remote_code": True}, hfflows.SettingsError, r"no config\.json"),
    ],
    ids=str,
)
def test_what_cannot_be_verified_says_so(tmp_path, memory_store, options, error, said):
    (tmp_path / "weights").touch()
    model = hfflows.save_artifact(tmp_path, name="m", store=memory_store)
    write_graph(tmp_path / "model.onnx")
    entries = {
        "hf_model_type": "local",
        "hfflows_model_key": model.key,
        "hfflows_model_digest": model.digest,
        "hf_export_settings": json.dumps({"trust_remote_code": True}),
    }
    inject_hub_metadata(tmp_path / "model.onnx", entries)
    ref = hfflows.save_artifact(tmp_path, kind="export", name="m", store=memory_store)

    with pytest.raises(error, match=said):
        verify_export(ref, tmp_path / "work", store=memory_store, **options)
    with pytest.raises(hfflows.SettingsError, match="of kind 'model'"):
        verify_export(model, tmp_path / "other", store=memory_store)


@pytest.mark.slow
def test_an_export_whose_model_is_gone_is_still_checked_to_be_whole(
    asked_twice, tmp_path, memory_store
):
    store, _, _, results, _ = asked_twice
    alone = hfflows.load_artifact(results[0].ref, tmp_path / "onnx", store=store)
    ref = hfflows.save_artifact(alone, kind="export", name="alone", store=memory_store)
    found = verify_export(ref, tmp_path / "work", store=memory_store)

    assert found["model"] is None
    assert {row["difference"] for row in found["graphs"]} == {None}


@pytest.mark.slow
def test_a_loaded_model_is_exported_with_its_preprocessor(bert, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(bert)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    model.train()
    report = export_onnx(model, tmp_path / "onnx", preprocessor=tokenizer, backend="torchscript")

    assert report.pipeline_tag == "text-classification"
    assert (tmp_path / "onnx" / "tokenizer.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]
    assert model.training  # it is the caller's
