"""Exports as models that transformers' pipelines and `generate()` run.

one graph              OrtModel: one run, one answer
keys and values in it  OrtCausalLM: generates
encoder and decoder    OrtSeq2SeqLM, OrtWhisper: generate
Optimum is installed   the ORTModelForXxx of that stack
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from hfflows.errors import MissingDependencyError, SettingsError, UnsupportedModelError
from hfflows.export._config._loader import HubConfigLoader, load_config, load_preprocessor
from hfflows.export._onnx._file import read_onnx_metadata
from hfflows.export._runtime._cache import INPUT
from hfflows.export._runtime._files import ENCODER_DECODER, MODEL, OnnxFiles, locate
from hfflows.export._runtime._model import OrtModel
from hfflows.export._runtime._session import Graph, providers_for

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hfflows.artifacts import RefLike
    from hfflows.storage import Store

__all__ = ["OpenedModel", "OrtModel", "Runtime", "load_onnx_model", "open_model"]

Runtime = Literal["auto", "hfflows", "optimum"]
GENERATES = "text-generation"


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model with what it takes to use it."""

    model: Any
    preprocessor: Any
    pipeline_tag: str | None
    """What it was exported for, as its file or its config says."""


def load_onnx_model(
    source: str | os.PathLike[str] | RefLike,
    *,
    device: str = "cpu",
    providers: Sequence[Any] | None = None,
    variant: str | None = None,
    runtime: Runtime = "auto",
    trust_remote_code: bool = False,
    store: Store | None = None,
) -> tuple[Any, Any]:
    """Return a model that runs in `transformers.pipeline`, and its preprocessor.

    A model that was exported to generate has `generate()`, with transformers' own options.
    Several threads may use one model at once. A tokenizer that threads share silently gives
    wrong results: take one for each, with `load_preprocessor` or by loading in each thread.

    Args:
        source: An `.onnx` file, the directory of an export, or an export's reference or key.
            Files beside the graph are used where they lie. Of a reference, the graphs of the
            variant are fetched, and live as long as the model does.
        device: `cpu`, `cuda`, or `cuda:1` for another card.
        providers: ONNX Runtime's providers, instead of `device`: names, or pairs of name and
            options.
        variant: `int8` or `fp16`, where the export has that; `None` is the model itself.
        runtime: `hfflows` runs the graphs itself, `optimum` returns the `ORTModelForXxx` that
            fits, `auto` does the latter where the optimum stack is installed.
        trust_remote_code: Run the repo's own code for config and preprocessor, at the recorded
            commit.
        store: Where a reference is, and where config and preprocessor are looked for when
            they do not lie beside the file.

    Raises:
        SettingsError: No such file, variant, device or provider.
        ExportError: ONNX Runtime cannot open a graph, or transformers has no config or
            preprocessor for it; as `MetadataError` when the file is no ONNX model.
        MissingDependencyError: The extra `transformers`, or the optimum stack, is not
            installed.
        As `hfflows.load_artifact` and `HubConfigLoader.load_from_onnx`.
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
    return opened.model, opened.preprocessor


def open_model(
    source: Any,
    *,
    device: str = "cpu",
    providers: Sequence[Any] | None = None,
    variant: str | None = None,
    runtime: Runtime = "auto",
    trust_remote_code: bool = False,
    store: Store | None = None,
) -> OpenedModel:
    """Return what `load_onnx_model` does, and what the model is for."""
    is_optimum = _is_optimum(runtime)
    chosen = providers_for(device, providers)
    files = locate(source, variant, store)
    try:
        metadata = read_onnx_metadata(files.first)  # says what it is when it is no ONNX file
        if files.config_directory is not None:
            config = load_config(files.config_directory, trust_remote_code=trust_remote_code)
            preprocessor = load_preprocessor(
                files.config_directory, trust_remote_code=trust_remote_code
            )
        else:
            loader = HubConfigLoader(store, trust_remote_code=trust_remote_code)
            config, preprocessor = loader.load_from_onnx(files.first)
        directory = files.description(store)
        tag = pipeline_tag_of(metadata, config)
        if is_optimum:
            model = _of_optimum(files, tag, config, directory, chosen)
        else:
            model = _own_model(files, tag, config, directory, chosen)
    except BaseException:
        files.clean_up()
        raise
    model.hfflows_files = files  # what was fetched is removed with the model, not before
    return OpenedModel(model, preprocessor, tag)


def pipeline_tag_of(metadata: Mapping[str, str], config: Any) -> str | None:
    """Return what the model is for: as its file says, else as transformers' tables do."""
    from hfflows.export._heads import head_of

    recorded = metadata.get("hf_task") or metadata.get("hf_pipeline_tag")
    if recorded:
        return recorded
    try:
        return head_of(config, None).pipeline_tag
    except UnsupportedModelError:
        return None


def _is_optimum(runtime: str) -> bool:
    from hfflows.export._runtime._optimum import has_optimum, missing_optimum

    if runtime not in get_args(Runtime):
        msg = f"runtime={runtime!r} is none of {', '.join(map(repr, get_args(Runtime)))}."
        raise SettingsError(msg, runtime=runtime)
    if runtime == "optimum" and not has_optimum():
        raise missing_optimum()
    return runtime != "hfflows" and has_optimum()


def _of_optimum(
    files: OnnxFiles,
    tag: str | None,
    config: Any,
    directory: Path,
    providers: Sequence[Any],
) -> Any:
    from hfflows.export._runtime._optimum import load_optimum_model

    tag = tag or "feature-extraction"
    return load_optimum_model(files.graphs, tag, config, providers, directory)


def _own_model(
    files: OnnxFiles,
    tag: str | None,
    config: Any,
    directory: Path,
    providers: Sequence[Any],
) -> Any:
    graphs = {role: Graph(path, providers) for role, path in files.graphs.items()}
    _require_torch()
    if ENCODER_DECODER[0] in graphs:
        if config.model_type == "whisper":
            from hfflows.export._runtime._whisper import OrtWhisper

            return OrtWhisper(graphs, config, directory)
        from hfflows.export._runtime._generation import OrtSeq2SeqLM

        return OrtSeq2SeqLM(graphs, config, directory)
    graph = graphs[MODEL]
    if tag == GENERATES or any(name.startswith(INPUT) for name in graph.inputs):
        from hfflows.export._runtime._generation import OrtCausalLM

        return OrtCausalLM(graph, config, directory)
    return OrtModel(graph, config)


def _require_torch() -> None:
    try:
        import torch  # noqa: F401 - pipelines hand tensors over
    except ImportError as error:
        msg = (
            "transformers' pipelines need torch: pip install 'hfflows[transformers]'; without it "
            "there is load_numpy_model."
        )
        raise MissingDependencyError(msg) from error
