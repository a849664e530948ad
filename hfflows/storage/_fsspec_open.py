"""From a URL to the fsspec store that fits its file system."""

from __future__ import annotations

import importlib.util
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from hfflows.errors import MissingDependencyError, SettingsError
from hfflows.storage._fsspec import FsspecStore
from hfflows.storage._fsspec_files import DirectoryStore, LocalStore, MemoryStore
from hfflows.storage._s3fs import S3fsStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hfflows.storage._protocol import Store

_S3 = frozenset({"s3", "s3a"})
_LOCAL = frozenset({"file", "local"})
_CREATES = frozenset({"gs", "gcs"})
"""Object stores whose `pipe_file(mode="create")` is a condition in the request: gcsfs sends
`ifGenerationMatch=0`."""


def open_fsspec(url: str, options: Mapping[str, Any]) -> Store:
    """Return the store at `url`, whose scheme is a protocol of fsspec.

    Raises:
        SettingsError: fsspec does not know the protocol, or an option is wrong.
        MissingDependencyError: The package for this protocol is not installed.
    """
    if "::" in url:
        msg = f"The store URL {url!r} chains file systems, whose caches would serve stale listings."
        raise SettingsError(msg)
    protocol = urlsplit(url).scheme
    if protocol in _S3:
        _require_s3fs()
        return S3fsStore(url, options)
    cls = _file_system_class(url, protocol)
    if protocol in _LOCAL or protocol == "memory":
        if options:
            names = ", ".join(sorted(options))
            msg = f"A store on {protocol} takes no options, got {names}."
            raise SettingsError(msg)
        if protocol == "memory":
            return MemoryStore(url, _connect(url, {}))
        return LocalStore(url, _connect(f"file://{unquote(urlsplit(url).path)}", {}))
    connect = _connect(url, options)
    if _lists_flat(cls):
        return FsspecStore(url, connect, has_conditional_create=protocol in _CREATES)
    return DirectoryStore(url, connect, turns=threading.RLock())


def _connect(url: str, options: Mapping[str, Any]) -> Callable[[], tuple[Any, str]]:
    def connect() -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            files, root = url_to_fs(url, skip_instance_cache=True, **options)
        except TypeError as error:
            msg = f"{url}: the options {', '.join(sorted(options))} do not fit: {error}."
            raise SettingsError(msg, store_url=url) from error
        return files, root.rstrip("/")

    return connect


def _file_system_class(url: str, protocol: str) -> Any:
    try:
        from fsspec import get_filesystem_class

        return get_filesystem_class(protocol)
    except ImportError as error:
        msg = f"The store URL {url!r} needs a package that is not installed. {error}"
        raise MissingDependencyError(msg, store_url=url) from error
    except ValueError as error:
        msg = (
            f"The store URL {url!r} is of no known kind; use s3, gs, az, abfs, abfss, file, "
            "memory or a protocol of fsspec."
        )
        raise SettingsError(msg) from error


def _lists_flat(cls: Any) -> bool:
    """Return whether the file system lists a whole prefix at once, as object stores do."""
    from fsspec.asyn import AsyncFileSystem

    return issubclass(cls, AsyncFileSystem) and vars(cls).get("_find") is not None


def _require_s3fs() -> None:
    if importlib.util.find_spec("s3fs") is None:
        msg = (
            "engine='fsspec' on S3 is s3fs, which is not installed; "
            "install it with `pip install hfflows[s3fs]`."
        )
        raise MissingDependencyError(msg, extra="s3fs")
