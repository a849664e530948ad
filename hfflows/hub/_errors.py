"""The one place where huggingface_hub's errors become ours."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from huggingface_hub import errors as upstream
from huggingface_hub.utils import get_session

from hfflows.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfflowsError,
    HubAccessError,
    HubError,
    HubUnavailableError,
    RepoNotFoundError,
    RevisionNotFoundError,
    SettingsError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hfflows.keys import RepoType

_TOKEN = "Pass token=, or set HF_TOKEN, or run `hf auth login`."  # noqa: S105 - advice
_NO_TOKEN = f"No token was sent. {_TOKEN}"
_OTHER_TOKEN = (
    "The token that was sent is not of such an account, or is fine-grained and lacks read "  # noqa: S105
    "access to this repo (for a gated one: to public gated repos)."
)
WAIT = "Trying again later may help; what the store holds already can be loaded without the Hub."

MAPPING: dict[type[BaseException], tuple[type[HfflowsError], str]] = {
    upstream.GatedRepoError: (
        GatedRepoError,
        (
            "It is gated: accept its terms at {url}, then use a read token of the account that "
            "accepted them and was let in. {sent}"
        ),
    ),
    upstream.RepositoryNotFoundError: (
        RepoNotFoundError,
        (
            "There is no such {repo_type} at {endpoint}, or it is private. Check the name; a "
            "private repo takes a read token of its owner, or of a member of its organization. "
            "{sent}"
        ),
    ),
    upstream.DisabledRepoError: (HubError, "The Hub has disabled access to this repo: see {url}."),
    upstream.RevisionNotFoundError: (
        RevisionNotFoundError,
        "It has no revision {revision!r}; see its branches and tags at {url}/tree/main.",
    ),
    upstream.EntryNotFoundError: (
        EntryNotFoundError,
        "It has no such file at {revision!r}; see {url}.",
    ),
    upstream.OfflineModeIsEnabled: (
        SettingsError,  # lasting: repeating the call cannot help
        "HF_HUB_OFFLINE forbids asking the Hub; unset it, or do this where the Hub may be asked.",
    ),
    upstream.LocalTokenNotFoundError: (HubAccessError, _TOKEN),
    upstream.BadRequestError: (HubError, "It does not accept the request; check the arguments."),
    upstream.HFValidationError: (SettingsError, "A repo id is `name` or `org/name`."),
    upstream.HfHubHTTPError: (HubError, "Look at {url}, and check `endpoint` and HF_ENDPOINT."),
}
"""What our calls can raise, narrowest found through the class's own bases."""

IRRELEVANT = frozenset(
    {
        *("CacheNotFound", "CorruptedCacheException", "CachedRepoTreeNotFoundError"),
        *("OIDCError", "DeviceCodeError", "InferenceTimeoutError", "InferenceEndpointError"),
        *("SafetensorsParsingError", "NotASafetensorsRepoError", "TextGenerationError"),
        *("HfUriError", "DryRunError", "FileMetadataError", "RevisionResolutionError"),
        *("DDUFError", "StrictDataclassError", "FileDuplicationError"),
        *("XetError", "XetDownloadError"),
        *("CLIError", "SandboxError"),
    }
)
"""Base classes of errors from parts of huggingface_hub that hfflows does not call."""

_BY_STATUS: dict[int, tuple[type[HubError], str]] = {
    401: (HubAccessError, "The token is missing or not valid. " + _TOKEN),
    403: (HubAccessError, "The token does not allow this; it may lack write access. " + _TOKEN),
    408: (HubUnavailableError, WAIT),
    412: (HubError, "The branch has moved since `parent_commit`; look at it and publish again."),
    416: (
        HubError,
        "The file is shorter than the Hub lists it: nobody can have it whole. See {url}.",
    ),
    429: (HubUnavailableError, "The Hub limits the rate. " + WAIT),
}


@dataclass(frozen=True, slots=True)
class Repo:
    """A repo at a revision of some Hub: what a message has to name."""

    repo_id: str
    repo_type: RepoType
    endpoint: str
    revision: str = "main"

    @property
    def url(self) -> str:
        """Page of the repo."""
        return f"{self.endpoint}/{self.folder}{self.repo_id}"

    @property
    def folder(self) -> str:
        """What stands before the id in page and file URLs; nothing for models."""
        return "" if self.repo_type == "model" else f"{self.repo_type}s/"


@contextmanager
def mapped_hub_errors(repo: Repo, *, path: str | None = None) -> Iterator[None]:
    """Raise huggingface_hub's and its HTTP client's errors as ours."""
    try:
        yield
    except HfflowsError:
        raise
    except upstream_errors() as error:
        raise translated(error, repo, path=path) from error


def translated(error: BaseException, repo: Repo, *, path: str | None = None) -> HfflowsError:
    """Return our error for one of huggingface_hub's."""
    subject = f"{repo.repo_id}/{path}" if path else repo.repo_id
    facts = {"repo_id": repo.repo_id, "revision": repo.revision, "path": path}
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    found = next((MAPPING[cls] for cls in type(error).__mro__ if cls in MAPPING), None)
    if getattr(response, "headers", {}).get("X-Error-Code") == "DisabledRepo":
        found, status = MAPPING[upstream.DisabledRepoError], None  # not all calls tell it apart
    if found is None:
        msg = f"{subject}: {repo.endpoint} cannot be reached ({_reason(error)}). {WAIT}"
        return HubUnavailableError(msg, **facts)
    ours, advice = found
    if ours is HubError and status is not None:
        is_server_fault = status // 100 == 5  # noqa: PLR2004
        ours, advice = _BY_STATUS.get(
            status, (HubUnavailableError, WAIT) if is_server_fault else found
        )
    said = f"The Hub answered {status}. " if status and issubclass(ours, HubError) else ""
    advice = advice.format(
        url=repo.url,
        endpoint=repo.endpoint,
        repo_type=repo.repo_type,
        revision=repo.revision,
        sent=_OTHER_TOKEN if _had_token(response) else _NO_TOKEN,
    )
    detail = "" if ours is not HubError else f" ({_reason(error)})"
    msg = f"{subject}: {said}{advice}{detail}"
    return ours(msg, **facts, status=status, retry_after=_seconds_to_wait(response))


def _had_token(response: object) -> bool:
    request = getattr(response, "request", None)
    return "authorization" in {name.lower() for name in getattr(request, "headers", {})}


def _reason(error: BaseException) -> str:
    """Return the first line of an error, cut; URLs in later lines may be signed."""
    text = str(getattr(error, "server_message", None) or error).strip().partition("\n")[0]
    return text[:200] or type(error).__name__


def _seconds_to_wait(response: object) -> float | None:
    """Return what Retry-After, or RateLimit's `t=`, asks for.

    Source: RFC 9110, section 10.2.3: Retry-After is seconds, or a date; the wait until a date
    is counted from the answer's own, so that clocks need not agree.
    """
    headers = getattr(response, "headers", None) or {}
    after = headers.get("Retry-After", "")
    if after.isdigit():
        return float(after)
    until, now = _time(after), _time(headers.get("Date", ""))
    if until is not None:
        return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())
    for part in headers.get("RateLimit", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == "t" and value.isdigit():
            return float(value) + 1
    return None


def _time(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).replace(tzinfo=UTC)  # an HTTP date is in GMT always
    except ValueError:
        return None


def upstream_errors() -> tuple[type[BaseException], ...]:
    """Return all that a call into huggingface_hub, or its session, may raise.

    `httpx2` and `httpx` have a base error of their own; requests' are `OSError`s.
    """
    client = sys.modules[type(get_session()).__module__.partition(".")[0]]
    return (*MAPPING, getattr(client, "TransportError", OSError), OSError)
