"""Directories to objects, whole or not at all.

An artifact is a tree of files, written as immutable objects, made visible by one small
document written last.
"""

from hfflows.artifacts._aliases import AliasEntry, alias_history, resolve_alias, set_alias
from hfflows.artifacts._artifacts import (
    RefLike,
    commit_artifact,
    commit_selection,
    list_artifacts,
    load_artifact,
    open_file,
    read_refs,
    read_tree,
    resolve_ref,
    save_artifact,
    select,
    store_for,
)
from hfflows.artifacts._bundle import export_bundle
from hfflows.artifacts._cache import LocalCache, default_cache
from hfflows.artifacts._collection import (
    CollectionPlan,
    CollectionReport,
    apply_collection,
    collect_garbage,
    condemned_objects,
    list_plans,
    plan_collection,
    undo_collection,
)
from hfflows.artifacts._copy import copy_artifact
from hfflows.artifacts._delete import delete_artifact
from hfflows.artifacts._doctor import Finding, diagnose
from hfflows.artifacts._documents import create_document, read_document
from hfflows.artifacts._leases import Lease, acquire_lease, lease
from hfflows.artifacts._lineage import Lineage, Relative, lineage
from hfflows.artifacts._new_file import NewFile, new_file
from hfflows.artifacts._onnx_format import OnnxGraph, read_onnx_graph
from hfflows.artifacts._onnx_set import check_onnx_set, external_data_path, onnx_graphs
from hfflows.artifacts._parted import PartedSave, begin_parted_save, write_part
from hfflows.artifacts._pipeline import TransferReport
from hfflows.artifacts._promote import promote_artifact
from hfflows.artifacts._ranges import FileRange, read_ranges
from hfflows.artifacts._read import check_free_disk, matches
from hfflows.artifacts._repair import ReadRange, RepairReport, repair_artifact
from hfflows.artifacts._retention import (
    KeepAll,
    KeepAny,
    KeepAtMostBytes,
    KeepBest,
    KeepEvery,
    KeepNewest,
    KeepYoungerThan,
    PruneReport,
    RetentionPolicy,
    prune_artifacts,
    prune_lineage,
    superfluous,
)
from hfflows.artifacts._safetensors import SafetensorsFile, ShardedSafetensors, open_safetensors
from hfflows.artifacts._safetensors_format import TensorInfo
from hfflows.artifacts._saves import AnnouncedSave, announced_save
from hfflows.artifacts._sources import Announced, FileSource, LocalFile, Sources, scan
from hfflows.artifacts._tree import Segment, Tree, TreeFile
from hfflows.artifacts._unbundle import import_bundle
from hfflows.artifacts._uploads import abandoned_uploads, abort_uploads
from hfflows.artifacts._verify import (
    Damage,
    Verdict,
    VerifyLevel,
    VerifyReport,
    find_damage,
    verify_all,
    verify_artifact,
)

__all__ = [
    "AliasEntry",
    "Announced",
    "AnnouncedSave",
    "CollectionPlan",
    "CollectionReport",
    "Damage",
    "FileRange",
    "FileSource",
    "Finding",
    "KeepAll",
    "KeepAny",
    "KeepAtMostBytes",
    "KeepBest",
    "KeepEvery",
    "KeepNewest",
    "KeepYoungerThan",
    "Lease",
    "Lineage",
    "LocalCache",
    "LocalFile",
    "NewFile",
    "OnnxGraph",
    "PartedSave",
    "PruneReport",
    "ReadRange",
    "RefLike",
    "Relative",
    "RepairReport",
    "RetentionPolicy",
    "SafetensorsFile",
    "Segment",
    "ShardedSafetensors",
    "Sources",
    "TensorInfo",
    "TransferReport",
    "Tree",
    "TreeFile",
    "Verdict",
    "VerifyLevel",
    "VerifyReport",
    "abandoned_uploads",
    "abort_uploads",
    "acquire_lease",
    "alias_history",
    "announced_save",
    "apply_collection",
    "begin_parted_save",
    "check_free_disk",
    "check_onnx_set",
    "collect_garbage",
    "commit_artifact",
    "commit_selection",
    "condemned_objects",
    "copy_artifact",
    "create_document",
    "default_cache",
    "delete_artifact",
    "diagnose",
    "export_bundle",
    "external_data_path",
    "find_damage",
    "import_bundle",
    "lease",
    "lineage",
    "list_artifacts",
    "list_plans",
    "load_artifact",
    "matches",
    "new_file",
    "onnx_graphs",
    "open_file",
    "open_safetensors",
    "plan_collection",
    "promote_artifact",
    "prune_artifacts",
    "prune_lineage",
    "read_document",
    "read_onnx_graph",
    "read_ranges",
    "read_refs",
    "read_tree",
    "repair_artifact",
    "resolve_alias",
    "resolve_ref",
    "save_artifact",
    "scan",
    "select",
    "set_alias",
    "store_for",
    "superfluous",
    "undo_collection",
    "verify_all",
    "verify_artifact",
    "write_part",
]
