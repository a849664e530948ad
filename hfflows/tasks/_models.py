"""Tasks that save and load models and look at checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from hfflows import artifacts, checkpoint, keys
from hfflows.identity import RunIdentity
from hfflows.refs import ArtifactRef, StorageFormat
from hfflows.storage import open_store
from hfflows.tasks._identity import producer, run_identity
from hfflows.tasks._snapshot import TASK_OPTIONS
from hfflows.tasks._support import run_logger, show_ref

if TYPE_CHECKING:
    from hfflows.errors import IntegrityError


@task(name="save_model", **TASK_OPTIONS)
def save_model(
    path: str | Path,
    *,
    label: str,
    metadata: dict[str, Any] | None = None,
    parents: list[ArtifactRef] | None = None,
    storage_format: StorageFormat = "files",
    store: str | None = None,
) -> ArtifactRef:
    """Save a model directory or file and return its reference.

    Args:
        path: What to save, on the machine that runs this task.
        label: Name under which it is listed; may hold `/`.
        metadata: JSON values kept in the reference.
        parents: What it was made from.
        storage_format: `files` leaves objects that other tools can read.
        store: URL; `None` means `HFFLOWS_STORE_URL`.

    Raises:
        As `hfflows.save_artifact`.
    """
    ref = checkpoint.save_model(
        path,
        label=label,
        metadata=metadata,
        parents=parents or (),
        storage_format=storage_format,
        producer=producer(),
        store=open_store(store),
    )
    run_logger().info("Saved model %s, %s bytes", ref.key, f"{ref.size_bytes:,}")
    show_ref(ref, f"Model {label}", **(metadata or {}))
    return ref


@task(name="promote_model", **TASK_OPTIONS)
def promote_model(
    ref: ArtifactRef | dict[str, Any] | str,
    *,
    label: str,
    metadata: dict[str, Any] | None = None,
    alias: str | None = None,
    store: str | None = None,
) -> ArtifactRef:
    """Make a checkpoint a model, without moving a byte of it, and return the model's reference.

    Args:
        ref: The reference, its dict, or its key.
        label: Name under which it is listed; may hold `/`.
        metadata: JSON values added to what the checkpoint has, or put in their place.
        alias: Movable name that is pointed at the model: `production`.
        store: URL; `None` means the store the reference names.

    Raises:
        As `hfflows.promote_model`.
    """
    opened = artifacts.store_for(ref, None if store is None else open_store(store))
    model = checkpoint.promote_model(
        ref, label=label, metadata=metadata, producer=producer(), store=opened
    )
    if alias is not None:
        artifacts.set_alias(alias, model, store=opened)
    run_logger().info("Promoted %s to model %s", model.parents[0].key, model.key)
    show_ref(model, f"Model {label}", **(metadata or {}))
    return model


@task(name="load_model", **(TASK_OPTIONS | {"persist_result": False, "cache_policy": NO_CACHE}))
def load_model(ref: ArtifactRef | dict[str, Any] | str, path: str | Path | None = None) -> str:
    """Copy any artifact into a directory of this machine and return the directory.

    The result is neither persisted nor cached: the directory is this machine's alone.

    Args:
        ref: The reference, its dict, or its key.
        path: Absent or empty directory; `None` makes a temporary one.

    Raises:
        As `hfflows.load_artifact`.
    """
    return str(checkpoint.load_model(ref, path))


@task(name="list_checkpoints", persist_result=False, cache_policy=NO_CACHE)
def list_checkpoints(
    task: str,
    *,
    flow: str | None = None,
    key: str = "",
    name: str | None = None,
    limit: int = 100,
    store: str | None = None,
) -> list[ArtifactRef]:
    """Return the checkpoints of a task from all its runs, newest first.

    One that cannot be read is left out, with a warning in the log.

    Args:
        task: Name of the task that saved them.
        flow: Name of its flow; `None` means the running one.
        key: The `key` it saved under.
        name: Only those saved under this name.
        limit: At most so many.
        store: URL; `None` means `HFFLOWS_STORE_URL`.
    """
    me = run_identity(key="")
    lineage = RunIdentity(me.namespace, flow or me.flow, task, key)
    opened = open_store(store)
    found = (info.key for info in opened.list(keys.lineage_prefix(lineage)))
    named = [k for k in found if name is None or keys.parse_checkpoint(k).name == name]
    log = run_logger()  # here: the threads that read have no run

    def pass_over(error: IntegrityError) -> None:
        log.warning("A checkpoint is unreadable and was passed over: %s", error)

    return list(artifacts.read_refs(named[:limit], on_damage=pass_over, store=opened))
