"""Requests to one Hub: who asks, and what may go to which origin.

Redirects are followed here and not by the HTTP client, which would take a caller's own
headers along: the token and those headers go to the Hub's origin, and nowhere else.

Works on huggingface_hub 0.36 (requests) and 1 to 2 (httpx, httpx2): it uses that library's
own session, so proxies and certificates are as the user set them.
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import constants, get_token
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from hfflows.errors import HubAccessError, HubError, HubUnavailableError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OFFLINE_VARIABLE = "HFFLOWS_HUB_OFFLINE"
VERSION = version("hfflows")

MAX_REDIRECTS = 5
CHUNK_BYTES = 256 * 1024
MAX_JSON_BYTES = 256 * 1024 * 1024
"""Largest answer of the API that is read; a page of 1,000 files takes about 300 kB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks the Hub and how, in the words of `huggingface_hub.snapshot_download`."""

    library_name: str | None = None
    library_version: str | None = None
    user_agent: Mapping[str, str] | str | None = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)  # may be secret
    etag_timeout: float | None = None
    """Seconds for an answer that is no file; `None` means `HF_HUB_ETAG_TIMEOUT`."""
    max_workers: int = 8
    """Requests to the Hub at once, at most."""

    def __post_init__(self) -> None:
        if self.max_workers < 1:
            msg = f"max_workers={self.max_workers} must be 1 or more."
            raise SettingsError(msg)
        if self.etag_timeout is not None and not self.etag_timeout > 0:
            msg = f"etag_timeout={self.etag_timeout} must be more than 0 seconds."
            raise SettingsError(msg)


def offline_reason() -> str | None:
    """Return the setting that forbids asking the Hub; `None` when it may be asked."""
    # huggingface_hub reads its variable once, when it is imported; set later, it is meant too.
    for variable in (OFFLINE_VARIABLE, "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").upper() in constants.ENV_VARS_TRUE_VALUES:
            return variable
    return "HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else None


def find_token(token: str | bool | None) -> str | None:
    """Return the token to send: as given, or for `True` and `None` the machine's own.

    Raises:
        HubAccessError: `True`, and the machine has none.
    """
    if isinstance(token, str) and token:
        return token
    if token is False or (token is not True and constants.HF_HUB_DISABLE_IMPLICIT_TOKEN):
        return None
    found: str | None = get_token()
    if token is True and found is None:
        msg = (
            "token=True asks for this machine's token, and it has none: "
            "set HF_TOKEN, run `hf auth login`, or pass the token itself."
        )
        raise HubAccessError(msg)
    return found


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, its body not read yet."""

    status: int
    response: Any
    chunks: Iterator[bytes]
    url: str
    is_home: bool
    """Whether the Hub's own origin gave it."""


class Wire:
    """Requests to one Hub with one token.

    Args:
        endpoint: Origin of the Hub.
        token: Goes to that origin only.
        caller: Who asks.
    """

    def __init__(self, endpoint: str, token: str | None, caller: Caller) -> None:
        self._home = _origin(endpoint)
        self._token = token
        self._caller = caller
        self._slots = threading.BoundedSemaphore(caller.max_workers)

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str], *, timeout: float) -> Iterator[Answer]:
        """Yield the answer to a GET after redirects; its status is the caller's to judge.

        Raises:
            SettingsError: `HFFLOWS_HUB_OFFLINE` forbids it.
            HubError: Redirects without end.
        """
        check_online()
        with self._slots:
            for _hop in range(MAX_REDIRECTS):
                is_home = _origin(url) == self._home
                identity = self._identification() if is_home else {}
                with _stream(url, {**identity, **headers}, timeout) as (response, chunks):
                    if response.status_code in (301, 302, 303, 307, 308):
                        url = urljoin(url, response.headers["Location"])
                        continue
                    yield Answer(response.status_code, response, chunks, url, is_home)
                    return
        msg = f"{_place(url)} redirects without end. Check `endpoint` and HF_ENDPOINT."
        raise HubError(msg)

    def json(self, url: str) -> tuple[Any, str | None]:
        """Return the JSON that the Hub answers, and the address of the next page.

        Raises:
            HubUnavailableError: The answer is no JSON: cut short, or from somebody between.
        """
        timeout = self._caller.etag_timeout or constants.HF_HUB_ETAG_TIMEOUT
        body = bytearray()
        with self.open(url, {}, timeout=timeout) as answer:
            hf_raise_for_status(answer.response)
            for chunk in answer.chunks:
                body += chunk
                if len(body) > MAX_JSON_BYTES:
                    msg = f"{_place(url)}: the Hub's answer has over {MAX_JSON_BYTES:,} bytes."
                    raise HubError(msg)
            following = answer.response.links.get("next", {}).get("url")
        try:
            value = json.loads(body)
        except ValueError as error:
            msg = (
                f"{_place(url)}: the answer is not JSON; it was cut short, or a proxy wrote it. "
                "Try again; if it stays so, check `endpoint` and the proxy."
            )
            raise HubUnavailableError(msg) from error
        return value, urljoin(url, following) if following else None

    def _identification(self) -> dict[str, str]:
        """Return the headers for the Hub's own origin."""
        caller = self._caller
        headers = build_hf_headers(
            token=self._token or False,
            library_name=caller.library_name or "hfflows",
            library_version=caller.library_version if caller.library_name else VERSION,
            user_agent=_user_agent(caller),
        )
        named = [*headers.items(), *(caller.headers or {}).items()]
        return {key.lower(): value for key, value in named}  # a caller's own come last and win


def _user_agent(caller: Caller) -> dict[str, str] | str | None:
    """Return what the caller says of itself, behind hfflows where that is not named already."""
    said = caller.user_agent
    if not caller.library_name:
        return said if said is None or isinstance(said, str) else dict(said)
    if isinstance(said, str):
        return f"hfflows/{VERSION}; {said}"
    return {"hfflows": VERSION, **(said or {})}


def check_online() -> None:
    """Refuse to go on where a setting forbids asking the Hub.

    Raises:
        SettingsError: Repeating the call cannot help, so it is no passing fault.
    """
    reason = offline_reason()
    if reason is not None:
        msg = f"{reason} forbids asking the Hub; unset it, or do this where the Hub may be asked."
        raise SettingsError(msg)


@contextmanager
def _stream(
    url: str, headers: dict[str, str], timeout: float
) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """Open a GET without following redirects, on whichever client the Hub library has."""
    session: Any = get_session()
    if callable(getattr(session, "stream", None)):
        with session.stream(
            "GET", url, headers=headers, timeout=timeout, follow_redirects=False
        ) as response:
            if response.status_code >= 400:  # noqa: PLR2004
                response.read()  # the error's text
            is_decoded = response.is_stream_consumed or "content-encoding" in response.headers
            # Else as it comes from the network: what decodes it copies it on the way.
            yield response, response.iter_bytes(CHUNK_BYTES) if is_decoded else response.iter_raw()
    else:
        with session.get(
            url, headers=headers, timeout=timeout, allow_redirects=False, stream=True
        ) as response:
            yield response, response.iter_content(CHUNK_BYTES)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _place(url: str) -> str:
    """Return a URL for a message; a query may hold a signature."""
    return url.partition("?")[0]
