import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from hfflows.errors import StorageUnavailableError
from hfflows.testing import LocalPrefect

pytestmark = pytest.mark.slow


def test_the_server_answers_and_its_command_speaks_to_it(prefect_server):
    with urllib.request.urlopen(f"{prefect_server.api_url}/health") as reply:
        assert reply.read() == b"true"
    prefect_server.cli("work-pool", "create", "some-pool", "--type", "process")
    assert "some-pool" in prefect_server.cli("work-pool", "ls")


def test_a_failing_command_shows_what_it_printed(prefect_server):
    with pytest.raises(StorageUnavailableError, match="no-such-pool"):
        prefect_server.cli("work-pool", "inspect", "no-such-pool")


def test_before_start_there_is_no_port():
    with pytest.raises(StorageUnavailableError, match="not running"):
        _ = LocalPrefect().api_url


def test_servers_end_with_a_killed_parent():
    code = (
        "import time; from hfflows.testing import LocalS3\n"
        "s3 = LocalS3(); s3.start(); print(s3._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    server = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()

    deadline = time.monotonic() + 10
    while _is_alive(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(server)


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 - a kernel file
        return stat.read().rpartition(")")[2].split()[0] != "Z"
