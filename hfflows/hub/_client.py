"""Talking to one Hub: resolve, list, read ranges; retried, and the token kept at home.

Works on huggingface_hub 0.36 (requests) and 1 to 2 (httpx, httpx2): it uses that library's
own session, so proxies, certificates and offline mode are as the user set them.
"""

from __future__ import annotations

import logging
import random
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.utils import (
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    validate_repo_id,
)

from hfflows.artifacts import Announced
from hfflows.errors import HubError, HubUnavailableError, SettingsError
from hfflows.hub._errors import Repo, mapped_hub_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hfflows.keys import RepoType

logger = logging.getLogger("hfflows")
Result = TypeVar("Result")
VERSION = version("hfflows")

RETRIES = 5
"""Times that one request is repeated after a passing fault."""
LONGEST_WAIT_SECONDS = 60.0
"""A Hub that asks for a longer wait gets an error instead: the task's own retries follow."""
MAX_REDIRECTS = 5
CHUNK_BYTES = 256 * 1024
CDN_REFUSED = (400, 401, 403, 404, 410)
"""Answers of a CDN whose signed URL has run out: ask the Hub for a new one."""


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
        token: `None` takes `HF_TOKEN` or the token of `hf auth login`.
        endpoint: `None` means `HF_ENDPOINT`, else the public Hub.

    Raises:
        SettingsError: Not a legal repo id, type or revision.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        repo_type: RepoType = "model",
        revision: str | None = None,
        token: str | None = None,
        endpoint: str | None = None,
    ) -> None:
        base = (endpoint or constants.ENDPOINT).rstrip("/")
        self.repo = Repo(repo_id, repo_type, base, revision or "main")
        if repo_type not in ("model", "dataset", "space"):
            msg = f"repo_type={repo_type!r} is none of 'model', 'dataset', 'space'."
            raise SettingsError(msg)
        with mapped_hub_errors(self.repo):
            validate_repo_id(repo_id)
        self.token = token or get_token()
        self.api = HfApi(
            endpoint=base,
            token=self.token or False,
            library_name="hfflows",
            library_version=VERSION,
        )

    def call(self, function: Callable[[], Result], *, retries: int = RETRIES) -> Result:
        """Return `function()`, its errors ours, repeated after passing faults."""
        attempt = 0
        while True:
            try:
                with mapped_hub_errors(self.repo):
                    return function()
            except HubUnavailableError as error:
                attempt += 1
                if attempt > retries or not _wait(attempt, error):
                    raise

    def resolve(self, *, retries: int = RETRIES) -> str:
        """Return the commit that the revision stands for now; one request."""
        repo = self.repo
        info = self.call(
            lambda: self.api.repo_info(
                repo.repo_id, repo_type=repo.repo_type, revision=repo.revision
            ),
            retries=retries,
        )
        return str(info.sha)

    def check_access(self) -> None:
        """Raise now if files of this repo would be refused; one request."""
        repo = self.repo
        self.call(lambda: self.api.auth_check(repo.repo_id, repo_type=repo.repo_type))

    def files(self, commit_hash: str) -> list[HubFile]:
        """Return every file at a commit with the digest that the Hub announces."""
        at = replace(self.repo, revision=commit_hash)
        reader = RangeReader(self, at)
        entries = self.call(
            lambda: list(
                self.api.list_repo_tree(
                    at.repo_id, repo_type=at.repo_type, revision=commit_hash, recursive=True
                )
            )
        )
        return [_hub_file(entry, reader) for entry in entries if hasattr(entry, "blob_id")]

    def read_file(self, path: str, commit_hash: str, size_bytes: int) -> bytes:
        """Return one whole file."""
        at = replace(self.repo, revision=commit_hash)
        return bytes(RangeReader(self, at).read(path, 0, size_bytes))


def _hub_file(entry: Any, reader: RangeReader) -> HubFile:
    if entry.lfs is not None:
        announced = Announced("sha256", entry.lfs.sha256)
        return HubFile(entry.path, int(entry.lfs.size), announced, reader)
    return HubFile(entry.path, int(entry.size), Announced("git-sha1", entry.blob_id), reader)


def _wait(attempt: int, error: HubUnavailableError) -> bool:
    """Sleep before the next attempt; return whether there should be one."""
    asked = error.facts.get("retry_after")
    if asked is not None and asked > LONGEST_WAIT_SECONDS:
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
        whenever bytes arrived.

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
                attempt = 1 if len(data) > before else attempt + 1
                self._located.pop(path, None)
                if attempt > RETRIES or not _wait(attempt, error):
                    raise
        return data

    def _receive(self, path: str, offset: int, length: int, data: bytearray) -> None:
        """Append to `data` what one answer brings."""
        begin = offset + len(data)
        headers = {"Range": f"bytes={begin}-{offset + length - 1}", "Accept-Encoding": "identity"}
        with self._open(path, headers) as (status, chunks):
            skip = 0 if status == 206 else begin  # noqa: PLR2004 - a server without ranges
            for chunk in chunks:
                fresh = chunk[skip:]
                skip = max(0, skip - len(chunk))
                data += fresh[: length - len(data)]
                if len(data) == length:
                    return
        msg = f"{self.repo.repo_id}/{path}: the Hub ended its answer early."
        raise HubUnavailableError(msg, path=path)

    @contextmanager
    def _open(self, path: str, headers: dict[str, str]) -> Iterator[tuple[int, Iterator[bytes]]]:
        url = self._located.get(path) or self._resolve_url(path)
        for _hop in range(MAX_REDIRECTS):
            is_home = _origin(url) == _origin(self.repo.endpoint)
            extra = self._identification() if is_home else {}
            with _stream(url, {**extra, **headers}) as (response, chunks):
                if response.status_code in (301, 302, 303, 307, 308):
                    url = urljoin(url, response.headers["Location"])
                    continue
                if not is_home and response.status_code in CDN_REFUSED:
                    msg = f"{self.repo.repo_id}/{path}: the CDN answered {response.status_code}."
                    raise HubUnavailableError(msg, path=path)
                hf_raise_for_status(response)
                if url != self._resolve_url(path):
                    self._located[path] = url
                yield response.status_code, chunks
                return
        msg = f"{self.repo.repo_id}/{path}: the Hub redirects without end."
        raise HubError(msg, path=path)

    def _resolve_url(self, path: str) -> str:
        revision = quote(self.repo.revision, safe="")
        return f"{self.repo.url}/resolve/{revision}/{quote(path)}"

    def _identification(self) -> dict[str, str]:
        """Return the headers for the Hub's own origin; the token goes nowhere else."""
        return build_hf_headers(
            token=self.client.token or False, library_name="hfflows", library_version=VERSION
        )


@contextmanager
def _stream(url: str, headers: dict[str, str]) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """Open a GET without following redirects, on whichever client the Hub library has."""
    session: Any = get_session()
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(getattr(session, "stream", None)):
        with session.stream(
            "GET", url, headers=headers, timeout=timeout, follow_redirects=False
        ) as response:
            if response.status_code >= 400:  # noqa: PLR2004
                response.read()  # the error's text
            yield response, response.iter_bytes(CHUNK_BYTES)
    else:
        with session.get(
            url, headers=headers, timeout=timeout, allow_redirects=False, stream=True
        ) as response:
            yield response, response.iter_content(CHUNK_BYTES)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
