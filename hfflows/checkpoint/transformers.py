"""`transformers.Trainer` that survives its machine.

    checkpoints = CheckpointCallback(current.checkpoint)
    trainer = Trainer(..., callbacks=[checkpoints])
    trainer.train(resume_from_checkpoint=checkpoints.resume_from)

Each `checkpoint-N` that the Trainer writes (model, optimizer, schedule, random numbers, its own
state) becomes a checkpoint as it is. Importing this module imports transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows.checkpoint._trainers import TrainingSaves, end_as_told, logger, made_by
from hfflows.errors import MissingDependencyError, SettingsError

try:
    from transformers import TrainerCallback
except ImportError as missing:
    _MESSAGE = "The Trainer's callback needs transformers: pip install 'hfflows[train]'."
    raise MissingDependencyError(_MESSAGE) from missing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import TrainerControl, TrainerState, TrainingArguments

    from hfflows.checkpoint._checkpointer import Checkpointer
    from hfflows.refs import StorageFormat

_STATE_FILE = "trainer_state.json"


class CheckpointCallback(TrainerCallback):  # type: ignore[misc] # transformers is not typed here
    """Saves the Trainer's checkpoints through a `Checkpointer`.

    When the process is told to end, the step under way is finished and saved, training stops,
    and `Trainer.train` raises `SystemExit`: what follows would take half a training for a
    whole one. In a run of several processes on one machine the first one saves, and a last
    save is not tried: ranks would have to agree on the step.

    Each checkpoint's metadata has `step`, `epoch` and what was logged or evaluated at this very
    step (`loss`, `eval_loss`, ...), so that `KeepBest(1, metric="eval_loss")` judges each by
    its own.

    Args:
        checkpointer: `current.checkpoint`, or one of your own.
        name: Name to list the checkpoints by.
        metadata: Put into the metadata of each.
        storage_format: `packed` sends only what the store has not.
        block: Whether training waits for the upload.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        *,
        name: str = "checkpoint",
        metadata: Mapping[str, Any] | None = None,
        storage_format: StorageFormat = "packed",
        block: bool = False,
    ) -> None:
        self._checkpointer = checkpointer
        self._name = name
        self._is_cut_short = False
        self._saves = TrainingSaves(
            checkpointer, name=name, metadata=metadata, storage_format=storage_format, block=block
        )

    @property
    def resume_from(self) -> str | None:
        """What `Trainer.train(resume_from_checkpoint=...)` wants; `None` on a first attempt.

        Raises:
            SettingsError: The loaded checkpoint was not made by a Trainer.
        """
        state = made_by("a Trainer", _STATE_FILE, self._checkpointer)
        return None if state is None else str(state.parent)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Bring back the best checkpoint: the Trainer forgets one that is not on this disk."""
        del control
        best = args.load_best_model_at_end and state.best_global_step
        if not best or state.best_model_checkpoint:
            return
        path = Path(args.output_dir) / f"checkpoint-{best}"
        if state.is_world_process_zero and not path.exists():
            self._fetch(best, path)
        _meet(args)
        if path.is_dir():
            state.best_model_checkpoint = str(path)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for a last save when the process is to end."""
        del state
        if self._is_last(args):
            control.should_save = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask for it also when the news came during an evaluation, which a save follows."""
        self.on_step_end(args, state, control)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save what the Trainer has written; its directory may go as soon as this returns."""
        _meet(args)  # each rank writes its random numbers
        if state.is_world_process_zero:
            self._saves.save(_written(args, state), _measured(state))
        if self._is_last(args):
            # Here, not in on_step_end: what was saved must not say that training is over.
            control.should_training_stop = True
            self._is_cut_short = state.global_step < state.max_steps

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """End the task too, when training was cut short."""
        del args, state, control
        if self._is_cut_short:
            end_as_told()

    def _is_last(self, args: TrainingArguments) -> bool:
        return bool(args.world_size == 1 and self._checkpointer.is_preempted)

    def _fetch(self, step: int, path: Path) -> None:
        """Load the checkpoint of a step of the run that this one resumes."""
        loaded = self._checkpointer.info
        for ref in self._checkpointer.list(self._name, full_namespace=True):
            is_same_run = loaded is not None and ref.producer.run == loaded.producer.run
            if is_same_run and ref.metadata.get("step") == step:
                self._checkpointer.load(ref, path)
                return
        logger.warning(
            "The best checkpoint so far, of step %s, is no longer in the store: "
            "load_best_model_at_end sees only what comes from here on.",
            step,
        )


def _meet(args: TrainingArguments) -> None:
    """Return when all ranks are here."""
    if args.world_size > 1:
        import torch

        torch.distributed.barrier()


def _written(args: TrainingArguments, state: TrainerState) -> Path:
    path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
    if not path.is_dir():
        msg = (
            f"The Trainer saved step {state.global_step}, and there is no {path}. Hyperparameter "
            "search writes elsewhere and is not supported."
        )
        raise SettingsError(msg, path=str(path))
    return path


def _measured(state: TrainerState) -> dict[str, Any]:
    """Return the numbers of this very step: older ones belong to other weights."""
    measured: dict[str, Any] = {"step": state.global_step, "epoch": state.epoch}
    for entry in state.log_history:
        if entry.get("step") == state.global_step:
            measured |= entry
    return measured
