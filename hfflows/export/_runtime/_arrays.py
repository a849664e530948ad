"""Tokens to batches, logits to labels, token vectors to one vector a text: numpy alone.

Imported on use; numpy comes with the extra `onnx`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SMALLEST_COUNT, SMALLEST_NORM = 1e-9, 1e-12
"""What sentence-transformers and torch keep from dividing by zero with."""


def padded(encodings: Sequence[Any], pad_id: int, *, left: bool) -> dict[str, np.ndarray]:
    """Return the inputs of a batch, all rows as long as the longest.

    Shapes:
        each: int64[batch, sequence]
    """
    longest = max(len(encoding.ids) for encoding in encodings)
    shape = (len(encodings), longest)
    arrays = {
        "input_ids": np.full(shape, pad_id, dtype=np.int64),
        "attention_mask": np.zeros(shape, dtype=np.int64),
        "token_type_ids": np.zeros(shape, dtype=np.int64),
    }
    for row, encoding in enumerate(encodings):
        count = len(encoding.ids)
        place = slice(longest - count, longest) if left else slice(0, count)
        arrays["input_ids"][row, place] = encoding.ids
        arrays["attention_mask"][row, place] = 1  # nothing is padded yet
        arrays["token_type_ids"][row, place] = encoding.type_ids
    return arrays | {"position_ids": np.broadcast_to(np.arange(longest), shape)}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return chances that add up to one in each row."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: np.ndarray = exponents / exponents.sum(axis=-1, keepdims=True)
    return found


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the chance of each label by itself."""
    found: np.ndarray = 1.0 / (1.0 + np.exp(-logits))
    return found


def pooled(tokens: np.ndarray, mask: np.ndarray, modes: Sequence[str]) -> np.ndarray:
    """Return one vector a text, as sentence-transformers' Pooling does.

    Shapes:
        tokens: float[batch, sequence, width]
        mask: int[batch, sequence]
        returned: float32[batch, width x modes]
    """
    tokens, weights = tokens.astype(np.float32), mask.astype(np.float32)[..., None]
    return np.concatenate([POOLING[mode](tokens, weights) for mode in modes], axis=-1)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Return vectors of length one."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    found: np.ndarray = vectors / np.maximum(norms, SMALLEST_NORM)
    return found


def _mean(tokens: np.ndarray, weights: np.ndarray, *, power: float = 1.0) -> np.ndarray:
    count = np.maximum(weights.sum(axis=1), SMALLEST_COUNT) ** power
    found: np.ndarray = (tokens * weights).sum(axis=1) / count
    return found


def _mean_sqrt(tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _mean(tokens, weights, power=0.5)


def _weighted_mean(tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
    places = np.arange(1, tokens.shape[1] + 1, dtype=np.float32)[None, :, None]
    return _mean(tokens, weights * places)


def _max(tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.where(weights > 0, tokens, np.float32(-1e9)).max(axis=1)
    return found


def _first(tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
    found: np.ndarray = tokens[np.arange(len(tokens)), weights[..., 0].argmax(axis=1)]
    return found


def _last(tokens: np.ndarray, weights: np.ndarray) -> np.ndarray:
    behind = weights[:, ::-1, 0].argmax(axis=1)
    found: np.ndarray = tokens[np.arange(len(tokens)), tokens.shape[1] - 1 - behind]
    return found


POOLING: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""In the order in which sentence-transformers joins several."""
