"""Exports go both ways between the stacks; in one file, so that they are made in one process."""

import copy
import shutil

import pytest

import hfflows
from hfflows.errors import ExportError, UnsupportedModelError
from hfflows.export import export_artifact, load_onnx_model
from hfflows.export._runtime._files import locate
from hfflows.export._runtime._optimum import load_optimum_model
from hfflows.export._settings import ExportSettings
from hfflows.export._worker import export
from hfflows.export._worker._optimum import write_with_optimum
from tests.export.models import write_text
from tests.optimum.exchange import MODERN, READ_BACK, TEXTS, answers

pytestmark = [pytest.mark.slow, pytest.mark.optimum]

ENCODER_DECODERS = ("t5", "whisper")
SEQ2SEQ = ["decoder_model.onnx", "decoder_with_past_model.onnx", "encoder_model.onnx"]
TEXT = {
    "bert": ("SequenceClassification", "text-classification"),
    "bert-tokens": ("TokenClassification", "token-classification"),
    "bert-answers": ("QuestionAnswering", "question-answering"),
    "bert-mask": ("MaskedLM", "fill-mask"),
    "bert-hidden": ("FeatureExtraction", "feature-extraction"),
    "gpt2": ("CausalLM", "text-generation"),
    "t5": ("Seq2SeqLM", "text2text-generation"),
}
OTHER = {
    "vit": ("ImageClassification", "image-classification"),
    "clip": ("ZeroShotImageClassification", "zero-shot-image-classification"),
    "speech": ("CTC", "automatic-speech-recognition"),
}
GENERATING = ("gpt2", "t5")


def torch_model(models, name):
    import transformers

    config = transformers.AutoConfig.from_pretrained(models / name)
    return getattr(transformers, config.architectures[0]).from_pretrained(models / name).eval()


def outputs_of(model, batch):
    import torch

    with torch.no_grad():
        found = model(**batch)
    names = [name for name in ("logits", "start_logits", "last_hidden_state") if name in found]
    return found[names[0]]


def samples_of(models, name):
    """Return what a model that reads no text is called with."""
    import torch
    from transformers import AutoConfig, AutoTokenizer

    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(models / name)
    if name == "speech":
        return {"input_values": torch.randn(3, 4000)}
    vision = getattr(config, "vision_config", config)
    images = torch.randn(3, vision.num_channels, vision.image_size, vision.image_size)
    if name == "vit":
        return {"pixel_values": images}
    tokenizer = AutoTokenizer.from_pretrained(models / name)
    return {**tokenizer(TEXTS[:2], padding=True, return_tensors="pt"), "pixel_values": images}


@pytest.mark.parametrize("name", sorted({*TEXT} - {*GENERATING}))
def test_optimums_classes_load_an_encoder_as_it_lies_there(models, exchanged, name):
    import torch
    from optimum import onnxruntime
    from transformers import AutoTokenizer

    modern, _ = exchanged
    model = getattr(onnxruntime, f"ORTModelFor{TEXT[name][0]}").from_pretrained(modern / name)
    batch = AutoTokenizer.from_pretrained(modern / name)(TEXTS, padding=True, return_tensors="pt")

    expected = outputs_of(torch_model(models, name), batch)
    torch.testing.assert_close(outputs_of(model, batch), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(OTHER))
def test_and_models_of_pictures_and_sound(models, exchanged, name):
    import torch
    from optimum import onnxruntime

    modern, _ = exchanged
    model = getattr(onnxruntime, f"ORTModelFor{OTHER[name][0]}").from_pretrained(modern / name)
    batch, output = samples_of(models, name), "logits_per_image" if name == "clip" else "logits"
    with torch.no_grad():
        expected = torch_model(models, name)(**batch)[output]

    torch.testing.assert_close(model(**batch)[output], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("binding", [False, True])
@pytest.mark.parametrize("name", GENERATING)
def test_generation_is_torchs_token_by_token(models, exchanged, name, binding):
    from optimum import onnxruntime
    from transformers import AutoTokenizer

    modern, _ = exchanged
    cls = getattr(onnxruntime, f"ORTModelFor{TEXT[name][0]}")
    model = cls.from_pretrained(modern / name, use_io_binding=binding)
    tokenizer = AutoTokenizer.from_pretrained(modern / name)
    expected = answers(torch_model(models, name), tokenizer)

    assert model.can_use_cache
    assert len({tuple(row) for row in expected[0]}) > 1
    assert answers(model, tokenizer) == expected


@pytest.mark.parametrize("name", sorted(MODERN))
def test_config_and_tokenizer_are_the_models_own_files(models, exchanged, name):
    modern, _ = exchanged
    copied = {
        path.relative_to(modern / name): path
        for path in (modern / name).rglob("*")
        if path.is_file() and ".onnx" not in path.name
    }

    assert "config.json" in map(str, copied)
    for relative, path in copied.items():
        assert path.read_bytes() == (models / name / relative).read_bytes(), relative


@pytest.mark.parametrize("name", sorted(TEXT))
def test_load_onnx_model_answers_with_optimums_class_here(models, exchanged, name):
    modern, _ = exchanged
    model, tokenizer = load_onnx_model(modern / name)

    assert type(model).__name__ == f"ORTModelFor{TEXT[name][0]}"
    if name in GENERATING:
        assert answers(model, tokenizer) == answers(torch_model(models, name), tokenizer)


def test_sentence_vectors_of_the_graph_are_not_dropped(models, exchanged):
    import torch

    modern, _ = exchanged
    model, tokenizer = load_onnx_model(modern / "sentences")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    hidden = outputs_of(torch_model(models, "sentences"), batch)
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(1) / mask.sum(1)

    found = model(**batch)["sentence_embedding"]
    torch.testing.assert_close(found, torch.nn.functional.normalize(mean, dim=1), atol=1e-5, rtol=0)


# What transformers 5 exported is above, what Optimum exported below


def load(directory, pipeline_tag, *, config=None, variant=None, **options):
    from transformers import AutoConfig

    config = config or AutoConfig.from_pretrained(directory)
    graphs = locate(directory, variant, None).graphs
    return load_optimum_model(graphs, pipeline_tag, config, **options)


def test_auto_is_optimum_here_and_agrees_with_torch(by_optimum):
    _, reports = by_optimum

    for name, report in reports.items():
        assert report["backend"].startswith("optimum"), (name, report["fallback_reason"])
        assert report["parity_max_difference"] < 1e-4, name
        graphs = [file for file in report["files"] if file.endswith(".onnx")]
        assert graphs == (SEQ2SEQ if name in ENCODER_DECODERS else ["model.onnx"]), name
        assert report["versions"]["optimum-onnx"] == "0.1.0"


def test_a_causal_model_has_its_cache_and_positions(by_optimum):
    inputs = by_optimum[1]["gpt2"]["graphs"]["model.onnx"]["inputs"]

    assert {"input_ids", "attention_mask", "position_ids"} < {*inputs}
    assert "past_key_values.0.key" in inputs


def test_nothing_is_saved_anew(models, by_optimum):
    root, reports = by_optimum

    for name, report in reports.items():
        for file in report["files"]:
            if ".onnx" not in file:
                assert (root / name / file).read_bytes() == (models / name / file).read_bytes()


@pytest.mark.parametrize("name", READ_BACK)
def test_the_modern_stack_reads_it(models, by_optimum, exchanged, name):
    import numpy as np

    root, _ = by_optimum
    expected = answers(torch_model(models, name), load_onnx_model(root / name)[1])
    _, found = exchanged

    if name in GENERATING:
        assert found[name] == expected
    else:
        np.testing.assert_allclose(found[name], expected, atol=1e-4)


@pytest.mark.parametrize("name", READ_BACK)
def test_and_so_does_optimum(models, by_optimum, name):
    import numpy as np

    root, _ = by_optimum
    model, tokenizer = load_onnx_model(root / name, runtime="optimum")
    expected = answers(torch_model(models, name), tokenizer)

    assert type(model).__module__.startswith("optimum.onnxruntime")
    if name in GENERATING:
        assert answers(model, tokenizer) == expected
    else:
        np.testing.assert_allclose(answers(model, tokenizer), expected, atol=1e-4)


def test_the_other_runtime_can_be_asked_for(by_optimum):
    model, _ = load_onnx_model(by_optimum[0] / "bert", runtime="hfflows")

    assert type(model).__module__.startswith("hfflows.export")


def test_heads_wider_than_their_share_generate_too(tmp_path):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
    )
    torch_side = Qwen3ForCausalLM(config).eval()
    torch_side.save_pretrained(tmp_path / "model")
    write_with_optimum(tmp_path / "model", tmp_path / "onnx", "text-generation", None)
    model = load(tmp_path / "onnx", "text-generation", config=config)
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3).long()}
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    expected = torch_side.generate(**batch, **options).tolist()

    for model.use_io_binding in (False, True):
        assert model.generate(**batch, **options).tolist() == expected


def test_a_variant_is_loaded_by_its_own_files(by_optimum, tmp_path):
    root, _ = by_optimum
    for name in ("bert", "t5"):
        shutil.copytree(root / name, tmp_path / name)
        for graph in (tmp_path / name).glob("*.onnx"):
            graph.rename(graph.with_stem(f"{graph.stem}_int8"))
    model = load(tmp_path / "bert", "text-classification", variant="int8")
    pair = load(tmp_path / "t5", "translation", variant="int8")

    assert model.path.name == "model_int8.onnx"
    assert pair.encoder.path.name == "encoder_model_int8.onnx"
    assert pair.decoder.path.name == "decoder_model_int8.onnx"
    assert pair.decoder_with_past.path.name == "decoder_with_past_model_int8.onnx"


def test_the_config_given_stays_as_it_is(by_optimum):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(by_optimum[0] / "gpt2")
    before = copy.deepcopy(config.to_dict())
    load(by_optimum[0] / "gpt2", "text-generation", config=config)

    assert config.to_dict() == before


def test_what_optimum_cannot_load_is_said(by_optimum, tmp_path):
    root, _ = by_optimum
    with pytest.raises(UnsupportedModelError, match=r"'translation' in one graph.*hfflows"):
        load(root / "bert", "translation")
    shutil.copy(root / "bert" / "config.json", tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"<html>")
    with pytest.raises(ExportError, match=r"ORTModelForMaskedLM cannot load .*model\.onnx"):
        load(tmp_path, "fill-mask")


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_a_path_with_an_at_sign_is_no_revision(by_optimum, tmp_path, name):
    shutil.copytree(by_optimum[0] / name, tmp_path / "run@2")
    model, _ = load_onnx_model(tmp_path / "run@2")

    assert getattr(model, "decoder", model).path.parent == tmp_path / "run@2"


def test_a_graph_alone_takes_its_generation_config_from_where_it_is(by_optimum, tmp_path):
    from transformers import AutoConfig, GenerationConfig

    shutil.copy(by_optimum[0] / "gpt2" / "model.onnx", tmp_path)
    (tmp_path / "described").mkdir()
    GenerationConfig(max_length=13).save_pretrained(tmp_path / "described")
    config = AutoConfig.from_pretrained(by_optimum[0] / "gpt2")
    graphs = {"model": tmp_path / "model.onnx"}
    model = load_optimum_model(
        graphs, "text-generation", config, description=tmp_path / "described"
    )
    bare = load_optimum_model(graphs, "text-generation", config)

    assert model.generation_config.max_length == 13
    assert bare.generation_config.max_length == 20


def test_providers_come_with_their_options(by_optimum):
    provider = ("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})
    for name in ("bert", "gpt2"):
        model, _ = load_onnx_model(by_optimum[0] / name, providers=[provider])

        assert model.providers == ["CPUExecutionProvider"]


def test_an_architecture_that_optimum_lacks_is_named_with_what_it_has(models, tmp_path):
    with pytest.raises(
        UnsupportedModelError, match=r"bert for text-to-video, only for .*fill-mask"
    ):
        write_with_optimum(models / "bert", tmp_path / "onnx", "text-to-video", None)

    assert not (tmp_path / "onnx").exists()


def test_what_optimum_has_no_recipe_for_is_traced_without_it(tmp_path):
    write_text(tmp_path / "model", "ErnieForSequenceClassification")
    report = export(tmp_path / "model", tmp_path / "onnx", ExportSettings())

    assert report["backend"].startswith("torchscript; transformers 4.57")
    assert "UnsupportedModelError: Optimum does not export ernie" in report["fallback_reason"]
    with pytest.raises(UnsupportedModelError, match="ernie for text-classification"):
        export(tmp_path / "model", tmp_path / "other", ExportSettings(backend="optimum"))


def test_the_whole_way_through_a_store(models, memory_store, tmp_path):
    model = hfflows.save_artifact(models / "gpt2", name="tuned", store=memory_store)
    ref, report = export_artifact(model, tmp_path, name="tuned-onnx", store=memory_store)
    loaded, tokenizer = load_onnx_model(ref, store=memory_store)

    assert report.backend.startswith("optimum-onnx")
    assert type(loaded).__name__ == "ORTModelForCausalLM"
    assert answers(loaded, tokenizer) == answers(torch_model(models, "gpt2"), tokenizer)


def test_a_failed_export_leaves_nothing(models, tmp_path):
    shutil.copytree(models / "bert", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"torn")

    with pytest.raises(ExportError, match=r"Optimum's exporter failed: \w+"):
        write_with_optimum(tmp_path / "model", tmp_path / "onnx", "text-classification", None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_beside_the_graph_are_found_again(models, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")
    write_with_optimum(models / "bert", tmp_path / "onnx", "text-classification", None)
    shutil.copy(models / "bert" / "config.json", tmp_path / "onnx")
    model = load(tmp_path / "onnx", "text-classification")

    assert {path.name for path in (tmp_path / "onnx").glob("*.onnx*")} == {
        "model.onnx",
        "model.onnx_data",
    }
    assert model.path.parent == tmp_path / "onnx"
