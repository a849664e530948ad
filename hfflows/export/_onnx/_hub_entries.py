"""Metadata entries from the Hub: what it says of the commit that a model was exported from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfflows.errors import MetadataError
from hfflows.export._onnx import _schema as schema
from hfflows.hub import model_facts

if TYPE_CHECKING:
    from collections.abc import Mapping


def hub_entries(
    repo_id: str,
    revision: str | None = None,
    *,
    counters: bool = False,
    allow_unverified: bool = False,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> dict[str, Any]:
    """Return the entries that lead to a Hub repo, with its card's facts; one request.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag, `refs/pr/N` or commit; `None` means `main`. The commit that it
            stands for is what is recorded.
        counters: Also downloads and likes, which make every export differ.
        allow_unverified: When the Hub cannot be asked, record repo and commit as unverified
            (`hf_hub_verified=false`); `revision` must then be a full commit.
        token: For the Hub; `None` takes `HF_TOKEN` or the token of `hf auth login`. It goes
            nowhere else.
        endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`.

    Raises:
        RepoNotFoundError, RevisionNotFoundError: The Hub has no such repo or revision, or a
            private one that this token may not see.
        HubError: It could not be asked, or did not say; and that is not allowed.
        SettingsError: Not a legal repo id, or a setting forbids asking the Hub.
    """
    facts = model_facts(
        repo_id, revision, token=token, endpoint=endpoint, allow_unverified=allow_unverified
    )
    entries: dict[str, Any] = {
        schema.MODEL_TYPE: "hub",
        schema.SOURCE: "hub",
        schema.HUB_ID: facts.repo_id,
        schema.HUB_REVISION: facts.commit_hash,
        schema.HUB_VERIFIED: facts.is_verified,
        schema.PIPELINE_TAG: facts.pipeline_tag,
        "hf_library_name": facts.library_name,
        "hf_base_model": facts.base_models or None,
        "hf_license": facts.licenses or None,
        "hf_language": facts.languages or None,
        "hf_tags": facts.tags or None,
        "hf_private": facts.is_private,
        "hf_gated": facts.gated,
        "hf_model_downloads": facts.downloads if counters else None,
        "hf_model_likes": facts.likes if counters else None,
    }
    return {key: value for key, value in entries.items() if value is not None}


def joined(found: Mapping[str, Any], given: Mapping[str, object]) -> dict[str, object]:
    """Return the Hub's entries and the caller's, of which the caller's count.

    Raises:
        MetadataError: The caller names another repo or commit than was asked about.
    """
    for key in (schema.HUB_ID, schema.HUB_REVISION):
        if given.get(key) not in (None, found[key]):
            msg = f"{key}={given[key]!r} is not what was asked about, {found[key]!r}; leave it out."
            raise MetadataError(msg, entry=key)
    return {**found, **{key: value for key, value in given.items() if value is not None}}
