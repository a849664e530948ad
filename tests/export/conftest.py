"""Tiny models with random weights, made here, exported once a session."""

import pytest

from hfflows.export import export_onnx

WORDS = "the a night train rain store came back was there and went on only just".split()  # noqa: SIM905


def write_tokenizer(directory):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, sep_token="[SEP]", mask_token="[MASK]", **names
    ).save_pretrained(directory)


def write_bert(directory, auto_class="BertForSequenceClassification"):
    import torch
    import transformers

    torch.manual_seed(0)
    labels = ("bad", "good") if "Question" in auto_class else ("bad", "good", "unsure")
    config = transformers.BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    getattr(transformers, auto_class)(config).eval().save_pretrained(directory)
    write_tokenizer(directory)
    (directory / "README.md").write_text("not copied")
    return directory


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """Return the directory of a text classifier."""
    return write_bert(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="session")
def exported(bert, tmp_path_factory):
    """Return the report of its export by the first backend."""
    return export_onnx(bert, tmp_path_factory.mktemp("export") / "onnx")
