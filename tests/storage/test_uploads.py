"""Multipart uploads that somebody left behind."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import botocore.session
import pytest

from hfflows.errors import MissingDependencyError, SettingsError
from hfflows.storage import Upload, Uploads, open_store
from hfflows.storage._uploads import S3Uploads


@pytest.fixture(params=["obstore", "fsspec"])
def store(request, s3_url, local_s3):
    return open_store(s3_url, engine=request.param, **local_s3.options())


@pytest.fixture
def begin(local_s3, s3_url):
    """Begin an upload at a key of the bucket, send a part, and leave it."""
    client = botocore.session.Session().create_client(
        "s3",
        endpoint_url=local_s3.endpoint,
        aws_access_key_id=local_s3.access_key,
        aws_secret_access_key=local_s3.secret_key,
        region_name="us-east-1",
    )
    prefix = s3_url.removeprefix(f"s3://{local_s3.bucket}/")

    def begin(key, *, prefix=prefix):
        where = {"Bucket": local_s3.bucket, "Key": f"{prefix}/{key}"}
        upload_id = client.create_multipart_upload(**where)["UploadId"]
        client.upload_part(**where, UploadId=upload_id, PartNumber=1, Body=b"x" * 100)
        return upload_id

    return begin


def test_an_abandoned_upload_is_listed_and_aborted(store, begin):
    assert isinstance(store, Uploads)
    upload_id = begin("files/model.bin")

    (found,) = store.list_uploads()
    assert (found.key, found.upload_id) == ("files/model.bin", upload_id)
    assert abs(datetime.now(UTC) - found.started_at) < timedelta(minutes=1)

    store.abort_upload(found)
    assert list(store.list_uploads()) == []
    store.abort_upload(found)
    assert store.head("files/model.bin") is None


def test_uploads_outside_the_store_are_not_listed(store, begin, s3_url):
    prefix = s3_url.rpartition("/")[2]
    begin("k", prefix="somebody-else")
    begin("k", prefix=f"team/{prefix}-too")
    begin("k", prefix=f"team/{prefix[:-1]}")
    mine = begin("k")

    assert [upload.upload_id for upload in store.list_uploads()] == [mine]


def test_uploads_of_one_key_are_told_apart(store, begin):
    first, second = begin("k"), begin("k")
    assert {upload.upload_id for upload in store.list_uploads()} == {first, second}

    store.abort_upload(Upload("k", first, datetime.now(UTC)))

    assert [upload.upload_id for upload in store.list_uploads()] == [second]


def test_listing_crosses_pages(store, begin):
    begun = {begin(f"k/{number % 7}") for number in range(20)}
    pages = []
    whole = store._uploads()

    def call(name, **arguments):
        pages.append(whole._call(name, MaxUploads=3, **arguments))
        return pages[-1]

    paged = S3Uploads(call, store.url, whole._bucket, whole._root.rstrip("/"))
    found = [upload.upload_id for upload in paged.list()]

    assert len(found) == len(begun)
    assert set(found) == begun
    assert len(pages) == 7


def test_an_upload_without_an_id_is_refused(store):
    with pytest.raises(SettingsError, match="without an id"):
        store.abort_upload(Upload("k", "", datetime.now(UTC)))


def test_a_stream_that_fails_leaves_no_upload(store):
    def chunks():
        for _ in range(5):
            yield b"x" * (10 << 20)
        raise ValueError("source broke")

    with pytest.raises(ValueError, match="source broke"):
        store.put_stream("k", chunks())

    assert list(store.list_uploads()) == []


def test_other_stores_do_not_claim_to_have_uploads(tmp_path):
    assert not isinstance(open_store(tmp_path), Uploads)
    assert not isinstance(open_store("memory://uploads"), Uploads)
    assert not isinstance(open_store(tmp_path, engine="fsspec"), Uploads)


def test_without_botocore_the_extra_is_named(s3_url, local_s3, monkeypatch):
    store = open_store(s3_url, **local_s3.options())
    store.put("k", b"1")  # moving bytes does not need it
    monkeypatch.setitem(sys.modules, "botocore.session", None)

    with pytest.raises(MissingDependencyError, match=r"hfflows\[aws\]"):
        list(store.list_uploads())
    with pytest.raises(MissingDependencyError, match=r"hfflows\[aws\]"):
        open_store(s3_url, profile="lab")


def test_opening_a_store_on_obstore_imports_no_other_client():
    code = (
        "import sys; from hfflows.storage import open_store; open_store('s3://bucket/x'); "
        "print(*sorted({'botocore', 'boto3', 's3fs', 'fsspec', 'aiohttp'} & sys.modules.keys()))"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == ""
