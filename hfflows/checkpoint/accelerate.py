"""An `accelerate` loop that survives its machine.

    checkpoints = AcceleratorCheckpoints(accelerator, current.checkpoint)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    loader = checkpoints.resumable(loader, seed=0)
    step = checkpoints.resume().get("step", 0)
    for epoch in range(loader.epoch, epochs):
        for batch in loader:
            ...
            if accelerator.sync_gradients:
                step += 1
                if step % 100 == 0:
                    checkpoints.save(step=step, metadata={"epoch": epoch})

`Accelerator.save_state` keeps models, optimizers, schedules, scaler and random numbers; the place
in the data is registered with it. Importing this module imports accelerate.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows.checkpoint._trainers import TrainingSaves, made_by
from hfflows.checkpoint.torch import ResumableLoader
from hfflows.errors import MissingDependencyError, SettingsError

try:
    from accelerate import skip_first_batches
    from accelerate.utils import broadcast_object_list
except ImportError as missing:
    _MESSAGE = "Checkpoints of an Accelerator need accelerate: pip install 'hfflows[train]'."
    raise MissingDependencyError(_MESSAGE) from missing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accelerate import Accelerator

    from hfflows.checkpoint._checkpointer import Checkpointer
    from hfflows.refs import StorageFormat

FOLDER_NAME = "accelerate"


class AcceleratorCheckpoints:
    """`Accelerator.save_state` and `load_state` through a `Checkpointer`.

    In a run of several processes on one machine each calls every method; the first one loads
    and saves for all.

    Args:
        accelerator: The accelerator of the loop.
        checkpointer: `current.checkpoint`, or one of your own.
        name: Name to list the checkpoints by.
        metadata: Put into the metadata of each.
        storage_format: `packed` sends only what the store has not.
        block: Whether training waits for the upload.

    Raises:
        SettingsError: The accelerator names its checkpoints itself.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        checkpointer: Checkpointer,
        *,
        name: str = "checkpoint",
        metadata: Mapping[str, Any] | None = None,
        storage_format: StorageFormat = "packed",
        block: bool = False,
    ) -> None:
        if accelerator.project_configuration.automatic_checkpoint_naming:
            msg = (
                "With automatic_checkpoint_naming=True save_state() chooses the folder; set False."
            )
            raise SettingsError(msg)
        self._accelerator = accelerator
        self._checkpointer = checkpointer
        self._saves = TrainingSaves(
            checkpointer, name=name, metadata=metadata, storage_format=storage_format, block=block
        )

    def resumable(self, loader: Any, *, seed: int = 0) -> ResumableLoader:
        """Return a prepared loader whose place is part of each checkpoint.

        accelerate reads one batch ahead, so what a dataset or `collate_fn` draws while a batch
        is made does not go on exactly; the order of the data and all that the model draws do.

        Args:
            loader: What `Accelerator.prepare` returned for it.
            seed: With the number of the epoch, decides the order of its batches.
        """
        resumable = ResumableLoader(loader, seed=seed, skip=skip_first_batches)
        self._accelerator.register_for_checkpointing(resumable)
        return resumable

    def resume(self) -> dict[str, Any]:
        """Load what the checkpointer found, when all is prepared; return its metadata.

        Returns:
            The metadata of the loaded checkpoint; empty on a first attempt.

        Raises:
            SettingsError: The loaded checkpoint was not saved by this class.
        """
        found: list[Any] = [None, None]
        if self._accelerator.is_main_process and (ref := self._checkpointer.info) is not None:
            folder = made_by("AcceleratorCheckpoints", f"{FOLDER_NAME}/", self._checkpointer)
            found = [str(folder), dict(ref.metadata)]
        where, metadata = self._from_main(found)
        if where is None:
            return {}
        self._accelerator.load_state(where)
        loaded: dict[str, Any] = metadata
        return loaded

    def save(self, *, step: int, metadata: Mapping[str, Any] | None = None) -> None:
        """Save the state after an optimizer step.

        Args:
            step: How far training has got; `resume` returns it with the rest of the metadata.
            metadata: JSON values and one-element tensors kept with it: epoch, loss.

        Raises:
            SettingsError: Gradients are being accumulated: they would be lost.
            As `Checkpointer.save`, where another try cannot help.
        """
        if not self._accelerator.sync_gradients:
            msg = (
                "An Accelerator's state does not hold gradients: save after an optimizer step, "
                "`if accelerator.sync_gradients: ...`."
            )
            raise SettingsError(msg)
        folder: Any = None
        if self._accelerator.is_main_process:
            folder = tempfile.mkdtemp(dir=self._checkpointer.directory)
        (folder,) = self._from_main([folder])
        self._accelerator.save_state(str(Path(folder) / FOLDER_NAME))
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            self._saves.save(Path(folder), {**(metadata or {}), "step": step}, give=True)

    def _from_main(self, values: list[Any]) -> list[Any]:
        shared: list[Any] = broadcast_object_list(values, from_process=0)
        return shared
