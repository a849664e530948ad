"""`transformers.Trainer` with `CheckpointCallback`: killed and resumed, nobody can tell."""

import contextlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hfflows import Checkpointer, KeepBest, KeepNewest, load_artifact, open_store, verify_artifact
from hfflows.checkpoint.transformers import CheckpointCallback
from hfflows.errors import SettingsError
from hfflows.testing import SlowStore
from tests.checkpoint.loops import (
    Died,
    attempt,
    die,
    digits,
    kill_once_saved,
    run_python,
    run_ranks,
    same,
)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

CONFIG = {
    "vocab_size": 17,  # a digit is 64 grey values of 0 to 16: a text of 64 words
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "num_labels": 10,
}


class Sequences(TensorDataset):
    def __getitem__(self, index):
        features, label = super().__getitem__(index)
        return {"input_ids": (features * 16).long(), "labels": label}


class At(TrainerCallback):
    """Does something at the beginning of a step; before it is what the step before saved."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            self.act()


def train(checkpointer, directory, *, at=None, count=160, compute_metrics=None, **options):
    set_seed(11)
    model = BertForSequenceClassification(BertConfig(**CONFIG))
    torch.rand(checkpointer.identity.attempt.count("2"))  # attempts do not begin alike
    data = Sequences(*digits(count).tensors)
    arguments = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "logging_steps": 1,
        "save_steps": 4,
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    checkpoints = CheckpointCallback(checkpointer)
    trainer = Trainer(
        model,
        TrainingArguments(str(directory), **(arguments | options)),
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=compute_metrics,
        callbacks=[checkpoints, *([At(*at)] if at else [])],
    )
    trainer.train(resume_from_checkpoint=checkpoints.resume_from)
    return trainer


def history(trainer):
    names = ("step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss")
    return [
        {name: entry.get(name) for name in names}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    with Checkpointer(attempt(1), store=open_store(directory / "store")) as checkpointer:
        return train(checkpointer, directory / "out")


def test_a_killed_run_goes_on_with_the_same_losses_to_the_same_bits(tmp_path, uninterrupted):
    store = tmp_path / "store"
    killed = run_python("-m", "tests.checkpoint.test_trainer", store, tmp_path / "one")
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    with Checkpointer(attempt(2), store=open_store(store)) as checkpointer:
        assert checkpointer.info.metadata["step"] in {4, 8}  # of 15, and it was killed in 11
        resumed = train(checkpointer, tmp_path / "two")

    assert resumed.state.global_step == 15
    assert history(resumed) == history(uninterrupted)
    assert same(resumed.model, uninterrupted.model)


def test_a_run_resumed_at_the_end_of_an_epoch_is_exact_too(tmp_path, uninterrupted):
    store = open_store(tmp_path / "store")
    options = {"save_steps": 5, "count": 160}
    with pytest.raises(Died), Checkpointer(attempt(1), store=store) as checkpointer:
        train(checkpointer, tmp_path / "one", at=(7, die), **options)

    with Checkpointer(attempt(2), store=store) as checkpointer:
        assert checkpointer.info.metadata["epoch"] == 1.0
        resumed = train(checkpointer, tmp_path / "two", **options)

    assert history(resumed) == history(uninterrupted)
    assert same(resumed.model, uninterrupted.model)


def test_every_checkpoint_is_whole_though_its_directory_goes_at_the_next_save(tmp_path):
    store = open_store(tmp_path / "store")
    slow = SlowStore(store, latency_seconds=0.05)
    with Checkpointer(attempt(1), store=slow) as checkpointer:
        train(checkpointer, tmp_path / "out", save_steps=1, num_train_epochs=1)
        checkpointer.wait()
        refs = checkpointer.list()

    assert [ref.metadata["step"] for ref in refs] == [5, 4, 3, 2, 1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint-5"]
    for ref in refs:
        verify_artifact(ref, store=store)
    loaded = load_artifact(refs[-1], tmp_path / "loaded", store=store)
    assert {path.name for path in loaded.iterdir()} >= {
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    }


def test_the_best_checkpoint_is_kept_and_found_again_on_another_machine(tmp_path):
    store = open_store(tmp_path / "store")
    scores = iter([0.9, 0.1, 0.2, 0.3])
    options = {
        "eval_strategy": "steps",
        "eval_steps": 4,
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
        "greater_is_better": True,
        "compute_metrics": lambda _: {"score": next(scores)},
    }
    policy = KeepNewest(1) | KeepBest(1, metric="eval_score", mode="max")
    with (
        pytest.raises(Died),
        Checkpointer(attempt(1), retention=policy, store=store) as checkpointer,
    ):
        train(checkpointer, tmp_path / "one", at=(11, die), **options)
    shutil.rmtree(tmp_path / "one")

    with Checkpointer(attempt(2), retention=policy, store=store) as checkpointer:
        newest, best = checkpointer.list()
        assert (best.metadata["step"], best.metadata["eval_score"]) == (4, 0.9)
        assert (newest.metadata["step"], newest.metadata["eval_score"]) == (8, 0.1)
        resumed = train(checkpointer, tmp_path / "two", **options)
        kept = checkpointer.load(best, tmp_path / "best")

    assert resumed.state.best_model_checkpoint == str(tmp_path / "two" / "checkpoint-4")
    assert same(resumed.model, BertForSequenceClassification.from_pretrained(kept))


def test_metadata_has_an_evaluation_only_where_it_saw_these_weights(memory_store, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 1, "num_train_epochs": 1}
    with Checkpointer(attempt(1), store=memory_store) as checkpointer:
        train(checkpointer, tmp_path, **options)
        checkpointer.wait()
        found = {ref.metadata["step"]: ref.metadata for ref in checkpointer.list()}

    assert sorted(found) == [1, 2, 3, 4, 5]
    assert {step for step, metadata in found.items() if "eval_loss" in metadata} == {2, 4, 5}
    assert all({"epoch", "loss", "learning_rate"} <= metadata.keys() for metadata in found.values())


def test_sigterm_ends_the_step_saves_it_and_stops(tmp_path, uninterrupted):
    store = open_store(tmp_path / "store")
    with pytest.raises(SystemExit), Checkpointer(attempt(1), store=store) as checkpointer:
        tell = (6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(checkpointer, tmp_path / "one", at=tell)
        pytest.fail("half a training passed for a whole one")

    with Checkpointer(attempt(2), store=store) as checkpointer:
        assert checkpointer.info.metadata["step"] == 7
        resumed = train(checkpointer, tmp_path / "two")

    assert history(resumed) == history(uninterrupted)
    assert same(resumed.model, uninterrupted.model)


def test_two_processes_resume_exactly_from_what_the_first_one_saved(tmp_path):
    done = run_ranks("-m", "tests.checkpoint.test_trainer", tmp_path)

    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(re.findall(r"rank-\S+", done.stdout)) == [
        "rank-0-is-exact-from-4",
        "rank-1-is-exact-from-4",
    ]


def test_a_checkpoint_of_something_else_is_refused(memory_store):
    with Checkpointer(attempt(1), store=memory_store) as checkpointer:
        (checkpointer.directory / "weights").write_bytes(b"w")
        assert CheckpointCallback(checkpointer).resume_from is None
        checkpointer.save()

    with (
        Checkpointer(attempt(2), store=memory_store) as checkpointer,
        pytest.raises(SettingsError, match="not saved by a Trainer"),
    ):
        CheckpointCallback(checkpointer).resume_from  # noqa: B018


def one_of_two(directory):
    """Be one of two processes: die after the first save, resume, and compare."""
    store = open_store(directory / "store")
    options = {"ddp_backend": "gloo", "gradient_accumulation_steps": 1, "num_train_epochs": 2}
    with contextlib.suppress(Died), Checkpointer(attempt(1), store=store) as checkpointer:
        train(checkpointer, directory / "one", at=(7, die), **options)
    torch.distributed.barrier()
    with Checkpointer(attempt(2), store=store) as checkpointer:
        first = checkpointer.info.metadata["step"]
        torch.distributed.barrier()  # both have loaded the same one
        resumed = train(checkpointer, directory / "two", **options)
    with Checkpointer(attempt(3), store=store, load_policy="none") as checkpointer:
        whole = train(checkpointer, directory / "three", **options)
    assert same(resumed.model, whole.model)
    print(f"rank-{os.environ['RANK']}-is-exact-from-{first}", flush=True)


if __name__ == "__main__" and "RANK" in os.environ:
    one_of_two(Path(sys.argv[1]))
elif __name__ == "__main__":
    with Checkpointer(attempt(1), store=open_store(sys.argv[1])) as mortal:
        train(mortal, sys.argv[2], at=(10, lambda: kill_once_saved(mortal)))
