"""What `@checkpoint`, `@model` and `@huggingface_hub` share: opening around a body.

They wrap plain functions and coroutine functions, below `@task`, in any order, and keep name
and signature. What a decorator sets up is opened before the body, bound to `current` during
it and closed after it, whatever ends the body. Around a coroutine that happens in a thread;
inside it, `await asyncio.to_thread(current.checkpoint.save)` does the same for a save.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from prefect import Flow, Task

from hfflows.errors import SettingsError
from hfflows.tasks._current import bound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

Function = TypeVar("Function", bound="Callable[..., Any]")
Result = TypeVar("Result")

_MARK = "__hfflows_decorators__"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a decorated function."""

    function: str
    parameters: Mapping[str, Any]
    """By name, defaults filled in, `**kwargs` laid out flat."""


class Setup(Protocol):
    """What one decorator does around each call; pickled with the task that carries it."""

    @property
    def name(self) -> str:
        """The decorator's name, and the attribute of `current`."""
        ...

    def check(self, function: str, signature: inspect.Signature) -> None:
        """Refuse at decoration what can never work.

        Raises:
            SettingsError: The arguments are wrong, or do not fit the function.
        """
        ...

    def opened(self, call: Call) -> AbstractContextManager[object]:
        """Return a context that yields what `current` shows; it may block."""
        ...


def decorate(function: Function, setup: Setup) -> Function:
    """Return `function` with `setup` opened around each call.

    Raises:
        SettingsError: Not a plain function or a coroutine function; decorated so already; or
            the decorator's arguments do not fit it.
    """
    _check_function(function, setup.name)
    setup.check(function.__name__, inspect.signature(function))
    around = _around_coroutine if inspect.iscoroutinefunction(function) else _around_function
    wrapped = around(function, setup)
    setattr(wrapped, _MARK, {*getattr(function, _MARK, ()), setup.name})
    return cast("Function", wrapped)


def decorated(function: Function | None, setup: Setup) -> Any:
    """Return what a decorator returns that is written with or without arguments."""
    if function is not None:
        return decorate(function, setup)
    return functools.partial(decorate, setup=setup)


def _check_function(function: Any, name: str) -> None:
    what = None
    if isinstance(function, Task | Flow):
        above = "task" if isinstance(function, Task) else "flow"
        what = f"stands above @{above}; put it below: it wraps the function, not the {above}"
    elif not inspect.isfunction(function):
        what = f"wraps plain functions, got {function!r}; its arguments are keywords"
    elif inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        what = f"cannot wrap the generator {function.__name__}; return a value instead"
    elif name in getattr(function, _MARK, ()):
        what = f"is on {function.__name__} twice; once is enough"
    if what is not None:
        msg = f"@{name} {what}."
        raise SettingsError(msg)


def _around_function(function: Callable[..., Any], setup: Setup) -> Callable[..., Any]:
    # Prefect's process runner pickles this closure: it may name only what can be imported.
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _opened(function, setup, args, kwargs):
            return function(*args, **kwargs)

    return call


def _around_coroutine(function: Callable[..., Any], setup: Setup) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        async with _opened_async(function, setup, args, kwargs):
            return await function(*args, **kwargs)

    return call


@contextmanager
def _opened(
    function: Callable[..., Any], setup: Setup, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[None]:
    with setup.opened(_call(function, args, kwargs)) as view, bound(setup.name, view):
        yield


@asynccontextmanager
async def _opened_async(
    function: Callable[..., Any], setup: Setup, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> AsyncIterator[None]:
    """As `_opened`, with the transfers in a thread: other coroutines go on meanwhile."""
    stack = ExitStack()
    context = setup.opened(_call(function, args, kwargs))
    try:
        view = await _in_thread(stack.enter_context, context)
        with bound(setup.name, view):
            yield
    except BaseException as error:
        await _in_thread(stack.__exit__, type(error), error, error.__traceback__)
        raise
    await _in_thread(stack.__exit__, None, None, None)


async def _in_thread(function: Callable[..., Result], *args: Any) -> Result:
    """Return `function(*args)`; being cancelled waits for it, so that nothing is left behind."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    signature = inspect.signature(function)
    given = signature.bind(*args, **kwargs)
    given.apply_defaults()
    parameters = dict(given.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            parameters |= parameters.pop(parameter.name)
    return Call(function.__name__, parameters)
