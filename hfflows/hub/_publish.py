"""An artifact to a Hub repo: streamed from the store, private unless asked otherwise.

What the Hub already has under the same digest is not sent; when nothing differs there is
no commit.
"""

from __future__ import annotations

import hashlib
import io
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitOperationAdd

from hfflows.artifacts import check_onnx_set, open_file, read_tree, resolve_ref, store_for
from hfflows.errors import (
    ExportError,
    RepoNotFoundError,
    RevisionNotFoundError,
    SettingsError,
)
from hfflows.hub._card import render_card
from hfflows.hub._client import HubClient
from hfflows.hub._errors import mapped_hub_errors
from hfflows.hub._wire import check_online

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hfflows.artifacts import RefLike, TreeFile
    from hfflows.hub._card import CardContent
    from hfflows.hub._client import HubFile
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

logger = logging.getLogger("hfflows")

CARD = "README.md"
GIT_SHA1_UP_TO_BYTES = 16 * 1024 * 1024
"""Larger files are in LFS on any Hub: their sha256 is compared, not their git digest."""
_UNREADABLE_REPLY = "Unable to retrieve user and repo ID"
"""What huggingface_hub 0.36 says of the reply to a commit by a Hub other than HF_ENDPOINT's."""


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What a publish did."""

    repo_id: str
    commit_hash: str
    """The new commit, or the one that was there when nothing differed."""
    url: str
    pr_url: str | None
    files: list[str]
    """Paths in this commit; empty when nothing differed."""
    bytes_uploaded: int
    """Size of these files; the Hub may know some of their content from elsewhere."""

    def to_json(self) -> dict[str, Any]:
        """Return the plain document that a task hands on."""
        return asdict(self)


def push_to_hub(
    ref: RefLike,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    card: CardContent | None = None,
    commit_message: str | None = None,
    parent_commit: str | None = None,
    tag: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    store: Store | None = None,
) -> PublishResult:
    """Publish the files of an artifact, and a card, in one commit.

    Args:
        ref: The artifact, its dict, or its key.
        repo_id: `org/name`; made if absent.
        private: Visibility of a repo that is made now; an existing one keeps its own.
        revision: Branch to commit to, made if absent; `None` means `main`.
        create_pr: Open a pull request against `revision` instead.
        card: What README.md says between our markers; `None` leaves the card alone.
        commit_message: `None` says what is published.
        parent_commit: Fail unless the branch is still at this commit.
        tag: Tag to put on the result.
        token: `None` takes `HF_TOKEN` or the token of `hf auth login`.
        endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`.
        store: Where the artifact is; `None` means the store the reference names.

    Raises:
        ArtifactNotFoundError: No such artifact.
        HubAccessError: The token is missing or may not write there; nothing was changed.
        HubError: The branch has moved since `parent_commit`.
        HubUnavailableError: The Hub does not answer; publishing again sends only the rest.
        SettingsError: Bad repo id; or a card and a README.md in the artifact as well.
        ExportError: An ONNX graph in it is damaged, or lacks its external data or another part
            of its model; nothing was changed.
    """
    check_online()
    store = store_for(ref, store)
    artifact = resolve_ref(ref, store=store)
    files = read_tree(artifact, store=store).files
    if card is not None and any(file.path == CARD for file in files):
        msg = f"{artifact.key} has a {CARD} of its own; publish it without card=."
        raise SettingsError(msg, key=artifact.key)
    _check_graphs(artifact, files, store)
    client = HubClient(repo_id, revision=revision, token=token, endpoint=endpoint)
    head, existing = _prepare_repo(client, private=private, create_pr=create_pr)
    operations = [
        operation
        for file in files
        if (operation := _operation(artifact, file, existing.get(file.path), store)) is not None
    ]
    if card is not None:
        operations += _card_operations(client, card, artifact, existing.get(CARD), head)
    if operations:
        commit_hash, pr_url = _commit(
            client,
            operations,
            message=commit_message or f"Publish {artifact.kind} {artifact.name}",
            parent_commit=parent_commit,
            create_pr=create_pr,
        )
    else:
        logger.info("%s holds all of %s already; no commit made.", repo_id, artifact.key)
        commit_hash, pr_url = head, None
    if tag is not None:
        client.call(
            lambda: client.api.create_tag(repo_id, tag=tag, revision=commit_hash, exist_ok=True)
        )
    return PublishResult(
        repo_id=repo_id,
        commit_hash=commit_hash,
        url=client.repo.url,
        pr_url=pr_url,
        files=[operation.path_in_repo for operation in operations],
        bytes_uploaded=sum(operation.upload_info.size for operation in operations),
    )


def _check_graphs(artifact: ArtifactRef, files: Sequence[TreeFile], store: Store) -> None:
    """Refuse ONNX files that nobody could run: those who fetch them would find out."""
    sizes = {file.path: file.size_bytes for file in files}
    try:
        check_onnx_set(sizes, lambda path: open_file(artifact, path, store=store))
    except ExportError as error:
        msg = f"{artifact.key} was not published: {error}"
        raise ExportError(msg, key=artifact.key, **error.facts) from error


def _prepare_repo(
    client: HubClient, *, private: bool, create_pr: bool
) -> tuple[str, dict[str, HubFile]]:
    """Make the repo and the branch if need be; return the branch's commit and files."""
    api, repo = client.api, client.repo
    try:
        head = client.resolve()
    except RepoNotFoundError:
        client.call(lambda: api.create_repo(repo.repo_id, private=private, exist_ok=True))
        head = HubClient(repo.repo_id, token=client.token, endpoint=repo.endpoint).resolve()
        if repo.revision != "main":
            client.call(lambda: api.create_branch(repo.repo_id, branch=repo.revision))
    except RevisionNotFoundError:
        if create_pr:
            raise
        client.call(lambda: api.create_branch(repo.repo_id, branch=repo.revision, exist_ok=True))
        head = client.resolve()
    return head, {file.path: file for file in client.files(head)}


def _operation(
    artifact: ArtifactRef, file: TreeFile, existing: HubFile | None, store: Store
) -> CommitOperationAdd | None:
    """Return how a file gets to the Hub, or `None` when it is there."""
    if existing is not None and existing.size_bytes == file.size_bytes:
        if existing.announced.algorithm == "sha256":
            if existing.announced.digest == file.sha256:
                return None
        elif file.size_bytes <= GIT_SHA1_UP_TO_BYTES:
            with open_file(artifact, file.path, store=store) as stream:
                if git_sha1(stream.read()) == existing.announced.digest:
                    return None
    stream = open_file(artifact, file.path, store=store)
    return CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=stream)


def _card_operations(
    client: HubClient,
    card: CardContent,
    artifact: ArtifactRef,
    existing: HubFile | None,
    head: str,
) -> list[CommitOperationAdd]:
    old = None
    if existing is not None:
        old = client.read_file(CARD, head, existing.size_bytes).decode("utf-8", "replace")
    text = render_card(card, artifact, old).encode()
    if existing is not None and existing.announced.digest == git_sha1(text):
        return []
    return [CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=io.BytesIO(text))]


def git_sha1(content: bytes) -> str:
    """Return the digest under which git keeps a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _commit(
    client: HubClient,
    operations: list[CommitOperationAdd],
    *,
    message: str,
    parent_commit: str | None,
    create_pr: bool,
) -> tuple[str, str | None]:
    """Send it; not repeated as a whole: a commit whose reply is lost may have landed."""
    try:
        with mapped_hub_errors(client.repo):
            info = client.api.create_commit(
                client.repo.repo_id,
                operations,
                commit_message=message,
                revision=client.repo.revision,
                parent_commit=parent_commit,
                create_pr=create_pr,
            )
    except ValueError as error:
        if not str(error).startswith(_UNREADABLE_REPLY):
            raise
        return client.call(lambda: _landed(client, message, create_pr=create_pr))
    return str(info.oid), info.pr_url


def _landed(client: HubClient, message: str, *, create_pr: bool) -> tuple[str, str | None]:
    """Return what the commit that was just made came to: the newest with this message."""
    api, repo = client.api, client.repo
    title = message.partition("\n")[0]
    revision, pr_url = repo.revision, None
    if create_pr:
        pulls = api.get_repo_discussions(repo.repo_id, discussion_type="pull_request")
        number = max(pull.num for pull in pulls if pull.title == title)
        revision, pr_url = f"refs/pr/{number}", f"{repo.url}/discussions/{number}"
    commits = api.list_repo_commits(repo.repo_id, revision=revision)
    return next(commit.commit_id for commit in commits if commit.title == title), pr_url
