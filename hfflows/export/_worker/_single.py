"""Models that are one function of a batch: encoders with any head, images, sounds, CLIP."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from hfflows.export._worker._media import images, sounds
from hfflows.export._worker._plan import BATCH, Case, Plan, as_module, make_graph
from hfflows.export._worker._pooling import with_sentence_embedding
from hfflows.export._worker._texts import BATCHES, SIDES, TEXTS, Texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hfflows.export._worker._load import Loaded
    from hfflows.export._worker._plan import Axes, Tensors

    Batches = Callable[[], Iterator[Tensors]]

FILE = "model.onnx"
SEQUENCE = "sequence_length"
TEXT_BATCH, IMAGE_BATCH = "text_batch_size", "image_batch_size"
"""Axes of a model that compares every text with every picture: they must not share a name, or a
runtime takes one for the other."""
CHOICES = 3, 4


def plan_single(loaded: Loaded, pooling: dict[str, Any] | None) -> Plan:
    """Return the plan of a model that is one graph.

    Args:
        loaded: The model.
        pooling: How to make a sentence's vector in the graph; `None` leaves that to others.

    Raises:
        UnsupportedModelError: There is nothing to make its inputs with, or it refuses them.
    """
    model = loaded.model
    samples, others, axes, batches = _inputs(loaded)

    def function(inputs: Tensors) -> Tensors:
        import torch

        outputs = model(**inputs)
        tensors = {name: value for name, value in outputs.items() if torch.is_tensor(value)}
        return tensors if pooling is None else with_sentence_embedding(tensors, inputs, pooling)

    module = as_module(function, model)
    graph = make_graph(FILE, module, samples, others, axes)

    def cases() -> Iterator[Case]:
        for inputs in batches():
            mask = inputs.get("attention_mask")
            is_per_token = mask is not None and axes["attention_mask"][1] == SEQUENCE
            masks = {SEQUENCE: mask.bool()} if mask is not None and is_per_token else {}
            yield Case(FILE, inputs, module(**inputs), masks)

    return Plan([graph], cases)


def _inputs(loaded: Loaded) -> tuple[Tensors, Tensors, Axes, Batches]:
    """Return what is traced, the same in other sizes, the axes, and what is compared."""
    accepted = signature(loaded.model.forward).parameters
    if "pixel_values" in accepted and "input_ids" in accepted:
        return _text_and_images(loaded)
    if "pixel_values" in accepted:
        return _images_alone(loaded)
    if "input_values" in accepted or "input_features" in accepted:
        return _sounds_alone(loaded)
    if loaded.head.pipeline_tag == "multiple-choice":
        return _choices(loaded)
    texts = Texts(loaded)
    samples, others = texts.batch(TEXTS[:2], length=7), texts.batch(TEXTS[:3], length=9)

    def batches() -> Iterator[Tensors]:
        for side in SIDES:
            for batch in BATCHES:
                yield texts.batch(batch, side=side)

    return samples, others, {name: {0: BATCH, 1: SEQUENCE} for name in samples}, batches


def _choices(loaded: Loaded) -> tuple[Tensors, Tensors, Axes, Batches]:
    texts = Texts(loaded)

    def batch(rows: int, choices: int, length: int | None = None, side: str = "right") -> Tensors:
        pairs = [
            (TEXTS[row], TEXTS[-1 - choice]) for row in range(rows) for choice in range(choices)
        ]
        flat = texts.batch(pairs, length=length, side=side)
        return {name: value.view(rows, choices, -1) for name, value in flat.items()}

    samples, others = batch(2, CHOICES[0], 7), batch(5, CHOICES[1], 9)
    axes = {name: {0: BATCH, 1: "num_choices", 2: SEQUENCE} for name in samples}

    def batches() -> Iterator[Tensors]:
        for side in SIDES:
            for rows in (1, 2, 3):
                yield batch(rows, CHOICES[rows % 2], side=side)

    return samples, others, axes, batches


def _images_alone(loaded: Loaded) -> tuple[Tensors, Tensors, Axes, Batches]:
    def batch(count: int) -> Tensors:
        return {"pixel_values": images(loaded, count)}

    axes = {"pixel_values": {0: BATCH}}
    return batch(2), batch(3), axes, lambda: map(batch, (1, 2, 3))


def _sounds_alone(loaded: Loaded) -> tuple[Tensors, Tensors, Axes, Batches]:
    samples, others = sounds(loaded, (0.3, 0.2)), sounds(loaded, (0.25, 0.15, 0.25))
    length = SEQUENCE if "input_values" in samples else "num_frames"
    durations = (0.2,), (0.25, 0.4), (0.3, 0.2, 0.35)
    axes = {name: {0: BATCH, 1: length} for name in samples}
    return samples, others, axes, lambda: (sounds(loaded, each) for each in durations)


def _text_and_images(loaded: Loaded) -> tuple[Tensors, Tensors, Axes, Batches]:
    texts = Texts(loaded)

    def batch(rows: int, count: int, *, length: int | None = None, side: str = "right") -> Tensors:
        made = texts.batch(TEXTS[:rows], length=length, side=side)
        return {**made, "pixel_values": images(loaded, count)}

    samples, others = batch(3, 2, length=7), batch(4, 5, length=9)
    axes = {name: {0: TEXT_BATCH, 1: SEQUENCE} for name in samples}
    axes["pixel_values"] = {0: IMAGE_BATCH}

    def batches() -> Iterator[Tensors]:
        for side in SIDES:
            for rows, count in ((1, 1), (3, 1), (1, 2), (5, 3)):
                yield batch(rows, count, side=side)

    return samples, others, axes, batches
