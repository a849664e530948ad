"""What the hooks for trainers share: saves that training survives, and their metadata."""

from __future__ import annotations

import logging
import math
import shutil
from typing import TYPE_CHECKING, Any, NoReturn

from hfflows.checkpoint._preemption import EXIT_STATUS
from hfflows.errors import HfflowsError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hfflows.checkpoint._background import PendingSave
    from hfflows.checkpoint._checkpointer import Checkpointer
    from hfflows.refs import StorageFormat

logger = logging.getLogger("hfflows.checkpoint")


def end_as_told() -> NoReturn:
    """End what SIGTERM would have ended, had nobody looked: half a training has no result.

    Raises:
        SystemExit: Always; the checkpointer's context sends what is under way.
    """
    raise SystemExit(EXIT_STATUS)


def made_by(maker: str, name: str, checkpointer: Checkpointer) -> Path | None:
    """Return where a file, or a directory (`name/`), lies in the loaded checkpoint.

    `None` on a first attempt.

    Raises:
        SettingsError: It is not there: something else than `maker` saved the checkpoint.
    """
    ref = checkpointer.info
    if ref is None:
        return None
    path = checkpointer.directory / name
    if not (path.is_dir() if name.endswith("/") else path.is_file()):
        msg = (
            f"Checkpoint {ref.key} has no {name}: it was not saved by {maker}. Give the task "
            "another key, or load_policy='none'."
        )
        raise SettingsError(msg, key=ref.key)
    return path


class TrainingSaves:
    """The saves of one training run.

    A passing fault of the store is logged and training goes on: the next save covers the same
    ground. A lasting one (no access, wrong settings) is the checkpointer's to raise.

    Args:
        checkpointer: Through which to save.
        name: Name of the checkpoints.
        metadata: Put into the metadata of each.
        storage_format: How the bytes are laid out.
        block: Whether training waits for the upload.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        *,
        name: str,
        metadata: Mapping[str, Any] | None,
        storage_format: StorageFormat,
        block: bool,
    ) -> None:
        self.checkpointer = checkpointer
        self._name = name
        self._metadata = dict(metadata or {})
        self._storage_format = storage_format
        self._block = block
        self._under_way: list[PendingSave] = []

    def save(self, path: Path, measured: Mapping[str, Any], *, give: bool = False) -> None:
        """Save a checkpoint, or log that it could not be.

        Args:
            path: Directory to save.
            measured: Metadata of this step; numbers that are not finite are left out.
            give: The directory is not needed afterwards, and is gone.

        Raises:
            As `Checkpointer.save`, also for an earlier save, where another try cannot help.
        """
        metadata = self._metadata | plain(measured)
        self._look_back()
        try:
            self._begin(path, metadata, move=give)
        except HfflowsError as error:
            if not error.transient:
                raise
            logger.warning(
                "Step %s is not saved, training goes on: %s", metadata.get("step"), error
            )
        if give:
            shutil.rmtree(path, ignore_errors=True)

    def _begin(self, path: Path, metadata: Mapping[str, Any], *, move: bool) -> None:
        options: dict[str, Any] = {
            "name": self._name,
            "metadata": metadata,
            "storage_format": self._storage_format,
        }
        if self._block:
            self.checkpointer.save(path, **options)
        else:
            pending = self.checkpointer.save(path, block=False, move=move, **options)
            self._under_way.append(pending)

    def _look_back(self) -> None:
        """Ask the saves that are over how they went, so that no later one fails for them."""
        over = [save for save in self._under_way if save.done()]
        self._under_way = [save for save in self._under_way if save not in over]
        for save in over:
            error = None if save.cancelled() else save.exception()
            if isinstance(error, HfflowsError) and error.transient:
                logger.warning("A checkpoint was lost, training goes on: %s", error)
            elif error is not None:
                save.is_told = False  # the checkpointer decides what comes of it


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of these values JSON can hold: one-element tensors and arrays as numbers."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, float) and not math.isfinite(number):
            continue
        found[name] = number
    return found
