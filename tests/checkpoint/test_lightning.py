"""Lightning with `CheckpointCallback`: killed and resumed, nobody can tell."""

import os
import signal
import sys

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader

from hfflows import Checkpointer, open_store
from hfflows.checkpoint.lightning import CheckpointCallback
from hfflows.checkpoint.torch import ResumableLoader
from hfflows.errors import SettingsError
from tests.checkpoint.loops import (
    Died,
    attempt,
    die,
    digits,
    kill_once_saved,
    net,
    run_python,
    same,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # lightning 2.6.6 on torch 2.13
]


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net()
        self.losses = []

    def training_step(self, batch, batch_idx):
        features, labels = batch
        loss = nn.functional.cross_entropy(self.net(features), labels)
        self.losses.append((self.current_epoch, batch_idx, loss.item()))
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        features, labels = batch
        self.log("val_loss", nn.functional.cross_entropy(self.net(features), labels))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class At(Callback):
    """Does something at the beginning of a batch of a step; two make one."""

    def __init__(self, step, act, *, batch=0):
        self.step, self.act, self.batch = step, act, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step and batch_idx % 2 == self.batch:
            self.act()


def train(checkpointer, directory, *, at=None, every=4, limits=None, **options):
    """Train for 18 steps of two batches, six an epoch."""
    seed_everything(11, verbose=False)
    model = Classifier()
    torch.rand(checkpointer.identity.attempt.count("2"))  # attempts do not begin alike
    checkpoints = CheckpointCallback(checkpointer, every_n_train_steps=every, **options)
    trainer = Trainer(
        **(limits or {"max_epochs": 3}),
        accelerator="cpu",
        accumulate_grad_batches=2,
        callbacks=[checkpoints, *([at] if at else [])],
        default_root_dir=directory,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    loader = DataLoader(digits(176), batch_size=16, shuffle=True)
    validation = DataLoader(digits(32), batch_size=16)
    resumable = ResumableLoader(loader, seed=5)
    trainer.fit(model, resumable, validation, ckpt_path=checkpoints.resume_from)
    return trainer, model


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    with Checkpointer(attempt(1), store=open_store(directory / "store")) as checkpointer:
        _, model = train(checkpointer, directory)
    assert len(model.losses) == 33
    return model


def test_a_killed_run_goes_on_with_the_same_losses_to_the_same_bits(tmp_path, uninterrupted):
    store = tmp_path / "store"
    killed = run_python("-m", "tests.checkpoint.test_lightning", store, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    with Checkpointer(attempt(2), store=open_store(store)) as checkpointer:
        first = checkpointer.info.metadata["step"]
        trainer, model = train(checkpointer, tmp_path, every_n_epochs=0)

    assert first in {4, 8}
    assert trainer.global_step == 18
    assert model.losses == uninterrupted.losses[first // 6 * 11 + first % 6 * 2 :]
    assert same(model, uninterrupted)


@pytest.mark.parametrize(
    ("limits", "step"),
    [
        ({"max_epochs": 3}, 6),
        ({"max_steps": 18}, 6),
        ({"max_epochs": 3, "limit_val_batches": 0}, 6),
        ({"max_steps": 18, "limit_val_batches": 0}, 7),  # Lightning cannot resume from 6
    ],
)
def test_a_run_resumed_at_the_end_of_an_epoch_is_exact_too(memory_store, tmp_path, limits, step):
    options = {"every": 6, "every_n_epochs": 0, "limits": limits}
    with Checkpointer(attempt(1), load_policy="none", store=memory_store) as checkpointer:
        _, whole = train(checkpointer, tmp_path, **(options | {"every": 99}))
    with pytest.raises(Died), Checkpointer(attempt(1), store=memory_store) as checkpointer:
        train(checkpointer, tmp_path, at=At(8, die), **options)

    with Checkpointer(attempt(2), store=memory_store) as checkpointer:
        assert checkpointer.info.metadata["step"] == step
        trainer, model = train(checkpointer, tmp_path, **options)

    assert trainer.global_step == 18
    assert model.losses == whole.losses[11 + (step - 6) * 2 :]
    assert same(model, whole)


def test_a_save_waits_for_the_validation_that_follows_inside_the_epoch(tmp_path, memory_store):
    options = {
        "every": 2,
        "every_n_epochs": 0,
        "limits": {"max_epochs": 2, "val_check_interval": 4},
    }
    with Checkpointer(attempt(1), load_policy="none", store=memory_store) as checkpointer:
        _, whole = train(checkpointer, tmp_path, **(options | {"every": 99}))
    with pytest.raises(Died), Checkpointer(attempt(1), store=memory_store) as checkpointer:
        train(checkpointer, tmp_path, at=At(8, die), **options)

    with Checkpointer(attempt(2), store=memory_store) as checkpointer:
        assert [ref.metadata["step"] for ref in checkpointer.list()] == [8, 6, 4, 2]
        assert ["val_loss" in ref.metadata for ref in checkpointer.list()] == [
            True,
            False,
            True,
            True,
        ]
        _, model = train(checkpointer, tmp_path, **options)

    assert model.losses == whole.losses[11 + 4 :]
    assert same(model, whole)


def test_metadata_has_a_validation_only_where_it_saw_these_weights(memory_store, tmp_path):
    with Checkpointer(attempt(1), store=memory_store) as checkpointer:
        train(checkpointer, tmp_path)
        checkpointer.wait()
        found = {ref.metadata["step"]: ref.metadata for ref in checkpointer.list()}

    assert sorted(found) == [4, 6, 8, 12, 16, 18]
    assert {step for step, metadata in found.items() if "val_loss" in metadata} == {6, 12, 18}
    assert all("loss" in metadata for metadata in found.values())
    assert [found[step]["epoch"] for step in (4, 6, 8)] == [0, 0, 1]


@pytest.mark.parametrize(("batch", "step"), [(0, 8), (1, 10)])  # half a step is not saved
def test_sigterm_ends_the_step_saves_it_and_stops(tmp_path, uninterrupted, batch, step):
    store = open_store(tmp_path / "store")
    with pytest.raises(SystemExit) as stop, Checkpointer(attempt(1), store=store) as checkpointer:
        tell = At(9, lambda: os.kill(os.getpid(), signal.SIGTERM), batch=batch)
        train(checkpointer, tmp_path, at=tell)
        pytest.fail("half a training passed for a whole one")
    assert stop.value.code == 143

    with Checkpointer(attempt(2), store=store) as checkpointer:
        assert checkpointer.info.metadata["step"] == step
        _, model = train(checkpointer, tmp_path)

    assert model.losses == uninterrupted.losses[11 + (step - 6) * 2 :]
    assert same(model, uninterrupted)


def test_where_lightning_sees_no_signal_the_step_is_finished_saved_and_left(memory_store, tmp_path):
    class Told(Checkpointer):  # as in a thread of Prefect's: signals belong to the main one
        is_preempted = False

    def tell():
        checkpointer.is_preempted = True

    with pytest.raises(SystemExit) as stop, Told(attempt(1), store=memory_store) as checkpointer:
        train(checkpointer, tmp_path, at=At(9, tell))
        pytest.fail("half a training passed for a whole one")

    assert stop.value.code == 143
    with Checkpointer(attempt(2), store=memory_store) as checkpointer:
        assert checkpointer.info.metadata["step"] == 10


def test_a_checkpoint_of_something_else_is_refused(memory_store):
    with Checkpointer(attempt(1), store=memory_store) as checkpointer:
        (checkpointer.directory / "weights").write_bytes(b"w")
        assert CheckpointCallback(checkpointer).resume_from is None
        checkpointer.save()

    with (
        Checkpointer(attempt(2), store=memory_store) as checkpointer,
        pytest.raises(SettingsError, match="not saved by a Lightning run"),
    ):
        CheckpointCallback(checkpointer).resume_from  # noqa: B018


if __name__ == "__main__":
    with Checkpointer(attempt(1), store=open_store(sys.argv[1])) as mortal:
        train(
            mortal,
            sys.argv[2],
            at=At(10, lambda: kill_once_saved(mortal)),
            every_n_epochs=0,
        )
