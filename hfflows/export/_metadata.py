"""Hub metadata in an ONNX file: read and written without touching the graph.

Reading a 2 GB file takes a fraction of a millisecond, writing costs a copy of the file by
the kernel, or nothing in place; external data is never opened.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from hfflows.errors import MetadataError, SettingsError
from hfflows.export._protobuf import METADATA_PROPS, Field, encode_entry, read_entry, scan
from hfflows.export._schema import DIGEST, digest_of, entries_of, is_ours

if TYPE_CHECKING:
    from collections.abc import Mapping

LARGEST_BYTES = (1 << 31) - 1
"""Beyond it protobuf, and with it onnx and ONNX Runtime, cannot parse the file."""


def read_onnx_metadata(source: str | os.PathLike[str] | BinaryIO) -> dict[str, str]:
    """Return all metadata entries of an ONNX file, in their order.

    Args:
        source: Path, or a seekable binary stream such as `hfflows.open_file` returns: of a
            file in a bucket only the pieces around its two ends are moved.

    Raises:
        SettingsError: There is no such file.
        MetadataError: Not an ONNX model, cut short, or the Hub metadata is not what was
            written.
    """
    if not isinstance(source, str | os.PathLike):
        return _read(source, str(getattr(source, "name", "stream")))
    with _open(Path(source), "rb") as file:
        return _read(file, str(source))


def _open(path: Path, mode: str) -> BinaryIO:
    try:
        file: BinaryIO = path.open(mode)  # type: ignore[assignment] # the modes here are binary
    except OSError as error:
        msg = f"{path} cannot be opened: {error.strerror or error}. Check the path."
        raise SettingsError(msg, path=str(path)) from error
    return file


def _read(file: BinaryIO, name: str) -> dict[str, str]:
    size_bytes = file.seek(0, os.SEEK_END)
    fields = scan(file, size_bytes, name)
    entries = dict(
        read_entry(file, field, name) for field in fields if field.number == METADATA_PROPS
    )
    stated = entries.get(DIGEST)
    if stated is not None and stated != digest_of(entries):
        msg = f"{name}: the Hub metadata is not what was written; inject it again."
        raise MetadataError(msg, path=name)
    return entries


def inject_hub_metadata(
    onnx_path: str | os.PathLike[str], metadata: Mapping[str, object], *, in_place: bool = False
) -> dict[str, str]:
    """Write a model's origin into its ONNX file and return the entries written.

    Entries of ours that were there are replaced, all others kept, and the graph's bytes are
    unchanged. The same metadata and timestamp twice give the same file.

    Args:
        onnx_path: The file; external data beside it is not touched.
        metadata: Values by key, see `hfflows.export.FIELDS`; `hf_model_type` is required,
            and for a Hub model `hf_hub_id` and the full commit as `hf_hub_revision`. Export
            version and timestamp are added.
        in_place: Rewrite only the end of the file: nothing is copied, but a crash half way
            damages it. For files that can be made again.

    Raises:
        MetadataError: Bad entries, or not an ONNX model; the file is unchanged.
        SettingsError: No such file; a symlink, which may lead into a cache; or it would pass
            2³¹ - 1 bytes.
    """
    path = Path(onnx_path)
    entries = entries_of(metadata)
    if path.is_symlink():
        msg = f"{path} is a symlink, perhaps into a cache that others read; copy the file first."
        raise SettingsError(msg, path=str(path))
    with _open(path, "rb") as file:
        status = os.fstat(file.fileno())
        kept, foreign = _split(file, status.st_size, str(path))
        tail = b"".join(foreign) + b"".join(encode_entry(*entry) for entry in entries.items())
        size_bytes = sum(end - start for start, end in kept) + len(tail)
        if size_bytes > LARGEST_BYTES:
            msg = (
                f"{path} would have {size_bytes:,} bytes with its metadata; ONNX files end at "
                f"{LARGEST_BYTES:,}. Save its weights as external data."
            )
            raise SettingsError(msg, path=str(path))
        is_one_run = len(kept) == 1 and kept[0][0] == 0
        if in_place and is_one_run and status.st_nlink == 1:
            _rewrite_tail(path, kept[0][1], tail)
        else:
            _rewrite(file, path, kept, tail, mode=stat.S_IMODE(status.st_mode))
    return entries


def _split(file: BinaryIO, size_bytes: int, name: str) -> tuple[list[tuple[int, int]], list[bytes]]:
    """Return the byte runs without metadata, and the encoded entries that are not ours."""
    kept: list[tuple[int, int]] = []
    foreign: dict[str, bytes] = {}  # of duplicate keys the last counts, as in ONNX Runtime
    for field in scan(file, size_bytes, name):
        if field.number == METADATA_PROPS:
            key, value = read_entry(file, field, name)
            if not is_ours(key):
                foreign[key] = encode_entry(key, value)
        else:
            _extend(kept, field)
    return kept, list(foreign.values())


def _extend(runs: list[tuple[int, int]], field: Field) -> None:
    if runs and runs[-1][1] == field.start:
        runs[-1] = (runs[-1][0], field.end)
    else:
        runs.append((field.start, field.end))


def _rewrite_tail(path: Path, offset: int, tail: bytes) -> None:
    with _open(path, "r+b") as file:
        file.seek(offset)
        file.write(tail)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _rewrite(
    source: BinaryIO, path: Path, kept: list[tuple[int, int]], tail: bytes, *, mode: int
) -> None:
    """Write the new file beside the old one and put it in its place."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as target:
            for start, end in kept:
                _copy_range(source, target, start, end)
            target.write(tail)
            target.flush()
            os.fchmod(target.fileno(), mode)
            os.fsync(target.fileno())
        read_onnx_metadata(name)  # nothing that cannot be read back takes the file's place
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _copy_range(source: BinaryIO, target: BinaryIO, start: int, end: int) -> None:
    """Copy bytes, by the kernel where it can."""
    target.flush()
    offset = start
    try:
        while offset < end:
            count = os.copy_file_range(
                source.fileno(), target.fileno(), end - offset, offset_src=offset
            )
            if not count:
                break
            offset += count
    except (AttributeError, OSError):  # not on this system, or not between these file systems
        pass
    target.seek(0, os.SEEK_END)
    source.seek(offset)
    while offset < end:
        data = source.read(min(1 << 20, end - offset))
        if not data:
            msg = f"{source.name} became shorter while it was being read."
            raise MetadataError(msg)
        target.write(data)
        offset += len(data)
