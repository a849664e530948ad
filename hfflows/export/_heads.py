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
    """Name of transformers' table from model type to class."""
    auto_class: str
    modality: Literal["text", "image"]


HEADS = (
    Head(
        "text-classification",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        "AutoModelForSequenceClassification",
        "text",
    ),
    Head(
        "token-classification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        "AutoModelForTokenClassification",
        "text",
    ),
    Head(
        "question-answering",
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
        "AutoModelForQuestionAnswering",
        "text",
    ),
    Head("fill-mask", "MODEL_FOR_MASKED_LM_MAPPING_NAMES", "AutoModelForMaskedLM", "text"),
    Head(
        "image-classification",
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
        "AutoModelForImageClassification",
        "image",
    ),
    Head("feature-extraction", "MODEL_MAPPING_NAMES", "AutoModel", "text"),
)
"""In the order of search: some classes stand in several tables."""

SAME_AS = {
    "sentence-similarity": "feature-extraction",
    "text-ranking": "text-classification",
    "zero-shot-classification": "text-classification",
}
"""Tags of the Hub that describe a use of another head."""

_NOT_YET = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_CTC_MAPPING_NAMES",
    "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
)


def head_of(config: Any, pipeline_tag: str | None) -> Head:
    """Return the head to export: the one asked for, else the config's own.

    Raises:
        UnsupportedModelError: No such head here; the message lists those there are.
    """
    from transformers.models.auto import modeling_auto

    known = ", ".join(head.pipeline_tag for head in HEADS)
    if pipeline_tag is not None:
        wanted = SAME_AS.get(pipeline_tag, pipeline_tag)
        _refuse_seq2seq(config)
        for head in HEADS:
            if head.pipeline_tag == wanted:
                _refuse_unless_it_has(config, head)
                return head
        msg = f"No exporter here for pipeline_tag={pipeline_tag!r}; there is one for: {known}."
        raise UnsupportedModelError(msg)
    architecture = (config.architectures or [""])[0]
    _refuse_seq2seq(config)
    for head in HEADS:
        if _is_in(getattr(modeling_auto, head.table), architecture):
            if head.auto_class == "AutoModel" and hasattr(config, "image_size"):
                break
            return head
    generates = any(_is_in(getattr(modeling_auto, table, {}), architecture) for table in _NOT_YET)
    why = "generates or hears" if generates else "is in none of the tables"
    msg = (
        f"{architecture or 'A model without architectures'} ({config.model_type}) {why}: no "
        f"exporter here yet. Pass pipeline_tag= to export one of its other heads: {known}."
    )
    raise UnsupportedModelError(msg)


def _refuse_seq2seq(config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        msg = (
            f"{config.model_type} is an encoder with a decoder: there is no exporter here yet for "
            "models that generate."
        )
        raise UnsupportedModelError(msg)


def _refuse_unless_it_has(config: Any, head: Head) -> None:
    from transformers.models.auto import modeling_auto

    if config.model_type not in getattr(modeling_auto, head.table):
        msg = f"transformers has no {head.pipeline_tag} head for {config.model_type}."
        raise UnsupportedModelError(msg)


def _is_in(table: Any, architecture: str) -> bool:
    for names in table.values():
        if architecture in ((names,) if isinstance(names, str) else names):
            return True
    return False
