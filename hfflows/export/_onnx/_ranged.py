"""A file far away as a seekable stream that moves little: the pieces around its two ends.

The head of an ONNX file says how long the graph is, the metadata follow it: two requests. Who
reads on gets ever larger pieces, so that no file costs more than some requests.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from hfflows.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

PIECE_BYTES = (4 << 10, 12 << 10, 64 << 10, 256 << 10, 1 << 20)
"""Of the first request, the second, …; the last size is that of all others too."""
_PIECES_KEPT = 16


class RangedFile(io.RawIOBase):
    """A stream over ranged reads.

    Args:
        read: Returns exactly as many bytes (second argument) from an offset (first).
        size_bytes: Of the whole file.
        name: For messages.
    """

    def __init__(self, read: Callable[[int, int], Buffer], size_bytes: int, name: str) -> None:
        super().__init__()
        self.name = name
        self._read = read
        self._size_bytes = size_bytes
        self._position = 0
        self._asked = 0
        self._pieces: list[tuple[int, memoryview]] = []

    def readable(self) -> bool:  # docstring inherited
        return True

    def seekable(self) -> bool:  # docstring inherited
        return True

    def tell(self) -> int:  # docstring inherited
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # docstring inherited
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}
        if whence not in base or base[whence] + offset < 0:
            msg = f"Cannot seek to {offset} (whence {whence}) in {self.name}."
            raise SettingsError(msg)
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Fill the buffer: less than that is the end of the file."""
        target = memoryview(buffer).cast("B")
        done = 0
        while done < len(target) and self._position < self._size_bytes:
            start, piece = self._piece(self._position)
            data = piece[self._position - start :][: len(target) - done]
            target[done : done + len(data)] = data
            done += len(data)
            self._position += len(data)
        return done

    def _piece(self, offset: int) -> tuple[int, memoryview]:
        for start, piece in self._pieces:
            if start <= offset < start + len(piece):
                return start, piece
        length = PIECE_BYTES[min(self._asked, len(PIECE_BYTES) - 1)]
        if self._asked == 0 and self._size_bytes - offset <= sum(PIECE_BYTES[:2]):
            length = self._size_bytes
        length = min(length, self._size_bytes - offset)
        self._asked += 1
        found = offset, memoryview(self._read(offset, length)).cast("B")
        self._pieces = [found, *self._pieces[: _PIECES_KEPT - 1]]
        return found
