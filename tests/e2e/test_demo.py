"""`make demo` itself: deployed, run by a real worker, killed, resumed, published, used."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOWHERE = "http://127.0.0.1:9"  # nothing listens: whatever wants to leave the machine fails


@pytest.mark.slow
@pytest.mark.timeout(570)
def test_the_demo_shows_the_main_job_and_leaves_nothing_running():
    wheels = ROOT / ".cache" / "wheels" / "complete"
    assert wheels.exists(), "run `make env` first: the demo's model and texts are not there"
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE)
    no_proxy = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
    done = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=ROOT,
        env={**os.environ, **proxies, **no_proxy},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = done.stdout
    run_1, run_2 = said.split("== Run 2")

    assert "SIGKILL to process" in run_1
    assert "process starts       2" in run_1
    assert "resumed after epoch 2/3" in run_1
    epochs = re.findall(r"\| epoch (\d): attempt (\d+)-", run_1)
    assert epochs == [("1", "001"), ("2", "001"), ("3", "002")]
    assert int(re.search(r"Hub requests +(\d+) for the base model", run_1)[1]) > 0
    assert "Hub requests         0 for the base model" in run_2
    assert ": hit, 0 bytes moved" in run_2
    for run in (run_1, run_2):
        assert float(re.search(r"accuracy +([\d.]+) on 240 held-out texts", run)[1]) > 0.8
        assert float(re.search(r"difference from torch ([\d.e-]+)", run)[1]) < 1e-3
        assert "same label on 240 of 240" in run
        assert re.search(r"model card +http://127.0.0.1:\d+/\S+/README.md", run)
    assert re.search(r"hf_hub_revision = [0-9a-f]{40}", run_1)
    assert re.search(r"rec\.sport\.hockey +the goalie", run_2)
    assert "All servers are stopped." in run_2
    assert done.stderr == ""
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(ROOT / ".demo") not in left
