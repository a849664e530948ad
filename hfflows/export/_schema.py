"""What an exported file says of its origin: one table for writer, reader and docs.

Keys and their meaning are the founding schema's, mended: `hf_hub_revision` is the full
commit, since offline lookups and the Hub's cache need all 40 digits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hfflows.errors import MetadataError

if TYPE_CHECKING:
    from collections.abc import Mapping

HUB_ID = "hf_hub_id"
HUB_REVISION = "hf_hub_revision"
MODEL_TYPE = "hf_model_type"
EXPORT_VERSION = "hf_export_version"
EXPORT_TIMESTAMP = "hf_export_timestamp"
DIGEST = "hf_metadata_sha256"
MODEL_KEY = "hfflows_model_key"
MODEL_DIGEST = "hfflows_model_digest"
STORE_URL = "hfflows_store_url"

PREFIXES = ("hf_", "hfflows_")

FIELDS: dict[str, str] = {
    HUB_ID: "Hub repo: of the model itself (`hub`), of the base it was tuned from (`local`)",
    HUB_REVISION: "commit of that repo, 40 hex digits",
    MODEL_TYPE: "`hub`: the repo holds this model's config; `local`: the model's artifact does",
    EXPORT_VERSION: "version of hfflows that wrote this",
    EXPORT_TIMESTAMP: "when, ISO 8601 in UTC; SOURCE_DATE_EPOCH is honoured",
    "hf_pipeline_tag": "what the model is for, in the Hub's words",
    "hf_library_name": "`transformers`, …",
    "hf_base_model": "Hub id of the base model, if fine-tuned",
    "hf_task": "task of the exported head",
    "hf_architecture": "class that was exported",
    "hf_export_backend": "exporter and the versions it ran on",
    "hf_opset": "ONNX opset",
    "hf_input_names": "graph inputs, comma-separated, in order",
    "hf_output_names": "graph outputs, comma-separated, in order",
    "hf_pooling": "how sentence-transformers pools the tokens: JSON of `1_Pooling/config.json`",
    "hf_parity_max_difference": "largest absolute difference from torch on the checked inputs",
    "hf_parity_tolerance": "largest difference that would have been accepted",
    "hf_private": "`true` when the Hub repo was private",
    "hf_gated": "`auto`, `manual` or `false`, as the Hub says",
    "hf_license": "licence id",
    "hf_language": "languages, comma-separated",
    "hf_model_downloads": "downloads at export time; only when asked for",
    "hf_model_likes": "likes at export time; only when asked for",
    MODEL_KEY: "key of the exported model's artifact",
    MODEL_DIGEST: "digest of its files",
    "hfflows_base_key": "key of the snapshot it was tuned from",
    "hfflows_base_digest": "digest of its files",
    "hfflows_parents": "JSON list of `{kind, key, digest}`: all that it was made from",
    "hfflows_run": "run that exported it",
    STORE_URL: "store that holds these keys; never a credential",
    DIGEST: "sha256 of all other entries of these two prefixes; the last entry",
}
"""Every entry that hfflows writes. Others of the same prefixes are kept as text."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CREDENTIALS_IN_URL = re.compile(r"//[^/@]*@")


def is_ours(key: str) -> bool:
    """Return whether an entry is rewritten by an injection."""
    return key.startswith(PREFIXES)


def entries_of(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return the entries to write: text, validated, sorted, the digest last.

    Args:
        metadata: Values by key; `None` leaves an entry out. Version and timestamp are added.

    Raises:
        MetadataError: A key that is not ours, a value that is no text, number or boolean, or
            an origin that could not be found again.
    """
    entries = {
        EXPORT_VERSION: _own_version(),
        EXPORT_TIMESTAMP: _now(),
        **{key: _text(key, value) for key, value in metadata.items() if value is not None},
    }
    entries.pop(DIGEST, None)
    _validate(entries)
    return {**dict(sorted(entries.items())), DIGEST: digest_of(entries)}


def digest_of(entries: Mapping[str, str]) -> str:
    """Return the sha256 over the sorted entries of our prefixes."""
    pairs = sorted((key, entries[key]) for key in entries if is_ours(key) and key != DIGEST)
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()


def _text(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        msg = f"{key}={value!r} is not a finite number."
        raise MetadataError(msg, entry=key)
    if isinstance(value, str | int | float):
        return str(value)
    msg = f"{key} must be text, a number or a boolean, got {type(value).__name__}."
    raise MetadataError(msg, entry=key)


def _validate(entries: Mapping[str, str]) -> None:
    for key, value in entries.items():
        if not is_ours(key):
            msg = f"{key!r} is not an entry of ours: they begin with `hf_` or `hfflows_`."
            raise MetadataError(msg, entry=key)
        if _CREDENTIALS_IN_URL.search(value):
            msg = f"{key} holds a URL with a user or password; write it without."
            raise MetadataError(msg, entry=key)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            msg = f"{key} is not valid Unicode text."
            raise MetadataError(msg, entry=key) from error
    _validate_origin(entries)
    try:
        when = datetime.fromisoformat(entries[EXPORT_TIMESTAMP])
    except ValueError as error:
        msg = f"{EXPORT_TIMESTAMP}={entries[EXPORT_TIMESTAMP]!r} is no ISO 8601 time."
        raise MetadataError(msg, entry=EXPORT_TIMESTAMP) from error
    if when.tzinfo is None:
        msg = f"{EXPORT_TIMESTAMP}={entries[EXPORT_TIMESTAMP]!r} has no time zone; write +00:00."
        raise MetadataError(msg, entry=EXPORT_TIMESTAMP)


def _validate_origin(entries: Mapping[str, str]) -> None:
    kind, revision = entries.get(MODEL_TYPE), entries.get(HUB_REVISION)
    if kind not in ("hub", "local"):
        msg = f"{MODEL_TYPE} must be 'hub' or 'local', got {kind!r}."
        raise MetadataError(msg, entry=MODEL_TYPE)
    if kind == "hub" and not (entries.get(HUB_ID) and revision):
        msg = f"A Hub model needs {HUB_ID} and {HUB_REVISION}: without them nothing leads back."
        raise MetadataError(msg, entry=HUB_ID)
    if HUB_ID in entries:
        _validate_hub_id(entries[HUB_ID])
    if revision is not None and not _COMMIT.fullmatch(revision):
        msg = f"{HUB_REVISION} must be a full commit of 40 hex digits, got {revision!r}."
        raise MetadataError(msg, entry=HUB_REVISION)


def _validate_hub_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        msg = f"{HUB_ID}={repo_id!r} is not the name of a Hub repo: {error}"
        raise MetadataError(msg, entry=HUB_ID) from error


def _own_version() -> str:
    from importlib.metadata import version

    return version("hfflows")


def _now() -> str:
    """Source: https://reproducible-builds.org/specs/source-date-epoch/."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    except (ValueError, OverflowError, OSError) as error:
        msg = f"SOURCE_DATE_EPOCH={epoch!r} is not a time in seconds; correct or unset it."
        raise MetadataError(msg) from error
    return now.isoformat(timespec="seconds")
