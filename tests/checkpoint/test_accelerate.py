"""`accelerate` with `AcceleratorCheckpoints`: killed and resumed, nobody can tell."""

import contextlib
import os
import signal
import sys

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration, set_seed
from torch import nn
from torch.utils.data import DataLoader

from hfflows import Checkpointer, open_store
from hfflows.checkpoint.accelerate import AcceleratorCheckpoints
from hfflows.errors import SettingsError
from tests.checkpoint.loops import (
    Died,
    attempt,
    die,
    digits,
    kill_once_saved,
    net,
    run_python,
    run_ranks,
    same,
)

pytestmark = pytest.mark.slow


def accelerated(**options):
    AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
    GradientState._reset_state()
    return Accelerator(cpu=True, **options)


def train(checkpointer, *, at=0, act=None, every=4, seedable=False, epochs=3):
    """Train for 18 steps of two batches; return the model, the losses by step, the first step."""
    set_seed(11)
    model = net()
    accelerator = accelerated(
        gradient_accumulation_steps=2,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=seedable),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    loader = DataLoader(digits(176), batch_size=16, shuffle=True)  # 11 batches: the last is alone
    model, optimizer, schedule, loader = accelerator.prepare(model, optimizer, schedule, loader)
    checkpoints = AcceleratorCheckpoints(accelerator, checkpointer)
    loader = checkpoints.resumable(loader, seed=5)
    torch.rand(checkpointer.identity.attempt.count("2"))  # attempts do not begin alike
    first = step = checkpoints.resume().get("step", 0)
    losses = []
    for epoch in range(loader.epoch, epochs):
        for features, labels in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(features), labels)
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            if not accelerator.sync_gradients:
                continue
            step += 1
            if step == at:
                act()
            if step % every == 0:
                checkpoints.save(step=step, metadata={"epoch": epoch, "loss": loss})
    return model, losses, first


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    with Checkpointer(attempt(1), store=open_store(directory)) as checkpointer:
        model, losses, _ = train(checkpointer)
    assert len(losses) == 33
    return model, losses


def batches_before(step):
    """Return how many batches come before a step: six steps take the eleven of an epoch."""
    return step // 6 * 11 + step % 6 * 2


def test_a_killed_run_goes_on_with_the_same_losses_to_the_same_bits(tmp_path, uninterrupted):
    killed = run_python("-m", "tests.checkpoint.test_accelerate", tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    with Checkpointer(attempt(2), store=open_store(tmp_path)) as checkpointer:
        assert checkpointer.info.metadata.keys() == {"step", "epoch", "loss"}
        model, losses, first = train(checkpointer)

    assert first in {4, 8}
    assert losses == uninterrupted[1][batches_before(first) :]
    assert same(model, uninterrupted[0])


@pytest.mark.parametrize("seedable", [False, True])
def test_a_run_resumed_at_the_end_of_an_epoch_is_exact_too(memory_store, seedable):
    with Checkpointer(attempt(1), store=memory_store, load_policy="none") as checkpointer:
        whole, _, _ = train(checkpointer, seedable=seedable, every=99)
    with pytest.raises(Died), Checkpointer(attempt(1), store=memory_store) as checkpointer:
        train(checkpointer, at=8, act=die, every=6, seedable=seedable)

    with Checkpointer(attempt(2), store=memory_store) as checkpointer:
        model, losses, first = train(checkpointer, every=6, seedable=seedable)

    assert first == 6
    assert len(losses) == 22
    assert same(model, whole)


def test_two_processes_resume_exactly_from_what_the_first_one_saved(tmp_path):
    done = run_ranks("-m", "tests.checkpoint.test_accelerate", tmp_path)

    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.split()) == ["rank-0-is-exact-from-4", "rank-1-is-exact-from-4"]
    with Checkpointer(attempt(9), store=open_store(tmp_path), load_policy="none") as checkpointer:
        steps = [ref.metadata["step"] for ref in checkpointer.list(full_namespace=True)]
    assert steps == [8, 4, 8, 4]  # nine steps, and none again by the second


def test_a_save_that_would_lose_gradients_is_refused(memory_store):
    accelerator = accelerated(gradient_accumulation_steps=2)
    with Checkpointer(attempt(1), store=memory_store) as checkpointer:
        checkpoints = AcceleratorCheckpoints(accelerator, checkpointer)
        with accelerator.accumulate():
            pass
        with pytest.raises(SettingsError, match="does not hold gradients"):
            checkpoints.save(step=1)


def test_a_checkpoint_of_something_else_is_refused(memory_store):
    with Checkpointer(attempt(1), store=memory_store) as checkpointer:
        (checkpointer.directory / "weights").write_bytes(b"w")
        checkpointer.save()

    with Checkpointer(attempt(2), store=memory_store) as checkpointer:
        checkpoints = AcceleratorCheckpoints(accelerated(), checkpointer)
        with pytest.raises(SettingsError, match="not saved by AcceleratorCheckpoints"):
            checkpoints.resume()


def test_an_accelerator_that_names_its_own_checkpoints_is_refused(memory_store, tmp_path):
    naming = ProjectConfiguration(str(tmp_path), automatic_checkpoint_naming=True)
    accelerator = accelerated(project_config=naming)

    with (
        Checkpointer(attempt(1), store=memory_store) as checkpointer,
        pytest.raises(SettingsError, match="automatic_checkpoint_naming"),
    ):
        AcceleratorCheckpoints(accelerator, checkpointer)


def one_of_two(directory):
    """Be one of two processes: die after the first save, resume, and compare."""
    store = open_store(directory)
    with contextlib.suppress(Died), Checkpointer(attempt(1), store=store) as checkpointer:
        train(checkpointer, at=7, act=die)
    torch.distributed.barrier()
    with Checkpointer(attempt(2), store=store) as checkpointer:
        resumed, losses, first = train(checkpointer)
    with Checkpointer(attempt(3), store=store, load_policy="none") as checkpointer:
        whole, all_losses, _ = train(checkpointer)
    assert losses == all_losses[8:]  # six batches an epoch for each
    assert same(resumed, whole)
    print(f"rank-{os.environ['RANK']}-is-exact-from-{first}", flush=True)


if __name__ == "__main__" and "RANK" in os.environ:
    one_of_two(sys.argv[1])
elif __name__ == "__main__":
    with Checkpointer(attempt(1), store=open_store(sys.argv[1])) as mortal:
        train(mortal, at=11, act=lambda: kill_once_saved(mortal))
