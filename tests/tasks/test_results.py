"""References persist as Prefect results in the bucket and work in any other process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hfflows
from hfflows.tasks import save_result_storage

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_api")]

SCRIPT = Path(__file__).parent / "two_processes.py"


@pytest.fixture
def environ(prefect_server, local_s3, monkeypatch):
    variables = {
        **prefect_server.environ(),
        **local_s3.environ(),
        "HFFLOWS_STORE_URL": local_s3.url(os.urandom(4).hex()),
    }
    for name in ("HFFLOWS_STORE_URL", *local_s3.environ()):
        monkeypatch.setenv(name, variables[name])
    return {**os.environ, **variables}


def run(environ, *arguments):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return re.search(r"^(?:RUN|PATH) (\S+)$", done.stdout, re.MULTILINE)[1], done.stderr


@pytest.mark.parametrize("backend", ["s3-bucket", "remote-file-system"])
def test_a_second_process_loads_the_model_from_the_first_ones_result(
    environ, tmp_path, local_s3, backend
):
    slug = save_result_storage(
        f"results-{backend}", store_url=environ["HFFLOWS_STORE_URL"], backend=backend
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"w" * 1000)
    environ = environ | {"PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": slug}

    run_id, log = run(environ, "produce", tmp_path / "model")
    store = hfflows.open_store(environ["HFFLOWS_STORE_URL"])
    results = [info.key for info in store.list("prefect-results/")]
    assert len(results) == 2  # the task's and the flow's, beside the artifacts
    for key in results:
        text = store.get(key).decode()
        assert len(text) < 4000
        assert local_s3.secret_key not in text
        json.loads(text)
    assert local_s3.secret_key not in log

    path, _ = run(environ, "use", run_id)
    assert (Path(path) / "weights.bin").read_bytes() == b"w" * 1000
    # A directory of one machine is not handed to another one as a cached result.
    stored = [store.get(info.key).decode() for info in store.list("prefect-results/")]
    assert not any(path in text and "metadata" in text for text in stored)


def test_the_block_itself_holds_no_secret(environ, local_s3, prefect_server):
    slug = save_result_storage("no-secret", store_url="s3://bucket/prefix/")

    shown = prefect_server.cli("block", "inspect", slug)
    assert local_s3.secret_key not in shown
    assert "prefix/prefect-results" in shown.replace("\n", "")


@pytest.mark.parametrize("url", ["file:///tmp/x", "memory://x", "s3://"])
def test_results_go_to_s3_only(url):
    with pytest.raises(hfflows.SettingsError, match="s3://"):
        save_result_storage(store_url=url)
