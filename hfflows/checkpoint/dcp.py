"""`torch.distributed.checkpoint` on the store: shards of N ranks, one checkpoint, one commit.

    checkpointer = Checkpointer.from_environment()          # told by the task that started us
    writer = StoreWriter(checkpointer.identity, metadata={"step": step}, store=checkpointer.store)
    saved = dcp.save(state, storage_writer=writer)
    ref = reference_of(saved, store=checkpointer.store)     # on every rank

    ref = load_latest(state, checkpointer)                  # the newest that is whole, or None
    dcp.load(state, storage_reader=StoreReader(ref, store=checkpointer.store))      # any other

What is saved is an artifact like any other: listed, verified, pruned, copied; loaded as a
directory, it is what torch's own `FileSystemReader` reads. Needs torch.
"""

from __future__ import annotations

from hfflows.errors import MissingDependencyError

try:
    from hfflows.checkpoint._dcp_reader import StoreReader
    from hfflows.checkpoint._dcp_resume import load_latest
    from hfflows.checkpoint._dcp_writer import StoreWriter, reference_of
except ModuleNotFoundError as error:
    msg = "hfflows.checkpoint.dcp needs torch: pip install torch."
    raise MissingDependencyError(msg, package="torch") from error

from hfflows.checkpoint._distributed import agree_on_latest

__all__ = ["StoreReader", "StoreWriter", "agree_on_latest", "load_latest", "reference_of"]
