"""One contender in a process of its own: takes work from stdin, answers on stdout.

    < {"contender": "s5cmd", "bucket": "b1", "options": {}}
    > {"ready": true}                                        imported and set up, nothing asked
    < {"operation": "save", "calls": [{"source": "…"}]}
    > {"results": [null], "seconds": [1.9], "cpu_seconds": 1.2, "peak_bytes": 4e7, …}

Only the calls are timed. A contender that fails ends this process with its traceback, of
which the other side reports the end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from benchmarks.contenders import contender_class
from benchmarks.meter import Meter


def main() -> None:
    """Serve until stdin ends."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # what libraries print must not look like an answer
        setting = json.loads(sys.stdin.readline())
        contender = contender_class(setting["contender"])(setting["bucket"], **setting["options"])
        print(json.dumps({"ready": True}), file=answers)
        while line := sys.stdin.readline():
            print(json.dumps(perform(contender, **json.loads(line))), file=answers)


def perform(contender: object, operation: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the calls returned and what they cost."""
    function = getattr(contender, operation)
    results, seconds = [], []
    meter = Meter.start()
    for arguments in calls:
        began = time.perf_counter()
        results.append(function(**arguments))
        seconds.append(time.perf_counter() - began)
    return {**meter.stop(), "results": results, "seconds": seconds}


if __name__ == "__main__":
    main()
