"""Opening stores by URL, and what their errors say; `test_contract` has what they all promise."""

import ftplib
import inspect
import warnings

import aiohttp
import botocore.exceptions
import obstore.exceptions
import pytest
import s3fs.errors

from hfflows.errors import (
    AccessDeniedError,
    HfflowsError,
    MissingDependencyError,
    ObjectExistsError,
    ObjectNotFoundError,
    SettingsError,
    StorageError,
    StorageUnavailableError,
)
from hfflows.storage import NoConditionalCreateWarning, default_store_url, open_store
from hfflows.storage._errors import FOREIGN, MAPPING, mapped_errors


@pytest.fixture(params=["obstore", "fsspec"])
def engine(request):
    return request.param


def test_every_error_of_obstore_has_its_own_translation():
    upstream = set(_exceptions(obstore.exceptions))

    assert upstream <= MAPPING.keys()


NEVER_RAISED_BY_A_CALL = {
    "ImminentRemovalWarning",
    "MissingServiceIdError",  # a broken service model
    "UndefinedModelAttributeError",
    "UnsupportedTLSVersionWarning",
    "WSMessageTypeError",  # web sockets
}


@pytest.mark.parametrize(
    ("module", "roots"),
    [
        (botocore.exceptions, FOREIGN["botocore.exceptions"]),
        (aiohttp.client_exceptions, FOREIGN["aiohttp"]),
        (ftplib, FOREIGN["ftplib"]),
    ],
)
def test_every_error_of_the_clients_behind_fsspec_is_translated(module, roots):
    known = {getattr(module, name) for name in roots} | MAPPING.keys()
    strangers = [
        cls
        for cls in _exceptions(module)
        if cls.__module__ == module.__name__ and not known.intersection(cls.__mro__)
    ]

    assert {cls.__name__ for cls in strangers} <= NEVER_RAISED_BY_A_CALL


@pytest.mark.parametrize("code", s3fs.errors.ERROR_CODE_TO_EXCEPTION)
def test_every_code_that_s3fs_knows_becomes_an_error_of_ours(code):
    raised = botocore.exceptions.ClientError({"Error": {"Code": code, "Message": "m"}}, "Put")

    with pytest.raises(HfflowsError) as caught, mapped_errors("s3://b", "k"):
        raise s3fs.errors.translate_boto_error(raised)

    assert code in str(caught.value)


@pytest.mark.parametrize(
    ("code", "ours"),
    [
        ("PreconditionFailed", ObjectExistsError),
        ("SlowDown", StorageUnavailableError),
        ("InternalError", StorageUnavailableError),
        ("RequestTimeout", StorageUnavailableError),
        ("ExpiredToken", AccessDeniedError),
        ("NoSuchBucket", ObjectNotFoundError),
        ("KeyTooLongError", SettingsError),
        ("NotImplemented", StorageError),
    ],
)
def test_what_a_code_of_s3_means_is_known(code, ours):
    raised = botocore.exceptions.ClientError({"Error": {"Code": code, "Message": "m"}}, "Put")

    with pytest.raises(ours) as caught, mapped_errors("s3://b", "k"):
        raise s3fs.errors.translate_boto_error(raised)

    assert type(caught.value) is ours


def _exceptions(module):
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Exception)
    ]


CALLS = {
    "get": lambda store: store.get("k"),
    "get_range": lambda store: store.get_range("k", 0, 1),
    "head": lambda store: store.head("k"),
    "put": lambda store: store.put("k", b""),
    "put_stream": lambda store: store.put_stream("k", [b""]),
    "create": lambda store: store.create("k", b""),
    "list": lambda store: list(store.list("k/")),
    "delete": lambda store: store.delete(["k"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_wrong_keys_say_so_at_once(engine, call, local_s3):
    wrong = open_store(
        local_s3.url("x"), engine=engine, **local_s3.options() | {"secret_access_key": "wrong"}
    )

    with pytest.raises(AccessDeniedError, match="AWS_SECRET_ACCESS_KEY") as caught:
        CALLS[call](wrong)

    assert local_s3.secret_key not in str(caught.value)
    assert not caught.value.transient


@pytest.mark.parametrize("call", ["get", "list"])
def test_a_missing_bucket_says_so(engine, call, local_s3):
    store = open_store("s3://no-such-bucket/x", engine=engine, **local_s3.options())

    with pytest.raises(ObjectNotFoundError, match="There is no such bucket"):
        CALLS[call](store)


def test_a_dead_endpoint_fails_within_seconds_and_may_be_tried_again(engine, local_s3):
    options = local_s3.options() | {"endpoint": "http://127.0.0.1:9"}
    dead = open_store("s3://bucket/x", engine=engine, **options)

    with pytest.raises(StorageUnavailableError, match="endpoint") as caught:
        dead.put("k", b"1")

    assert caught.value.transient


def test_a_store_without_conditional_create_looks_first_and_warns_once(engine, s3_url, local_s3):
    store = open_store(s3_url, engine=engine, conditional_put="disabled", **local_s3.options())
    assert not store.has_conditional_create

    with pytest.warns(NoConditionalCreateWarning, match="lease") as warned:
        store.create("k", b"one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.create("other", b"one")
    with pytest.raises(ObjectExistsError, match="k"):
        store.create("k", b"two")

    assert s3_url in str(warned[0].message)
    assert warned[0].filename == __file__
    assert store.get("k") == b"one"


def test_the_standard_variables_are_read(engine, local_s3, monkeypatch):
    for name, value in local_s3.environ().items():
        monkeypatch.setenv(name, value)
    store = open_store(local_s3.url("env"), engine=engine)

    store.put("k", b"1")

    assert store.get("k") == b"1"


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("s3://key:hunter2@bucket/x", {}, "credentials"),
        ("s3://bucket/x?endpoint=y", {}, "credentials"),
        ("nope://host/x", {}, "no known kind"),
        ("file://host/x", {}, "names a host"),
        ("local://host/x", {}, "names a host"),
        ("s3://bucket/x#y", {}, "fragment"),
        ("ftp://host/x", {"engine": "obstore"}, "no kind that obstore knows"),
        ("s3://bucket/x", {"engine": "boto"}, "none of obstore, fsspec"),
        ("s3:///x", {}, "names no bucket"),
        ("gcs:///x", {}, "names no bucket"),
        ("simplecache::s3://bucket/x", {}, "chains file systems"),
        ("s3://bucket", {"no_such_option": 1}, "no such store option.*request_checksum"),
        ("s3://b", {"engine": "fsspec", "no_such_option": 1}, "no such.*request_checksum"),
        ("s3://bucket", {"secret_access_key": "hunter2"}, "together"),
        ("s3://bucket", {"request_checksum": "never"}, "when_required, when_supported"),
        ("s3://bucket", {"unsigned_payload": "perhaps"}, "true or false"),
        ("memory://m", {"region": "x"}, "takes no options"),
        ("some/dir", {"region": "x"}, "takes no options"),
        ("memory://m", {"engine": "fsspec", "region": "x"}, "takes no options"),
    ],
)
def test_a_wrong_url_or_option_is_refused_before_any_request(url, options, words):
    with pytest.raises(SettingsError, match=words) as caught:
        open_store(url, **options)
    assert "hunter2" not in str(caught.value)


def test_the_default_store_follows_the_variable_then_the_data_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_store_url() == (tmp_path / "hfflows" / "store").as_uri()
    monkeypatch.setenv("HFFLOWS_STORE_URL", "memory://from-the-variable")
    assert open_store().url == "memory://from-the-variable"


def test_one_memory_store_per_name():
    open_store("memory://shared").put("k", b"1")

    assert open_store("memory://shared").get("k") == b"1"
    assert open_store("memory://other-name").head("k") is None
    assert open_store("memory:///no/host").head("k") is None


@pytest.mark.parametrize("url", ["sftp://host/x", "gcs://bucket/x"])
def test_a_scheme_whose_package_is_missing_names_the_package(url):
    with pytest.raises(MissingDependencyError, match=r"paramiko|gcsfs"):
        open_store(url)
