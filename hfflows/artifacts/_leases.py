"""Leases: one worker does a piece of work while the others wait, without a server.

    leases/<name>/<epoch, inverted>.claim.json      by conditional create: one per epoch
    leases/<name>/<epoch, inverted>.beat-<n>.json   its holder is alive
    leases/<name>/<epoch, inverted>.released.json   its holder is done

**Correctness must never rest on a lease.** A holder can be paused for minutes between asking
whether it still holds the lease and acting on the answer. A lease saves doing the same work
twice; what makes two workers harmless is that content is named by its digest and documents
are created whole.

The newest epoch holds the lease until it is released or expires; whoever comes next creates
the epoch after it. A claim counts only when a listing made after it shows no newer epoch,
since a claim can come so late that its rivals are already swept away. The newest claim is
never deleted, so epochs only grow, and `Lease.epoch` can fence what else a holder writes.

No two clocks are compared. A waiter takes over when it has itself seen no new heartbeat for
the holder's `ttl_seconds`; the holder gives up when that long has passed since it began its
last good renewal, which is always the earlier moment. Only a lease that is older than any
clock can be wrong is taken at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import socket
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts._documents import create_document
from hfflows.artifacts._lease_watch import (
    CLAIM,
    LONGEST_TTL_SECONDS,
    RELEASED,
    Watch,
    parse,
    read_claim,
    view_of,
)
from hfflows.errors import (
    LeaseLostError,
    ObjectExistsError,
    ObjectNotFoundError,
    SettingsError,
    StorageError,
    StorageUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hfflows.storage import Store

TTL_SECONDS = 60.0

_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 2.0
_SETTLE_SECONDS = 0.5  # longer than two racing writes usually take
_JOIN_SECONDS = 5.0

logger = logging.getLogger("hfflows.artifacts")


class Lease:
    """A lease that was acquired; made by `acquire_lease` and `lease`.

    Args:
        store: Where it lies.
        name: What it is about.
        epoch: How often the lease has changed hands; the holder's fencing number.
        holder: Who holds it, for people.
        ttl_seconds: How long it lasts after a renewal.
        claimed_at: When the claim began, on `_holder_clock`.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        epoch: int,
        *,
        holder: str,
        ttl_seconds: float,
        claimed_at: float,
    ) -> None:
        self.name = name
        self.epoch = epoch
        self.holder = holder
        self.ttl_seconds = ttl_seconds
        self._store = store
        self._renewed_at = claimed_at
        self._beats = 0
        self._is_lost = False
        self._is_released = False

    def __repr__(self) -> str:
        return f"<Lease {self.name!r} epoch {self.epoch} of {self.holder}>"

    @property
    def is_lost(self) -> bool:
        """Return whether somebody else may hold the lease by now; makes no request.

        Once true it stays true, also when nobody took the lease.
        """
        if _holder_clock() - self._renewed_at > self.ttl_seconds:
            self._is_lost = True
        return self._is_lost

    def check(self) -> None:
        """Raise when the lease was lost; makes no request.

        Raises:
            LeaseLostError: It was not renewed for `ttl_seconds`, or has a newer holder.
        """
        if self.is_lost:
            msg = (
                f"{self._store.url}: the lease {self.name!r} of {self.holder} was lost: it was not "
                f"renewed for {self.ttl_seconds:g} s. Somebody else may do the same work; stop, "
                "or go on if doing it twice is harmless."
            )
            raise LeaseLostError(msg, lease=self.name, epoch=self.epoch)

    def renew(self) -> None:
        """Write a heartbeat and look whether the lease is still ours: three requests.

        Raises:
            LeaseLostError: See `check`.
            StorageError: The store failed; the lease goes on until `ttl_seconds` are over.
        """
        started = _holder_clock()
        self.check()
        self._beats += 1
        self._store.put(self._key(f"beat-{self._beats}"), b"{}")
        self._confirm()
        self.check()
        self._renewed_at = started

    def release(self) -> None:
        """Give the lease back, visible to waiters at once; a lost one is left alone."""
        if self._is_released or self.is_lost:
            return
        self._store.put(self._key(RELEASED), b"{}")
        self._is_released = True

    def _confirm(self) -> None:
        """Mark the lease as lost when it has a newer epoch; else sweep what came before."""
        listing = list(self._store.list(keys.lease_prefix(self.name)))
        if view_of(listing).epoch > self.epoch:
            self._is_lost = True
            return
        keep = {CLAIM, f"beat-{self._beats}"}
        stale = [info.key for info in listing if not self._is_current(info.key, keep)]
        try:
            if stale:
                self._store.delete(stale)
        except StorageError as error:  # the next holder sweeps
            logger.debug("%s: old parts of a lease stay for now: %s", self, error)

    def _is_current(self, key: str, parts: set[str]) -> bool:
        found = parse(key)
        return found is None or (found[0] == self.epoch and found[1] in parts)

    def _key(self, part: str) -> str:
        return keys.lease_part(self.name, self.epoch, part)


@contextlib.contextmanager
def lease(
    name: str,
    *,
    store: Store,
    holder: str | None = None,
    ttl_seconds: float = TTL_SECONDS,
    timeout_seconds: float | None = None,
) -> Iterator[Lease]:
    """Hold a lease for the length of a block, renewed by a thread every third of its ttl.

        with lease("fetch/org/model", store=store) as held:
            for part in parts:
                held.check()
                fetch(part)

    A lease that cannot be given back is left to expire: that is logged, never raised. See
    `acquire_lease` for the arguments and the errors.
    """
    held = acquire_lease(
        name, store=store, holder=holder, ttl_seconds=ttl_seconds, timeout_seconds=timeout_seconds
    )
    stop = threading.Event()
    heart = threading.Thread(
        target=_keep_alive, args=(held, stop), name=f"hfflows-lease-{name}", daemon=True
    )
    heart.start()
    try:
        yield held
    finally:
        stop.set()
        heart.join(_JOIN_SECONDS)  # one that hangs does no harm: a release ends its epoch
        _release_quietly(held)


def acquire_lease(
    name: str,
    *,
    store: Store,
    holder: str | None = None,
    ttl_seconds: float = TTL_SECONDS,
    timeout_seconds: float | None = None,
) -> Lease:
    """Return the lease `name` once nobody else holds it; the caller renews and releases it.

    Args:
        name: What the work is about; any text.
        store: Where everybody concerned looks. Without conditional create (the store warns of
            it) a claim is written, left to settle and read again: that usually leaves one
            holder, not always.
        holder: Who asks, for people to read; `None` means host and process.
        ttl_seconds: After how long without a renewal others may take over.
        timeout_seconds: How long to wait for another holder. 0 tries once without waiting;
            `None` waits for as long as it takes.

    Raises:
        LeaseUnavailableError: Somebody else held it until the timeout passed.
        SettingsError: A name or time that makes no sense.
        StorageError: The store failed.
    """
    if not 0 < ttl_seconds <= LONGEST_TTL_SECONDS:
        msg = f"ttl_seconds={ttl_seconds!r} must be more than 0 and at most a day."
        raise SettingsError(msg)
    holder = holder or f"{socket.gethostname()}:{os.getpid()}"
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    watch = Watch(store, name, default_ttl_seconds=ttl_seconds)
    pause = _SHORTEST_PAUSE_SECONDS
    while True:
        epoch = watch.next_epoch()
        held = epoch and _claim(store, name, epoch, holder=holder, ttl_seconds=ttl_seconds)
        if held:
            return held
        left = _LONGEST_PAUSE_SECONDS if deadline is None else deadline - time.monotonic()
        if left <= 0:
            raise watch.unavailable()
        time.sleep(min(pause * random.uniform(0.5, 1), left))  # noqa: S311 - spreads waiters
        pause = min(pause * 2, watch.ttl_seconds / 10, _LONGEST_PAUSE_SECONDS)


def _claim(store: Store, name: str, epoch: int, *, holder: str, ttl_seconds: float) -> Lease | None:
    """Return the lease if this epoch became ours, `None` when somebody else was first."""
    held = Lease(
        store,
        name,
        epoch,
        holder=holder,
        ttl_seconds=ttl_seconds,
        claimed_at=_holder_clock(),
    )
    key, token = keys.lease_part(name, epoch, CLAIM), secrets.token_hex(16)
    body = {
        "format_version": 1,
        "token": token,
        "holder": holder,
        "ttl_seconds": ttl_seconds,
        "claimed_at": datetime.now(UTC).isoformat(),
    }
    try:
        create_document(store, key, body)
    except (ObjectExistsError, ObjectNotFoundError):  # a rival's; perhaps swept away since
        return None
    except StorageUnavailableError:  # perhaps only the reply was lost
        if not _is_ours(store, key, token):
            raise
    try:
        if not store.has_conditional_create:
            time.sleep(_SETTLE_SECONDS)  # the last of several racing writes stays
            if not _is_ours(store, key, token):
                return None
        held._confirm()  # noqa: SLF001 - the other half of making one
    except BaseException:
        _release_quietly(held)
        raise
    # A claim that came too late stays: if it is the newest it must, else its successor sweeps it.
    return None if held.is_lost else held


def _is_ours(store: Store, key: str, token: str) -> bool:
    body = read_claim(store, key)
    return body.get("token") == token


def _keep_alive(held: Lease, stop: threading.Event) -> None:
    pause = held.ttl_seconds / 3
    while not stop.wait(pause):
        try:
            held.renew()
            pause = held.ttl_seconds / 3
        except LeaseLostError as error:
            logger.warning("%s", error)
            return
        except StorageError as error:
            pause = held.ttl_seconds / 9
            logger.warning("The heartbeat of %s failed and is tried again: %s", held, error)


def _release_quietly(held: Lease) -> None:
    try:
        held.release()
    except StorageError as error:
        logger.warning("%s is not released and expires: %s", held, error)


def _holder_clock() -> float:
    """Return seconds that go on while the machine sleeps, so that a lease runs out meanwhile."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
