"""hfflows: models to ONNX."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from hfflows.errors import HfflowsError
from hfflows.export import export_onnx


class HfflowsExport:
    """Exports as a user's process does: the work itself is in a process of its own."""

    def __init__(self, bucket: str) -> None:
        del bucket  # nothing is stored

    def write_models(self, names: list[str], directory: str) -> None:
        """Write the tiny models of these names."""
        # Imported by name: the tests are not typed, and nothing else here needs them.
        families = import_module("tests.export.models").FAMILIES
        for name in names:
            families[name](Path(directory) / name)

    def export(self, source: str, output: str) -> dict[str, float]:
        """Export a model and say how far its graphs are from torch, and by which exporter."""
        try:
            report = export_onnx(source, output)
        except HfflowsError as error:
            # The harness reports the last line, which would be one of the exporter's.
            raise SystemExit(str(error).partition("\n")[0]) from error
        return {
            "parity_difference": report.parity_max_difference,
            "older_exporter": float(report.backend.startswith("torchscript")),
        }
