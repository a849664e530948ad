import threading

import pytest

from hfflows.artifacts import TransferReport
from hfflows.artifacts._pipeline import (
    OBJECT_BYTES,
    Piece,
    Window,
    read_ahead,
    transfer_threads,
)

GIB = 1 << 30


@pytest.mark.parametrize("size_bytes", [GIB, 2 * GIB, 7 * GIB, 100 * GIB])
def test_what_is_under_way_is_at_most_a_tenth_of_what_is_moved(size_bytes):
    with transfer_threads(size_bytes) as (readers, senders):
        pieces = readers.count + 1 + senders.count  # one is in hand between them

        assert pieces * OBJECT_BYTES <= size_bytes / 10


@pytest.mark.parametrize("size_bytes", [0, OBJECT_BYTES, GIB // 4])
def test_little_is_moved_two_pieces_at_a_time_all_the_same(size_bytes):
    with transfer_threads(size_bytes) as (readers, senders):
        assert (readers.count, senders.count) == (2, 2)


class Zeros:
    """A file of zeros that counts what is read of it."""

    path, is_executable, announced = "zeros", False, None

    def __init__(self, size_bytes):
        self.size_bytes = size_bytes
        self.read_bytes = 0

    def read(self, offset, length):
        self.read_bytes += length
        return bytes(length)


def test_nothing_is_read_further_ahead_than_there_are_readers():
    source = Zeros(10)
    with transfer_threads(0) as (readers, _senders):
        pieces = read_ahead(readers, (Piece(source, n, 1) for n in range(10)), TransferReport())
        next(pieces)
        next(pieces)

    assert 2 <= source.read_bytes <= 2 + readers.count


def test_no_more_is_sent_at_once_than_there_are_senders():
    may_end, begun = threading.Event(), []

    def send(data):
        begun.append(data)
        assert may_end.wait(30)

    with transfer_threads(0) as (_readers, senders):
        window = Window(senders)
        sent = []
        feeding = threading.Thread(
            target=lambda: sent.extend(window.submit(send, data) for data in (b"1", b"2", b"3"))
        )
        feeding.start()
        feeding.join(0.3)
        assert feeding.is_alive()  # the third waits for the first
        assert b"3" not in begun
        may_end.set()
        feeding.join(30)
        for future in sent:
            future.result(30)

    assert sorted(begun) == [b"1", b"2", b"3"]
