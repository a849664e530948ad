"""Classification and embeddings without torch and transformers: three small packages are enough.

    tokenizer.json ─tokenizers→ token ids ─onnxruntime→ logits or token vectors ─numpy→ answers

In a fresh process the first answer is there before torch would have been imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfflows.errors import SettingsError, UnsupportedModelError
from hfflows.export._onnx._file import read_onnx_metadata
from hfflows.export._runtime._files import MODEL, locate
from hfflows.export._runtime._numpy_settings import TextSettings, read_settings
from hfflows.export._runtime._session import Graph, providers_for

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from hfflows.artifacts import RefLike
    from hfflows.export._runtime._files import OnnxFiles
    from hfflows.storage import Store

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
EMBEDDING, TOKENS, LOGITS = "sentence_embedding", "last_hidden_state", "logits"
BATCH_SIZE = 32

Text = str | tuple[str, str]
"""A text, or two that a model compares."""


def load_numpy_model(
    source: str | os.PathLike[str] | RefLike,
    *,
    device: str = "cpu",
    providers: Sequence[Any] | None = None,
    variant: str | None = None,
    pooling: str | None = None,
    store: Store | None = None,
) -> NumpyModel:
    """Return a text classifier or embedding model that needs no torch and no transformers.

    Args:
        source: As `load_onnx_model` takes. Where config and tokenizer do not lie beside the
            graph, they are found through the store, as `HubConfigLoader` does.
        device: `cpu`, `cuda`, or `cuda:1`.
        providers: ONNX Runtime's providers, instead of `device`.
        variant: `int8` or `fp16`, where the export has that.
        pooling: How token vectors become one of the text: `mean`, `cls`, `max`,
            `mean_sqrt_len_tokens`, `weightedmean` or `lasttoken`; `None` takes what is recorded
            in the file, or lies beside it as sentence-transformers writes it.
        store: Of a reference, of config and tokenizer.

    Raises:
        SettingsError: No such file, variant, device, provider or pooling, or the model takes
            other things than texts.
        ExportError: ONNX Runtime cannot open the graph, or there is no `tokenizer.json`.
        MissingDependencyError: The extra `onnx` is not installed.
        As `hfflows.load_artifact` and `HubConfigLoader.load_from_onnx`.
    """
    chosen = providers_for(device, providers)
    files = locate(source, variant, store)
    try:
        metadata = read_onnx_metadata(files.first)  # says what it is when it is no ONNX file
        settings = read_settings(files, metadata, pooling, store)
        model = NumpyModel(_text_graph(files, chosen), settings)
    except BaseException:
        files.clean_up()
        raise
    model.hfflows_files = files
    return model


def _text_graph(files: OnnxFiles, providers: Sequence[Any]) -> Graph:
    if MODEL not in files.graphs:
        msg = "An encoder with a decoder generates, for which there is load_onnx_model."
        raise SettingsError(msg)
    graph = Graph(files.first, providers)
    other = [name for name in graph.inputs if name not in TEXT_INPUTS]
    if other:
        msg = f"The graph takes {', '.join(other)}; without transformers only texts are taken."
        raise SettingsError(msg, inputs=other)
    return graph


class NumpyModel:
    """A graph with its tokenizer; several threads may use one at once."""

    hfflows_files: Any = None
    """Keeps what was fetched for it."""

    def __init__(self, graph: Graph, settings: TextSettings) -> None:
        self._graph = graph
        self._settings = settings
        self.session = graph.session
        self.input_names = list(graph.inputs)
        self.output_names = list(graph.outputs)

    def classify(
        self, texts: Text | Sequence[Text], top_k: int | None = 1, *, batch_size: int = BATCH_SIZE
    ) -> list[Any]:
        """Return `{"label": …, "score": …}` of each text, as transformers' pipeline does.

        Args:
            texts: A text or several, or pairs of texts; what is too long is cut.
            top_k: With more than 1, a list for each text, the best label first; `None` is all
                labels.
            batch_size: Texts that are run at a time.

        Raises:
            SettingsError: The model is no classifier of texts.
        """
        graph_output = self._graph.outputs.get(LOGITS)
        if graph_output is None or len(graph_output.shape) != 2:  # noqa: PLR2004 - batch, label
            msg = f"The graph returns {', '.join(self._graph.outputs)}: it classifies no texts."
            raise SettingsError(msg, outputs=self.output_names)
        scores = self._settings.scores
        rows = self._in_batches(texts, batch_size, lambda answers, _: scores(answers[LOGITS]))
        count = None if top_k is None else max(top_k, 1)
        ranked = [self._ranked(row, count) for row in rows]
        return [labels[0] for labels in ranked] if top_k == 1 else ranked

    def embed(
        self,
        texts: str | Sequence[str],
        normalize: bool | None = None,
        *,
        prompt: str | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> np.ndarray:
        """Return one vector for each text: float32[texts, width].

        Args:
            texts: A text or several; what is too long is cut.
            normalize: Give the vectors length one; `None` does what is recorded.
            prompt: What is put before each text; `None` is the model's own default.
            batch_size: Texts that are run at a time.

        Raises:
            SettingsError: The graph returns no token vectors, or nothing says how to pool them.
            UnsupportedModelError: The prompt would have to be left out of the pooling.
        """
        from hfflows.export._runtime import _arrays as arrays

        own = self._settings.prompt if prompt is None else prompt
        if own and not self._settings.pools_prompt:
            msg = (
                "This model's vectors leave out the prompt, which is not done here; pass prompt=''."
            )
            raise UnsupportedModelError(msg, prompt=own)
        several = [texts] if isinstance(texts, str) else list(texts)
        prepared = [own + text.strip() for text in several]
        vectors = self._in_batches(prepared, batch_size, self._pooling(normalize))
        wanted = self._settings.normalize if normalize is None else normalize
        found = vectors.astype("float32", copy=False)
        return arrays.normalized(found) if wanted and len(found) else found

    def _pooling(
        self, normalize: bool | None
    ) -> Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray]:
        """Return what makes one vector a text of the graph's answers and the mask."""
        from hfflows.export._runtime import _arrays as arrays

        modes = self._settings.pooling
        if EMBEDDING in self._graph.outputs and (normalize is not False or not modes):
            return lambda answers, _: answers[EMBEDDING]
        if TOKENS not in self._graph.outputs:
            msg = f"The graph returns {', '.join(self._graph.outputs)}, no {TOKENS} to pool."
            raise SettingsError(msg, outputs=self.output_names)
        if not modes:
            msg = (
                "Nothing says how this model's token vectors become one of the text; pass "
                "load_numpy_model(…, pooling='mean'), or what it was trained with."
            )
            raise SettingsError(msg)
        return lambda answers, mask: arrays.pooled(answers[TOKENS], mask, modes)

    def _in_batches(
        self,
        texts: Any,
        batch_size: int,
        answer: Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """Return what `answer` makes of each batch, in the order of the texts."""
        import numpy as np

        several = [texts] if isinstance(texts, str) else list(texts)
        if not several:
            return np.zeros((0, 0), dtype=np.float32)
        encodings = self._settings.encode(several)
        order = np.argsort([-len(encoding.ids) for encoding in encodings], kind="stable")
        parts = []
        for rows in _slices(order, batch_size):
            batch = self._settings.padded([encodings[row] for row in rows])
            parts.append(answer(self._graph.run(batch), batch["attention_mask"]))
        together = np.concatenate(parts)
        found = np.empty_like(together)
        found[order] = together
        return found

    def _ranked(self, scores: np.ndarray, count: int | None) -> list[dict[str, Any]]:
        best = (-scores).argsort(kind="stable")[:count]
        return [
            {"label": self._settings.label(int(index)), "score": float(scores[index])}
            for index in best
        ]


def _slices(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    if size < 1:
        msg = f"batch_size={size} must be at least 1."
        raise SettingsError(msg)
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]
