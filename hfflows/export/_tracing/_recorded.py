"""What an exported file says of what it was made from."""

from __future__ import annotations

import json
import posixpath
from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.errors import MetadataError, SettingsError
from hfflows.export._onnx import _schema as schema
from hfflows.export._runtime._files import ONNX_FOLDER
from hfflows.refs import ParentRef

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

FIRST_GRAPHS = ("model.onnx", "encoder_model.onnx", "decoder_model.onnx")
_NAMED_PARENTS = ("model", "checkpoint", "base", "data")
"""Each is in the metadata as `hfflows_<name>_key` and `hfflows_<name>_digest`."""


def first_graph(path: Path) -> Path:
    """Return the graph that a path stands for: a file itself, of a directory the first one.

    Raises:
        SettingsError: There is none.
    """
    if path.is_dir():
        folders = (path, path / ONNX_FOLDER)
        found = [item for folder in folders for item in folder.glob("*.onnx")]
        first = first_of([item.relative_to(path).as_posix() for item in found])
        path = path / (first or FIRST_GRAPHS[0])
    if not path.is_file():
        msg = f"There is no ONNX file at {path}."
        raise SettingsError(msg, path=str(path))
    return path


def first_of(names: Collection[str]) -> str | None:
    """Return the graph by which a set is known: where its metadata is read."""
    places = {name: place for place, name in enumerate(FIRST_GRAPHS)}

    def place(name: str) -> tuple[int, str]:
        return places.get(posixpath.basename(name), len(places)), name

    return min(names, key=place, default=None)


def origin_of(metadata: dict[str, str], name: str) -> dict[str, str]:
    """Return a file's metadata when it names something that the file was made from.

    Raises:
        MetadataError: It names nothing.
    """
    if schema.HUB_ID not in metadata and not recorded_parents(metadata):
        msg = (
            f"{name} does not say where it came from; write it with inject_hub_metadata, or "
            "export with export_and_inject."
        )
        raise MetadataError(msg, path=name)
    return metadata


def recorded_parents(metadata: Mapping[str, str]) -> list[ParentRef]:
    """Return the artifacts that a file names as those it was made from; the model first."""
    url = metadata.get(schema.STORE_URL, "")
    found: dict[str, ParentRef] = {}
    for name in _NAMED_PARENTS:
        key, digest = (metadata.get(f"hfflows_{name}_{part}", "") for part in ("key", "digest"))
        if key:
            found[key] = ParentRef(key=key, digest=digest, kind=_kind_of(key), store_url=url)
    for item in _listed_parents(metadata.get(schema.PARENTS, "")):
        named, recorded = item.get("key"), item.get("digest")
        if isinstance(named, str) and isinstance(recorded, str) and named not in found:
            kind = str(item.get("kind") or _kind_of(named))
            found[named] = ParentRef(key=named, digest=recorded, kind=kind, store_url=url)
    return list(found.values())


def _listed_parents(text: str) -> Iterator[Mapping[str, Any]]:
    try:
        listed = json.loads(text) if text else []
    except ValueError:
        return
    for item in listed if isinstance(listed, list) else []:
        if isinstance(item, dict):
            yield item


def _kind_of(key: str) -> str:
    return keys.kind_of(key) if keys.is_reference(key) else "artifact"
