"""What an operation cost this process and its children: CPU, memory, and disk.

Peak memory is the kernel's own high-water mark (`VmHWM`), set back before the operation, so
no sampling disturbs or misses it. A command run beside this process counts with the largest
of its processes; a tool that forks many is therefore shown smaller than it is.

What is written to disk is the kernel's count too, of pages that became dirty: a bound on
what lay on the disk at any time, temporary files and unlinked ones included.
"""

from __future__ import annotations

import gc
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_STATUS = Path("/proc/self/status")
_IO = Path("/proc/self/io")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): "reset the peak resident set size to its current value"


@dataclass(frozen=True, slots=True)
class Meter:
    """A reading from which `stop` counts."""

    cpu_seconds: float
    resident_bytes: int
    children_peak_bytes: int
    disk_bytes: int

    @classmethod
    def start(cls) -> Self:
        """Take the reading, the memory peak set back."""
        gc.collect()
        _CLEAR_REFS.write_text(_RESET_PEAK)
        return cls(
            _cpu_seconds(), _status_bytes("VmRSS"), _children_peak_bytes(), written_to_disk()
        )

    def stop(self) -> dict[str, float]:
        """Return `cpu_seconds`, `peak_bytes` and `disk_bytes` since `start`."""
        peak = _status_bytes("VmHWM") - self.resident_bytes
        children = _children_peak_bytes()
        if children > self.children_peak_bytes:
            peak += children
        return {
            "cpu_seconds": _cpu_seconds() - self.cpu_seconds,
            "peak_bytes": float(peak),
            "disk_bytes": float(written_to_disk() - self.disk_bytes),
        }


def written_to_disk() -> int:
    """Return the bytes that this process and its ended children wrote to disks so far.

    What goes to a file system in memory is not counted; see `Lab.counts_disk`.
    """
    return _number_in(_IO, "write_bytes")


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _children_peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _status_bytes(name: str) -> int:
    return _number_in(_STATUS, name) * 1024


def _number_in(path: Path, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", path.read_text(), re.MULTILINE)
    if found is None:
        msg = f"{path} has no {name}; the benchmarks need Linux."
        raise OSError(msg)
    return int(found[1])
