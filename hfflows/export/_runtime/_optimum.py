"""Exports in Optimum's own classes, in an environment that holds Optimum.

optimum-onnx takes transformers below 4.58, so it never lies beside the modern stack: where it
is installed, it was meant to be used.
"""

from __future__ import annotations

import copy
from importlib import metadata, util
from typing import TYPE_CHECKING, Any

from hfflows.errors import ExportError, MissingDependencyError, UnsupportedModelError
from hfflows.export._runtime._files import ENCODER_DECODER, MODEL
from hfflows.export._runtime._session import provider_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ORT_CLASSES = {
    "audio-classification": "ORTModelForAudioClassification",
    "automatic-speech-recognition": "ORTModelForCTC",
    "depth-estimation": "ORTModelForCustomTasks",
    "feature-extraction": "ORTModelForFeatureExtraction",
    "fill-mask": "ORTModelForMaskedLM",
    "image-classification": "ORTModelForImageClassification",
    "image-feature-extraction": "ORTModelForFeatureExtraction",
    "image-segmentation": "ORTModelForSemanticSegmentation",
    "multiple-choice": "ORTModelForMultipleChoice",
    "object-detection": "ORTModelForCustomTasks",
    "question-answering": "ORTModelForQuestionAnswering",
    "sentence-similarity": "ORTModelForFeatureExtraction",
    "text-classification": "ORTModelForSequenceClassification",
    "text-generation": "ORTModelForCausalLM",
    "text-ranking": "ORTModelForSequenceClassification",
    "token-classification": "ORTModelForTokenClassification",
    "zero-shot-classification": "ORTModelForSequenceClassification",
    "zero-shot-image-classification": "ORTModelForZeroShotImageClassification",
}
"""What Optimum calls a model of one graph, by pipeline tag; `CustomTasks` returns every output."""

ORT_ENCODER_DECODERS = {
    "automatic-speech-recognition": "ORTModelForSpeechSeq2Seq",
    "image-text-to-text": "ORTModelForVision2Seq",
    "image-to-text": "ORTModelForVision2Seq",
    "summarization": "ORTModelForSeq2SeqLM",
    "text2text-generation": "ORTModelForSeq2SeqLM",
    "translation": "ORTModelForSeq2SeqLM",
}
"""The same for three graphs; speech is transcribed by models of either kind."""

PARTS = ("encoder", "decoder", "decoder_with_past")
"""Optimum's words for the three, as in its arguments."""
FIRST_MODERN_TRANSFORMERS = 5


def has_optimum() -> bool:
    """Return whether this is the optimum stack, without importing any of it."""
    try:
        transformers = int(metadata.version("transformers").partition(".")[0])
        # Optimum itself can be there without optimum-onnx, and without this module.
        return transformers < FIRST_MODERN_TRANSFORMERS and (
            util.find_spec("optimum.onnxruntime") is not None
        )
    except (metadata.PackageNotFoundError, ModuleNotFoundError):
        return False


def missing_optimum() -> MissingDependencyError:
    """Return the error for an environment without the optimum stack."""
    msg = (
        "Optimum is not installed here. It takes transformers below 4.58, so it needs an "
        "environment of its own, without the extras `export` and `transformers`: "
        "python -m venv optimum; optimum/bin/pip install 'hfflows[optimum]'."
    )
    return MissingDependencyError(msg)


def load_optimum_model(
    graphs: Mapping[str, Path],
    pipeline_tag: str,
    config: Any,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    description: Path | None = None,
) -> Any:
    """Return an export in the `ORTModelForXxx` that fits its pipeline tag.

    The files are used where they lie. IO binding follows Optimum's own rule: on CUDA, where it
    saves the copies to and from the device; on CPU there are none to save.

    Args:
        graphs: The graphs by role, as `locate` finds them.
        pipeline_tag: What the model was exported for.
        config: transformers config of the model; it is copied, since Optimum writes into it.
        providers: ONNX Runtime's providers: names, or pairs of name and options.
        description: Directory with the generation config; `None` looks beside the graphs.

    Raises:
        MissingDependencyError: This is not the optimum stack.
        UnsupportedModelError: Optimum has no class for this tag.
        ExportError: ONNX Runtime or Optimum refuses the files.
    """
    if not has_optimum():
        raise missing_optimum()
    name = _class_name(pipeline_tag, is_encoder_decoder=ENCODER_DECODER[0] in graphs)
    config, first = copy.deepcopy(config), next(iter(graphs.values()))
    try:
        if MODEL in graphs and name != "ORTModelForCausalLM":
            return _of_one_graph(name, first, config, providers)
        options = {"generation_config": _generation_config(description or first.parent)}
        return _generating(name, graphs, config, providers, options)
    # Whatever stands in a file is for ONNX Runtime, whose errors have no base, and for Optimum.
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        msg = f"{name} cannot load {first}: {type(error).__name__}: {said}"
        raise ExportError(msg, path=str(first)) from error


def _class_name(pipeline_tag: str, *, is_encoder_decoder: bool) -> str:
    table = ORT_ENCODER_DECODERS if is_encoder_decoder else ORT_CLASSES
    try:
        return table[pipeline_tag]
    except KeyError:
        kind = "three graphs" if is_encoder_decoder else "one graph"
        msg = (
            f"Optimum has no class for pipeline_tag={pipeline_tag!r} in {kind}; it has classes "
            f"for {', '.join(sorted(table))}. Load the file with runtime='hfflows'."
        )
        raise UnsupportedModelError(msg, pipeline_tag=pipeline_tag) from None


def _of_one_graph(name: str, graph: Path, config: Any, providers: Sequence[Any]) -> Any:
    import onnxruntime
    from optimum import onnxruntime as classes

    session = onnxruntime.InferenceSession(str(graph), providers=list(providers))
    outputs = {item.name for item in session.get_outputs()}
    # The class for hidden states returns nothing else, that for segments knows of logits only.
    if "sentence_embedding" in outputs or ("Segmentation" in name and "logits" not in outputs):
        name = "ORTModelForCustomTasks"
    return getattr(classes, name)(config=config, session=session)


def _generation_config(directory: Path) -> Any | None:
    """Return what the model generates with; `None` leaves it to the model's config."""
    from transformers import GenerationConfig

    if not (directory / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(str(directory), local_files_only=True)


def _generating(
    name: str,
    graphs: Mapping[str, Path],
    config: Any,
    providers: Sequence[Any],
    options: dict[str, Any],
) -> Any:
    """Return a model that generates.

    Not through `from_pretrained`, which takes an `@` in a path for a revision, asks for a config
    beside the graphs though it was given one, and exports anew where it finds no graph.
    """
    from optimum import onnxruntime as classes

    if MODEL in graphs:
        options["file_name"] = graphs[MODEL].name
    else:
        for part, role in zip(PARTS, ENCODER_DECODER, strict=True):
            if role in graphs:
                options[f"{part}_file_name"] = graphs[role].name
        options |= {"use_merged": False, "use_cache": ENCODER_DECODER[2] in graphs}
    model = getattr(classes, name)._from_pretrained(  # noqa: SLF001 - says the docstring
        str(next(iter(graphs.values())).parent),
        config,
        providers=provider_names(providers),
        provider_options=[{} if isinstance(item, str) else dict(item[1]) for item in providers],
        local_files_only=True,
        **options,
    )
    for part in getattr(model, "parts", [model]):
        _read_cache_shape(part)
    return model


def _read_cache_shape(part: Any) -> None:
    """Take the size of the KV cache from the graph.

    Optimum divides `hidden_size` by the number of heads, which is wrong for models that give
    `head_dim` (Qwen3, Mistral, T5's `d_kv`), and knows grouped heads of some models only.
    """
    for names, shapes in (
        (getattr(part, "key_value_input_names", ()), part.input_shapes),
        (getattr(part, "key_value_output_names", ()), part.output_shapes),
    ):
        for shape in (shapes[name] for name in names):
            _batch, heads, _past, size = shape
            if isinstance(heads, int) and isinstance(size, int):
                part.num_attention_heads = part.num_key_value_heads = heads
                part.embed_size_per_head = size
                return
