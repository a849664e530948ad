"""Sources to objects, in the layout asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfflows.artifacts._packed import write_packed
from hfflows.artifacts._readable import write_files, write_tar
from hfflows.artifacts._tree import Tree

if TYPE_CHECKING:
    from hfflows.artifacts._pipeline import Transfer
    from hfflows.artifacts._sources import Sources
    from hfflows.refs import StorageFormat


def write_tree(
    transfer: Transfer, sources: Sources, *, layout: StorageFormat, reference_key: str
) -> Tree:
    """Move every file of checked sources and return the tree; all objects are stored then.

    Raises:
        IntegrityError: A source's bytes are not what it announced.
    """
    transfer.report.count(bytes_covered=sum(source.size_bytes for source in sources.files))
    if layout == "packed":
        files = write_packed(transfer, sources.files)
    elif layout == "files":
        files = write_files(transfer, sources.files, reference_key)
    else:
        files = write_tar(transfer, sources, reference_key)
    files.sort(key=lambda file: file.path)
    return Tree(tuple(files), tuple(sources.directories), tuple(sources.symlinks))
