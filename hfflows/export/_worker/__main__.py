"""`python -m hfflows.export._worker SCRATCH`: read the request there, write the reply there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hfflows.export._process import serve
from hfflows.export._settings import ExportSettings
from hfflows.export._worker import export


def main() -> None:
    """Answer with the report of an export."""
    # Read when torch is imported. Its threads else spin while ONNX Runtime answers, and keep from
    # others what the export does not use.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    serve(_report, doing="Exporting")


def _report(request: dict[str, Any]) -> dict[str, Any]:
    settings = ExportSettings.from_json(request["settings"])
    return export(Path(request["source"]), Path(request["output"]), settings)


if __name__ == "__main__":
    main()
