"""Question answering over an exported model: windows, spans, n-best.

transformers 5 dropped this pipeline. What is here scores as version 4 did: in every window of
the context, start and end logits of its tokens go through a softmax each, a span scores their
product, and spans with the same text add up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfflows.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

MASKED = -10_000.0
"""Logit of a token that cannot be part of an answer."""

LONGEST_WINDOW, LONGEST_OVERLAP = 384, 128
MORE_SPANS, FACTOR = 10, 2
"""Spans looked at beyond those asked for: some become one when they are widened to words."""


class QuestionAnswering:
    """Answers questions with a piece of a context, however long that is.

    Args:
        model: An export for question answering.
        tokenizer: Its fast tokenizer; slow ones do not know where in the text a token was.
        **options: Of the call, as defaults.
    """

    task = "question-answering"

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            msg = (
                f"Question answering needs a fast tokenizer, with a tokenizer.json; this one is "
                f"a {type(tokenizer).__name__}."
            )
            raise SettingsError(msg)
        self.model = model
        self.tokenizer = tokenizer
        self._options = options

    def __call__(
        self, inputs: Any = None, *, question: Any = None, context: Any = None, **options: Any
    ) -> Any:
        """Return the answer, or the `top_k` best of them; lists of that for several questions.

        Args:
            inputs: `{"question": …, "context": …}`, or a list of such; instead of the next two.
            question: One question, or several.
            context: The text that holds the answer, or one for each question.
            **options: As `answer` takes.
        """
        pairs = _pairs(inputs, question, context)
        options = self._options | options
        answers = [self.answer(*pair, **options) for pair in pairs]
        is_one = isinstance(inputs, dict) or (inputs is None and isinstance(question, str))
        return answers[0] if is_one else answers

    def answer(
        self,
        question: str,
        context: str,
        *,
        top_k: int = 1,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        doc_stride: int | None = None,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Return `{"score", "start", "end", "answer"}`, or a list with the best first.

        Args:
            question: What is asked.
            context: The text that holds the answer.
            top_k: How many answers.
            max_answer_len: Longest answer in tokens.
            max_seq_len: Tokens of a window, question included; `None` is what the model takes,
                384 at most.
            doc_stride: Tokens that windows share; `None` is half a window, 128 at most.
            handle_impossible_answer: Let "no answer", an empty one, compete.
            align_to_words: Widen answers to whole words.

        Raises:
            SettingsError: An empty text, or options that do not go together.
        """
        _check(question, context, top_k, max_answer_len)
        windows = self._windows(question, context, max_seq_len, doc_stride)
        count = top_k * FACTOR + MORE_SPANS if align_to_words else top_k
        found: dict[str, dict[str, Any]] = {}
        none_scores: list[float] = []
        for index in range(len(windows["input_ids"])):
            start, end, allowed = self._probabilities(windows, index)
            none_scores.append(float(start[0] * end[0]))
            start[0] = end[0] = 0.0  # the first token stands for "no answer"
            for first, last, score in best_spans(start, end, allowed, count, max_answer_len):
                span = self._place(windows[index], first, last, align_to_words=align_to_words)
                text = context[slice(*span)]
                known = found.setdefault(
                    text.lower(), {"score": 0.0, "start": span[0], "end": span[1], "answer": text}
                )
                known["score"] += score
        answers = list(found.values())
        if handle_impossible_answer:
            answers.append({"score": min(none_scores), "start": 0, "end": 0, "answer": ""})
        answers = sorted(answers, key=lambda answer: -answer["score"])[:top_k]
        return answers[0] if len(answers) == 1 else answers

    @property
    def _context_place(self) -> int:
        """Where the context stands: models that pad on the left put the question last."""
        return 1 if self.tokenizer.padding_side == "right" else 0

    def _windows(
        self, question: str, context: str, max_seq_len: int | None, doc_stride: int | None
    ) -> Any:
        positions = getattr(self.model.config, "max_position_embeddings", None)
        limits = (self.tokenizer.model_max_length, positions or LONGEST_WINDOW, LONGEST_WINDOW)
        longest = max_seq_len or min(limits)
        shared = min(longest // 2, LONGEST_OVERLAP) if doc_stride is None else doc_stride
        texts = (question, context) if self._context_place else (context, question)
        room = longest - self._tokens_of(question)
        if not 0 <= shared < room:
            msg = (
                f"Windows of max_seq_len={longest} tokens have room for {max(room, 0)} of the "
                f"context beside the question; doc_stride={shared} must be less. Pass a longer "
                "max_seq_len, or a shorter doc_stride."
            )
            raise SettingsError(msg)
        return self.tokenizer(
            *texts,
            truncation="only_second" if self._context_place else "only_first",
            max_length=longest,
            stride=shared,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )

    def _tokens_of(self, question: str) -> int:
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        return len(self.tokenizer(question, add_special_tokens=False)["input_ids"]) + int(special)

    def _probabilities(self, windows: Any, index: int) -> tuple[Any, Any, Any]:
        """Return the chances of start and end for each token, and which may be in an answer."""
        import numpy as np
        import torch

        names = [name for name in self.tokenizer.model_input_names if name in windows]
        outputs = self.model(**{name: torch.tensor([windows[name][index]]) for name in names})
        place = self._context_place
        allowed = np.array([owner == place for owner in windows.sequence_ids(index)])
        # The classifier token may hold "no answer", and then takes part in the softmax.
        counted = allowed | (
            np.array(windows["input_ids"][index]) == self.tokenizer.cls_token_id
            if self.tokenizer.cls_token_id is not None
            else False
        )
        start, end = (
            _softmax(np.where(counted, outputs[name][0].float().numpy(), MASKED))
            for name in ("start_logits", "end_logits")
        )
        return start, end, allowed

    def _place(
        self, window: Any, first: int, last: int, *, align_to_words: bool
    ) -> tuple[int, int]:
        """Return where in the context the characters of a span begin and end."""
        words = (window.token_to_word(first), window.token_to_word(last))
        if align_to_words and None not in words:
            spans = [window.word_to_chars(word, self._context_place) for word in words]
            if None not in spans:
                return int(spans[0][0]), int(spans[1][1])
        return int(window.offsets[first][0]), int(window.offsets[last][1])


def best_spans(
    start: np.ndarray, end: np.ndarray, allowed: np.ndarray, count: int, longest: int
) -> Iterator[tuple[int, int, float]]:
    """Yield first token, last token and score of the best spans, the best one first."""
    import numpy as np

    scores = np.tril(np.triu(np.outer(start, end)), longest - 1)
    flat = scores.ravel()
    best = np.argpartition(-flat, count)[:count] if count < len(flat) else np.arange(len(flat))
    for place in best[np.argsort(-flat[best], kind="stable")]:
        first, last = divmod(int(place), len(start))
        if allowed[first] and allowed[last] and first <= last < first + longest:
            yield first, last, float(flat[place])


def _softmax(logits: np.ndarray) -> np.ndarray:
    import numpy as np

    exponents = np.exp(logits - logits.max())
    found: np.ndarray = exponents / exponents.sum()
    return found


def _pairs(inputs: Any, question: Any, context: Any) -> list[tuple[str, str]]:
    if inputs is not None:
        items: Sequence[Mapping[str, str]] = [inputs] if isinstance(inputs, dict) else inputs
        try:
            return [(item["question"], item["context"]) for item in items]
        except (KeyError, TypeError) as error:
            msg = 'Pass {"question": …, "context": …}, or a list of such.'
            raise SettingsError(msg) from error
    questions = [question] if isinstance(question, str) else list(question or ())
    contexts = [context] * len(questions) if isinstance(context, str) else list(context or ())
    if not questions or len(questions) != len(contexts):
        msg = (
            f"{len(questions)} questions and {len(contexts)} contexts: pass one context, or one "
            "for each question."
        )
        raise SettingsError(msg)
    return list(zip(questions, contexts, strict=True))


def _check(question: Any, context: Any, top_k: int, max_answer_len: int) -> None:
    for name, text in (("question", question), ("context", context)):
        if not isinstance(text, str) or not text.strip():
            msg = f"The {name} is empty; there is nothing to ask."
            raise SettingsError(msg)
    if top_k < 1 or max_answer_len < 1:
        msg = f"top_k={top_k} and max_answer_len={max_answer_len} must be at least 1."
        raise SettingsError(msg)
