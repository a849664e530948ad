"""Where a model comes from: the Hub, this machine, or nowhere; said, never guessed.

    source ─read (no request)→ kind, repo, commit, path ─ask the Hub→ verification

Two questions with an answer each. `kind` is what the source is by itself. `verification` is
what the Hub said about the repo, and "it said no" is not "it could not be asked".
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from huggingface_hub import constants

from hfflows.errors import HubError, RepoNotFoundError, RevisionNotFoundError, SettingsError
from hfflows.hub._client import BRIEF, HubClient
from hfflows.hub._detect_local import from_model, read_source, with_model
from hfflows.hub._detect_names import HubName, parse_hub_id
from hfflows.hub._wire import offline_reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hfflows.hub._detect_local import ModelSource, Verification
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

_TYPED = frozenset({"argument", "url"})
"""Named by the caller just now: a branch then means what it is now."""


def detect_model_source(
    source: str | os.PathLike[str] | ArtifactRef | Mapping[str, Any] | None,
    *,
    model: Any = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    store: Store | None = None,
    verify: bool = True,
) -> ModelSource:
    """Say where a model comes from, and whether the Hub confirms it.

    A path that exists wins over a Hub id of the same spelling. A `Path` object is never a
    Hub id. With `verify=False`, and offline, no request is made.

    Args:
        source: A Hub id (`org/name`, `name`, either with `@` and a branch, tag, `refs/pr/N`
            or commit), a URL of the Hub, a path, a path inside a Hugging Face cache, a
            snapshot's reference, its dict or its key. `None` to go by `model` alone.
        model: The loaded model: its config says what it was loaded from, which fills in what
            `source` leaves open; when the two disagree the answer is `invalid`.
        token: As `snapshot_download`. Sent to the Hub only, and not kept.
        endpoint: Of a Hub of your own; `None` means `HF_ENDPOINT`. URLs of other Hubs are
            `invalid`.
        store: Where a snapshot's key is read; `None` means `open_store()`.
        verify: Ask the Hub, with two requests.

    Raises:
        SettingsError: `source` is of another type, or a dict that is no reference.
        StorageError: The store failed while a key was read.
    """
    home = _checked_endpoint(endpoint)
    found = read_source(source, home, store)
    if found is None:
        found = from_model(model, home)
    elif model is not None:
        found = with_model(found, model, home)
    if found.kind == "invalid":
        return found
    return _with_hub(found, _Hub(home, token, verify), _namesake(source, found))


@dataclass(frozen=True, slots=True)
class _Answer:
    verification: Verification
    reason: str | None = None
    commit_hash: str | None = None


@dataclass(frozen=True, slots=True)
class _Hub:
    """The Hub to ask, if it may be asked."""

    endpoint: str
    token: str | bool | None = field(repr=False)
    verify: bool

    def ask(self, named: HubName, *revisions: str | None) -> _Answer:
        """Return what the Hub says about a repo at these revisions, and the first's commit."""
        if not self.verify:
            return _Answer("unverified", "The Hub was not asked: verify=False.")
        offline = offline_reason()
        if offline is not None:
            return _Answer("unreachable", f"{offline} forbids asking the Hub.")
        commits: list[str] = []
        try:
            for revision in revisions:
                client = HubClient(
                    named.repo_id,
                    repo_type=named.repo_type,
                    revision=revision,
                    token=self.token,
                    endpoint=self.endpoint,
                )
                # Not PATIENT: that the Hub does not answer is an answer here.
                commits.append(client.resolve(patience=BRIEF))
            client.check_access()  # a repo can be listed whose files may not be read
        except (RepoNotFoundError, RevisionNotFoundError) as error:
            verdict: Verification = "not_found" if _is_from_a_hub(error) else "unreachable"
            return _Answer(verdict, str(error))
        except HubError as error:
            return _Answer("unreachable", str(error), next(iter(commits), None))
        return _Answer("verified", None, commits[0])


def _is_from_a_hub(error: HubError) -> bool:
    """Return whether it was a Hub that said no.

    huggingface_hub takes every 401 for a missing repo. One without the Hub's own code is from
    a proxy, or of a Hub that wants a token before it says anything.
    """
    response: Any = getattr(error.__cause__, "response", None)
    return error.facts.get("status") != HTTPStatus.UNAUTHORIZED or (
        getattr(response, "headers", {}).get("X-Error-Code") == "RepoNotFound"
    )


def _with_hub(found: ModelSource, hub: _Hub, namesake: HubName | None) -> ModelSource:
    """Return `found` with what the Hub says about its repo, and about its path's namesake."""
    if found.repo_id is not None:
        named = HubName(found.repo_id, found.repo_type, found.revision)
        found = _with_answer(found, hub.ask(named, *_revisions_to_ask(found)))
    if namesake is None:
        return found
    answer = hub.ask(namesake, namesake.revision)
    if answer.verification == "verified":
        note = f"The Hub has {namesake} too; the path is what was taken."
        found = replace(found, hub_namesake=str(namesake), reason=_joined(found.reason, note))
    if found.repo_id is None:
        found = _with_answer(found, answer)
    return found


def _revisions_to_ask(found: ModelSource) -> list[str | None]:
    pinned = found.commit_hash
    if pinned is None:
        return [found.revision]
    # A snapshot's branch may be gone, that is no fault; one that was typed now must be there.
    is_typed = found.detected_from in _TYPED and found.revision not in {None, pinned}
    return [pinned, found.revision] if is_typed else [pinned]


def _with_answer(found: ModelSource, answer: _Answer) -> ModelSource:
    is_typed = found.detected_from in _TYPED
    return replace(
        found,
        # What a branch is now says nothing about files that came from it some time ago.
        commit_hash=found.commit_hash or (answer.commit_hash if is_typed else None),
        verification=answer.verification,
        reason=_joined(found.reason, answer.reason),
    )


def _namesake(source: object, found: ModelSource) -> HubName | None:
    """Return the Hub id that a local path could be taken for."""
    if found.kind == "hub" or not isinstance(source, str):
        return None
    named = parse_hub_id(source)
    return named if isinstance(named, HubName) else None


def _joined(*notes: str | None) -> str | None:
    return " ".join(note for note in notes if note) or None


def _checked_endpoint(endpoint: str | None) -> str:
    home = (endpoint or constants.ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(home)
        is_legal = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        is_legal = False
    if not is_legal:
        msg = f"endpoint={home!r} is no address of a Hub, such as https://huggingface.co."
        raise SettingsError(msg)
    return home
