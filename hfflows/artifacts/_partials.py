"""What is known of large files that were not finished: so many pieces less to fetch again.

    partials/<2 hex>/<sha256 of the file>/<offset>-<length>-<sha256 of the piece>

An empty object for each piece that reached the store, written after it. Only files whose
origin announced a sha256 have them. A hint, no more: a piece is taken from the store only
when its bytes are what the hint says, and the whole file is still checked against what was
announced. Collections remove old ones.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts._pipeline import Piece
from hfflows.errors import IntegrityError, ObjectNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

    from hfflows.artifacts._sources import FileSource
    from hfflows.storage import Store

RESUMED_FROM_BYTES = 64 * 1024 * 1024
"""Smaller files are fetched again sooner than they are asked for."""


@dataclass(slots=True)
class Partials:
    """The pieces that earlier attempts at these files left in the store."""

    store: Store
    damaged: set[str] = field(default_factory=set)
    """Keys of objects whose bytes are not what they are named by."""
    _notes: set[str] = field(default_factory=set)
    _known: dict[tuple[str, int, int], str] = field(default_factory=dict)
    """(sha256 of the file, offset, length): sha256 of the piece."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def look_for(self, sources: Iterable[FileSource]) -> None:
        """Find what is there of large files: a request each."""
        for source in sources:
            if (digest := _resumable(source)) is not None:
                for info in self.store.list(keys.partials_prefix(digest)):
                    self._notes.add(info.key)
                    offset, length, piece_digest = keys.parse_partial(info.key)
                    self._known[digest, offset, length] = piece_digest

    def first(self, source: FileSource) -> Piece | None:
        """Return the first piece of a file, as an earlier attempt cut it."""
        digest = _resumable(source)
        lengths = [length for found, at, length in self._known if found == digest and at == 0]
        return Piece(source, 0, max(lengths)) if lengths else None

    def recall(self, piece: Piece) -> Buffer | None:
        """Return a piece's bytes from the store, if they are there and right."""
        digest = _resumable(piece.source)
        known = self._known.get((digest, piece.offset, piece.length)) if digest else None
        if known is None:
            return None
        key = keys.object_key(known)
        try:
            data = self.store.get_range(key, 0, piece.length)
        except (ObjectNotFoundError, IntegrityError):
            return None
        if hashlib.sha256(data).hexdigest() == known:
            return data
        with self._lock:
            self.damaged.add(key)
        return None

    def remember(self, piece: Piece, piece_digest: str) -> None:
        """Note that a piece has reached the store under its own digest."""
        digest = _resumable(piece.source)
        if digest is None or (digest, piece.offset, piece.length) in self._known:
            return
        note = keys.partial(digest, piece.offset, piece.length, piece_digest)
        self.store.put(note, b"")
        with self._lock:
            self._notes.add(note)

    def forget(self) -> None:
        """Remove the notes: the files are whole."""
        self.store.delete(sorted(self._notes))


def _resumable(source: FileSource) -> str | None:
    announced = source.announced
    if announced is None or announced.algorithm != "sha256":
        return None
    return announced.digest if source.size_bytes >= RESUMED_FROM_BYTES else None
