"""The newest whole checkpoint into a sharded state, whatever is broken."""

# ruff: noqa: TID253 - this module is imported only by `hfflows.checkpoint.dcp`, on use

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from hfflows.checkpoint._dcp_reader import StoreReader
from hfflows.checkpoint._distributed import Ranks
from hfflows.checkpoint._resume import BROKEN, mark_broken
from hfflows.errors import IntegrityError

if TYPE_CHECKING:
    from hfflows.checkpoint._checkpointer import Checkpointer
    from hfflows.refs import ArtifactRef

logger = logging.getLogger("hfflows.checkpoint")


def load_latest(
    state: dict[str, Any], checkpointer: Checkpointer, *, planner: Any = None, group: Any = None
) -> ArtifactRef | None:
    """Load what to resume from into a sharded state, on every rank, and return it.

    A checkpoint that is broken for one rank is marked, so that no later attempt tries it, and
    all ranks load the next older one.

    Args:
        state: As for `dcp.load`; tensors are filled in place.
        checkpointer: Whose checkpoints; its `load_policy` says which.
        planner: As for `dcp.load`.
        group: A `torch.distributed` process group; `None` means all ranks.

    Returns:
        The loaded checkpoint; `None` when there is nothing to resume from, and `state` is as
        it was.

    Raises:
        IntegrityError: The last one that was left is broken too, and `state` holds a mixture.
        CheckpointException: A rank failed for another reason, such as a store out of reach.
    """
    ranks = Ranks(group, may_be_alone=True)
    damage: Exception | None = None
    while (ref := ranks.decide(lambda: _newest_readable(checkpointer))) is not None:
        reader = StoreReader(ref, store=checkpointer.store)
        try:
            dcp.load(state, storage_reader=reader, planner=planner, process_group=group)
        except CheckpointException as error:
            causes = [cause for cause, _trace in error.failures.values()]
            if not all(isinstance(cause, BROKEN) for cause in causes):
                raise
            damage = causes[0]
            ranks.decide(_marking(ref, damage, checkpointer))
        else:
            return ref
    if damage is not None:
        msg = f"No whole checkpoint is left, and the state holds a mixture; make it anew: {damage}"
        raise IntegrityError(msg) from damage
    return None


def _newest_readable(checkpointer: Checkpointer) -> ArtifactRef | None:
    """Return the newest checkpoint whose own description can be read."""
    if checkpointer.load_policy == "none":
        return None
    while (ref := checkpointer.latest()) is not None:
        try:
            StoreReader(ref, store=checkpointer.store).read_metadata()
        except BROKEN as error:
            mark_broken(ref, error, store=checkpointer.store, log=logger)
        else:
            return ref
    return None


def _marking(ref: ArtifactRef, error: Exception, checkpointer: Checkpointer) -> Any:
    return lambda: mark_broken(ref, error, store=checkpointer.store, log=logger)
