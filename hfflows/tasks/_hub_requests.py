"""From the forms of `@huggingface_hub(load=…)` to what is asked of the Hub.

| form | meaning |
|---|---|
| `"org/name"` | the repo's `main`, into a temporary directory |
| `"org/name@v1.0"` | a branch, tag, `refs/pr/N` or commit of it |
| `{"repo_id": "org/name", …}` | with arguments of `hfflows.snapshot_download` |
| `("org/name", "./dir")`, `({…}, "./dir")` | into this directory, which stays |

| it goes by | |
|---|---|
| `org/name` | unless something else of that id is loaded too |
| `org/name@v1.0` | a model always; `@main` when no revision was given |
| `datasets/org/name@v1.0`, `spaces/…` | a dataset or a space always |
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from hfflows.errors import SettingsError
from hfflows.hub import fetch_snapshot
from hfflows.keys import RepoType

RepoToLoad = str | Mapping[str, Any]
ReposToLoad = str | list[RepoToLoad | tuple[RepoToLoad, str | os.PathLike[str] | None]]

_OURS = {"identity", "report", "store"}  # filled in by the decorator
_ELSEWHERE = {"cache_dir", "local_dir", "tqdm_class"}  # huggingface_hub's, about its own disk

ARGUMENTS = frozenset(inspect.signature(fetch_snapshot).parameters) - _OURS - _ELSEWHERE
"""What a dict of arguments may hold."""

_FOLDERS: dict[RepoType, str] = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass(frozen=True, slots=True)
class RepoRequest:
    """One repo at one revision, and where its files go."""

    repo_id: str
    repo_type: RepoType = "model"
    revision: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold a token
    path: Path | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return what it goes by, from the plainest name to the exact one."""
        folder, at = _FOLDERS[self.repo_type], f"@{self.revision or 'main'}"
        plain = (self.repo_id, f"{folder}{self.repo_id}")
        return tuple(dict.fromkeys([*plain, *(f"{name}{at}" for name in plain)]))


def parse_repos(load: Any) -> tuple[RepoRequest, ...]:
    """Return `load=` of `@huggingface_hub` as requests.

    Raises:
        SettingsError: A form or an argument is wrong, or the same thing is asked for twice.
    """
    entries = [load] if isinstance(load, str) else [] if load is None else load
    if not isinstance(entries, list):
        msg = f"@huggingface_hub(load=…) takes a repo id or a list, got {type(load).__name__}."
        raise SettingsError(msg)
    requests = tuple(_parse_entry(entry) for entry in entries)
    exact = [request.names[-1] for request in requests]
    paths = [request.path for request in requests if request.path is not None]
    twice = [item for item in (*exact, *paths) if (*exact, *paths).count(item) > 1]
    if twice:
        msg = (
            f"@huggingface_hub(load=…) asks for {str(twice[0])!r} twice; join their patterns, or "
            "use current.huggingface_hub.load in the body."
        )
        raise SettingsError(msg)
    return requests


def _parse_entry(entry: Any) -> RepoRequest:
    match entry:
        case (repo, None):
            return parse_repo(repo)
        case (repo, path) if isinstance(path, str | os.PathLike) and str(path):
            return parse_repo(repo, Path(path))
        case tuple() | list():
            msg = f"@huggingface_hub(load=…): a tuple is (repo, path), got {len(entry)} parts."
            raise SettingsError(msg)
        case _:
            return parse_repo(entry)


def parse_repo(repo: Any, path: Path | None = None) -> RepoRequest:
    """Return the request that a repo id or a dict of arguments stands for.

    Raises:
        SettingsError: It is neither, or an argument is unknown or wrong.
    """
    if isinstance(repo, str):
        repo = {"repo_id": repo}
    if not isinstance(repo, Mapping):
        msg = f"A repo to load is an id or a dict of arguments, got {type(repo).__name__}."
        raise SettingsError(msg)
    _check_arguments(repo)
    options = dict(repo)
    repo_id, revision = _split(options.pop("repo_id"), options.pop("revision", None))
    repo_type: Any = options.pop("repo_type", None) or "model"
    if repo_type not in get_args(RepoType):
        msg = f"{repo_id}: repo_type={repo_type!r} is none of {', '.join(get_args(RepoType))}."
        raise SettingsError(msg)
    return RepoRequest(repo_id, repo_type, revision, options, path)


def _check_arguments(arguments: Mapping[str, Any]) -> None:
    if not isinstance(arguments.get("repo_id"), str):
        msg = "A dict of arguments needs a 'repo_id'."
        raise SettingsError(msg)
    unknown = sorted(str(name) for name in arguments if name not in ARGUMENTS)
    if unknown:
        hint = (
            "Write (repo, path) to choose the directory."
            if "local_dir" in unknown
            else f"There are: {', '.join(sorted(ARGUMENTS))}."
        )
        msg = f"{arguments['repo_id']}: {', '.join(unknown)} cannot be given here. {hint}"
        raise SettingsError(msg)


def _split(repo_id: str, revision: Any) -> tuple[str, str | None]:
    """Return (repo id, revision) of `org/name@revision`."""
    name, at, written = repo_id.partition("@")
    if not name or (at and not written) or (at and revision not in (None, written)):
        msg = f"The repo id {repo_id!r} names no repo, or another revision than {revision!r}."
        raise SettingsError(msg)
    return name, written or revision or None
