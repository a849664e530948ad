"""The one place where the errors of obstore, fsspec and their clients become ours."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import obstore.exceptions as upstream

from hfflows.errors import (
    AccessDeniedError,
    HfflowsError,
    IntegrityError,
    ObjectExistsError,
    ObjectNotFoundError,
    SettingsError,
    StorageError,
    StorageUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Translation = tuple[type[HfflowsError], str]

_CREDENTIALS = (
    "Check the access key, the secret and the rights on the bucket (AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)."
)
_REACH = "Check the endpoint (AWS_ENDPOINT_URL) and the network; trying again may help."
_ABSENT = "There is no such object, or no such bucket."
_NO_SUCH_BUCKET = "There is no such bucket: create it, or correct the store URL."
_EXISTS = "An object is there already."
_ABOVE_OBJECTS = "There are objects below this key, none at it."
_BELOW_AN_OBJECT = "A part of this key is an object itself."
_SHORT = "The object is shorter than what was saved."
_UNSUPPORTED = (
    "This store does not support the operation. If it refused a conditional create, "
    "open it with conditional_put='disabled'."
)

MAPPING: dict[type[Exception], Translation] = {
    upstream.NotFoundError: (ObjectNotFoundError, _ABSENT),
    upstream.AlreadyExistsError: (ObjectExistsError, _EXISTS),
    upstream.PreconditionError: (ObjectExistsError, _EXISTS),
    upstream.NotModifiedError: (ObjectExistsError, "The object is unchanged."),
    upstream.PermissionDeniedError: (AccessDeniedError, _CREDENTIALS),
    upstream.UnauthenticatedError: (AccessDeniedError, _CREDENTIALS),
    upstream.InvalidPathError: (SettingsError, "This key is not legal in this store."),
    upstream.NotSupportedError: (StorageError, _UNSUPPORTED),
    upstream.UnknownConfigurationKeyError: (SettingsError, "There is no such store option."),
    upstream.JoinError: (StorageUnavailableError, "The operation was interrupted; try again."),
    upstream.GenericError: (StorageUnavailableError, _REACH),
    upstream.BaseError: (StorageError, ""),
    PermissionError: (AccessDeniedError, "Check the rights on this directory or bucket."),
    FileNotFoundError: (ObjectNotFoundError, _ABSENT),
    IsADirectoryError: (ObjectNotFoundError, _ABOVE_OBJECTS),
    NotADirectoryError: (ObjectNotFoundError, _BELOW_AN_OBJECT),
    FileExistsError: (ObjectExistsError, _EXISTS),
    NotImplementedError: (StorageError, _UNSUPPORTED),
    EOFError: (StorageUnavailableError, _REACH),
    OSError: (StorageUnavailableError, _REACH),
}
"""Every error class of obstore, and what file systems raise; a test fails when one is added."""

FOREIGN: dict[str, dict[str, Translation]] = {
    "botocore.exceptions": {
        "NoCredentialsError": (AccessDeniedError, _CREDENTIALS),
        "PartialCredentialsError": (AccessDeniedError, _CREDENTIALS),
        "CredentialRetrievalError": (AccessDeniedError, _CREDENTIALS),
        "SSOError": (AccessDeniedError, "Log in again: `aws sso login`."),
        "ConnectionError": (StorageUnavailableError, _REACH),
        "HTTPClientError": (StorageUnavailableError, _REACH),
        "ClientError": (StorageUnavailableError, _REACH),
        "BotoCoreError": (SettingsError, "Check the store's options and the AWS profile."),
    },
    "aiohttp": {"ClientError": (StorageUnavailableError, _REACH)},
    "ftplib": {
        "error_perm": (AccessDeniedError, "Check the account and its rights."),
        "Error": (StorageUnavailableError, _REACH),
    },
    "paramiko": {
        "AuthenticationException": (AccessDeniedError, "Check the account and its key."),
        "SSHException": (StorageUnavailableError, _REACH),
    },
    "gcsfs.retry": {"HttpError": (StorageUnavailableError, _REACH)},
    "azure.core.exceptions": {
        "ResourceNotFoundError": (ObjectNotFoundError, _ABSENT),
        "ResourceExistsError": (ObjectExistsError, _EXISTS),
        "ClientAuthenticationError": (AccessDeniedError, _CREDENTIALS),
        "AzureError": (StorageUnavailableError, _REACH),
    },
}
"""By module: what the clients behind fsspec raise beside OSError. None of them is imported
here; a class can only be raised once its module is loaded."""

_FINER: tuple[tuple[re.Pattern[str], type[HfflowsError], str], ...] = (
    (
        re.compile(r"InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|403:? Forbidden"),
        AccessDeniedError,
        _CREDENTIALS,
    ),
    (
        re.compile(r"InvalidRange|Invalid range|Requested range was invalid"),
        IntegrityError,
        _SHORT,
    ),
    (re.compile(r"\(os error 20\)"), ObjectNotFoundError, _BELOW_AN_OBJECT),
    (re.compile(r"\(os error 21\)"), ObjectNotFoundError, _ABOVE_OBJECTS),
    (re.compile(r"PreconditionFailed"), ObjectExistsError, _EXISTS),
    (re.compile(r"KeyTooLong"), SettingsError, "This key is too long for this store."),
    (re.compile(r"NotImplemented"), StorageError, _UNSUPPORTED),
)
"""What a store says in words where its client's class says only that it failed."""

_NO_BUCKET = re.compile(r"NoSuchBucket")
_XML = re.compile(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", re.DOTALL)


@contextmanager
def mapped_errors(store_url: str, key: str) -> Iterator[None]:
    """Raise the engines' errors as ours, naming the store and the key."""
    try:
        yield
    except HfflowsError:
        raise
    except upstream_errors() as error:
        text = _said(error)
        ours, advice = _translation(error, text)
        reason = _reason(text)
        msg = f"{store_url}: {key or 'the store'}: {reason} {advice}".rstrip()
        raise ours(msg, key=key, store_url=store_url) from error


def upstream_errors() -> tuple[type[Exception], ...]:
    """Return the classes that `mapped_errors` translates, of the modules loaded by now."""
    return (*MAPPING, *_loaded())


def _loaded() -> dict[type[Exception], Translation]:
    return {
        getattr(module, name): translation
        for module_name, names in FOREIGN.items()
        if (module := sys.modules.get(module_name)) is not None
        for name, translation in names.items()
    }


def _translation(error: Exception, text: str) -> Translation:
    known = {**MAPPING, **_loaded()}
    ours, advice = next(known[cls] for cls in type(error).__mro__ if cls in known)
    if _NO_BUCKET.search(text):
        return ObjectNotFoundError, _NO_SUCH_BUCKET
    if issubclass(ours, (StorageUnavailableError, AccessDeniedError)):
        for pattern, finer, better_advice in _FINER:
            if pattern.search(text):
                return finer, better_advice
    return ours, advice


def _said(error: Exception) -> str:
    """Return the error's text; s3fs leaves the code that tells most to the cause."""
    for cause in (error, error.__cause__):
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and "Error" in response:
            said = response["Error"]
            return f"{said.get('Code')}: {said.get('Message') or error}"
    return str(error) or type(error).__name__


def _reason(text: str) -> str:
    """Return what the store said, without obstore's debug dump and the request's XML."""
    if answer := _XML.search(text):
        return f"{answer[1]}: {answer[2].rstrip('.')}."
    line = text.partition("\n\nDebug source")[0].replace("\n", " ").strip()
    return line if line.endswith(".") else f"{line}."


def check_limit(store_url: str, key: str, size_bytes: int, limit: int | None) -> None:
    """Refuse an object that is larger than what is at this key can be.

    Raises:
        IntegrityError: It is.
    """
    if limit is not None and size_bytes > limit:
        msg = (
            f"{store_url}: {key} has {size_bytes:,} bytes or more; at most {limit:,} belong "
            "there. It was not read: something else than hfflows wrote it."
        )
        raise IntegrityError(msg, key=key, store_url=store_url)


def check_length(store_url: str, key: str, offset: int, length: int, received: int) -> None:
    """Refuse a range that came back shorter than it was asked for.

    Raises:
        IntegrityError: It did.
    """
    if received != length:
        msg = (
            f"{store_url}: {key} ends at byte {offset + received}, "
            f"{offset + length} were expected: the object was cut short."
        )
        raise IntegrityError(msg, key=key, store_url=store_url)
