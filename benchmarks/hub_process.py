"""LocalHub in a process of its own: takes orders from stdin, answers on stdout.

    < {"root": "…"}
    > {"environ": {"HF_ENDPOINT": "…", …}}                   it accepts connections
    < {"order": "publish", "repo_id": "org/model", "folder": "…"}
    > {"answer": "<commit>"}
    < {"order": "counts"}
    > {"answer": [12, 1073742000]}                            requests, bytes sent so far

It counts by itself, so nothing needs to look on while it serves.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from hfflows.testing import LocalHub


def main() -> None:
    """Serve until stdin ends."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # what libraries print must not look like an answer
        setting = json.loads(sys.stdin.readline())
        with LocalHub(Path(setting["root"])) as hub:
            print(json.dumps({"environ": hub.environ()}), file=answers)
            while line := sys.stdin.readline():
                print(json.dumps({"answer": _obey(hub, **json.loads(line))}), file=answers)


def _obey(hub: LocalHub, order: str, **arguments: str) -> Any:
    if order == "publish":
        return hub.publish(arguments["repo_id"], Path(arguments["folder"]))
    records = hub.requests
    return len(records), sum(record.bytes_sent for record in records)


if __name__ == "__main__":
    main()
