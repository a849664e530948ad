"""What the Hub says of a model at a commit: card, gate, visibility; with one request.

Three outcomes. The Hub confirms repo and commit; it says that there is no such repo or commit,
which is an error always; or it could not be asked, which is one unless the caller allows it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfflows.errors import HubError, RepoNotFoundError, RevisionNotFoundError
from hfflows.hub._client import BRIEF, PATIENT, HubClient
from hfflows.hub._revisions import is_commit
from hfflows.hub._wire import check_online, offline_reason

if TYPE_CHECKING:
    from hfflows.keys import RepoType

logger = logging.getLogger("hfflows")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A repo at a commit, as the Hub describes it; never holds a token."""

    repo_id: str
    commit_hash: str
    is_verified: bool
    """Whether the Hub confirmed repo and commit; otherwise it said nothing, and what follows is
    empty."""
    pipeline_tag: str | None = None
    library_name: str | None = None
    licenses: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    is_private: bool | None = None
    gated: str | None = None
    """`auto`, `manual` or `false`; `None` when the Hub did not say."""
    downloads: int | None = None
    likes: int | None = None


def model_facts(
    repo_id: str,
    revision: str | None = None,
    *,
    repo_type: RepoType = "model",
    token: str | bool | None = None,
    endpoint: str | None = None,
    allow_unverified: bool = False,
) -> ModelFacts:
    """Return what the Hub says of a repo at a revision, with one request.

    Args:
        repo_id: `org/name`.
        revision: Branch, tag, `refs/pr/N` or commit; `None` means `main`.
        repo_type: `model`, `dataset` or `space`.
        token: As `snapshot_download`; goes to the Hub only, and is not kept.
        endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`.
        allow_unverified: When the Hub cannot be asked, return just the names; `revision` must
            then be a full commit.

    Raises:
        RepoNotFoundError, RevisionNotFoundError: The Hub has no such repo or revision, or a
            private one; whatever is allowed.
        HubAccessError, HubUnavailableError, HubError: It could not be asked, or did not say.
        SettingsError: Not a legal repo id, or a setting forbids asking the Hub.
    """
    client = HubClient(
        repo_id, repo_type=repo_type, revision=revision, token=token, endpoint=endpoint
    )
    may_go_on = allow_unverified and is_commit(revision)
    reason = offline_reason()
    if reason is None or not may_go_on:
        check_online()
        try:
            info = client.info(patience=BRIEF if may_go_on else PATIENT)
            return _facts(client, info)
        except (RepoNotFoundError, RevisionNotFoundError):
            raise
        except HubError as error:
            if not may_go_on:
                raise
            reason = str(error)
    logger.warning("%s@%s is taken on trust: %s", repo_id, revision, reason)
    return ModelFacts(
        repo_id=client.repo.repo_id, commit_hash=client.repo.revision, is_verified=False
    )


def _facts(client: HubClient, info: Mapping[str, Any]) -> ModelFacts:
    card = info.get("cardData")
    card = card if isinstance(card, Mapping) else {}
    gated, private = info.get("gated"), info.get("private")
    return ModelFacts(
        repo_id=client.repo.repo_id,
        commit_hash=str(info["sha"]),
        is_verified=True,
        pipeline_tag=_text(info.get("pipeline_tag") or card.get("pipeline_tag")),
        library_name=_text(info.get("library_name") or card.get("library_name")),
        licenses=_texts(card.get("license")),
        languages=_texts(card.get("language")),
        base_models=_texts(card.get("base_model")),
        tags=_texts(info.get("tags") or card.get("tags")),
        is_private=private if isinstance(private, bool) else None,
        gated="false" if gated is False else _text(gated),
        downloads=_count(info.get("downloads")),
        likes=_count(info.get("likes")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> tuple[str, ...]:
    """Return the texts in a field of a card, which people write: one, a list, or anything."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return tuple(item for item in values if isinstance(item, str) and item and "," not in item)


def _count(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None  # type: ignore[return-value] # mypy does not follow is_count
