"""The `.metadata` of a sharded checkpoint: a pickle by torch's choice, read without its powers.

Whoever can write to a store must not run code in every training that reads it: only the
classes that describe shards are looked up, whatever else the pickle names.
"""

# ruff: noqa: TID253 - this module is imported only by `hfflows.checkpoint.dcp`, on use

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from hfflows.errors import IntegrityError

if TYPE_CHECKING:
    import io

METADATA_PATH = ".metadata"

_DESCRIPTIONS = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    (_DESCRIPTIONS, "BytesStorageMetadata"),
    (_DESCRIPTIONS, "ChunkStorageMetadata"),
    (_DESCRIPTIONS, "Metadata"),
    (_DESCRIPTIONS, "MetadataIndex"),
    (_DESCRIPTIONS, "StorageMeta"),
    (_DESCRIPTIONS, "TensorProperties"),
    (_DESCRIPTIONS, "TensorStorageMetadata"),
    (_DESCRIPTIONS, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "Path"),  # the id that torch's own writer notes
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib._local", "PosixPath"),  # Python 3.13
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what the pickle names, if it describes shards."""
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _ALLOWED:
            msg = f"it names {module}.{name}, which no description of shards needs"
            raise pickle.UnpicklingError(msg)
        return super().find_class(module, name)


def read_metadata(stream: io.BytesIO, *, key: str) -> Metadata:
    """Return the metadata that a `.metadata` file holds.

    Raises:
        IntegrityError: It is none, or names what could do anything but describe shards.
    """
    try:
        metadata = _Reader(stream).load()
    except (pickle.UnpicklingError, AttributeError, EOFError, IndexError, TypeError) as error:
        msg = f"{METADATA_PATH} of {key} is not read: {error}."
        raise IntegrityError(msg, key=key, path=METADATA_PATH) from error
    if not isinstance(metadata, Metadata):
        held = type(metadata).__name__
        msg = f"{METADATA_PATH} of {key} holds a {held}; it was not saved by torch."
        raise IntegrityError(msg, key=key, path=METADATA_PATH)
    return metadata
