"""`python -m hfflows.export._worker SCRATCH`: read the request there, write the reply there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from hfflows.errors import HfflowsError, MissingDependencyError
from hfflows.export._settings import ExportSettings
from hfflows.export._worker import export


def main() -> None:
    """Answer with a report, or with an error as plain values."""
    # Read when torch is imported. Its threads else spin while ONNX Runtime answers, and keep from
    # others what the export does not use.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    scratch = Path(sys.argv[1])
    request = json.loads((scratch / "request.json").read_text(encoding="utf-8"))
    try:
        settings = ExportSettings.from_json(request["settings"])
        report = export(Path(request["source"]), Path(request["output"]), settings)
        answer: dict[str, Any] = {"report": report}
    except HfflowsError as error:
        kind = type(error).__name__
        answer = {"error": {"type": kind, "message": str(error), "facts": error.facts}}
    except ImportError as error:
        msg = f"Exporting needs {error.name}: pip install 'hfflows[export]'."
        answer = {"error": {"type": MissingDependencyError.__name__, "message": msg, "facts": {}}}
    (scratch / "reply.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
