"""boto3's transfer manager: files in parallel, each in parallel parts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import boto3
from botocore.config import Config

_FILES_IN_FLIGHT = 16
_PREFIX = "data/"


class Boto3Transfer:
    """`upload_file` and `download_file` with their defaults, from a pool of threads."""

    def __init__(self, bucket: str) -> None:
        # Ten parts a file are boto3's default; fewer connections than that would wait.
        config = Config(max_pool_connections=_FILES_IN_FLIGHT * 10)
        self._client = boto3.client("s3", config=config)
        self._bucket = bucket

    def save(self, source: str) -> None:
        """Upload every file under its own path."""
        root = Path(source)
        files = [path for path in root.rglob("*") if path.is_file()]
        with ThreadPoolExecutor(_FILES_IN_FLIGHT) as pool:
            list(pool.map(partial(self._put, root), files))

    def load(self, saved: None, target: str) -> None:
        """Download every file under the prefix."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=_PREFIX
        )
        found = [item["Key"] for page in pages for item in page.get("Contents", [])]
        with ThreadPoolExecutor(_FILES_IN_FLIGHT) as pool:
            list(pool.map(partial(self._get, Path(target)), found))

    def _put(self, root: Path, path: Path) -> None:
        key = _PREFIX + path.relative_to(root).as_posix()
        self._client.upload_file(str(path), self._bucket, key)

    def _get(self, root: Path, key: str) -> None:
        path = root / key.removeprefix(_PREFIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._client.download_file(self._bucket, key, str(path))
