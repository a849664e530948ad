"""The process an export runs in: its limits, its last words, and an end that nothing outlives.

Exporters patch torch while they run: in a thread they break each other and leave torch
patched. A process also bounds time and memory, and gives its memory back.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows import errors
from hfflows.errors import ExportError, HfflowsError, MissingDependencyError, SettingsError
from hfflows.export._settings import is_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

WORKER = "hfflows.export._worker"
DEFAULT_TIMEOUT_SECONDS = 1800.0
LINES_OF_OUTPUT = 12
_KEPT_OUTPUT_BYTES = 16_000
_PAUSE_SECONDS = 0.05

_SECRETS = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_KEY",
)
"""Not handed on: the process moves nothing, and may run a repo's own code when asked to."""

# Ends the process group when the pipe from this process does, however this process ended.
_WATCHDOG = 'read -r _; kill -s KILL -- "-$1"'

_MEMORY = re.compile(rb"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB", re.MULTILINE)


def check_limits(timeout_seconds: float, memory_limit_bytes: int | None) -> None:
    """Refuse limits that are none.

    Raises:
        SettingsError: Not a positive number; or a limit on memory where it cannot be kept.
    """
    if not (is_number(timeout_seconds, int | float) and 0 < timeout_seconds < math.inf):
        msg = f"timeout_seconds={timeout_seconds!r} must be a positive, finite number."
        raise SettingsError(msg)
    if memory_limit_bytes is None:
        return
    if not (is_number(memory_limit_bytes, int) and memory_limit_bytes > 0):
        msg = f"memory_limit_bytes={memory_limit_bytes!r} must be a positive whole number."
        raise SettingsError(msg)
    if not Path("/proc/self/status").exists():
        msg = (
            "memory_limit_bytes is kept by looking into /proc, which only Linux has; leave it out."
        )
        raise SettingsError(msg)


def run_worker(
    request: Mapping[str, Any],
    scratch: Path,
    *,
    subject: str,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    memory_limit_bytes: int | None = None,
    module: str = WORKER,
) -> dict[str, Any]:
    """Let a module of ours answer a request in a process of its own.

    Args:
        request: Left as `request.json` in `scratch`.
        scratch: Directory for the request, the answer and what is printed.
        subject: What is done, to begin a message with.
        timeout_seconds: The process is killed after this long.
        memory_limit_bytes: It is killed when it holds more: see `group_memory_bytes`. Looked
            at 20 times a second, so that a leap is seen only after it.
        module: Run with `scratch` as its argument; leaves `reply.json` there.

    Returns:
        The reply's `report`.

    Raises:
        ExportError: It took too long or too much, or died; `error.printed` has its output.
        HfflowsError: What it raised itself.
    """
    (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
    output, reply = scratch / "output.log", scratch / "reply.json"
    with output.open("wb") as log, _started(module, scratch, log) as process:
        broken = _watch(process, timeout_seconds, memory_limit_bytes)
    if broken:
        raise _error_of(ExportError, f"{subject} {broken}", output)
    if not reply.exists():
        hint = " (killed, perhaps for want of memory)" if process.returncode == -9 else ""  # noqa: PLR2004 - SIGKILL
        msg = f"{subject} ended with status {process.returncode}{hint}."
        raise _error_of(ExportError, msg, output)
    answer: dict[str, Any] = json.loads(reply.read_text(encoding="utf-8"))
    if "error" in answer:
        said = answer["error"]
        cls = getattr(errors, said["type"], ExportError)
        raise _error_of(cls, said["message"], output, **said["facts"])
    report: dict[str, Any] = answer["report"]
    return report


def serve(work: Callable[[dict[str, Any]], dict[str, Any]], *, doing: str) -> None:
    """Answer the request of `run_worker`: with a report, or with an error as plain values.

    Args:
        work: Returns the report on a request.
        doing: What it does, to begin a message with when a package for it is not installed.
    """
    scratch = Path(sys.argv[1])
    request = json.loads((scratch / "request.json").read_text(encoding="utf-8"))
    try:
        answer: dict[str, Any] = {"report": work(request)}
    except HfflowsError as error:
        kind = type(error).__name__
        answer = {"error": {"type": kind, "message": str(error), "facts": error.facts}}
    except ImportError as error:
        msg = f"{doing} needs {error.name}: pip install 'hfflows[export]'."
        answer = {"error": {"type": MissingDependencyError.__name__, "message": msg, "facts": {}}}
    (scratch / "reply.json").write_text(json.dumps(answer), encoding="utf-8")


@contextmanager
def _started(module: str, scratch: Path, log: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run the module; whatever way the block is left, all its processes are gone after it."""
    process = subprocess.Popen(  # noqa: S603 - a module of ours
        # -P: a directory called `onnx` where the caller happens to be is no package.
        [sys.executable, "-P", "-m", module, str(scratch)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=_environ(scratch),
        start_new_session=True,  # its own children end with it, and Ctrl-C is ours to handle
    )
    try:
        with _watchdog(process.pid):
            yield process
    finally:
        # Before it is reaped: until then its number is nobody else's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _watchdog(group: int) -> Iterator[None]:
    """Have the group killed when this process is, which could not do so itself."""
    shell = subprocess.Popen(  # noqa: S603 - a fixed script
        ["/bin/sh", "-c", _WATCHDOG, "sh", str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        shell.kill()
        shell.communicate()


def _environ(scratch: Path) -> dict[str, str]:
    here = str(Path(__file__).parents[2])  # found also where hfflows is not installed
    return {
        **{name: value for name, value in os.environ.items() if name not in _SECRETS},
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        # transformers copies a repo's own code there, under the directory's name alone.
        "HF_MODULES_CACHE": str(scratch / "modules"),
    }


def _watch(
    process: subprocess.Popen[bytes], timeout_seconds: float, memory_limit_bytes: int | None
) -> str:
    """Wait for the end; return which limit was broken before, `""` for none."""
    deadline = time.monotonic() + timeout_seconds
    while not _has_ended(process):
        if time.monotonic() >= deadline:
            return f"took longer than {timeout_seconds:g} s and was stopped."
        if memory_limit_bytes is not None:
            used = group_memory_bytes(process.pid)
            if used > memory_limit_bytes:
                return (
                    f"took {used:,} bytes of memory, more than "
                    f"memory_limit_bytes={memory_limit_bytes:,}, and was stopped."
                )
        time.sleep(_PAUSE_SECONDS)
    return ""


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Return whether a child has ended, and leave it to be reaped where the system lets us."""
    if sys.platform == "darwin":
        return process.poll() is not None
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # reaped by somebody else in this process
        return True


def group_memory_bytes(group: int) -> int:
    """Return the memory of a process group that only its end gives back.

    That is anonymous and shared memory, in RAM or swapped out. Files that are mapped, such as
    libraries and safetensors, are not counted: the kernel drops their pages when it must.
    Limits of the kernel's own (`RLIMIT_AS`, `RLIMIT_DATA`) count what is reserved, of which
    torch's threads reserve many times what they use.
    """
    total_kib = 0
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names, many times a second
        if entry.isdecimal():
            # Processes end while they are looked at.
            with suppress(ProcessLookupError, FileNotFoundError):
                if os.getpgid(int(entry)) == group:
                    status = Path("/proc", entry, "status").read_bytes()
                    total_kib += sum(map(int, _MEMORY.findall(status)))
    return total_kib << 10


def _error_of(cls: type[HfflowsError], message: str, output: Path, **facts: Any) -> HfflowsError:
    """Return an error that carries what was printed, and shows its end where that helps."""
    printed = output.read_bytes()[-_KEPT_OUTPUT_BYTES:].decode(errors="replace").strip()
    if cls is ExportError and printed:
        message += "\nIts last words:\n" + "\n".join(printed.splitlines()[-LINES_OF_OUTPUT:])
    return cls(message, **{**facts, "printed": printed})
