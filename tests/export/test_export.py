import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest

import hfflows
from hfflows.export import (
    HubConfigLoader,
    export_artifact,
    export_onnx,
    inject_hub_metadata,
    load_config,
    load_onnx_model,
    load_preprocessor,
    read_onnx_metadata,
)
from hfflows.export._settings import ExportSettings
from hfflows.export._worker import export
from tests.export.models import write_bert

pytestmark = pytest.mark.slow

TEXTS = ["the night train", "rain", "the store came back and went on only just"]


def test_an_export_holds_one_graph_and_the_files_of_its_source_as_they_were(exported, bert):
    found = exported.directory

    assert exported.backend.startswith("transformers.exporters; transformers 5.")
    assert exported.fallback_reason == ""
    assert exported.pipeline_tag == "text-classification"
    assert exported.architecture == "BertForSequenceClassification"
    assert exported.output_names == ["logits"]
    assert exported.parity_max_difference < 1e-5
    assert {shape[0] for shape in exported.parity_inputs} >= {1, 3, 5}
    assert (found / "tokenizer.json").read_bytes() == (bert / "tokenizer.json").read_bytes()
    assert not (found / "model.safetensors").exists()
    assert not (found / "README.md").exists()
    assert [path.name for path in found.glob("*.onnx*")] == ["model.onnx"]


def test_batch_and_sequence_are_named_symbolic_axes(exported):
    graph = onnx.load(exported.directory / "model.onnx").graph

    for value in graph.input:
        dims = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        assert dims == ["batch_size", "sequence_length"]
    output = graph.output[0].type.tensor_type.shape.dim
    assert (output[0].dim_param, output[1].dim_value) == ("batch_size", 3)
    assert not any(node.metadata_props for node in graph.node)


def test_the_older_backend_gives_the_same_answers(bert, exported, tmp_path):
    older = export_onnx(bert, tmp_path / "ts", backend="torchscript")
    first, _ = load_onnx_model(exported.directory)
    second, tokenizer = load_onnx_model(tmp_path / "ts")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")

    assert older.backend.startswith("torchscript; ")
    np.testing.assert_allclose(first(**batch).logits, second(**batch).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("auto_class", "pipeline_tag", "outputs"),
    [
        ("BertModel", "feature-extraction", ["last_hidden_state", "pooler_output"]),
        ("BertForTokenClassification", "token-classification", ["logits"]),
        ("BertForQuestionAnswering", "question-answering", ["start_logits", "end_logits"]),
        ("BertForMaskedLM", "fill-mask", ["logits"]),
    ],
)
def test_every_head_is_recognised(tmp_path, auto_class, pipeline_tag, outputs):
    source = write_bert(tmp_path / "model", auto_class)
    report = export(source, tmp_path / "onnx", ExportSettings(backend="torchscript"))

    assert (report["pipeline_tag"], report["output_names"]) == (pipeline_tag, outputs)
    assert report["parity_max_difference"] < 1e-4


def test_an_image_classifier_is_exported(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=4,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    report = export(tmp_path / "vit", tmp_path / "onnx", ExportSettings(backend="torchscript"))

    assert report["pipeline_tag"] == "image-classification"
    assert report["parity_inputs"] == [[1, 3, 16, 16], [2, 3, 16, 16], [3, 3, 16, 16]]


def test_exports_at_the_same_time_do_not_disturb_each_other(bert, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(export_onnx, bert, tmp_path / name, backend="torchscript")
            for name in ("a", "b")
        ]
        reports = [job.result() for job in jobs]
    assert all(report.parity_max_difference < 1e-5 for report in reports)


# What goes wrong -------------------------------------------------------------------------


def test_a_graph_that_answers_differently_is_not_kept(bert, tmp_path):
    with pytest.raises(hfflows.ParityError, match="nothing was kept"):
        export_onnx(bert, tmp_path / "onnx", backend="torchscript", parity_tolerance=0)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_takes_too_long_is_killed(bert, tmp_path):
    with pytest.raises(hfflows.ExportError, match=r"longer than 0\.5 s"):
        export_onnx(bert, tmp_path / "onnx", timeout_seconds=0.5)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_be_read_are_an_export_error(bert, tmp_path):
    source = tmp_path / "model"
    subprocess.run(["cp", "-r", bert, source], check=True)
    (source / "model.safetensors").write_bytes(b"not weights")

    with pytest.raises(hfflows.ExportError, match="last words"):
        export_onnx(source, tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"pipeline_tag": "text-to-video"}, hfflows.UnsupportedModelError, "there is one for"),
        ({"backend": "magic"}, hfflows.SettingsError, "none of"),
        ({"parity_tolerance": float("nan")}, hfflows.SettingsError, "negative"),
        ({"timeout_seconds": 0}, hfflows.SettingsError, "positive"),
    ],
)
def test_bad_options_are_refused(bert, tmp_path, options, error, said):
    with pytest.raises(error, match=said):
        export_onnx(bert, tmp_path / "onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_model_and_no_empty_directory_is_refused(bert, tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(hfflows.SettingsError, match=r"no config\.json"):
        export_onnx(tmp_path / "x", tmp_path / "onnx")
    (tmp_path / "x" / "file").touch()
    with pytest.raises(hfflows.TargetError, match="not an empty directory"):
        export_onnx(bert, tmp_path / "x")


def test_a_model_in_none_of_the_tables_says_which_there_are(tmp_path):
    from transformers import BertConfig, BertForNextSentencePrediction

    config = BertConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=16, vocab_size=32)
    BertForNextSentencePrediction(config).save_pretrained(tmp_path / "bert")

    with pytest.raises(
        hfflows.UnsupportedModelError, match=r"NextSentencePrediction.*pipeline_tag="
    ):
        export_onnx(tmp_path / "bert", tmp_path / "onnx")


# From the file alone ---------------------------------------------------------------------


@pytest.fixture
def fine_tuned(bert, memory_store):
    """Return a model's reference and that of the snapshot it was tuned from."""
    base = hfflows.save_artifact(
        bert,
        kind="base",
        name="org/base",
        metadata={"repo_id": "org/base", "commit_hash": "a" * 40},
        store=memory_store,
    )
    model = hfflows.save_artifact(bert, name="tuned", parents=[base], store=memory_store)
    return model, base


def test_an_export_leads_back_to_model_base_and_data(fine_tuned, memory_store, tmp_path):
    model, base = fine_tuned
    ref, report = export_artifact(
        model, tmp_path, name="tuned", base=base, metadata={"metrics": 1}, store=memory_store
    )
    with hfflows.open_file(ref, "model.onnx", store=memory_store) as stream:
        found = read_onnx_metadata(stream)

    assert (ref.kind, ref.storage_format) == ("export", "files")
    assert [parent.key for parent in ref.parents] == [model.key, base.key]
    assert ref.metadata["parity_max_difference"] == report.parity_max_difference
    assert found["hf_model_type"] == "local"
    assert (found["hf_hub_id"], found["hf_hub_revision"]) == ("org/base", "a" * 40)
    assert found["hfflows_model_key"] == model.key
    assert found["hfflows_base_digest"] == base.digest
    assert found["hf_parity_max_difference"] == str(report.parity_max_difference)

    only = hfflows.load_artifact(
        ref, tmp_path / "only", allow_patterns="*.onnx", store=memory_store
    )
    loader = HubConfigLoader(memory_store)
    config, tokenizer = loader.load_from_onnx(only / "model.onnx")
    assert config.id2label[1] == "good"
    assert (
        tokenizer("the rain")["input_ids"]
        == load_preprocessor(tmp_path / "model")("the rain")["input_ids"]
    )
    assert loader.load_from_onnx(only / "model.onnx")[1] is tokenizer  # kept by this thread
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(loader.load_from_onnx, only / "model.onnx").result()
    assert other[1] is not tokenizer

    loaded, _ = load_onnx_model(ref, store=memory_store)
    assert loaded.session.get_modelmeta().custom_metadata_map == found


def test_a_model_that_is_not_in_the_store_or_is_another_says_so(
    fine_tuned, exported, memory_store, tmp_path, bert
):
    model, _ = fine_tuned
    path = tmp_path / "model.onnx"
    path.write_bytes((exported.directory / "model.onnx").read_bytes())
    entries = {"hf_model_type": "local", "hfflows_model_key": model.key}

    inject_hub_metadata(path, entries | {"hfflows_model_digest": "0" * 64})
    with pytest.raises(hfflows.IntegrityError, match="other files"):
        HubConfigLoader(memory_store).load_from_onnx(path)
    hfflows.delete_artifact(model, store=memory_store)
    with pytest.raises(hfflows.ArtifactNotFoundError, match="pass HubConfigLoader"):
        HubConfigLoader(memory_store).load_from_onnx(path)
    inject_hub_metadata(path, {"hf_model_type": "local"})
    with pytest.raises(hfflows.MetadataError, match="does not say"):
        HubConfigLoader(memory_store).load_from_onnx(path)


def test_a_hub_models_config_comes_from_the_recorded_commit_and_then_from_the_store(
    bert, local_hub, memory_store, tmp_path
):
    options = {"endpoint": local_hub.endpoint, "token": local_hub.token, "store": memory_store}
    commit = local_hub.publish("org/model", bert)
    snapshot = hfflows.snapshot_download("org/model", **options)
    ref, _ = export_artifact(snapshot, tmp_path, name="model", store=memory_store)
    local_hub.publish("org/model", {"config.json": b"{}"})  # main moves on
    only = hfflows.load_artifact(
        ref, tmp_path / "only", allow_patterns="*.onnx", store=memory_store
    )
    found = read_onnx_metadata(only / "model.onnx")
    assert (found["hf_model_type"], found["hf_hub_revision"]) == ("hub", commit)

    local_hub.down()
    config, tokenizer = HubConfigLoader(memory_store, endpoint=local_hub.endpoint).load_from_onnx(
        only / "model.onnx"
    )
    assert config.id2label[2] == "unsure"
    assert tokenizer.mask_token == "[MASK]"


# Inference -------------------------------------------------------------------------------


def test_a_pipeline_gives_torchs_answers(bert, exported):
    from transformers import AutoModelForSequenceClassification, pipeline

    model, tokenizer = load_onnx_model(exported.directory)
    theirs = AutoModelForSequenceClassification.from_pretrained(bert)
    ours = pipeline("text-classification", model=model, tokenizer=tokenizer, framework="pt")
    reference = pipeline("text-classification", model=theirs, tokenizer=tokenizer)

    for got, wanted in zip(ours(TEXTS), reference(TEXTS), strict=True):
        assert got["label"] == wanted["label"]
        assert got["score"] == pytest.approx(wanted["score"], abs=1e-5)


def test_inputs_that_the_graph_needs_are_made_up_or_asked_for(exported):
    model, tokenizer = load_onnx_model(exported.directory / "model.onnx")
    batch = tokenizer(TEXTS[:1], return_tensors="pt")

    whole = model(**batch).logits
    assert (model(input_ids=batch["input_ids"]).logits == whole).all()
    with pytest.raises(hfflows.SettingsError, match="needs 'input_ids'"):
        model(attention_mask=batch["attention_mask"])


def test_a_device_or_provider_that_is_not_there_says_so(exported, tmp_path):
    with pytest.raises(hfflows.SettingsError, match="none of cpu, cuda"):
        load_onnx_model(exported.directory, device="tpu")
    with pytest.raises(hfflows.SettingsError, match="has no NoSuchProvider"):
        load_onnx_model(exported.directory, providers=["NoSuchProvider"])
    with pytest.raises(hfflows.SettingsError, match="no ONNX file"):
        load_onnx_model(tmp_path)


def test_a_directory_without_config_or_preprocessor_says_so(tmp_path):
    with pytest.raises(hfflows.ExportError, match="no tokenizer"):
        load_preprocessor(tmp_path)
    with pytest.raises(hfflows.ExportError, match="cannot load"):
        load_config(tmp_path)


def test_a_report_is_plain_json(exported):
    assert replace(exported).to_json()["directory"] == str(exported.directory)


def test_importing_the_package_loads_no_model_library():
    code = "import sys, hfflows.export; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "onnx", "onnxruntime"} & set(done.stdout.split())
