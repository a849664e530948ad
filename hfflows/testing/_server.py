"""One origin of the local Hub: a port, its connections, faults and the record of requests.

The port is reserved for as long as the origin exists: while it is down the socket stays
bound without listening, so connections are refused and nobody else can take the port.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, unquote, urlsplit

from hfflows.testing._faults import Fault
from hfflows.testing._http import (
    Body,
    FileBody,
    Refusal,
    Request,
    Response,
    UploadCutError,
    refusal_response,
)
from hfflows.testing._ledger import Entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from hfflows.testing._faults import FaultQueue
    from hfflows.testing._ledger import Ledger, Origin

    Handle = Callable[[Request], Response]

_PIECE_BYTES = 4 << 20
_DRAIN_BYTES = 1 << 20
_NO_FAULT = Fault(match="")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time at all


class OriginServer:
    """Serves `handle` on a free port of 127.0.0.1 between `up` and `down`.

    Args:
        name: Which origin this is in the records.
        handle: Answers a request; may raise `Refusal`.
        faults: Asked once per request.
        ledger: Written once per request.
    """

    def __init__(self, name: Origin, handle: Handle, faults: FaultQueue, ledger: Ledger) -> None:
        self.name = name
        self.handle = handle
        self.faults = faults
        self.ledger = ledger
        self.stopping = threading.Event()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._reserved = _bound_socket(0)
        self.port: int = self._reserved.getsockname()[1]

    @property
    def url(self) -> str:
        """Return the origin, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Accept connections; nothing happens when it already does."""
        if self._server is not None:
            return
        self.stopping.clear()
        self._server = _Server(self, self._reserved)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name=f"local-{self.name}", daemon=True
        )
        self._thread.start()

    def down(self) -> None:
        """Refuse connections on the same port, and end those that are open."""
        if self._server is None or self._thread is None:
            return
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._reserved = _bound_socket(self.port)
        self._server.drop_connections()
        self._server = None

    def close(self) -> None:
        """Go down and give up the port."""
        self.down()
        self._reserved.close()


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, origin: OriginServer, bound: socket.socket) -> None:
        super().__init__(bound.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.server_activate()
        self.origin = origin
        self._open: set[socket.socket] = set()

    def process_request(self, request: object, client_address: object) -> None:
        self._open.add(cast(socket.socket, request))
        super().process_request(cast(socket.socket, request), client_address)

    def shutdown_request(self, request: object) -> None:
        self._open.discard(cast(socket.socket, request))
        super().shutdown_request(cast(socket.socket, request))

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client went away: its business
            super().handle_error(cast(socket.socket, request), client_address)

    def drop_connections(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _HangUpError(Exception):
    """The connection ends here, by a fault."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "LocalHub"
    disable_nagle_algorithm = True
    rbufsize = 1 << 16

    server: _Server
    entry: Entry
    fault: Fault

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def log_message(self, *args: object) -> None:
        """Stay silent: the ledger knows more than a log line."""

    def _serve(self) -> None:
        origin = self.server.origin
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.entry = origin.ledger.open(
            Entry(
                origin=origin.name,
                method=self.command,
                path=path,
                query=url.query,
                range=self.headers.get("Range"),
                has_token="Authorization" in self.headers,
            )
        )
        self.fault = origin.faults.take(origin.name, f"{self.command} {path}") or _NO_FAULT
        try:
            self._answer(url.path, parse_qs(url.query, keep_blank_values=True))
        except _HangUpError:
            self._hang_up()
        except UploadCutError:
            self._hang_up()
        except OSError:
            self.close_connection = True  # the client went away; there is nobody to tell

    def _answer(self, target: str, query: dict[str, list[str]]) -> None:
        body = self._request_body()
        request = Request(self.command, target, query, self.headers, body)
        if self.fault.stall_after is None:
            self._stall()
        replaced = self.fault.status is not None or self.fault.hang_up
        response = Response()
        if not replaced or self.fault.applied:
            response = self._handled(request)
        self._drain(body)
        if self.fault.hang_up:
            raise _HangUpError
        if self.fault.status is not None:
            response = _fault_response(self.fault, self.fault.status)
        self._send(response)

    def _handled(self, request: Request) -> Response:
        try:
            return self.server.origin.handle(request)
        except Refusal as refusal:
            return refusal_response(refusal)

    def _request_body(self) -> Body:
        length = self.headers.get("Content-Length")
        return Body(
            self.rfile,
            int(length) if length else None,
            chunked="chunked" in self.headers.get("Transfer-Encoding", "").lower(),
            on_bytes=self._count_received,
            cut_after=self.fault.cut_upload_after,
        )

    def _count_received(self, count: int) -> None:
        self.entry.bytes_received += count

    def _drain(self, body: Body) -> None:
        """Read what the handler left of the body, as the next request lies behind it."""
        drained = 0
        for piece in body.pieces():
            drained += len(piece)
            if drained > _DRAIN_BYTES:
                self.close_connection = True
                return

    def _send(self, response: Response) -> None:
        self.entry.status = int(response.status)
        body = self._reworded(response.body)
        headers = {**response.headers, **self.fault.headers}
        if self.fault.etag is not None:
            for name in ("ETag", "X-Linked-Etag"):
                if name in headers:
                    headers[name] = f'"{self.fault.etag}"'
        self.send_response(response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        if response.status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        if self.command == "HEAD" or not body:
            self.end_headers()
            return
        self._send_body(body)

    def _reworded(self, body: bytes | FileBody) -> bytes | FileBody:
        if self.fault.replace is None or isinstance(body, FileBody):
            return body
        old, new = self.fault.replace
        return body.replace(old.encode(), new.encode())

    def _send_body(self, body: bytes | FileBody) -> None:
        total = len(body)
        allowed = total if self.fault.cut_after is None else min(total, self.fault.cut_after)
        head_sent = False
        for start, stop in self._pieces(allowed):
            self.entry.bytes_sent += stop - start
            try:
                if not head_sent:
                    self.end_headers()
                    head_sent = True
                self._send_piece(body, start, stop)
            except (OSError, _HangUpError):
                self.entry.bytes_sent -= stop - start
                raise
        if not head_sent:
            self.end_headers()
        if allowed < total or self.fault.cut_after is not None:
            raise _HangUpError

    def _pieces(self, allowed: int) -> list[tuple[int, int]]:
        """Cut [0, allowed) into pieces, one of which starts where the silence is."""
        edges = {*range(0, allowed, _PIECE_BYTES), allowed}
        if self.fault.stall_after is not None:
            edges.add(min(self.fault.stall_after, allowed))
        ordered = sorted(edges)
        return list(itertools.pairwise(ordered))

    def _send_piece(self, body: bytes | FileBody, start: int, stop: int) -> None:
        if self.fault.stall_after == start:
            self._stall()
        if isinstance(body, bytes):
            self.wfile.write(_flipped(body[start:stop], start, self.fault.flip_at))
            return
        start, stop = body.start + start, body.start + stop
        with body.path.open("rb") as file:
            if self.fault.flip_at is None:
                self.connection.sendfile(file, start, stop - start)
                return
            file.seek(start)
            self.wfile.write(_flipped(file.read(stop - start), start, self.fault.flip_at))

    def _stall(self) -> None:
        """Be silent; going down ends the silence and with it the connection."""
        seconds = self.fault.stall_seconds
        if seconds and self.server.origin.stopping.wait(seconds):
            raise _HangUpError

    def _hang_up(self) -> None:
        self.close_connection = True
        if self.fault.how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.rfile.close()  # it holds the descriptor too, and the RST goes with the last
            self.connection.close()
        else:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)


def _flipped(data: bytes, offset: int, at: int | None) -> bytes:
    if at is None or not offset <= at < offset + len(data):
        return data
    index = at - offset
    return data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :]


def _fault_response(fault: Fault, status: int) -> Response:
    refusal = Refusal(HTTPStatus(status), f"injected fault {status}")
    if fault.retry_after is not None:
        refusal.headers["Retry-After"] = str(fault.retry_after)
    if fault.rate_limit is not None:
        refusal.headers["RateLimit"] = fault.rate_limit
    return refusal_response(refusal)
