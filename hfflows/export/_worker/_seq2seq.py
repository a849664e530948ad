"""Encoders with a decoder: three graphs, by Optimum's names.

    encoder_model.onnx            input_ids, attention_mask (or input_features) → last_hidden_state
    decoder_model.onnx            input_ids, encoder_attention_mask, encoder_hidden_states
                                    → logits, present.N.decoder.key / .value, .encoder.key / .value
    decoder_with_past_model.onnx  input_ids, encoder_attention_mask, past_key_values.N.…
                                    → logits, present.N.decoder.key / .value

The encoder's keys and values are made once, by the decoder without a past. Optimum pairs names
by their place, so each layer's stand together, the decoder's before the encoder's.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from hfflows.export._worker._causal import cache_of, layers_of, past_layers, present_tensors
from hfflows.export._worker._media import sounds
from hfflows.export._worker._plan import BATCH, Case, Graph, Plan, as_module, make_graph
from hfflows.export._worker._texts import BATCHES, SIDES, TEXTS, Texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hfflows.export._worker._load import Loaded
    from hfflows.export._worker._plan import Axes, Tensors

ENCODER = "encoder_model.onnx"
DECODER = "decoder_model.onnx"
WITH_PAST = "decoder_with_past_model.onnx"

SOURCE, TARGET = "encoder_sequence_length", "decoder_sequence_length"
PAST = "past_decoder_sequence_length"
DURATIONS = (0.2,), (0.25, 0.4), (0.3, 0.2, 0.35)
STEPS = (0, 1), (0, 4), (1, 1), (4, 1)
"""(tokens read before, tokens read now)."""
SEVERAL_AT_ONCE = ((2, 3),)
"""Optimum's own graphs take one token at a time once there is a past; ours do not mind."""


class Parts:
    """The calls that the three graphs make, as plain functions of tensors."""

    def __init__(self, loaded: Loaded) -> None:
        self.model = loaded.model
        self.encoder = loaded.model.get_encoder()
        self.has_mask = "input_ids" in signature(self.encoder.forward).parameters

    def encode(self, inputs: Tensors) -> Tensors:
        """Return the encoder's last hidden state."""
        return {"last_hidden_state": self.encoder(**inputs)[0]}

    def begin(self, inputs: Tensors) -> Tensors:
        """Return logits, and keys and values of decoder and encoder."""
        own, cross = cache_of([]), cache_of([])
        logits = self._decode(inputs, inputs["encoder_hidden_states"], own, cross)
        answer = {"logits": logits}
        for index, layer in enumerate(zip(layers_of(own), layers_of(cross), strict=True)):
            for part, (keys, values) in zip(("decoder", "encoder"), layer, strict=True):
                answer |= {
                    f"present.{index}.{part}.key": keys,
                    f"present.{index}.{part}.value": values,
                }
        return answer

    def go_on(self, inputs: Tensors) -> Tensors:
        """Return logits, and keys and values of the decoder: the encoder's do not change."""
        import torch

        own = cache_of(past_layers(inputs, "decoder"))
        cross = cache_of(past_layers(inputs, "encoder"))
        keys = cross.layers[0].keys
        # Not looked at, since its keys and values are there; but models ask for its shape.
        hidden = torch.zeros(
            (inputs["input_ids"].shape[0], keys.shape[2], self._width()), dtype=keys.dtype
        )
        logits = self._decode(inputs, hidden, own, cross)
        return {"logits": logits, **present_tensors(layers_of(own), "decoder")}

    def _decode(self, inputs: Tensors, hidden: Any, own: Any, cross: Any) -> Any:
        import torch
        from transformers.cache_utils import EncoderDecoderCache
        from transformers.modeling_outputs import BaseModelOutput

        ids = inputs["input_ids"]
        cache = EncoderDecoderCache(own, cross)
        cache.is_updated = dict.fromkeys(range(len(cross.layers)), True)
        read = own.layers[0].keys.shape[2] if own.layers else 0
        options: dict[str, Any] = {}
        if self.has_mask:
            options["attention_mask"] = inputs["encoder_attention_mask"]
        if "decoder_attention_mask" in signature(self.model.forward).parameters:
            # Spelt out: a tracer would take "none" for "as long as this sample".
            options["decoder_attention_mask"] = torch.ones(
                (ids.shape[0], read + ids.shape[1]), dtype=torch.long
            )
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
            **options,
        ).logits

    def _width(self) -> int:
        config = self.model.config
        return int(getattr(config, "d_model", None) or config.hidden_size)


def plan_seq2seq(loaded: Loaded, *, several_at_once: bool = True) -> Plan:
    """Return the plan of an encoder-decoder.

    Args:
        loaded: The model.
        several_at_once: Also compare steps of more than one token after a past.

    Raises:
        UnsupportedModelError: There is nothing to make its inputs with, or it refuses them.
    """
    parts = Parts(loaded)
    source = _Sources(loaded, parts)
    encoder = as_module(parts.encode, parts.encoder)
    decoder, with_past = as_module(parts.begin, parts.model), as_module(parts.go_on, parts.model)
    few = _Read(parts, source.sample(2, 7), source.target(2, 8))
    many = _Read(parts, source.sample(3, 9), source.target(3, 10))
    graphs: list[Graph] = [
        make_graph(ENCODER, encoder, few.source, many.source, source.axes),
        make_graph(DECODER, decoder, few.first(3), many.first(4), _axes(few.first(3))),
        make_graph(WITH_PAST, with_past, few.after(5, 3), many.after(6, 4), _axes(few.after(5, 3))),
    ]
    steps = (*STEPS, *(SEVERAL_AT_ONCE if several_at_once else ()))

    def cases() -> Iterator[Case]:
        for inputs in source.batches():
            rows = next(iter(inputs.values())).shape[0]
            read = _Read(parts, inputs, source.target(rows, 5))
            masks = read.masks()
            yield Case(ENCODER, inputs, {"last_hidden_state": read.hidden}, masks)
            for past, length in steps:
                expected = read.expected(past, length)
                if past:
                    yield Case(WITH_PAST, read.after(past, length), expected, masks)
                else:
                    yield Case(DECODER, read.first(length), expected, masks)

    return Plan(graphs, cases)


class _Read:
    """A batch that torch has read whole, in one call: what every step must agree with."""

    def __init__(self, parts: Parts, source: Tensors, target: Any) -> None:
        import torch

        self.source = source
        self.ids = target
        with torch.no_grad():
            self.hidden = parts.encode(source)["last_hidden_state"]
            self._whole = parts.begin(self._to_decode(target))

    def first(self, length: int) -> Tensors:
        """Return what the decoder takes at the beginning."""
        return self._to_decode(self.ids[:, :length])

    def after(self, past: int, length: int) -> Tensors:
        """Return what the decoder takes after `past` tokens."""
        inputs = self._to_decode(self.ids[:, past : past + length])
        del inputs["encoder_hidden_states"]
        for name, value in self._whole.items():
            if name != "logits":
                kept = value[:, :, :past] if ".decoder." in name else value
                inputs[name.replace("present.", "past_key_values.")] = kept.contiguous()
        return inputs

    def expected(self, past: int, length: int) -> Tensors:
        """Return what the decoder answers to them."""
        end = past + length
        found = {"logits": self._whole["logits"][:, past:end]}
        for name, value in self._whole.items():
            if ".decoder." in name:
                found[name] = value[:, :, :end]
            elif ".encoder." in name:
                found[name] = value
        return found

    def masks(self) -> dict[str, Any]:
        """Return where the encoder read tokens; everywhere, if nothing is masked."""
        mask = self.source.get("attention_mask")
        return {} if mask is None else {SOURCE: mask.bool()}

    def _to_decode(self, ids: Any) -> Tensors:
        inputs = {"input_ids": ids.contiguous()}
        if "attention_mask" in self.source:
            inputs["encoder_attention_mask"] = self.source["attention_mask"]
        return {**inputs, "encoder_hidden_states": self.hidden}


class _Sources:
    """Batches for the encoder: texts, or sounds."""

    def __init__(self, loaded: Loaded, parts: Parts) -> None:
        self._loaded = loaded
        both = ("input_ids", "attention_mask")
        taken = signature(parts.encoder.forward).parameters
        self._texts = Texts(loaded, both) if parts.has_mask else None
        self._names = both if parts.has_mask else [name for name in taken if "input" in name]
        self.axes: Axes = {name: {0: BATCH, 1: SOURCE} for name in self._names}

    def sample(self, rows: int, length: int) -> Tensors:
        """Return what is traced."""
        if self._texts is not None:
            return self._texts.batch(TEXTS[:rows], length=length)
        return sounds(self._loaded, (0.3, 0.2, 0.25)[:rows], self._names)

    def target(self, rows: int, length: int) -> Any:
        """Return token ids for the decoder: its start, then the tokens of other texts.

        Without a tokenizer, whatever its vocabulary holds.
        """
        import torch

        config = self._loaded.model.config
        described = getattr(config, "get_text_config", lambda **_: config)(decoder=True)
        drawn = torch.Generator().manual_seed(rows)
        made = torch.randint(described.vocab_size, (rows, length), generator=drawn)
        if self._texts is not None:
            for row in range(rows):
                tokens = [token for text in TEXTS[row:] + TEXTS for token in self._texts.ids(text)]
                made[row] = torch.tensor(tokens[:length])
        made[:, 0] = _start(config)
        return made

    def batches(self) -> Iterator[Tensors]:
        """Return what is compared."""
        if self._texts is None:
            yield from (sounds(self._loaded, each, self._names) for each in DURATIONS)
            return
        for side in SIDES:
            for one in BATCHES:
                yield self._texts.batch(one, side=side)


def _start(config: Any) -> int:
    """Return the token that a decoder begins with."""
    names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
    found = [getattr(config, name, None) for name in names]
    return next((int(token) for token in found if token is not None), 0)


def _axes(inputs: Tensors) -> Axes:
    axes: Axes = {
        "input_ids": {0: BATCH, 1: TARGET},
        "encoder_attention_mask": {0: BATCH, 1: SOURCE},
        "encoder_hidden_states": {0: BATCH, 1: SOURCE},
    }
    return {
        name: axes.get(name) or {0: BATCH, 2: PAST if ".decoder." in name else SOURCE}
        for name in inputs
    }
