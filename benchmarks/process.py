"""The parent's side of a contender's process, and of the Hub's.

See `benchmarks.child` and `benchmarks.hub_process`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from benchmarks.spec import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

ROOT = Path(__file__).parent.parent
TIMEOUT_SECONDS = 1800.0

_OTHERS_SETTINGS = ("AWS_", "HF_", "HFFLOWS_", "METAFLOW_", "PREFECT_", "S3_")


class ChildProcess:
    """A process and a process group of its own, while the context lasts.

    Several may be started before the first answer of each is waited for: that it is ready.

    Args:
        setting: First line for the child.
        environ: Variables with which it finds the servers.
        directory: Its working directory.
        module: What it runs.
    """

    def __init__(
        self,
        setting: Mapping[str, Any],
        *,
        environ: Mapping[str, str],
        directory: Path,
        module: str = "benchmarks.child",
    ) -> None:
        self._command = [sys.executable, "-m", module]
        self._setting = setting
        self._environ = _environment(environ)
        self._directory = directory

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile("w+", dir=self._directory, errors="replace")
        self._process = subprocess.Popen(  # noqa: S603 - this Python, a module of ours
            self._command,
            cwd=self._directory,
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self.send(self._setting)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def start(self, operation: str, calls: Sequence[Mapping[str, Any]]) -> None:
        """Let it begin; `answer` waits for the end."""
        self.send({"operation": operation, "calls": list(calls)})

    def send(self, line: Mapping[str, Any]) -> None:
        """Write a line; one that has died already is noticed by `answer`."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        try:
            print(json.dumps(line), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return

    def answer(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            BenchmarkError: It died, or took longer than `TIMEOUT_SECONDS`.
        """
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        timed_out = threading.Event()
        timer = threading.Timer(TIMEOUT_SECONDS, self._time_out, [timed_out])
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._process.wait()
        raise BenchmarkError("took too long" if timed_out.is_set() else self._last_words())

    def has_ended(self) -> bool:
        """Return whether `answer` would not wait: it has answered, or it has died."""
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        ready, _, _ = select.select([self._process.stdout], [], [], 0)
        return bool(ready)

    def kill(self) -> None:
        """Kill it and its children as a machine's end would."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _time_out(self, timed_out: threading.Event) -> None:
        timed_out.set()
        self.kill()

    def _end(self) -> None:
        self.kill()
        self._process.communicate()
        self._log.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return scrubbed(lines[-1]) if lines else f"ended with status {self._process.returncode}"


def scrubbed(text: str) -> str:
    """Return a message without this machine's directories."""
    for place, name in (
        (tempfile.gettempdir(), "$TMPDIR"),
        (str(ROOT), "."),
        (str(Path.home()), "~"),
    ):
        text = text.replace(place, name)
    return text


def _environment(added: Mapping[str, str]) -> dict[str, str]:
    """Return this environment without what would configure a client, and with `added`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_OTHERS_SETTINGS)}
    return {**kept, **added, "PYTHONPATH": str(ROOT)}
