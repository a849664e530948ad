"""Processes of one process group, for tests: how they are started and reaped, what they run.

They are forked from a server that has imported torch, so that one costs milliseconds; each
has its own store, connection and group, as on a machine of its own.
"""

import contextlib
import os
import signal
from datetime import timedelta
from typing import NamedTuple

from hfflows.artifacts import TransferReport, read_tree
from hfflows.checkpoint import Checkpointer, save_together
from hfflows.identity import RunIdentity
from hfflows.storage import open_store
from hfflows.testing._store_wrapper import StoreWrapper
from tests.processes import PROCESSES

ME = RunIdentity("team", "retrain", "train", run="run-1")
PATIENCE = 60.0


class Outcome(NamedTuple):
    """What became of one rank: what it returned, or `Type: message` of its error.

    `by_rank` has those of all ranks, where `torch.distributed.checkpoint` gathered them.
    """

    value: object = None
    error: str = ""
    by_rank: dict | None = None
    exit_code: int | None = None


def run_ranks(size, function, *args, rendezvous):
    """Run `function(rank, *args)` in so many processes and return their outcomes."""
    pipes, processes, outcomes = [], [], []
    try:
        for rank in range(size):
            mine, theirs = PROCESSES.Pipe(duplex=False)
            process = PROCESSES.Process(
                target=_main, args=(theirs, rank, size, str(rendezvous), function, args)
            )
            process.start()
            theirs.close()
            pipes.append(mine)
            processes.append(process)
        outcomes += map(_received, pipes)
    finally:
        for process in processes:
            process.join(5 if len(outcomes) == size else 0)
            process.kill()
            process.join()
    return [
        outcome._replace(exit_code=process.exitcode)
        for outcome, process in zip(outcomes, processes, strict=True)
    ]


def _received(pipe):
    with contextlib.suppress(EOFError):
        if pipe.poll(PATIENCE):
            return pipe.recv()
    return Outcome(error="Silence: it ended without a word")


def _main(pipe, rank, size, rendezvous, function, args):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=20),
        )
    try:
        outcome = Outcome(function(rank, *args))
    except BaseException as error:  # noqa: BLE001 - whoever started the rank judges it
        failures = getattr(error, "failures", {})
        outcome = Outcome(
            error=_text(error),
            by_rank={rank: _text(cause) for rank, (cause, _) in failures.items()},
        )
    pipe.send(outcome)
    pipe.close()


def _text(error):
    return f"{type(error).__name__}: {error}"


# Stores ------------------------------------------------------------------------------------


class Deadly(StoreWrapper):
    """A store whose process is killed at the n-th call of a method about a prefix."""

    def __init__(self, store, method, prefix, call):
        super().__init__(store)
        self._deadly = (method, prefix)
        self._left = call

    def _call(self, method, key, function):
        if method == self._deadly[0] and key.startswith(self._deadly[1]):
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)
        return function()


class Counting(StoreWrapper):
    """A store that counts the bytes of ranged reads."""

    read_bytes = 0

    def _call(self, method, key, function):
        result = function()
        if method == "get_range":
            self.read_bytes += memoryview(result).nbytes
        return result


def opened(where):
    url, options = where
    return open_store(url, **options)


# States ------------------------------------------------------------------------------------


def full_state(seed):
    """Return the whole of the state that ranks share out."""
    import torch

    random, same = (torch.Generator().manual_seed(number) for number in (seed, 99))
    state = {
        "large": torch.rand(1024, 1024, generator=random),
        "frozen": torch.rand(1024, 512, generator=same),
        "columns": torch.rand(6, 8, generator=random),
        "uneven": torch.rand(7, 3, generator=random).to(torch.bfloat16),
        "scalar": torch.tensor(float(seed)),
        "replicated": torch.rand(5, generator=random),
    }
    return {"model": state, "step": seed, "names": [f"a{seed}", "b"]}


def shards_of(full, size):
    """Return the state as a rank of so many holds it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    if size == 1:
        return full
    mesh = init_device_mesh("cpu", (size,))
    how = {"large": Shard(0), "frozen": Shard(0), "columns": Shard(1), "uneven": Shard(0)}
    model = {
        name: distribute_tensor(tensor, mesh, [how.get(name, Replicate())])
        for name, tensor in full["model"].items()
    }
    return {**full, "model": model}


def empty_state(size):
    full = full_state(0)
    model = {name: tensor.clone().zero_() for name, tensor in full["model"].items()}
    return shards_of({"model": model, "step": -1, "names": []}, size)


def differences(state, seed):
    """Return the names of what is not as `full_state(seed)` has it."""
    import torch

    expected = full_state(seed)
    wrong = [name for name in ("step", "names") if state[name] != expected[name]]
    for name, tensor in state["model"].items():
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if not torch.equal(whole, expected["model"][name]):
            wrong.append(name)
    return wrong


def world_size():
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


# What ranks do -----------------------------------------------------------------------------


def save(rank, where, seeds, deadly=None, retention=None):
    """Save a state for each seed; return their references' keys and the bytes sent for each.

    `deadly` is (rank, method, prefix, n): when that rank dies, while it saves the last one.
    """
    import torch.distributed.checkpoint as dcp

    from hfflows.checkpoint.dcp import StoreWriter, reference_of

    store, saved = opened(where), []
    for seed in seeds:
        if deadly and seed == seeds[-1] and rank == deadly[0]:
            store = Deadly(store, *deadly[1:])
        report = TransferReport()
        how = {"metadata": {"seed": seed}, "report": report, "store": store}
        writer = StoreWriter(ME, retention=retention, **how)
        metadata = dcp.save(shards_of(full_state(seed), world_size()), storage_writer=writer)
        saved.append((reference_of(metadata, store=store).key, report.bytes_sent))
    return saved


def save_without_collectives(rank, where):
    import torch.distributed.checkpoint as dcp

    from hfflows.checkpoint.dcp import StoreWriter

    dcp.save(
        {"step": 1}, storage_writer=StoreWriter(ME, store=opened(where)), use_collectives=False
    )


def save_asynchronously(rank, where, kind, environment):
    """Save seed 1 while the state changes; return the reference's key."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    from hfflows.checkpoint.dcp import StoreWriter, reference_of

    os.environ.update(environment, MASTER_ADDR="127.0.0.1")
    store, state = opened(where), shards_of(full_state(1), world_size())
    future = dcp.async_save(
        state,
        checkpoint_id="in-the-background",
        storage_writer=StoreWriter(ME, store=store),
        async_checkpointer_type=AsyncCheckpointerType(kind),
    )
    for tensor in state["model"].values():
        tensor.zero_()
    return reference_of(future.result(timeout=PATIENCE), store=store).key


def load(rank, where, key, seed):
    """Load a checkpoint into empty tensors; return what is wrong with them, and bytes read."""
    import torch.distributed.checkpoint as dcp

    from hfflows.checkpoint.dcp import StoreReader

    store, state = Counting(opened(where)), empty_state(world_size())
    dcp.load(state, storage_reader=StoreReader(key, store=store))
    return differences(state, seed), store.read_bytes


def resume(rank, where, load_policy="fresh"):
    """Load the newest whole checkpoint; return its seed and what is wrong with the state."""
    from hfflows.checkpoint.dcp import load_latest

    state = empty_state(world_size())
    checkpointer = Checkpointer(ME, load_policy=load_policy, store=opened(where))
    ref = load_latest(state, checkpointer)
    return (ref.metadata["seed"], differences(state, ref.metadata["seed"])) if ref else None


def exchange_with_torch(rank, where, directory):
    """Load with torch's reader what we saved, and with ours what torch's writer saved."""
    import torch.distributed.checkpoint as dcp

    from hfflows.checkpoint.dcp import StoreReader

    store, wrong = opened(where), []
    with Checkpointer(ME, store=store) as checkpointer:  # loads the newest as a directory
        theirs = empty_state(world_size())
        dcp.load(theirs, storage_reader=dcp.FileSystemReader(checkpointer.directory))
        wrong += differences(theirs, 1)

        dcp.save(full_state(2), storage_writer=dcp.FileSystemWriter(directory))
        ref = checkpointer.save(directory)
    ours = empty_state(world_size())
    dcp.load(ours, storage_reader=StoreReader(ref, store=store))
    return wrong + differences(ours, 2)


def read_metadata(rank, where, key):
    from hfflows.checkpoint.dcp import StoreReader

    return str(StoreReader(key, store=opened(where)).read_metadata())


def save_parts(rank, where, directory, deadly_rank=None):
    """Save this rank's subdirectory together with the others'; return the reference's key."""
    store = opened(where)
    if rank == deadly_rank:
        store = Deadly(store, "put", "objects/", 1)
    ref = save_together(f"{directory}/{rank}", identity=ME, metadata={"n": 1}, store=store)
    return ref.key, sorted(file.path for file in read_tree(ref, store=store).files)


def save_many(rank, where, count):
    """Save on this rank's own, as fast as it can; return the references' keys."""
    with Checkpointer(ME, load_policy="none", store=opened(where)) as checkpointer:
        saved = []
        for number in range(count):
            (checkpointer.directory / "state").write_text(f"{rank} {number}")
            saved.append(checkpointer.save(name="step").key)
        return saved
