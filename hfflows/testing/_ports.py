"""Blocks of free ports for a server that also takes each port plus 10,000 for gRPC.

Blocks lie below the range from which systems hand out ports on their own, the gRPC ports
included. A lock on a file in the temporary directory keeps two processes, such as test
workers, from choosing the same block before either has bound it.
"""

from __future__ import annotations

import fcntl
import random
import socket
import tempfile
from pathlib import Path
from typing import IO, Self

_FIRST = 11_000
_LAST = 22_000
_GRPC_OFFSET = 10_000
_BLOCK = 10
_TRIES = 200


class PortBlock:
    """Ports by name, free when taken, and nobody else's that asks here until released."""

    def __init__(self, ports: dict[str, int], lock: IO[str]) -> None:
        self._ports = ports
        self._lock = lock

    @classmethod
    def take(cls, names: tuple[str, ...]) -> Self:
        """Return a free block with one port for each of at most ten `names`.

        Raises:
            OSError: None was found.
        """
        for _ in range(_TRIES):
            first = random.randrange(_FIRST, _LAST, _BLOCK)  # noqa: S311 - no secret
            lock = (Path(tempfile.gettempdir()) / f"hfflows-ports-{first}.lock").open("w")
            ports = {name: first + index for index, name in enumerate(names)}
            if _is_locked_by_us(lock) and all(_is_free(port) for port in ports.values()):
                return cls(ports, lock)
            lock.close()
        msg = f"no block of {len(names)} free ports between {_FIRST} and {_LAST}"
        raise OSError(msg)

    def port(self, name: str) -> int:
        """Return a port of the block."""
        return self._ports[name]

    def release(self) -> None:
        """Let others have the block."""
        self._lock.close()


def _is_locked_by_us(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_free(port: int) -> bool:
    for number in (port, port + _GRPC_OFFSET):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                return False
    return True
