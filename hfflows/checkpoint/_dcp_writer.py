"""Shards of N ranks to one checkpoint: the writer that `torch.distributed.checkpoint` calls.

    every rank               the coordinator              every rank        the coordinator
    plans what it has  ──→   announces the save     ──→   sends its    ──→  writes .metadata,
                             (prepare_global_plan)        items             commits (finish)

A rank's items become one file, `__<rank>_0.distcp`, as torch's own `FileSystemWriter` lays it
out. Only one reference is written, last: a rank that dies leaves nothing to list.
"""

# ruff: noqa: TID253 - this module is imported only by `hfflows.checkpoint.dcp`, on use

from __future__ import annotations

import math
import pickle
import weakref
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from hfflows.artifacts import Tree, new_file, resolve_ref
from hfflows.checkpoint._dcp_metadata import METADATA_PATH
from hfflows.checkpoint._distributed import begin_save, logger
from hfflows.checkpoint._writer import retain
from hfflows.errors import SettingsError
from hfflows.storage import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem

    from hfflows.artifacts import NewFile, PartedSave, RetentionPolicy, TransferReport
    from hfflows.identity import RunIdentity
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store


@dataclass(frozen=True, slots=True)
class _Shard:
    """Where an item lies, and the whole file of its rank: both travel to the coordinator."""

    info: Any
    part: Tree


class StoreWriter(StorageWriter):  # type: ignore[misc] # torch is untyped here
    """Saves a sharded state as one checkpoint; pass it as `storage_writer`.

    Made on every rank, for one save or for many, of which one is under way at a time. With
    `dcp.async_save` too: in a thread, or in a process of its own, which opens the store anew,
    by its URL and with what the environment says.

    Args:
        identity: Who writes: `checkpointer.identity`.
        name: Name to list it by; a `checkpoint_id` given to `dcp.save` takes its place.
        metadata: JSON values kept with it: the step, the loss.
        latest: Whether load policies may pick it.
        retention: Which checkpoints of this lineage and name to keep, applied after a commit.
        report: Added to, with what this rank sends.
        store: Where to: `checkpointer.store`; `None` means `open_store()`.
    """

    def __init__(
        self,
        identity: RunIdentity,
        *,
        name: str = "checkpoint",
        metadata: Mapping[str, Any] | None = None,
        latest: bool = True,
        retention: RetentionPolicy | None = None,
        report: TransferReport | None = None,
        store: Store | None = None,
    ) -> None:
        super().__init__()
        self.identity = identity
        self.name = name
        self.metadata = metadata
        self._latest = latest
        self._retention = retention
        self._report = report
        self._store = store or open_store()
        self._save: PartedSave | None = None
        self._at_end: Any = None

    def reset(
        self, checkpoint_id: str | os.PathLike[str] | None = None
    ) -> None:  # docstring inherited
        if checkpoint_id is not None:
            self.name = str(checkpoint_id)

    def set_up_storage_writer(
        self, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:  # docstring inherited
        del is_coordinator, args
        if not kwargs.get("use_collectives", True):
            msg = (
                "use_collectives=False lets each rank commit on its own, which would be a "
                "checkpoint of a part. Leave it out, or save each rank's part with "
                "Checkpointer.save."
            )
            raise SettingsError(msg)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:  # docstring inherited
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Announce the save, so that no collection cuts under the ranks, and name their files."""
        self._give_up()
        self._save = begin_save(
            self.identity,
            name=self.name,
            metadata=self.metadata,
            latest=self._latest,
            store=self._store,
        )
        # A save that fails on another rank never comes back here: when this writer goes, the
        # announcement does. Not at exit, where the store may be unreachable.
        self._at_end = weakref.finalize(self, self._save.give_up)
        self._at_end.atexit = False
        return [replace(plan, storage_data=f"__{rank}_0.distcp") for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        """Send this rank's items; the largest first, since they have objects of their own."""
        written: list[Any] = []
        if plan.items:
            path = str(plan.storage_data)
            with new_file(path, store=self._store, report=self._report) as file:
                for item in sorted(plan.items, key=_size_bytes, reverse=True):
                    begin = file.tell()
                    _write(file, item, planner)
                    info = _StorageInfo(path, begin, file.tell() - begin)
                    written.append(WriteResult(item.index, info.length, info))
                part = Tree((file.finish(),))
            written[0] = replace(written[0], storage_data=_Shard(written[0].storage_data, part))
        done: Any = Future()
        done.set_result(written)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit what all ranks have sent: the one moment in which the checkpoint appears."""
        save = self._save
        if save is None:
            msg = "finish() was called before prepare_global_plan(); no save is under way."
            raise SettingsError(msg)
        parts, places = [], {}
        for result in chain.from_iterable(results):
            place = result.storage_data
            if isinstance(place, _Shard):
                parts.append(place.part)
                place = place.info
            places[result.index] = place
        metadata.version = CURRENT_DCP_VERSION
        metadata.storage_data = places
        metadata.storage_meta = StorageMeta(checkpoint_id=save.key)
        try:
            with new_file(METADATA_PATH, store=self._store, report=self._report) as file:
                pickle.dump(metadata, file)
                parts.append(Tree((file.finish(),)))
            ref = save.commit(parts)
        finally:
            self._give_up()
        retain(ref, self._retention, store=self._store, log=logger)

    @classmethod
    def validate_checkpoint_id(
        cls, checkpoint_id: str | os.PathLike[str]
    ) -> bool:  # docstring inherited
        del checkpoint_id
        return False  # never chosen by an id alone: it needs an identity

    def __getstate__(self) -> dict[str, Any]:
        """Return what the process of an asynchronous save gets: where to save, not the secrets."""
        url = self._store.url
        if url.startswith("memory:"):
            msg = f"Another process cannot save to {url}, which is in this one's memory."
            raise SettingsError(msg, store_url=url)
        # Nor what is under way here, and a report that nobody would read there.
        return self.__dict__ | {"_store": url, "_save": None, "_at_end": None, "_report": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_store": open_store(state["_store"])})

    def _give_up(self) -> None:
        save, self._save = self._save, None
        if save is not None:
            self._at_end.detach()
            save.give_up()


def reference_of(saved: Metadata, *, store: Store | None = None) -> ArtifactRef:
    """Return the reference of what `dcp.save`, or the future of `dcp.async_save`, returned.

    Works on every rank, whichever committed.

    Raises:
        SettingsError: It was not saved by a `StoreWriter`.
        ArtifactNotFoundError: It was deleted since.
    """
    key = getattr(saved.storage_meta, "checkpoint_id", None)
    if not isinstance(key, str):
        msg = "This was not saved through a StoreWriter; it has no reference."
        raise SettingsError(msg)
    return resolve_ref(key, store=store or open_store())


def _size_bytes(item: WriteItem) -> int:
    if item.tensor_data is None:
        return 0
    size = math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize
    return int(size)


def _write(file: NewFile, item: WriteItem, planner: SavePlanner) -> None:
    """Write an item as torch's `FileSystemWriter` does, so that its reader reads it too."""
    data = planner.resolve_data(item)
    if item.type == WriteItemType.BYTE_IO:
        content = data.getbuffer()
        file.begin_item(len(content))
        file.write(content)
        return
    tensor = data.detach().cpu()
    if tensor.untyped_storage().size() != tensor.nbytes:
        tensor = tensor.clone()  # a view would take its whole storage along
    file.begin_item(tensor.nbytes)
    torch.save(tensor, file)
