"""Models by reference: what training hands on to evaluation, export and other flows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfflows.artifacts import load_artifact, promote_artifact, save_artifact

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hfflows.artifacts import RefLike
    from hfflows.refs import ArtifactRef, Producer, StorageFormat
    from hfflows.storage import Store

MODEL_KIND = "model"


def save_model(
    path: str | os.PathLike[str],
    *,
    label: str,
    metadata: Mapping[str, Any] | None = None,
    parents: Sequence[RefLike] = (),
    storage_format: StorageFormat = "files",
    producer: Producer | None = None,
    store: Store | None = None,
) -> ArtifactRef:
    """Save a model file or directory and return its reference.

    Args:
        path: What to save.
        label: Name under which it is listed; may hold `/`.
        metadata: JSON values kept in the reference: metrics, hyperparameters.
        parents: The snapshot and the checkpoint it was made from.
        storage_format: `files` leaves objects that other tools can read.
        producer: Who saves it.
        store: Where to; `None` means `open_store()`.

    Raises:
        As `hfflows.save_artifact`.
    """
    return save_artifact(
        path,
        kind=MODEL_KIND,
        name=label,
        metadata=metadata,
        parents=parents,
        storage_format=storage_format,
        producer=producer,
        store=store,
    )


def promote_model(
    ref: RefLike,
    *,
    label: str,
    metadata: Mapping[str, Any] | None = None,
    parents: Sequence[RefLike] = (),
    producer: Producer | None = None,
    store: Store | None = None,
) -> ArtifactRef:
    """Make a checkpoint, or any artifact, a model; no byte of it is moved.

    The model's first parent is what it was, and it stays when that is deleted. Give it a
    movable name with `hfflows.set_alias("production", model)`.

    Args:
        ref: The reference, its dict, or its key.
        label: Name under which it is listed; may hold `/`.
        metadata: JSON values added to what `ref` has, or put in their place.
        parents: What it was made from besides `ref`: the snapshot it began with.
        producer: Who promotes it.
        store: Where; `None` means the store the reference names.

    Raises:
        As `hfflows.promote_artifact`.
    """
    return promote_artifact(
        ref,
        kind=MODEL_KIND,
        name=label,
        metadata=metadata,
        parents=parents,
        producer=producer,
        store=store,
    )


def load_model(
    ref: RefLike, path: str | os.PathLike[str] | None = None, *, store: Store | None = None
) -> Path:
    """Copy a model, checkpoint, export or snapshot into a directory, inside a run or not.

    Args:
        ref: The reference, its dict, or its key.
        path: Absent or empty directory; `None` makes a temporary one.
        store: Where from; `None` means the store the reference names.

    Raises:
        As `hfflows.load_artifact`.
    """
    return load_artifact(ref, path, store=store)
