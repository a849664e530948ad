"""huggingface_hub alone: a repo to a directory on the disk, and no store."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import huggingface_hub


class HubClient:
    """`snapshot_download` with its defaults, into a new directory."""

    def __init__(self, bucket: str) -> None:
        self._downloads = tempfile.mkdtemp(dir=".")

    def snapshot(self, repo_id: str, revision: str | None = None) -> str:
        """Download a repo; returns where it is."""
        directory = str(Path(self._downloads, "snapshot").absolute())
        huggingface_hub.snapshot_download(repo_id, revision=revision, local_dir=directory)
        return directory

    def load(self, saved: str, target: str) -> None:
        """Put the files where they are compared."""
        Path(saved).rename(target)
        drop_notes(target)


def drop_notes(directory: str) -> None:
    """Remove what the client writes beside a repo's files for itself."""
    shutil.rmtree(Path(directory, ".cache"))
