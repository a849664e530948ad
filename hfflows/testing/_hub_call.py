"""What every handler of the local Hub is given, and who may do what."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

from hfflows.testing._http import Refusal
from hfflows.testing._hub_state import REPO_TYPES

if TYPE_CHECKING:
    from pathlib import Path

    from hfflows.testing._http import Request
    from hfflows.testing._hub_state import HubState, Repo, User


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """What the real Hub decides for itself and a test may want smaller."""

    page_size: int = 1000
    """Entries of a tree on one page."""
    expanded_page_size: int = 50
    """The same with `expand=True`, and commits on one page."""
    lfs_threshold_bytes: int = 10_000_000
    """Larger files go to large file storage, whatever their name."""
    multipart_threshold_bytes: int = 512 << 20
    """Larger uploads are in parts."""
    part_bytes: int = 128 << 20
    signed_url_seconds: float = 3600
    """How long a URL of the CDN is good for."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A large file that has been announced and may now be sent to the CDN origin."""

    repo: Repo
    sha256: str
    size: int
    temporary: Path
    part_bytes: int
    """0 when it comes in one piece."""
    part_etags: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True)
class App:
    """The local Hub behind both origins."""

    state: HubState
    settings: HubSettings
    endpoint: str
    cdn_endpoint: str
    uploads: dict[str, Upload] = field(default_factory=dict)
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def sign(self, path: str) -> str:
        """Return a URL of the CDN for a quoted path, good for a while without a token."""
        expires = str(int(time.time() + self.settings.signed_url_seconds))
        return f"{self.cdn_endpoint}{path}?Expires={expires}&Signature={self._mac(path, expires)}"

    def check_signature(self, request: Request) -> None:
        """Refuse a URL that `sign` did not make, or too long ago."""
        expires = request.first("Expires", "0")
        expected = self._mac(request.target, expires)
        if not hmac.compare_digest(expected, request.first("Signature")):
            raise Refusal(HTTPStatus.FORBIDDEN, "AccessDenied")
        if int(expires) < time.time():
            raise Refusal(HTTPStatus.FORBIDDEN, "ExpiredToken")

    def _mac(self, path: str, expires: str) -> str:
        return hmac.new(self.secret, f"{path} {expires}".encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class Call:
    """A request about one repo that its user may see; `rest` is the path behind the verb."""

    app: App
    request: Request
    user: User | None
    repo: Repo
    rest: tuple[str, ...] = ()

    @property
    def author(self) -> str:
        """Return whom a commit is by."""
        return self.user.name if self.user else "anonymous"

    @property
    def repo_url(self) -> str:
        """Return the repo's page."""
        return f"{self.app.endpoint}/{repo_path(self.repo)}"

    def argument(self, name: str) -> str:
        """Return the part of the path behind the verb, or refuse when there is none."""
        if not self.rest:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"Missing {name}")
        return self.rest[0]

    def require_user(self) -> User:
        """Refuse requests without a token."""
        if self.user is None:
            raise Refusal(HTTPStatus.UNAUTHORIZED, "Invalid username or password.")
        return self.user

    def require_write(self) -> User:
        """Refuse users who may not change this repo, and tokens that only read."""
        user = self.require_contributor()
        if not user.owns(self.repo.id):
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                "Forbidden: you must use a write token to upload to a repository.",
            )
        return user

    def require_contributor(self) -> User:
        """Refuse those who may not even open a pull request."""
        user = self.require_user()
        if user.role != "write":
            raise Refusal(HTTPStatus.FORBIDDEN, "Forbidden: this token may only read.")
        return user

    def require_files(self) -> None:
        """Refuse users whom the gate has not let in."""
        repo, user = self.repo, self.user
        if not repo.gated or (user and (user.owns(repo.id) or repo.id in user.gated_access)):
            return
        status = HTTPStatus.FORBIDDEN if user else HTTPStatus.UNAUTHORIZED
        message = f"Access to {repo.type} {repo.id} is restricted. You must have access to it."
        raise Refusal(status, message, code="GatedRepo")


def find_user(app: App, request: Request) -> User | None:
    """Return whose token was sent, `None` without one.

    Raises:
        Refusal: 401 for a token that is nobody's.
    """
    if request.token is None:
        return None
    user = app.state.users.get(request.token)
    if user is None:
        raise Refusal(HTTPStatus.UNAUTHORIZED, "Invalid credentials in Authorization header")
    return user


def find_repo(app: App, user: User | None, repo_type: str, repo_id: str) -> Repo:
    """Return a repo that `user` may see.

    A private one looks to others as if it were missing; to those without a token, both look
    as if one would help.

    Raises:
        Refusal: `RepoNotFound`, 404 or 401.
    """
    repo = app.state.repos.get((repo_type, repo_id))
    if repo is None or (repo.private and not (user and user.owns(repo_id))):
        if user is None:
            raise Refusal(
                HTTPStatus.UNAUTHORIZED, "Invalid username or password.", code="RepoNotFound"
            )
        raise Refusal(HTTPStatus.NOT_FOUND, "Repository not found", code="RepoNotFound")
    if repo.disabled:
        raise Refusal(
            HTTPStatus.FORBIDDEN, "Access to this resource is disabled.", code="DisabledRepo"
        )
    return repo


def type_of(plural: str) -> str | None:
    """Return `model` for `models`, `None` for what is no kind of repo."""
    name = plural.removesuffix("s")
    return name if name in REPO_TYPES and plural.endswith("s") else None


def repo_path(repo: Repo) -> str:
    """Return where a repo is below the endpoint."""
    return repo.id if repo.type == "model" else f"{repo.type}s/{repo.id}"


def quoted(*parts: str) -> str:
    """Join parts to a path, each quoted but for its slashes."""
    return "/" + "/".join(quote(part) for part in parts)


def not_emulated(request: Request) -> Refusal:
    """Say aloud that a test has reached the end of this Hub."""
    return Refusal(
        HTTPStatus.NOT_IMPLEMENTED,
        f"LocalHub does not emulate {request.method} {request.target}",
    )
