"""Exports in `transformers.pipeline`, and in ours for the tasks that version 5 dropped."""

from __future__ import annotations

import logging
from inspect import signature
from typing import TYPE_CHECKING, Any

from hfflows.errors import SettingsError
from hfflows.export._runtime._answers import QuestionAnswering
from hfflows.export._runtime._load import open_model
from hfflows.export._runtime._texts import TEXT_TASKS, TextToText, base_task

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from hfflows.artifacts import RefLike
    from hfflows.export._runtime._load import Runtime
    from hfflows.storage import Store

SAME_AS = {"sentence-similarity": "feature-extraction", "text-ranking": "text-classification"}
"""Tags of the Hub that no pipeline has, with the one that runs such models."""

_PARTS = ("tokenizer", "image_processor", "feature_extractor")


def onnx_pipeline(
    source: str | os.PathLike[str] | RefLike,
    task: str | None = None,
    *,
    device: str = "cpu",
    providers: Sequence[Any] | None = None,
    variant: str | None = None,
    runtime: Runtime = "auto",
    trust_remote_code: bool = False,
    store: Store | None = None,
    **options: Any,
) -> Any:
    """Return a callable that takes raw inputs and returns answers, as `transformers.pipeline`.

    It is `transformers.pipeline` itself wherever that has the task. Version 5 has no
    `question-answering`, `translation`, `summarization` and `text2text-generation`: for these
    there is a callable of ours that takes and returns what version 4's did.

    Args:
        source: As `load_onnx_model` takes.
        task: What for; `None` takes what the model was exported for. One export may serve
            several: a classifier of entailment also does `zero-shot-classification`.
        device: As `load_onnx_model` takes; so are the next four.
        providers: Instead of `device`.
        variant: `int8` or `fp16`.
        runtime: `hfflows`, `optimum` or `auto`.
        trust_remote_code: Run the repo's own code.
        store: Of a reference, of config and preprocessor.
        **options: Of the pipeline, such as `top_k` or `aggregation_strategy`.

    Raises:
        SettingsError: No such task for this model, or none that is recorded.
        As `load_onnx_model`.
    """
    opened = open_model(
        source,
        device=device,
        providers=providers,
        variant=variant,
        runtime=runtime,
        trust_remote_code=trust_remote_code,
        store=store,
    )
    wanted = task or opened.pipeline_tag
    if wanted is None:
        msg = "Nothing says what the model is for; pass task=, such as 'text-classification'."
        raise SettingsError(msg)
    wanted = SAME_AS.get(wanted, wanted)
    if not _is_in_transformers(wanted):
        return _own(wanted, opened.model, opened.preprocessor, options)
    import transformers

    _expect_our_classes()
    parts = _parts_of(opened.preprocessor)
    if "framework" in signature(transformers.pipeline).parameters:
        options["framework"] = "pt"  # version 4 would guess it from the model's class
    return transformers.pipeline(wanted, model=opened.model, device=-1, **parts, **options)


def _is_in_transformers(task: str) -> bool:
    from transformers.pipelines import SUPPORTED_TASKS, TASK_ALIASES

    return base_task(TASK_ALIASES.get(task, task)) in SUPPORTED_TASKS


def _own(task: str, model: Any, preprocessor: Any, options: dict[str, Any]) -> Any:
    tokenizer = _parts_of(preprocessor).get("tokenizer")
    if task == QuestionAnswering.task:
        if "start_logits" not in getattr(model, "output_names", ()):
            raise _unfit(task, model)
        return QuestionAnswering(model, tokenizer, **options)
    if base_task(task) in TEXT_TASKS:
        if not (model.can_generate() and model.config.is_encoder_decoder):
            raise _unfit(task, model)
        return TextToText(task, model, tokenizer, **options)
    msg = f"task={task!r} is a task neither of transformers.pipeline nor of ours."
    raise SettingsError(msg, task=task)


def _unfit(task: str, model: Any) -> SettingsError:
    msg = (
        f"This export cannot serve {task}: it was made of another head. It is a "
        f"{type(model).__name__} of {', '.join(model.config.architectures or ['unknown'])}."
    )
    return SettingsError(msg, task=task)


def _parts_of(preprocessor: Any) -> dict[str, Any]:
    """Return the preprocessor under the name, or its parts under those, that pipelines use."""
    from transformers import FeatureExtractionMixin, PreTrainedTokenizerBase, ProcessorMixin

    if isinstance(preprocessor, ProcessorMixin):
        parts = {name: getattr(preprocessor, name, None) for name in _PARTS}
        return {name: part for name, part in parts.items() if part is not None}
    if isinstance(preprocessor, PreTrainedTokenizerBase):
        return {"tokenizer": preprocessor}
    if isinstance(preprocessor, FeatureExtractionMixin):
        return {"feature_extractor": preprocessor}
    return {"image_processor": preprocessor}


def _expect_our_classes() -> None:
    """Keep pipelines from logging an error about every class that is not transformers' own."""
    logger = logging.getLogger("transformers.pipelines.base")
    if _is_about_others not in logger.filters:
        logger.addFilter(_is_about_others)


def _is_about_others(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("The model 'Ort")
