"""What several tests of artifacts need."""

import hashlib
import os
from dataclasses import dataclass

from hfflows.artifacts import Announced
from hfflows.storage import open_store

_made = []


def new_store():
    """Return an empty memory store; emptied when the test is over, for it lives as long as we."""
    _made.append(open_store(f"memory://{os.urandom(8).hex()}"))
    return _made[-1]


def empty_stores():
    while _made:
        store = _made.pop()
        store.delete([info.key for info in store.list("")])


def content_of(root):
    """Return the regular files below a directory, by path."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@dataclass
class Remote:
    """A file that counts what is read of it; announced, like one of the Hub."""

    data: bytes
    path: str = "model.safetensors"
    is_executable: bool = False
    bytes_read: int = 0
    reads: int = 0

    @property
    def size_bytes(self):
        return len(self.data)

    @property
    def announced(self):
        return Announced("sha256", hashlib.sha256(self.data).hexdigest())

    def read(self, offset, length):
        self.bytes_read += length
        self.reads += 1
        return bytes(memoryview(self.data)[offset : offset + length])
