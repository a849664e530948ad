"""Stands where the export's process does: small, and does what the request says.

Runs as `python -m tests.export.fake_worker SCRATCH`.
"""

import json
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path


def main():
    scratch = Path(sys.argv[1])
    request = json.loads((scratch / "request.json").read_text())
    print("says what it does:", request["do"], flush=True)
    report = globals()[request["do"]](request)
    (scratch / "reply.json").write_text(json.dumps({"report": report}))


def environ(_):
    return {"environ": sorted(os.environ), "modules": os.environ["HF_MODULES_CACHE"]}


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(_):
    raise RuntimeError("cannot go on")


def refuse(_):
    facts = {"difference": 2.5, "tolerance": 1.0}
    error = {"type": "ParityError", "message": "differs", "facts": facts}
    Path(sys.argv[1], "reply.json").write_text(json.dumps({"error": error}))
    sys.exit()


def hold(request):
    name_both(request, "import time; time.sleep(600)")
    held = b"x" * request["bytes"]
    signal.pause()
    return {"held": len(held)}


def hold_in_a_child(request):
    name_both(request, f"import time; held = b'x' * {request['bytes']}; time.sleep(600)")
    signal.pause()


def wait(request):
    name_both(request, "import time; time.sleep(600)")
    signal.pause()


def map_a_file(request):
    with Path(request["file"]).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        read = sum(mapped[at] for at in range(0, len(mapped), mmap.PAGESIZE))
    signal.sigtimedwait([signal.SIGUSR1], request["seconds"])  # be looked at
    return {"read": read}


def name_both(request, code):
    """Start a child and tell the test who is to be gone at the end."""
    child = subprocess.Popen([sys.executable, "-c", code])
    Path(request["pids"]).write_text(f"{os.getpid()} {child.pid}")


if __name__ == "__main__":
    main()
