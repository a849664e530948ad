"""What a model source is by itself, before anybody asks the Hub.

A path that exists comes first: inside a Hugging Face cache it names repo and commit, and the
configs and the model card of any other directory may name what it was made from. A snapshot's
metadata name repo and commit; the config of a loaded model says what it was loaded from; any
other text is as `_detect_names` reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml  # type: ignore[import-untyped]  # no stubs among the dependencies
from huggingface_hub.repocard import metadata_load

from hfflows import keys
from hfflows.artifacts import resolve_ref
from hfflows.errors import ArtifactNotFoundError, SettingsError
from hfflows.hub._detect_names import (
    REPO_TYPES,
    DetectedFrom,
    HubName,
    Rejected,
    parse_cache_path,
    parse_hub_id,
    parse_source,
)
from hfflows.hub._revisions import is_commit
from hfflows.refs import ArtifactRef, parse_ref
from hfflows.storage import open_store

if TYPE_CHECKING:
    from hfflows.keys import RepoType
    from hfflows.storage import Store

SourceKind = Literal["hub", "local", "local-compatible", "invalid"]
Verification = Literal["verified", "not_found", "unreachable", "unverified"]

MAX_READ_BYTES = 4 * 1024 * 1024
"""A larger config or card is not read."""

_HF_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model"),
    *("preprocessor_config.json", "processor_config.json", "modules.json"),
)
_TRACES: tuple[tuple[str, str, str, DetectedFrom], ...] = (
    ("config.json", "_name_or_path", "_commit_hash", "config"),
    ("model_index.json", "_name_or_path", "_commit_hash", "config"),
    ("adapter_config.json", "base_model_name_or_path", "revision", "adapter_config"),
)
"""File, the key that names a repo, the key that may name its commit; the first one wins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What a model source is, and what the Hub said about it."""

    kind: SourceKind
    """`hub`: exactly what the repo holds, at `commit_hash` where that is known. `local`: a
    path. `local-compatible`: a directory that Hugging Face libraries can load. `invalid`:
    nothing, or two things; `reason` says which."""
    repo_id: str | None = None
    """The repo. Of a local directory: the one it was made from, as the files themselves say;
    they may have changed since."""
    repo_type: RepoType = "model"
    revision: str | None = None
    """As typed; `None` when none was."""
    commit_hash: str | None = None
    """40 digits: as named, or what the Hub resolved `revision` to. Of a local directory only
    when its files name it."""
    path: Path | None = None
    """The file or directory, where there is one on this machine."""
    detected_from: DetectedFrom | None = None
    """What named `repo_id`; `directory` when only the path is known."""
    verification: Verification = "unverified"
    """`verified`: the Hub has repo and revision, and this token may read them. `not_found`:
    the Hub says it has no such repo or revision. `unreachable`: it could not be asked (down,
    offline, limited), or did not answer with yes or no (gated, bad token). `unverified`: not
    asked, or there is nothing to ask about. Without `repo_id`, the Hub's word on an id that
    is spelled as the path."""
    hub_namesake: str | None = None
    """A Hub id of the same spelling as the path, which the path hides; set once the Hub has
    confirmed it. `repo_id` never comes from such a likeness."""
    reason: str | None = None
    """What a person should know: why not, or what was left out."""

    def to_json(self) -> dict[str, Any]:
        """Return the plain document that a task hands on."""
        return asdict(self) | {"path": None if self.path is None else str(self.path)}


def read_source(source: object, home: str, store: Store | None) -> ModelSource | None:
    """Return what a source is by itself; `None` for `None`.

    Args:
        source: As `detect_model_source` takes it.
        home: Address of the Hub whose URLs count.
        store: Where a key is read.

    Raises:
        SettingsError: The source is of another type, or a dict that is no reference.
    """
    if source is None:
        return None
    if isinstance(source, ArtifactRef | Mapping):
        return _of_reference(parse_ref(source))
    if not isinstance(source, str | os.PathLike):
        msg = (
            "A model source is a Hub id, a URL, a path, a reference or its key, "
            f"got {type(source).__name__}. Pass a loaded model as model=."
        )
        raise SettingsError(msg)
    text = os.fspath(source)
    if not isinstance(text, str):
        msg = "A path must be text, not bytes; pass os.fsdecode(path)."
        raise SettingsError(msg)
    path = _existing(text)
    if path is not None:
        return _of_path(path, home)
    if isinstance(source, str) and keys.is_reference(source):
        return _of_key(source, store)
    named = parse_source(text, endpoint=home)
    if isinstance(named, HubName) and not isinstance(source, str) and named.commit_hash is None:
        named = Rejected("There is no such file or directory; a Hub id is passed as a string.")
    return _of_name(named)


def _existing(text: str) -> Path | None:
    """Return the path that a text means, if there is something at it."""
    try:
        path = Path(text).expanduser()
        path.stat()
    except (OSError, ValueError, RuntimeError):  # absent, unthinkable, nobody's home
        return None
    return path if text else None


def _of_path(path: Path, home: str) -> ModelSource:
    # A file of a cache is a link to its blob, so the path itself comes first; a directory may
    # be somebody's link into a cache.
    for spelling in (path.absolute(), *([path.resolve()] if path.is_dir() else [])):
        cached = parse_cache_path(os.path.normpath(spelling))
        if isinstance(cached, HubName):
            return replace(_of_name(cached), path=path)
        if cached is not None and path.is_dir() and not _looks_compatible(path):
            return _of_name(cached)
    if not _looks_compatible(path):
        return ModelSource(kind="local", path=path, detected_from="directory")
    local = ModelSource(kind="local-compatible", path=path, detected_from="directory")
    trace = _find_trace(path, endpoint=home)
    return local if trace is None else _made_from(local, trace)


def _made_from(local: ModelSource, trace: HubName) -> ModelSource:
    if trace.commit_hash is None and _existing(trace.repo_id) is not None:
        note = f"It was made from {trace.repo_id!r}, which may be the path of that name here."
        return replace(local, reason=note)
    return replace(
        local,
        repo_id=trace.repo_id,
        revision=trace.revision,
        commit_hash=trace.commit_hash,
        detected_from=trace.detected_from,
    )


def _of_name(named: HubName | Rejected) -> ModelSource:
    if isinstance(named, Rejected):
        return ModelSource(kind="invalid", reason=named.reason)
    return ModelSource(
        kind="hub",
        repo_id=named.repo_id,
        repo_type=named.repo_type,
        revision=named.revision,
        commit_hash=named.commit_hash,
        detected_from=named.detected_from,
    )


def _of_key(key: str, store: Store | None) -> ModelSource:
    try:
        return _of_reference(resolve_ref(key, store=store or open_store()))
    except ArtifactNotFoundError as error:
        return ModelSource(kind="invalid", reason=str(error))


def _of_reference(ref: ArtifactRef) -> ModelSource:
    named = _snapshot_name(ref) if ref.kind == keys.SNAPSHOT_KIND else None
    if named is None:
        reason = (
            f"{ref.key} is no snapshot of a Hub commit but an artifact of kind {ref.kind!r}; "
            "load it, and pass the directory."
        )
        return ModelSource(kind="invalid", reason=reason)
    return _of_name(named)


def _snapshot_name(ref: ArtifactRef) -> HubName | None:
    claims: dict[str, Any] = ref.metadata
    repo_type, revision = claims.get("repo_type", "model"), claims.get("revision")
    commit_hash = str(claims.get("commit_hash"))
    named = parse_hub_id(str(claims.get("repo_id") or ""))
    if not isinstance(named, HubName) or named.revision or not is_commit(commit_hash):
        return None
    if repo_type not in REPO_TYPES or not isinstance(revision, str | None):
        return None
    return HubName(named.repo_id, repo_type, revision, commit_hash, "snapshot_reference")


# What a loaded model says -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ModelTrace:
    """What the config of a loaded model says it was loaded from."""

    name: str
    path: Path | None
    hub: HubName | None
    """`None` when the name is a path's, unless that is in a cache."""

    @classmethod
    def of(cls, model: object, home: str) -> _ModelTrace:
        config: Any = getattr(model, "config", None)
        values = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
        name = str(values.get("_name_or_path") or "")
        path = _existing(name)
        hub = _name_in(name, values.get("_commit_hash"), endpoint=home)
        if hub is None:
            return cls(name, path, None)
        if path is not None and hub.commit_hash is None:
            return cls(name, path, None)  # it is spelled as an id, and there is such a path
        is_cached = hub.detected_from == "cache_path"
        return cls(name, path if is_cached else None, replace(hub, detected_from="config"))


def from_model(model: object, home: str) -> ModelSource:
    """Return what a loaded model's config says it was loaded from.

    Raises:
        SettingsError: There is no model.
    """
    if model is None:
        msg = "source=None goes by the loaded model: pass it as model=."
        raise SettingsError(msg)
    trace = _ModelTrace.of(model, home)
    if trace.hub is not None:
        return replace(_of_name(trace.hub), path=trace.path)
    if trace.path is not None:
        return _of_path(trace.path, home)
    reason = (
        f"The model's config names no Hub repo and no path that exists ({trace.name!r}): "
        "pass the source itself."
    )
    return ModelSource(kind="invalid", reason=reason)


def with_model(found: ModelSource, model: object, home: str) -> ModelSource:
    """Return `found` with what the model knows better: the commit, or what it was made from."""
    named = _ModelTrace.of(model, home).hub
    if named is None or found.kind == "invalid":
        return found
    if found.repo_id is None:
        return _made_from(found, named)
    commit_hash = found.commit_hash or named.commit_hash
    is_same_repo = (found.repo_id, found.repo_type) == (named.repo_id, named.repo_type)
    if is_same_repo and named.commit_hash in {None, commit_hash}:
        return replace(found, commit_hash=commit_hash)
    reason = (
        f"The source says {_spell(found)}, but the model was loaded from {_spell(named)}: "
        "pass the one that is meant."
    )
    if found.kind == "hub":
        return ModelSource(kind="invalid", reason=reason)
    return ModelSource(kind=found.kind, path=found.path, detected_from="directory", reason=reason)


def _spell(named: ModelSource | HubName) -> str:
    return f"{named.repo_id}@{named.commit_hash or named.revision or 'main'}"


# What files say ---------------------------------------------------------------------------


def _looks_compatible(directory: Path) -> bool:
    """Return whether Hugging Face libraries would find a model or a tokenizer here."""
    try:
        names = {entry.name for entry in directory.iterdir()}
    except OSError:  # a file, or not ours to read
        return False
    return not names.isdisjoint(_HF_FILES) or any(
        _read_json(directory / name) is not None for name, *_ in _TRACES
    )


def _find_trace(directory: Path, *, endpoint: str) -> HubName | None:
    """Return the repo that a directory's configs or model card name as what it came from."""
    for file, name_key, commit_key, detected_from in _TRACES:
        config = _read_json(directory / file) or {}
        found = _name_in(config.get(name_key), config.get(commit_key), endpoint=endpoint)
        if found is not None:
            return replace(found, detected_from=detected_from)
    base = _base_models(directory / "README.md")
    found = _name_in(base[0], None, endpoint=endpoint) if len(base) == 1 else None  # not a merge
    return None if found is None else replace(found, detected_from="model_card")


def _name_in(value: object, commit_hash: object, *, endpoint: str) -> HubName | None:
    """Return the repo that a config's value names; `None` for a path, and for anything else."""
    if not isinstance(value, str):
        return None
    found = parse_source(value, endpoint=endpoint)
    if isinstance(found, Rejected) or found.repo_type != "model":
        return None
    if found.commit_hash is None and isinstance(commit_hash, str) and is_commit(commit_hash):
        return replace(found, commit_hash=commit_hash)
    return found


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, `None` where there is none."""
    try:
        if path.stat().st_size > MAX_READ_BYTES:
            return None
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _base_models(card: Path) -> list[Any]:
    try:
        if card.stat().st_size > MAX_READ_BYTES:
            return []
        fields = metadata_load(card)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []
    base = fields.get("base_model") if isinstance(fields, Mapping) else None
    return base if isinstance(base, list) else [base]
