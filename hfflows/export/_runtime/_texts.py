"""Text to text over an exported encoder-decoder: translation, summaries, and the rest.

transformers 5 dropped these pipelines; what is here takes and returns what version 4 did.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hfflows.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TEXT_TASKS = {
    "summarization": "summary",
    "text2text-generation": "generated",
    "translation": "translation",
}
"""What the answer's keys begin with, by task."""

DEFAULTS = {"max_new_tokens": 256, "num_beams": 4}
"""What version 4's last pipelines took where neither the call nor the model says otherwise."""

_LANGUAGES = re.compile(r"translation_(?P<src_lang>[^_]+)_to_(?P<tgt_lang>[^_]+)")


class TextToText:
    """Generates a text from a text.

    Args:
        task: One of `TEXT_TASKS`, or `translation_en_to_de`.
        model: An export that generates, with encoder and decoder.
        tokenizer: Its tokenizer.
        **options: Of the call, as defaults.
    """

    def __init__(self, task: str, model: Any, tokenizer: Any, **options: Any) -> None:
        self.task = task
        self.model = model
        self.tokenizer = tokenizer
        self._kind = TEXT_TASKS[base_task(task)]
        languages = _LANGUAGES.fullmatch(task)
        recorded = (getattr(model.config, "task_specific_params", None) or {}).get(task, {})
        known = vars(model.generation_config)
        # What the model's authors chose for this task, such as T5's beams and lengths.
        chosen = {name: value for name, value in recorded.items() if name in known}
        self._prefix = recorded.get("prefix", getattr(model.config, "prefix", None)) or ""
        self._options = {**(languages.groupdict() if languages else {}), **chosen, **options}

    def __call__(self, texts: str | Sequence[str], **options: Any) -> list[dict[str, Any]] | Any:
        """Return `[{"translation_text": …}]` for one text, one such dict a text for several.

        Args:
            texts: One text, or several.
            **options: `batch_size` (1), `truncation` (off), `src_lang` and `tgt_lang` for models
                of several languages, `return_tensors` for token ids instead of the text,
                `clean_up_tokenization_spaces`; all others go to `generate()`. Of several
                sequences for one text (`num_return_sequences`) a list for each text is returned.

        Raises:
            SettingsError: `texts` is neither a text nor a list of texts, or several are to be
                padded by a tokenizer that has no token for that.
        """
        several = [texts] if isinstance(texts, str) else list(texts)
        if not all(isinstance(text, str) for text in several):
            msg = f"{self.task} takes a text or a list of texts."
            raise SettingsError(msg)
        options = self._options | options
        batch_size = options.pop("batch_size", 1)
        if batch_size > 1 and self.tokenizer.pad_token_id is None:
            msg = "The tokenizer has no padding token; leave out batch_size."
            raise SettingsError(msg)
        options = self._defaults(options) | options
        found: list[list[dict[str, Any]]] = []
        for begin in range(0, len(several), batch_size):
            found += self._generate(several[begin : begin + batch_size], dict(options))
        if isinstance(texts, str):
            return found[0]
        if all(len(answers) == 1 for answers in found):
            return [answers[0] for answers in found]
        return found

    def _defaults(self, options: dict[str, Any]) -> dict[str, Any]:
        said = {**self.model.generation_config.to_diff_dict(), **options}
        length = {"max_new_tokens"} if "max_length" in said else set()
        return {name: DEFAULTS[name] for name in DEFAULTS.keys() - said.keys() - length}

    def _generate(self, texts: list[str], options: dict[str, Any]) -> list[list[dict[str, Any]]]:
        wants_ids = options.pop("return_tensors", False)
        cleans_up = options.pop("clean_up_tokenization_spaces", False)
        inputs = self._encode(texts, options)
        ids = self.model.generate(**inputs, **options)
        answers = []
        for row in ids:
            if wants_ids:
                answers.append({f"{self._kind}_token_ids": row})
                continue
            text = self.tokenizer.decode(
                row, skip_special_tokens=True, clean_up_tokenization_spaces=cleans_up
            )
            answers.append({f"{self._kind}_text": text})
        each = len(answers) // len(texts)
        return [answers[begin : begin + each] for begin in range(0, len(answers), each)]

    def _encode(self, texts: list[str], options: dict[str, Any]) -> Mapping[str, Any]:
        """Return the tokens; takes its own options out of `options`."""
        languages = {name: options.pop(name, None) for name in ("src_lang", "tgt_lang")}
        given = {name: value for name, value in languages.items() if value is not None}
        settings = {
            "return_tensors": "pt",
            "padding": len(texts) > 1,
            "truncation": options.pop("truncation", False),
        }
        texts = [self._prefix + text for text in texts]
        if hasattr(self.tokenizer, "src_lang") and given:
            self.tokenizer.src_lang = given.get("src_lang", self.tokenizer.src_lang)
            if "tgt_lang" in given:
                options.setdefault("forced_bos_token_id", self._language_id(given["tgt_lang"]))
        inputs = self.tokenizer(texts, **settings)
        return {name: inputs[name] for name in inputs if name != "token_type_ids"}

    def _language_id(self, language: str) -> int:
        """Return the token that makes a model of several languages write in this one."""
        if hasattr(self.tokenizer, "get_lang_id"):
            return int(self.tokenizer.get_lang_id(language))
        found = self.tokenizer.convert_tokens_to_ids(language)
        if found in (None, self.tokenizer.unk_token_id):
            msg = f"The tokenizer has no token for tgt_lang={language!r}."
            raise SettingsError(msg, tgt_lang=language)
        return int(found)


def base_task(task: str) -> str:
    """Return the task without the languages that it may name."""
    return "translation" if _LANGUAGES.fullmatch(task) else task
