"""Real texts through the model's own tokenizer: what is traced and compared."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from hfflows.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hfflows.export._worker._load import Loaded
    from hfflows.export._worker._plan import Tensors

TEXTS = (
    "The night train to Lisbon leaves at ten.",
    "Rain.",
    "When the store came back after the outage, every checkpoint was there, and training went on.",
    "Wo liegt der Fehler? Überall dort, wo niemand nachsieht.",
    "3.14159 < 22/7 — but only just!",
)
BATCHES = (TEXTS[:1], TEXTS[1:4], TEXTS, (TEXTS[0], TEXTS[4]))
SIDES = ("right", "left")
LONGEST = 128
"""Tokens of a text, at most: enough to see, and short enough for a large model."""
_FURTHER_POSITIONS = 2  # RoBERTa's positions begin at 2


class Texts:
    """Makes batches of token ids, as the model takes them.

    Args:
        loaded: The model and its tokenizer.
        names: Inputs wanted; `None` means all that the model takes.
    """

    def __init__(self, loaded: Loaded, names: Sequence[str] | None = None) -> None:
        tokenizer = loaded.tokenizer()
        if tokenizer is None:
            msg = f"{loaded.source} holds no tokenizer; it needs one to make texts to compare on."
            raise UnsupportedModelError(msg, path=str(loaded.source))
        _give_padding_token(tokenizer, loaded)
        self._tokenizer = tokenizer
        self._config = loaded.model.config
        self._names = signature(loaded.model.forward).parameters if names is None else names

    def batch(
        self, texts: Sequence[Any], *, side: str = "right", length: int | None = None
    ) -> Tensors:
        """Return texts as a batch, padded to the longest or to an exact length.

        Returns:
            `input_ids: int64[batch, sequence]` and what else the tokenizer makes that is wanted.
        """
        longest = self._longest()
        encoded = self._tokenizer(
            list(texts),
            padding="max_length" if length else True,
            truncation=True,
            max_length=min(length, longest) if length else longest,
            padding_side=side,
            return_tensors="pt",
        )
        made = {name: encoded[name] for name in self._names if name in encoded}
        if "bbox" in self._names and "bbox" not in made:
            made["bbox"] = _boxes(made["attention_mask"])
        return made

    def ids(self, text: str) -> list[int]:
        """Return a text's token ids alone."""
        found: list[int] = self._tokenizer(text)["input_ids"]
        return found

    def _longest(self) -> int:
        described = getattr(self._config, "get_text_config", lambda: self._config)()
        longest = min(
            getattr(described, "max_position_embeddings", None) or 512,
            self._tokenizer.model_max_length or 512,
        )
        spare = _FURTHER_POSITIONS if longest > 2 * _FURTHER_POSITIONS else 0
        return min(longest - spare, LONGEST)


def _give_padding_token(tokenizer: Any, loaded: Loaded) -> None:
    """Let the tokenizer pad, in memory only: models that generate often have no token for it."""
    if tokenizer.pad_token is not None:
        return
    for name in ("eos_token", "unk_token", "bos_token"):
        if getattr(tokenizer, name, None) is not None:
            tokenizer.pad_token = getattr(tokenizer, name)
            return
    msg = f"The tokenizer in {loaded.source} has no token to pad with; it cannot make a batch."
    raise UnsupportedModelError(msg, path=str(loaded.source))


def _boxes(mask: Any) -> Any:
    """Return where on a page each token stands, word after word on lines of eight."""
    import torch

    place = torch.arange(mask.shape[1])
    left, top = (place % 8) * 110 + 10, (place // 8) * 25 % 900
    boxes = torch.stack([left, top, left + 100, top + 20], dim=-1)
    return boxes.expand(mask.shape[0], -1, -1) * mask.unsqueeze(-1)
