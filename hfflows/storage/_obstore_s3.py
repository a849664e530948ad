"""S3 by obstore: the options in its spelling, and uploads that somebody left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from obstore.store import S3Store

from hfflows.errors import SettingsError
from hfflows.storage._aws import ProfileCredentials, s3_client, with_profile
from hfflows.storage._errors import mapped_errors
from hfflows.storage._obstore import RETRIES, ObstoreStore
from hfflows.storage._s3_options import S3Options, bucket_and_prefix, option_names
from hfflows.storage._uploads import S3Uploads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hfflows.storage._protocol import Upload

_TIMEOUTS: dict[str, Any] = {"timeout": "60s", "connect_timeout": "5s"}
_DEFAULT_REGION = "us-east-1"  # what stores that are not AWS expect
_S3: Any = S3Store  # obstore types its options as literals of today's regions


class S3ObstoreStore(ObstoreStore):
    """A `Store` on S3 by obstore, which also has `Uploads`."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._bucket, self._prefix = bucket_and_prefix(url)
        with mapped_errors(url, ""):
            self._options = with_profile(S3Options.read(options, self._bucket))
        super().__init__(
            _engine(url, self._bucket, self._prefix, self._options),
            url,
            has_conditional_create=self._options.conditional_put != "disabled",
        )

    def list_uploads(self) -> Iterator[Upload]:  # docstring inherited
        yield from self._uploads().list()

    def abort_upload(self, upload: Upload) -> None:  # docstring inherited
        self._uploads().abort(upload)

    def _uploads(self) -> S3Uploads:
        with mapped_errors(self._url, ""):
            client = s3_client(self._options)

        def call(name: str, **arguments: Any) -> Any:
            return getattr(client, name)(**arguments)

        return S3Uploads(call, self._url, self._bucket, self._prefix)


def _engine(url: str, bucket: str, prefix: str, options: S3Options) -> S3Store:
    config = dict(options.others)
    client_options = {**_TIMEOUTS, **config.pop("client_options", {})}
    endpoint = options.hosted_endpoint(bucket)
    if endpoint and endpoint.startswith("http://"):
        client_options.setdefault("allow_http", True)
    try:
        with mapped_errors(url, ""):
            engine: S3Store = _S3(
                bucket,
                prefix=prefix or None,
                config={**_config(options, endpoint), **config},
                client_options=client_options,
                retry_config=RETRIES,
                credential_provider=_credentials(options),
            )
            return engine
    except SettingsError as error:
        msg = f"{error} It takes {', '.join(option_names())}, and those of obstore's S3Config."
        raise SettingsError(msg, store_url=url) from error


def _config(options: S3Options, endpoint: str | None) -> dict[str, Any]:
    config: dict[str, Any] = {
        "region": options.region or _DEFAULT_REGION,
        "skip_signature": options.anonymous,
        "virtual_hosted_style_request": options.virtual_hosted_style_request,
        "unsigned_payload": not options.signs_payload,
        "conditional_put": options.conditional_put,
        "disable_bulk_delete": options.disable_bulk_delete,
    }
    if endpoint:
        # Under the name `endpoint` an AWS_ENDPOINT_URL_S3 in the environment would outrank it.
        config["aws_endpoint_url_s3"] = endpoint
    if options.request_checksum == "when_supported":
        config["checksum_algorithm"] = "SHA256"  # the one that the signature needs anyway
    return config


def _credentials(options: S3Options) -> Any:
    """Return where keys come from, `None` for the environment and the machine's role.

    Keys passed to obstore as options would be joined by the environment's session token.
    """
    if options.anonymous:
        return None
    if options.access_key_id:
        fixed = {
            "access_key_id": options.access_key_id,
            "secret_access_key": options.secret_access_key,
            "token": options.session_token,
            "expires_at": None,
        }
        return lambda: fixed
    return ProfileCredentials(options.profile) if options.profile else None
