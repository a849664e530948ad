"""The files beside a graph: the source's own, as they are."""

from __future__ import annotations

import shutil
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")
NOT_COPIED = ("*.index.json", "onnx/*", "openvino/*", "*trainer_state.json", "progress.json")


def copy_files(
    source: Path, directory: Path, *, further: list[str], trust_remote_code: bool
) -> None:
    """Copy config, tokenizer and what else is small and is no weights.

    Args:
        source: The model's directory.
        directory: Where the graphs are.
        further: Directories of modules that run after the graph; their weights are copied too.
        trust_remote_code: Copy the code that the config names.
    """
    # An output inside the source puts the scratch directory, request included, there too.
    inside = directory.parent.is_relative_to(source) and directory.parent != source
    ours = directory.parent if inside else directory
    patterns = (*COPIED, *(("*.py",) if trust_remote_code else ()))
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        wanted = any(fnmatchcase(path.name, pattern) for pattern in patterns)
        wanted |= name.partition("/")[0] in further
        unwanted = any(fnmatchcase(name, pattern) for pattern in NOT_COPIED)
        if path.is_file() and wanted and not unwanted and not path.is_relative_to(ours):
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
