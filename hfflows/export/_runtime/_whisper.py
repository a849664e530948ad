"""Whisper, whose `generate()` knows languages, timestamps and recordings of any length.

Importing this module imports torch and transformers.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hfflows.errors import MissingDependencyError
from hfflows.export._runtime._generation import OrtSeq2SeqLM

try:
    from transformers.models.whisper.generation_whisper import WhisperGenerationMixin
except ImportError as missing:
    _MESSAGE = "Generating needs transformers and torch: pip install 'hfflows[transformers]'."
    raise MissingDependencyError(_MESSAGE) from missing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hfflows.export._runtime._session import Graph


class OrtWhisper(WhisperGenerationMixin, OrtSeq2SeqLM):  # type: ignore[misc] # not typed here
    """An encoder-decoder that transcribes as Whisper does."""

    main_input_name = "input_features"

    def __init__(
        self,
        graphs: Mapping[str, Graph],
        config: Any,
        directory: Path | None = None,
        *,
        io_binding: bool = True,
    ) -> None:
        super().__init__(graphs, config, directory, io_binding=io_binding)
        # What `generate()` reads of the encoder's layers: two frames make one position.
        layers = {"conv1": SimpleNamespace(stride=(1,)), "conv2": SimpleNamespace(stride=(2,))}
        self.model = SimpleNamespace(encoder=SimpleNamespace(**layers), config=self.config)
