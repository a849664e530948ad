"""obstore by hand: parallel files, multipart uploads, ranged downloads; nothing is verified."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.store import S3Store

if TYPE_CHECKING:
    from collections.abc import Iterable

_FILES_IN_FLIGHT = 16
_RANGE_BYTES = 16 * 1024 * 1024
_PREFIX = "data/"


class ObstoreRaw:
    """A thread for each file, a thread for each range of a large one.

    Args:
        bucket: Where.
        part_bytes: Size of an upload's parts; `None` means obstore's own default.
    """

    def __init__(self, bucket: str, *, part_bytes: int | None = None) -> None:
        self._store = S3Store(
            bucket, endpoint=os.environ["AWS_ENDPOINT_URL"], client_options={"allow_http": True}
        )
        self._parts: dict[str, Any] = {} if part_bytes is None else {"chunk_size": part_bytes}

    def save(self, source: str) -> None:
        """Upload every file under its own path."""
        root = Path(source)
        files = [path for path in root.rglob("*") if path.is_file()]
        with ThreadPoolExecutor(_FILES_IN_FLIGHT) as pool:
            list(pool.map(partial(self._put, root), files))

    def load(self, saved: None, target: str) -> None:
        """Download every file under the prefix."""
        root = Path(target)
        self._get_all(
            (root / found["path"].removeprefix(_PREFIX), found["path"], found["size"])
            for page in obstore.list(self._store, prefix=_PREFIX)
            for found in page
        )

    def get_objects(self, objects: list[tuple[str, int]], target: str) -> None:
        """Download objects of which key and size are known: a transfer and nothing else."""
        root = Path(target)
        self._get_all((root / key.rpartition("/")[2], key, size) for key, size in objects)

    def _get_all(self, objects: Iterable[tuple[Path, str, int]]) -> None:
        ranges = list[tuple[Path, str, int, int]]()
        for path, key, size in objects:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            ranges += [
                (path, key, start, min(_RANGE_BYTES, size - start))
                for start in range(0, size, _RANGE_BYTES)
            ]
        with ThreadPoolExecutor(_FILES_IN_FLIGHT) as pool:
            list(pool.map(self._get_range, ranges))

    def _put(self, root: Path, path: Path) -> None:
        key = _PREFIX + path.relative_to(root).as_posix()
        obstore.put(self._store, key, path, **self._parts)

    def _get_range(self, piece: tuple[Path, str, int, int]) -> None:
        path, key, start, length = piece
        data = obstore.get_range(self._store, key, start=start, length=length)
        with path.open("r+b", buffering=0) as file:
            file.seek(start)
            file.write(data)
