"""Hub metadata in an ONNX file: read and written without touching the graph.

Reading a 2 GB file takes a fraction of a millisecond, of a file in a bucket two requests;
writing costs a copy of the file by the kernel, or nothing in place; external data is never
opened.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from hfflows.errors import MetadataError, MissingDependencyError, SettingsError
from hfflows.export._onnx._hub_entries import hub_entries, joined
from hfflows.export._onnx._protobuf import (
    METADATA_PROPS,
    Field,
    encode_entry,
    is_ort_format,
    read_entry,
    scan,
)
from hfflows.export._onnx._rewrite import Kept, rewrite, rewrite_tail
from hfflows.export._onnx._schema import DIGEST, digest_of, entries_of, is_ours
from hfflows.export._onnx._sources import DEFAULT_FILE, local_path, open_regular, opened

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hfflows.artifacts import RefLike
    from hfflows.storage import Store

LARGEST_BYTES = (1 << 31) - 1
"""Beyond it protobuf, and with it onnx and ONNX Runtime, cannot parse the file."""


def read_onnx_metadata(
    source: str | os.PathLike[str] | BinaryIO | RefLike,
    *,
    file: str = DEFAULT_FILE,
    store: Store | None = None,
) -> dict[str, str]:
    """Return all metadata entries of an ONNX file, in their order.

    Of a file in a bucket only the pieces around its two ends are moved. They are not checked
    against the artifact's digests; the entries of hfflows carry a digest of their own.

    Args:
        source: Path; URL of an object, such as `s3://bucket/model.onnx`; reference, its dict or
            its key; or a seekable binary stream such as `hfflows.open_file` returns. A file in
            ONNX Runtime's own format (`.ort`) is loaded with ONNX Runtime, from a path only.
        file: Which file of an artifact.
        store: Where an artifact or an object is; `None` means the store that the reference
            names, or that the URL does with the settings of the environment.

    Raises:
        SettingsError: There is no such file, or the source is of another type.
        ObjectNotFoundError, ArtifactNotFoundError: There is none in the store.
        MetadataError: Not an ONNX model, cut short, or the Hub metadata is not what was
            written.
        MissingDependencyError: A `.ort` file, and ONNX Runtime is not installed.
    """
    with opened(source, file=file, store=store) as found:
        name = found.name
        if found.path is not None and is_ort_format(found.stream):
            entries = _read_with_runtime(name)
        else:
            entries = _read(found.stream, name)
    stated = entries.get(DIGEST)
    if stated is not None and stated != digest_of(entries):
        msg = f"{name}: the Hub metadata is not what was written; inject it again."
        raise MetadataError(msg, path=name)
    return entries


def _read(file: BinaryIO, name: str) -> dict[str, str]:
    size_bytes = file.seek(0, os.SEEK_END)
    fields = scan(file, size_bytes, name)
    return dict(read_entry(file, field, name) for field in fields if field.number == METADATA_PROPS)


def _read_with_runtime(name: str) -> dict[str, str]:
    try:
        import onnxruntime
    except ImportError as error:
        msg = f"{name} is in ONNX Runtime's own format: pip install 'hfflows[onnx]' to read it."
        raise MissingDependencyError(msg, path=name) from error
    try:
        session = onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own have no base but this
        first = str(error).strip().partition("\n")[0]
        msg = f"{name}: ONNX Runtime cannot load it: {first}"
        raise MetadataError(msg, path=name) from error
    return dict(session.get_modelmeta().custom_metadata_map)


def inject_hub_metadata(
    onnx_path: str | os.PathLike[str],
    metadata: Mapping[str, object] | None = None,
    *,
    in_place: bool = False,
    repo_id: str | None = None,
    revision: str | None = None,
    counters: bool = False,
    allow_unverified: bool = False,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> dict[str, str]:
    """Write a model's origin into its ONNX file and return the entries written.

    Entries of ours that were there are replaced, all others kept, and the graph's bytes are
    unchanged. The same metadata and timestamp twice give the same file.

    Args:
        onnx_path: The file; external data beside it is not touched.
        metadata: Values by key, see `hfflows.export.FIELDS`; `hf_model_type` is required,
            and for a Hub model `hf_hub_id` and the full commit as `hf_hub_revision`. Export
            version and timestamp are added. With `repo_id` it may be left out.
        in_place: Rewrite only the end of the file: nothing is copied, but a crash half way, or
            another writer at the same time, damages it. For files that can be made again.
        repo_id: A Hub repo that holds this model's config: its entries are asked for, as
            `hfflows.export.hub_entries` does, which describes the rest.
        revision: Of it.
        counters: Also record its downloads and likes.
        allow_unverified: Record it also when the Hub cannot be asked.
        token: For the Hub; never written.
        endpoint: Of a Hub of your own.

    Raises:
        MetadataError: Bad entries, or not an ONNX model; the file is unchanged.
        SettingsError: No such file; a symlink, which may lead into a cache; or it would pass
            2³¹ - 1 bytes.
        TargetError: It cannot be written: the file system is full, or read-only. Unchanged.
        RepoNotFoundError, RevisionNotFoundError, HubError: As `hub_entries`.
    """
    path = local_path(onnx_path)
    if path.is_symlink():
        msg = f"{path} is a symlink, perhaps into a cache that others read; copy the file first."
        raise SettingsError(msg, path=str(path))
    given = dict(metadata or {})
    if repo_id is not None:
        with open_regular(path) as file:  # nobody is asked for the sake of a file that is none
            scan(file, os.fstat(file.fileno()).st_size, str(path))
        found = hub_entries(
            repo_id,
            revision,
            counters=counters,
            allow_unverified=allow_unverified,
            token=token,
            endpoint=endpoint,
        )
        given = joined(found, given)
    entries = entries_of(given)
    _write(path, entries, in_place=in_place)
    return entries


def _write(path: Path, entries: Mapping[str, str], *, in_place: bool) -> None:
    # A link that takes the file's place now is not followed; where there is no such flag, the
    # check before has to do.
    flags = getattr(os, "O_NOFOLLOW", 0) | (os.O_RDWR if in_place else os.O_RDONLY)
    with open_regular(path, flags=flags, mode="r+b" if in_place else "rb") as file:
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
            rewrite_tail(file, path, kept[0][1], tail)
        else:
            rewrite(file, path, kept, tail, check=read_onnx_metadata)


def _split(file: BinaryIO, size_bytes: int, name: str) -> tuple[Kept, list[bytes]]:
    """Return the byte runs without metadata, and the encoded entries that are not ours."""
    kept: Kept = []
    foreign: dict[str, bytes] = {}  # of duplicate keys the last counts, as in ONNX Runtime
    for field in scan(file, size_bytes, name):
        if field.number == METADATA_PROPS:
            key, value = read_entry(file, field, name)
            if not is_ours(key):
                foreign[key] = encode_entry(key, value)
        else:
            _extend(kept, field)
    return kept, list(foreign.values())


def _extend(runs: Kept, field: Field) -> None:
    if runs and runs[-1][1] == field.start:
        runs[-1] = (runs[-1][0], field.end)
    else:
        runs.append((field.start, field.end))
