"""A Lightning `Trainer` that survives its machine.

    checkpoints = CheckpointCallback(current.checkpoint, every_n_train_steps=100)
    trainer = Trainer(..., callbacks=[checkpoints])
    loader = ResumableLoader(DataLoader(data, batch_size=32, shuffle=True), seed=0)
    trainer.fit(model, loader, ckpt_path=checkpoints.resume_from)

What Lightning keeps (weights, optimizers, schedules, loops, callbacks) is in `FILE_NAME`, in
its own format; the random numbers, which it does not keep, are with this callback's state.
Importing this module imports lightning.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows.checkpoint._preemption import EXIT_STATUS
from hfflows.checkpoint._trainers import TrainingSaves, end_as_told, made_by
from hfflows.checkpoint.torch import random_state, restore_random_state
from hfflows.errors import MissingDependencyError

try:
    from lightning.pytorch.callbacks import Checkpoint
except ImportError as missing:
    _MESSAGE = "Lightning's callback needs lightning: pip install 'hfflows[lightning]'."
    raise MissingDependencyError(_MESSAGE) from missing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import LightningModule, Trainer

    from hfflows.checkpoint._checkpointer import Checkpointer
    from hfflows.refs import StorageFormat

FILE_NAME = "lightning.ckpt"


class CheckpointCallback(Checkpoint):  # type: ignore[misc] # lightning is not typed here
    """Saves the state of a Lightning run through a `Checkpointer`, by steps and by epochs.

    A save that is due where a validation follows waits for it: Lightning would not catch up
    on the validation. One that is due at the end of an epoch without any waits for the next step
    if the Trainer has `max_steps`: it could not be resumed.

    When the process is told to end, the step under way is finished and saved, and `Trainer.fit`
    raises `SystemExit`: what follows would take half a training for a whole one. In the main
    thread Lightning itself ends the run after the batch under way: when that one completes no
    step, for gradients are accumulated, the last checkpoint before it stands.

    Each checkpoint's metadata has `step`, `epoch` and `trainer.callback_metrics`; what a
    validation logged is there only when it saw these very weights.

    Args:
        checkpointer: `current.checkpoint`, or one of your own.
        every_n_train_steps: Save after every so many optimizer steps; 0 means never.
        every_n_epochs: Save after every so many epochs; 0 means never.
        name: Name to list the checkpoints by.
        metadata: Put into the metadata of each.
        storage_format: `packed` sends only what the store has not.
        block: Whether training waits for the upload.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        *,
        every_n_train_steps: int = 0,
        every_n_epochs: int = 1,
        name: str = "checkpoint",
        metadata: Mapping[str, Any] | None = None,
        storage_format: StorageFormat = "packed",
        block: bool = False,
    ) -> None:
        super().__init__()
        self._checkpointer = checkpointer
        self._every_n_train_steps = every_n_train_steps
        self._every_n_epochs = every_n_epochs
        self._saves = TrainingSaves(
            checkpointer, name=name, metadata=metadata, storage_format=storage_format, block=block
        )
        self._random: Mapping[str, Any] | None = None
        self._step_before = 0
        self._saved_step = -1
        self._is_put_off = False
        self._validated_step = -1
        self._known_metrics: set[str] = set()
        self._validation_metrics: set[str] = set()

    @property
    def resume_from(self) -> str | None:
        """What `Trainer.fit(ckpt_path=...)` wants; `None` on a first attempt.

        Raises:
            SettingsError: The loaded checkpoint was not made by this callback.
        """
        path = made_by("a Lightning run", FILE_NAME, self._checkpointer)
        return None if path is None else str(path)

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning puts into its checkpoint for this callback."""
        return {"random": random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the random numbers for `on_train_start`: making data loaders draws some."""
        self._random = state_dict["random"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the random numbers of the resumed run."""
        del trainer, pl_module
        if self._random is not None:
            restore_random_state(self._random)
            self._random = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the step, to know whether this batch completes one."""
        del pl_module, batch, batch_idx
        self._step_before = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when due, unless a validation or the epoch's end comes first."""
        del pl_module, outputs, batch
        is_stepped = trainer.global_step > self._step_before  # no gradients wait to be applied
        if not is_stepped or trainer.is_last_batch:
            return
        if not (self._is_put_off or self._is_step_due(trainer)):
            return
        self._is_put_off = not self._is_put_off and _validates(trainer, batch_idx)
        if not self._is_put_off:
            self._save(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metrics, to know which ones a validation adds."""
        del pl_module
        self._known_metrics = set(trainer.callback_metrics)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what the validation logged, and which step it saw."""
        del pl_module
        self._validation_metrics |= set(trainer.callback_metrics) - self._known_metrics
        if trainer.sanity_checking:
            return
        self._validated_step = trainer.global_step
        is_at_end = (
            trainer.is_last_batch and _resumes_twice(trainer) and self._is_epoch_due(trainer)
        )
        if self._is_put_off or is_at_end:
            self._is_put_off = False
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save when due, by epochs or by the step of the last batch."""
        del pl_module
        if trainer.global_step == self._saved_step or not self._is_epoch_due(trainer):
            return
        self._is_put_off = _resumes_twice(trainer)
        if not self._is_put_off:
            self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let the process end with a status that says so: Lightning's own exit says 0."""
        del trainer, pl_module
        if not isinstance(exception, SystemExit) or exception.code is not None:
            return
        if self._checkpointer.is_preempted:
            exception.code = EXIT_STATUS

    def _is_epoch_due(self, trainer: Trainer) -> bool:
        every = self._every_n_epochs
        is_due = bool(every and (trainer.current_epoch + 1) % every == 0)
        return is_due or self._is_step_due(trainer)

    def _is_step_due(self, trainer: Trainer) -> bool:
        every = self._every_n_train_steps
        return bool(every and trainer.global_step % every == 0) or self._is_ending(trainer)

    def _is_ending(self, trainer: Trainer) -> bool:
        # Ranks would have to agree on the step, so it is tried with one only.
        return trainer.world_size == 1 and self._checkpointer.is_preempted

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self._saved_step:
            self._saved_step = trainer.global_step
            folder = Path(tempfile.mkdtemp(dir=self._checkpointer.directory))
            trainer.save_checkpoint(folder / FILE_NAME)
            if trainer.is_global_zero:
                self._saves.save(folder, self._measured(trainer), give=True)
        if self._is_ending(trainer):
            end_as_told()

    def _measured(self, trainer: Trainer) -> dict[str, Any]:
        metrics = dict(trainer.callback_metrics)
        if self._validated_step != trainer.global_step:  # they belong to other weights
            metrics = {name: metrics[name] for name in metrics.keys() - self._validation_metrics}
        return {**metrics, "step": trainer.global_step, "epoch": trainer.current_epoch}


def _validates(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether a validation inside the epoch follows this batch."""
    every = trainer.val_check_batch
    if not trainer.enable_validation or not isinstance(every, int):
        return False
    if trainer.check_val_every_n_epoch is None:
        batch_idx = trainer.fit_loop.total_batch_idx
    return (batch_idx + 1) % every == 0


def _resumes_twice(trainer: Trainer) -> bool:
    """Return whether a resume from `on_train_epoch_end` would count this epoch again.

    Lightning 2.6 does so with `max_steps`, and ends early or reads the wrong epoch's data. It
    does not when it is resumed from the validation before, or when training is over.
    """
    return bool(trainer.max_steps != -1 and trainer.global_step < trainer.max_steps)
