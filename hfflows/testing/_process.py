"""Server processes that end with the test that started them, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

STOP_SECONDS = 5.0

# Ends the whole process group when the pipe from this process does, however this process
# ended. `PDEATHSIG` would fire already at the end of the thread that started the server.
_WATCHDOG = 'read -r _; kill -s KILL -- "-$1"; [ -z "$2" ] || rm -rf -- "$2"'


class GuardedProcess:
    """A process in a group of its own, with a watchdog that outlives nobody.

    Args:
        command: Program and arguments; no shell.
        environ: Its whole environment.
        log: File for what it prints.
        directory: Its working directory.
        temporary: Directory to remove should this process be killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        log: Path,
        directory: Path,
        temporary: Path | None = None,
    ) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed program, no shell
                list(command),
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                start_new_session=True,  # a Ctrl-C is for the tests, which then stop it
            )
        self._watchdog = subprocess.Popen(  # noqa: S603 - a fixed script, values as arguments
            ["/bin/sh", "-c", _WATCHDOG, "sh", str(self.pid), str(temporary or "")],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Return the process id, which is its group's too."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Return whether it has not ended yet."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it and its children: by SIGTERM, after 5 seconds by SIGKILL."""
        self._watchdog.kill()
        self._watchdog.communicate()
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self.is_running and time.monotonic() < deadline:
            time.sleep(0.02)
        self._signal(signal.SIGKILL)  # also children that the leader left behind
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return
