"""Every family of models, exported in this process: what is in the graphs, and how it is named."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import hfflows
from hfflows.export._heads import head_of
from hfflows.export._settings import ExportSettings
from hfflows.export._worker import export
from hfflows.export._worker._axes import check_axes
from hfflows.export._worker._parity import compare
from hfflows.export._worker._plan import Case, Graph, Plan
from tests.export import models

pytestmark = pytest.mark.slow

TEXTS = ["the night train", "rain", "the store came back and went on only just"]
CHECKED = (
    *("modernbert", "deberta-v2", "layoutlm", "gpt2", "mistral", "gemma2", "t5", "whisper"),
    *("vit", "segformer", "yolos", "clip", "siglip", "wav2vec2", "hubert-ctc"),
)
"""Of the thirty that `make bench NAME=architectures` exports."""
TAGS = {
    "mpnet": "feature-extraction",
    "albert": "question-answering",
    "modernbert": "fill-mask",
    "xlm-roberta": "token-classification",
    "layoutlm": "token-classification",
    "t5": "text2text-generation",
    "bart": "text2text-generation",
    "whisper": "automatic-speech-recognition",
    "hubert-ctc": "automatic-speech-recognition",
    "wav2vec2": "audio-classification",
    "segformer": "image-segmentation",
    "yolos": "object-detection",
    "dpt": "depth-estimation",
    "clip": "zero-shot-image-classification",
    "siglip": "zero-shot-image-classification",
    **dict.fromkeys(("gpt2", "llama", "qwen3", "gemma2", "mistral"), "text-generation"),
    **dict.fromkeys(("vit", "resnet", "convnext", "swin"), "image-classification"),
}
THREE = ["encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """See conftest; torch may have been imported before it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Return a function that exports a family's tiny model once: (directory, report)."""
    done = {}

    def of(name):
        if name not in done:
            root = tmp_path_factory.mktemp(name)
            source = models.FAMILIES[name](root / "model")
            report = export(source, root / "onnx", ExportSettings(backend="torchscript"))
            done[name] = root / "onnx", report
        return done[name]

    return of


def axes_of(path):
    """Return {input or output: its axes, by name or size}."""
    graph = onnx.load(path, load_external_data=False).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }


def numbers_in(path):
    """Return how many numbers the weights in a file are."""
    if path.suffix == ".onnx":
        return sum(np.prod(item.dims) for item in onnx.load(path).graph.initializer)
    from safetensors.numpy import load_file

    return sum(weight.size for weight in load_file(path).values())


def session_of(path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", CHECKED)
def test_every_family_is_exported_and_answers_as_torch_does(family, name):
    _, report = family(name)

    assert report["pipeline_tag"] == TAGS.get(name, "text-classification")
    assert report["parity_max_difference"] < 1e-4
    assert {shape[0] for shape in report["parity_inputs"]} > {1}
    assert list(report["graphs"]) == (
        THREE if name in {"t5", "bart", "whisper"} else ["model.onnx"]
    )


# Models that generate --------------------------------------------------------------------


def test_a_causal_model_reads_and_writes_its_cache(family):
    directory, report = family("gpt2")
    cache = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    axes = axes_of(directory / "model.onnx")

    assert report["input_names"][:3] == ["input_ids", "attention_mask", "position_ids"]
    assert report["input_names"][3:] == [f"past_key_values.{name}" for name in cache]
    assert report["output_names"] == ["logits", *(f"present.{name}" for name in cache)]
    assert axes["input_ids"] == ["batch_size", "sequence_length"]
    assert axes["attention_mask"] == ["batch_size", "past_sequence_length + sequence_length"]
    assert axes["past_key_values.1.value"] == ["batch_size", 2, "past_sequence_length", 16]
    assert axes["present.1.value"][2] == "past_sequence_length + sequence_length"


def continue_by_hand(session, ids, mask, steps):
    """Continue texts padded on the left, with the cache that the graph returns."""
    inputs = {item.name: item for item in session.get_inputs()}
    past = {
        name: np.zeros((len(ids), item.shape[1], 0, item.shape[3]), np.float32)
        for name, item in inputs.items()
        if name.startswith("past")
    }
    whole, new = ids, ids
    for _ in range(steps):
        positions = np.maximum(mask.cumsum(-1) - 1, 0)[:, -new.shape[1] :]
        fed = {"input_ids": new, "attention_mask": mask, "position_ids": positions, **past}
        answers = session.run(None, {name: fed[name] for name in inputs})
        names = [item.name.replace("present", "past_key_values") for item in session.get_outputs()]
        answers = dict(zip(names, answers, strict=True))
        new = answers.pop("logits")[:, -1:].argmax(-1)
        past, whole = answers, np.concatenate([whole, new], 1)
        mask = np.concatenate([mask, np.ones_like(new)], 1)
    return whole


@pytest.mark.parametrize("name", ["gpt2", "mistral"])
def test_a_padded_batch_is_continued_as_generate_does(family, name):
    import transformers

    directory, _ = family(name)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory.parent / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    batch = tokenizer(TEXTS, padding=True, padding_side="left", return_tensors="pt")
    # Twelve steps: past the eight tokens that mistral's window has here.
    wanted = model.generate(
        **batch, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    session = session_of(directory / "model.onnx")

    assert continue_by_hand(session, ids, mask, 12).tolist() == wanted.tolist()


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_an_encoder_decoder_is_three_graphs_by_optimums_names(family, name):
    directory, report = family(name)
    parts = [
        f"{layer}.{side}.{part}"
        for layer in (0, 1)
        for side in ("decoder", "encoder")
        for part in ("key", "value")
    ]
    own = [part for part in parts if ".decoder." in part]
    encoder, first, then = (report["graphs"][file] for file in THREE)
    masks = [] if name == "whisper" else ["encoder_attention_mask"]

    assert encoder["outputs"] == ["last_hidden_state"]
    assert first["inputs"] == ["input_ids", *masks, "encoder_hidden_states"]
    assert first["outputs"] == ["logits", *(f"present.{part}" for part in parts)]
    assert then["inputs"] == ["input_ids", *masks, *(f"past_key_values.{part}" for part in parts)]
    assert then["outputs"] == ["logits", *(f"present.{part}" for part in own)]
    weights = numbers_in(directory.parent / "model" / "model.safetensors")
    for file in THREE:
        assert numbers_in(directory / file) < 0.8 * weights, "holds the other half's weights too"


def test_axes_that_vary_on_their_own_have_names_of_their_own(family):
    t5 = axes_of(family("t5")[0] / THREE[2])
    assert t5["input_ids"] == ["batch_size", "decoder_sequence_length"]
    assert t5["encoder_attention_mask"] == ["batch_size", "encoder_sequence_length"]
    assert t5["past_key_values.0.decoder.key"][2] == "past_decoder_sequence_length"
    assert t5["past_key_values.0.encoder.key"][2] == "encoder_sequence_length"

    whisper = axes_of(family("whisper")[0] / THREE[1])
    assert whisper["encoder_hidden_states"] == ["batch_size", 50, 32]

    clip = axes_of(family("clip")[0] / "model.onnx")
    assert clip["input_ids"] == ["text_batch_size", "sequence_length"]
    assert clip["pixel_values"] == ["image_batch_size", 3, 32, 32]
    assert clip["logits_per_image"] == ["image_batch_size", "text_batch_size"]


def test_transformers_exporter_writes_the_same_causal_graph_with_its_weights_beside(
    family, tmp_path
):
    directory, older = family("gpt2")
    settings = ExportSettings(backend="transformers")
    report = export(directory.parent / "model", tmp_path / "onnx", settings, one_file_up_to_bytes=0)

    assert report["graphs"] == older["graphs"]
    assert axes_of(tmp_path / "onnx" / "model.onnx") == axes_of(directory / "model.onnx")
    assert report["parity_max_difference"] < 1e-4
    assert (tmp_path / "onnx" / "model.onnx.data").stat().st_size > 10_000
    assert (tmp_path / "onnx" / "model.onnx").stat().st_size < 500_000


def test_transformers_exporter_writes_the_same_three_graphs(family, tmp_path):
    directory, older = family("t5")
    settings = ExportSettings(backend="transformers")
    report = export(directory.parent / "model", tmp_path / "onnx", settings)

    assert report["graphs"] == older["graphs"]
    for file in THREE:
        assert axes_of(tmp_path / "onnx" / file) == axes_of(directory / file)
    assert report["parity_max_difference"] < 1e-4


# Heads -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "model_type", "asked", "found"),
    [
        ("BartForConditionalGeneration", "bart", None, "text2text-generation"),
        ("BartForConditionalGeneration", "bart", "summarization", "text2text-generation"),
        ("BartForSequenceClassification", "bart", None, "text-classification"),
        ("WhisperForConditionalGeneration", "whisper", None, "automatic-speech-recognition"),
        (
            "Wav2Vec2ForCTC",
            "wav2vec2",
            "automatic-speech-recognition",
            "automatic-speech-recognition",
        ),
        ("Wav2Vec2Model", "wav2vec2", None, "feature-extraction"),
        ("ViTModel", "vit", None, "image-feature-extraction"),
        ("CLIPModel", "clip", None, "zero-shot-image-classification"),
        ("XLMWithLMHeadModel", "xlm", None, "fill-mask"),
        ("T5EncoderModel", "t5", None, "feature-extraction"),
        ("BertForMultipleChoice", "bert", None, "multiple-choice"),
        ("BertModel", "bert", "sentence-similarity", "feature-extraction"),
        ("BertForMaskedLM", "bert", "text-ranking", "text-classification"),
        ("LlavaForConditionalGeneration", "llava", None, None),
        ("BertForNextSentencePrediction", "bert", None, None),
        ("GPT2LMHeadModel", "gpt2", "image-classification", None),
        ("", "bert", None, None),
    ],
)
def test_what_a_model_is_for_stands_in_transformers_tables(architecture, model_type, asked, found):
    config = SimpleNamespace(
        architectures=[architecture] if architecture else None, model_type=model_type
    )
    if found is None:
        with pytest.raises(hfflows.UnsupportedModelError, match=r"pipeline_tag=|has no"):
            head_of(config, asked)
    else:
        assert head_of(config, asked).pipeline_tag == found


def test_ctc_and_seq2seq_are_told_apart_though_their_tag_is_one():
    tag = "automatic-speech-recognition"
    ctc = SimpleNamespace(architectures=["Wav2Vec2ForCTC"], model_type="wav2vec2")
    whisper = SimpleNamespace(architectures=["WhisperModel"], model_type="whisper")

    assert head_of(ctc, tag).kind == "single"
    assert head_of(whisper, tag).kind == "seq2seq"


def test_choices_are_an_axis_of_their_own(tmp_path):
    source = models.write_bert(tmp_path / "model", "BertForMultipleChoice")
    report = export(source, tmp_path / "onnx", ExportSettings(backend="torchscript"))
    axes = axes_of(tmp_path / "onnx" / "model.onnx")

    assert axes["input_ids"] == ["batch_size", "num_choices", "sequence_length"]
    assert axes["logits"] == ["batch_size", "num_choices"]
    assert report["parity_max_difference"] < 1e-5


CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

class OwnConfig(PretrainedConfig):
    model_type = "own-by-nobody-else"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed, self.out = torch.nn.Embedding(64, 8), torch.nn.Linear(8, 2)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **_):
        mask = attention_mask.unsqueeze(-1)
        pooled = (self.embed(input_ids) * mask).sum(1) / mask.sum(1)
        return SequenceClassifierOutput(logits=self.out(pooled))
"""


def test_a_models_own_code_runs_only_when_it_is_trusted(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import save_file

    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "mods")
    )
    source = tmp_path / "model"
    models.write_tokenizer(source)
    facts = {
        "model_type": "own-by-nobody-else",
        "architectures": ["OwnModel"],
        "auto_map": {
            "AutoConfig": "own.OwnConfig",
            "AutoModelForSequenceClassification": "own.OwnModel",
        },
    }
    (source / "config.json").write_text(json.dumps(facts))
    (source / "own.py").write_text(CODE)
    weights = {
        "embed.weight": torch.randn(64, 8),
        "out.weight": torch.randn(2, 8),
        "out.bias": torch.randn(2),
    }
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(hfflows.ExportError):
        export(source, tmp_path / "onnx", ExportSettings(backend="torchscript"))
    settings = ExportSettings(backend="torchscript", trust_remote_code=True)
    report = export(source, tmp_path / "onnx", settings)

    assert (report["pipeline_tag"], report["architecture"]) == ("text-classification", "OwnModel")
    assert report["parity_max_difference"] < 1e-5
    assert "own.py" in report["files"]


# Pooling ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return models.write_sentence_transformer(tmp_path_factory.mktemp("st") / "model")


def test_pooling_is_recorded_and_its_files_go_along(embedder, tmp_path):
    report = export(embedder, tmp_path / "onnx", ExportSettings(backend="torchscript"))

    assert report["pooling"] == {
        "mode": "mean",
        "normalize": True,
        "dimension": 32,
        "include_prompt": True,
    }
    assert report["output_names"] == ["last_hidden_state", "pooler_output"]
    assert {"modules.json", "1_Pooling/config.json"} <= set(report["files"])


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "mean_sqrt_len_tokens"])
def test_a_pooled_vector_is_in_the_graph_when_asked_for(tmp_path, mode):
    from transformers import AutoTokenizer

    source = models.write_sentence_transformer(tmp_path / "model", mode, normalize=mode == "mean")
    settings = ExportSettings(backend="torchscript", pooling="graph")
    report = export(source, tmp_path / "onnx", settings)
    session = session_of(tmp_path / "onnx" / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(source)
    for side in ("right", "left"):
        batch = dict(tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="np"))
        hidden, vector = session.run(["last_hidden_state", "sentence_embedding"], batch)
        for row, mask in enumerate(batch["attention_mask"].astype(bool)):
            tokens = hidden[row][mask]
            wanted = {
                "mean": tokens.mean(0) / np.linalg.norm(tokens.mean(0)),
                "cls": tokens[0],
                "max": tokens.max(0),
                "mean_sqrt_len_tokens": tokens.sum(0) / np.sqrt(len(tokens)),
            }[mode]
            np.testing.assert_allclose(vector[row], wanted, atol=1e-5)
    assert report["parity_max_difference"] < 1e-5


def test_pooling_that_is_not_there_or_not_built_here_says_so(bert, embedder, tmp_path):
    settings = ExportSettings(backend="torchscript", pooling="graph")
    with pytest.raises(hfflows.UnsupportedModelError, match=r"needs a sentence-transformers"):
        export(bert, tmp_path / "onnx", settings)

    source = tmp_path / "dense"
    source.mkdir()
    for path in embedder.iterdir():
        (source / path.name).symlink_to(path)
    listed = json.loads((embedder / "modules.json").read_text())
    listed.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (source / "modules.json").unlink()
    (source / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(hfflows.UnsupportedModelError, match="3_Dense"):
        export(source, tmp_path / "onnx", settings)


# Types, sizes, noise ---------------------------------------------------------------------


def test_weights_of_16_bits_are_compared_in_units_of_the_output(bert, tmp_path):
    settings = ExportSettings(backend="torchscript", dtype="float16")
    report = export(bert, tmp_path / "onnx", settings)
    graph = onnx.load(tmp_path / "onnx" / "model.onnx").graph
    types = {item.data_type for item in graph.initializer if np.prod(item.dims) > 64}

    assert types == {TensorProto.FLOAT16}
    assert report["dtype"] == "float16"
    assert report["parity_max_difference"] <= report["parity_tolerance"] == 2**-6


def test_large_weights_lie_in_one_file_beside_the_graph(bert, tmp_path):
    settings = ExportSettings(backend="torchscript")
    report = export(bert, tmp_path / "onnx", settings, one_file_up_to_bytes=1000)

    assert [name for name in report["files"] if "onnx" in name] == ["model.onnx", "model.onnx.data"]
    assert report["parity_max_difference"] < 1e-5


def test_an_exporter_that_stumbles_is_named_and_the_next_one_tried(bert, tmp_path, monkeypatch):
    def stumble(*_):
        msg = "no such\noperator"
        raise RuntimeError(msg)

    monkeypatch.setattr("hfflows.export._worker._exporters.with_transformers", stumble)
    report = export(bert, tmp_path / "onnx", ExportSettings())

    assert report["backend"].startswith("torchscript; transformers ")
    assert report["fallback_reason"] == "transformers: RuntimeError: no such"
    with pytest.raises(hfflows.ExportError, match=r"transformers\.exporters failed: RuntimeError"):
        export(bert, tmp_path / "other", ExportSettings(backend="transformers"))
    assert not (tmp_path / "other").exists()


def test_exporting_prints_nothing(bert, tmp_path, capfd, recwarn):
    export(bert, tmp_path / "onnx", ExportSettings(backend="torchscript"))

    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_a_report_names_the_versions_that_took_part(family):
    import torch
    import transformers

    versions = family("gpt2")[1]["versions"]
    assert versions["transformers"] == transformers.__version__
    assert versions["torch"] == torch.__version__
    assert {"onnx", "onnxruntime"} <= versions.keys()


def test_a_model_without_a_tokenizer_says_what_it_lacks(bert, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(bert / name)
    with pytest.raises(hfflows.UnsupportedModelError, match="no tokenizer"):
        export(tmp_path, tmp_path / "onnx", ExportSettings(backend="torchscript"))


def test_what_is_in_the_way_is_left_alone(bert, tmp_path):
    (tmp_path / "kept").touch()
    with pytest.raises(hfflows.TargetError, match="not an empty directory"):
        export(bert, tmp_path, ExportSettings(backend="torchscript"))
    assert (tmp_path / "kept").exists()


# Axes and parity -------------------------------------------------------------------------


def added(first, second):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, first)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, second)
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["a", "b"])
    node = helper.make_node("Concat", ["x", "y"], ["z"], axis=1)
    return helper.make_model(helper.make_graph([node], "g", [x, y], [z]), ir_version=9)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (["a", "b"], ["a", 3], r"fixed axis c of y in model\.onnx to 3"),
        (["a", "b"], ["a", "b"], "calls c and b both b"),
        (["a", "b"], ["a", "c"], None),
    ],
)
def test_a_graph_with_a_fixed_or_shared_axis_is_refused(tmp_path, first, second, said):
    onnx.save(added(first, second), tmp_path / "model.onnx")
    inputs = {"x": {0: "a", 1: "b"}, "y": {0: "a", 1: "c"}}
    graph = Graph("model.onnx", None, {}, inputs, {"z": {0: "a"}})
    if said is None:
        check_axes(tmp_path / "model.onnx", graph)
    else:
        with pytest.raises(hfflows.ExportError, match=said):
            check_axes(tmp_path / "model.onnx", graph)


@pytest.mark.parametrize(
    ("place", "given", "expected", "difference"),
    [
        (1, 1.0, 9.0, 0),  # padded: whatever stands there
        (2, 1.0, 9.0, 7),
        (1, np.nan, 9.0, np.nan),  # what is made of it later may multiply it by 0
        (1, np.nan, np.nan, 0),  # torch has no number there either
        (2, np.nan, np.nan, np.nan),
    ],
)
def test_padded_places_are_not_compared_but_hold_numbers(
    tmp_path, place, given, expected, difference
):
    import torch

    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length"]) for name in "xy"
    )
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    node = helper.make_node("Add", ["x", "one"], ["y"])
    made = helper.make_model(
        helper.make_graph([node], "g", [x], [y], [one]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.save(made, tmp_path / "model.onnx")
    inputs = torch.ones(1, 3)
    inputs[0, place] = given
    wanted = torch.full((1, 3), 2.0)
    wanted[0, place] = expected
    masks = {"length": torch.tensor([[True, False, True]])}
    case = Case("model.onnx", {"x": inputs}, {"y": wanted}, masks)
    graph = Graph("model.onnx", None, {}, {}, {"y": {0: "batch", 1: "length"}})
    found = compare({"model.onnx": tmp_path / "model.onnx"}, Plan([graph], lambda: iter([case])))

    assert found == pytest.approx(difference, nan_ok=True)
