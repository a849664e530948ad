"""A Hub repo at a commit, copied into the store once and read from there ever after.

    revision ─resolve→ commit ─look up→ hit: the reference, no byte moved
                                └─miss→ list, stream Hub → memory → store, check, commit

Bytes are checked against what the Hub announced (sha256 of LFS files, git blob sha1 of the
rest): its own client does not notice flipped bytes.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from hfflows import keys
from hfflows.artifacts import Sources, TransferReport, commit_artifact, commit_selection, lease
from hfflows.errors import HubUnavailableError, IntegrityError
from hfflows.hub._lookup import Lookup
from hfflows.hub._options import SnapshotOptions, SnapshotRequest, lists_options
from hfflows.hub._preflight import inspect_snapshot
from hfflows.hub._safety import findings, refuse_flagged
from hfflows.refs import Producer

if TYPE_CHECKING:
    from hfflows.artifacts import Tree
    from hfflows.hub._client import HubFile
    from hfflows.hub._held import Found
    from hfflows.hub._preflight import SnapshotPlan
    from hfflows.hub._selection import Choice
    from hfflows.refs import ArtifactRef

logger = logging.getLogger("hfflows")

Outcome = Literal["hit", "miss", "refreshed", "stale"]
DOWNLOAD_ATTEMPTS = 2
LEASE_SECONDS = 30.0
"""How long a worker that died while it fetched keeps the others waiting."""


@dataclass(frozen=True, slots=True)
class SnapshotResult:
    """A snapshot's reference and how it was come by."""

    ref: ArtifactRef
    outcome: Outcome
    """`hit`: the store had it. `miss`: fetched now. `refreshed`: fetched although the store
    had it, or had another commit of this repo. `stale`: the Hub could not be asked, or
    failed while it was, and the last known commit is served."""
    commit_hash: str
    revision: str
    report: TransferReport


@overload
def snapshot_download(
    repo_id: str, *, dry_run: Literal[False] = ..., **options: Unpack[SnapshotOptions]
) -> ArtifactRef: ...
@overload
def snapshot_download(
    repo_id: str, *, dry_run: Literal[True], **options: Unpack[SnapshotOptions]
) -> SnapshotPlan: ...
@overload
def snapshot_download(
    repo_id: str, *, dry_run: bool, **options: Unpack[SnapshotOptions]
) -> ArtifactRef | SnapshotPlan: ...
@lists_options
def snapshot_download(
    repo_id: str, *, dry_run: bool = False, **options: Unpack[SnapshotOptions]
) -> ArtifactRef | SnapshotPlan:
    """Copy a Hub repo at a commit into the store, once, and return its reference.

    Takes what `huggingface_hub.snapshot_download` does, in its words, except for where it
    writes to.

    Args:
        repo_id: `org/name`.
        dry_run: Move nothing and return what would be moved: see `inspect_snapshot`.
        **options: As `fetch_snapshot`, which also says whether it was a hit.

    Raises:
        As `fetch_snapshot`.
    """
    if dry_run:
        return inspect_snapshot(repo_id, **options)
    return fetch_snapshot(repo_id, **options).ref


@lists_options
def fetch_snapshot(repo_id: str, **options: Unpack[SnapshotOptions]) -> SnapshotResult:
    """Copy a Hub repo at a commit into the store, once, and say how that went.

    Args:
        repo_id: `org/name`.
        **options: What, for whom, and how:

            revision: Branch, tag, `refs/pr/N` or commit; `None` means `main`. A full commit
                that the store holds needs no Hub request at all.
            repo_type: `model`, `dataset` or `space`; `None` means `model`.
            allow_patterns: Only files that match one of these. Served from a fuller snapshot
                of the same commit where there is one.
            ignore_patterns: Not the files that match one of these.
            allow_pickles: Also fetch pickled weights (`*.bin`, `*.pt`, `*.pth`, `*.ckpt`,
                `*.pkl`, `*.pickle`) of a model that has the same weights as safetensors.
                Pickles without safetensors of their name are fetched in any case, and so
                are those that an allow pattern asks for alone (`*.bin`).
            allow_flagged: Also fetch files that the Hub's scanners found unsafe, and read
                snapshots that hold such files.
            cache_scope: Who sees the entry: `checkpoint` (this identity), `flow`, or
                `global`; `None` means `checkpoint` with an identity and `global` without.
                Whoever sees an entry can read it, also one of a private repo.
            max_age: Seconds (or a timedelta) for which a branch's commit is taken from
                memory; `None` asks the Hub each time, with one request.
            force_download: Send every byte anew; later readers see the new copy.
            local_files_only: Serve what the store holds and never ask the Hub, as
                `HFFLOWS_HUB_OFFLINE=1` (or `HF_HUB_OFFLINE=1`) does for all calls. A branch
                is then what it was last known to be; `outcome` is `stale` unless that is
                within `max_age`.
            stale_if_error: Serve the last known commit that is held when the Hub is down,
                limits the rate, fails while a newer one is fetched, or may not be asked.
            token: `None` takes `HF_TOKEN` or the token of `hf auth login`, `True` insists on
                one of them, `False` sends none. Never stored.
            endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`.
            library_name, library_version, user_agent: Who asks, for the Hub's statistics;
                hfflows adds its own name.
            headers: Sent to the Hub's own origin only, before all others.
            etag_timeout: Seconds for the Hub to answer what is no file; `None` means
                `HF_HUB_ETAG_TIMEOUT`. Files have `HF_HUB_DOWNLOAD_TIMEOUT`.
            max_workers: Requests to the Hub at once, at most.
            identity: Who asks; narrows `cache_scope`.
            report: Filled with what was moved.
            slot: Makes a context manager that is held while files are fetched: a limit that
                a fleet shares, such as Prefect's `concurrency`. Nothing found in the store
                takes one.
            store: Where to; `None` means `open_store()`.

    Raises:
        RepoNotFoundError, RevisionNotFoundError: No such repo or revision, or a private one.
        GatedRepoError, HubAccessError: The token does not open it; nothing was moved.
        EntryNotFoundError: The patterns select no file.
        HubUnavailableError: The Hub does not answer and the store has nothing to serve.
        ArtifactNotFoundError: The Hub may not be asked and the store has nothing to serve.
        HubError: The Hub's scanners found a file unsafe; names it. Nothing was moved.
        IntegrityError: The Hub's bytes are not what it announced, twice; nothing was saved.
        SettingsError: Bad repo id, type, scope, `max_age`; an option without meaning here.
        StorageError: The store failed; nothing is visible.
    """
    request = SnapshotRequest(repo_id=repo_id, **options)
    return _Fetch(Lookup.of(request), request.report or TransferReport()).run()


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One request for one commit, and what it moves."""

    lookup: Lookup
    report: TransferReport

    def run(self) -> SnapshotResult:
        try:
            result = self._from_store() or self._fetch()
        except HubUnavailableError as error:
            if (served := self._without_hub(error)) is None:
                raise
            return served
        self.lookup.resolution.remember(self.lookup.store)
        return result

    def _without_hub(self, error: HubUnavailableError) -> SnapshotResult | None:
        """Serve the commit that was known before the Hub named a newer one and failed."""
        earlier = self.lookup.without_hub(error)
        if earlier is None:
            return None
        served = replace(self, lookup=earlier)._from_store()  # noqa: SLF001 - the same class
        if served is not None:
            logger.warning("%s is newer, and could not be fetched.", self.lookup.subject)
        return served

    def _fetch(self) -> SnapshotResult:
        self.lookup.check_hub()
        # One worker of a fleet fetches; the others wait, and find what it fetched.
        with lease(self.lookup.flight, store=self.lookup.store, ttl_seconds=LEASE_SECONDS):
            now = replace(self, lookup=self.lookup.look_again())
            return now._from_store() or now._from_hub()  # noqa: SLF001 - the same class

    def _from_hub(self) -> SnapshotResult:
        outcome: Outcome = "refreshed" if self.lookup.held.is_any_commit_held() else "miss"
        with (self.lookup.request.slot or nullcontext)():
            return self._result(self._download(), outcome)

    def _from_store(self) -> SnapshotResult | None:
        if self.lookup.request.force_download:
            return None
        found = self.lookup.held.find(self.lookup.selection)
        return self._served(found) if found is not None else None

    def _result(self, ref: ArtifactRef, outcome: Outcome) -> SnapshotResult:
        revision = self.lookup.client.repo.revision
        return SnapshotResult(ref, outcome, self.lookup.commit_hash, revision, self.report)

    # From the store ------------------------------------------------------------------

    def _served(self, found: Found) -> SnapshotResult:
        resolution, request = self.lookup.resolution, self.lookup.request
        flagged: Any = found.ref.metadata.get("flagged_files") or {}
        if found.part is not None:
            ref = self._commit_part(found.ref, *found.part, flagged)
        else:
            ref = found.ref
            self._refuse(flagged)
        if resolution.source != "stale":
            return self._result(ref, "hit")
        logger.warning(
            "%s Serving the last known commit %s of revision %s.",
            resolution.unavailable or f"{request.offline} forbids asking the Hub.",
            resolution.commit_hash,
            self.lookup.client.repo.revision,
        )
        return self._result(ref, "stale")

    def _commit_part(
        self, ref: ArtifactRef, choice: Choice, tree: Tree, flagged: dict[str, str]
    ) -> ArtifactRef:
        lookup = self.lookup
        lookup.check_not_empty(choice, len(tree.files))
        flagged = findings(flagged, choice.paths)
        self._refuse(flagged)
        return commit_selection(
            ref,
            lookup.selection.allow,
            lookup.selection.ignored_in(choice),
            key=lookup.held.new_key(lookup.selection.token_for(choice)),
            metadata=self._metadata(choice, flagged),
            producer=Producer.of(lookup.request.identity),
            store=lookup.store,
        )

    # From the Hub --------------------------------------------------------------------

    def _download(self) -> ArtifactRef:
        lookup = self.lookup
        lookup.client.check_access()  # a tree can be listed where no file may be read
        listed = lookup.client.files(lookup.commit_hash)
        choice = lookup.selection.choose(file.path for file in listed)
        lookup.check_not_empty(choice, len(listed))
        flagged = findings(lookup.client.flagged_files(lookup.commit_hash), choice.paths)
        self._refuse(flagged)
        self._log(choice, flagged)
        files = [file for file in listed if file.path in choice.paths]
        key = lookup.held.new_key(lookup.selection.token_for(choice))
        return self._save(files, key, self._metadata(choice, flagged))

    def _save(self, files: list[HubFile], key: str, metadata: dict[str, Any]) -> ArtifactRef:
        attempt = 1
        while True:
            try:
                return commit_artifact(
                    Sources(files=list(files)),
                    key=key,
                    kind=keys.SNAPSHOT_KIND,
                    name=self.lookup.client.repo.repo_id,
                    metadata=metadata,
                    producer=Producer.of(self.lookup.request.identity),
                    report=self.report,
                    resend=self.lookup.request.force_download,
                    store=self.lookup.store,
                )
            except IntegrityError as error:  # bytes flipped on the way: once more
                if attempt == DOWNLOAD_ATTEMPTS:
                    msg = f"{self.lookup.subject}: {error}"
                    raise IntegrityError(msg, **error.facts) from error
                attempt += 1
                logger.warning("%s Fetching it again.", error)

    def _refuse(self, flagged: dict[str, str]) -> None:
        if not self.lookup.request.allow_flagged:
            refuse_flagged(self.lookup.client.repo, self.lookup.commit_hash, flagged)

    def _log(self, choice: Choice, flagged: dict[str, str]) -> None:
        subject = self.lookup.subject
        for path, level in flagged.items():
            logger.warning("%s: the Hub's scanners found %s %s.", subject, path, level)
        if choice.redundant_pickles and not self.lookup.selection.takes_pickles:
            names = ", ".join(choice.redundant_pickles)
            reason = "safetensors hold the same weights; allow_pickles=True fetches them too"
            logger.info("%s: left out %s: %s.", subject, names, reason)

    def _metadata(self, choice: Choice, flagged: dict[str, str]) -> dict[str, Any]:
        repo, selection = self.lookup.client.repo, self.lookup.selection
        return {
            "repo_id": repo.repo_id,
            "repo_type": repo.repo_type,
            "revision": repo.revision,
            "commit_hash": self.lookup.commit_hash,
            "allow_patterns": list(selection.allow) if selection.allow is not None else None,
            "ignore_patterns": list(selection.ignore) if selection.ignore is not None else None,
            "allow_pickles": selection.takes_pickles,
            "redundant_pickles": list(choice.redundant_pickles),
            "flagged_files": flagged,
        }
