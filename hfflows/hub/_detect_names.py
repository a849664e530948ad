"""What a text names: a Hub id, a URL of the Hub, or a path inside a Hugging Face cache.

    org/name, name, org/name@revision                     a Hub id
    <endpoint>/[datasets/]org/name[/tree/<revision>/…]    a page or file of the Hub
    …/models--org--name/snapshots/<commit>/…              inside any cache, from any machine

Nothing here raises, however odd the text: what names nothing is `Rejected` with a reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hfflows.hub._revisions import is_commit

if TYPE_CHECKING:
    from hfflows.keys import RepoType

DetectedFrom = Literal[
    "argument",
    "url",
    "cache_path",
    "config",
    "adapter_config",
    "model_card",
    "snapshot_reference",
    "directory",
]

REPO_TYPES = ("model", "dataset", "space")
_FOLDERS: dict[str, RepoType] = {"models": "model", "datasets": "dataset", "spaces": "space"}
_REPO_ID = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?")
# What git forbids in the name of a branch or tag: https://git-scm.com/docs/git-check-ref-format
_NO_REVISION = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|@\{|^[-/.]|/\.|[/.]$|\.lock(/|$)")
_MAX_REVISION = 255
_PATH_SPELLING = re.compile(r"[/~\\]|\.{1,2}([/\\]|$)|[A-Za-z]:[/\\]|.*[/\\]$|[^@]*\\")
_MODEL_FILE = re.compile(
    r".*\.(onnx|safetensors|bin|pt|pth|ckpt|gguf|h5|json|ya?ml|zip)", re.IGNORECASE
)

_CACHED = re.compile(
    r"(?:^|.*/)(models|datasets|spaces)--([^/]+)/snapshots/([0-9a-f]{40})(?:/.*)?",
    re.IGNORECASE | re.DOTALL,
)
_CACHE_FOLDER = re.compile(
    r"(?:^|.*/)(?:models|datasets|spaces)--[^/]+/(?:(?:snapshots|blobs|refs)(?:/.*)?)?",
    re.IGNORECASE | re.DOTALL,
)

_URL_VERBS = frozenset({"tree", "blob", "resolve", "raw", "commit", "commits", "blame"})
_SITE_PAGES = frozenset({"api", "blog", "collections", "docs", "learn", "papers", "tasks"})


@dataclass(frozen=True, slots=True)
class HubName:
    """A repo of the Hub, as somebody named it; `str()` gives `org/name@revision` back."""

    repo_id: str
    repo_type: RepoType = "model"
    revision: str | None = None
    commit_hash: str | None = None
    """Set where the name itself holds a full commit."""
    detected_from: DetectedFrom = "argument"

    def __str__(self) -> str:
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a text names nothing."""

    reason: str


def parse_source(text: str, *, endpoint: str) -> HubName | Rejected:
    """Return the repo that a text names: a URL of this Hub, a cache path or an id."""
    if "://" in text:
        return parse_url(text, endpoint=endpoint)
    cached = parse_cache_path(text)
    if cached is not None:
        return cached
    if _PATH_SPELLING.match(text):
        return Rejected("It is spelled as a path, and there is no such file or directory.")
    return parse_hub_id(text)


def parse_hub_id(text: str) -> HubName | Rejected:
    """Return the repo that `name`, `org/name` or either with `@revision` names."""
    repo_id, at, revision = text.partition("@")
    if not _is_repo_id(repo_id):
        return Rejected(
            "It is neither a path that exists nor a Hub id: `name` or `org/name` of ASCII letters, "
            "digits, `-`, `_` and `.`, with `@revision` behind it if need be."
        )
    namespace = repo_id.partition("/")[0]
    if namespace in _FOLDERS and namespace != repo_id:
        return Rejected(
            f"It could be the repo {repo_id}, or a repo type and a name. For a repo that is no "
            "model pass its URL."
        )
    if namespace == repo_id and _MODEL_FILE.fullmatch(repo_id):
        return Rejected("It looks like the name of a file, and there is no such file here.")
    if not at:
        return HubName(repo_id)
    if not is_revision(revision):
        return Rejected(
            "What stands behind `@` is no legal name of a branch or tag, no `refs/pr/N` and no "
            "commit."
        )
    return HubName(repo_id, revision=revision, commit_hash=_commit(revision))


def parse_url(text: str, *, endpoint: str) -> HubName | Rejected:
    """Return the repo, and the revision if any, of a page or file of the Hub at `endpoint`."""
    try:
        url, home = urlsplit(text), urlsplit(endpoint)
        is_home = _origin(url) == _origin(home) and f"{url.path}/".startswith(f"{home.path}/")
    except ValueError:
        return Rejected("It is no legal URL.")
    if not is_home:
        return Rejected(
            f"It is a URL outside {home.scheme}://{home.hostname}, the Hub that is configured. "
            "Pass `org/name`, or the other Hub's address as endpoint=."
        )
    parts = [unquote(part) for part in url.path.removeprefix(home.path).split("/") if part]
    repo_type = _FOLDERS.get(parts[0], "model") if parts else "model"
    parts = parts[1:] if parts and parts[0] in _FOLDERS else parts
    at = 1 if len(parts) > 1 and parts[1] in _URL_VERBS else 2
    repo_id, rest = "/".join(parts[:at]), parts[at:]
    if not _is_repo_id(repo_id) or parts[0] in _SITE_PAGES:
        return Rejected("This page of the Hub belongs to no repo.")
    if not rest:
        return HubName(repo_id, repo_type, detected_from="url")
    # Elsewhere a `/` of a revision is `%2F` in URLs; these are also written plainly.
    revision = "/".join(rest[1 : 4 if rest[1:2] == ["refs"] else 2])
    if rest[0] not in _URL_VERBS or not is_revision(revision):
        return Rejected("This page of the Hub belongs to no revision of a repo.")
    return HubName(repo_id, repo_type, revision, _commit(revision), "url")


def parse_cache_path(text: str) -> HubName | Rejected | None:
    """Return the repo and commit of a path inside a Hugging Face cache, wherever that lies.

    The layout is what counts: a cache may be anywhere (`HF_HOME`, `HF_HUB_CACHE`,
    `cache_dir=`), and on Windows it has other separators and any case. `None` when the path
    is of no cache.
    """
    path = text.replace("\\", "/")
    found = _CACHED.fullmatch(path)
    if found is None:
        if not _CACHE_FOLDER.fullmatch(f"{path}/"):
            return None
        return Rejected(
            "It is a repo's folder in a Hugging Face cache, which may hold several commits: "
            "pass one of the directories in its `snapshots`."
        )
    repo_id = found[2].replace("--", "/")  # an id never holds `--`
    if not _is_repo_id(repo_id):
        return None
    commit_hash = found[3].lower()
    return HubName(
        repo_id,
        _FOLDERS[found[1].lower()],
        commit_hash=commit_hash,
        detected_from="cache_path",
    )


def is_revision(text: str) -> bool:
    """Return whether git allows this name for a branch, tag or other reference."""
    is_text = 0 < len(text) <= _MAX_REVISION and text.isprintable()
    return is_text and text != "@" and _NO_REVISION.search(text) is None


def _is_repo_id(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return _REPO_ID.fullmatch(text) is not None  # older versions let other alphabets pass


def _commit(revision: str) -> str | None:
    return revision if is_commit(revision) else None


def _origin(url: SplitResult) -> tuple[str, str | None, int | None, str | None]:
    """Return what tells one site from another; a user in the URL is none of ours."""
    port = url.port or {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.hostname, port, url.username
