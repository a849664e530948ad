"""What the metadata of an ONNX file say of where its config is, and what the store has of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfflows.artifacts import resolve_ref
from hfflows.errors import ArtifactNotFoundError, IntegrityError, MetadataError, SettingsError
from hfflows.export._onnx import _forms as forms
from hfflows.export._onnx import _schema as schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

_COMMIT = re.compile(r"[0-9a-f]{7,40}")  # earlier writers cut it short


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a file says that its config is."""

    kind: str
    """`hub`, or `local` for the exported model's artifact."""
    name: str
    """Repo id, or key."""
    version: str
    """Commit, or digest."""
    subfolder: str
    held: tuple[str, str] | None
    """Key and digest of an artifact that may hold it, too."""
    store_url: str
    """Of the store that has it, as the file says; only told, not opened: a file from elsewhere
    must not decide what this process connects to."""


def origin_of(metadata: Mapping[str, str], onnx_path: object) -> Origin:
    """Return where the entries of a file lead to.

    Raises:
        MetadataError: Nowhere, or to a place that is none.
    """
    key, digest = metadata.get(schema.MODEL_KEY), metadata.get(schema.MODEL_DIGEST)
    kind = metadata.get(schema.MODEL_TYPE)
    names = {
        "hub": (metadata.get(schema.HUB_ID), metadata.get(schema.HUB_REVISION)),
        "local": (key, digest),
    }
    name, version = names.get(kind or "", (None, None))
    if not (kind and name and version):
        msg = (
            f"{onnx_path} does not say where its config is; write it with "
            "inject_hub_metadata, or export with export_and_inject."
        )
        raise MetadataError(msg, path=str(onnx_path))
    if kind == "hub" and not _COMMIT.fullmatch(version):
        msg = f"{onnx_path} names no commit of {name} but {version!r}; inject its metadata again."
        raise MetadataError(msg, path=str(onnx_path))
    subfolder = metadata.get(schema.SUBFOLDER, "")
    try:
        subfolder and forms.FOLDER.value(subfolder)
    except ValueError as error:
        msg = f"{onnx_path}: {schema.SUBFOLDER}={subfolder!r} is not {forms.FOLDER.said}."
        raise MetadataError(msg, path=str(onnx_path)) from error
    held = (key, digest) if key and digest else None
    store_url = metadata.get(schema.STORE_URL, "its store")
    return Origin(kind, name, version, subfolder, held, store_url)


def held_artifact(origin: Origin, store: Store) -> ArtifactRef | None:
    """Return the snapshot that the file was exported from, if the store has it."""
    if origin.held is None:
        return None
    key, digest = origin.held
    try:
        ref = resolve_ref(key, store=store)
    except (ArtifactNotFoundError, IntegrityError, SettingsError):
        return None  # of another store, or collected: there is the commit to go by
    claims = (ref.digest, ref.metadata.get("repo_id"), ref.metadata.get("commit_hash"))
    return ref if claims == (digest, origin.name, origin.version) else None


def local_model(origin: Origin, store: Store) -> ArtifactRef:
    """Return the exported model's reference.

    Raises:
        ArtifactNotFoundError: It is not in this store.
        IntegrityError: It holds other files than it did.
    """
    key = origin.name
    try:
        ref = resolve_ref(key, store=store)
    except ArtifactNotFoundError as error:
        msg = (
            f"{store.url} has no {key}, from which the file was exported; it was saved in "
            f"{origin.store_url}: pass HubConfigLoader(open_store(…)) with that."
        )
        raise ArtifactNotFoundError(msg, key=key, store_url=store.url) from error
    if ref.digest != origin.version:
        msg = f"{key} in {store.url} holds other files than the file was exported from."
        raise IntegrityError(msg, key=key)
    return ref
