"""From a URL and the standard environment to a store."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from obstore.store import LocalStore, MemoryStore, S3Store, from_url

from hfflows.errors import SettingsError
from hfflows.storage._errors import mapped_errors
from hfflows.storage._obstore import RETRIES, ObstoreStore

if TYPE_CHECKING:
    from hfflows.storage._protocol import Store

STORE_URL_VARIABLE = "HFFLOWS_STORE_URL"

_SCHEMES = frozenset({"s3", "gs", "az", "abfs", "abfss"})
_TIMEOUTS: dict[str, Any] = {"timeout": "60s", "connect_timeout": "5s"}
_DEFAULT_REGION = {"region": "us-east-1"}  # what stores that are not AWS expect
_S3: Any = S3Store  # obstore types its options as literals of today's regions
_from_url: Any = from_url

_memory_stores: dict[str, Store] = {}
_memory_lock = threading.Lock()


def default_store_url() -> str:
    """Return `HFFLOWS_STORE_URL`, else a directory under the user's data directory."""
    if url := os.environ.get(STORE_URL_VARIABLE):
        return url
    data_home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return (Path(data_home) / "hfflows" / "store").as_uri()


def open_store(url: str | os.PathLike[str] | None = None, **options: Any) -> Store:
    """Return the store at `url`.

    No request is made: a wrong key or a dead endpoint shows at the first use.

    Args:
        url: `s3://bucket/prefix`, `gs://…`, `az://…`, `file:///path`, a plain local path, or
            `memory://name` (one per name and process). `None` means
            `HFFLOWS_STORE_URL`, else a directory under the user's data directory.
        **options: Engine options that override the environment. For s3: `endpoint`,
            `access_key_id`, `secret_access_key`, `session_token`, `region`,
            `virtual_hosted_style_request`, …, in obstore's spelling. Without them the standard
            `AWS_*` variables are read, `AWS_ENDPOINT_URL` included.

    Raises:
        SettingsError: The URL or an option is wrong, or the URL carries a credential.
    """
    text = os.fspath(url) if url is not None else default_store_url()
    try:
        parts = urlsplit(text)
    except ValueError as error:
        msg = f"The store URL {text!r} is not a URL: {error}."
        raise SettingsError(msg) from error
    if parts.username or parts.password or parts.query:
        msg = (
            "A store URL must not carry credentials or a query: it is kept in every reference. "
            "Pass them as options or in the environment."
        )
        raise SettingsError(msg)
    if parts.scheme in ("", "file"):
        return _open_directory(parts.path if parts.scheme else text, options)
    if parts.scheme == "memory":
        return _open_memory(text, options)
    if parts.scheme not in _SCHEMES:
        msg = (
            f"The store URL {text!r} is of no known kind; "
            f"use one of {', '.join(sorted(_SCHEMES))}, file or memory."
        )
        raise SettingsError(msg)
    if not parts.netloc:
        msg = f"The store URL {text!r} names no bucket; write {parts.scheme}://bucket/prefix."
        raise SettingsError(msg)
    with mapped_errors(text, ""):
        engine = (
            _open_s3(text, options)
            if parts.scheme == "s3"
            else _from_url(text, config=options, retry_config=RETRIES)
        )
    return ObstoreStore(engine, text.rstrip("/"))


def _open_directory(path: str, options: dict[str, Any]) -> Store:
    if options:
        msg = f"A directory takes no store options, got {', '.join(sorted(options))}."
        raise SettingsError(msg)
    root = Path(unquote(path)).expanduser().resolve()
    with mapped_errors(root.as_uri(), ""):
        root.mkdir(parents=True, exist_ok=True)
        return ObstoreStore(LocalStore(root), root.as_uri(), is_sorted=False)


def _open_memory(url: str, options: dict[str, Any]) -> Store:
    if options:
        msg = f"A memory store takes no options, got {', '.join(sorted(options))}."
        raise SettingsError(msg)
    with _memory_lock:
        return _memory_stores.setdefault(url, ObstoreStore(MemoryStore(), url))


def _open_s3(url: str, options: dict[str, Any]) -> Any:
    config = {**_DEFAULT_REGION, **options} if not _has_region(options) else dict(options)
    client_options = {**_TIMEOUTS, **config.pop("client_options", {})}
    endpoint = (
        options.get("endpoint")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL", "")
    )
    if endpoint.startswith("http://"):
        client_options.setdefault("allow_http", True)
    return _S3.from_url(url, config=config, client_options=client_options, retry_config=RETRIES)


def _has_region(options: dict[str, Any]) -> bool:
    return "region" in options or any(
        os.environ.get(name) for name in ("AWS_REGION", "AWS_DEFAULT_REGION")
    )
