"""What fetching a snapshot would move and need, told without moving any content."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, Unpack

from pydantic import BaseModel, ConfigDict, Field, computed_field

from hfflows import keys
from hfflows.artifacts import read_document, read_tree
from hfflows.errors import (
    GatedRepoError,
    HubAccessError,
    HubError,
    IntegrityError,
    ObjectNotFoundError,
    RepoNotFoundError,
)
from hfflows.hub._lookup import Lookup
from hfflows.hub._options import SnapshotOptions, SnapshotRequest, lists_options
from hfflows.hub._safety import findings
from hfflows.hub._selection import left_out_of
from hfflows.hub._weights import StoredFile, Weights, read_weights

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from hfflows.hub._client import HubFile
    from hfflows.hub._held import Found
    from hfflows.storage import Store

Access = Literal["granted", "gated", "hidden", "refused"]

LOADING_RESERVE_BYTES = 16 * 1024 * 1024
"""What a load wants free besides the files."""
REQUESTS_IN_FLIGHT = 16


class PlannedFile(BaseModel):
    """One file that a snapshot would hold."""

    model_config = ConfigDict(frozen=True)

    path: str
    size_bytes: int
    is_stored: bool = Field(description="Whether its bytes are in the store already.")


class SnapshotPlan(BaseModel):
    """What fetching a snapshot would do now."""

    model_config = ConfigDict(frozen=True)

    repo_id: str
    repo_type: str
    revision: str
    commit_hash: str | None = Field(description="`None` when the Hub does not show the repo.")
    access: Access = Field(
        description="`gated`: terms are to be accepted. `hidden`: no such repo, or a private one; "
        "the Hub does not say which. `refused`: the token is not good for it."
    )
    advice: str | None = Field(default=None, description="What to do where access is not granted.")
    is_held: bool = Field(
        default=False, description="Whether the store serves it as it is: no Hub request is made."
    )
    files: tuple[PlannedFile, ...] = ()
    left_out: tuple[str, ...] = Field(
        default=(), description="Pickles that safetensors replace; see `allow_pickles`."
    )
    flagged_files: dict[str, str] = Field(
        default_factory=dict, description="What the Hub's scanners said of these files."
    )
    weights: tuple[Weights, ...] = Field(
        default=(), description="Of the safetensors among the files; empty without access."
    )

    @computed_field  # type: ignore[prop-decorator] # mypy knows no decorated properties
    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size_bytes for file in self.files)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def missing_bytes(self) -> int:
        """What a fetch would move from the Hub to the store."""
        return sum(file.size_bytes for file in self.files if not file.is_stored)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def disk_bytes(self) -> int:
        """Free disk that `load_snapshot` asks for, the whole snapshot at a time."""
        return self.size_bytes + LOADING_RESERVE_BYTES


@lists_options
def inspect_snapshot(repo_id: str, **options: Unpack[SnapshotOptions]) -> SnapshotPlan:
    """Return what `fetch_snapshot` would move and need; nothing is written, no content moved.

    A repo that the token does not open is no error here: `access` and `advice` say what is
    missing. What the store holds is answered without the Hub; else it takes four requests (and
    one more for each further 1,000 files), two ranges of each safetensors file, and one store
    request for each large file and object of it.

    Args:
        repo_id: `org/name`.
        **options: As `fetch_snapshot`.

    Raises:
        RevisionNotFoundError: The repo has no such revision.
        EntryNotFoundError: The patterns select no file.
        HubUnavailableError, ArtifactNotFoundError: The Hub does not answer, or may not be
            asked, and the store has nothing to go by.
        IntegrityError: A safetensors header breaks a rule of the format; a fetch would bring
            a file that cannot be loaded.
        SettingsError: As `fetch_snapshot`.
    """
    request = SnapshotRequest(repo_id=repo_id, **options)
    try:
        lookup = Lookup.of(request)
    except (RepoNotFoundError, HubAccessError, GatedRepoError) as error:
        return _closed(request, error)
    if not request.force_download:
        found = lookup.held.find(lookup.selection)
        if found is not None:
            return _of_held(lookup, found)
    lookup.check_hub()
    return _of_hub(lookup)


def _closed(request: SnapshotRequest, error: HubError) -> SnapshotPlan:
    """Return the plan for a repo of which the Hub shows nothing."""
    return SnapshotPlan(
        repo_id=request.repo_id,
        repo_type=request.repo_type or "model",
        revision=request.revision or "main",
        commit_hash=None,
        access=_access(error),
        advice=str(error),
    )


def _access(error: HubError) -> Access:
    if isinstance(error, GatedRepoError):
        return "gated"
    return "hidden" if isinstance(error, RepoNotFoundError) else "refused"


def _of_held(lookup: Lookup, found: Found) -> SnapshotPlan:
    store, ref = lookup.store, found.ref
    if found.part is not None:
        choice, tree = found.part
        lookup.check_not_empty(choice, len(tree.files))
        files = [file for file in tree.files if file.path in choice.paths]
        left_out = [] if lookup.selection.takes_pickles else choice.redundant_pickles
    else:
        files, left_out = list(read_tree(ref, store=store).files), left_out_of(ref)
    flagged: Any = ref.metadata.get("flagged_files") or {}
    return SnapshotPlan(
        **_identity(lookup),
        access="granted",
        is_held=True,
        files=tuple(
            PlannedFile(path=file.path, size_bytes=file.size_bytes, is_stored=True)
            for file in files
        ),
        left_out=tuple(left_out),
        flagged_files=findings(flagged, {file.path for file in files}),
        weights=read_weights([StoredFile(file, store) for file in files]),
    )


def _of_hub(lookup: Lookup) -> SnapshotPlan:
    client, selection = lookup.client, lookup.selection
    denied = _denied(lookup)
    listed = client.files(lookup.commit_hash)
    choice = selection.choose(file.path for file in listed)
    lookup.check_not_empty(choice, len(listed))
    files = [file for file in listed if file.path in choice.paths]
    is_resent = lookup.request.force_download
    stored = set() if is_resent else stored_files(files, lookup.store)
    return SnapshotPlan(
        **_identity(lookup),
        access="granted" if denied is None else _access(denied),
        advice=None if denied is None else str(denied),
        files=tuple(
            PlannedFile(path=file.path, size_bytes=file.size_bytes, is_stored=file.path in stored)
            for file in files
        ),
        left_out=() if selection.takes_pickles else choice.redundant_pickles,
        flagged_files=findings(client.flagged_files(lookup.commit_hash), choice.paths),
        weights=read_weights(files) if denied is None else (),
    )


def _denied(lookup: Lookup) -> HubError | None:
    try:
        lookup.client.check_access()
    except (RepoNotFoundError, HubAccessError, GatedRepoError) as error:
        return error
    return None


def _identity(lookup: Lookup) -> dict[str, Any]:
    repo = lookup.client.repo
    return {
        "repo_id": repo.repo_id,
        "repo_type": repo.repo_type,
        "revision": repo.revision,
        "commit_hash": lookup.commit_hash,
    }


def stored_files(files: Collection[HubFile], store: Store) -> set[str]:
    """Return the paths of files whose bytes the store has under their announced sha256.

    As a save looks for them. Files outside of LFS are announced by another digest: they are
    small, and always fetched.
    """
    announced = [file for file in files if file.announced.algorithm == "sha256"]
    with ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="hfflows-plan") as pool:
        objects = dict(
            zip(
                (file.path for file in announced),
                pool.map(lambda file: _objects_of(file, store), announced),
                strict=True,
            )
        )
        wanted = sorted({key for needed in objects.values() for key in needed or {}})
        heads = zip(wanted, pool.map(store.head, wanted), strict=True)
        sizes = {key: head.size_bytes for key, head in heads if head is not None}
    return {path for path, needed in objects.items() if _are_there(needed, sizes)}


def _objects_of(file: HubFile, store: Store) -> dict[str, int] | None:
    """Return the objects that hold a content and how far into each; `None` when unknown."""
    key = keys.content(file.announced.digest)
    try:
        segments = read_document(store, key)["segments"]
        needed = {str(object_key): 0 for object_key, *_rest in segments}
        for object_key, offset, length, _digest in segments:
            needed[object_key] = max(needed[object_key], offset + length)
    except (ObjectNotFoundError, IntegrityError, KeyError, TypeError, ValueError):
        return None
    return needed


def _are_there(needed: Mapping[str, int] | None, sizes: Mapping[str, int]) -> bool:
    return needed is not None and all(sizes.get(key, -1) >= end for key, end in needed.items())
