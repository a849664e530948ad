"""Keys and values of a decoder, kept by the runtime from one step to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfflows.export._runtime._session import Graph

INPUT, OUTPUT = "past_key_values.", "present."
"""Beginnings of their names: what a step returns as `present.0.key` it takes as
`past_key_values.0.key` the next time."""


class OrtCache:
    """What a decoder has seen, in the form in which its graph takes it.

    transformers hands it back at the next step and asks it for its length; nothing of it is
    read in between. One cache belongs to one sequence of steps, and to the thread that runs it.

    Args:
        graph: The decoder.
        values: ONNX Runtime's values, or arrays, by the names of the graph's inputs.
        length: How many tokens they stand for.
    """

    is_compileable = False

    def __init__(self, graph: Graph, values: dict[str, Any], length: int) -> None:
        self._graph = graph
        self.values = values
        self._length = length

    def get_seq_length(self, _layer_idx: int = 0) -> int:
        """Return how many tokens the cache stands for."""
        return self._length

    def reorder_cache(self, beam_idx: Any) -> None:
        """Put the rows into the order of the beams that go on; beam search calls this."""
        order = beam_idx.cpu().numpy()
        if (order == range(len(order))).all():
            return
        # A beam goes on from one of the same text, whose encoder said the same to all of them.
        self.values = {
            name: value if ".encoder." in name else self._graph.rows(value, order)
            for name, value in self.values.items()
        }

    def followed_by(self, outputs: dict[str, Any], tokens: int) -> OrtCache:
        """Return the cache after a step that returned `outputs` for so many more tokens."""
        present = {
            INPUT + name.removeprefix(OUTPUT): value
            for name, value in outputs.items()
            if name.startswith(OUTPUT)
        }
        return OrtCache(self._graph, self.values | present, self._length + tokens)
