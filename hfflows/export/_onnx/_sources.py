"""Where an ONNX file is read from: this machine, an object of a bucket, an artifact, a stream."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, urlsplit

from hfflows import keys
from hfflows.artifacts import open_file
from hfflows.errors import ObjectNotFoundError, SettingsError
from hfflows.export._onnx._ranged import RangedFile
from hfflows.refs import ArtifactRef
from hfflows.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hfflows.storage import Store

DEFAULT_FILE = "model.onnx"
_BUCKETS = frozenset({"s3", "gs", "az", "memory"})


@dataclass(frozen=True, slots=True)
class Opened:
    """An ONNX file that is open."""

    stream: BinaryIO
    """Seekable."""
    name: str
    """For messages."""
    path: Path | None = None
    """Where it is, when that is on this machine."""


@contextmanager
def opened(source: Any, *, file: str, store: Store | None) -> Iterator[Opened]:
    """Open an ONNX file.

    Args:
        source: As `read_onnx_metadata` takes it.
        file: Which file of an artifact.
        store: Where an artifact or an object is.

    Raises:
        SettingsError: No such file, or a source of another type.
        ObjectNotFoundError: No such object.
        ArtifactNotFoundError: No such artifact, or no such file in it.
    """
    if isinstance(source, ArtifactRef | Mapping) or _is_key(source):
        with open_file(source, file, store=store) as stream:
            yield Opened(_cheap(stream, file), file)
    elif isinstance(source, str) and "://" in source and not source.startswith("file:"):
        yield Opened(_object(source, store), source)
    elif isinstance(source, str | os.PathLike):
        path = local_path(source)
        with open_regular(path) as stream:
            yield Opened(stream, str(path), path)
    else:
        name = str(getattr(source, "name", "The stream"))
        _check_stream(source)
        yield Opened(_cheap(source, name), name)


def _check_stream(source: Any) -> None:
    is_binary = hasattr(source, "read") and not isinstance(source, io.TextIOBase)
    if not is_binary or not getattr(source, "seekable", bool)():
        msg = (
            "Metadata are read from a path, a URL, a reference or a seekable binary stream, "
            f"got {type(source).__name__}."
        )
        raise SettingsError(msg)


def local_path(source: object) -> Path:
    """Return the path that a path or a `file:` URL means.

    Raises:
        SettingsError: A URL of another kind, or no path at all.
    """
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if not isinstance(text, str):
        msg = f"A path must be text or a Path, got {type(source).__name__}."
        raise SettingsError(msg)
    if text.startswith("file:"):
        return Path(unquote(urlsplit(text).path))
    if "://" in text:
        msg = f"{text} is no file on this machine; load it, write into it, and save it again."
        raise SettingsError(msg)
    return Path(text)


def open_regular(path: Path, *, flags: int = os.O_RDONLY, mode: str = "rb") -> BinaryIO:
    """Open a file; a directory, a pipe or a device is refused, and never waited for.

    Raises:
        SettingsError: There is no such file, or it may not be opened.
    """
    try:
        # Opening a pipe waits for its other end unless it is told not to.
        descriptor = os.open(
            path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            msg = f"{path} cannot be opened: it is a directory or a device, not a file."
            raise SettingsError(msg, path=str(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, and our own
        if isinstance(error, SettingsError):
            raise
        reason = getattr(error, "strerror", None) or error
        msg = f"{path} cannot be opened: {reason}. Check the path."
        raise SettingsError(msg, path=str(path)) from error
    file: BinaryIO = os.fdopen(descriptor, mode)  # type: ignore[assignment] # binary modes only
    return file


def _is_key(source: object) -> bool:
    return isinstance(source, str) and keys.is_reference(source)


def _object(url: str, store: Store | None) -> BinaryIO:
    if store is None:
        parts = urlsplit(url)
        # A bucket is a store by itself; elsewhere the root may not be anybody's to open.
        in_bucket = parts.scheme in _BUCKETS and parts.netloc
        root = f"{parts.scheme}://{parts.netloc}" if in_bucket else url.rpartition("/")[0]
        store = open_store(root)
    else:
        root = store.url.rstrip("/")
    key = url.removeprefix(f"{root}/")
    if key == url:
        msg = f"{url} does not lie in the store {root}; leave out store=."
        raise SettingsError(msg)
    info = store.head(key)
    if info is None:
        msg = f"There is no object {url}. Check the URL, and which bucket AWS_* point to."
        raise ObjectNotFoundError(msg, key=key)
    stream: Any = RangedFile(partial(store.get_range, key), info.size_bytes, url)
    return stream  # type: ignore[no-any-return] # a raw stream does all that is needed here


def _cheap(stream: Any, name: str) -> BinaryIO:
    """Return a stream that moves no more than is read, where the source can do that."""
    raw: Any = getattr(stream, "raw", None)
    if hasattr(raw, "read_unchecked"):
        ranged: Any = RangedFile(raw.read_unchecked, raw.seek(0, os.SEEK_END), name)
        return ranged  # type: ignore[no-any-return]
    return stream  # type: ignore[no-any-return]
