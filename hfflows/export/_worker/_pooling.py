"""How a sentence-transformers directory makes one vector of a text's tokens.

modules.json            Transformer, Pooling, Dense, Normalize, in order
1_Pooling/config.json   which tokens count, and how
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hfflows.errors import ExportError, UnsupportedModelError
from hfflows.export._pooling_modes import stated_modes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hfflows.export._worker._plan import Tensors

MODULES = "modules.json"
EMBEDDING = "sentence_embedding"


def pooling_of(source: Path) -> dict[str, Any] | None:
    """Return how vectors are pooled, `None` for what is no sentence-transformers directory.

    Returns:
        `mode` (`mean`, `cls`, …; several are joined by `+`), `normalize`, `dimension`,
        `include_prompt`, and `further`, the directories of modules that are none of these, such
        as `2_Dense`: who pools outside the graph must run them too.

    Raises:
        ExportError: The files are there and say nothing that can be read.
    """
    if not (source / MODULES).is_file():
        return None
    facts, normalize, further = dict[str, Any](), False, list[str]()
    for module in _json(source / MODULES):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            facts = _json(source / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            further.append(str(module.get("path", "")))
    if not facts:
        return None
    return {
        "mode": _mode(facts),
        "normalize": normalize,
        "dimension": facts.get("word_embedding_dimension") or facts.get("embedding_dimension"),
        "include_prompt": facts.get("include_prompt", True),
        **({"further": further} if further else {}),
    }


def pooling_in_graph(pooling: dict[str, Any] | None, kind: str) -> dict[str, Any]:
    """Return the pooling if the graph of this kind of head can do it.

    Raises:
        UnsupportedModelError: There is none to put in, or it has parts that are not built here.
    """
    if pooling is None or kind != "single":
        msg = (
            "pooling='graph' needs a sentence-transformers directory, with modules.json and "
            "1_Pooling; leave it out."
        )
        raise UnsupportedModelError(msg)
    unknown = [mode for mode in pooling["mode"].split("+") if mode not in _poolers()]
    if pooling.get("further") or unknown:
        named = ", ".join([*pooling.get("further", []), *unknown])
        msg = f"pooling='graph' cannot take in {named}; leave it out and apply it to the output."
        raise UnsupportedModelError(msg)
    return pooling


def with_sentence_embedding(outputs: Tensors, inputs: Tensors, pooling: dict[str, Any]) -> Tensors:
    """Return a model's outputs with the vector of each text added.

    Shapes:
        `last_hidden_state: [batch, sequence, hidden]` → `sentence_embedding: [batch, vector]`.
    """
    import torch

    hidden = outputs["last_hidden_state"]
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    poolers = _poolers()
    vector = torch.cat([poolers[mode](hidden, mask) for mode in pooling["mode"].split("+")], -1)
    if pooling["normalize"]:
        vector = torch.nn.functional.normalize(vector, p=2.0, dim=-1)
    return {**outputs, EMBEDDING: vector}


def _poolers() -> dict[str, Callable[[Any, Any], Any]]:
    """Return functions of `hidden [batch, sequence, hidden]` and `mask [batch, sequence, 1]`."""
    import torch

    def counted(mask: Any) -> Any:
        return mask.sum(1).clamp(min=1e-9)

    def at(hidden: Any, place: Any) -> Any:
        return hidden.gather(1, place.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])).squeeze(1)

    def places(mask: Any) -> Any:
        return torch.arange(1, mask.shape[1] + 1, device=mask.device).view(1, -1, 1) * mask

    # The first and the last token that are none of the padding, on whichever side that is.
    return {
        "cls": lambda hidden, mask: at(hidden, places(mask.flip(1)).flip(1).argmax(1)),
        "max": lambda hidden, mask: hidden.masked_fill(mask == 0, -torch.inf).amax(1),
        "mean": lambda hidden, mask: (hidden * mask).sum(1) / counted(mask),
        "mean_sqrt_len_tokens": lambda hidden, mask: (hidden * mask).sum(1) / counted(mask).sqrt(),
        "weightedmean": lambda hidden, mask: (
            (hidden * places(mask)).sum(1) / places(mask).sum(1).clamp(min=1e-9)
        ),
        "lasttoken": lambda hidden, mask: at(hidden, places(mask).argmax(1)),
    }


def _mode(facts: dict[str, Any]) -> str:
    modes = stated_modes(facts)
    if not modes:
        msg = "1_Pooling/config.json switches no pooling mode on; add one, or delete modules.json."
        raise ExportError(msg)
    return "+".join(modes)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as JSON: {error}"
        raise ExportError(msg, path=str(path)) from error
