"""From a URL and the standard environment to a store."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import SplitResult, unquote, urlsplit

from obstore.store import LocalStore, MemoryStore, from_url

from hfflows.errors import SettingsError
from hfflows.storage._errors import mapped_errors
from hfflows.storage._obstore import RETRIES, ObstoreStore

if TYPE_CHECKING:
    from hfflows.storage._protocol import Store

STORE_URL_VARIABLE = "HFFLOWS_STORE_URL"

Engine = Literal["obstore", "fsspec"]

_LOCAL_SCHEMES = frozenset({"file", "memory"})
_OBSTORE_SCHEMES = _LOCAL_SCHEMES | {"s3", "gs", "az", "abfs", "abfss"}
_BUCKET_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
_from_url: Any = from_url  # obstore types its options by scheme

_memory_stores: dict[str, Store] = {}
_memory_lock = threading.Lock()


def default_store_url() -> str:
    """Return `HFFLOWS_STORE_URL`, else a directory under the user's data directory."""
    if url := os.environ.get(STORE_URL_VARIABLE):
        return url
    data_home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return (Path(data_home) / "hfflows" / "store").as_uri()


def open_store(
    url: str | os.PathLike[str] | None = None, *, engine: Engine | None = None, **options: Any
) -> Store:
    """Return the store at `url`.

    No request is made: a wrong key or a dead endpoint shows at the first use.

    Args:
        url: `s3://bucket/prefix`, `gs://…`, `az://…`, `file:///path`, a plain local path,
            `memory://name` (one per name and process), or a URL of any protocol that fsspec
            knows, such as `sftp://host/path`. `None` means `HFFLOWS_STORE_URL`, else a
            directory under the user's data directory.
        engine: Library that moves the bytes. `None` is obstore where it has the scheme, and
            fsspec for all others; `fsspec` on S3 is s3fs.
        **options: Options that override the environment. On S3, for both engines: `endpoint`,
            `access_key_id`, `secret_access_key`, `session_token`, `region`, `profile`,
            `anonymous`, `virtual_hosted_style_request`, `request_checksum` (`when_required` or
            `when_supported`), `unsigned_payload`, `conditional_put` (`etag` or `disabled`),
            `disable_bulk_delete`, and what the engine itself knows. Without them the standard
            `AWS_*` variables are read. Other stores take their library's own options.

    Raises:
        SettingsError: The URL or an option is wrong, or the URL carries a credential.
        MissingDependencyError: The package for this URL or option is not installed.
    """
    if engine is not None and engine not in get_args(Engine):
        msg = f"engine={engine!r} is none of {', '.join(get_args(Engine))}."
        raise SettingsError(msg)
    text = os.fspath(url) if url is not None else default_store_url()
    parts = _split(text)
    if not parts.scheme:
        text = _root(text).as_uri()
        parts = urlsplit(text)
    _check_host(text, parts)
    if engine == "fsspec" or parts.scheme not in _OBSTORE_SCHEMES:
        return _open_fsspec(text, engine, options)
    return _open_obstore(text, parts, options)


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
    except ValueError as error:
        msg = f"The store URL {text!r} is not a URL: {error}."
        raise SettingsError(msg) from error
    if parts.username or parts.password or parts.query or (parts.scheme and parts.fragment):
        msg = (
            "A store URL must not carry credentials, a query or a fragment: it is kept in every "
            "reference. Pass them as options or in the environment."
        )
        raise SettingsError(msg)
    return parts


def _check_host(url: str, parts: SplitResult) -> None:
    if parts.scheme in {"file", "local"}:
        if parts.netloc not in {"", "localhost"}:
            msg = f"The store URL {url!r} names a host; write {parts.scheme}:///path."
            raise SettingsError(msg)
    elif parts.scheme in _BUCKET_SCHEMES and not parts.netloc:
        msg = f"The store URL {url!r} names no bucket; write {parts.scheme}://bucket/prefix."
        raise SettingsError(msg)


def _open_fsspec(url: str, engine: Engine | None, options: dict[str, Any]) -> Store:
    if engine == "obstore":
        msg = (
            f"The store URL {url!r} is of no kind that obstore knows: "
            f"{', '.join(sorted(_OBSTORE_SCHEMES))}. Leave engine out to use fsspec."
        )
        raise SettingsError(msg)
    from hfflows.storage._fsspec_open import open_fsspec

    return open_fsspec(url.rstrip("/"), options)


def _open_obstore(url: str, parts: SplitResult, options: dict[str, Any]) -> Store:
    if parts.scheme == "s3":
        from hfflows.storage._obstore_s3 import S3ObstoreStore

        return S3ObstoreStore(url.rstrip("/"), options)
    if parts.scheme in _LOCAL_SCHEMES:
        if options:
            msg = f"A store on {parts.scheme} takes no options, got {', '.join(sorted(options))}."
            raise SettingsError(msg)
        return _open_memory(url) if parts.scheme == "memory" else _open_directory(parts)
    with mapped_errors(url, ""):
        engine = _from_url(url, config=options, retry_config=RETRIES)
    return ObstoreStore(engine, url.rstrip("/"))


def _open_directory(parts: SplitResult) -> Store:
    root = _root(unquote(parts.path))
    with mapped_errors(root.as_uri(), ""):
        root.mkdir(parents=True, exist_ok=True)
        return ObstoreStore(LocalStore(root), root.as_uri(), is_sorted=False)


def _open_memory(url: str) -> Store:
    with _memory_lock:
        return _memory_stores.setdefault(url, ObstoreStore(MemoryStore(), url))


def _root(path: str) -> Path:
    return Path(path).expanduser().resolve()
