"""What a listing says of a lease, and when a waiter may take it over; see `_leases`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.artifacts._documents import read_document
from hfflows.errors import (
    IntegrityError,
    LeaseUnavailableError,
    ObjectNotFoundError,
    SettingsError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hfflows.storage import ObjectInfo, Store

CLAIM, RELEASED = "claim", "released"
LONGEST_TTL_SECONDS = 24 * 3600.0

_CERTAINLY_OLD = timedelta(hours=1)  # S3 itself refuses clients whose clock is 15 minutes off


@dataclass(frozen=True, slots=True)
class LeaseView:
    """What one listing says about a lease."""

    epoch: int = 0
    """The newest; 0 when nobody ever held it."""
    parts: frozenset[str] = frozenset()
    modified_at: datetime | None = None
    """When the newest epoch last showed life, by the store's clock."""


class Watch:
    """A waiter's memory: for how long it has seen no sign of life."""

    def __init__(self, store: Store, name: str, *, default_ttl_seconds: float) -> None:
        self._store = store
        self._name = name
        self._default_ttl = default_ttl_seconds
        self._seen = LeaseView()
        self._since = time.monotonic()
        self.ttl_seconds = default_ttl_seconds
        """The present holder's, as far as it is known."""
        self._holder = "somebody"

    def next_epoch(self) -> int | None:
        """Return the epoch to claim when the lease is free or expired, else `None`."""
        started = time.monotonic()
        view = view_of(self._store.list(keys.lease_prefix(self._name)))
        if view.epoch == 0 or RELEASED in view.parts:
            return view.epoch + 1
        if view.epoch != self._seen.epoch:
            self._note_claim(view.epoch)
        if (view.epoch, view.parts) != (self._seen.epoch, self._seen.parts):
            # After the listing, not before it: the holder counts from an earlier moment.
            self._seen, self._since = view, time.monotonic()
        has_expired = started - self._since >= self.ttl_seconds
        return view.epoch + 1 if has_expired or self._is_certainly_old(view) else None

    def unavailable(self) -> LeaseUnavailableError:
        """Return the error for a waiter whose time is over."""
        msg = (
            f"{self._store.url}: the lease {self._name!r} is held by {self._holder} "
            f"(epoch {self._seen.epoch}). Wait for longer, or try again later."
        )
        return LeaseUnavailableError(
            msg, lease=self._name, holder=self._holder, epoch=self._seen.epoch
        )

    def _is_certainly_old(self, view: LeaseView) -> bool:
        oldest = datetime.now(UTC) - _CERTAINLY_OLD - timedelta(seconds=self.ttl_seconds)
        return view.modified_at is not None and view.modified_at < oldest

    def _note_claim(self, epoch: int) -> None:
        body = read_claim(self._store, keys.lease_part(self._name, epoch, CLAIM))
        ttl = body.get("ttl_seconds")
        if not isinstance(ttl, int | float) or not 0 < ttl <= LONGEST_TTL_SECONDS:
            ttl = self._default_ttl
        self.ttl_seconds = ttl
        self._holder = str(body.get("holder", "somebody"))


def read_claim(store: Store, key: str) -> dict[str, Any]:
    """Return what a claim says; nothing when it is gone or damaged."""
    try:
        body = read_document(store, key)
    except (ObjectNotFoundError, IntegrityError):
        return {}
    return body if isinstance(body, dict) else {}


def view_of(listing: Iterable[ObjectInfo]) -> LeaseView:
    """Return what a listing of `keys.lease_prefix` says about the newest epoch."""
    found = [(parsed, info) for info in listing if (parsed := parse(info.key)) is not None]
    if not found:
        return LeaseView()
    newest = max(epoch for (epoch, _part), _info in found)
    current = [(part, info) for (epoch, part), info in found if epoch == newest]
    return LeaseView(
        newest,
        frozenset(part for part, _info in current),
        max(info.modified_at for _part, info in current),
    )


def parse(key: str) -> tuple[int, str] | None:
    """Return the (epoch, part) of a key, `None` for one that is no part of a lease."""
    try:
        return keys.parse_lease_part(key)
    except SettingsError:  # not ours to judge, nor to delete
        return None
