"""What the local Hub knows: users, repos, branches, tags, pull requests. No HTTP here.

Everything but the bytes is in memory. Commits are immutable and readers work on one commit,
so only changes to refs take the lock.
"""

from __future__ import annotations

import re
import secrets
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal

from hfflows.testing._git import Commit, FileEntry, commit_id, lfs_entry, regular_entry, tree_ids
from hfflows.testing._http import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hfflows.testing._blobs import BlobStore

Gate = Literal["auto", "manual", False]
Role = Literal["read", "write"]

OWNER = "local-user"
REPO_TYPES = ("model", "dataset", "space")
# fmt: off
LFS_SUFFIXES = (
    ".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".ftz", ".gguf", ".gz", ".h5", ".joblib",
    ".mlmodel", ".model", ".msgpack", ".npy", ".npz", ".onnx", ".onnx_data", ".ot", ".parquet",
    ".pb", ".pickle", ".pkl", ".pt", ".pth", ".rar", ".safetensors", ".tar", ".tflite", ".tgz",
    ".wasm", ".xz", ".zip", ".zst",
)
# fmt: on

_FULL_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
_BAD_REF = re.compile(r"^refs/|\.\.|[\s~^:?*\\\[]|^[-/]|/$|\.lock$")


@dataclass(frozen=True, slots=True)
class User:
    """A token and whose it is. The owner of the local Hub may do everything."""

    name: str
    role: Role
    gated_access: frozenset[str] = frozenset()
    orgs: frozenset[str] = frozenset()

    def owns(self, repo_id: str) -> bool:
        """Whether the repo lies in a namespace of this user."""
        return self.name == OWNER or repo_id.partition("/")[0] in {self.name, *self.orgs}


@dataclass(slots=True)
class Pull:
    """A pull request; its commits are on `refs/pr/<num>`."""

    num: int
    title: str
    description: str
    author: str
    created_at: datetime
    base: str
    head: str
    status: str = "open"
    merge_commit: str | None = None


@dataclass(slots=True)
class Repo:
    """One repo with its whole history."""

    id: str
    type: str
    private: bool
    created_at: datetime
    gated: Gate = False
    disabled: bool = False
    sdk: str | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[int, Pull] = field(default_factory=dict)
    flagged: dict[str, str] = field(default_factory=dict)
    """What scanners found a file to be."""
    lfs_objects: set[str] = field(default_factory=set)
    """Large files that a commit to this repo may point at."""

    def find(self, revision: str) -> Commit:
        """Return the commit a revision means.

        Raises:
            Refusal: 404 `RevisionNotFound`.
        """
        oid = self._ref(revision) or self._commit(revision)
        if oid is None:
            raise Refusal(
                HTTPStatus.NOT_FOUND, f"Invalid rev id: {revision}", code="RevisionNotFound"
            )
        return self.commits[oid]

    def history(self, commit: Commit) -> list[Commit]:
        """Return a commit and those before it, newest first."""
        line = [commit]
        while line[-1].parents:
            line.append(self.commits[line[-1].parents[0]])
        return line

    def _ref(self, revision: str) -> str | None:
        if pull := re.fullmatch(r"refs/pr/(\d+)", revision):
            found = self.pulls.get(int(pull[1]))
            return found.head if found else None
        name = revision.removeprefix("refs/heads/")
        return self.branches.get(name) or self.tags.get(revision.removeprefix("refs/tags/"))

    def _commit(self, revision: str) -> str | None:
        if _FULL_COMMIT.fullmatch(revision):
            return revision if revision in self.commits else None
        if _SHORT_COMMIT.fullmatch(revision):
            found = [oid for oid in self.commits if oid.startswith(revision)]
            return found[0] if len(found) == 1 else None
        return None


class HubState:
    """All users and repos of one local Hub."""

    def __init__(self, blobs: BlobStore) -> None:
        self.blobs = blobs
        self.lock = threading.RLock()
        self.users: dict[str, User] = {}
        self.repos: dict[tuple[str, str], Repo] = {}
        self._counter = 0

    def add_user(self, user: User) -> str:
        """Return a new token for `user`."""
        token = "hf_local" + secrets.token_hex(16)
        self.users[token] = user
        return token

    def get(self, repo_type: str, repo_id: str) -> Repo:
        """Return a repo, whoever asks.

        Raises:
            Refusal: 404 `RepoNotFound`.
        """
        try:
            return self.repos[repo_type, repo_id]
        except KeyError:
            raise Refusal(
                HTTPStatus.NOT_FOUND, "Repository not found", code="RepoNotFound"
            ) from None

    def create(
        self, repo_type: str, repo_id: str, *, private: bool, sdk: str | None = None
    ) -> Repo:
        """Make a repo with the first commit that the Hub gives every one.

        Raises:
            Refusal: 409 when it exists.
        """
        with self.lock:
            if (repo_type, repo_id) in self.repos:
                raise Refusal(HTTPStatus.CONFLICT, f"You already created this {repo_type} repo")
            repo = Repo(repo_id, repo_type, private, datetime.now(UTC), sdk=sdk)
            lines = [f"*{suffix} filter=lfs diff=lfs merge=lfs -text" for suffix in LFS_SUFFIXES]
            attributes = self.regular(("\n".join(lines) + "\n").encode())
            self.commit(
                repo, "main", {".gitattributes": attributes}, title="initial commit", author=OWNER
            )
            self.repos[repo_type, repo_id] = repo
            return repo

    def regular(self, data: bytes) -> FileEntry:
        """Store a small file's bytes and return its entry."""
        self.blobs.add([data])
        return regular_entry(data)

    def large(self, repo: Repo, sha256: str, size: int) -> FileEntry:
        """Return the entry of a large file whose bytes are stored, now one of this repo's."""
        repo.lfs_objects.add(sha256)
        return lfs_entry(sha256, size)

    def commit(
        self,
        repo: Repo,
        ref: str,
        files: Mapping[str, FileEntry],
        *,
        title: str,
        author: str,
        description: str = "",
    ) -> Commit:
        """Move a branch or `refs/pr/<num>` to a new commit that holds exactly `files`."""
        with self.lock:
            head = repo.pulls[int(ref[8:])].head if _is_pull(ref) else repo.branches.get(ref)
            commit = self._new_commit(
                repo,
                files,
                parents=(head,) if head else (),
                title=title,
                description=description,
                author=author,
            )
            if _is_pull(ref):
                repo.pulls[int(ref[8:])].head = commit.oid
            else:
                repo.branches[ref] = commit.oid
            return commit

    def create_branch(self, repo: Repo, name: str, start: Commit) -> None:
        """Make a branch.

        Raises:
            Refusal: 409 when it exists, 400 when the name is none.
        """
        with self.lock:
            self._check_new_ref(repo.branches, name)
            repo.branches[name] = start.oid

    def create_tag(self, repo: Repo, name: str, target: Commit) -> None:
        """Make a tag; raises as `create_branch` does."""
        with self.lock:
            self._check_new_ref(repo.tags, name)
            repo.tags[name] = target.oid

    def delete_ref(self, refs: dict[str, str], name: str) -> None:
        """Delete a branch or a tag.

        Raises:
            Refusal: 404 `RevisionNotFound`.
        """
        with self.lock:
            if refs.pop(name, None) is None:
                raise Refusal(
                    HTTPStatus.NOT_FOUND,
                    f"Reference does not exist: {name}",
                    code="RevisionNotFound",
                )

    def open_pull(
        self, repo: Repo, *, title: str, description: str, author: str, base: str, start: Commit
    ) -> Pull:
        """Open a pull request against branch `base`, from commit `start`."""
        with self.lock:
            num = len(repo.pulls) + 1
            now = datetime.now(UTC)
            repo.pulls[num] = Pull(num, title, description, author, now, base, start.oid)
            return repo.pulls[num]

    def merge(self, repo: Repo, pull: Pull, author: str) -> None:
        """Put what a pull request changed onto its base branch."""
        with self.lock:
            base, head = repo.find(pull.base), repo.find(f"refs/pr/{pull.num}")
            line = {commit.oid for commit in repo.history(base)}
            fork = next(commit for commit in repo.history(head) if commit.oid in line)
            files = dict(base.files)
            for path in {*fork.files, *head.files}:
                if fork.files.get(path) == head.files.get(path):
                    continue
                files.pop(path, None)
                if path in head.files:
                    files[path] = head.files[path]
            commit = self.commit(
                repo, pull.base, files, title=f"{pull.title} (#{pull.num})", author=author
            )
            pull.status, pull.merge_commit = "merged", commit.oid

    def _new_commit(
        self,
        repo: Repo,
        files: Mapping[str, FileEntry],
        *,
        parents: tuple[str, ...],
        title: str,
        description: str,
        author: str,
    ) -> Commit:
        self._counter += 1
        now = datetime.now(UTC)
        trees = tree_ids(files)
        oid = commit_id(
            trees[""],
            parents=parents,
            message=f"{title}\n\n{description}".strip(),
            author=author,
            created_at=now,
            repo=f"{repo.type}s/{repo.id}",
            counter=self._counter,
        )
        commit = Commit(oid, parents, title, description, author, now, dict(files), trees)
        repo.commits[oid] = commit
        return commit

    def _check_new_ref(self, refs: Mapping[str, str], name: str) -> None:
        if not name or _BAD_REF.search(name):
            raise Refusal(HTTPStatus.BAD_REQUEST, f"Invalid reference name: {name}")
        if name in refs:
            raise Refusal(HTTPStatus.CONFLICT, f"Reference already exists: {name}")


def is_large(
    path: str,
    size: int,
    sample: bytes,
    *,
    threshold_bytes: int,
    patterns: Iterable[str] = LFS_SUFFIXES,
) -> bool:
    """Whether the Hub keeps a file in large file storage: by name, size or being binary."""
    if size == 0:
        return False
    return size > threshold_bytes or path.endswith(tuple(patterns)) or b"\0" in sample


def _is_pull(ref: str) -> bool:
    return ref.startswith("refs/pr/")
