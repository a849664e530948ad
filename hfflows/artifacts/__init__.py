"""Directories to objects, whole or not at all.

An artifact is a tree of files, written as immutable objects, made visible by one small
document written last.
"""

from hfflows.artifacts._aliases import AliasEntry, alias_history, resolve_alias, set_alias
from hfflows.artifacts._artifacts import (
    RefLike,
    commit_artifact,
    commit_selection,
    delete_artifact,
    list_artifacts,
    load_artifact,
    open_file,
    read_refs,
    read_tree,
    resolve_ref,
    save_artifact,
    select,
    store_for,
    verify_artifact,
)
from hfflows.artifacts._documents import create_document, read_document
from hfflows.artifacts._read import check_free_disk, matches
from hfflows.artifacts._sources import Announced, FileSource, LocalFile, Sources, scan
from hfflows.artifacts._tree import Segment, Tree, TreeFile
from hfflows.artifacts._write import TransferReport

__all__ = [
    "AliasEntry",
    "Announced",
    "FileSource",
    "LocalFile",
    "RefLike",
    "Segment",
    "Sources",
    "TransferReport",
    "Tree",
    "TreeFile",
    "alias_history",
    "check_free_disk",
    "commit_artifact",
    "commit_selection",
    "create_document",
    "delete_artifact",
    "list_artifacts",
    "load_artifact",
    "matches",
    "open_file",
    "read_document",
    "read_refs",
    "read_tree",
    "resolve_alias",
    "resolve_ref",
    "save_artifact",
    "scan",
    "select",
    "set_alias",
    "store_for",
    "verify_artifact",
]
