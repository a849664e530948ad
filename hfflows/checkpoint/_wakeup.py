"""Notice of a signal beside the handler that somebody else has for it.

Python's C handler writes the number of each signal that has a Python handler into one
descriptor, at once, whatever the main thread is doing; who reads it changes nothing for the
handler.
"""

from __future__ import annotations

import select
import signal
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Wakeup:
    """The interpreter's wakeup descriptor, listened to by a thread.

    Made by `Wakeup.installed` in the main thread.
    """

    def __init__(
        self,
        reader: socket.socket,
        writer: socket.socket,
        number: int,
        notice: Callable[[], None],
    ) -> None:
        self._reader, self._writer = reader, writer
        self._number, self._notice = number, notice

    @classmethod
    def installed(cls, number: int, notice: Callable[[], None]) -> Wakeup | None:
        """Return one that calls `notice` when signal `number` comes.

        `None` when an event loop has the descriptor: it counts on being the only one.
        """
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        if before != -1:
            signal.set_wakeup_fd(before)
            reader.close()
            writer.close()
            return None
        wakeup = cls(reader, writer, number, notice)
        threading.Thread(target=wakeup._listen, name="hfflows-preemption", daemon=True).start()
        return wakeup

    def drain(self) -> bool:
        """Read what has come; return whether more can come."""
        try:
            numbers = self._reader.recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            return False  # removed meanwhile
        if self._number in numbers:
            self._notice()
        return bool(numbers)

    def remove(self) -> None:
        """Give the descriptor back, in the main thread; the listening thread ends."""
        mine = self._writer.fileno()
        current = signal.set_wakeup_fd(-1)
        if current not in (-1, mine):
            signal.set_wakeup_fd(current)
        self._writer.close()

    def _listen(self) -> None:
        with self._reader:
            more = True
            while more:
                select.select([self._reader], [], [])
                more = self.drain()
