"""s3fs: recursive `put` and `get`."""

from __future__ import annotations

import s3fs


class S3fsCopy:
    """The whole directory in one call, as its documentation shows."""

    def __init__(self, bucket: str) -> None:
        self._files = s3fs.S3FileSystem()
        self._files.connect()
        self._url = f"{bucket}/data/"

    def save(self, source: str) -> None:
        """Upload a directory."""
        self._files.put(f"{source}/", self._url, recursive=True)

    def load(self, saved: None, target: str) -> None:
        """Download the prefix."""
        self._files.get(self._url, f"{target}/", recursive=True)
