"""One checkpoint to shards of M ranks: the reader that `torch.distributed.checkpoint` calls.

Each rank reads the stored items that overlap its own shards, by byte ranges of verified
segments, and nothing else of the checkpoint.
"""

# ruff: noqa: TID253 - this module is imported only by `hfflows.checkpoint.dcp`, on use

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from hfflows.artifacts import FileRange, read_ranges, read_tree, resolve_ref, store_for
from hfflows.checkpoint._dcp_metadata import METADATA_PATH, read_metadata
from hfflows.errors import IntegrityError, SettingsError

if TYPE_CHECKING:
    import io
    import os

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

    from hfflows.artifacts import RefLike, Tree
    from hfflows.storage import Store


class StoreReader(StorageReader):  # type: ignore[misc] # torch is untyped here
    """Loads a sharded state from a checkpoint; pass it as `storage_reader`.

    Made on every rank, with the same reference on each (`agree_on_latest`). Reads what a
    `StoreWriter` saved on any number of ranks, and any checkpoint of a directory that torch's
    `FileSystemWriter` wrote.

    `dcp.load` writes into the tensors that it is given as it goes: when it fails, they hold a
    mixture, and must be loaded again or made anew.

    Args:
        ref: The checkpoint's reference, its dict, or its key.
        store: Where from; `None` means the store the reference names.
    """

    def __init__(self, ref: RefLike, *, store: Store | None = None) -> None:
        super().__init__()
        self._ref = ref
        self._store = store_for(ref, store)
        self._tree: Tree | None = None
        self._places: dict[Any, Any] = {}

    def reset(
        self, checkpoint_id: str | os.PathLike[str] | None = None
    ) -> None:  # docstring inherited
        if checkpoint_id is not None:
            self._ref = str(checkpoint_id)
        self._tree = None

    def read_metadata(self) -> Metadata:
        """Return what the checkpoint holds.

        Raises:
            ArtifactNotFoundError: Never saved, or deleted.
            SettingsError: It is not a checkpoint of `torch.distributed.checkpoint`.
            IntegrityError: Its bytes are missing or not what was saved.
        """
        ref = resolve_ref(self._ref, store=self._store)
        self._tree = read_tree(ref, store=self._store)
        sizes = {file.path: file.size_bytes for file in self._tree.files}
        if METADATA_PATH not in sizes:
            msg = (
                f"{ref.key} has no {METADATA_PATH}: it was not saved by "
                "torch.distributed.checkpoint. Load it with Checkpointer.load."
            )
            raise SettingsError(msg, key=ref.key)
        whole = FileRange(METADATA_PATH, 0, sizes[METADATA_PATH])
        ((_number, stream),) = read_ranges(self._tree, [whole], store=self._store)
        metadata = read_metadata(stream, key=ref.key)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = secrets.token_hex(16)
        return metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:  # docstring inherited
        del is_coordinator, args, kwargs
        self._places = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:  # docstring inherited
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:  # docstring inherited
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        """Read what this rank needs, some of it ahead, into the tensors it goes to.

        Raises:
            IntegrityError: Bytes are missing or not what was saved; names file and object.
        """
        if self._tree is None:
            self.read_metadata()
        assert self._tree is not None  # noqa: S101 - read_metadata sets it or raises
        items = sorted(plan.items, key=self._place)
        wanted = [FileRange(*self._place(item)) for item in items]
        for number, stream in read_ranges(self._tree, wanted, store=self._store):
            _hand_over(items[number], stream, planner)
        done: Any = Future()
        done.set_result(None)
        return done

    def _place(self, item: ReadItem) -> tuple[str, int, int]:
        info = self._places[item.storage_index]
        if getattr(info, "transform_descriptors", None):
            msg = f"{info.relative_path} was written through stream extensions, which are not read."
            raise SettingsError(msg, path=info.relative_path)
        return info.relative_path, info.offset, info.length

    @classmethod
    def validate_checkpoint_id(
        cls, checkpoint_id: str | os.PathLike[str]
    ) -> bool:  # docstring inherited
        del checkpoint_id
        return False  # never chosen by an id alone: a key does not say which store


def _hand_over(item: ReadItem, stream: io.BytesIO, planner: LoadPlanner) -> None:
    """Give a stored item to the planner, or the part of it that the item asks for."""
    if item.type == LoadItemType.BYTE_IO:
        planner.load_bytes(item, stream)
        return
    tensor = torch.load(stream, map_location="cpu", weights_only=True)
    for dimension, (begin, length) in enumerate(
        zip(item.storage_offsets, item.lengths, strict=True)
    ):
        tensor = tensor.narrow(dimension, begin, length)
    target = planner.resolve_tensor(item).detach()
    if target.size() != tensor.size():
        msg = (
            f"{item.storage_index.fqn}: the checkpoint has a piece of size {tuple(tensor.size())} "
            f"for one of {tuple(target.size())}."
        )
        raise IntegrityError(msg, path=item.storage_index.fqn)
    target.copy_(tensor)
    planner.commit_tensor(item, target)
