"""The local S3 server: keys, buckets, counts, and that it never outlives its owner."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from hfflows.errors import MissingDependencyError, SettingsError
from hfflows.testing import LocalS3, _s3


def client(s3, **changes):
    options = {
        "aws_access_key_id": s3.access_key,
        "aws_secret_access_key": s3.secret_key,
        "region_name": "us-east-1",
    }
    config = Config(retries={"max_attempts": 1})
    return boto3.client("s3", endpoint_url=s3.endpoint, config=config, **options | changes)


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_objects_are_kept_under_real_keys(local_s3):
    s3 = client(local_s3)
    s3.put_object(Bucket=local_s3.bucket, Key="a/b", Body=b"hello")
    assert s3.get_object(Bucket=local_s3.bucket, Key="a/b")["Body"].read() == b"hello"
    wrong = client(local_s3, aws_secret_access_key="wrong")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        wrong.list_objects_v2(Bucket=local_s3.bucket)


def test_conditional_creates_have_one_winner(local_s3):
    s3 = client(local_s3)
    s3.put_object(Bucket=local_s3.bucket, Key="lock", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=local_s3.bucket, Key="lock", Body=b"2", IfNoneMatch="*")


def test_requests_and_bytes_are_counted_by_bucket(local_s3):
    bucket = local_s3.create_bucket("counted")
    local_s3.create_bucket("counted")
    s3 = client(local_s3)
    before = local_s3.requests()
    for n in range(5):
        s3.put_object(Bucket=bucket, Key=f"k{n}", Body=b"x" * 1000)
    s3.get_object(Bucket=bucket, Key="k0")["Body"].read()
    s3.list_objects_v2(Bucket=bucket)
    assert local_s3.requests(bucket) == {"PUT": 5, "GET": 1, "LIST": 1}
    received, sent = local_s3.traffic(bucket)
    assert 5000 <= received < 8000
    assert 1000 <= sent < 4000
    assert local_s3.requests() == before


def test_the_environment_and_the_url_lead_here(local_s3):
    environ = local_s3.environ()
    assert environ["AWS_ENDPOINT_URL"] == local_s3.endpoint == local_s3.options()["endpoint"]
    assert environ["AWS_REGION"] == environ["AWS_DEFAULT_REGION"] == "us-east-1"
    assert local_s3.url("team/x") == "s3://hfflows/team/x"
    assert local_s3.url() == "s3://hfflows/"


def test_two_servers_run_side_by_side_with_buckets_of_their_own(local_s3):
    with LocalS3("first", buckets=("second",)) as other:
        assert other.endpoint != local_s3.endpoint
        assert other.access_key != local_s3.access_key
        names = [bucket["Name"] for bucket in client(other).list_buckets()["Buckets"]]
        assert sorted(names) == ["first", "second"]


def test_a_given_root_keeps_its_objects_and_a_temporary_one_goes(tmp_path):
    with LocalS3(root=tmp_path) as server:
        client(server).put_object(Bucket="hfflows", Key="k", Body=b"kept")
    with LocalS3(root=tmp_path) as server:
        assert client(server).get_object(Bucket="hfflows", Key="k")["Body"].read() == b"kept"
    assert any(tmp_path.iterdir())


def test_a_server_that_is_not_running_says_so():
    with pytest.raises(SettingsError, match="not running"):
        _ = LocalS3().endpoint


@pytest.mark.parametrize("name", ["mf", "Upper", "a/b", "-x-", "x" * 64])
def test_what_is_no_bucket_name_is_refused(name):
    with pytest.raises(SettingsError, match="not a bucket name"):
        LocalS3(name)


def test_a_missing_binary_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(_s3.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"hfflows\[testing\]") as caught:
        LocalS3().start()
    assert caught.value.extra == "testing"


def test_the_server_dies_with_a_killed_owner():
    code = (
        "import time; from hfflows.testing import LocalS3\n"
        "s3 = LocalS3(); s3.start()\n"
        "print(s3._process.pid, s3._root, flush=True); time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        pid, root = owner.stdout.readline().split()
        assert is_alive(int(pid))
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    deadline = time.monotonic() + 5
    while (is_alive(int(pid)) or Path(root).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(pid))
    assert not Path(root).exists()
