"""Models that continue a text: one graph that reads and writes its key-value cache.

    input_ids, attention_mask, position_ids, past_key_values.N.key / .value
        → logits, present.N.key / .value

One graph does both: with a past of length 0 it reads the prompt, then it adds to the past.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from hfflows.errors import UnsupportedModelError
from hfflows.export._worker._plan import BATCH, Case, Plan, as_module, make_graph
from hfflows.export._worker._texts import BATCHES, SIDES, TEXTS, Texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hfflows.export._worker._load import Loaded
    from hfflows.export._worker._plan import Axes, Tensors

    Layers = list[tuple[Any, Any]]
    """Keys and values of each layer: `[batch, heads, sequence, width]`."""

FILE = "model.onnx"
SEQUENCE, PAST = "sequence_length", "past_sequence_length"
TOTAL = f"{PAST} + {SEQUENCE}"
"""Optimum's word for the axis, which its runtime computes with."""


class Steps:
    """The calls of a model that reads a text in one go, or step by step."""

    def __init__(self, loaded: Loaded) -> None:
        self.model = loaded.model
        self._texts = Texts(loaded, ("input_ids", "attention_mask"))
        self._names = ["input_ids", "attention_mask"]
        if "position_ids" in signature(loaded.model.forward).parameters:
            self._names.append("position_ids")

    def step(self, inputs: Tensors) -> Tensors:
        """Return logits of the new tokens, and keys and values of all."""
        cache = cache_of(past_layers(inputs))
        logits = self._call(inputs, cache)
        return {"logits": logits, **present_tensors(layers_of(cache))}

    def read_whole(self, batch: Tensors) -> tuple[Any, Layers]:
        """Return logits, keys and values of a text, all at once: what steps must come to."""
        cache = cache_of([])
        logits = self._call(with_positions(batch), cache)
        return logits, layers_of(cache)

    def sample(self, rows: int, *, past: int, length: int) -> Tensors:
        """Return what is traced: `length` tokens after `past` others."""
        import torch

        batch = self._texts.batch(TEXTS[:rows], length=past + length)
        with torch.no_grad():
            inputs = inputs_after(past, batch, self.read_whole(batch)[1])
        asked = set(self._names)
        return {name: inputs[name] for name in inputs if name in asked or name.startswith("past")}

    def batches(self) -> Iterator[Tensors]:
        """Return what is compared."""
        for side in SIDES:
            for one in BATCHES:
                yield self._texts.batch(one, side=side)

    def _call(self, inputs: Tensors, cache: Any) -> Any:
        given = {name: inputs[name] for name in self._names}
        return self.model(**given, past_key_values=cache, use_cache=True).logits


def plan_causal(loaded: Loaded) -> Plan:
    """Return the plan of a model with a key-value cache.

    Raises:
        UnsupportedModelError: No tokenizer, or the model keeps something else than keys and
            values.
    """
    steps = Steps(loaded)
    samples, others = steps.sample(2, past=5, length=7), steps.sample(3, past=4, length=9)
    module = as_module(steps.step, steps.model)
    graph = make_graph(FILE, module, samples, others, _axes(samples))

    def cases() -> Iterator[Case]:
        for batch in steps.batches():
            logits, layers = steps.read_whole(batch)
            length, mask = batch["input_ids"].shape[1], batch["attention_mask"].bool()
            for past in sorted({0, 1, length // 2, length - 1} - {length}):
                expected = {"logits": logits[:, past:], **present_tensors(layers)}
                masks = {SEQUENCE: mask[:, past:], TOTAL: mask}
                yield Case(FILE, inputs_after(past, batch, layers), expected, masks)

    return Plan([graph], cases)


def inputs_after(past: int, batch: Tensors, layers: Layers) -> Tensors:
    """Return what the graph takes when the first `past` tokens have been read already."""
    whole = with_positions(batch)
    inputs = {
        "input_ids": whole["input_ids"][:, past:],
        "attention_mask": whole["attention_mask"],
        "position_ids": whole["position_ids"][:, past:],
    }
    for index, (keys, values) in enumerate(layers):
        inputs[f"past_key_values.{index}.key"] = keys[:, :, :past]
        inputs[f"past_key_values.{index}.value"] = values[:, :, :past]
    return {name: value.contiguous() for name, value in inputs.items()}


def with_positions(batch: Tensors) -> Tensors:
    """Return a batch with the place of each token in its own text, as `generate` counts them."""
    mask = batch["attention_mask"]
    return {**batch, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def past_layers(inputs: Tensors, part: str = "") -> Layers:
    """Return the keys and values among a graph's inputs, by layer."""
    count = sum(name.startswith("past_key_values.") for name in inputs)
    name = "past_key_values.{}" + (f".{part}" if part else "")
    return [
        (inputs[f"{name.format(index)}.key"], inputs[f"{name.format(index)}.value"])
        for index in range(count)
        if f"{name.format(index)}.key" in inputs
    ]


def present_tensors(layers: Layers, part: str = "") -> Tensors:
    """Return keys and values by the names they have among a graph's outputs."""
    found: Tensors = {}
    for index, (keys, values) in enumerate(layers):
        name = f"present.{index}" + (f".{part}" if part else "")
        found |= {f"{name}.key": keys, f"{name}.value": values}
    return found


def cache_of(layers: Layers) -> Any:
    """Return a cache of transformers with these keys and values, all of them kept for good.

    Made without the config, which would have it drop what has left a sliding window: a tracer
    fixes where the window begins. The mask keeps it out of sight anyway.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.dtype, layer.device = keys.dtype, keys.device
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        cache.layers.append(layer)
    return cache


def layers_of(cache: Any) -> Layers:
    """Return a cache's keys and values.

    Raises:
        UnsupportedModelError: It holds none, or something else.
    """
    layers = [
        (getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers
    ]
    if not layers or any(keys is None or values is None for keys, values in layers):
        msg = "The model keeps no keys and values of the usual kind; there is no exporter for it."
        raise UnsupportedModelError(msg)
    return layers


def _axes(samples: Tensors) -> Axes:
    axes = {
        "input_ids": {0: BATCH, 1: SEQUENCE},
        "attention_mask": {0: BATCH, 1: TOTAL},
        "position_ids": {0: BATCH, 1: SEQUENCE},
    }
    return {name: axes.get(name, {0: BATCH, 2: PAST}) for name in samples}
