"""What `test_distributed.py` runs in processes of their own, started from inside a task.

python -m tests.checkpoint.in_subprocess alone
torchrun … -m tests.checkpoint.in_subprocess together
"""

import os
import sys

from hfflows.checkpoint import Checkpointer, agree_on_latest


def alone():
    """Count one further than the last checkpoint."""
    with Checkpointer.from_environment() as checkpointer:
        state = checkpointer.directory / "count"
        count = int(state.read_text()) + 1 if checkpointer.is_loaded else 1
        state.write_text(str(count))
        checkpointer.save(name="alone", metadata={"count": count})


def together():
    """The same, in shards; each rank also saves something of its own at the same moment."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    from hfflows.checkpoint.dcp import StoreReader, StoreWriter

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo")
    checkpointer = Checkpointer.from_environment(load_policy="fresh")
    identity, store = checkpointer.identity, checkpointer.store
    state = {"counts": torch.zeros(3, dtype=torch.int64)}
    ref = agree_on_latest(checkpointer)
    if ref is not None:
        dcp.load(state, storage_reader=StoreReader(ref, store=store))
    state["counts"] += 1
    own = Checkpointer(identity, load_policy="none", store=store)
    for _ in range(3):
        own.save(__file__, name=f"rank-{dist.get_rank()}", latest=False)
    metadata = {"counts": state["counts"].tolist()}
    dcp.save(
        state, storage_writer=StoreWriter(identity, name="shards", metadata=metadata, store=store)
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    {"alone": alone, "together": together}[sys.argv[1]]()
