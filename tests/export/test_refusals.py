"""What must not be exported, or not in silence: found by trying it."""

import json
import math
import shutil
from importlib.util import find_spec

import onnx
import pytest
from onnx import TensorProto, helper

import hfflows
from hfflows.export import (
    check_onnx_files,
    export_onnx,
    inject_hub_metadata,
    load_preprocessor,
    read_onnx_metadata,
)
from hfflows.export._settings import ExportSettings
from hfflows.export._worker import export
from hfflows.export._worker._parity import compare
from hfflows.export._worker._plan import Case, Graph, Plan
from tests.export.models import write_bert, write_tokenizer

HUB = {"hf_model_type": "hub", "hf_hub_id": "org/model", "hf_hub_revision": "a" * 40}


def export_here(source, output, **settings):
    """Export in this process, with the faster backend."""
    return export(source, output, ExportSettings(backend="torchscript", **settings))


def small_model(**external):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    if external:
        one.ClearField("float_data")
        one.data_location = TensorProto.EXTERNAL
        for key, value in external.items():
            one.external_data.add(key=key, value=value)
    node = helper.make_node("Add", ["x", "one"], ["y"])
    return helper.make_model(
        helper.make_graph([node], "g", [x], [y], [one]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )


# Heads -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_head_without_weights_is_refused_since_it_would_be_random(tmp_path):
    source = write_bert(tmp_path / "model", "BertModel")

    with pytest.raises(hfflows.UnsupportedModelError, match="would be random") as caught:
        export_here(source, tmp_path / "onnx", pipeline_tag="text-classification")
    assert caught.value.missing == ["classifier.bias", "classifier.weight"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_an_encoder_without_a_pooler_is_exported_without_one(tmp_path):
    source = write_bert(tmp_path / "model", "BertForMaskedLM")
    report = export_here(source, tmp_path / "onnx", pipeline_tag="feature-extraction")

    assert report["output_names"] == ["last_hidden_state"]


@pytest.mark.slow
def test_a_tag_that_the_architecture_has_no_head_for_is_refused(bert, tmp_path):
    with pytest.raises(hfflows.UnsupportedModelError, match="no image-classification head"):
        export_here(bert, tmp_path / "onnx", pipeline_tag="image-classification")


@pytest.mark.slow
def test_an_encoder_with_a_decoder_is_refused(tmp_path):
    import transformers

    sizes = {"vocab_size": 40, "d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    transformers.T5Model(transformers.T5Config(**sizes)).save_pretrained(tmp_path / "model")

    with pytest.raises(hfflows.UnsupportedModelError, match="encoder with a decoder"):
        export_here(tmp_path / "model", tmp_path / "onnx")


@pytest.mark.slow
def test_caches_and_hidden_states_are_left_out_of_the_graph(tmp_path):
    import transformers

    sizes = {"vocab_size": 40, "n_embd": 32, "n_layer": 1, "n_head": 2, "pad_token_id": 0}
    config = transformers.GPT2Config(**sizes)
    config.output_hidden_states = True
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    before = (tmp_path / "model" / "config.json").read_bytes()
    report = export_here(tmp_path / "model", tmp_path / "onnx")

    assert report["output_names"] == ["logits"]
    assert (tmp_path / "onnx" / "config.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(find_spec("PIL") is not None, reason="needs an environment without pillow")
def test_an_image_processor_without_pillow_names_what_is_missing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    facts = {"image_processor_type": "ViTImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))

    with pytest.raises(hfflows.MissingDependencyError, match=r"not installed: .*[Pp]illow|PIL"):
        load_preprocessor(tmp_path)


# Parity ----------------------------------------------------------------------------------


def parity_of(tmp_path, *answers):
    """Compare a graph that adds one with other answers to the same input."""
    import torch

    onnx.save(small_model(), tmp_path / "model.onnx")
    x = torch.ones(3)
    graph = Graph("model.onnx", None, {}, {"x": {0: "n"}}, {"y": {0: "n"}})
    cases = [Case("model.onnx", {"x": x}, {"y": answer(x)}, {}) for answer in answers]
    return compare({"model.onnx": tmp_path / "model.onnx"}, Plan([graph], lambda: iter(cases)))


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_in_any_batch_is_kept(tmp_path, place):
    answers = [lambda x: x + 1] * 3
    answers[place] = lambda x: x * math.nan

    assert math.isnan(parity_of(tmp_path, *answers))


@pytest.mark.slow
def test_answers_of_another_shape_are_not_broadcast(tmp_path):
    with pytest.raises(hfflows.ParityError, match="shape"):
        parity_of(tmp_path, lambda x: (x + 1)[:1])


@pytest.mark.slow
def test_the_difference_crosses_the_process_boundary(bert, tmp_path):
    with pytest.raises(hfflows.ParityError) as caught:
        export_onnx(bert, tmp_path / "onnx", backend="torchscript", parity_tolerance=0)
    assert caught.value.difference > caught.value.tolerance == 0


# Files -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_output_inside_the_source_holds_nothing_of_the_scratch_directory(bert, tmp_path):
    source = tmp_path / "model"
    shutil.copytree(bert, source)
    report = export_onnx(source, source / "onnx", backend="torchscript")

    assert [name for name in report.files if "/" in name or "request" in name] == []


def test_a_damaged_graph_names_its_file(tmp_path):
    content = bytearray(small_model().SerializeToString())
    content[content.index(b"Add") - 1] = 0x7F
    (tmp_path / "model.onnx").write_bytes(content)

    with pytest.raises(hfflows.ExportError, match=r"model\.onnx is damaged"):
        check_onnx_files(tmp_path)


@pytest.mark.parametrize("facts", [{"offset": "abc"}, {"length": "-1"}])
def test_weights_at_no_place_name_their_file(tmp_path, facts):
    onnx.save(small_model(location="weights", **facts), tmp_path / "model.onnx")
    (tmp_path / "weights").write_bytes(bytes(4))

    with pytest.raises(hfflows.ExportError, match=r"model\.onnx gives one a place"):
        check_onnx_files(tmp_path)


# Metadata --------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", ["²", "9" * 30, "tomorrow"])
def test_a_source_date_epoch_that_is_no_time_says_so(tmp_path, monkeypatch, epoch):
    onnx.save(small_model(), tmp_path / "model.onnx")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)

    with pytest.raises(hfflows.MetadataError, match="SOURCE_DATE_EPOCH"):
        inject_hub_metadata(tmp_path / "model.onnx", HUB)
    assert read_onnx_metadata(tmp_path / "model.onnx") == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hf_hub_id": "hello world"}, "name of a Hub repo"),
        ({"hf_hub_id": "org/model@main"}, "name of a Hub repo"),
        ({"hf_export_timestamp": "2026-11-21T09:00:00"}, "time zone"),
    ],
)
def test_an_origin_that_leads_nowhere_is_refused(tmp_path, changes, said):
    onnx.save(small_model(), tmp_path / "model.onnx")

    with pytest.raises(hfflows.MetadataError, match=said):
        inject_hub_metadata(tmp_path / "model.onnx", HUB | changes)
