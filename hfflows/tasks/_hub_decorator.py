"""`@huggingface_hub`: Hub repos on disk before the body, by way of the store.

    @huggingface_hub(load=["org/model", ("org/data", "./data")], cache_scope="flow")
    def train():
        path = current.huggingface_hub.loaded["org/model"]

| `cache_scope` | who shares what was fetched |
|---|---|
| `checkpoint` | this task of this flow in this namespace; the default in a run |
| `flow` | all tasks of this flow |
| `global` | everybody on this store; the default outside a run |

The forms of `load=` are in `_hub_requests`. All repos are fetched into the store first, then
loaded from it: when one cannot be had, no directory has been filled.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_args, overload

from hfflows.errors import SettingsError
from hfflows.hub import SnapshotResult, fetch_snapshot
from hfflows.keys import CacheScope
from hfflows.tasks._current import in_run
from hfflows.tasks._decorators import Call, Function, decorated
from hfflows.tasks._hub_requests import RepoRequest, parse_repo, parse_repos
from hfflows.tasks._identity import run_identity
from hfflows.tasks._loaded import (
    Loaded,
    Scratch,
    StoreLike,
    opened_store,
    place,
)
from hfflows.tasks._snapshot import hub_slot, report_snapshot, token_from_block

if TYPE_CHECKING:
    import inspect
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from hfflows.identity import RunIdentity
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store
    from hfflows.tasks._hub_requests import ReposToLoad

Given = TypeVar("Given")
Made = TypeVar("Made")

REPOS_IN_FLIGHT = 4
"""Each of them moves several files at once."""


@dataclass(frozen=True, slots=True)
class _Hub:
    """How the running body asks for repos."""

    identity: RunIdentity | None
    cache_scope: CacheScope | None
    token: str | None
    store: Store

    def fetch(self, request: RepoRequest) -> SnapshotResult:
        options = {
            "cache_scope": self.cache_scope,
            "token": self.token,
            "slot": hub_slot() if in_run() else None,
            **request.options,
        }
        return fetch_snapshot(
            request.repo_id,
            revision=request.revision,
            repo_type=request.repo_type,
            identity=self.identity,
            store=self.store,
            **options,
        )


class CurrentHub:
    """The Hub repos of the running body: `current.huggingface_hub`."""

    def __init__(self, hub: _Hub, scratch: Scratch) -> None:
        self.loaded = Loaded("@huggingface_hub(load=…)")
        """Directories of what `load=` names, by repo id; their references in `.info`."""
        self._hub = hub
        self._scratch = scratch

    @property
    def info(self) -> Mapping[str, ArtifactRef]:
        """The references of what `load=` names, by repo id."""
        return self.loaded.info

    def snapshot_download(self, repo_id: str, **arguments: Any) -> ArtifactRef:
        """Copy a Hub repo at a commit into the store, once, and return its reference.

        Args:
            repo_id: `org/name`, or `org/name@revision`.
            **arguments: Of `hfflows.snapshot_download`; scope and token are the decorator's
                unless given.

        Raises:
            As `hfflows.snapshot_download`.
        """
        result = self._hub.fetch(parse_repo({"repo_id": repo_id, **arguments}))
        report_snapshot(result)
        return result.ref

    @contextmanager
    def load(
        self, repo_id: str, *, path: str | os.PathLike[str] | None = None, **arguments: Any
    ) -> Iterator[Path]:
        """Yield a directory with a Hub repo at a commit, by way of the store.

        Args:
            repo_id: `org/name`, or `org/name@revision`.
            path: Absent or empty directory, or one that holds this very snapshot; it stays.
                `None` makes a temporary one, which is gone afterwards.
            **arguments: As for `snapshot_download`.

        Raises:
            As `hfflows.load_snapshot`.
        """
        ref = self.snapshot_download(repo_id, **arguments)
        if path is not None:
            yield place(ref, Path(path), store=self._hub.store)
            return
        scratch = self._scratch.new()
        try:
            yield place(ref, scratch, store=self._hub.store)
        finally:
            self._scratch.remove(scratch)

    def load_all(self, requests: Sequence[RepoRequest]) -> None:
        """Fetch what `load=` asks for, then load it; `loaded` and `info` have it afterwards."""
        results = self._fetch_all(requests)
        paths = _in_parallel(self._place, [*zip(requests, results, strict=True)])
        for result in results:
            report_snapshot(result)
        self.loaded = Loaded(
            "@huggingface_hub(load=…)",
            [
                (request.names, path, result.ref)
                for request, path, result in zip(requests, paths, results, strict=True)
            ],
        )

    def _fetch_all(self, requests: Sequence[RepoRequest]) -> list[SnapshotResult]:
        """Fetch repos in parallel, revisions of one repo in turn: the second finds its bytes."""
        by_repo: dict[str, list[RepoRequest]] = {}
        for request in requests:
            by_repo.setdefault(request.repo_id, []).append(request)

        def fetch(group: list[RepoRequest]) -> list[tuple[str, SnapshotResult]]:
            return [(request.names[-1], self._hub.fetch(request)) for request in group]

        fetched = dict(chain.from_iterable(_in_parallel(fetch, [*by_repo.values()])))
        return [fetched[request.names[-1]] for request in requests]

    def _place(self, fetched: tuple[RepoRequest, SnapshotResult]) -> Path:
        request, result = fetched
        path = request.path if request.path is not None else self._scratch.new()
        return place(result.ref, path, store=self._hub.store)


def _in_parallel(function: Callable[[Given], Made], items: Sequence[Given]) -> list[Made]:
    """Return the results in order; after an error nothing more is begun."""
    pool = ThreadPoolExecutor(REPOS_IN_FLIGHT, thread_name_prefix="hfflows-repos")
    try:
        # In this context: what the threads log belongs to the run.
        futures = [pool.submit(copy_context().run, function, item) for item in items]
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _HubSetup:
    """The arguments of one `@huggingface_hub`; `load` as requests."""

    name: ClassVar[str] = "huggingface_hub"

    load: tuple[RepoRequest, ...]
    cache_scope: CacheScope | None
    temp_dir_root: str | os.PathLike[str] | None
    token_block: str | None
    store: StoreLike | None

    def check(self, function: str, signature: inspect.Signature) -> None:
        if self.cache_scope not in {None, *get_args(CacheScope)}:
            msg = (
                f"@huggingface_hub on {function}: cache_scope={self.cache_scope!r} is none of "
                f"{', '.join(get_args(CacheScope))}."
            )
            raise SettingsError(msg)

    @contextmanager
    def opened(self, call: Call) -> Iterator[CurrentHub]:
        hub = _Hub(
            run_identity(key="") if in_run() else None,
            self.cache_scope,
            token_from_block(self.token_block),
            opened_store(self.store),
        )
        with Scratch(self.temp_dir_root) as scratch:
            view = CurrentHub(hub, scratch)
            view.load_all(self.load)
            yield view


@overload
def huggingface_hub(function: Function, /) -> Function: ...


@overload
def huggingface_hub(
    *,
    load: ReposToLoad | None = ...,
    cache_scope: CacheScope | None = ...,
    temp_dir_root: str | os.PathLike[str] | None = ...,
    token_block: str | None = ...,
    store: StoreLike | None = ...,
) -> Callable[[Function], Function]: ...


def huggingface_hub(
    function: Function | None = None,
    /,
    *,
    load: ReposToLoad | None = None,
    cache_scope: CacheScope | None = None,
    temp_dir_root: str | os.PathLike[str] | None = None,
    token_block: str | None = None,
    store: StoreLike | None = None,
) -> Any:
    """Load Hub repos before a function's body, and give it `current.huggingface_hub`.

    Put it below `@task`; it works outside a Prefect run too.

    Args:
        function: The function, when the decorator is written without arguments.
        load: Repos to load: an id, or a list of ids (`org/name@revision` too), of dicts of
            `hfflows.snapshot_download`'s arguments, and of (one of these, path) tuples.
            Directories at a given path stay, the others are gone after the body.
        cache_scope: Who shares what is fetched: `checkpoint`, `flow` or `global`; `None`
            means `checkpoint` in a run and `global` outside.
        temp_dir_root: Where temporary directories are made; `None` means the system's choice.
        token_block: Name of a Prefect `Secret` block with a Hub token; `None` means `HF_TOKEN`
            or `hf auth login`.
        store: A store or its URL; `None` means `HFFLOWS_STORE_URL`.

    Raises:
        SettingsError: At decoration: not a plain function, or wrong arguments.
        TargetError: At the call: something else is at a given path.
        As `hfflows.load_snapshot`, at the call.
    """
    setup = _HubSetup(parse_repos(load), cache_scope, temp_dir_root, token_block, store)
    return decorated(function, setup)
