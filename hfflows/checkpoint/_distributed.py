"""Checkpoints of several processes: who they save for, and parts that commit together.

A subprocess or a rank of `torchrun` is told by its environment for which task it saves
(`Checkpointer.environment`, `Checkpointer.from_environment`). Ranks that each save on their
own never meet: every checkpoint has a key of its own. Ranks whose parts belong together save
with `save_together`, or through `hfflows.checkpoint.dcp`: one commit, or none.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hfflows import keys
from hfflows.artifacts import begin_parted_save, scan, write_part
from hfflows.checkpoint._writer import newest_id, retain
from hfflows.errors import HfflowsError, MissingDependencyError, SettingsError
from hfflows.identity import inherited_store_url
from hfflows.refs import ArtifactRef, Producer
from hfflows.storage import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from hfflows.artifacts import PartedSave, RetentionPolicy, TransferReport
    from hfflows.checkpoint._checkpointer import Checkpointer
    from hfflows.identity import RunIdentity
    from hfflows.storage import Store

logger = logging.getLogger("hfflows.checkpoint")

Result = TypeVar("Result")


def inherited_store() -> Store:
    """Return the store that the process which started this one saves to.

    Credentials are this process's own, from its environment.

    Raises:
        SettingsError: No identity was handed over, or the store is in that process's memory.
    """
    url = inherited_store_url()
    if url.startswith("memory:"):
        msg = (
            f"The process that started this one saves to {url}, which is in its own memory. Use "
            "a store that both can reach, file:///path at least, or pass store=."
        )
        raise SettingsError(msg, store_url=url)
    return open_store(url or None)


def save_together(
    path: str | os.PathLike[str],
    *,
    identity: RunIdentity,
    name: str = "checkpoint",
    metadata: Mapping[str, Any] | None = None,
    latest: bool = True,
    retention: RetentionPolicy | None = None,
    report: TransferReport | None = None,
    group: Any = None,
    store: Store | None = None,
) -> ArtifactRef:
    """Save what each rank has at `path` as one checkpoint, and return it on every rank.

    Every rank of the group calls it. The checkpoint holds all their files under the paths
    that they have; a file that several ranks hold alike is there once. It is committed when
    the last rank has sent its part; until then, and when one fails or dies, nothing is.

    Args:
        path: This rank's file or directory; it must rest while it is read.
        identity: Who writes; `name`, `metadata` and `latest` too are those of the first rank.
        name: Name to list it by.
        metadata: JSON values kept with it.
        latest: Whether load policies may pick it.
        retention: Which checkpoints of this lineage and name to keep.
        report: Filled with what this rank moved.
        group: A `torch.distributed` process group; `None` means all ranks.
        store: Where to; `None` means `open_store()`.

    Raises:
        SettingsError: No process group, or two ranks have different files under one path.
        HfflowsError: Another rank failed; its words are in the message. Nothing is visible.
        As `hfflows.save_artifact`.
    """
    store, ranks = store or open_store(), Ranks(group)
    save: PartedSave | None = None

    def begin() -> None:
        nonlocal save
        save = begin_save(identity, name=name, metadata=metadata, latest=latest, store=store)

    def commit() -> ArtifactRef:
        assert save is not None  # noqa: S101 - where `begin` ran, this runs
        return save.commit(parts)

    try:
        ranks.decide(begin)
        parts = ranks.gather(lambda: write_part(scan(path), store=store, report=report))
        ref = ranks.decide(commit)
    finally:
        if save is not None:
            save.give_up()
    if ranks.is_first:
        retain(ref, retention, store=store, log=logger)
    return ref


def agree_on_latest(checkpointer: Checkpointer, *, group: Any = None) -> ArtifactRef | None:
    """Return the checkpoint to resume from, the same on every rank of the group.

    Ranks that each ask for themselves may see different ones, while another attempt saves. A
    process without a group decides for itself.

    Raises:
        As `Checkpointer.latest` on the first rank.
    """
    return Ranks(group, may_be_alone=True).decide(checkpointer.latest)


# What `hfflows.checkpoint.dcp` shares -------------------------------------------------------


def begin_save(
    identity: RunIdentity,
    *,
    name: str,
    metadata: Mapping[str, Any] | None,
    latest: bool,
    store: Store,
) -> PartedSave:
    """Announce a checkpoint that follows the newest of its lineage."""
    key = keys.checkpoint(identity, name, id=keys.new_id(after=newest_id(identity, store)))
    return begin_parted_save(
        key=key.build(),
        kind=keys.CHECKPOINT_KIND,
        name=name,
        metadata=metadata,
        producer=Producer.of(identity),
        index_keys=key.latest() if latest else (),
        store=store,
    )


# Ranks --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a rank tells the others when it fails: they must not wait for it."""

    rank: int
    message: str
    kind: type[HfflowsError]

    @classmethod
    def of(cls, error: Exception, rank: int) -> _Failure:
        kind = type(error) if isinstance(error, HfflowsError) else HfflowsError
        return cls(rank, str(error) or repr(error), kind)

    def to_error(self) -> HfflowsError:
        msg = f"Rank {self.rank} failed, so nothing was saved or loaded: {self.message}"
        return self.kind(msg, rank=self.rank)


class Ranks:
    """The ranks of a process group, which go on together or fail together.

    A rank that is killed breaks the collective that the others are in: they fail with the
    backend's own error, at once where it sees the connection close, and at the group's
    timeout otherwise.

    Args:
        group: A `torch.distributed` process group; `None` means all ranks.
        may_be_alone: Without a process group, be the only rank instead of refusing.
    """

    def __init__(self, group: Any = None, *, may_be_alone: bool = False) -> None:
        try:
            import torch.distributed as dist
        except ImportError as error:
            msg = "Ranks that save together need torch: pip install torch."
            raise MissingDependencyError(msg, package="torch") from error
        self._dist = dist
        self._group = group
        self.rank, self.size, self._first = 0, 1, 0
        if not (dist.is_available() and dist.is_initialized()):
            if may_be_alone:
                return
            msg = (
                "There is no process group: call torch.distributed.init_process_group first, or "
                "save with Checkpointer.save from a single process."
            )
            raise SettingsError(msg)
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._first = dist.get_global_rank(group, 0) if group is not None else 0

    @property
    def is_first(self) -> bool:
        """Whether this rank decides."""
        return self.rank == 0

    def decide(self, function: Callable[[], Result]) -> Result:
        """Call a function on the first rank and return its result on every one.

        Raises:
            HfflowsError: It failed; on the first rank, its own error.
        """
        if not self.is_first:
            received: Result = _unwrapped(self._broadcast(None))
            return received
        try:
            result = function()
        except Exception as error:
            self._broadcast(_Failure.of(error, self.rank))
            raise
        self._broadcast(result)
        return result

    def gather(self, function: Callable[[], Result]) -> list[Result]:
        """Call a function on every rank and return all results, in the order of the ranks.

        Raises:
            HfflowsError: It failed on another rank; on that rank, its own error.
        """
        try:
            result = function()
        except Exception as error:
            self._all_gather(_Failure.of(error, self.rank))
            raise
        return [_unwrapped(outcome) for outcome in self._all_gather(result)]

    def _broadcast(self, outcome: object) -> Any:
        if self.size == 1:
            return outcome
        held = [outcome]
        self._dist.broadcast_object_list(held, src=self._first, group=self._group)
        return held[0]

    def _all_gather(self, outcome: object) -> list[Any]:
        outcomes: list[Any] = [outcome] * self.size
        if self.size == 1:
            return outcomes
        self._dist.all_gather_object(outcomes, outcome, group=self._group)
        return outcomes


def _unwrapped(outcome: Any) -> Any:
    if isinstance(outcome, _Failure):
        raise outcome.to_error()
    return outcome
