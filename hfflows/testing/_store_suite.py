"""What every store promises, as tests: subclass `StoreTests` to run your own store through it.

    class TestMyStore(StoreTests):
        @pytest.fixture
        def store(self, tmp_path):
            return MyStore(tmp_path)

Each test gets an empty store. Needs pytest, which the rest of `hfflows.testing` does not.
"""

# ruff: noqa: S101, PLR2004 - these are tests

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from hfflows import keys
from hfflows.errors import (
    IntegrityError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
)
from hfflows.storage import NoConditionalCreateWarning, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Buffer

_MIB = 1 << 20
_PAGE = 1000  # keys that object stores list at a time
_CLOCK_SKEW = timedelta(minutes=15)  # beyond it stores refuse signatures
_NAMES = ("model", "модель", "模型 v2", "a/b", "..", ".", "", "~x", "50%", "=2F", "é\u0301", "🤗")


class StoreTests:
    """The sentences of `hfflows.storage.Store`, each as a test."""

    @pytest.fixture
    def store(self) -> Store:
        """Return the store under test, empty."""
        raise NotImplementedError

    @pytest.fixture
    def raw(self, store: Store) -> Store:
        """Return another way to the same objects, best by another engine."""
        return store

    def test_it_is_a_store(self, store: Store) -> None:
        assert isinstance(store, Store)
        assert "://" in store.url

    def test_what_is_put_is_got(self, store: Store, raw: Store) -> None:
        store.put("a/b", b"hello")

        assert store.get("a/b") == b"hello"
        assert raw.get("a/b") == b"hello"

    def test_any_buffer_can_be_put(self, store: Store) -> None:
        buffers: list[Buffer] = [b"12", bytearray(b"12"), memoryview(b"0123")[1:3]]
        for number, data in enumerate(buffers):
            store.put(f"b/{number}", data)
            store.create(f"c/{number}", data)
            store.put_stream(f"s/{number}", [data, data])

            assert store.get(f"b/{number}") == store.get(f"c/{number}") == b"12"
            assert store.get(f"s/{number}") == b"1212"

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        store.put("a/empty", b"")
        store.put_stream("a/no-chunks", [])
        store.create("a/created", b"")

        for key in ("a/empty", "a/no-chunks", "a/created"):
            info = store.head(key)
            assert store.get(key) == b""
            assert info is not None
            assert info.size_bytes == 0
        assert len(list(store.list("a/"))) == 3

    def test_put_replaces(self, store: Store) -> None:
        store.put("k", b"one")
        store.put("k", b"number two")
        assert store.get("k") == b"number two"
        store.put_stream("k", [b"3"])
        assert store.get("k") == b"3"

    def test_head_and_listing_say_size_and_time(self, store: Store) -> None:
        store.put("a/b", b"hello")

        info = store.head("a/b")

        assert info is not None
        assert (info.key, info.size_bytes) == ("a/b", 5)
        assert abs(datetime.now(UTC) - info.modified_at) < _CLOCK_SKEW
        (listed,) = store.list("a/")
        assert (listed.key, listed.size_bytes) == ("a/b", 5)
        assert abs(listed.modified_at - info.modified_at) < timedelta(seconds=2)

    def test_an_absent_object_is_none_to_head_and_an_error_to_get(self, store: Store) -> None:
        store.put("folder/k", b"1")

        for key in ("nope", "folder", "folder/nope", "folder/k/below"):
            assert store.head(key) is None
            with pytest.raises(ObjectNotFoundError) as caught:
                store.get(key)
            assert caught.value.key == key
            assert key in str(caught.value)
            with pytest.raises(ObjectNotFoundError):
                store.get_range(key, 0, 1)

    def test_what_is_larger_than_expected_is_not_read(self, store: Store) -> None:
        store.put("k", b"0123456789")

        assert store.get("k", limit=10) == b"0123456789"
        with pytest.raises(IntegrityError) as caught:
            store.get("k", limit=9)
        assert caught.value.key == "k"

    def test_ranges_are_exact_or_an_error(self, store: Store) -> None:
        store.put("k", b"0123456789")

        assert bytes(store.get_range("k", 0, 10)) == b"0123456789"
        assert bytes(store.get_range("k", 3, 4)) == b"3456"
        assert bytes(store.get_range("k", 9, 1)) == b"9"
        assert bytes(store.get_range("k", 10, 0)) == b""
        for offset, length in ((5, 10), (9, 2), (10, 1), (50, 10)):
            with pytest.raises(IntegrityError):
                store.get_range("k", offset, length)

    def test_a_range_of_an_empty_object_is_an_error(self, store: Store) -> None:
        store.put("k", b"")

        with pytest.raises(IntegrityError):
            store.get_range("k", 0, 1)

    def test_a_streamed_range_is_exact_or_an_error(self, store: Store) -> None:
        data = bytes(range(256)) * 20_000
        store.put("k", data)

        for offset, length in ((0, len(data)), (1, 3), (70_000, 4_000_001), (len(data), 0)):
            pieces = [bytes(piece) for piece in store.stream_range("k", offset, length)]
            assert b"".join(pieces) == data[offset : offset + length]
        for offset in (len(data) - 5, len(data), len(data) + 50):
            with pytest.raises(IntegrityError):
                list(store.stream_range("k", offset, 10))
        with pytest.raises(ObjectNotFoundError):
            list(store.stream_range("nope", 0, 1))

    def test_streams_of_many_parts_arrive_whole(self, store: Store, raw: Store) -> None:
        piece = bytes(range(256)) * 4096

        store.put_stream("big", (piece for _ in range(40)))

        info = raw.head("big")
        assert info is not None
        assert info.size_bytes == 40 * len(piece)
        for part in (0, 15, 16, 17, 39):
            assert bytes(store.get_range("big", part * len(piece), 512)) == piece[:512]

    @pytest.mark.parametrize(
        ("sent", "error"),
        [
            (0, ValueError),
            (1, FileNotFoundError),  # what a store's client may raise itself
            (1, ObjectNotFoundError),
            (20 * _MIB, ValueError),
        ],
    )
    def test_a_stream_that_fails_leaves_nothing(
        self, store: Store, raw: Store, sent: int, error: type[Exception]
    ) -> None:
        def chunks() -> Iterator[bytes]:
            yield b"x" * sent
            raise error("source broke")

        with pytest.raises(error, match=r"^source broke$"):
            store.put_stream("broken", chunks())

        assert raw.head("broken") is None
        assert list(raw.list("")) == []

    def test_a_stream_that_fails_leaves_what_was_there(self, store: Store) -> None:
        def chunks() -> Iterator[bytes]:
            yield b"x" * (20 * _MIB)
            raise ValueError("source broke")

        store.put("k", b"before")
        with pytest.raises(ValueError, match="source broke"):
            store.put_stream("k", chunks())

        assert store.get("k") == b"before"

    def test_create_writes_only_what_is_not_there(self, store: Store) -> None:
        store.create("k", b"one")
        with pytest.raises(ObjectExistsError) as caught:
            store.create("k", b"two")

        assert caught.value.key == "k"
        assert store.get("k") == b"one"
        store.delete(["k"])
        store.create("k", b"three")
        assert store.get("k") == b"three"

    def test_of_several_creators_one_wins(self, store: Store, raw: Store) -> None:
        if not store.has_conditional_create:
            pytest.skip("the store cannot decide between writers")

        def create(number: int) -> int | None:
            try:
                store.create(f"locks/{number % 20:02d}", b"%d" % number)
            except ObjectExistsError:
                return None
            return number

        with ThreadPoolExecutor(8) as pool:
            winners = [number for number in pool.map(create, range(160)) if number is not None]

        assert sorted(number % 20 for number in winners) == list(range(20))
        for number in winners:
            assert raw.get(f"locks/{number % 20:02d}") == b"%d" % number

    def test_without_conditional_create_it_says_so(self, store: Store) -> None:
        if store.has_conditional_create:
            pytest.skip("the store decides between writers")

        with pytest.warns(NoConditionalCreateWarning, match="lease"):
            store.create("k", b"one")
        with pytest.raises(ObjectExistsError):
            store.create("k", b"two")

    def test_listing_is_in_order_and_by_whole_parts(self, store: Store) -> None:
        written = ("p/c", "p/a", "p/b/x", "p/b-/x", "p/b0", "pq/z", "p/a0", "p/B", "p/a.b/c")
        for key in written:
            store.put(key, b"")

        listed = [info.key for info in store.list("p/")]
        under_p = [key for key in written if key.startswith("p/")]
        assert listed in (sorted(under_p), sorted(under_p, key=_parts))
        assert sorted(info.key for info in store.list("")) == sorted(written)
        assert [info.key for info in store.list("p/b/")] == ["p/b/x"]
        assert [info.key for info in store.list("none/")] == []

    def test_listing_begins_after_a_key_that_need_not_exist(self, store: Store) -> None:
        written = ["p/a", "p/a0", "p/b/x", "p/b/y", "p/c"]  # the same in either order
        for key in written:
            store.put(key, b"")

        for after in (*written, "", "p", "p/", "p/A", "p/b/", "p/b/xx", "p/b/z", "p/b0", "q"):
            listed = [info.key for info in store.list("p/", after=after)]
            assert listed == [key for key in written if key > after]

    def test_listing_crosses_pages(self, store: Store, raw: Store) -> None:
        written = [f"many/{number:04d}" for number in range(_PAGE + 100)]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda key: raw.put(key, b""), written))

        assert [info.key for info in store.list("many/")] == written
        assert (
            next(iter(store.list("many/", after=written[_PAGE + 50]))).key == (written[_PAGE + 51])
        )
        assert next(iter(store.list("many/"))).key == written[0]

        store.delete(["many/absent", *written[:-1]])
        assert [info.key for info in raw.list("many/")] == written[-1:]

    def test_what_others_do_shows_at_once(self, store: Store, raw: Store) -> None:
        store.put("p/a", b"1")
        assert [info.key for info in store.list("p/")] == ["p/a"]
        assert store.head("p/b") is None

        raw.put("p/b", b"22")
        raw.put("p/a", b"111")

        assert store.get("p/a") == b"111"
        assert [(info.key, info.size_bytes) for info in store.list("p/")] == [
            ("p/a", 3),
            ("p/b", 2),
        ]
        raw.delete(["p/a"])
        assert store.head("p/a") is None
        assert [info.key for info in store.list("p/")] == ["p/b"]

    def test_deleting_ignores_what_is_absent(self, store: Store) -> None:
        for key in ("d/1", "d/2", "d/3", "d/e/4"):
            store.put(key, b"")

        store.delete(["d/0", "d/1", "d/9", "d/3"])
        store.delete(["d/0"])
        store.delete(["d/e"])
        store.delete([])

        assert [info.key for info in store.list("d/")] == ["d/2", "d/e/4"]

    def test_names_of_any_kind_are_keys(self, store: Store, raw: Store) -> None:
        written = {f"r/{keys.encode(name)}/{keys.encode(name)}.json": name for name in _NAMES}
        for key, name in written.items():
            store.put(key, name.encode())

        assert [info.key for info in raw.list("r/")] == sorted(written)
        for key, name in written.items():
            assert raw.get(key) == name.encode()
            assert keys.decode(key.split("/")[1]) == name
        store.delete(list(written))
        assert list(raw.list("r/")) == []

    def test_long_keys_are_keys(self, store: Store) -> None:
        key = "/".join(["k" * 240] * 4)  # S3 allows 1,024 bytes in all

        store.put(key, b"1")

        assert store.get(key) == b"1"

    def test_threads_share_a_store(self, store: Store) -> None:
        def work(number: int) -> None:
            key = f"t/{number:03d}"
            data = b"%d" % number * 1000
            store.put(key, data)
            assert store.get(key) == data
            assert bytes(store.get_range(key, 0, 2)) == data[:2]
            assert key in {info.key for info in store.list("t/")}
            if number % 2:
                store.delete([key])

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(64)))

        assert [info.key for info in store.list("t/")] == [f"t/{n:03d}" for n in range(0, 64, 2)]

    def test_a_stream_may_read_from_the_same_store(self, store: Store) -> None:
        store.put("a", b"x" * _MIB)

        with ThreadPoolExecutor(1) as pool:
            store.put_stream("b", (pool.submit(store.get, "a").result() for _ in range(3)))

        assert store.get("b") == b"x" * (3 * _MIB)

    def test_readers_see_all_of_an_object_or_nothing(self, store: Store, raw: Store) -> None:
        sizes = [_MIB, 2 * _MIB]

        def read(_: int) -> int:
            try:
                return len(raw.get("k"))
            except ObjectNotFoundError:
                return _MIB

        with ThreadPoolExecutor(4) as pool:
            reads = [pool.submit(read, number) for number in range(40)]
            for number in range(10):
                store.put("k", bytes(sizes[number % 2]))
            assert {found.result() for found in reads} <= set(sizes)

    def test_errors_are_ours_and_survive_pickling(self, store: Store) -> None:
        with pytest.raises(StorageError) as caught:
            store.get("nope")

        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - made right here
        assert (type(again), str(again), again.key) == (
            type(caught.value),
            str(caught.value),
            "nope",
        )


def _parts(key: str) -> list[str]:
    """Order keys as a store does that keeps directories."""
    return key.split("/")
