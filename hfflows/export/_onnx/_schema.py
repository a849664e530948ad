"""What an exported file says of its origin: one table for writer, reader, JSON Schema and docs.

Keys and their meaning are the founding schema's, mended: `hf_hub_revision` is the full
commit, since offline lookups and the Hub's cache need all 40 digits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from hfflows.errors import MetadataError
from hfflows.export._onnx import _forms as forms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hfflows.export._onnx._forms import Form

HUB_ID = "hf_hub_id"
HUB_REVISION = "hf_hub_revision"
HUB_VERIFIED = "hf_hub_verified"
MODEL_TYPE = "hf_model_type"
SOURCE = "hf_source"
SUBFOLDER = "hf_subfolder"
EXPORT_VERSION = "hf_export_version"
EXPORT_TIMESTAMP = "hf_export_timestamp"
EXPORT_SETTINGS = "hf_export_settings"
EXPORT_VERSIONS = "hf_export_versions"
PIPELINE_TAG = "hf_pipeline_tag"
POOLING = "hf_pooling"
TRUST_REMOTE_CODE = "hf_trust_remote_code"
VARIANT = "hf_variant"
DIGEST = "hf_metadata_sha256"
MODEL_KEY = "hfflows_model_key"
MODEL_DIGEST = "hfflows_model_digest"
PARENTS = "hfflows_parents"
GRAPH_SHA256 = "hfflows_graph_sha256"
STORE_URL = "hfflows_store_url"

PREFIXES = ("hf_", "hfflows_")
REQUIRED = (MODEL_TYPE, EXPORT_VERSION, EXPORT_TIMESTAMP)
OLD_SPELLINGS = {"hf_downloads": "hf_model_downloads", "hf_likes": "hf_model_likes"}
"""Keys that earlier writers used, with today's: read, and written as today's."""

LONGEST_VALUE_BYTES = 1 << 20
"""What is larger belongs beside the model; files are refused that hold far more."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: what it says, and what its text must be."""

    meaning: str
    form: Form = forms.TEXT


ENTRIES: dict[str, Entry] = {
    HUB_ID: Entry(
        "Hub repo: of the model itself (`hub`), of the base it was tuned from (`local`)",
        forms.HUB_ID,
    ),
    HUB_REVISION: Entry("commit of that repo, 40 hex digits", forms.COMMIT),
    MODEL_TYPE: Entry(
        "`hub`: the repo holds this model's config; `local`: the model's artifact does, or nobody",
        forms.MODEL_TYPE,
    ),
    EXPORT_VERSION: Entry("version of hfflows that wrote this"),
    EXPORT_TIMESTAMP: Entry("when, ISO 8601 in UTC; SOURCE_DATE_EPOCH is honoured", forms.TIME),
    SOURCE: Entry(
        "what was exported: a `hub` commit, a `local` directory, an `artifact` of a store",
        forms.SOURCE,
    ),
    HUB_VERIFIED: Entry(
        "`true`: the Hub confirmed repo and commit; `false`: it could not be asked", forms.FLAG
    ),
    SUBFOLDER: Entry("folder of config and preprocessor; absent: the root", forms.FOLDER),
    PIPELINE_TAG: Entry("what the model is for, in the Hub's words"),
    "hf_library_name": Entry("`transformers`, …"),
    "hf_base_model": Entry("Hub ids of the base models, comma-separated", forms.NAMES),
    "hf_license": Entry("licence ids, comma-separated", forms.NAMES),
    "hf_language": Entry("languages, comma-separated", forms.NAMES),
    "hf_tags": Entry("the repo's tags, comma-separated", forms.NAMES),
    "hf_private": Entry("whether the Hub repo was private", forms.FLAG),
    "hf_gated": Entry("`auto`, `manual` or `false`, as the Hub says", forms.GATED),
    "hf_model_downloads": Entry("downloads then; only when asked for", forms.INTEGER),
    "hf_model_likes": Entry("likes then; only when asked for", forms.INTEGER),
    "hf_task": Entry("task of the exported head"),
    "hf_architecture": Entry("class that was exported"),
    "hf_dtype": Entry("type of the weights: `float32`, `float16`"),
    VARIANT: Entry("`int8`, `fp16`; absent: as exported"),
    "hf_opset": Entry("ONNX opset", forms.INTEGER),
    "hf_input_names": Entry("graph inputs, comma-separated, in order", forms.NAMES),
    "hf_output_names": Entry("graph outputs, comma-separated, in order", forms.NAMES),
    POOLING: Entry(
        'how token vectors become one: JSON, such as `{"mode":"mean","normalize":true}`',
        forms.POOLING,
    ),
    "hf_export_backend": Entry("exporter and the versions it ran on"),
    EXPORT_SETTINGS: Entry("JSON of the settings of the export", forms.SETTINGS),
    EXPORT_VERSIONS: Entry("JSON of package versions by name", forms.VERSIONS),
    TRUST_REMOTE_CODE: Entry("whether the repo's own code was run", forms.FLAG),
    "hf_parity_max_difference": Entry(
        "largest absolute difference from torch on the checked inputs", forms.NUMBER
    ),
    "hf_parity_tolerance": Entry("largest difference that would have been accepted", forms.NUMBER),
    MODEL_KEY: Entry("key of the exported model's artifact", forms.KEY),
    MODEL_DIGEST: Entry("digest of its files", forms.SHA256),
    "hfflows_base_key": Entry("key of the snapshot it was tuned from", forms.KEY),
    "hfflows_base_digest": Entry("digest of its files", forms.SHA256),
    "hfflows_data_key": Entry("key of the data it was tuned on", forms.KEY),
    "hfflows_data_digest": Entry("digest of its files", forms.SHA256),
    "hfflows_checkpoint_key": Entry("key of the checkpoint it was made of", forms.KEY),
    "hfflows_checkpoint_digest": Entry("digest of its files", forms.SHA256),
    PARENTS: Entry("JSON list of `{kind, key, digest}`: all that it was made from", forms.PARENTS),
    "hfflows_run": Entry("run that exported it"),
    "hfflows_code_version": Entry("commit or version of the code that trained it"),
    GRAPH_SHA256: Entry("digest of the graph: of the file without metadata", forms.SHA256),
    STORE_URL: Entry("store that holds these keys; never a credential"),
    DIGEST: Entry(
        "sha256 of all other entries of these two prefixes; the last entry", forms.SHA256
    ),
}
"""Every entry that hfflows writes. Others of the same prefixes are kept as text."""

FIELDS: dict[str, str] = {key: entry.meaning for key, entry in ENTRIES.items()}
"""What each entry says."""

_OTHER = Entry("")
_CREDENTIALS_IN_URL = re.compile(r"//[^/@]*@")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")


def is_ours(key: str) -> bool:
    """Return whether an entry is rewritten by an injection."""
    return key.startswith(PREFIXES)


def entries_of(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return the entries to write: text, validated, sorted, the digest last.

    Args:
        metadata: Values by key; `None` leaves an entry out. Booleans, numbers, lists of names
            and JSON values are written as their entry's text. Version and timestamp are added.

    Raises:
        MetadataError: A key that is not ours, a value that is not of its entry's form, or an
            origin that could not be found again.
    """
    named = {OLD_SPELLINGS.get(key, key): value for key, value in metadata.items()}
    given = {key: value for key, value in named.items() if value is not None and key != DIGEST}
    added: dict[str, object] = {EXPORT_VERSION: _own_version(), EXPORT_TIMESTAMP: _now()}
    entries = {key: _text(key, value) for key, value in (added | given).items()}
    _validate_origin(entries)
    return {**dict(sorted(entries.items())), DIGEST: digest_of(entries)}


def parse_metadata(entries: Mapping[str, str]) -> dict[str, Any]:
    """Return entries of our prefixes as values: numbers, booleans, lists, times, JSON.

    What earlier writers wrote is read too: their keys are today's, and a text that is not of
    today's form stays a text.

    Args:
        entries: As `read_onnx_metadata` returns them.
    """
    found: dict[str, Any] = {}
    for key in sorted(filter(is_ours, entries), key=lambda key: key not in OLD_SPELLINGS):
        form = ENTRIES.get(OLD_SPELLINGS.get(key, key), _OTHER).form
        text = entries[key]
        try:
            value = form.value(text.lower() if form in (forms.FLAG, forms.GATED) else text)
        except ValueError:
            value = text
        found[OLD_SPELLINGS.get(key, key)] = value
    return found


def digest_of(entries: Mapping[str, str]) -> str:
    """Return the sha256 over the sorted entries of our prefixes."""
    pairs = sorted((key, entries[key]) for key in entries if is_ours(key) and key != DIGEST)
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()


def _text(key: str, value: object) -> str:
    if not is_ours(key):
        msg = f"{key!r} is not an entry of ours: they begin with `hf_` or `hfflows_`."
        raise MetadataError(msg, entry=key)
    _refuse_secrets(key, str(value))  # before a message could repeat it
    if isinstance(value, float) and not math.isfinite(value):
        msg = f"{key}={value!r} is not a finite number."
        raise MetadataError(msg, entry=key)
    form = ENTRIES.get(key, _OTHER).form
    try:
        text = form.text(value)
    except TypeError as error:
        msg = f"{key} must be {form.said}, got {type(value).__name__}."
        raise MetadataError(msg, entry=key) from error
    except ValueError as error:
        msg = f"{key} must be {form.said}, got {str(value)[:200]!r}."
        raise MetadataError(msg, entry=key) from error
    _check_size(key, text)
    return text


def _refuse_secrets(key: str, text: str) -> None:
    if _CREDENTIALS_IN_URL.search(text):
        msg = f"{key} holds a URL with a user or password; write it without."
        raise MetadataError(msg, entry=key)
    if _TOKEN.search(text):
        msg = f"{key} holds what looks like a token of the Hub; a file is no place for one."
        raise MetadataError(msg, entry=key)


def _check_size(key: str, text: str) -> None:
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        msg = f"{key} is not valid Unicode text."
        raise MetadataError(msg, entry=key) from error
    if size_bytes > LONGEST_VALUE_BYTES:
        msg = (
            f"{key} has {size_bytes:,} bytes, and an entry {LONGEST_VALUE_BYTES:,} at most; keep "
            "it in a file beside the model."
        )
        raise MetadataError(msg, entry=key)


def _validate_origin(entries: Mapping[str, str]) -> None:
    kind = entries.get(MODEL_TYPE)
    if kind is None:
        msg = f"{MODEL_TYPE} must be {forms.MODEL_TYPE.said}: it says where the config is."
        raise MetadataError(msg, entry=MODEL_TYPE)
    if kind == "hub" and not (entries.get(HUB_ID) and entries.get(HUB_REVISION)):
        msg = f"A Hub model needs {HUB_ID} and {HUB_REVISION}: without them nothing leads back."
        raise MetadataError(msg, entry=HUB_ID)
    if HUB_ID in entries:
        _validate_hub_id(entries[HUB_ID])


def _validate_hub_id(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        msg = f"{HUB_ID}={repo_id!r} is not the name of a Hub repo: {error}"
        raise MetadataError(msg, entry=HUB_ID) from error


@cache
def _own_version() -> str:
    from importlib.metadata import version  # reads files: not before it is needed

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
