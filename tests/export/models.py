"""Tiny models with random weights, of every family that is exported; made in a second each.

`python -m tests.export.models NAME DIRECTORY` writes one of `FAMILIES`.
"""

import json
import sys
from functools import partial
from pathlib import Path

WORDS = "the a night train rain store came back was there and went on only just".split()  # noqa: SIM905
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
VOCABULARY = len(SPECIAL) + len(WORDS)

# The names that most configs of transformers share.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
CAUSAL = SIZES | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": CLS,
    "eos_token_id": SEP,
}
AUDIO = {
    "vocab_size": 12,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
}


def write_tokenizer(directory, template="[CLS] $A [SEP]", **names):
    """Write a tokenizer of whole words; `template` says what stands around a text."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template,
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    } | names
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(directory)


def write_continuing_tokenizer(directory):
    """Write the tokenizer of a model that goes on: nothing after the text."""
    names = {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    only = ["input_ids", "attention_mask"]
    write_tokenizer(directory, "$A", **names, model_input_names=only)


def write_translating_tokenizer(directory):
    """Write the tokenizer of an encoder-decoder: texts end with a token."""
    names = {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    only = ["input_ids", "attention_mask"]
    write_tokenizer(directory, "$A [SEP]", **names, model_input_names=only)


def write_image_processor(directory, height=32, width=32, kind="ViTImageProcessor"):
    """Write the file alone: making the object needs pillow."""
    facts = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_center_crop": False,  # CLIP would, to 224
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(facts))


def write(directory, model, config, *beside, **facts):
    """Write a model of transformers and what prepares its inputs."""
    import torch
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**facts)).eval()
    with torch.no_grad():
        # The usual beginning is so near to zero that a deep model answers 1e-9, whatever it is
        # asked, and agrees with everything.
        for weight in made.parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5)
    made.save_pretrained(directory)
    for one in beside:
        one(Path(directory))
    return Path(directory)


def write_bert(directory, auto_class="BertForSequenceClassification"):
    labels = ("bad", "good") if "Question" in auto_class else ("bad", "good", "unsure")
    facts = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    write(directory, auto_class, "BertConfig", write_tokenizer, **SIZES, **facts)
    (directory / "README.md").write_text("not copied")
    return directory


def write_text(directory, model, **facts):
    """Write an encoder whose config has the usual names."""
    config = model.partition("For")[0].removesuffix("Model") + "Config"
    return write(directory, model, config, write_tokenizer, **(SIZES | facts))


def write_causal(directory, model, **facts):
    config = model.partition("For")[0] + "Config"
    return write(directory, model, config, write_continuing_tokenizer, **(CAUSAL | facts))


def write_gpt2(directory, model="GPT2LMHeadModel"):
    facts = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    names = {"bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD}
    return write(directory, model, "GPT2Config", write_continuing_tokenizer, **facts, **names)


def write_llama(directory, model="LlamaForCausalLM"):
    return write_causal(directory, model)


def write_mistral(directory):
    """Write a model whose attention sees 8 tokens, fewer than the texts have."""
    return write_causal(directory, "MistralForCausalLM", sliding_window=8)


def write_t5(directory, model="T5ForConditionalGeneration"):
    facts = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 2,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
        "pad_token_id": PAD,
        "eos_token_id": SEP,
        "decoder_start_token_id": PAD,
    }
    return write(directory, model, "T5Config", write_translating_tokenizer, **facts)


def write_bart(directory, model="BartForConditionalGeneration"):
    facts = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "bos_token_id": CLS,
        "eos_token_id": SEP,
        "decoder_start_token_id": SEP,
        "forced_eos_token_id": SEP,
    }
    return write(directory, model, "BartConfig", write_translating_tokenizer, **facts)


def write_whisper(directory):
    """Write a model that hears one second."""

    def write_extractor(directory):
        from transformers import WhisperFeatureExtractor

        WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(directory)

    facts = {
        "vocab_size": VOCABULARY,
        "num_mel_bins": 16,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_source_positions": 50,
        "max_target_positions": 64,
        "pad_token_id": PAD,
        "bos_token_id": CLS,
        "eos_token_id": SEP,
        "decoder_start_token_id": CLS,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }
    beside = write_translating_tokenizer, write_extractor
    return write(directory, "WhisperForConditionalGeneration", "WhisperConfig", *beside, **facts)


def write_vit(directory, model="ViTForImageClassification", size=32):
    facts = SIZES | {"image_size": size, "patch_size": 8}
    del facts["vocab_size"], facts["max_position_embeddings"], facts["pad_token_id"]
    if "For" in model:
        facts |= {"id2label": {0: "cat", 1: "dog", 2: "tree", 3: "train"}}
    return write(
        directory,
        model,
        "ViTConfig",
        partial(write_image_processor, height=size, width=size),
        **facts,
    )


def write_vision(directory, model, *, height=32, width=32, **facts):
    config = model.partition("For")[0] + "Config"
    processor = partial(write_image_processor, height=height, width=width)
    return write(directory, model, config, processor, **facts)


def _towers(**text):
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    words = {"vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": PAD}
    return {
        "text_config": tower | words | {"bos_token_id": CLS, "eos_token_id": SEP} | text,
        "vision_config": tower | {"image_size": 32, "patch_size": 8},
    }


def write_clip(directory):
    """Write a model for which the store's texts and pictures lie in one space."""
    towers = _towers()
    for tower in towers.values():
        tower["projection_dim"] = 16
    processor = partial(write_image_processor, kind="CLIPImageProcessor")
    beside = write_translating_tokenizer, processor
    return write(directory, "CLIPModel", "CLIPConfig", *beside, projection_dim=16, **towers)


def write_siglip(directory):
    processor = partial(write_image_processor, kind="SiglipImageProcessor")
    beside = write_translating_tokenizer, processor
    towers = _towers(projection_size=32)
    return write(directory, "SiglipModel", "SiglipConfig", *beside, **towers)


def write_wav2vec2(directory, model="Wav2Vec2ForSequenceClassification", *, masks=False):
    """Write a model that hears; `masks` for one of those that are told where sounds end."""

    def write_extractor(directory):
        from transformers import Wav2Vec2FeatureExtractor

        Wav2Vec2FeatureExtractor(return_attention_mask=masks).save_pretrained(directory)

    facts = AUDIO | {"feat_extract_norm": "layer" if masks else "group", "pad_token_id": 0}
    beside = [write_extractor]
    if "CTC" in model:
        beside.append(write_ctc_tokenizer)
    else:
        facts |= {"id2label": {0: "rain", 1: "train", 2: "silence"}}
    config = model.partition("For")[0].removesuffix("Model") + "Config"
    return write(directory, model, config, *beside, **facts)


def write_ctc_tokenizer(directory):
    """Write a tokenizer of letters."""
    from transformers import Wav2Vec2CTCTokenizer

    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"aeinrst"]
    vocabulary = directory / "vocab.json"
    vocabulary.write_text(json.dumps({letter: at for at, letter in enumerate(letters)}))
    Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(directory)


def write_sentence_transformer(directory, mode="mean", *, normalize=True):
    """Write a sentence-transformers directory, as its version 2 to 4 do."""
    write(directory, "BertModel", "BertConfig", write_tokenizer, **SIZES)
    kind = "sentence_transformers.models."
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules += [("2_Normalize", "Normalize")] if normalize else []
    (directory / "modules.json").write_text(
        json.dumps(
            [
                {"idx": at, "name": str(at), "path": path, "type": kind + name}
                for at, (path, name) in enumerate(modules)
            ]
        )
    )
    names = "cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"
    facts = {f"pooling_mode_{name}": name.startswith(mode) for name in names}
    facts["pooling_mode_mean_sqrt_len_tokens"] = mode == "mean_sqrt_len_tokens"
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, **facts, "include_prompt": True})
    )
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    return directory


DISTILBERT = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
DEBERTA = {
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "type_vocab_size": 0,
}
MODERNBERT = {
    "local_attention": 8,
    "global_attn_every_n_layers": 2,
    "bos_token_id": CLS,
    "cls_token_id": CLS,
    "eos_token_id": SEP,
    "sep_token_id": SEP,
}
YOLOS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": [32, 48],
    "patch_size": 8,
    "num_detection_tokens": 5,
    "num_labels": 3,
}
DPT = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 16, 16],
    "fusion_hidden_size": 8,
    "is_hybrid": False,
}
SEGFORMER = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 8, 16, 16],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 16,
    "num_labels": 4,
}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
    "num_labels": 4,
}
RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
    "num_labels": 4,
}
CONVNEXT = {
    "num_stages": 2,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "image_size": 32,
    "num_labels": 4,
}

FAMILIES = {
    "bert": write_bert,
    "distilbert": partial(write_text, model="DistilBertForSequenceClassification", **DISTILBERT),
    "roberta": partial(write_text, model="RobertaForSequenceClassification"),
    "xlm-roberta": partial(write_text, model="XLMRobertaForTokenClassification"),
    "deberta-v2": partial(write_text, model="DebertaV2ForSequenceClassification", **DEBERTA),
    "mpnet": partial(write_text, model="MPNetModel"),
    "electra": partial(write_text, model="ElectraForSequenceClassification", embedding_size=32),
    "albert": partial(write_text, model="AlbertForQuestionAnswering", embedding_size=16),
    "modernbert": partial(write_text, model="ModernBertForMaskedLM", **MODERNBERT),
    "layoutlm": partial(write_text, model="LayoutLMForTokenClassification"),
    "gpt2": write_gpt2,
    "llama": write_llama,
    "llama-seqcls": partial(write_llama, model="LlamaForSequenceClassification"),
    "qwen3": partial(write_causal, model="Qwen3ForCausalLM"),
    "gemma2": partial(
        write_causal, model="Gemma2ForCausalLM", sliding_window=8, query_pre_attn_scalar=8
    ),
    "mistral": write_mistral,
    "t5": write_t5,
    "bart": write_bart,
    "whisper": write_whisper,
    "vit": write_vit,
    "resnet": partial(write_vision, model="ResNetForImageClassification", **RESNET),
    "convnext": partial(write_vision, model="ConvNextForImageClassification", **CONVNEXT),
    "swin": partial(write_vision, model="SwinForImageClassification", **SWIN),
    "segformer": partial(write_vision, model="SegformerForSemanticSegmentation", **SEGFORMER),
    "yolos": partial(write_vision, model="YolosForObjectDetection", width=48, **YOLOS),
    "dpt": partial(write_vision, model="DPTForDepthEstimation", **DPT),
    "clip": write_clip,
    "siglip": write_siglip,
    "wav2vec2": write_wav2vec2,
    "hubert-ctc": partial(write_wav2vec2, model="HubertForCTC", masks=True),
}
"""The thirty architectures that every release exports: name to `(directory) -> directory`."""

if __name__ == "__main__":
    FAMILIES[sys.argv[1]](Path(sys.argv[2]))
