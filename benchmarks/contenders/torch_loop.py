"""A torch training loop on the processor, undisturbed and while checkpoints are saved."""

# ruff: noqa: TID253 - this module is imported only where it runs

from __future__ import annotations

import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import hfflows
from benchmarks.contenders.hfflows_training import IDENTITY
from benchmarks.contenders.obstore_raw import ObstoreRaw

if TYPE_CHECKING:
    from collections.abc import Callable

_WIDTH, _BATCH, _TOKENS = 256, 8, 64
_WARM_UP_SECONDS = 1.0


class TorchLoop:
    """Steps of a small transformer with AdamW, and saves beside them.

    Args:
        bucket: Where to.
        uploader: `hfflows` saves checkpoints in the background; `obstore` uploads the same
            files by hand, in a thread.
        in_directory: Save into a directory, without a server on this machine.
        threads: Threads of torch; `None` is its own choice, one a core.
        nice: Of `Checkpointer`.
    """

    def __init__(
        self,
        bucket: str,
        *,
        uploader: str = "hfflows",
        in_directory: bool = False,
        threads: int | None = None,
        nice: int = 19,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._directory = Path.cwd() / f"store-{bucket}" if in_directory else None
        self._raw = ObstoreRaw(bucket) if uploader == "obstore" else None
        self._checkpointer = hfflows.Checkpointer(
            IDENTITY,
            load_policy="none",
            temp_dir_root=Path.cwd(),
            nice=nice,
            store=hfflows.open_store(self._directory or f"s3://{bucket}"),
        )
        self._threads = ThreadPoolExecutor(1)

    def train(self, sources: list[str], seconds: float) -> dict[str, Any]:
        """Train undisturbed, then while each source is given away and saved, then undisturbed.

        Args:
            sources: What is saved, one after the other.
            seconds: How long to train undisturbed, before and after.

        Returns:
            Steps a second undisturbed and while saving, the seconds of each save, and what
            `load` takes.
        """
        loop = _Loop()
        loop.run_for(_WARM_UP_SECONDS)
        steps, took = loop.run_for(seconds / 2)
        saved: Any = None
        saves: list[float] = []
        steps_saving = 0
        for source in sources:
            began = time.perf_counter()
            save = self._begin(source)
            steps_saving += loop.run_until(save.done)
            saves.append(time.perf_counter() - began)
            saved = save.result()
        steps_after, took_after = loop.run_for(seconds / 2)
        return {
            "undisturbed": (steps + steps_after) / (took + took_after),
            "while_saving": steps_saving / sum(saves),
            "save_seconds": saves,
            "saved": saved if saved is None else saved.model_dump(mode="json"),
        }

    def load(self, saved: dict[str, Any] | None, target: str) -> None:
        """Load the last of what was saved."""
        if self._raw is not None:
            self._raw.load(None, target)
        else:
            self._checkpointer.load(saved or {}, target)

    def close(self) -> None:
        """Delete what lies below the working directory."""
        self._checkpointer.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _begin(self, source: str) -> Future[Any]:
        if self._raw is not None:
            return self._threads.submit(self._raw.save, source)
        return self._checkpointer.save(source, block=False, move=True)


class _Loop:
    """A model, its optimizer, and batches that are at hand."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(_WIDTH, 4, 4 * _WIDTH, batch_first=True)
        self._model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self._optimizer = torch.optim.AdamW(self._model.parameters())
        self._batch = torch.randn(_BATCH, _TOKENS, _WIDTH)

    def run_for(self, seconds: float) -> tuple[int, float]:
        """Train for so long; returns the steps and the seconds that they took."""
        began = time.perf_counter()
        steps = self.run_until(lambda: time.perf_counter() - began >= seconds)
        return steps, time.perf_counter() - began

    def run_until(self, is_over: Callable[[], bool]) -> int:
        """Train until it is over; returns the steps."""
        steps = 0
        while not is_over():
            self._optimizer.zero_grad()
            loss = (self._model(self._batch) - self._batch).square().mean()
            loss.backward()
            self._optimizer.step()
            steps += 1
        return steps
