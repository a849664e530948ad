"""`@model`: artifacts in by reference, models out.

| `load=` | what it does before the body |
|---|---|
| `"base"` | loads what parameter `base` refers to (a reference, its dict, its key) for a while |
| `["base", "teacher"]` | each of them |
| `[("base", "./base")]` | into this directory, which stays; a retry finds it there |

`current.model.loaded["base"]` is the directory, `current.model.info["base"]` the reference.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, overload

from hfflows import checkpoint
from hfflows.artifacts import resolve_ref, store_for
from hfflows.errors import SettingsError
from hfflows.tasks._decorators import Call, Function, decorated
from hfflows.tasks._identity import producer
from hfflows.tasks._loaded import (
    Loaded,
    Scratch,
    StoreLike,
    opened_store,
    place,
)
from hfflows.tasks._support import run_logger, show_ref

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hfflows.artifacts import RefLike
    from hfflows.refs import ArtifactRef, StorageFormat
    from hfflows.storage import Store

ModelsToLoad = str | list[str | tuple[str, str | os.PathLike[str] | None]]


class CurrentModel:
    """The models of the running body: `current.model`."""

    def __init__(self, store: Store | None, scratch: Scratch) -> None:
        self.loaded = Loaded("@model(load=…)")
        """Directories of what `load=` names, by parameter; their references in `.info`."""
        self._store = store
        self._scratch = scratch

    @property
    def info(self) -> Mapping[str, ArtifactRef]:
        """The references of what `load=` names, by parameter."""
        return self.loaded.info

    def load(self, ref: RefLike, path: str | os.PathLike[str] | None = None) -> Path:
        """Copy any artifact into a directory, verified, and return the directory.

        Args:
            ref: The reference, its dict, or its key.
            path: Absent or empty directory, or one that holds this very artifact; it stays.
                `None` makes a temporary one, which is gone after the body.

        Raises:
            As `hfflows.load_artifact`.
        """
        store = store_for(ref, self._store)
        target = Path(path) if path is not None else self._scratch.new()
        return place(resolve_ref(ref, store=store), target, store=store)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        label: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        parents: Sequence[RefLike] | None = None,
        storage_format: StorageFormat = "files",
    ) -> ArtifactRef:
        """Save a model directory or file and return its reference.

        Args:
            path: What to save.
            label: Name under which it is listed; may hold `/`. `None` means `flow/task`.
            metadata: JSON values kept in the reference: metrics, hyperparameters.
            parents: What it was made from; `None` means what `load=` loaded.
            storage_format: `files` leaves objects that other tools can read.

        Raises:
            SettingsError: No `label` outside a run.
            As `hfflows.save_artifact`.
        """
        made_by = producer()
        if label is None and not made_by.task:
            msg = "current.model.save needs label=… outside a Prefect run."
            raise SettingsError(msg)
        label = label or f"{made_by.flow}/{made_by.task}"
        ref = checkpoint.save_model(
            path,
            label=label,
            metadata=metadata,
            parents=tuple(self.info.values()) if parents is None else parents,
            storage_format=storage_format,
            producer=made_by,
            store=self._store,
        )
        run_logger().info("Saved model %s, %s bytes", ref.key, f"{ref.size_bytes:,}")
        show_ref(ref, f"Model {label}", **(metadata or {}))
        return ref


@dataclass(frozen=True, slots=True)
class _ModelSetup:
    """The arguments of one `@model`; `load` as (parameter, path) pairs."""

    name: ClassVar[str] = "model"

    load: tuple[tuple[str, Path | None], ...]
    temp_dir_root: str | os.PathLike[str] | None
    store: StoreLike | None

    def check(self, function: str, signature: inspect.Signature) -> None:
        parameters = signature.parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name, _ in self.load:
            if name not in parameters and not takes_any:
                msg = (
                    f"@model on {function}: load names {name!r}, which is none of its parameters "
                    f"({', '.join(parameters) or 'it has none'})."
                )
                raise SettingsError(msg)

    @contextmanager
    def opened(self, call: Call) -> Iterator[CurrentModel]:
        store = None if self.store is None else opened_store(self.store)
        with Scratch(self.temp_dir_root) as scratch:
            models = CurrentModel(store, scratch)
            found = [(name, path, _reference(name, call, store)) for name, path in self.load]
            models.loaded = Loaded(
                "@model(load=…)",
                [((name,), models.load(ref, path), ref) for name, path, ref in found],
            )
            yield models


def _reference(name: str, call: Call, store: Store | None) -> ArtifactRef:
    value = call.parameters.get(name)
    if value is None:
        msg = (
            f"{call.function} was called without a value for {name!r}; "
            "@model(load=…) needs a reference, its dict or its key there."
        )
        raise SettingsError(msg)
    return resolve_ref(value, store=store_for(value, store))


def parse_models(load: Any) -> tuple[tuple[str, Path | None], ...]:
    """Return `load=` of `@model` as (parameter, path or None) pairs.

    Raises:
        SettingsError: It has another form, or names a parameter or a path twice.
    """
    entries = [load] if isinstance(load, str) else [] if load is None else load
    if not isinstance(entries, list):
        msg = f"@model(load=…) takes a parameter's name or a list, got {load!r}."
        raise SettingsError(msg)
    pairs = tuple(_parse_model(entry) for entry in entries)
    names = [name for name, _ in pairs]
    paths = [path for _, path in pairs if path is not None]
    if len({*names}) < len(names) or len({*paths}) < len(paths):
        msg = f"@model(load={load!r}) names a parameter or a path twice."
        raise SettingsError(msg)
    return pairs


def _parse_model(entry: Any) -> tuple[str, Path | None]:
    match entry:
        case str():
            return entry, None
        case (str() as name, None):
            return name, None
        case (str() as name, path) if isinstance(path, str | os.PathLike) and str(path):
            return name, Path(path)
        case _:
            msg = (
                f"@model(load=…): {entry!r} is neither a parameter's name nor a (name, path) tuple."
            )
            raise SettingsError(msg)


@overload
def model(function: Function, /) -> Function: ...


@overload
def model(
    *,
    load: ModelsToLoad | None = ...,
    temp_dir_root: str | os.PathLike[str] | None = ...,
    store: StoreLike | None = ...,
) -> Callable[[Function], Function]: ...


def model(
    function: Function | None = None,
    /,
    *,
    load: ModelsToLoad | None = None,
    temp_dir_root: str | os.PathLike[str] | None = None,
    store: StoreLike | None = None,
) -> Any:
    """Load what parameters refer to before a function's body, and give it `current.model`.

    Put it below `@task`; it works outside a Prefect run too. Whatever a reference names can
    be loaded: models, checkpoints, snapshots, exports.

    Args:
        function: The function, when the decorator is written without arguments.
        load: Names of parameters that hold a reference, its dict or its key: one name, a
            list of names, or of (name, path) tuples. Directories at a given path stay, the
            others are gone after the body.
        temp_dir_root: Where temporary directories are made; `None` means the system's choice.
        store: A store or its URL; `None` loads from the store that a reference names and
            saves to `HFFLOWS_STORE_URL`.

    Raises:
        SettingsError: At decoration: not a plain function, or `load` does not fit it. At the
            call: a parameter holds no reference.
        TargetError: At the call: something else is at a given path.
        As `hfflows.load_artifact`, at the call.
    """
    return decorated(function, _ModelSetup(parse_models(load), temp_dir_root, store))
