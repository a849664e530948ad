"""Requests and responses as the local Hub's handlers see them; no sockets here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from email.message import Message
    from io import BufferedIOBase
    from pathlib import Path

_CHUNK_BYTES = 1 << 20


class Refusal(Exception):  # noqa: N818 - an answer of the protocol, not a fault of ours
    """A handler's way to answer with an error status.

    Args:
        status: HTTP status.
        message: Text for the body and `X-Error-Message`.
        code: `X-Error-Code`, from which huggingface_hub chooses its exception.
        headers: Further headers.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})


class UploadCutError(ConnectionError):
    """A fault, or the client, ended the request before its body was complete."""


class Body:
    """The body of a request, read once and in pieces, with or without a known length.

    Args:
        stream: Where the bytes come from.
        length: `Content-Length`; `None` with `chunked`.
        chunked: Whether the body is in chunks, each with its length in front.
        on_bytes: Told the number of bytes of each piece.
        cut_after: Raise `UploadCutError` after this many bytes.
    """

    def __init__(
        self,
        stream: BufferedIOBase,
        length: int | None,
        *,
        chunked: bool,
        on_bytes: Callable[[int], None],
        cut_after: int | None,
    ) -> None:
        self._stream = stream
        self._left = 0 if chunked else length or 0
        self._chunked = chunked
        self._on_bytes = on_bytes
        self._cut_after = cut_after

    def pieces(self) -> Iterator[bytes]:
        """Yield what has not been read yet, in pieces of at most 1 MiB."""
        while self._left or (self._chunked and self._next_chunk()):
            piece = self._stream.read(min(self._left, self._allowance()))
            if not piece:
                raise UploadCutError("the request's body ended early")
            self._left -= len(piece)
            self._on_bytes(len(piece))
            if self._cut_after is not None:
                self._cut_after -= len(piece)
            if self._chunked and not self._left:
                self._stream.readline()  # the line break after a chunk's bytes
            yield piece

    def read(self) -> bytes:
        """Return all of it; for requests that are small by nature."""
        return b"".join(self.pieces())

    def json(self) -> Any:
        """Return the body as a JSON document; an empty one is an empty object."""
        raw = self.read()
        try:
            return json.loads(raw) if raw else {}
        except ValueError:
            raise Refusal(HTTPStatus.BAD_REQUEST, "Invalid JSON") from None

    def _allowance(self) -> int:
        if self._cut_after is None:
            return _CHUNK_BYTES
        if self._cut_after <= 0:
            raise UploadCutError("cut by a fault")
        return min(_CHUNK_BYTES, self._cut_after)

    def _next_chunk(self) -> bool:
        size = self._stream.readline().split(b";")[0].strip()
        self._left = int(size or b"0", 16)
        if not self._left:
            self._chunked = False
            while self._stream.readline().strip():
                pass  # trailers, up to the empty line that ends them
        return self._left > 0


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `segments` are the unquoted parts of its path."""

    method: str
    target: str
    query: dict[str, list[str]]
    headers: Message
    body: Body

    @property
    def segments(self) -> list[str]:
        """Return the path's parts, split before unquoting so that `refs%2Fpr%2F1` is one."""
        return [unquote(part) for part in self.target.split("/") if part]

    @property
    def token(self) -> str | None:
        """Return the bearer token, if one was sent."""
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        return value.strip() if scheme.lower() == "bearer" and value.strip() else None

    def first(self, name: str, default: str = "") -> str:
        """Return the first value of a query parameter."""
        return self.query.get(name, [default])[0]

    def is_on(self, name: str) -> bool:
        """Whether a query parameter says yes in one of the ways clients write it."""
        return is_true(self.first(name))

    def form(self) -> dict[str, list[str]]:
        """Return the body of a form, whether sent urlencoded or as JSON."""
        if "json" in self.headers.get("Content-Type", ""):
            document = self.body.json()
            return {
                key: [str(item) for item in (value if isinstance(value, list) else [value])]
                for key, value in document.items()
            }
        return parse_qs(self.body.read().decode())


@dataclass(slots=True)
class FileBody:
    """A file to be sent from disk, or the part of it that a range asks for."""

    path: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(slots=True)
class Response:
    """What to answer. A `FileBody` is streamed; `Content-Length` is added when sent."""

    status: int = HTTPStatus.OK
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | FileBody = b""


def is_true(text: str) -> bool:
    """Whether a form or query value says yes."""
    return text.lower() in {"1", "true", "yes"}


def json_response(
    document: Any, *, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer with a JSON document."""
    head = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Response(status, head, json.dumps(document).encode())


def refusal_response(refusal: Refusal) -> Response:
    """Answer a refusal the way the Hub does: headers for machines, the body for people."""
    headers = {"X-Error-Message": refusal.message, **refusal.headers}
    if refusal.code is not None:
        headers["X-Error-Code"] = refusal.code
    return json_response({"error": refusal.message}, status=refusal.status, headers=headers)


def file_response(
    request: Request, path: Path, *, size: int, headers: Mapping[str, str]
) -> Response:
    """Answer with a file, whole or the range asked for.

    Raises:
        Refusal: 416 when the range starts past the end.
    """
    head = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
    wanted = _parse_range(request.headers.get("Range"), size)
    if wanted is None:
        return Response(HTTPStatus.OK, head, FileBody(path, 0, size))
    start, stop = wanted
    head["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Response(HTTPStatus.PARTIAL_CONTENT, head, FileBody(path, start, stop))


def _parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return [start, stop), or `None` for the whole file, as for a form we do not know."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip()) if header else None
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(size - int(last), 0), size
    if start >= stop:
        raise Refusal(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            "The requested range is not satisfiable",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, stop
