import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@pytest.fixture
def s3_url(local_s3):
    """Return a prefix that nobody else uses."""
    return local_s3.url(f"team/{os.urandom(6).hex()}")


@pytest.fixture
def recorder():
    """Return a server that accepts every upload and refuses every deletion.

    `seen` has (method, path, headers) of the uploads.
    """
    with _Recorder(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


REFUSED = b"""<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<Error><Key>team/k</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>
</DeleteResult>"""


class _Recorder(ThreadingHTTPServer):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.seen = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.seen.append((self.command, self.path, headers))
        self._read()
        self._answer(b"")

    def do_POST(self):
        self._read()
        self._answer(REFUSED)

    def _answer(self, body):
        self.send_response(200)
        self.send_header("ETag", '"e"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _read(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while size := int(self.rfile.readline().split(b";")[0], 16):
            self.rfile.read(size + 2)
        return self.rfile.readline()

    def log_message(self, *_):
        pass
