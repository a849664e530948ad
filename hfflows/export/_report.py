"""What an export says of itself: files, graphs, versions, and how well it agrees with torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported and how well it agrees with torch."""

    directory: Path
    files: list[str]
    """Relative paths of all that lies in `directory`."""
    pipeline_tag: str
    architecture: str
    backend: str
    """Exporter and the versions it ran on."""
    fallback_reason: str
    """Why not the first exporter; empty when it was."""
    opset: int
    input_names: list[str]
    """Inputs of the first graph: the only one, or the encoder of an encoder-decoder."""
    output_names: list[str]
    """Outputs of the first graph."""
    graphs: dict[str, dict[str, list[str]]]
    """`{"model.onnx": {"inputs": […], "outputs": […]}}`, one entry a graph file."""
    dtype: str
    """Type of the weights: `float32` or `float16`."""
    pooling: dict[str, Any] | None
    """How token vectors become one of the text: `{"mode": "mean", "normalize": true, …}`; `None`
    unless the source says so, as sentence-transformers' directories do."""
    parity_max_difference: float
    """Largest absolute difference between ONNX Runtime's and torch's outputs."""
    parity_tolerance: float
    parity_inputs: list[list[int]]
    """Shapes on which they were compared."""
    versions: dict[str, str]
    """Of the packages that took part: `{"transformers": "5.23.0", …}`."""
    variants: list[dict[str, Any]]
    """The same model in other precisions: `variant`, `files`, `size_bytes`,
    `parity_max_difference`, `parity_tolerance`, `agreement`."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the plain document that a task hands on."""
        return asdict(self) | {"directory": str(self.directory)}
