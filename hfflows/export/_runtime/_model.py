"""An export of one graph that answers in one run, as transformers' pipelines call it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from hfflows.export._runtime._session import Graph

MODALITIES = {
    "input_ids": "text",
    "pixel_values": "image",
    "input_values": "audio",
    "input_features": "audio",
}


class OrtModel:
    """An ONNX graph with the attributes and the call that transformers' pipelines use.

    Several threads may call one model at once. Preprocessors are another matter: a tokenizer
    that threads share silently gives wrong results, so each needs its own.

    Args:
        graph: The opened graph.
        config: transformers config of the model.
    """

    base_model_prefix = ""

    def __init__(self, graph: Graph, config: Any) -> None:
        self._graph = graph
        self.session = graph.session
        self.config = config
        self.name_or_path = str(graph.path)
        self.input_names = list(graph.inputs)
        self.output_names = list(graph.outputs)
        self.main_input_name = self.input_names[0]
        # What a pipeline says of itself when it is printed.
        self.input_modalities = tuple(
            MODALITIES[name] for name in self.input_names if name in MODALITIES
        )

    @property
    def device(self) -> Any:
        """The torch device on which inputs are expected; copies to others are the runtime's."""
        import torch

        return torch.device("cpu")

    @property
    def dtype(self) -> Any:
        """The torch type of floating inputs."""
        import torch

        return torch.float32

    def can_generate(self) -> bool:
        """Return `False`: exports that generate are loaded as other classes."""
        return False

    def to(self, *_args: Any, **_options: Any) -> OrtModel:
        """Return self: the providers decide where the graph runs."""
        return self

    def eval(self) -> OrtModel:
        """Return self: an exported graph has no training mode."""
        return self

    def __call__(self, **inputs: Any) -> Any:
        """Return what `forward` does."""
        return self.forward(**inputs)

    def forward(self, **inputs: Any) -> Any:
        """Run the graph.

        Args:
            **inputs: Tensors by name, such as `input_ids: int64[batch, sequence]`. Those of
                mask, token types and positions that the graph needs may be left out, and what
                it does not take is passed over.

        Returns:
            A `ModelOutput` of float32 tensors: `logits`, `last_hidden_state`, …

        Raises:
            SettingsError: An input is missing, or of a shape or type that the graph refuses.
        """
        import torch
        from transformers.utils import ModelOutput

        arrays = {
            name: as_array(value)
            for name, value in inputs.items()
            if value is not None and name in self._graph.inputs
        }
        answers = self._graph.run(completed(arrays, self._graph))
        return ModelOutput({name: torch.from_numpy(value) for name, value in answers.items()})


def as_array(value: Any) -> Any:
    """Return a tensor, or what numpy can read, as an array on the host."""
    import torch

    return value.detach().cpu().numpy() if torch.is_tensor(value) else value


def completed(arrays: dict[str, Any], graph: Graph) -> dict[str, Any]:
    """Add what can be made up from the token ids: mask, token types and positions."""
    import numpy as np

    missing = [name for name in graph.inputs if name not in arrays]
    if not missing or "input_ids" not in arrays:
        return arrays
    ids = np.asarray(arrays["input_ids"])
    made_up: dict[str, Callable[[], Any]] = {
        "attention_mask": lambda: np.ones_like(ids),
        "token_type_ids": lambda: np.zeros_like(ids),
        "position_ids": lambda: np.broadcast_to(np.arange(ids.shape[-1]), ids.shape),
    }
    return arrays | {name: made_up[name]() for name in missing if name in made_up}
