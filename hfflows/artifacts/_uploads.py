"""Multipart uploads that were cut off: invisible in listings, paid for all the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from hfflows.storage import Uploads, open_store

if TYPE_CHECKING:
    from hfflows.storage import Store, Upload


def abandoned_uploads(
    *, older_than: timedelta = timedelta(days=1), store: Store | None = None
) -> list[Upload]:
    """Return the unfinished multipart uploads in a store, oldest first.

    Only S3 has them; elsewhere there are none.

    Args:
        older_than: Younger ones may be under way. By this machine's clock.
        store: Where; `None` means `open_store()`.

    Raises:
        MissingDependencyError: Listing them needs botocore (extra `aws` or `s3fs`).
    """
    store = store or open_store()
    if not isinstance(store, Uploads):
        return []
    latest = datetime.now(UTC) - older_than
    found = [upload for upload in store.list_uploads() if upload.started_at <= latest]
    return sorted(found, key=lambda upload: upload.started_at)


def abort_uploads(
    *, older_than: timedelta = timedelta(days=1), store: Store | None = None
) -> list[Upload]:
    """Abort the unfinished multipart uploads in a store, and return them.

    A save that is still sending one fails and can be repeated. Arguments and errors are
    those of `abandoned_uploads`.
    """
    store = store or open_store()
    found = abandoned_uploads(older_than=older_than, store=store)
    for upload in found:
        if isinstance(store, Uploads):
            store.abort_upload(upload)
    return found
