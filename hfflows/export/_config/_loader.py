"""Config and preprocessor of a model from its ONNX file alone.

    metadata ─→ this thread's own, loaded before
              → files kept on this machine, verified
              → the store: the artifact whose key and digest are recorded,
                           or a snapshot of the recorded commit
              → the Hub, at that commit, by way of the store

Only small files are moved, and only what is missing.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows.artifacts import load_artifact
from hfflows.errors import MetadataError
from hfflows.export._config._cache import ConfigCache, default_root, keep
from hfflows.export._config._dispatch import (
    CODE_PATTERNS,
    CONFIG_PATTERNS,
    TOKENIZER_FILES,
    load_config,
    load_preprocessor,
)
from hfflows.export._config._origin import Origin, held_artifact, local_model, origin_of
from hfflows.export._onnx import _schema as schema
from hfflows.export._onnx._file import read_onnx_metadata
from hfflows.hub import snapshot_download
from hfflows.storage import open_store

if TYPE_CHECKING:
    import os

    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

__all__ = [
    "CONFIG_PATTERNS",
    "TOKENIZER_FILES",
    "HubConfigLoader",
    "load_config",
    "load_preprocessor",
]

LOADED_KEPT = 32
"""Configs and preprocessors that each thread keeps; those used least recently go first."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOADERS = {"config": load_config, "preprocessor": load_preprocessor}

_kept = threading.local()  # fast tokenizers shared by threads silently give wrong results


class HubConfigLoader:
    """Finds a model's config and preprocessor from its ONNX file alone.

    Args:
        store: Where snapshots are cached and local models lie; `None` means `open_store()`.
        token: For the Hub; `None` takes `HF_TOKEN` or the token of `hf auth login`.
        endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`.
        trust_remote_code: Run the repo's own code, at the recorded commit.
        cache_dir: Where the small files are kept on this machine; `None` means `configs` in
            `HFFLOWS_CACHE_DIR`, else `hfflows/configs` in the user's cache.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        token: str | bool | None = None,
        endpoint: str | None = None,
        trust_remote_code: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._given_store = store
        self._token = token
        self._endpoint = endpoint
        self._trust_remote_code = trust_remote_code
        self._cache_dir = None if cache_dir is None else Path(cache_dir)

    def load_from_onnx(
        self, onnx_path: str | os.PathLike[str], *, force_download: bool = False
    ) -> tuple[Any, Any]:
        """Return config and preprocessor of the model in an ONNX file.

        Each thread keeps those it loaded last: they are its own to use and not to change.

        Args:
            onnx_path: A file that `inject_hub_metadata` wrote into, or what else
                `read_onnx_metadata` takes.
            force_download: Fetch from the Hub what the store or this machine has.

        Raises:
            MetadataError: The file does not say where it came from, or is damaged.
            ArtifactNotFoundError: The exported model is not in this store; or the Hub may not
                be asked, and the store has no snapshot.
            IntegrityError: The artifact under the recorded key is another one.
            RepoNotFoundError, RevisionNotFoundError: The Hub has no such repo or commit, or a
                private one that this token may not see.
            GatedRepoError, HubAccessError: The token does not open it.
            HubUnavailableError: The Hub does not answer, and the store has no snapshot.
            ExportError: transformers cannot load what was found.
            MissingDependencyError: transformers, or a package that this model needs, is not
                installed.
        """
        origin = self._origin(onnx_path)
        if force_download:
            self._files(origin, force=True)
            for part in _LOADERS:
                _thread_cache().pop(self._cache_key(origin, part), None)
        return self._part(origin, "config"), self._part(origin, "preprocessor")

    def load_config(self, onnx_path: str | os.PathLike[str]) -> Any:
        """Return the config alone; raises as `load_from_onnx`."""
        return self._part(self._origin(onnx_path), "config")

    def load_preprocessor(self, onnx_path: str | os.PathLike[str]) -> Any:
        """Return the preprocessor alone; raises as `load_from_onnx`."""
        return self._part(self._origin(onnx_path), "preprocessor")

    def files_of(self, onnx_path: str | os.PathLike[str], *, force_download: bool = False) -> Path:
        """Return the directory with the model's small files, which is not to be changed.

        Needs no transformers: for readers of `tokenizer.json` and `config.json` themselves.
        Raises as `load_from_onnx`.
        """
        return self._files(self._origin(onnx_path), force=force_download)

    def extract_metadata(self, onnx_path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return the entries of hfflows as values; see `parse_metadata`.

        Raises:
            MetadataError, SettingsError: As `read_onnx_metadata`.
        """
        return schema.parse_metadata(read_onnx_metadata(onnx_path, store=self._given_store))

    # Loading -------------------------------------------------------------------------

    @cached_property
    def _store(self) -> Store:
        return self._given_store or open_store()

    def _origin(self, onnx_path: str | os.PathLike[str]) -> Origin:
        origin = origin_of(read_onnx_metadata(onnx_path, store=self._given_store), onnx_path)
        is_whole = origin.kind == "local" or _COMMIT.fullmatch(origin.version)
        if self._trust_remote_code and not is_whole:
            msg = (
                f"{onnx_path} names no full commit, and code is run at a recorded commit only; "
                "inject its metadata again."
            )
            raise MetadataError(msg, path=str(onnx_path))
        return origin

    def _cache_key(self, origin: Origin, part: str) -> tuple[Any, ...]:
        found = (origin.kind, origin.name, origin.version, origin.subfolder)
        return (*found, self._store.url, self._trust_remote_code, part)

    def _part(self, origin: Origin, part: str) -> Any:
        kept, key = _thread_cache(), self._cache_key(origin, part)
        if key not in kept:
            directory = self._files(origin)
            kept[key] = _LOADERS[part](directory, trust_remote_code=self._trust_remote_code)
        kept.move_to_end(key)
        while len(kept) > LOADED_KEPT:
            kept.popitem(last=False)
        return kept[key]

    # Files ---------------------------------------------------------------------------

    def _files(self, origin: Origin, *, force: bool = False) -> Path:
        code = CODE_PATTERNS if self._trust_remote_code else ()
        patterns = (*CONFIG_PATTERNS, *code)
        # What another store says of a commit is not believed.
        identity = (origin.kind, origin.name, origin.version, self._store.url, *patterns)
        cache = ConfigCache(self._cache_dir or default_root())
        directory = None if force else cache.find(identity)
        if directory is None:
            ref = self._artifact(origin, patterns, force=force)
            fill = partial(load_artifact, ref, allow_patterns=patterns, store=self._store)
            directory = keep(cache, identity, fill, replace=force)
        return directory / origin.subfolder if origin.subfolder else directory

    def _artifact(self, origin: Origin, patterns: tuple[str, ...], *, force: bool) -> ArtifactRef:
        if origin.kind == "local":
            return local_model(origin, self._store)
        held = None if force else held_artifact(origin, self._store)
        return held or snapshot_download(
            origin.name,
            revision=origin.version,
            allow_patterns=patterns,
            cache_scope="global",
            force_download=force,
            max_age=float("inf"),  # a commit cut short by earlier writers stays what it was
            token=self._token,
            endpoint=self._endpoint,
            store=self._store,
        )


def _thread_cache() -> OrderedDict[tuple[Any, ...], Any]:
    if not hasattr(_kept, "loaded"):
        _kept.loaded = OrderedDict()
    found: OrderedDict[tuple[Any, ...], Any] = _kept.loaded
    return found
