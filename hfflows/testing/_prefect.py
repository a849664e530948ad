"""A real Prefect server and workers on loopback, as processes of their own.

    with LocalPrefect() as prefect:
        prefect.cli("work-pool", "create", "pool", "--type", "process")
        with prefect.worker("pool"):
            ...

Only the `prefect` command is used: this module does not import prefect.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from hfflows.errors import MissingDependencyError, StorageUnavailableError
from hfflows.testing._local_server import LocalServer
from hfflows.testing._ports import PortBlock
from hfflows.testing._process import GuardedProcess

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_START_SECONDS = 120.0  # a fresh database takes 10 s on a quiet machine of two cores


class LocalPrefect(LocalServer):
    """A Prefect server between `start` and `stop`, or as a context manager.

    Args:
        root: Directory for its database, settings and logs; `None` is a temporary one,
            removed at the end.
        environ: Variables for the server and its workers, on top of this process's.
    """

    def __init__(
        self, *, root: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self._wanted_root = root
        self._root = Path()
        self._extra = dict(environ or {})
        self._ports: PortBlock | None = None
        self._server: GuardedProcess | None = None

    @property
    def port(self) -> int:
        """Return the server's port."""
        if self._ports is None:
            msg = "LocalPrefect is not running; use it as a context manager or call start()."
            raise StorageUnavailableError(msg)
        return self._ports.port("api")

    @property
    def api_url(self) -> str:
        """Return what `PREFECT_API_URL` is to be."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def ui_url(self) -> str:
        """Return where to look."""
        return f"http://127.0.0.1:{self.port}"

    def environ(self) -> dict[str, str]:
        """Return the variables with which any Prefect client finds this server."""
        return {
            **self._extra,
            "PREFECT_HOME": str(self._root),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_CLI_COLORS": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }

    def cli(self, *arguments: str, directory: Path | None = None) -> str:
        """Run a `prefect` command against this server and return what it printed.

        Raises:
            StorageUnavailableError: It failed; its output is in the message.
        """
        done = subprocess.run(  # noqa: S603 - a fixed program, no shell
            [*_PREFECT, "--no-prompt", *arguments],
            env=self._environ(directory),
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            msg = f"`prefect {' '.join(arguments)}` failed:\n{done.stdout}{done.stderr}"
            raise StorageUnavailableError(msg)
        return done.stdout

    @contextmanager
    def worker(self, pool: str, *, directory: Path | None = None) -> Iterator[GuardedProcess]:
        """Run a process worker of a work pool; it and its flow runs end with the block."""
        process = GuardedProcess(
            [*_PREFECT, "worker", "start", "--pool", pool, "--name", f"{pool}-worker"],
            environ=self._environ(directory),
            log=self._root / "worker.log",
            directory=directory or Path.cwd(),
        )
        try:
            yield process
        finally:
            process.stop()

    def start(self) -> None:
        """Start the server and wait until it is healthy.

        Raises:
            MissingDependencyError: prefect is not installed.
            StorageUnavailableError: It did not come up; its log is in the message.
        """
        if shutil.which("prefect", path=str(Path(sys.executable).parent)) is None:
            msg = "LocalPrefect needs prefect in this environment: pip install hfflows."
            raise MissingDependencyError(msg)
        self._root = self._wanted_root or Path(tempfile.mkdtemp(prefix="hfflows-prefect-"))
        self._root.mkdir(parents=True, exist_ok=True)
        self._ports = PortBlock.take(("api",))
        self._server = GuardedProcess(
            [*_PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(self.port)],
            environ=self._environ(None),
            log=self._root / "server.log",
            directory=self._root,
            temporary=self._root if self._wanted_root is None else None,
        )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._server.is_running:
            if self._is_healthy():
                return
            time.sleep(0.1)
        log = (self._root / "server.log").read_text(errors="replace")[-2000:]
        self.stop()
        msg = f"The Prefect server did not start in {_START_SECONDS:.0f} s; its log ends:\n{log}"
        raise StorageUnavailableError(msg)

    def stop(self) -> None:
        """End the server and, when it is temporary, remove its directory."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._ports is not None:
            self._ports.release()
            self._ports = None
        if self._wanted_root is None and self._root.name.startswith("hfflows-prefect-"):
            shutil.rmtree(self._root, ignore_errors=True)

    def _environ(self, directory: Path | None) -> dict[str, str]:
        # PWD is what `{{ $PWD }}` in a prefect.yaml means.
        return {**os.environ, **self.environ(), "PWD": str(directory or Path.cwd())}

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/api/health")
            return connection.getresponse().status == HTTPStatus.OK
        return False


_PREFECT = (sys.executable, "-m", "prefect")
