"""Hugging Face models carried through retraining, every artifact in your own store.

The core works without Prefect, torch, transformers or onnx; the Prefect tasks are in
`hfflows.tasks`.
"""

from hfflows.artifacts import (
    AliasEntry,
    TransferReport,
    alias_history,
    delete_artifact,
    list_artifacts,
    load_artifact,
    open_file,
    resolve_alias,
    save_artifact,
    set_alias,
    verify_artifact,
)
from hfflows.checkpoint import Checkpointer, load_model, save_model
from hfflows.errors import (
    AccessDeniedError,
    ArtifactNotFoundError,
    CheckpointNotFoundError,
    DiskSpaceError,
    EntryNotFoundError,
    ExportError,
    GatedRepoError,
    HfflowsError,
    HubAccessError,
    HubError,
    HubUnavailableError,
    IntegrityError,
    MetadataError,
    MissingDependencyError,
    ObjectExistsError,
    ObjectNotFoundError,
    ParityError,
    RepoNotFoundError,
    RevisionNotFoundError,
    SettingsError,
    StorageError,
    StorageUnavailableError,
    TargetError,
    UnsafePathError,
    UnsupportedModelError,
)
from hfflows.identity import RunIdentity
from hfflows.refs import ArtifactRef
from hfflows.storage import open_store

__version__ = "0.1.0"

__all__ = [
    "AccessDeniedError",
    "AliasEntry",
    "ArtifactNotFoundError",
    "ArtifactRef",
    "CheckpointNotFoundError",
    "Checkpointer",
    "DiskSpaceError",
    "EntryNotFoundError",
    "ExportError",
    "GatedRepoError",
    "HfflowsError",
    "HubAccessError",
    "HubError",
    "HubUnavailableError",
    "IntegrityError",
    "MetadataError",
    "MissingDependencyError",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "ParityError",
    "RepoNotFoundError",
    "RevisionNotFoundError",
    "RunIdentity",
    "SettingsError",
    "StorageError",
    "StorageUnavailableError",
    "TargetError",
    "TransferReport",
    "UnsafePathError",
    "UnsupportedModelError",
    "alias_history",
    "delete_artifact",
    "list_artifacts",
    "load_artifact",
    "load_model",
    "open_file",
    "open_store",
    "resolve_alias",
    "save_artifact",
    "save_model",
    "set_alias",
    "verify_artifact",
]
