"""What a snapshot can be asked for with: one list, shared by every function that takes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from hfflows import keys
from hfflows.errors import SettingsError
from hfflows.hub._client import HubClient
from hfflows.hub._selection import Selection
from hfflows.hub._wire import Caller, offline_reason

if TYPE_CHECKING:
    from datetime import timedelta

    from hfflows.artifacts import TransferReport
    from hfflows.identity import RunIdentity
    from hfflows.keys import CacheScope, RepoType
    from hfflows.storage import Store

Function = TypeVar("Function", bound=Callable[..., Any])

Slot = Callable[[], AbstractContextManager[Any]]
"""Makes a context manager that waits until the Hub may be asked for files."""

MEANINGLESS = {
    "cache_dir": (
        "snapshots are kept in the store. For the cache of huggingface_hub on this machine use "
        "load_snapshot(…, layout='hf_cache', path=…)"
    ),
    "local_dir": "snapshots are kept in the store. For a directory use load_snapshot(…, path=…)",
    "tqdm_class": "bytes go to the store, often on another machine; pass report= to count them",
}
"""Arguments of `huggingface_hub.snapshot_download` without a meaning here, and why."""


class SnapshotOptions(TypedDict, total=False):
    """Keyword arguments of `fetch_snapshot`, where each is described."""

    revision: str | None
    repo_type: RepoType | None
    allow_patterns: Sequence[str] | str | None
    ignore_patterns: Sequence[str] | str | None
    allow_pickles: bool
    allow_flagged: bool
    cache_scope: CacheScope | None
    max_age: timedelta | float | None
    force_download: bool
    local_files_only: bool
    stale_if_error: bool
    token: str | bool | None
    endpoint: str | None
    library_name: str | None
    library_version: str | None
    user_agent: Mapping[str, str] | str | None
    headers: Mapping[str, str] | None
    etag_timeout: float | None
    max_workers: int
    cache_dir: None
    local_dir: None
    tqdm_class: None
    identity: RunIdentity | None
    report: TransferReport | None
    slot: Slot | None
    store: Store | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRequest:
    """One call's options with their defaults; wrong ones are refused here.

    Raises:
        SettingsError: An option that has no meaning here, or two that exclude each other.
    """

    repo_id: str
    revision: str | None = None
    repo_type: RepoType | None = None
    allow_patterns: Sequence[str] | str | None = None
    ignore_patterns: Sequence[str] | str | None = None
    allow_pickles: bool = False
    allow_flagged: bool = False
    cache_scope: CacheScope | None = None
    max_age: timedelta | float | None = None
    force_download: bool = False
    local_files_only: bool = False
    stale_if_error: bool = True
    token: str | bool | None = field(default=None, repr=False)
    endpoint: str | None = None
    library_name: str | None = None
    library_version: str | None = None
    user_agent: Mapping[str, str] | str | None = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    etag_timeout: float | None = None
    max_workers: int = 8
    cache_dir: None = None
    local_dir: None = None
    tqdm_class: None = None
    identity: RunIdentity | None = None
    report: TransferReport | None = None
    slot: Slot | None = None
    store: Store | None = None

    def __post_init__(self) -> None:
        for name, reason in MEANINGLESS.items():
            if getattr(self, name) is not None:
                msg = f"{name}= has no meaning for a snapshot of hfflows: {reason}."
                raise SettingsError(msg)
        if self.force_download and self.offline:
            msg = f"force_download=True asks the Hub, which {self.offline} forbids."
            raise SettingsError(msg)

    @property
    def offline(self) -> str | None:
        """What forbids asking the Hub, if anything does."""
        return "local_files_only=True" if self.local_files_only else offline_reason()

    @property
    def scope(self) -> str:
        """The part of a key that decides who sees the entry."""
        scope = self.cache_scope or ("checkpoint" if self.identity else "global")
        return keys.scope_prefix(scope, self.identity)

    @property
    def selection(self) -> Selection:
        """Which files are asked for; in a dataset or a space a pickle is no second copy."""
        takes_pickles = self.allow_pickles or self.repo_type not in {None, "model"}
        return Selection.of(self.allow_patterns, self.ignore_patterns, takes_pickles=takes_pickles)

    def client(self) -> HubClient:
        """Return a client for the repo at the revision."""
        caller = Caller(
            library_name=self.library_name,
            library_version=self.library_version,
            user_agent=self.user_agent,
            headers=self.headers,
            etag_timeout=self.etag_timeout,
            max_workers=self.max_workers,
        )
        return HubClient(
            self.repo_id,
            repo_type=self.repo_type or "model",
            revision=self.revision,
            token=self.token,
            endpoint=self.endpoint,
            caller=caller,
        )


def lists_options(function: Function) -> Function:
    """Let `help()` and `inspect.signature` show each option in place of `**options`."""
    signature = inspect.signature(function)
    named = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    options = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=option.type,
        )
        for option in fields(SnapshotRequest)
        if option.name not in signature.parameters
    ]
    shown = signature.replace(parameters=[*named, *options])
    function.__signature__ = shown  # type: ignore[attr-defined] # what inspect looks for first
    return function
