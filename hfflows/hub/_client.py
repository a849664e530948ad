"""One repo of a Hub: resolve, list, read ranges; repeated after passing faults."""

from __future__ import annotations

import logging
import random
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from huggingface_hub import HfApi, constants
from huggingface_hub.utils import hf_raise_for_status, validate_repo_id

from hfflows.artifacts import Announced
from hfflows.errors import HubError, HubUnavailableError, SettingsError
from hfflows.hub._errors import WAIT, Repo, mapped_hub_errors
from hfflows.hub._wire import CHUNK_BYTES, VERSION, Caller, Wire, check_online, find_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hfflows.keys import RepoType

logger = logging.getLogger("hfflows")
Result = TypeVar("Result")

_COMMIT = re.compile(r"[0-9a-f]{40}")

CDN_REFUSED = (400, 401, 403, 404, 410)
"""Answers of a CDN whose signed URL has run out: ask the Hub for a new one."""


@dataclass(frozen=True, slots=True)
class Patience:
    """What passing faults of the Hub are worth waiting for."""

    retries: int
    """Times that one request is repeated."""
    longest_wait_seconds: float
    """A Hub that asks for a longer wait gets an error instead: the task's own retries follow."""


PATIENT = Patience(retries=5, longest_wait_seconds=60.0)
BRIEF = Patience(retries=1, longest_wait_seconds=5.0)
"""Where there is an answer without the Hub, it must not hold a run up."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repo at a commit, read by range: a source for a save."""

    path: str
    size_bytes: int
    announced: Announced
    reader: RangeReader
    is_executable: bool = False

    def read(self, offset: int, length: int) -> bytearray:
        """Return exactly `length` bytes from `offset`."""
        return self.reader.read(self.path, offset, length)


class HubClient:
    """One repo of one Hub, with one token.

    Args:
        repo_id: `org/name`.
        repo_type: `model`, `dataset` or `space`.
        revision: Branch, tag, `refs/pr/N` or commit.
        token: `None` takes `HF_TOKEN` or the token of `hf auth login`, unless
            `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set; `True` insists on one; `False` sends none.
        endpoint: `None` means `HF_ENDPOINT`, else the public Hub.
        caller: Who asks and how.

    Raises:
        SettingsError: Not a legal repo id, type or revision.
        HubAccessError: `token=True`, and this machine has none.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        repo_type: RepoType = "model",
        revision: str | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
        caller: Caller | None = None,
    ) -> None:
        base = (endpoint or constants.ENDPOINT).rstrip("/")
        self.repo = Repo(repo_id, repo_type, base, revision or "main")
        if repo_type not in ("model", "dataset", "space"):
            msg = f"repo_type={repo_type!r} is none of 'model', 'dataset', 'space'."
            raise SettingsError(msg)
        with mapped_hub_errors(self.repo):
            validate_repo_id(repo_id)
        self.token = find_token(token)
        self.wire = Wire(base, self.token, caller or Caller())
        self.api = HfApi(
            endpoint=base,
            token=self.token or False,
            library_name="hfflows",
            library_version=VERSION,
        )

    def call(self, function: Callable[[], Result], *, patience: Patience = PATIENT) -> Result:
        """Return `function()`, its errors ours, repeated after passing faults."""
        check_online()
        attempt = 0
        while True:
            try:
                with mapped_hub_errors(self.repo):
                    return function()
            except HubUnavailableError as error:
                attempt += 1
                if not _wait(attempt, error, patience):
                    raise

    def resolve(self, *, patience: Patience = PATIENT) -> str:
        """Return the commit that the revision stands for now; one request."""
        return str(self.info(patience=patience)["sha"])

    def info(self, *, patience: Patience = PATIENT) -> dict[str, Any]:
        """Return what the Hub says of the repo at the revision, as it says it; one request.

        `sha` is there, and a full commit.
        """
        info = self._info(self.repo.revision, patience=patience)
        with self._parsing():
            commit_hash = info["sha"]
            if not _COMMIT.fullmatch(commit_hash):
                raise ValueError(commit_hash)
            return dict(info)

    def check_access(self) -> None:
        """Raise now if files of this repo would be refused; one request."""
        self._get(f"{self._api_url}/auth-check")

    def files(self, commit_hash: str) -> list[HubFile]:
        """Return every file at a commit with the digest that the Hub announces."""
        reader = RangeReader(self, replace(self.repo, revision=commit_hash))
        found: list[HubFile] = []
        following: str | None = f"{self._api_url}/tree/{commit_hash}?recursive=true&expand=false"
        while following:
            entries, following = self._get(following)
            with self._parsing():
                found += [_hub_file(entry, reader) for entry in entries if entry["type"] == "file"]
        return found

    def flagged_files(self, commit_hash: str) -> dict[str, str]:
        """Return what the Hub's scanners say of files with findings: {path: level}.

        One request. Empty where a Hub has no scanners, and for files not scanned yet.
        """
        info = self._info(commit_hash, "?securityStatus=true")
        with self._parsing():
            issues = (info.get("securityRepoStatus") or {}).get("filesWithIssues") or []
            return {str(issue["path"]): str(issue["level"]) for issue in issues}

    def read_file(self, path: str, commit_hash: str, size_bytes: int) -> bytes:
        """Return one whole file."""
        at = replace(self.repo, revision=commit_hash)
        return bytes(RangeReader(self, at).read(path, 0, size_bytes))

    @property
    def _api_url(self) -> str:
        return f"{self.repo.endpoint}/api/{self.repo.repo_type}s/{self.repo.repo_id}"

    def _info(self, revision: str, query: str = "", *, patience: Patience = PATIENT) -> Any:
        url = f"{self._api_url}/revision/{quote(revision, safe='')}{query}"
        return self._get(url, patience=patience)[0]

    def _get(self, url: str, *, patience: Patience = PATIENT) -> tuple[Any, str | None]:
        return self.call(partial(self.wire.json, url), patience=patience)

    @contextmanager
    def _parsing(self) -> Iterator[None]:
        try:
            yield
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            msg = (
                f"{self.repo.repo_id}: {self.repo.endpoint} answers in a way that no Hub does "
                f"({error!r}). Check `endpoint` and HF_ENDPOINT."
            )
            raise HubError(msg, repo_id=self.repo.repo_id) from error


def _hub_file(entry: Any, reader: RangeReader) -> HubFile:
    lfs = entry.get("lfs")
    if lfs is not None:
        announced = Announced("sha256", lfs["oid"])
        return HubFile(entry["path"], int(lfs["size"]), announced, reader)
    return HubFile(entry["path"], int(entry["size"]), Announced("git-sha1", entry["oid"]), reader)


def _wait(attempt: int, error: HubUnavailableError, patience: Patience) -> bool:
    """Sleep before the next attempt; return whether there should be one."""
    asked = error.facts.get("retry_after")
    if attempt > patience.retries or (asked or 0) > patience.longest_wait_seconds:
        return False
    # Jitter: a fleet that was refused together must not come back together.
    pause = (0.25 * 2**attempt if asked is None else asked) * random.uniform(1, 1.25)  # noqa: S311
    logger.debug("Hub: %s; attempt %d in %.1f s", error, attempt + 1, pause)
    time.sleep(pause)
    return True


@dataclass(slots=True)
class RangeReader:
    """Reads ranges of a repo's files at one commit; safe from several threads."""

    client: HubClient
    repo: Repo
    _located: dict[str, str] = field(default_factory=dict)
    """Where the Hub sent us for a file: on the next range it need not be asked again."""

    def read(self, path: str, offset: int, length: int) -> bytearray:
        """Return exactly `length` bytes of `path` from `offset`.

        A body that ends early is continued where it ended; attempts are counted anew
        whenever a chunk's worth of bytes arrived.

        Raises:
            HubError: As `mapped_hub_errors`.
        """
        data, attempt = bytearray(), 0
        while len(data) < length:
            before = len(data)
            try:
                with mapped_hub_errors(self.repo, path=path):
                    self._receive(path, offset, length, data)
            except HubUnavailableError as error:
                attempt = 1 if len(data) - before >= CHUNK_BYTES else attempt + 1
                self._located.pop(path, None)
                if not _wait(attempt, error, PATIENT):
                    raise
        return data

    def _receive(self, path: str, offset: int, length: int, data: bytearray) -> None:
        """Append to `data` what one answer brings."""
        begin = offset + len(data)
        headers = {"Range": f"bytes={begin}-{offset + length - 1}", "Accept-Encoding": "identity"}
        url = self._located.get(path) or self._resolve_url(path)
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with self.client.wire.open(url, headers, timeout=timeout) as answer:
            if not answer.is_home and answer.status in CDN_REFUSED:
                msg = f"{self.repo.repo_id}/{path}: the CDN answered {answer.status}. {WAIT}"
                raise HubUnavailableError(msg, path=path)
            hf_raise_for_status(answer.response)
            if answer.url != self._resolve_url(path):
                self._located[path] = answer.url
            skip = 0 if answer.status == 206 else begin  # noqa: PLR2004 - a server without ranges
            for chunk in answer.chunks:
                fresh = chunk[skip:]
                skip = max(0, skip - len(chunk))
                data += fresh[: length - len(data)]
                if len(data) == length:
                    return
        msg = f"{self.repo.repo_id}/{path}: the Hub ended its answer early. {WAIT}"
        raise HubUnavailableError(msg, path=path)

    def _resolve_url(self, path: str) -> str:
        revision = quote(self.repo.revision, safe="")
        return f"{self.repo.url}/resolve/{revision}/{quote(path)}"
