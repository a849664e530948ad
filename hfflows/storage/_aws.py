"""What only botocore knows: the AWS configuration files, and calls that obstore does not have.

botocore comes with the extras `aws` and `s3fs`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from hfflows.errors import AccessDeniedError, MissingDependencyError

if TYPE_CHECKING:
    from hfflows.storage._s3_options import S3Options

_CREDENTIALS_LIVE = timedelta(minutes=5)
"""botocore renews temporary credentials at least 10 minutes before they end."""


class ProfileCredentials:
    """Credential provider for obstore that asks an AWS profile, at the first request.

    That covers keys, SSO, assumed roles and `credential_process`, as botocore has them.
    """

    def __init__(self, profile: str) -> None:
        self._profile = profile
        self._credentials: Any = None

    def __call__(self) -> dict[str, Any]:
        """Return credentials in obstore's form."""
        if self._credentials is None:
            self._credentials = _session(self._profile, "profile").get_credentials()
        if self._credentials is None:
            msg = f"The AWS profile {self._profile!r} has no credentials."
            raise AccessDeniedError(msg)
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_LIVE,
        }


def with_profile(options: S3Options) -> S3Options:
    """Return `options` with the endpoint and region of their profile, where they have none."""
    if options.profile is None:
        return options
    client = _client(_session(options.profile, "profile"), options, anonymous=True)
    return replace(options, endpoint=client.meta.endpoint_url, region=client.meta.region_name)


def s3_client(options: S3Options) -> Any:
    """Return a botocore client for what obstore cannot ask.

    Raises:
        MissingDependencyError: botocore is not installed.
    """
    session = _session(options.profile, "multipart uploads")
    return _client(session, options, anonymous=options.anonymous)


def client_arguments(options: S3Options) -> dict[str, Any]:
    """Return the options as arguments of botocore's `create_client`, but for `config`."""
    arguments = {
        "endpoint_url": options.endpoint,
        "region_name": options.region,
        "aws_access_key_id": options.access_key_id,
        "aws_secret_access_key": options.secret_access_key,
        "aws_session_token": options.session_token,
    }
    return {name: value for name, value in arguments.items() if value is not None}


def config_arguments(options: S3Options) -> dict[str, Any]:
    """Return the options as arguments of botocore's `Config`."""
    style = "virtual" if options.virtual_hosted_style_request else "path"
    s3: dict[str, Any] = {"addressing_style": style}
    if not options.signs_payload:
        s3["payload_signing_enabled"] = False
    return {
        "s3": s3,
        "request_checksum_calculation": options.request_checksum,
        "response_checksum_validation": options.request_checksum,
        "retries": {"mode": "standard", "total_max_attempts": 3},
        "connect_timeout": 5,
        "read_timeout": 60,
        "max_pool_connections": 64,
    }


def _session(profile: str | None, purpose: str) -> Any:
    try:
        from botocore.session import Session
    except ImportError as error:
        msg = (
            f"For {purpose} of a store on S3 botocore is needed; "
            "install it with `pip install hfflows[aws]`."
        )
        raise MissingDependencyError(msg, extra="aws") from error
    return Session(profile=profile)


def _client(session: Any, options: S3Options, *, anonymous: bool) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    arguments = config_arguments(options)
    if anonymous:
        arguments["signature_version"] = UNSIGNED
    return session.create_client("s3", config=Config(**arguments), **client_arguments(options))
