"""Run the main job on servers of its own and show what happened.

SeaweedFS is the S3 server, LocalHub the Hub, both and a Prefect server on loopback. The
retraining flow runs as a deployed flow run under a real worker; its process is killed by
SIGKILL after a checkpoint, the same run is scheduled again and goes on from there.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from hfflows.errors import HfflowsError
from hfflows.testing import LocalHub, LocalPrefect, LocalS3

ROOT = Path(__file__).parent.parent
SCRATCH = ROOT / ".demo"
POOL = "hfflows"
PUBLISH_TO = "local-user/newsgroups-onnx"
TRAIN_ROWS, TEST_ROWS = 50, 60  # of each of four newsgroups


def say(text: str = "", *, head: bool = False) -> None:
    """Print a line at once; a head begins a part."""
    print(f"\n== {text} " + "=" * max(0, 76 - len(text)) if head else text, flush=True)


def main() -> int:
    """Run the demo and return its exit status."""
    began = time.monotonic()
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir()
    keep = "--keep" in sys.argv
    with ExitStack() as stack:
        say("Starting an S3 server, a Hub and a Prefect server on loopback", head=True)
        s3 = stack.enter_context(LocalS3())
        hub = stack.enter_context(LocalHub())
        environ = {
            **s3.environ(),
            **hub.environ(),
            "HFFLOWS_STORE_URL": s3.url("team"),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            # Beside the servers: torch's threads wait by spinning, and crawl when pushed out.
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)),
        }
        prefect = stack.enter_context(LocalPrefect(root=SCRATCH / "prefect", environ=environ))
        os.environ.update(prefect.environ())
        say(f"store    {s3.url('team')} at {s3.endpoint} (SeaweedFS)")
        say(f"hub      {hub.endpoint} (LocalHub)")
        say(f"prefect  {prefect.ui_url} (while the demo runs)")

        from demo.job import Job  # reads the environment that was set just now

        job = Job(s3=s3, hub=hub, prefect=prefect, scratch=SCRATCH, say=say)
        job.prepare(train_rows=TRAIN_ROWS, test_rows=TEST_ROWS, publish_to=PUBLISH_TO)
        with prefect.worker(POOL, directory=ROOT):
            job.first_run()
            job.second_run()
        job.use_from_another_process()
        job.where_to_look()
        say(f"\nThe demo took {time.monotonic() - began:.0f} s.")
        if keep:
            say(f"Servers stay up until Ctrl-C: {prefect.ui_url}, {hub.endpoint}, {s3.endpoint}")
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
    say("All servers are stopped.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HfflowsError as error:
        print(f"\nThe demo failed: {error}\nLogs are in {SCRATCH}.", file=sys.stderr)
        sys.exit(1)
