"""From a revision to a commit: asked of the Hub, or remembered in the store.

What a branch or tag stood for lies at `revisions/<scope…>/<repo_type>/<repo_id>/<revision>/`,
newest first. A full commit never changes and is never asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from hfflows import keys
from hfflows.artifacts import create_document, read_document
from hfflows.errors import (
    ArtifactNotFoundError,
    HubUnavailableError,
    IntegrityError,
    ObjectNotFoundError,
    SettingsError,
)
from hfflows.hub._client import BRIEF, PATIENT

if TYPE_CHECKING:
    from hfflows.hub._client import HubClient
    from hfflows.hub._errors import Repo
    from hfflows.storage import Store

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Memory:
    """What a branch or tag stood for at some time; `key` is where that is written down."""

    key: str
    commit_hash: str
    endpoint: str
    resolved_at: datetime

    def is_within(self, age_seconds: float | None) -> bool:
        elapsed = (datetime.now(UTC) - self.resolved_at).total_seconds()
        return age_seconds is not None and elapsed <= age_seconds


@dataclass(frozen=True, slots=True)
class Resolution:
    """The commit a revision stands for, and how that is known."""

    commit_hash: str
    source: Literal["pinned", "hub", "memory", "stale"]
    unavailable: HubUnavailableError | None = None
    """Why the Hub did not say, when it was asked and `source` is `stale`."""
    fallback: str | None = None
    """The commit to serve when the Hub fails after all, `source` being `hub`."""
    learned: Memory | None = None
    """What the Hub said, to be remembered once there is a snapshot of it."""
    superseded: str | None = None
    """Key of what `learned` takes the place of."""

    def without_hub(self, error: HubUnavailableError) -> Resolution | None:
        """Return what to fall back on after the Hub failed, if anything."""
        return Resolution(self.fallback, "stale", error) if self.fallback else None

    def remember(self, store: Store) -> None:
        """Write down what the Hub said, if it was asked.

        Under an id of the time when it said so: who asked later is not overruled by who
        took longer to fetch.
        """
        if self.learned is None:
            return
        body = {
            "format_version": 1,
            "commit_hash": self.learned.commit_hash,
            "endpoint": self.learned.endpoint,
            "resolved_at": self.learned.resolved_at.isoformat(),
        }
        create_document(store, self.learned.key, body)
        if self.superseded is not None:
            store.delete([self.superseded])


def is_commit(revision: str | None) -> bool:
    """Return whether this is a full commit hash, which needs no resolving."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def resolve_revision(
    client: HubClient,
    scope: str,
    *,
    max_age: timedelta | float | None,
    stale_if_error: bool,
    force: bool,
    offline: str | None = None,
    store: Store,
) -> Resolution:
    """Return the commit that the client's revision stands for.

    Args:
        client: Repo and revision.
        scope: Key part of the cache scope.
        max_age: How long, in seconds, the remembered commit is good without asking.
        stale_if_error: Fall back on the remembered commit when the Hub is unavailable.
        force: Ask the Hub whatever is remembered, and do not fall back.
        offline: What forbids asking the Hub, if anything does.
        store: Where revisions are remembered.

    Raises:
        RepoNotFoundError, RevisionNotFoundError, GatedRepoError, HubAccessError: As the Hub says.
        HubUnavailableError: It does not answer, and nothing is remembered.
        ArtifactNotFoundError: It may not be asked, and nothing is remembered.
    """
    revision = client.repo.revision
    if is_commit(revision):
        return Resolution(revision, "pinned")
    age = _seconds(max_age)
    prefix = keys.revision_prefix(scope, client.repo.repo_type, client.repo.repo_id, revision)
    memory = _recall(prefix, client.repo.endpoint, store)
    if memory is not None and memory.is_within(age) and not force:
        return Resolution(memory.commit_hash, "memory")
    fallback = memory if stale_if_error and not force else None
    if offline is not None:
        if fallback is None:
            raise _unknown(client.repo, offline, store)
        return Resolution(fallback.commit_hash, "stale")
    asked_at = datetime.now(UTC)  # not when it answers: it may have moved by then
    try:
        commit_hash = client.resolve(patience=BRIEF if fallback else PATIENT)
    except HubUnavailableError as error:
        if fallback is None:
            raise
        return Resolution(fallback.commit_hash, "stale", error)
    superseded = memory.key if memory else None
    key = f"{prefix}{keys.new_id(after=keys.id_of(superseded) if superseded else None)}.json"
    return Resolution(
        commit_hash,
        "hub",
        fallback=fallback.commit_hash if fallback else None,
        learned=Memory(key, commit_hash, client.repo.endpoint, asked_at),
        superseded=superseded,
    )


def _unknown(repo: Repo, offline: str, store: Store) -> ArtifactNotFoundError:
    msg = (
        f"{repo.repo_id}@{repo.revision}: {store.url} has no commit that this revision may be "
        f"taken for, and {offline} forbids asking the Hub. Fetch it once where the Hub may be "
        "asked, or name a full commit that is held."
    )
    return ArtifactNotFoundError(msg, repo_id=repo.repo_id, revision=repo.revision)


def _seconds(max_age: timedelta | float | None) -> float | None:
    seconds = max_age.total_seconds() if isinstance(max_age, timedelta) else max_age
    if seconds is not None and not seconds >= 0:
        msg = f"max_age={max_age!r} must be a number of seconds, or a timedelta, not below 0."
        raise SettingsError(msg)
    return seconds


def _recall(prefix: str, endpoint: str, store: Store) -> Memory | None:
    newest = next(iter(store.list(prefix)), None)
    if newest is None:
        return None
    try:
        body = read_document(store, newest.key)
        memory = Memory(
            newest.key,
            body["commit_hash"],
            body["endpoint"],
            datetime.fromisoformat(body["resolved_at"]),
        )
    except (ObjectNotFoundError, IntegrityError, KeyError, TypeError, ValueError):
        return None  # only a memory: the Hub knows better
    return memory if memory.endpoint == endpoint else None
