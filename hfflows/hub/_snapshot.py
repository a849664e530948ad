"""A Hub repo at a commit, copied into the store once and read from there ever after.

    revision ─resolve→ commit ─look up→ hit: the reference, no byte moved
                                └─miss→ list, stream Hub → memory → store, check, commit

Bytes are checked against what the Hub announced (sha256 of LFS files, git blob sha1 of the
rest): its own client does not notice flipped bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hfflows import keys
from hfflows.artifacts import (
    Sources,
    TransferReport,
    commit_artifact,
    commit_selection,
    load_artifact,
    matches,
    read_refs,
)
from hfflows.errors import EntryNotFoundError, IntegrityError
from hfflows.hub._client import HubClient
from hfflows.hub._revisions import resolve_revision
from hfflows.refs import Producer
from hfflows.storage import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from datetime import timedelta

    from hfflows.hub._revisions import Resolution
    from hfflows.identity import RunIdentity
    from hfflows.keys import CacheScope, RepoType
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

logger = logging.getLogger("hfflows")

Outcome = Literal["hit", "miss", "refreshed", "stale"]
DOWNLOAD_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class SnapshotResult:
    """A snapshot's reference and how it was come by."""

    ref: ArtifactRef
    outcome: Outcome
    """`hit`: the store had it. `miss`: fetched now. `refreshed`: fetched although the store
    had it, or had another commit of this repo. `stale`: the Hub could not be asked and
    the last known commit is served."""
    commit_hash: str
    revision: str
    report: TransferReport


@dataclass(frozen=True, slots=True)
class _Selection:
    """Which files of a repo are asked for; `None` selects all."""

    allow: tuple[str, ...] | None
    ignore: tuple[str, ...] | None

    @classmethod
    def of(
        cls, allow: Sequence[str] | str | None, ignore: Sequence[str] | str | None
    ) -> _Selection:
        return cls(_patterns(allow), _patterns(ignore) or None)

    @property
    def token(self) -> str:
        """What stands for the selection in a key."""
        if self.allow is None and self.ignore is None:
            return keys.EVERYTHING
        text = json.dumps({"allow": self.allow, "ignore": self.ignore})
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_within(self, other: _Selection) -> bool:
        """Return whether `other` certainly holds all that this one selects."""
        allowed = other.allow is None or (
            self.allow is not None and set(self.allow) <= set(other.allow)
        )
        return allowed and set(other.ignore or ()) <= set(self.ignore or ())

    def takes(self, path: str) -> bool:
        return matches(path, self.allow, self.ignore)


def _patterns(given: Sequence[str] | str | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = [given] if isinstance(given, str) else given
    # As huggingface_hub reads them: `folder/` means all that is in it.
    return tuple(sorted({f"{name}*" if name.endswith("/") else name for name in names}))


def snapshot_download(
    repo_id: str,
    *,
    revision: str | None = None,
    repo_type: RepoType = "model",
    allow_patterns: Sequence[str] | str | None = None,
    ignore_patterns: Sequence[str] | str | None = None,
    cache_scope: CacheScope | None = None,
    max_age: timedelta | float | None = None,
    force_download: bool = False,
    stale_if_error: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
    identity: RunIdentity | None = None,
    store: Store | None = None,
) -> ArtifactRef:
    """Copy a Hub repo at a commit into the store, once, and return its reference.

    Arguments and errors are those of `fetch_snapshot`, which also says whether it was a hit.
    """
    return fetch_snapshot(
        repo_id,
        revision=revision,
        repo_type=repo_type,
        allow_patterns=allow_patterns,
        ignore_patterns=ignore_patterns,
        cache_scope=cache_scope,
        max_age=max_age,
        force_download=force_download,
        stale_if_error=stale_if_error,
        token=token,
        endpoint=endpoint,
        identity=identity,
        store=store,
    ).ref


def fetch_snapshot(
    repo_id: str,
    *,
    revision: str | None = None,
    repo_type: RepoType = "model",
    allow_patterns: Sequence[str] | str | None = None,
    ignore_patterns: Sequence[str] | str | None = None,
    cache_scope: CacheScope | None = None,
    max_age: timedelta | float | None = None,
    force_download: bool = False,
    stale_if_error: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
    identity: RunIdentity | None = None,
    report: TransferReport | None = None,
    store: Store | None = None,
) -> SnapshotResult:
    """Copy a Hub repo at a commit into the store, once, and say how that went.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag, `refs/pr/N` or commit; `None` means `main`. A full commit
            that the store holds needs no Hub request at all.
        repo_type: `model`, `dataset` or `space`.
        allow_patterns: Only files that match one of these. Served from a fuller snapshot
            of the same commit where there is one.
        ignore_patterns: Not the files that match one of these.
        cache_scope: Who sees the entry: `checkpoint` (this identity), `flow`, or `global`;
            `None` means `checkpoint` with an identity and `global` without. Whoever sees
            an entry can read it, also one of a private repo.
        max_age: Seconds (or a timedelta) for which a branch's commit is taken from memory;
            `None` asks the Hub each time, with one request.
        force_download: Send every byte anew; later readers see the new copy.
        stale_if_error: Serve the last known commit when the Hub is down or limits the rate.
        token: `None` takes `HF_TOKEN` or the token of `hf auth login`. Never stored.
        endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`.
        identity: Who asks; narrows `cache_scope`.
        report: Filled with what was moved.
        store: Where to; `None` means `open_store()`.

    Raises:
        RepoNotFoundError, RevisionNotFoundError: No such repo or revision, or a private one.
        GatedRepoError, HubAccessError: The token does not open it; nothing was moved.
        EntryNotFoundError: The patterns select no file.
        HubUnavailableError: The Hub does not answer and the store has nothing to serve.
        IntegrityError: The Hub's bytes are not what it announced, twice; nothing was saved.
        SettingsError: Bad repo id, type, scope or `max_age`.
        StorageError: The store failed; nothing is visible.
    """
    client = HubClient(
        repo_id, repo_type=repo_type, revision=revision, token=token, endpoint=endpoint
    )
    store = store or open_store()
    scope = keys.scope_prefix(cache_scope or ("checkpoint" if identity else "global"), identity)
    resolution = resolve_revision(
        client,
        scope,
        max_age=max_age,
        stale_if_error=stale_if_error,
        force=force_download,
        store=store,
    )
    fetch = _Fetch(
        client,
        resolution,
        keys.snapshot_prefix(scope, repo_type, repo_id, resolution.commit_hash),
        _Selection.of(allow_patterns, ignore_patterns),
        identity,
        report or TransferReport(),
        store,
    )
    return fetch.run(force=force_download)


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One request for one commit."""

    client: HubClient
    resolution: Resolution
    prefix: str
    selection: _Selection
    identity: RunIdentity | None
    report: TransferReport
    store: Store

    def run(self, *, force: bool) -> SnapshotResult:
        held = self._held()
        if not force:
            found = self._serve(held)
            if found is not None:
                is_stale = self.resolution.source == "stale"
                if is_stale:
                    logger.warning(
                        "%s Serving the last known commit %s of revision %s.",
                        self.resolution.unavailable,
                        self.resolution.commit_hash,
                        self.client.repo.revision,
                    )
                return self._result(found, "stale" if is_stale else "hit")
        if self.resolution.unavailable is not None:
            raise self.resolution.unavailable
        is_known = any(True for _ in self.store.list(self.prefix.rsplit("/", 2)[0] + "/"))
        return self._result(self._download(held, force=force), "refreshed" if is_known else "miss")

    def _result(self, ref: ArtifactRef, outcome: Outcome) -> SnapshotResult:
        commit_hash, revision = self.resolution.commit_hash, self.client.repo.revision
        return SnapshotResult(ref, outcome, commit_hash, revision, self.report)

    # From the store ------------------------------------------------------------------

    def _held(self) -> list[str]:
        """Return the keys of this commit's snapshots, newest first: one request."""
        return [info.key for info in self.store.list(self.prefix)]

    def _serve(self, held: list[str]) -> ArtifactRef | None:
        """Return what was asked for when the store holds it, or a fuller snapshot."""
        same = [key for key in held if keys.selection_of(key) == self.selection.token]
        for ref in read_refs(same[:1], store=self.store):
            return ref
        whole = [key for key in held if keys.selection_of(key) == keys.EVERYTHING]
        parts = [key for key in held if key not in whole and key not in same]
        for ref in read_refs([*whole[:1], *parts], store=self.store):
            if self.selection.is_within(_selection_in(ref)):
                return commit_selection(
                    ref,
                    self.selection.allow,
                    self.selection.ignore,
                    key=self._new_key(held),
                    metadata=self._metadata(),
                    producer=Producer.of(self.identity),
                    store=self.store,
                )
        return None

    def _new_key(self, held: list[str]) -> str:
        newest = keys.id_of(held[0]) if held else None
        return keys.snapshot(self.prefix, self.selection.token, id=keys.new_id(after=newest))

    # From the Hub --------------------------------------------------------------------

    def _download(self, held: list[str], *, force: bool) -> ArtifactRef:
        repo, commit_hash = self.client.repo, self.resolution.commit_hash
        self.client.check_access()  # a tree can be listed where no file may be read
        listed = self.client.files(commit_hash)
        files = [file for file in listed if self.selection.takes(file.path)]
        if not files:
            msg = (
                f"{repo.repo_id}@{commit_hash}: the patterns select none of its "
                f"{len(listed)} files; see {repo.url}/tree/{commit_hash}."
            )
            raise EntryNotFoundError(msg, repo_id=repo.repo_id, revision=repo.revision)
        attempt = 1
        while True:
            try:
                return commit_artifact(
                    Sources(files=list(files)),
                    key=self._new_key(held),
                    kind=keys.SNAPSHOT_KIND,
                    name=repo.repo_id,
                    metadata=self._metadata(),
                    producer=Producer.of(self.identity),
                    report=self.report,
                    resend=force,
                    store=self.store,
                )
            except IntegrityError as error:  # bytes flipped on the way: once more
                if attempt == DOWNLOAD_ATTEMPTS:
                    msg = f"{repo.repo_id}@{commit_hash}: {error}"
                    raise IntegrityError(msg, **error.facts) from error
                attempt += 1
                logger.warning("%s Fetching it again.", error)

    def _metadata(self) -> dict[str, Any]:
        repo, selection = self.client.repo, self.selection
        return {
            "repo_id": repo.repo_id,
            "repo_type": repo.repo_type,
            "revision": repo.revision,
            "commit_hash": self.resolution.commit_hash,
            "allow_patterns": list(selection.allow) if selection.allow is not None else None,
            "ignore_patterns": list(selection.ignore) if selection.ignore is not None else None,
        }


def _selection_in(ref: ArtifactRef) -> _Selection:
    """Return the selection that a snapshot was made with."""
    allow: Any = ref.metadata.get("allow_patterns")
    ignore: Any = ref.metadata.get("ignore_patterns")
    return _Selection.of(allow, ignore)


@contextmanager
def load_snapshot(
    repo_id: str, *, path: str | os.PathLike[str] | None = None, **options: Any
) -> Iterator[Path]:
    """Yield a directory with a Hub repo at a commit, by way of the store.

    Args:
        repo_id: `org/name`.
        path: Absent or empty directory, which stays; `None` makes a temporary one, which is
            gone afterwards.
        **options: As `snapshot_download`.

    Raises:
        As `snapshot_download` and `hfflows.load_artifact`.
    """
    store = options.pop("store", None) or open_store()
    ref = snapshot_download(repo_id, store=store, **options)
    if path is not None:
        yield load_artifact(ref, path, store=store)
        return
    with tempfile.TemporaryDirectory(prefix="hfflows-snapshot-") as scratch:
        yield load_artifact(ref, Path(scratch) / "snapshot", store=store)
