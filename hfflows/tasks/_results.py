"""Prefect result storage in the same bucket as the artifacts."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from hfflows.errors import MissingDependencyError, SettingsError

ResultBackend = Literal["s3-bucket", "remote-file-system"]


def save_result_storage(
    name: str = "hfflows-results",
    *,
    store_url: str,
    backend: ResultBackend = "s3-bucket",
    folder: str = "prefect-results",
) -> str:
    """Save a Prefect block for results beside the artifacts and return its slug.

    Set `PREFECT_DEFAULT_RESULT_STORAGE_BLOCK` to the slug, or name it in
    `@flow(result_storage=slug)`. The block holds no secret: whoever uses it reads
    `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_ENDPOINT_URL`.

    Args:
        name: Name of the block; one of the same name is replaced.
        store_url: `s3://bucket/prefix` of the artifact store.
        backend: `s3-bucket` uses prefect-aws (fewer requests); `remote-file-system` uses
            s3fs, where prefect-aws is not installed.
        folder: Key prefix of the results, below the store's.

    Raises:
        SettingsError: The store is not in S3.
        MissingDependencyError: prefect-aws or s3fs is not installed.
    """
    parts = urlsplit(store_url)
    if parts.scheme != "s3" or not parts.netloc:
        msg = f"Results go to S3 with these blocks; {store_url!r} is no s3:// URL."
        raise SettingsError(msg)
    path = "/".join(part for part in (parts.path.strip("/"), folder) if part)
    block = _s3_bucket(parts.netloc, path) if backend == "s3-bucket" else _s3fs(parts.netloc, path)
    block.save(name, overwrite=True, _sync=True)
    return f"{backend}/{name}"


def _s3_bucket(bucket: str, folder: str) -> Any:
    try:
        from prefect_aws import S3Bucket
    except ImportError as error:
        msg = "Results in an S3Bucket block need prefect-aws: pip install 'hfflows[aws]'."
        raise MissingDependencyError(msg) from error
    return S3Bucket(bucket_name=bucket, bucket_folder=folder)


def _s3fs(bucket: str, folder: str) -> Any:
    from importlib.util import find_spec

    from prefect.filesystems import RemoteFileSystem

    if find_spec("s3fs") is None:
        msg = "Results in a RemoteFileSystem block need s3fs: pip install 'hfflows[s3fs]'."
        raise MissingDependencyError(msg)
    return RemoteFileSystem(basepath=f"s3://{bucket}/{folder}")
