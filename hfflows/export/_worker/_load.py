"""The model of a directory with all its weights, and what prepares its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfflows.errors import MissingDependencyError, UnsupportedModelError
from hfflows.export._config._dispatch import (
    PREPROCESSOR,
    has_tokenizer,
    load_config,
    load_part,
    read_facts,
)
from hfflows.export._heads import Head, head_of

if TYPE_CHECKING:
    from pathlib import Path

    from hfflows.export._settings import ExportSettings


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, what it is for, and the directory its preprocessors are in."""

    model: Any
    head: Head
    source: Path
    trust_remote_code: bool = False

    def tokenizer(self) -> Any | None:
        """Return the tokenizer, `None` when there is none."""
        if not has_tokenizer(self.source):
            return None
        return self._preprocessor("AutoTokenizer")

    def image_processor(self) -> Any | None:
        """Return the image processor; `None` when there is none, or no pillow to run it."""
        if "image_processor_type" not in self.preprocessor_facts():
            return None
        try:
            return self._preprocessor("AutoImageProcessor")
        except MissingDependencyError:
            return None

    def feature_extractor(self) -> Any | None:
        """Return what prepares sounds, `None` when there is nothing."""
        if "feature_extractor_type" not in self.preprocessor_facts():
            return None
        return self._preprocessor("AutoFeatureExtractor")

    def preprocessor_facts(self) -> dict[str, Any]:
        """Return what stands in `preprocessor_config.json`, empty without it."""
        path = self.source / PREPROCESSOR
        return read_facts(path) if path.is_file() else {}

    def _preprocessor(self, auto_class: str) -> Any:
        # One part at a time: a whole processor needs pillow also where only its tokenizer is used.
        return load_part(auto_class, self.source, trust_remote_code=self.trust_remote_code)


def load(source: Path, settings: ExportSettings) -> Loaded:
    """Return the model of a directory, ready to be called.

    Raises:
        UnsupportedModelError: No exporter for what it is, or weights are missing.
        ExportError: transformers cannot read it.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    trust = settings.trust_remote_code
    config = load_config(source, trust_remote_code=trust)
    head = head_of(config, settings.pipeline_tag)
    auto_class = getattr(transformers, head.auto_class)
    options = {
        "local_files_only": True,
        "trust_remote_code": trust,
        "dtype": getattr(torch, settings.dtype),
    }
    return Loaded(_with_weights(auto_class, source, config, options).eval(), head, source, trust)


def _with_weights(auto_class: Any, source: Path, config: Any, options: dict[str, Any]) -> Any:
    """Return the model, all of it from the file: transformers fills gaps with random numbers.

    A random head answers alike in torch and in the graph, so parity cannot notice it.
    """
    # What a graph cannot return: it has tensors for outputs, not tuples and caches.
    for name in ("use_cache", "output_hidden_states", "output_attentions"):
        setattr(config, name, False)
    options = {**options, "config": config, "output_loading_info": True}
    model, info = auto_class.from_pretrained(source, **options)
    missing = _missing(info)
    if missing and all(name.startswith("pooler.") for name in missing):
        model, info = auto_class.from_pretrained(source, add_pooling_layer=False, **options)
        missing = _missing(info)
    if missing:
        msg = (
            f"{source} has no weights for {', '.join(missing[:4])} of {type(model).__name__}: they "
            "would be random. Export the head it was trained with, or train this one first."
        )
        raise UnsupportedModelError(msg, missing=missing)
    return model


def _missing(info: Any) -> list[str]:
    mismatched = [item[0] for item in info["mismatched_keys"]]
    return sorted({*info["missing_keys"], *mismatched})
