"""Multipart uploads that nobody will finish, in the S3 API's own calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfflows.errors import ObjectNotFoundError, SettingsError, StorageError
from hfflows.storage._errors import mapped_errors
from hfflows.storage._protocol import Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MARKERS = (("KeyMarker", "NextKeyMarker"), ("UploadIdMarker", "NextUploadIdMarker"))


class S3Uploads:
    """The unfinished uploads of a store.

    Args:
        call: Makes an S3 call, by botocore's method name and parameters.
        url: Root URL of the store.
        bucket: Bucket of the store.
        prefix: Prefix of the store in it, without slashes at its ends.
    """

    def __init__(self, call: Callable[..., Any], url: str, bucket: str, prefix: str) -> None:
        self._call = call
        self._url = url
        self._bucket = bucket
        self._root = f"{prefix}/" if prefix else ""

    def list(self) -> Iterator[Upload]:
        """Yield those under the root; a store that ignores the prefix is not believed."""
        markers: dict[str, str] = {}
        while True:
            with mapped_errors(self._url, ""):
                page = self._call(
                    "list_multipart_uploads", Bucket=self._bucket, Prefix=self._root, **markers
                )
            for found in page.get("Uploads", []):
                if found["Key"].startswith(self._root):
                    key = found["Key"].removeprefix(self._root)
                    yield Upload(key, found["UploadId"], found["Initiated"])
            if not page.get("IsTruncated"):
                return
            # SeaweedFS leaves out the marker of the key.
            following = {name: page[after] for name, after in _MARKERS if page.get(after)}
            if following == markers:
                msg = f"{self._url}: the store's listing of uploads does not go on after a page."
                raise StorageError(msg, store_url=self._url)
            markers = following

    def abort(self, upload: Upload) -> None:
        """Abort one; none of its parts can be read or completed afterwards."""
        if not upload.upload_id:
            msg = f"{self._url}: {upload.key}: an upload without an id cannot be aborted."
            raise SettingsError(msg, key=upload.key)
        try:
            with mapped_errors(self._url, upload.key):
                self._call(
                    "abort_multipart_upload",
                    Bucket=self._bucket,
                    Key=self._root + upload.key,
                    UploadId=upload.upload_id,
                )
        except ObjectNotFoundError:
            return
