"""The bytes of the local Hub: files on disk under the sha256 of what they hold.

    blobs/ab/abcdef…      immutable, complete
    incoming/<random>     being written

A blob is hashed while it is written and renamed into place when it is complete.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_CHUNK_BYTES = 1 << 20


class BlobStore:
    """Content-addressed files under `root`, which is made when missing."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._incoming = root / "incoming"
        for folder in (self._blobs, self._incoming):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Return where the blob is, or would be."""
        return self._blobs / sha256[:2] / sha256

    def read(self, sha256: str) -> bytes:
        """Return a small blob's bytes."""
        return self.path(sha256).read_bytes()

    def add(self, pieces: Iterable[bytes]) -> tuple[str, int]:
        """Store the pieces, one after the other, and return sha256 and size."""
        temporary = self.temporary()
        digest = hashlib.sha256()
        size = 0
        try:
            with temporary.open("wb") as file:
                for piece in pieces:
                    digest.update(piece)
                    size += file.write(piece)
            self.adopt(temporary, digest.hexdigest())
        finally:
            temporary.unlink(missing_ok=True)
        return digest.hexdigest(), size

    def add_file(self, source: Path) -> tuple[str, int]:
        """Store a copy of a file and return sha256 and size."""
        return self.add(file_pieces(source))

    def temporary(self) -> Path:
        """Return a name for a file that `adopt` may take."""
        return self._incoming / secrets.token_hex(8)

    def adopt(self, temporary: Path, sha256: str) -> None:
        """Make a complete file the blob of this sha256, which the caller has computed."""
        target = self.path(sha256)
        target.parent.mkdir(exist_ok=True)
        temporary.replace(target)


def file_pieces(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes in bounded pieces."""
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, read in bounded pieces."""
    digest = hashlib.sha256()
    for piece in file_pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def write_at(path: Path, offset: int, pieces: Iterable[bytes]) -> str:
    """Write pieces into a file from `offset`, making it when missing, and return their md5."""
    digest = hashlib.md5(usedforsecurity=False)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for piece in pieces:
            digest.update(piece)
            offset += os.pwrite(descriptor, piece, offset)
    finally:
        os.close(descriptor)
    return digest.hexdigest()
