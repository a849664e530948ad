"""What several tests of artifacts need."""

import os

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
