"""`@checkpoint`: a task that survives its machine.

    @task(retries=3)
    @checkpoint
    def train(epochs):
        if current.checkpoint.is_loaded:
            ...  # current.checkpoint.directory is what the attempt before saved
        for epoch in range(...):
            ...
            current.checkpoint.save(metadata={"epoch": epoch})

| `load_policy` | the body begins with the newest checkpoint of |
|---|---|
| `fresh` | this very call: its retries, its flow run's retries, after a crash |
| `eager` | the same task and `key`, from any run |
| `none` | nothing |

| calls are told apart by | when |
|---|---|
| `key` | it is given: one lineage a key, run after run |
| their inputs, inside one run | it is not, and `load_policy` is `fresh` |
| nothing | it is not, and `load_policy` is `eager`: a shared lineage is an error |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from string import Formatter
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, overload

from prefect import Task
from prefect.context import TaskRunContext

from hfflows.checkpoint import Checkpointer, LoadPolicy
from hfflows.errors import SettingsError
from hfflows.refs import ArtifactRef
from hfflows.tasks._current import in_run
from hfflows.tasks._decorators import Call, Function, decorated
from hfflows.tasks._identity import run_identity
from hfflows.tasks._loaded import Scratch, StoreLike, opened_store
from hfflows.tasks._support import run_logger

if TYPE_CHECKING:
    import inspect
    import os
    from collections.abc import Iterator
    from pathlib import Path

    from hfflows.artifacts import RefLike, RetentionPolicy
    from hfflows.identity import RunIdentity

Key = str | Callable[[Mapping[str, Any]], str]
"""What tells calls apart: text, a template over parameters, or a function of them."""

_Refs = list[ArtifactRef]
_Documents = list[dict[str, Any]]


class CurrentCheckpoint(Checkpointer):
    """The `Checkpointer` of the running body: `current.checkpoint`.

    It was entered before the body and is left after it: the policy's checkpoint is loaded,
    saves under way are waited for, temporary directories are deleted.
    """

    def __init__(self, identity: RunIdentity, *, scratch: Scratch, **options: Any) -> None:
        super().__init__(identity, **options)
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
            task: Of this task of the same flow instead, by its name or itself, saved under
                the same `key` in this flow run: of each of its calls the latest attempt,
                unless `attempt` names one.
            attempt: Only those of this attempt, as `ref.producer.attempt` says it.
            full_namespace: From every run, and from every attempt.
            as_dict: Plain dicts instead of references.
        """
        if task is None:
            found = super().list(name, attempt=attempt, full_namespace=full_namespace)
        else:
            task_name = task.name if isinstance(task, Task) else task
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


@dataclass(frozen=True, slots=True)
class _CheckpointSetup:
    """The arguments of one `@checkpoint`."""

    name: ClassVar[str] = "checkpoint"

    load_policy: LoadPolicy
    key: Any
    identity: RunIdentity | None
    retention: RetentionPolicy | None
    temp_dir_root: str | os.PathLike[str] | None
    store: StoreLike | None

    def check(self, function: str, signature: inspect.Signature) -> None:
        if self.load_policy not in get_args(LoadPolicy):
            msg = (
                f"@checkpoint on {function}: load_policy={self.load_policy!r} is none of "
                f"{', '.join(get_args(LoadPolicy))}."
            )
            raise SettingsError(msg)
        if isinstance(self.key, str):
            _check_template(self.key, function, signature)
        elif not (self.key is None or callable(self.key)):
            msg = f"@checkpoint on {function}: key={self.key!r} is neither text nor a function."
            raise SettingsError(msg)

    @contextmanager
    def opened(self, call: Call) -> Iterator[CurrentCheckpoint]:
        identity = self._identity(call)
        with (
            Scratch(self.temp_dir_root) as scratch,
            CurrentCheckpoint(
                identity,
                scratch=scratch,
                load_policy=self.load_policy,
                retention=self.retention,
                temp_dir_root=self.temp_dir_root,
                store=opened_store(self.store),
            ) as checkpointer,
        ):
            if checkpointer.info is not None:
                self._check_lineage(identity, checkpointer.info, call)
                run_logger().info(
                    "Resuming from checkpoint %r of attempt %s: %s",
                    checkpointer.info.name,
                    checkpointer.info.producer.attempt,
                    checkpointer.info.key,
                )
            yield checkpointer

    def _identity(self, call: Call) -> RunIdentity:
        key = _render(self.key, call)
        if self.identity is not None:
            return self.identity if key is None else replace(self.identity, item=key)
        if not in_run():
            msg = (
                f"{call.function} is under @checkpoint and there is no Prefect run to save "
                "under: call it as a task or from a flow, or give the decorator "
                "identity=RunIdentity(…)."
            )
            raise SettingsError(msg)
        return run_identity(key=key)

    def _check_lineage(self, identity: RunIdentity, loaded: ArtifactRef, call: Call) -> None:
        """Refuse to go on from what another call in this run, with other inputs, has saved."""
        if self.key is not None or self.identity is not None or TaskRunContext.get() is None:
            return  # nothing in `run` stands for inputs
        mine, theirs = identity.run, loaded.producer.run
        if mine != theirs and _scope(mine) == _scope(theirs):
            msg = (
                f"{call.function} is called with different inputs in one run, and under "
                "load_policy='eager' all its calls share their checkpoints. Tell them apart: "
                "@checkpoint(key='{name}') for a parameter `name`."
            )
            raise SettingsError(msg, key=loaded.key)


def _scope(run: str) -> str:
    """Return a task's run without the digest of its inputs; see `run_identity`."""
    return run.rpartition("/")[0]


def _check_template(template: str, function: str, signature: inspect.Signature) -> None:
    try:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        msg = f"@checkpoint on {function}: key={template!r} is no template: {error}."
        raise SettingsError(msg) from error
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for field in fields:
        parameter = re.split(r"[.\[]", field, maxsplit=1)[0]
        if parameter not in signature.parameters and not takes_any:
            msg = (
                f"@checkpoint on {function}: key={template!r} names {parameter!r}, which is none "
                f"of its parameters ({', '.join(signature.parameters) or 'it has none'})."
            )
            raise SettingsError(msg)


def _render(key: Any, call: Call) -> str | None:
    """Return the key of this call.

    Raises:
        SettingsError: The template does not fit the values, or the key comes out empty.
    """
    if key is None:
        return None
    text: Any
    if isinstance(key, str):
        try:
            text = key.format_map(call.parameters)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            msg = f"The checkpoint key {key!r} of {call.function} cannot be filled in: {error!r}."
            raise SettingsError(msg) from error
    else:
        text = key(call.parameters)
    if not isinstance(text, str) or not text:
        msg = f"The checkpoint key of {call.function} came out as {text!r}; it must be text."
        raise SettingsError(msg)
    return text


@overload
def checkpoint(function: Function, /) -> Function: ...


@overload
def checkpoint(
    *,
    load_policy: LoadPolicy = ...,
    key: Key | None = ...,
    identity: RunIdentity | None = ...,
    retention: RetentionPolicy | None = ...,
    temp_dir_root: str | os.PathLike[str] | None = ...,
    store: StoreLike | None = ...,
) -> Callable[[Function], Function]: ...


def checkpoint(
    function: Function | None = None,
    /,
    *,
    load_policy: LoadPolicy = "fresh",
    key: Key | None = None,
    identity: RunIdentity | None = None,
    retention: RetentionPolicy | None = None,
    temp_dir_root: str | os.PathLike[str] | None = None,
    store: StoreLike | None = None,
) -> Any:
    """Give a function checkpoints: `current.checkpoint`, a `Checkpointer` around its body.

    Put it below `@task`. The policy's checkpoint is in `current.checkpoint.directory` when the
    body begins; when it ends, saves under way are waited for, and the error of one that
    failed in the background is raised.

    Args:
        function: The function, when the decorator is written without arguments.
        load_policy: `fresh` resumes this very call, across retries, crashes and reschedules
            of its run; `eager` goes on from any run's newest; `none` loads nothing.
        key: Tells calls of one task apart, run after run: text, a template over the
            function's parameters (`"{fold}"`, `"{config.name}"`), or a function that is
            given the parameters as a dict. `None`: the inputs do, inside one run.
        identity: Who saves, outside a Prefect run; inside one it is known.
        retention: Which checkpoints to keep, applied after each save; `None` keeps all.
        temp_dir_root: Where `current.checkpoint.directory` is made; `None` means the
            system's choice.
        store: A store or its URL; `None` means `HFFLOWS_STORE_URL`.

    Raises:
        SettingsError: At decoration: not a plain function, or arguments that do not fit it.
            At the call: no Prefect run and no `identity`; inputs that are no JSON values and
            no `key`; `eager` without `key`, and calls with different inputs.
    """
    setup = _CheckpointSetup(load_policy, key, identity, retention, temp_dir_root, store)
    return decorated(function, setup)
