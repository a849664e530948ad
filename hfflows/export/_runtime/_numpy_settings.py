"""What the files of a model say of its texts: tokens, labels, pooling. Nothing but JSON is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfflows.errors import ExportError, MissingDependencyError, SettingsError, UnsupportedModelError
from hfflows.export._pooling_modes import SWITCHES, stated_modes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from hfflows.export._runtime._files import OnnxFiles
    from hfflows.storage import Store

LONGEST = 512
"""Tokens of a text where neither tokenizer nor config say how many the model takes."""

_POSITIONS_BEGIN_LATER = ("roberta", "camembert", "mpnet", "longformer")
"""Families whose first position is the one behind that of padding."""

_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, slots=True)
class TextSettings:
    """How texts go in and answers come out."""

    tokenizer: Any
    """Its settings are not changed after loading, so threads may share it."""
    config: Mapping[str, Any]
    pad_id: int
    pads_left: bool
    lowers_case: bool
    prompt: str
    pooling: tuple[str, ...]
    """Empty where nothing says how."""
    normalize: bool
    pools_prompt: bool

    def encode(self, texts: Sequence[Any]) -> list[Any]:
        """Return the tokens of each text or pair, cut to what the model takes."""
        if self.lowers_case:
            texts = [text.lower() if isinstance(text, str) else text for text in texts]
        try:
            found: list[Any] = self.tokenizer.encode_batch(texts)
        except TypeError as error:
            msg = "Texts are strings, or pairs of strings as tuples."
            raise SettingsError(msg) from error
        return found

    def padded(self, encodings: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return the inputs of one batch."""
        from hfflows.export._runtime import _arrays as arrays

        return arrays.padded(encodings, self.pad_id, left=self.pads_left)

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Return scores as the pipeline does, by what the model was trained for."""
        from hfflows.export._runtime import _arrays as arrays

        logits = logits.astype("float32", copy=False)
        problem = self.config.get("problem_type")
        if problem == "regression":
            return logits
        if problem == "multi_label_classification" or logits.shape[-1] == 1:
            return arrays.sigmoid(logits)
        return arrays.softmax(logits)

    def label(self, index: int) -> str:
        """Return the name of a label."""
        names = self.config.get("id2label") or {}
        return str(names.get(str(index), f"LABEL_{index}"))


def read_settings(
    files: OnnxFiles, metadata: Mapping[str, str], pooling: str | None, store: Store | None
) -> TextSettings:
    """Return the settings of a model, from the files beside it or through the store.

    Raises:
        ExportError: There is no tokenizer that can be read without transformers.
        SettingsError: No such pooling.
        UnsupportedModelError: Its vectors go through more than pooling.
    """
    directory = files.description(store)
    tokenizer_config = _read(directory / "tokenizer_config.json")
    config = _read(directory / "config.json")
    sentences = _read(directory / "sentence_bert_config.json")
    prompts = _read(directory / "config_sentence_transformers.json")
    facts = _pooling_facts(directory, metadata, pooling)
    tokenizer = _tokenizer(directory, _longest(config, tokenizer_config, sentences))
    pad_token = tokenizer_config.get("pad_token") or ""
    if isinstance(pad_token, dict):
        pad_token = pad_token.get("content", "")
    pad_id = tokenizer.token_to_id(pad_token)
    if pad_id is None:
        pad_id = config.get("pad_token_id") or 0  # it is masked, so any other would do as well
    default = prompts.get("default_prompt_name")
    return TextSettings(
        tokenizer=tokenizer,
        config=config,
        pad_id=pad_id,
        pads_left=tokenizer_config.get("padding_side") == "left",
        lowers_case=bool(sentences.get("do_lower_case")),
        prompt=(prompts.get("prompts") or {}).get(default, ""),
        pooling=_modes(facts["mode"]),
        normalize=bool(facts.get("normalize")),
        pools_prompt=bool(facts.get("include_prompt", True)),
    )


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON document; an empty one where there is no file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path} is not readable JSON."
        raise ExportError(msg, path=str(path)) from error
    return found if isinstance(found, dict) else {"items": found}


def _tokenizer(directory: Path, longest: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        msg = "Reading texts needs tokenizers: pip install 'hfflows[onnx]'."
        raise MissingDependencyError(msg) from error
    path = directory / "tokenizer.json"
    if not path.is_file():
        msg = (
            f"{directory} has no tokenizer.json, which is all that can be read without "
            "transformers; use load_onnx_model, or save the model's fast tokenizer."
        )
        raise ExportError(msg, path=str(path))
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except ValueError as error:
        msg = f"{path} cannot be read by this version of tokenizers: {error}"
        raise ExportError(msg, path=str(path)) from error
    tokenizer.no_padding()  # what the file says is of the machine on which it was saved
    tokenizer.enable_truncation(max_length=longest)
    return tokenizer


def _longest(
    config: Mapping[str, Any], tokenizer_config: Mapping[str, Any], sentences: Mapping[str, Any]
) -> int:
    """Return how many tokens of a text the model takes."""
    stated = [sentences.get("max_seq_length"), tokenizer_config.get("model_max_length")]
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if positions and any(name in config.get("model_type", "") for name in _POSITIONS_BEGIN_LATER):
        positions -= (config.get("pad_token_id") or 0) + 1
    # transformers writes 10**30 where a tokenizer has no limit.
    limits = [int(limit) for limit in (*stated, positions) if limit]
    return min([limit for limit in limits if limit < 1 << 30], default=LONGEST)


def _pooling_facts(
    directory: Path, metadata: Mapping[str, str], given: str | None
) -> dict[str, Any]:
    """Return `mode`, `normalize` and the like: as asked, as recorded in the file, as files say.

    Raises:
        SettingsError: No such pooling.
        UnsupportedModelError: The vectors go through more than that.
    """
    modules = _read(directory / "modules.json").get("items", [])
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    stated = {"normalize": "Normalize" in kinds}
    if given is not None:
        if given not in SWITCHES:
            msg = f"pooling={given!r} is none of {', '.join(SWITCHES)}."
            raise SettingsError(msg, pooling=given)
        return stated | {"mode": given}
    recorded = _recorded(metadata)
    more = recorded.get("further") or [kind for kind in kinds if kind not in _MODULES]
    if more:
        msg = (
            f"The model's vectors go through {', '.join(more)}, which is not in the graph; use "
            "sentence-transformers, or pass pooling= to leave that out."
        )
        raise UnsupportedModelError(msg, modules=more)
    folder = str(modules[kinds.index("Pooling")].get("path")) if "Pooling" in kinds else "1_Pooling"
    found = recorded or _read(directory / folder / "config.json")
    return stated | found | {"mode": found.get("mode") or stated_modes(found)}


def _recorded(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        found = json.loads(metadata.get("hf_pooling") or "{}")
    except ValueError as error:
        msg = "The file's entry hf_pooling is not readable JSON; pass pooling=."
        raise ExportError(msg, entry="hf_pooling") from error
    return found if isinstance(found, dict) else {}


def _modes(stated: Any) -> tuple[str, ...]:
    modes = tuple(stated.split("+")) if isinstance(stated, str) else tuple(stated)
    unknown = [mode for mode in modes if mode not in SWITCHES]
    if unknown:
        msg = (
            f"No pooling here is called {', '.join(map(str, unknown))}; use sentence-transformers."
        )
        raise UnsupportedModelError(msg, modes=list(modes))
    return modes
