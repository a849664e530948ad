"""`current`: what the decorators around the running body have set up for it.

    current.checkpoint         inside @checkpoint
    current.model              inside @model
    current.huggingface_hub    inside @huggingface_hub

A context variable holds it, so each of Prefect's task threads and each coroutine sees its
own. It belongs to one task run: a task called from a decorated task does not inherit it.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from prefect.context import FlowRunContext, TaskRunContext

from hfflows.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hfflows.tasks._current_checkpoint import CurrentCheckpoint
    from hfflows.tasks._hub_decorator import CurrentHub
    from hfflows.tasks._model_decorator import CurrentModel


@dataclass(slots=True)
class _Entry:
    """What one decorator offers to one execution of one body."""

    view: Any
    run: tuple[Any, Any]
    is_over: bool = False


_entries: ContextVar[dict[str, _Entry] | None] = ContextVar("hfflows_current", default=None)


class Current:
    """The running body's checkpoints, models and Hub repos.

    A thread that you start yourself sees none of them: take the object first and hand it over
    (`checkpoint = current.checkpoint`). `asyncio.to_thread` does it for you.
    """

    __slots__ = ()

    @property
    def checkpoint(self) -> CurrentCheckpoint:
        """The running task's checkpoints.

        Raises:
            SettingsError: Not in the body of a function under `@checkpoint`.
        """
        return cast("CurrentCheckpoint", _view("checkpoint"))

    @property
    def model(self) -> CurrentModel:
        """The models that `@model` loaded, and saving and loading more.

        Raises:
            SettingsError: Not in the body of a function under `@model`.
        """
        return cast("CurrentModel", _view("model"))

    @property
    def huggingface_hub(self) -> CurrentHub:
        """The Hub repos that `@huggingface_hub` loaded, and fetching more.

        Raises:
            SettingsError: Not in the body of a function under `@huggingface_hub`.
        """
        return cast("CurrentHub", _view("huggingface_hub"))


current = Current()


@contextmanager
def bound(name: str, view: object) -> Iterator[None]:
    """Let `current.<name>` be `view` in this context, for the task run that runs now."""
    entry = _Entry(view, _run())
    token = _entries.set({**(_entries.get() or {}), name: entry})
    try:
        yield
    finally:
        entry.is_over = True  # for copies of this context that live on
        _entries.reset(token)


def in_run() -> bool:
    """Return whether a Prefect task or flow runs here."""
    return _run() != (None, None)


def _view(name: str) -> object:
    entry = (_entries.get() or {}).get(name)
    if entry is None:
        msg = (
            f"current.{name} is there only in the body of a function under @{name}, and not in "
            "threads that the body starts: take the object first and hand it to them."
        )
        raise SettingsError(msg)
    if entry.is_over:
        msg = f"current.{name} was used after the body under @{name} had ended."
        raise SettingsError(msg)
    if entry.run != _run():
        msg = (
            f"current.{name} belongs to the task that called this one; put @{name} on this one "
            "too, or hand over what it needs as a parameter."
        )
        raise SettingsError(msg)
    return entry.view


def _run() -> tuple[Any, Any]:
    """Return what names the running task run, or flow run; empty outside both."""
    task, flow = TaskRunContext.get(), FlowRunContext.get()
    flow_run = flow.flow_run if flow is not None else None
    return (
        task.task_run.id if task is not None else None,
        flow_run.id if flow_run is not None else None,
    )
