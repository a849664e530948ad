"""S3 by s3fs: its options from ours, and the calls where the S3 API says more than fsspec does.

s3fs carries every call to its own event loop, so plain threads may use one store.
"""

from __future__ import annotations

import inspect
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

from hfflows.errors import ObjectNotFoundError, SettingsError, StorageError
from hfflows.storage._aws import client_arguments, config_arguments
from hfflows.storage._conditional import look_then_put
from hfflows.storage._errors import check_limit, mapped_errors
from hfflows.storage._fsspec import DELETE_BATCH, PART_BYTES, FsspecStore, as_bytes
from hfflows.storage._protocol import ObjectInfo, Upload
from hfflows.storage._s3_options import S3Options, bucket_and_prefix, option_names
from hfflows.storage._uploads import S3Uploads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from typing_extensions import Buffer

PARTS_IN_FLIGHT = 4

_OWN = ("cache_regions", "client_kwargs", "config_kwargs", "requester_pays", "s3_additional_kwargs")
"""Options of s3fs that are passed on as they are."""
_ENCRYPTION = {
    "server_side_encryption": "ServerSideEncryption",
    "sse_kms_key_id": "SSEKMSKeyId",
    "sse_bucket_key_enabled": "BucketKeyEnabled",
}


class S3fsStore(FsspecStore):
    """A `Store` on S3 by s3fs, which also has `Uploads`."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        bucket, prefix = bucket_and_prefix(url)
        settings = S3Options.read(options, bucket)
        arguments = _arguments(settings)

        def connect() -> tuple[Any, str]:
            from s3fs import S3FileSystem

            return S3FileSystem(**arguments), f"{bucket}/{prefix}".rstrip("/")

        is_conditional = settings.conditional_put != "disabled"
        super().__init__(url, connect, has_conditional_create=is_conditional)
        self._bucket = bucket
        self._prefix = prefix
        self._root = f"{prefix}/" if prefix else ""
        self._has_bulk_delete = not settings.disable_bulk_delete

    def get(self, key: str, *, limit: int | None = None) -> bytes:  # docstring inherited
        end = None if limit is None else limit + 1
        with self._calling(key) as (files, path):
            data = files.cat_file(path, end=end, **_in_one_request(files))
        check_limit(self._url, key, len(data), limit)
        return bytes(data)

    def head(self, key: str) -> ObjectInfo | None:  # docstring inherited
        try:
            found = self._s3(key, "head_object", Key=self._root + key)
        except ObjectNotFoundError:
            return None
        return ObjectInfo(key, found["ContentLength"], found["LastModified"])

    def put(self, key: str, data: Buffer) -> None:  # docstring inherited
        self._s3(key, "put_object", Key=self._root + key, Body=as_bytes(data))

    def put_stream(self, key: str, chunks: Iterable[Buffer]) -> None:  # docstring inherited
        parts = _parts(chunks)
        first = next(parts, bytearray())
        if len(first) < PART_BYTES:
            self.put(key, first)
            return
        name = self._root + key
        upload_id = self._s3(key, "create_multipart_upload", Key=name)["UploadId"]
        try:
            sent = self._send(key, upload_id, chain([first], parts))
            self._s3(
                key,
                "complete_multipart_upload",
                Key=name,
                UploadId=upload_id,
                MultipartUpload={"Parts": sent},
            )
        except BaseException:
            with suppress(StorageError):  # what cannot be aborted now is listed by list_uploads
                self.abort_upload(Upload(key, upload_id, datetime.now(UTC)))
            raise

    def create(self, key: str, data: Buffer) -> None:  # docstring inherited
        if not self.has_conditional_create:
            look_then_put(self, key, data)
            return
        self._s3(key, "put_object", Key=self._root + key, Body=as_bytes(data), IfNoneMatch="*")

    def list(
        self, prefix: str, *, after: str | None = None
    ) -> Iterator[ObjectInfo]:  # docstring inherited
        arguments = {"Prefix": self._root + prefix}
        if after is not None and after > prefix:
            arguments["StartAfter"] = self._root + after
        while True:
            page = self._s3(prefix, "list_objects_v2", **arguments)
            for found in page.get("Contents", []):
                key = found["Key"].removeprefix(self._root)
                yield ObjectInfo(key, found["Size"], found["LastModified"])
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, keys: Sequence[str]) -> None:  # docstring inherited
        if not self._has_bulk_delete:
            for key in keys:
                self._s3(key, "delete_object", Key=self._root + key)
            return
        for start in range(0, len(keys), DELETE_BATCH):
            self._delete_bulk(keys[start : start + DELETE_BATCH])

    def list_uploads(self) -> Iterator[Upload]:  # docstring inherited
        yield from self._uploads().list()

    def abort_upload(self, upload: Upload) -> None:  # docstring inherited
        self._uploads().abort(upload)

    def _delete_bulk(self, keys: Sequence[str]) -> None:
        objects = [{"Key": self._root + key} for key in keys]
        answer = self._s3(keys[0], "delete_objects", Delete={"Objects": objects, "Quiet": True})
        for failed in answer.get("Errors", []):
            from botocore.exceptions import ClientError

            with mapped_errors(self._url, failed["Key"].removeprefix(self._root)):
                raise ClientError({"Error": failed}, "DeleteObjects")

    def _send(
        self, key: str, upload_id: str, parts: Iterable[bytearray]
    ) -> Sequence[dict[str, Any]]:
        """Upload the parts, a few at a time, and return what completes the upload."""
        sent = []
        under_way: deque[Future[dict[str, Any]]] = deque()
        with ThreadPoolExecutor(PARTS_IN_FLIGHT) as pool:
            for number, part in enumerate(parts, 1):
                if len(under_way) == PARTS_IN_FLIGHT:
                    sent.append(under_way.popleft().result())
                under_way.append(pool.submit(self._send_part, key, upload_id, number, part))
            sent += [future.result() for future in under_way]
        return sent

    def _send_part(self, key: str, upload_id: str, number: int, part: bytearray) -> dict[str, Any]:
        answer = self._s3(
            key,
            "upload_part",
            Key=self._root + key,
            UploadId=upload_id,
            PartNumber=number,
            Body=part,
        )
        checksums = {name: value for name, value in answer.items() if name.startswith("Checksum")}
        return {"PartNumber": number, "ETag": answer["ETag"], **checksums}

    def _s3(self, key: str, call: str, **arguments: Any) -> Any:
        with self._calling(key) as (files, _):
            return files.call_s3(call, Bucket=self._bucket, **arguments)

    def _uploads(self) -> S3Uploads:
        def call(name: str, **arguments: Any) -> Any:
            with self._calling("") as (files, _):
                return files.call_s3(name, **arguments)

        return S3Uploads(call, self._url, self._bucket, self._prefix)


def _parts(chunks: Iterable[Buffer]) -> Iterator[bytearray]:
    """Yield the chunks in pieces of `PART_BYTES`, the last of them shorter."""
    gathered = bytearray()
    for chunk in chunks:
        gathered += chunk
        while len(gathered) >= PART_BYTES:
            yield gathered[:PART_BYTES]
            del gathered[:PART_BYTES]
    if gathered:
        yield gathered


def _in_one_request(files: Any) -> dict[str, int]:
    """Return what keeps s3fs from asking for the size first, and reading in several requests.

    Versions before 2026.4 read in one request, and do not know the argument.
    """
    known = inspect.signature(files._cat_file).parameters  # noqa: SLF001 - `cat_file` takes any
    return {"max_concurrency": 1} if "max_concurrency" in known else {}


def _arguments(options: S3Options) -> dict[str, Any]:
    """Return the options as arguments of `S3FileSystem`."""
    others = options.others
    if unknown := sorted(others.keys() - {*_OWN, *_ENCRYPTION}):
        names = ", ".join((*option_names(), *_ENCRYPTION, *_OWN))
        msg = f"There is no such store option: {', '.join(unknown)}. By s3fs it takes {names}."
        raise SettingsError(msg)
    own = {name: others[name] for name in _OWN if name in others}
    encryption = {theirs: others[ours] for ours, theirs in _ENCRYPTION.items() if ours in others}
    return {
        **own,
        **({"profile": options.profile} if options.profile else {}),
        "anon": options.anonymous,
        "client_kwargs": {**client_arguments(options), **own.get("client_kwargs", {})},
        "config_kwargs": {**config_arguments(options), **own.get("config_kwargs", {})},
        "s3_additional_kwargs": {**encryption, **own.get("s3_additional_kwargs", {})},
        "skip_instance_cache": True,
        "use_listings_cache": False,
    }
