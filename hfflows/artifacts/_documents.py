"""Small JSON documents in the store, each carrying the digest of its own text.

    {"checksum": "<sha256 of the body's canonical JSON>", "body": {…}}

A flipped byte in a reference or a tree is found where it is read, not where it hurts.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from hfflows.errors import IntegrityError, ObjectExistsError

if TYPE_CHECKING:
    from hfflows.storage import Get, Store

LARGEST_DOCUMENT_BYTES = 512 * 1024 * 1024
"""A tree of 100,000 files takes about 15 MB."""


def encode_document(body: Any) -> bytes:
    """Return the stored form of a JSON value."""
    text = _canonical(body)
    checksum = hashlib.sha256(text).hexdigest()
    return b'{"checksum":"%b","body":%b}' % (checksum.encode(), text)


def decode_document(data: bytes, *, key: str) -> Any:
    """Return the JSON value that `encode_document` stored.

    Raises:
        IntegrityError: The bytes are not what was stored.
    """
    try:
        document = json.loads(data)
        body, checksum = document["body"], document["checksum"]
        actual = hashlib.sha256(_canonical(body)).hexdigest()
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        msg = f"{key} is not a readable hfflows document: it was cut short or damaged."
        raise IntegrityError(msg, key=key) from error
    if actual != checksum:
        msg = f"{key} is damaged: its bytes differ from what was stored."
        raise IntegrityError(msg, key=key)
    return body


def read_document(store: Get, key: str) -> Any:
    """Return the document at `key`; see `decode_document`."""
    return decode_document(store.get(key, limit=LARGEST_DOCUMENT_BYTES), key=key)


def create_document(store: Store, key: str, body: Any) -> None:
    """Write a document that must not be there yet.

    Raises:
        ObjectExistsError: A different document is at `key`. One with the same bytes is
            our own, whose reply was lost and which the client sent again.
    """
    data = encode_document(body)
    try:
        store.create(key, data)
    except ObjectExistsError:
        if store.get(key) != data:
            raise


def _canonical(body: Any) -> bytes:
    return json.dumps(
        body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
