"""Exports that generate, as models of transformers without parameters.

They are `PreTrainedModel`s because `generate()` asks for ever other private things of its
model; what computes is the graphs. Importing this module imports torch and transformers.

    decoder only      model.onnx, with keys and values in and out
    encoder-decoder   encoder_model.onnx once, decoder_model.onnx for the first step,
                      decoder_with_past_model.onnx for all further ones
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from hfflows.errors import MissingDependencyError, SettingsError
from hfflows.export._runtime._cache import INPUT, OUTPUT, OrtCache
from hfflows.export._runtime._model import as_array, completed

try:
    import torch
    from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
    from transformers.modeling_outputs import (
        BaseModelOutput,
        CausalLMOutputWithPast,
        Seq2SeqLMOutput,
    )
except ImportError as missing:
    _MESSAGE = "Generating needs transformers and torch: pip install 'hfflows[transformers]'."
    raise MissingDependencyError(_MESSAGE) from missing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hfflows.export._runtime._session import Graph


class OrtGenerator(PreTrainedModel, GenerationMixin):  # type: ignore[misc] # transformers is not typed here
    """What both kinds of generating model share.

    Several threads may generate with one model at once: what a sequence has seen is in its own
    cache. Its tokenizer must not be shared by them.

    Args:
        config: transformers config; it is copied, since transformers writes into it.
        directory: Where `generation_config.json` may lie.
        io_binding: Leave keys and values in the runtime's memory from step to step; else they
            are copied out and in as arrays.
    """

    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: Any, directory: Path | None, *, io_binding: bool = True) -> None:
        super().__init__(copy.deepcopy(config))
        self.io_binding = io_binding
        if directory is not None and (directory / "generation_config.json").is_file():
            self.generation_config = GenerationConfig.from_pretrained(directory)

    @property
    def device(self) -> torch.device:
        """The device on which inputs are expected; copies to others are the runtime's."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The type of floating inputs."""
        return torch.float32

    @classmethod
    def can_generate(cls) -> bool:
        """Return `True`."""
        return True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first step brings the cache: transformers' own is never filled

    def _run(
        self, graph: Graph, values: Mapping[str, Any], cache: OrtCache | None, *, use_cache: bool
    ) -> tuple[torch.Tensor, OrtCache | None]:
        """Run one step; return its logits and the cache for the next one, if there is any."""
        has_cache = use_cache and any(name.startswith(OUTPUT) for name in graph.outputs)
        if has_cache and self.io_binding:
            answers = graph.run_bound(values, kept=OUTPUT)
        else:
            answers = graph.run(values)
        if has_cache:
            before = cache or OrtCache(graph, {}, 0)
            cache = before.followed_by(answers, values["input_ids"].shape[1])
        return torch.from_numpy(answers["logits"]), cache if has_cache else None


class OrtCausalLM(OrtGenerator):
    """A decoder whose graph takes and returns keys and values."""

    def __init__(
        self, graph: Graph, config: Any, directory: Path | None = None, *, io_binding: bool = True
    ) -> None:
        super().__init__(config, directory, io_binding=io_binding)
        self._graph = graph
        self.session = graph.session

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: OrtCache | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **_options: Any,
    ) -> dict[str, Any]:
        """Return what the next step takes: the tokens that the cache has not seen."""
        seen = _length(past_key_values)
        return {
            "input_ids": input_ids[:, seen:] if input_ids.shape[1] > seen else input_ids,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": use_cache,
        }

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: OrtCache | None = None,
        use_cache: bool | None = None,
        **_options: Any,
    ) -> Any:
        """Run the graph over tokens that follow those in the cache.

        Shapes:
            input_ids: int64[batch, new]
            attention_mask: int64[batch, seen + new]; 1 where it is left out.
            position_ids: int64[batch, new] or longer; counted from the mask where left out.
        """
        if input_ids is None:
            msg = "The graph needs 'input_ids'; embeddings in their place it does not take."
            raise SettingsError(msg, input="input_ids")
        rows, new = input_ids.shape
        cache = _ours(past_key_values)
        if attention_mask is None:
            attention_mask = torch.ones((rows, _length(cache) + new), dtype=torch.int64)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        values = {
            "input_ids": as_array(input_ids),
            "attention_mask": as_array(attention_mask),
            "position_ids": as_array(position_ids.expand(rows, -1)[:, -new:]),
        }
        if cache is None:
            past = [name for name in self._graph.inputs if name.startswith(INPUT)]
            values |= {name: self._graph.empty(name, rows) for name in past}
        else:
            values |= cache.values
        logits, cache = self._run(self._graph, values, cache, use_cache=use_cache is not False)
        return CausalLMOutputWithPast(logits=logits, past_key_values=cache)


class _Encoder:
    """The encoder, as `generate()` looks at one."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.main_input_name = next(iter(graph.inputs))

    def __call__(self, **inputs: Any) -> Any:
        return self.forward(**inputs)

    def forward(self, **kwargs: Any) -> Any:  # the name tells transformers to pass what it has
        values = {
            name: as_array(value)
            for name, value in kwargs.items()
            if value is not None and name in self._graph.inputs
        }
        hidden = self._graph.run(completed(values, self._graph))["last_hidden_state"]
        return BaseModelOutput(last_hidden_state=torch.from_numpy(hidden))


class OrtSeq2SeqLM(OrtGenerator):
    """An encoder and its decoder, in three graphs, or in two where nothing is cached."""

    def __init__(
        self,
        graphs: Mapping[str, Graph],
        config: Any,
        directory: Path | None = None,
        *,
        io_binding: bool = True,
    ) -> None:
        super().__init__(config, directory, io_binding=io_binding)
        self.encoder = _Encoder(graphs["encoder_model"])
        self._decoder = graphs["decoder_model"]
        self._decoder_with_past = graphs.get("decoder_with_past_model")
        self.main_input_name = self.encoder.main_input_name

    def get_encoder(self, *_args: Any, **_options: Any) -> _Encoder:
        """Return what turns the input into hidden states."""
        return self.encoder

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: OrtCache | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        use_cache: bool | None = None,
        **_options: Any,
    ) -> dict[str, Any]:
        """Return what the next step takes: the tokens that the cache has not seen."""
        return {
            "decoder_input_ids": input_ids[:, _length(past_key_values) :],
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "encoder_outputs": encoder_outputs,
            "use_cache": use_cache,
        }

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: OrtCache | None = None,
        use_cache: bool | None = None,
        input_features: torch.Tensor | None = None,
        **_options: Any,
    ) -> Any:
        """Run the encoder, unless its outputs are given, and one step of the decoder.

        Shapes:
            input_ids: int64[batch, source], or for speech
            input_features: float32[batch, mels, frames]
            attention_mask: int64[batch, source], of the encoder; 1 where it is left out.
            decoder_input_ids: int64[batch, new]
        """
        if decoder_input_ids is None:
            msg = "The decoder needs 'decoder_input_ids', its first token at least."
            raise SettingsError(msg, input="decoder_input_ids")
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, input_features=input_features, attention_mask=attention_mask
            )
        cache = _ours(past_key_values)
        hidden, seen, new = encoder_outputs[0], _length(cache), decoder_input_ids.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones(hidden.shape[:2], dtype=torch.int64)
        values = {
            "input_ids": as_array(decoder_input_ids),
            "encoder_hidden_states": as_array(hidden),
            "encoder_attention_mask": as_array(attention_mask),
            "cache_position": as_array(torch.arange(seen, seen + new)),  # Optimum's Whisper
        }
        graph = self._decoder
        if cache is not None and self._decoder_with_past is not None:
            graph = self._decoder_with_past
            values |= cache.values
        wants_cache = use_cache is not False and self._decoder_with_past is not None
        logits, cache = self._run(graph, values, cache, use_cache=wants_cache)
        return Seq2SeqLMOutput(
            logits=logits, past_key_values=cache, encoder_last_hidden_state=hidden
        )


def _length(cache: Any) -> int:
    return 0 if cache is None else int(cache.get_seq_length())


def _ours(cache: Any) -> OrtCache | None:
    """Return the cache, if there is anything in it."""
    if not _length(cache):
        return None
    if not isinstance(cache, OrtCache):
        msg = (
            f"past_key_values is a {type(cache).__name__} that is not empty; an export goes on "
            "from what an earlier step of its own returned."
        )
        raise SettingsError(msg)
    return cache
