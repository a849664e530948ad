"""The contract every engine keeps; a user's own store can be run through it too."""

from concurrent.futures import ThreadPoolExecutor

import obstore.exceptions
import pytest

from hfflows.errors import (
    AccessDeniedError,
    IntegrityError,
    ObjectExistsError,
    ObjectNotFoundError,
    SettingsError,
    StorageUnavailableError,
)
from hfflows.storage import Store, default_store_url, open_store
from hfflows.storage._errors import MAPPING


def test_it_is_a_store(store):
    assert isinstance(store, Store)


def test_what_is_put_is_got(store):
    store.put("a/b", b"hello")

    assert store.get("a/b") == b"hello"
    assert store.head("a/b").size_bytes == 5


def test_an_empty_object_is_an_object(store):
    store.put("a/empty", b"")

    assert store.get("a/empty") == b""
    assert store.head("a/empty").size_bytes == 0


def test_put_replaces(store):
    store.put("k", b"one")
    store.put("k", b"two")

    assert store.get("k") == b"two"


def test_an_absent_object_is_none_to_head_and_an_error_to_get(store):
    assert store.head("nope") is None
    with pytest.raises(ObjectNotFoundError, match="nope"):
        store.get("nope")
    with pytest.raises(ObjectNotFoundError):
        store.get_range("nope", 0, 1)


def test_ranges_are_exact_or_an_error(store):
    store.put("k", b"0123456789")

    assert bytes(store.get_range("k", 3, 4)) == b"3456"
    assert bytes(store.get_range("k", 10, 0)) == b""
    for offset in (5, 10, 50):
        with pytest.raises(IntegrityError):
            store.get_range("k", offset, 10)


def test_streams_of_many_parts_arrive_whole(store):
    piece = bytes(range(256)) * 4096

    store.put_stream("big", (piece for _ in range(40)))

    assert store.head("big").size_bytes == 40 * len(piece)
    assert bytes(store.get_range("big", 39 * len(piece), 256)) == piece[:256]


def test_a_stream_that_fails_leaves_nothing(store):
    def pieces():
        yield b"x" * (20 << 20)
        raise ValueError("source broke")

    with pytest.raises(ValueError, match="source broke"):
        store.put_stream("broken", pieces())

    assert store.head("broken") is None
    assert list(store.list("")) == []


def test_of_several_creators_one_wins(store):
    def create(number):
        try:
            store.create("lock", b"%d" % number)
        except ObjectExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(8)) if number is not None]

    assert len(winners) == 1
    assert store.get("lock") == b"%d" % winners[0]


def test_listing_is_in_key_order_and_ends_at_the_prefix(store):
    for key in ("p/c", "p/a", "p/b/x", "pq/z", "p/a0"):
        store.put(key, b"")

    assert [info.key for info in store.list("p/")] == ["p/a", "p/a0", "p/b/x", "p/c"]
    assert [info.key for info in store.list("p/", after="p/a0")] == ["p/b/x", "p/c"]
    assert [info.key for info in store.list("none/")] == []


def test_listing_crosses_pages(store):
    keys = [f"many/{number:04d}" for number in range(1100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))

    assert [info.key for info in store.list("many/")] == keys
    assert next(iter(store.list("many/", after=keys[1050]))).key == keys[1051]


def test_deleting_ignores_what_is_absent(store):
    for key in ("d/1", "d/2", "d/3"):
        store.put(key, b"")

    store.delete(["d/0", "d/1", "d/9", "d/3"])
    store.delete([])

    assert [info.key for info in store.list("d/")] == ["d/2"]


def test_escaped_names_are_keys_like_any_other(store):
    store.put("r/=2E=2E/a=2Fb.json", b"1")

    assert store.get("r/=2E=2E/a=2Fb.json") == b"1"
    assert [info.key for info in store.list("r/")] == ["r/=2E=2E/a=2Fb.json"]


def test_every_error_of_obstore_has_its_own_translation():
    upstream = {
        value
        for value in vars(obstore.exceptions).values()
        if isinstance(value, type) and issubclass(value, Exception)
    }

    assert upstream <= MAPPING.keys()


def test_wrong_keys_and_a_missing_bucket_say_so_at_once(local_s3):
    wrong = open_store(local_s3.url("x"), **local_s3.options() | {"secret_access_key": "wrong"})
    with pytest.raises(AccessDeniedError, match=r"AWS_SECRET|secret") as caught:
        wrong.get("k")
    assert local_s3.secret_key not in str(caught.value)
    with pytest.raises(AccessDeniedError):
        list(wrong.list("k/"))
    with pytest.raises(ObjectNotFoundError, match="bucket"):
        open_store("s3://no-such-bucket/x", **local_s3.options()).get("k")


def test_a_dead_endpoint_fails_within_seconds_and_may_be_tried_again(local_s3):
    dead = open_store("s3://bucket/x", **local_s3.options() | {"endpoint": "http://127.0.0.1:9"})

    with pytest.raises(StorageUnavailableError, match="endpoint") as caught:
        dead.put("k", b"1")

    assert caught.value.transient


def test_the_standard_variables_are_read(local_s3, monkeypatch):
    for name, value in local_s3.environ().items():
        monkeypatch.setenv(name, value)
    store = open_store(local_s3.url("env"))

    store.put("k", b"1")

    assert store.get("k") == b"1"


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("s3://key:secret@bucket/x", {}, "credentials"),
        ("s3://bucket/x?endpoint=y", {}, "credentials"),
        ("ftp://host/x", {}, "no known kind"),
        ("s3:///x", {}, "names no bucket"),
        ("s3://bucket", {"no_such_option": 1}, "no such store option"),
        ("memory://m", {"region": "x"}, "takes no options"),
        ("some/dir", {"region": "x"}, "takes no store options"),
    ],
)
def test_a_wrong_url_or_option_is_refused_before_any_request(url, options, words):
    with pytest.raises(SettingsError, match=words) as caught:
        open_store(url, **options)
    assert "secret" not in str(caught.value)


def test_the_default_store_follows_the_variable_then_the_data_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_store_url() == (tmp_path / "hfflows" / "store").as_uri()
    monkeypatch.setenv("HFFLOWS_STORE_URL", "memory://from-the-variable")
    assert open_store().url == "memory://from-the-variable"


def test_one_memory_store_per_name():
    open_store("memory://shared").put("k", b"1")

    assert open_store("memory://shared").get("k") == b"1"
    assert open_store("memory://other-name").head("k") is None
