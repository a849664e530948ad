"""Exports by Optimum, in an environment that holds it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows.errors import ExportError, UnsupportedModelError
from hfflows.export._runtime._optimum import has_optimum, missing_optimum

if TYPE_CHECKING:
    from collections.abc import Mapping

TASKS = {
    "image-feature-extraction": ("feature-extraction",),
    "image-segmentation": ("semantic-segmentation", "image-segmentation"),
    "image-text-to-text": ("image-to-text",),
    "sentence-similarity": ("feature-extraction",),
    "summarization": ("text2text-generation",),
    "text-ranking": ("text-classification",),
    "translation": ("text2text-generation",),
    "zero-shot-classification": ("text-classification",),
}
"""What Optimum calls the tags for which it has other words, in order of preference."""

GENERATING = {
    "automatic-speech-recognition",
    "image-to-text",
    "text-generation",
    "text2text-generation",
}
"""Tasks that are exported with a KV cache where the architecture has one."""


def write_with_optimum(
    source: Path,
    directory: Path,
    pipeline_tag: str,
    opset: int | None,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Write the graphs of the model in `source` into the new `directory`, by Optimum's names.

    Only graphs and their weights: Optimum would save config and tokenizer anew, and others
    would have to live with what its transformers makes of them.

    Args:
        source: Directory of a transformers model.
        directory: Where `model.onnx` goes, or `encoder_model.onnx` and the two decoders; weights
            past 2 GB lie beside a graph in `<graph>_data`.
        pipeline_tag: What to export it for.
        opset: ONNX opset; `None` is what Optimum has for the architecture.
        trust_remote_code: Run code that lies in `source`.

    Raises:
        MissingDependencyError: This is not the optimum stack.
        UnsupportedModelError: Optimum does not export this architecture for this tag.
        ExportError: Optimum failed.
    """
    if not has_optimum():
        raise missing_optimum()
    from optimum.exporters.onnx import main_export
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        source, local_files_only=True, trust_remote_code=trust_remote_code
    )
    task = _task(config, pipeline_tag)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".optimum-", dir=directory.parent) as scratch:
        try:
            main_export(
                str(source),
                scratch,
                task=task,  # told, since it finds it out for repos of the Hub only
                opset=opset,
                framework="pt",
                library_name="transformers",
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                do_validation=False,  # on sample inputs of its own; ours are real ones
                # It merges two decoders into one more file, which nobody here reads.
                no_post_process=config.is_encoder_decoder,
                **_sample_shapes(config),
            )
        # Whatever a tracer stumbles over.
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            msg = f"Optimum's exporter failed: {type(error).__name__}: {first}"
            raise ExportError(msg, pipeline_tag=pipeline_tag) from error
        directory.mkdir(exist_ok=True)
        for path in sorted(Path(scratch).glob("*.onnx*")):
            path.rename(directory / path.name)


def _sample_shapes(config: Any) -> dict[str, int]:
    """Return the sizes of sample inputs that Optimum would not take from the config."""
    if config.model_type == "whisper":  # it takes sounds of one length only
        return {"nb_max_frames": 2 * config.max_source_positions}
    return {}


def _task(config: Any, pipeline_tag: str) -> str:
    """Return Optimum's word for what to export, with a KV cache where there can be one."""
    supported = _supported_tasks(config.model_type)
    for task in TASKS.get(pipeline_tag, (pipeline_tag,)):
        if task in GENERATING and f"{task}-with-past" in supported:
            return f"{task}-with-past"
        if task in supported:
            return task
    known = ", ".join(sorted(supported)) or "nothing"
    msg = (
        f"Optimum does not export {config.model_type} for {pipeline_tag}, only for {known}; leave "
        "out backend='optimum'."
    )
    raise UnsupportedModelError(msg, pipeline_tag=pipeline_tag)


def _supported_tasks(model_type: str) -> Mapping[str, Any]:
    from optimum.exporters.tasks import TasksManager

    try:
        found: Mapping[str, Any] = TasksManager.get_supported_tasks_for_model_type(
            model_type, "onnx", library_name="transformers"
        )
    except KeyError:
        return {}
    return found
