"""What a request comes down to before any file moves: a commit, and what the store has of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.errors import ArtifactNotFoundError, EntryNotFoundError
from hfflows.hub._held import HeldSnapshots
from hfflows.hub._revisions import resolve_revision
from hfflows.storage import open_store

if TYPE_CHECKING:
    from hfflows.errors import HubUnavailableError
    from hfflows.hub._client import HubClient
    from hfflows.hub._options import SnapshotRequest
    from hfflows.hub._revisions import Resolution
    from hfflows.hub._selection import Choice, Selection
    from hfflows.storage import Store


@dataclass(frozen=True, slots=True)
class Lookup:
    """One request for one commit."""

    request: SnapshotRequest
    client: HubClient
    resolution: Resolution
    selection: Selection
    held: HeldSnapshots
    store: Store

    @classmethod
    def of(cls, request: SnapshotRequest) -> Lookup:
        """Resolve what is asked for and list what the store has of it; nothing is written.

        Raises:
            RepoNotFoundError, RevisionNotFoundError, HubAccessError: As the Hub says.
            HubUnavailableError: It does not answer, and nothing is remembered.
            ArtifactNotFoundError: It may not be asked, and nothing is remembered.
            SettingsError: Bad repo id, type, scope or `max_age`.
        """
        client, scope, store = request.client(), request.scope, request.store or open_store()
        resolution = resolve_revision(
            client,
            scope,
            max_age=request.max_age,
            stale_if_error=request.stale_if_error,
            force=request.force_download,
            offline=request.offline,
            store=store,
        )
        held = _held(request, client, resolution.commit_hash, store)
        return cls(request, client, resolution, request.selection, held, store)

    @property
    def commit_hash(self) -> str:
        """The commit that is asked for."""
        return self.resolution.commit_hash

    @property
    def subject(self) -> str:
        """The repo at that commit, for messages."""
        return f"{self.client.repo.repo_id}@{self.commit_hash}"

    @property
    def flight(self) -> str:
        """What workers that would move the same files have in common, whatever their scopes."""
        repo = self.client.repo
        wanted = [repo.repo_type, repo.repo_id, self.commit_hash, self.selection.token]
        return f"snapshot-{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()}"

    def look_again(self) -> Lookup:
        """Return the same with what the store holds now: one request."""
        return replace(self, held=HeldSnapshots.at(self.held.prefix, self.store))

    def without_hub(self, error: HubUnavailableError) -> Lookup | None:
        """Return the lookup of the commit to fall back on after the Hub failed, if any."""
        resolution = self.resolution.without_hub(error)
        if resolution is None:
            return None
        held = _held(self.request, self.client, resolution.commit_hash, self.store)
        return replace(self, resolution=resolution, held=held)

    def check_hub(self) -> None:
        """Refuse to go on when the Hub did not answer, or may not be asked.

        Raises:
            HubUnavailableError: It did not answer when the revision was resolved.
            ArtifactNotFoundError: It may not be asked.
        """
        if self.resolution.unavailable is not None:
            raise self.resolution.unavailable
        if self.request.offline:
            repo = self.client.repo
            msg = (
                f"{self.store.url} holds no snapshot of {self.subject} with these files in this "
                f"cache scope, and {self.request.offline} forbids asking the Hub. Fetch it once "
                "where the Hub may be asked."
            )
            raise ArtifactNotFoundError(msg, repo_id=repo.repo_id, revision=repo.revision)

    def check_not_empty(self, choice: Choice, count: int) -> None:
        """Refuse patterns that select none of `count` files.

        Raises:
            EntryNotFoundError: They do.
        """
        if not choice.paths:
            repo = self.client.repo
            msg = (
                f"{self.subject}: the patterns select none of its {count} files; "
                f"see {repo.url}/tree/{self.commit_hash}."
            )
            raise EntryNotFoundError(msg, repo_id=repo.repo_id, revision=repo.revision)


def _held(
    request: SnapshotRequest, client: HubClient, commit_hash: str, store: Store
) -> HeldSnapshots:
    repo = client.repo
    prefix = keys.snapshot_prefix(request.scope, repo.repo_type, repo.repo_id, commit_hash)
    return HeldSnapshots.at(prefix, store)
