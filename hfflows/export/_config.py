"""Config and preprocessor of a model: from a directory, or from the ONNX file alone.

    metadata ─hub→   snapshot of the recorded commit, from the store if it is there
             └local→ the exported model's artifact, by its key, checked against its digest

Only small files are moved. What to load is decided by which files there are, never by
trial and error, which would hide a refused token behind a wrong class.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows.artifacts import load_artifact, resolve_ref
from hfflows.errors import (
    ArtifactNotFoundError,
    ExportError,
    IntegrityError,
    MetadataError,
    MissingDependencyError,
)
from hfflows.export import _schema as schema
from hfflows.export._metadata import read_onnx_metadata
from hfflows.hub import snapshot_download
from hfflows.storage import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

CONFIG_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Files that configs, tokenizers and processors are made of; no weights, no code."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
MODELS_KEPT = 16

_kept = threading.local()  # fast tokenizers shared by threads silently give wrong results


def load_config(directory: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Any:
    """Return the transformers config in a directory.

    Raises:
        ExportError: There is none, or transformers does not know it.
        MissingDependencyError: transformers is not installed.
    """
    return _from_directory("AutoConfig", Path(directory), trust_remote_code=trust_remote_code)


def load_preprocessor(directory: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Any:
    """Return the tokenizer, image processor, feature extractor or processor in a directory.

    Raises:
        ExportError: There is none, or transformers does not know it.
        MissingDependencyError: transformers is not installed.
    """
    path = Path(directory)
    return _from_directory(_auto_class(path), path, trust_remote_code=trust_remote_code)


def _auto_class(directory: Path) -> str:
    """Return which of transformers' Auto classes the files call for."""
    has_tokenizer = any((directory / name).is_file() for name in TOKENIZER_FILES)
    described = directory / "preprocessor_config.json"
    if (directory / "processor_config.json").is_file() or (described.is_file() and has_tokenizer):
        return "AutoProcessor"
    if described.is_file():
        try:
            facts = json.loads(described.read_text(encoding="utf-8"))
        except ValueError as error:
            msg = f"{described} is not readable JSON."
            raise ExportError(msg, path=str(described)) from error
        is_audio = "feature_extractor_type" in facts and "image_processor_type" not in facts
        return "AutoFeatureExtractor" if is_audio else "AutoImageProcessor"
    if has_tokenizer:
        return "AutoTokenizer"
    msg = f"{directory} holds no tokenizer, image processor or feature extractor."
    raise ExportError(msg, path=str(directory))


def _from_directory(auto_class: str, directory: Path, *, trust_remote_code: bool) -> Any:
    try:
        import transformers
    except ImportError as error:
        msg = "Configs and preprocessors need transformers: pip install 'hfflows[transformers]'."
        raise MissingDependencyError(msg) from error
    try:
        return getattr(transformers, auto_class).from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except ImportError as error:
        first = str(error).strip().partition("\n")[0]
        msg = f"{auto_class} for {directory} needs a package that is not installed: {first}"
        raise MissingDependencyError(msg, path=str(directory)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).strip().partition("\n")[0]
        msg = f"{auto_class} cannot load {directory}: {first}"
        raise ExportError(msg, path=str(directory)) from error


class HubConfigLoader:
    """Finds a model's config and preprocessor from its ONNX file alone.

    Args:
        store: Where snapshots are cached and local models lie; `None` means `open_store()`.
        token: For the Hub; `None` takes `HF_TOKEN` or the token of `hf auth login`.
        endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`.
        trust_remote_code: Run the repo's own code, at the recorded commit.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        token: str | None = None,
        endpoint: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._store = store
        self._token = token
        self._endpoint = endpoint
        self._trust_remote_code = trust_remote_code

    def load_from_onnx(
        self, onnx_path: str | os.PathLike[str], *, force_download: bool = False
    ) -> tuple[Any, Any]:
        """Return config and preprocessor of the model in an ONNX file.

        Each thread keeps those it loaded last: they are its own to use and not to change.

        Args:
            onnx_path: A file that `inject_hub_metadata` wrote into.
            force_download: Fetch from the Hub what the store has.

        Raises:
            MetadataError: The file does not say where it came from, or is damaged.
            ArtifactNotFoundError: The exported model is not in this store.
            IntegrityError: The artifact under the recorded key is another one.
            HubError: The Hub refuses or does not answer, and the store has no snapshot.
            ExportError: transformers cannot load what was found.
        """
        metadata = read_onnx_metadata(onnx_path)
        store = self._store or open_store()
        kind = metadata.get(schema.MODEL_TYPE)
        if kind == "hub":
            identity = (metadata.get(schema.HUB_ID), metadata.get(schema.HUB_REVISION))
        elif kind == "local":
            identity = (metadata.get(schema.MODEL_KEY), metadata.get(schema.MODEL_DIGEST))
        else:
            identity = (None, None)
        if not all(identity):
            msg = (
                f"{onnx_path} does not say where its config is; write it with "
                "inject_hub_metadata, or export with export_and_inject."
            )
            raise MetadataError(msg, path=str(onnx_path))
        key = (*identity, store.url, self._trust_remote_code)
        kept: OrderedDict[tuple[Any, ...], tuple[Any, Any]] = _thread_cache()
        if key not in kept or force_download:
            if kind == "hub":
                ref = self._hub_files(metadata, store, force=force_download)
            else:
                ref = _local_model(metadata, store)
            kept[key] = self._load(ref, store)
        kept.move_to_end(key)
        while len(kept) > MODELS_KEPT:
            kept.popitem(last=False)
        return kept[key]

    def _hub_files(self, metadata: Mapping[str, str], store: Store, *, force: bool) -> ArtifactRef:
        code = ("*.py",) if self._trust_remote_code else ()
        return snapshot_download(
            metadata[schema.HUB_ID],
            revision=metadata[schema.HUB_REVISION],
            allow_patterns=[*CONFIG_PATTERNS, *code],
            cache_scope="global",
            force_download=force,
            token=self._token,
            endpoint=self._endpoint,
            store=store,
        )

    def _load(self, ref: ArtifactRef, store: Store) -> tuple[Any, Any]:
        patterns = [*CONFIG_PATTERNS, *(["*.py"] if self._trust_remote_code else [])]
        with tempfile.TemporaryDirectory(prefix="hfflows-config-") as scratch:
            directory = load_artifact(
                ref, Path(scratch) / "config", allow_patterns=patterns, store=store
            )
            trust = self._trust_remote_code
            config = load_config(directory, trust_remote_code=trust)
            return config, load_preprocessor(directory, trust_remote_code=trust)


def _local_model(metadata: Mapping[str, str], store: Store) -> ArtifactRef:
    """Return the exported model's reference.

    The store's URL in the file is only told, not opened: a file from elsewhere must not
    decide what this process connects to.
    """
    key, recorded = metadata[schema.MODEL_KEY], metadata.get(schema.STORE_URL, "its store")
    try:
        ref = resolve_ref(key, store=store)
    except ArtifactNotFoundError as error:
        msg = (
            f"{store.url} has no {key}, from which the file was exported; it was saved in "
            f"{recorded}: pass HubConfigLoader(open_store(…)) with that."
        )
        raise ArtifactNotFoundError(msg, key=key, store_url=store.url) from error
    if ref.digest != metadata[schema.MODEL_DIGEST]:
        msg = f"{key} in {store.url} holds other files than the file was exported from."
        raise IntegrityError(msg, key=key)
    return ref


def _thread_cache() -> OrderedDict[tuple[Any, ...], tuple[Any, Any]]:
    if not hasattr(_kept, "models"):
        _kept.models = OrderedDict()
    found: OrderedDict[tuple[Any, ...], tuple[Any, Any]] = _kept.models
    return found
