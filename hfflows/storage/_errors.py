"""The one place where obstore's errors become ours."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import obstore.exceptions as upstream

from hfflows.errors import (
    AccessDeniedError,
    IntegrityError,
    ObjectExistsError,
    ObjectNotFoundError,
    SettingsError,
    StorageError,
    StorageUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hfflows.errors import HfflowsError

_CREDENTIALS = (
    "Check the access key, the secret and the rights on the bucket (AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)."
)
_REACH = "Check the endpoint (AWS_ENDPOINT_URL) and the network; trying again may help."

MAPPING: dict[type[Exception], tuple[type[HfflowsError], str]] = {
    upstream.NotFoundError: (ObjectNotFoundError, "There is no such object, or no such bucket."),
    upstream.AlreadyExistsError: (ObjectExistsError, "An object is there already."),
    upstream.PreconditionError: (ObjectExistsError, "An object is there already."),
    upstream.NotModifiedError: (ObjectExistsError, "The object is unchanged."),
    upstream.PermissionDeniedError: (AccessDeniedError, _CREDENTIALS),
    upstream.UnauthenticatedError: (AccessDeniedError, _CREDENTIALS),
    upstream.InvalidPathError: (SettingsError, "This key is not legal in this store."),
    upstream.NotSupportedError: (StorageError, "This store does not support the operation."),
    upstream.UnknownConfigurationKeyError: (SettingsError, "There is no such store option."),
    upstream.JoinError: (StorageUnavailableError, "The operation was interrupted; try again."),
    upstream.GenericError: (StorageUnavailableError, _REACH),
    upstream.BaseError: (StorageError, ""),
    PermissionError: (AccessDeniedError, "Check the rights on the directory."),
    FileNotFoundError: (ObjectNotFoundError, "There is no such object, or no such bucket."),
    OSError: (StorageUnavailableError, _REACH),
}
"""Every error class of obstore; a test fails when a release adds one."""

_DENIED = re.compile(r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|403 Forbidden")
_CUT_SHORT = re.compile(r"InvalidRange|Invalid range|Requested range was invalid")
_NO_BUCKET = re.compile(r"NoSuchBucket")
_XML = re.compile(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", re.DOTALL)


@contextmanager
def mapped_errors(store_url: str, key: str) -> Iterator[None]:
    """Raise obstore's errors as ours, naming the store and the key."""
    try:
        yield
    except tuple(MAPPING) as error:
        ours, advice = next(
            found for cls in type(error).__mro__ if (found := MAPPING.get(cls)) is not None
        )
        text = str(error)
        if issubclass(ours, StorageUnavailableError) and _DENIED.search(text):
            ours, advice = AccessDeniedError, _CREDENTIALS
        if issubclass(ours, StorageUnavailableError) and _CUT_SHORT.search(text):
            ours, advice = IntegrityError, "The object is shorter than what was saved."
        if _NO_BUCKET.search(text):
            advice = "There is no such bucket: create it, or correct the store URL."
        reason = _reason(text)
        msg = f"{store_url}: {key or 'the store'}: {reason} {advice}".rstrip()
        raise ours(msg, key=key, store_url=store_url) from error


def _reason(text: str) -> str:
    """Return what the store said, without obstore's debug dump and the request's XML."""
    if answer := _XML.search(text):
        return f"{answer[1]}: {answer[2].rstrip('.')}."
    line = text.partition("\n\nDebug source")[0].replace("\n", " ").strip()
    return line if line.endswith(".") else f"{line}."
