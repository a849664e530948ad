"""A save announced before it relies on any object, so that no collection can cut under it.

The writer's half of the protocol in docs/format.md, "Saves and collections":

1. Announce the save under the key of the reference it will commit.
2. Only then look at the plans. What they condemn does not exist for this save.
3. Write objects, tree and index, then create the reference: the commit.
4. Withdraw the announcement.

A collection that finds the announcement waits for the commit, or takes the reference's key
itself, by the same conditional create: then this save fails, whole, and can be repeated.
Nothing rests on clocks, nor on how long a step takes.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.artifacts._documents import create_document, encode_document, read_document
from hfflows.artifacts._plans import Condemned, read_condemned
from hfflows.errors import ObjectExistsError, SaveRevokedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store

logger = logging.getLogger("hfflows.artifacts")

LONGEST_REVOCATION_BYTES = 512
"""No reference is as short: a listing tells most of them from revocations."""

_REVOKED = "revoked_by_plan"


@dataclass(slots=True)
class AnnouncedSave:
    """A save that collections know of.

    Attributes:
        key: Key of the reference to come.
        announcement: Key under which collections find it.
        condemned: What must be treated as absent.
    """

    key: str
    announcement: str
    condemned: Condemned
    store: Store
    _may_have_committed: bool = False

    def commit(self, ref: ArtifactRef) -> None:
        """Make the artifact visible.

        Raises:
            SaveRevokedError: A collection gave this save up before it got here.
            ObjectExistsError: The key is taken by another artifact.
        """
        self._may_have_committed = True
        try:
            create_document(self.store, self.key, ref.model_dump(mode="json"))
        except ObjectExistsError:
            if is_revocation(read_document(self.store, self.key)):
                raise _revoked(self.key, self.store) from None
            raise

    def withdraw(self) -> None:
        """Say that the save is over; of no consequence when the store refuses."""
        try:
            self.store.delete([self.announcement])
        except StorageError as error:
            logger.debug("The announcement of %s stays until a collection: %s", self.key, error)

    def give_up(self) -> None:
        """Say that the save has failed.

        A create whose reply was lost may still arrive: that save stays announced, and a
        collection settles it by taking the key.
        """
        if not self._may_have_committed:
            self.withdraw()


def announce(store: Store, key: str) -> AnnouncedSave:
    """Announce the save that will commit the reference `key`; it ends by `withdraw` or `give_up`.

    Other processes may write for it, from then on: each reads the plans itself, before it
    relies on any object.
    """
    announcement = keys.new_save(key)
    body = {"format_version": 1, "announced_at": datetime.now(UTC).isoformat()}
    store.put(announcement, encode_document(body))
    return AnnouncedSave(key, announcement, read_condemned(store), store)


@contextmanager
def announced_save(store: Store, key: str) -> Iterator[AnnouncedSave]:
    """Announce the save that will commit the reference `key`, for as long as the body runs."""
    save = announce(store, key)
    try:
        yield save
    except BaseException:
        save.give_up()
        raise
    save.withdraw()


def is_revocation(body: Any) -> bool:
    """Return whether the document at a reference's key bars it instead of being one."""
    return isinstance(body, dict) and _REVOKED in body


def announced_saves(store: Store) -> list[str]:
    """Return the announcements of all saves under way."""
    return [info.key for info in store.list(keys.SAVES)]


def revoke_save(store: Store, announcement: str, *, plan_id: str) -> None:
    """Bar the reference's key: the save either has committed by now or never will."""
    key = keys.reference_of_save(announcement)
    body = {
        "format_version": 1,
        _REVOKED: plan_id,
        "revoked_at": datetime.now(UTC).isoformat(),
    }
    try:
        create_document(store, key, body)
    except ObjectExistsError:
        logger.info("%s was committed after all", key)
    else:
        logger.warning("%s: a save that was never finished is given up", key)
    store.delete([announcement])


def _revoked(key: str, store: Store) -> SaveRevokedError:
    msg = (
        f"{store.url}: {key} was not saved: it took so long that a collection gave it up. "
        "Nothing is visible; save again, what was sent is reused where it is still there."
    )
    return SaveRevokedError(msg, key=key, store_url=store.url)
