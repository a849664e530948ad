"""Damaged objects of a snapshot, fetched again from the Hub alone."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.artifacts import (
    RefLike,
    TransferReport,
    repair_artifact,
    resolve_ref,
    store_for,
)
from hfflows.errors import IntegrityError, SettingsError
from hfflows.hub._client import HubClient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from hfflows.artifacts import ReadRange, RepairReport, TreeFile
    from hfflows.hub._client import HubFile
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

_COMMIT = re.compile(r"[0-9a-f]{40}")


def repair_snapshot(
    ref: RefLike,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    report: TransferReport | None = None,
    store: Store | None = None,
) -> RepairReport:
    """Fetch the damaged parts of a snapshot again from the commit it was made of.

    Every byte in the store is read; from the Hub only what is damaged or missing: one range
    of 16 MiB of a large file, the damaged ones of the small files that share an object. A
    sound snapshot costs no Hub request. A snapshot whose reference or tree is damaged
    cannot be repaired: `snapshot_download(…, force_download=True)` makes a new one.

    Args:
        ref: The reference, its dict, or its key.
        token: `None` takes `HF_TOKEN` or the token of `hf auth login`. Never stored.
        endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`.
        report: Filled with what was moved.
        store: Where the snapshot is; `None` means the store the reference names.

    Raises:
        SettingsError: Not a snapshot of a Hub commit.
        IntegrityError: The Hub no longer has what was saved, or the tree is damaged.
        GatedRepoError, HubAccessError, HubUnavailableError: As `snapshot_download`.
    """
    store = store_for(ref, store)
    resolved = resolve_ref(ref, store=store)
    client = _client_of(resolved, token, endpoint)
    origin = partial(_ranges_of, client)
    return repair_artifact(resolved, origin, report=report or TransferReport(), store=store)


def _client_of(ref: ArtifactRef, token: str | None, endpoint: str | None) -> HubClient:
    origin: dict[str, Any] = ref.metadata
    commit_hash = str(origin.get("commit_hash"))
    if ref.kind != keys.SNAPSHOT_KIND or not _COMMIT.fullmatch(commit_hash):
        msg = (
            f"{ref.key} is not a snapshot of a Hub commit, so there is nothing to repair it from. "
            "Save it again, or load an earlier version."
        )
        raise SettingsError(msg, key=ref.key)
    return HubClient(
        str(origin.get("repo_id")),
        repo_type=origin.get("repo_type", "model"),
        revision=commit_hash,
        token=token,
        endpoint=endpoint,
    )


def _ranges_of(client: HubClient, files: Sequence[TreeFile]) -> ReadRange:
    """Return a reader of these files, once the Hub says that it has them as they were."""
    client.check_access()  # a tree can be listed where no file may be read
    listed = {file.path: file for file in client.files(client.repo.revision)}
    for file in files:
        found = listed.get(file.path)
        if found is None or not _is_same(found, file):
            msg = (
                f"{client.repo.repo_id}@{client.repo.revision}: the Hub no longer has the "
                f"{file.path} that was saved; the snapshot cannot be repaired from there."
            )
            raise IntegrityError(msg, path=file.path, repo_id=client.repo.repo_id)

    def read(path: str, offset: int, length: int) -> Buffer:
        return listed[path].read(offset, length)

    return read


def _is_same(found: HubFile, file: TreeFile) -> bool:
    is_lfs = found.announced.algorithm == "sha256"
    return found.size_bytes == file.size_bytes and (
        not is_lfs or found.announced.digest == file.sha256
    )
