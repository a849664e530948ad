"""`current.checkpoint`: the `Checkpointer` of the running body."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from prefect import Task

from hfflows.checkpoint import Checkpointer
from hfflows.refs import ArtifactRef
from hfflows.tasks._support import run_logger

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from hfflows.artifacts import RefLike
    from hfflows.identity import RunIdentity
    from hfflows.tasks._decorators import Function
    from hfflows.tasks._loaded import Scratch

_TASK_NAME = "__hfflows_task_name__"

_Refs = list[ArtifactRef]
_Documents = list[dict[str, Any]]


def with_task_name(function: Function, task_name: str) -> Function:
    """Return the function, marked with the name under which its checkpoints are kept."""
    setattr(function, _TASK_NAME, task_name)
    return function


def _task_name(task: Task[..., Any]) -> str:
    return getattr(task.fn, _TASK_NAME, None) or task.name


class CurrentCheckpoint(Checkpointer):
    """The `Checkpointer` of the running body: `current.checkpoint`.

    It was entered before the body and is left after it: the policy's checkpoint is loaded,
    saves under way are waited for, temporary directories are deleted.
    """

    def __init__(self, identity: RunIdentity, *, scratch: Scratch, **options: Any) -> None:
        super().__init__(identity, log=run_logger(), **options)
        self._scratch = scratch

    def load(self, ref: RefLike, path: str | os.PathLike[str] | None = None) -> Path:
        """Copy any checkpoint into a directory, verified, and return the directory.

        Args:
            ref: The reference, its dict, or its key.
            path: Absent or empty directory, which stays; `None` makes a temporary one,
                which is gone after the body.

        Raises:
            CheckpointNotFoundError: It was never saved here, or it was deleted.
            As `hfflows.load_artifact`.
        """
        return super().load(ref, path if path is not None else self._scratch.new())

    @overload
    def list(
        self,
        name: str | None = ...,
        *,
        task: str | Task[..., Any] | None = ...,
        attempt: str | None = ...,
        full_namespace: bool = ...,
        as_dict: Literal[False] = ...,
    ) -> _Refs: ...

    @overload
    def list(
        self,
        name: str | None = ...,
        *,
        task: str | Task[..., Any] | None = ...,
        attempt: str | None = ...,
        full_namespace: bool = ...,
        as_dict: Literal[True],
    ) -> _Documents: ...

    def list(
        self,
        name: str | None = None,
        *,
        task: str | Task[..., Any] | None = None,
        attempt: str | None = None,
        full_namespace: bool = False,
        as_dict: bool = False,
    ) -> _Refs | _Documents:
        """Return checkpoints, newest first: of this very call, all its attempts.

        Args:
            name: Only those saved under this name.
            task: Of this task of the same flow instead, by its name (the `task_name` of its
                `@checkpoint`, if it has one) or itself, saved under
                the same `key` in this flow run: of each of its calls the latest attempt,
                unless `attempt` names one.
            attempt: Only those of this attempt, as `ref.producer.attempt` says it.
            full_namespace: From every run, and from every attempt.
            as_dict: Plain dicts instead of references.
        """
        if task is None:
            found = super().list(name, attempt=attempt, full_namespace=full_namespace)
        else:
            task_name = _task_name(task) if isinstance(task, Task) else task
            found = super().list(name, task=task_name, attempt=attempt, full_namespace=True)
            if not full_namespace:
                found = self._of_this_flow_run(found, any_attempt=attempt is not None)
        return [ref.model_dump(mode="json") for ref in found] if as_dict else found

    def _of_this_flow_run(self, found: _Refs, *, any_attempt: bool) -> _Refs:
        mine = [ref for ref in found if _root(ref.producer.run) == _root(self.identity.run)]
        latest: dict[str, str] = {}
        for ref in mine:
            latest.setdefault(ref.producer.run, ref.producer.attempt)
        return [
            ref for ref in mine if any_attempt or latest[ref.producer.run] == ref.producer.attempt
        ]


def _root(run: str) -> str:
    return run.partition("/")[0]
