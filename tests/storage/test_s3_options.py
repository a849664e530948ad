"""The options of a store on S3: one spelling, two engines, seen at the server."""

import base64
import hashlib

import pytest

from hfflows.errors import AccessDeniedError, SettingsError
from hfflows.storage import open_store
from hfflows.storage._s3_options import S3Options

KEYS = {"access_key_id": "AKEXAMPLE", "secret_access_key": "secret", "region": "eu-west-3"}
DATA = b"some bytes"


@pytest.fixture(params=["obstore", "fsspec"])
def engine(request):
    return request.param


@pytest.fixture
def put(engine, recorder):
    """Put an object at the recorder and return (path, headers) of the request."""

    def put(**options):
        options = {"endpoint": recorder.endpoint, **KEYS, **options}
        open_store("s3://bucket/team", engine=engine, **options).put("k", DATA)
        ((method, path, headers),) = recorder.seen
        assert method == "PUT"
        return path, headers

    return put


def test_by_default_a_put_carries_a_signature_and_no_checksum(put):
    path, headers = put()

    assert path == "/bucket/team/k"
    assert "Credential=AKEXAMPLE/" in headers["authorization"]
    assert "/eu-west-3/s3/" in headers["authorization"]
    assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"  # the recorder is on loopback
    assert _checksums(headers) == {}
    assert "x-amz-security-token" not in headers


@pytest.mark.parametrize("by", ["option", "variable"])
def test_when_supported_adds_a_checksum(put, engine, by, monkeypatch):
    if by == "variable":
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_SUPPORTED")
        _, headers = put()
    else:
        _, headers = put(request_checksum="when_supported")

    if engine == "obstore":
        digest = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
        assert _checksums(headers) == {"x-amz-checksum-sha256": digest}
    else:
        assert "x-amz-checksum-crc32" in _checksums(headers)


def test_the_option_outranks_the_variable(put, monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")

    _, headers = put(request_checksum="when_required")

    assert _checksums(headers) == {}


@pytest.mark.parametrize(
    ("is_unsigned", "stated"),
    [(True, "UNSIGNED-PAYLOAD"), (False, hashlib.sha256(DATA).hexdigest())],
)
def test_a_payload_is_hashed_when_it_is_signed(put, is_unsigned, stated):
    _, headers = put(unsigned_payload=is_unsigned)

    assert headers["x-amz-content-sha256"] == stated
    assert "Signature=" in headers["authorization"]


def test_create_is_a_condition_in_the_request(engine, recorder):
    store = open_store("s3://bucket", engine=engine, endpoint=recorder.endpoint, **KEYS)
    store.create("k", DATA)

    ((_, path, headers),) = recorder.seen
    assert path == "/bucket/k"
    assert headers["if-none-match"] == "*"


def test_anonymous_requests_are_not_signed(engine, recorder, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FROMTHEENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    store = open_store("s3://bucket", engine=engine, endpoint=recorder.endpoint, anonymous=True)
    store.put("k", DATA)

    ((_, _, headers),) = recorder.seen
    assert "authorization" not in headers


@pytest.mark.parametrize("host", ["store.test", "bucket.store.test"])
def test_virtual_hosted_style_puts_the_bucket_into_the_host(put, host, recorder, monkeypatch):
    monkeypatch.setenv("http_proxy", recorder.endpoint)  # it stands in for the name server

    url, headers = put(endpoint=f"http://{host}", virtual_hosted_style_request=True)

    assert url == "http://bucket.store.test/team/k"
    assert headers["host"] == "bucket.store.test"


def test_passed_keys_are_not_mixed_with_the_environment(put, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of other keys")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")

    _, headers = put()

    assert "x-amz-security-token" not in headers


def test_a_session_token_is_sent(put):
    _, headers = put(session_token="temporary")

    assert headers["x-amz-security-token"] == "temporary"


def test_a_deletion_that_the_store_refuses_is_an_error(engine, recorder):
    store = open_store("s3://bucket/team", engine=engine, endpoint=recorder.endpoint, **KEYS)

    with pytest.raises(AccessDeniedError, match="Access Denied"):
        store.delete(["k", "other"])


@pytest.mark.parametrize("spelling", ["endpoint_url", "aws_endpoint", "AWS_ENDPOINT_URL"])
def test_options_may_be_spelled_as_elsewhere(engine, spelling, recorder):
    store = open_store("s3://bucket", engine=engine, **{spelling: recorder.endpoint}, **KEYS)
    store.put("k", DATA)

    assert len(recorder.seen) == 1


@pytest.fixture
def profiles(tmp_path, monkeypatch, local_s3):
    """AWS configuration files with a profile that knows `local_s3`."""
    config = tmp_path / "config"
    config.write_text(
        f"[profile lab]\nregion = eu-west-3\nendpoint_url = {local_s3.endpoint}\n"
        f"[profile empty]\nendpoint_url = {local_s3.endpoint}\n"
    )
    credentials = tmp_path / "credentials"
    credentials.write_text(
        f"[lab]\naws_access_key_id = {local_s3.access_key}\n"
        f"aws_secret_access_key = {local_s3.secret_key}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.usefixtures("profiles")
@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_profile_brings_keys_region_and_endpoint(engine, by, s3_url, monkeypatch):
    if by == "variable":
        monkeypatch.setenv("AWS_PROFILE", "lab")
        store = open_store(s3_url, engine=engine)
    else:  # a named profile outranks keys in the environment, as everywhere with AWS
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        store = open_store(s3_url, engine=engine, profile="lab")

    store.put("k", DATA)

    assert store.get("k") == DATA


@pytest.mark.usefixtures("profiles")
def test_keys_in_the_environment_outrank_its_profile(engine, s3_url, local_s3, monkeypatch):
    for name, value in local_s3.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_PROFILE", "empty")
    store = open_store(s3_url, engine=engine)

    store.put("k", DATA)

    assert store.get("k") == DATA


@pytest.mark.usefixtures("profiles")
def test_a_profile_that_is_wrong_says_so(engine, s3_url):
    with pytest.raises(SettingsError, match="nope"):
        open_store(s3_url, engine=engine, profile="nope").get("k")
    with pytest.raises(AccessDeniedError):
        open_store(s3_url, engine=engine, profile="empty").get("k")


def test_a_deletion_without_the_bulk_call_deletes(engine, s3_url, local_s3):
    store = open_store(s3_url, engine=engine, disable_bulk_delete=True, **local_s3.options())
    for key in ("a", "b", "c"):
        store.put(key, DATA)

    store.delete(["a", "c", "absent"])

    assert [info.key for info in store.list("")] == ["b"]


def test_when_supported_checksums_are_accepted_and_verified(engine, s3_url, local_s3):
    store = open_store(
        s3_url, engine=engine, request_checksum="when_supported", **local_s3.options()
    )

    store.put("k", DATA)
    store.create("c", DATA)
    store.put_stream("s", [bytes(9 << 20)] * 4)
    store.delete(["c"])

    assert store.get("k") == DATA
    assert store.head("s").size_bytes == 36 << 20
    assert [info.key for info in store.list("")] == ["k", "s"]


def _checksums(headers):
    return {
        name: value
        for name, value in headers.items()
        if name == "content-md5" or name.startswith(("x-amz-checksum", "x-amz-sdk-checksum"))
    }


@pytest.mark.parametrize(
    ("options", "signs"),
    [
        ({}, False),  # AWS, over https
        ({"endpoint": "https://minio.example:9000"}, False),
        ({"endpoint": "http://minio.example:9000"}, True),
        ({"endpoint": "http://127.0.0.1:9000"}, False),
        ({"endpoint": "http://[::1]:9000"}, False),
        ({"endpoint": "http://minio.example", "unsigned_payload": True}, False),
        ({"endpoint": "https://minio.example", "unsigned_payload": "false"}, True),
    ],
)
def test_uploads_are_signed_whole_where_nothing_else_guards_them(options, signs, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_UNSIGNED_PAYLOAD"):
        monkeypatch.delenv(name, raising=False)

    assert S3Options.read(options, "bucket").signs_payload is signs
