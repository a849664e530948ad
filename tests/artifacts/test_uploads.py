"""What a killed upload leaves behind is found and taken away."""

import os
import subprocess
import sys
import time
from datetime import timedelta

import pytest

import hfflows
from hfflows.artifacts import abandoned_uploads, abort_uploads, save_artifact
from hfflows.storage import open_store
from hfflows.testing import LocalS3

NOW = timedelta(0)


@pytest.fixture
def bucket():
    """Return a server of its own: SeaweedFS lists uploads by bucket, and a kill leaves some."""
    with LocalS3() as s3:
        yield s3


@pytest.mark.slow
def test_an_upload_cut_off_by_a_kill_is_found_and_aborted(bucket, tmp_path):
    with (tmp_path / "large.bin").open("wb") as file:
        for _ in range(12):
            file.write(os.urandom(32 << 20))
    url = bucket.url("killed")
    store = open_store(url, **bucket.options())
    saver = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import hfflows; hfflows.save_artifact({str(tmp_path)!r}, name='m')",
        ],
        env={**os.environ, **bucket.environ(), "HFFLOWS_STORE_URL": url},
    )
    while not (found := abandoned_uploads(older_than=NOW, store=store)):
        assert saver.poll() is None
        time.sleep(0.01)
    saver.kill()
    saver.wait()

    assert found[0].key.endswith("/large.bin")
    assert abandoned_uploads(older_than=timedelta(hours=1), store=store) == []
    assert [upload.key for upload in abort_uploads(older_than=NOW, store=store)] == [found[0].key]
    assert abandoned_uploads(older_than=NOW, store=store) == []
    assert hfflows.list_artifacts(store=store) == []


def test_stores_without_uploads_have_none(memory_store, tmp_path):
    save_artifact(tmp_path, name="m", store=memory_store)

    assert abort_uploads(older_than=NOW, store=memory_store) == []
