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

from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, get_args, overload

from prefect.context import TaskRunContext

from hfflows.checkpoint import LoadPolicy, OnError, SavePolicy, WhenFull
from hfflows.errors import SettingsError
from hfflows.tasks._checkpoint_key import Key, check_key, render_key
from hfflows.tasks._checkpoint_pages import show_goodput, show_passed_over
from hfflows.tasks._current import in_run
from hfflows.tasks._current_checkpoint import CurrentCheckpoint, with_task_name
from hfflows.tasks._decorators import Call, Function, decorated
from hfflows.tasks._identity import run_identity
from hfflows.tasks._loaded import Scratch, StoreLike, opened_store

if TYPE_CHECKING:
    import inspect
    import os
    from collections.abc import Callable, Iterator

    from hfflows.artifacts import RetentionPolicy
    from hfflows.identity import RunIdentity
    from hfflows.refs import ArtifactRef


@dataclass(frozen=True, slots=True)
class _CheckpointSetup:
    """The arguments of one `@checkpoint`."""

    name: ClassVar[str] = "checkpoint"

    load_policy: LoadPolicy
    key: Any
    task_name: Any
    identity: RunIdentity | None
    retention: RetentionPolicy | None
    temp_dir_root: str | os.PathLike[str] | None
    saves: SavePolicy
    store: StoreLike | None

    def check(self, function: str, signature: inspect.Signature) -> None:
        if self.load_policy not in get_args(LoadPolicy):
            msg = (
                f"@checkpoint on {function}: load_policy={self.load_policy!r} is none of "
                f"{', '.join(get_args(LoadPolicy))}."
            )
            raise SettingsError(msg)
        check_key(self.key, function, signature)
        if self.task_name is not None and not (isinstance(self.task_name, str) and self.task_name):
            msg = f"@checkpoint on {function}: task_name={self.task_name!r} is no name."
            raise SettingsError(msg)

    @contextmanager
    def opened(self, call: Call) -> Iterator[CurrentCheckpoint]:
        identity = self._identity(call)
        with Scratch(self.temp_dir_root) as scratch:
            checkpointer = CurrentCheckpoint(
                identity,
                scratch=scratch,
                load_policy=self.load_policy,
                retention=self.retention,
                temp_dir_root=self.temp_dir_root,
                **asdict(self.saves),
                store=opened_store(self.store),
            )
            ended_by: BaseException | None = None
            try:
                with checkpointer:
                    show_passed_over(identity, checkpointer.passed_over, checkpointer.info)
                    if checkpointer.info is not None:
                        self._check_lineage(identity, checkpointer.info, call)
                    yield checkpointer
            except BaseException as error:
                ended_by = error
                raise
            finally:
                is_killed = ended_by is not None and not isinstance(ended_by, Exception)
                show_goodput(identity, checkpointer.goodput(), in_log_only=is_killed)

    def _identity(self, call: Call) -> RunIdentity:
        key = render_key(self.key, call)
        identity = self._who(key, call)
        return identity if self.task_name is None else replace(identity, task=self.task_name)

    def _who(self, key: str | None, call: Call) -> RunIdentity:
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


@overload
def checkpoint(function: Function, /) -> Function: ...


@overload
def checkpoint(
    *,
    load_policy: LoadPolicy = ...,
    key: Key | None = ...,
    task_name: str | None = ...,
    identity: RunIdentity | None = ...,
    retention: RetentionPolicy | None = ...,
    temp_dir_root: str | os.PathLike[str] | None = ...,
    max_in_flight: int = ...,
    when_full: WhenFull = ...,
    on_error: OnError = ...,
    grace_seconds: float | None = ...,
    nice: int = ...,
    store: StoreLike | None = ...,
) -> Callable[[Function], Function]: ...


def checkpoint(
    function: Function | None = None,
    /,
    *,
    load_policy: LoadPolicy = "fresh",
    key: Key | None = None,
    task_name: str | None = None,
    identity: RunIdentity | None = None,
    retention: RetentionPolicy | None = None,
    temp_dir_root: str | os.PathLike[str] | None = None,
    max_in_flight: int = 1,
    when_full: WhenFull = "wait",
    on_error: OnError = "raise",
    grace_seconds: float | None = None,
    nice: int = 19,
    store: StoreLike | None = None,
) -> Any:
    """Give a function checkpoints: `current.checkpoint`, a `Checkpointer` around its body.

    Put it below `@task`. The policy's checkpoint is in `current.checkpoint.directory` when the
    body begins; when it ends, saves under way are waited for, and the error of one that
    failed in the background is raised. The run's page in the UI then has a table of what was
    done, and what keeping it safe took.

    Args:
        function: The function, when the decorator is written without arguments.
        load_policy: `fresh` resumes this very call, across retries, crashes and reschedules
            of its run; `eager` goes on from any run's newest; `none` loads nothing.
        key: Tells calls of one task apart, run after run: text, a template over the
            function's parameters (`"{fold}"`, `"{config.name}"`), or a function that is
            given the parameters as a dict. `None`: the inputs do, inside one run.
        task_name: Name under which checkpoints are kept, so that they are found again when
            the task was renamed or its code moved; `None` means the task's own name.
        identity: Who saves, outside a Prefect run; inside one it is known.
        retention: Which checkpoints to keep, applied after each save; `None` keeps all.
        temp_dir_root: Where `current.checkpoint.directory` is made; `None` means the
            system's choice.
        max_in_flight: How many saves with `block=False` may be put aside and not committed.
        when_full: With so many under way the next one `wait`s, or it is `skip`ped.
        on_error: A failed background save is `raise`d by the next save, by `wait` or at the
            end; or it is logged (`warn`), and the next save is a new try.
        grace_seconds: From SIGTERM to SIGKILL; `None` means `HFFLOWS_GRACE_SECONDS`, else 30.
        nice: How far saves with `block=False` stand back for training where both want the
            processor: 0, as an equal, to 19; see nice(2). Linux only.
        store: A store or its URL; `None` means `HFFLOWS_STORE_URL`.

    Raises:
        SettingsError: At decoration: not a plain function, or arguments that do not fit it.
            At the call: no Prefect run and no `identity`; inputs that are no JSON values and
            no `key`; `eager` without `key`, and calls with different inputs.
    """
    saves = SavePolicy(max_in_flight, when_full, on_error, grace_seconds, nice)
    setup = _CheckpointSetup(
        load_policy, key, task_name, identity, retention, temp_dir_root, saves, store
    )
    if task_name is None:
        return decorated(function, setup)

    def named(function: Callable[..., Any]) -> Any:
        return with_task_name(decorated(function, setup), task_name)

    return named if function is None else named(function)
