"""The options of a store on S3, the same for both engines: what is passed, else the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import unquote, urlsplit, urlunsplit

from hfflows.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

RequestChecksum = Literal["when_required", "when_supported"]
ConditionalPut = Literal["etag", "disabled"]

_ALIASES = {
    "default_region": "region",
    "endpoint_url": "endpoint",
    "request_checksum_calculation": "request_checksum",
    "skip_signature": "anonymous",
    "token": "session_token",
}
_VARIABLES = {
    "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "anonymous": ("AWS_SKIP_SIGNATURE",),
    "virtual_hosted_style_request": ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST",),
    "request_checksum": ("AWS_REQUEST_CHECKSUM_CALCULATION",),
    "unsigned_payload": ("AWS_UNSIGNED_PAYLOAD",),
    "conditional_put": ("AWS_CONDITIONAL_PUT",),
    "disable_bulk_delete": ("AWS_DISABLE_BULK_DELETE",),
}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SWITCHES = frozenset(
    {"anonymous", "virtual_hosted_style_request", "unsigned_payload", "disable_bulk_delete"}
)
_SWITCH_VALUES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_CHOICES: dict[str, tuple[str, ...]] = {
    "request_checksum": get_args(RequestChecksum),
    "conditional_put": get_args(ConditionalPut),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Options:
    """What `open_store` was told about a store on S3; `None` leaves it to the client."""

    endpoint: str | None = None
    """Server URL, without the bucket."""
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    profile: str | None = None
    """Section of the AWS configuration files; outranks keys in the environment."""
    anonymous: bool = False
    virtual_hosted_style_request: bool = False
    """Whether the bucket goes into the host name; by default it goes into the path."""
    request_checksum: RequestChecksum = "when_required"
    """Whether uploads carry a checksum that the server compares. Content is verified by
    digest when it is read in any case, and some stores refuse the header."""
    unsigned_payload: bool | None = None
    """Sign the headers alone, which saves one sha256 over every upload. `None`: where TLS
    guards the body on its way, or there is no way, on loopback."""
    conditional_put: ConditionalPut = "etag"
    """`disabled` for a store that does not know `If-None-Match`."""
    disable_bulk_delete: bool = False
    others: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Options that only the engine knows."""

    @classmethod
    def read(cls, options: Mapping[str, Any], bucket: str) -> S3Options:
        """Return `options` over the environment.

        Raises:
            SettingsError: A value is none of those allowed, or half a pair of keys is missing.
        """
        passed = {_name(option): v for option, v in options.items() if v is not None}
        own = {item.name for item in fields(cls)} - {"others"}
        values = {**_from_environment(), **{k: v for k, v in passed.items() if k in own}}
        values = {name: _checked(name, value) for name, value in values.items()}
        if bool(values.get("access_key_id")) != bool(values.get("secret_access_key")):
            msg = "Pass access_key_id and secret_access_key together, or neither."
            raise SettingsError(msg)
        if values.get("virtual_hosted_style_request") and values.get("endpoint"):
            values["endpoint"] = _without_bucket(values["endpoint"], bucket)
        if not any(values.get(name) for name in ("profile", "access_key_id", "anonymous")):
            values["profile"] = _default_profile()
        return cls(**values, others={k: v for k, v in passed.items() if k not in own})

    @property
    def signs_payload(self) -> bool:
        """Whether the signature of an upload covers its body."""
        if self.unsigned_payload is not None:
            return not self.unsigned_payload
        parts = urlsplit(self.endpoint or "https://")
        return parts.scheme != "https" and parts.hostname not in _LOOPBACK

    def hosted_endpoint(self, bucket: str) -> str | None:
        """Return the endpoint as obstore wants it: with the bucket, when it goes into the host."""
        if not self.endpoint or not self.virtual_hosted_style_request:
            return self.endpoint
        parts = urlsplit(self.endpoint)
        return urlunsplit(parts._replace(netloc=f"{bucket}.{parts.netloc}"))


def option_names() -> tuple[str, ...]:
    """Return the options that both engines know."""
    return tuple(sorted({item.name for item in fields(S3Options)} - {"others"}))


def bucket_and_prefix(url: str) -> tuple[str, str]:
    """Return the bucket of an s3 URL and the prefix in it, without slashes at its ends."""
    parts = urlsplit(url)
    return parts.netloc, "/".join(part for part in unquote(parts.path).split("/") if part)


def _name(option: str) -> str:
    name = option.lower().removeprefix("aws_")
    return _ALIASES.get(name, name)


def _without_bucket(endpoint: str, bucket: str) -> str:
    parts = urlsplit(endpoint)
    return urlunsplit(parts._replace(netloc=parts.netloc.removeprefix(f"{bucket}.")))


def _default_profile() -> str | None:
    """Return the profile of the environment, which keys in the environment outrank."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    return os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")


def _from_environment() -> dict[str, Any]:
    found = {}
    for option, variables in _VARIABLES.items():
        for variable in variables:
            if value := os.environ.get(variable):
                found[option] = value
                break
    return found


def _checked(name: str, value: Any) -> Any:
    if name in _SWITCHES and not isinstance(value, bool):
        if str(value).lower() not in _SWITCH_VALUES:
            msg = f"The store option {name} is true or false, not {value!r}."
            raise SettingsError(msg, option=name)
        return _SWITCH_VALUES[str(value).lower()]
    if name in _CHOICES and str(value).lower() not in _CHOICES[name]:
        msg = f"The store option {name} is one of {', '.join(_CHOICES[name])}, not {value!r}."
        raise SettingsError(msg, option=name)
    return value.lower() if name in _CHOICES else value
