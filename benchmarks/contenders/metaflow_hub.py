"""metaflow-checkpoint's `@huggingface_hub`: what `current.huggingface_hub` does in a task.

Its registry is given a `Checkpoint` of the task that `METAFLOW_CHECKPOINT_UID` names, to which
the object that it has in a task passes every call on; no flow, card or metadata service.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import huggingface_hub  # noqa: F401 - the registry imports it where it is used, within the time

from benchmarks.contenders.hub_client import drop_notes
from benchmarks.contenders.metaflow_checkpoint import configure

_PACKAGE = "metaflow_extensions.obcheckpoint.plugins.machine_learning_utilities"


class MetaflowHub:
    """Repos in the cache scope that it has by default."""

    def __init__(self, bucket: str) -> None:
        configure(bucket)
        from metaflow import Checkpoint

        constructors: Any = import_module(f"{_PACKAGE}.checkpoints.constructors")
        decorator: Any = import_module(f"{_PACKAGE}.hf_hub.decorator")
        # What its decorator does before a step begins, which nothing public does.
        checkpoint: Any = Checkpoint(init_dir=True)
        constructors._instantiate_checkpoint_for_writes(checkpoint)  # noqa: SLF001
        checkpoint._default_checkpointer = checkpoint  # noqa: SLF001
        checkpoint._flow_name = "Bench"  # noqa: SLF001
        self._registry = decorator.HuggingfaceRegistry(logger=None)
        self._registry._set_checkpointer(checkpoint, cache_scope="checkpoint")  # noqa: SLF001
        self._checkpoint = checkpoint

    def snapshot(self, repo_id: str, revision: str | None = None) -> dict[str, Any]:
        """Download a repo and store it, if it is not stored yet; returns its reference."""
        saved: dict[str, Any] = self._registry.snapshot_download(repo_id=repo_id, revision=revision)
        return saved

    def load_snapshot(self, repo_id: str, revision: str, target: str) -> None:
        """Load a repo from the store."""
        with self._registry.load(repo_id, path=target, revision=revision):
            pass

    def load(self, saved: dict[str, Any], target: str) -> None:
        """Load a stored repo by its reference."""
        self._checkpoint.load(saved, target)
        drop_notes(target)
