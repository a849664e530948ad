"""What a model is for, and which class of transformers loads it with that head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hfflows.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Head:
    """One kind of model that can be exported."""

    pipeline_tag: str
    table: str
    """Name of transformers' table from model type to class, without `_MAPPING_NAMES`."""
    auto_class: str
    kind: Literal["single", "causal", "seq2seq"] = "single"
    """One graph; one with a key-value cache; an encoder and two decoders."""


HEADS = (
    Head(
        "zero-shot-image-classification",
        "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION",
        "AutoModelForZeroShotImageClassification",
    ),
    Head(
        "text-classification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION",
        "AutoModelForSequenceClassification",
    ),
    Head(
        "token-classification",
        "MODEL_FOR_TOKEN_CLASSIFICATION",
        "AutoModelForTokenClassification",
    ),
    Head(
        "question-answering",
        "MODEL_FOR_QUESTION_ANSWERING",
        "AutoModelForQuestionAnswering",
    ),
    Head("multiple-choice", "MODEL_FOR_MULTIPLE_CHOICE", "AutoModelForMultipleChoice"),
    Head(
        "automatic-speech-recognition",
        "MODEL_FOR_SPEECH_SEQ_2_SEQ",
        "AutoModelForSpeechSeq2Seq",
        "seq2seq",
    ),
    Head(
        "text2text-generation",  # before fill-mask: BART stands in both tables
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM",
        "AutoModelForSeq2SeqLM",
        "seq2seq",
    ),
    Head("automatic-speech-recognition", "MODEL_FOR_CTC", "AutoModelForCTC"),
    Head(
        "audio-classification",
        "MODEL_FOR_AUDIO_CLASSIFICATION",
        "AutoModelForAudioClassification",
    ),
    Head("fill-mask", "MODEL_FOR_MASKED_LM", "AutoModelForMaskedLM"),
    Head("text-generation", "MODEL_FOR_CAUSAL_LM", "AutoModelForCausalLM", "causal"),
    Head(
        "image-classification",
        "MODEL_FOR_IMAGE_CLASSIFICATION",
        "AutoModelForImageClassification",
    ),
    Head("object-detection", "MODEL_FOR_OBJECT_DETECTION", "AutoModelForObjectDetection"),
    Head(
        "image-segmentation",
        "MODEL_FOR_SEMANTIC_SEGMENTATION",
        "AutoModelForSemanticSegmentation",
    ),
    Head(
        "image-segmentation",
        "MODEL_FOR_UNIVERSAL_SEGMENTATION",
        "AutoModelForUniversalSegmentation",
    ),
    Head("depth-estimation", "MODEL_FOR_DEPTH_ESTIMATION", "AutoModelForDepthEstimation"),
    Head("image-feature-extraction", "MODEL_FOR_IMAGE", "AutoModel"),
    Head("feature-extraction", "MODEL", "AutoModel"),
    Head("feature-extraction", "MODEL_FOR_TEXT_ENCODING", "AutoModelForTextEncoding"),
)
"""In the order of search: some classes stand in several tables, the narrowest use comes first."""

SAME_AS = {
    "sentence-similarity": "feature-extraction",
    "text-ranking": "text-classification",
    "zero-shot-classification": "text-classification",
    "translation": "text2text-generation",
    "summarization": "text2text-generation",
}
"""Tags of the Hub that describe a use of another head."""


def head_of(config: Any, pipeline_tag: str | None) -> Head:
    """Return the head to export: the one asked for, else the config's own.

    A model with code of its own is in no table; its `auto_map` says what it is for.

    Raises:
        UnsupportedModelError: No such head here; the message lists those there are.
    """
    architecture = (config.architectures or [""])[0]
    if pipeline_tag is not None:
        return _asked_for(config, architecture, pipeline_tag)
    for head in HEADS:
        if _is_in(_table(head), architecture) or _own_class(config, head) == architecture != "":
            _refuse_half_an_encoder_decoder(config, head)
            return head
    msg = (
        f"{architecture or 'A model without architectures'} ({config.model_type}) is in none of "
        "transformers' tables that there is an exporter for here. Pass pipeline_tag= to export "
        f"one of its other heads: {_known()}."
    )
    raise UnsupportedModelError(msg)


def _asked_for(config: Any, architecture: str, pipeline_tag: str) -> Head:
    wanted = SAME_AS.get(pipeline_tag, pipeline_tag)
    heads = [head for head in HEADS if head.pipeline_tag == wanted]
    if not heads:
        msg = f"No exporter here for pipeline_tag={pipeline_tag!r}; there is one for: {_known()}."
        raise UnsupportedModelError(msg)
    # The class that was trained, if it has this use; else another one for the same weights.
    for head in heads:
        if _is_in(_table(head), architecture):
            _refuse_half_an_encoder_decoder(config, head)
            return head
    for head in heads:
        if config.model_type in _table(head) or _own_class(config, head):
            _refuse_half_an_encoder_decoder(config, head)
            return head
    msg = f"transformers has no {wanted} head for {config.model_type}."
    raise UnsupportedModelError(msg)


def _refuse_half_an_encoder_decoder(config: Any, head: Head) -> None:
    """Refuse the bare model: its outputs are of use to neither half's runtime."""
    if head.auto_class == "AutoModel" and getattr(config, "is_encoder_decoder", False):
        msg = (
            f"{config.model_type} is an encoder with a decoder; it is exported with the head that "
            "generates. Pass pipeline_tag='text2text-generation' or 'automatic-speech-recognition' "
            "if it was trained with one."
        )
        raise UnsupportedModelError(msg)


def _own_class(config: Any, head: Head) -> str:
    """Return the class that the repo's own code has for a head, empty for none."""
    named = (getattr(config, "auto_map", None) or {}).get(head.auto_class) or ""
    return str(named).rpartition(".")[2]


def _table(head: Head) -> dict[str, Any]:
    from transformers.models.auto import modeling_auto

    # A table that this version of transformers does not have yet, or no more.
    table: dict[str, Any] = getattr(modeling_auto, f"{head.table}_MAPPING_NAMES", {})
    return table


def _known() -> str:
    return ", ".join(dict.fromkeys(head.pipeline_tag for head in HEADS))


def _is_in(table: dict[str, Any], architecture: str) -> bool:
    return any(
        architecture in ((names,) if isinstance(names, str) else names) for names in table.values()
    )
