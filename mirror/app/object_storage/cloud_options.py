"""The settings of a bucket, in the words of the library for object stores and of our own requests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mirror import __version__
from mirror.config import BucketSettings
from mirror.values.bucket_address import BucketAddress

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

    from mirror.store.cloud.clouds import CloudStore, CloudTraits, StoreMaker
    from mirror.store.cloud.key_files import KeyFiles
    from mirror.store.cloud.raw_s3 import RawS3

#: Seconds for which URLs can be signed by credentials that do not end, and by those that the library renews: it never
#: uses ones that are valid for less.
_LONGEST_SIGNATURE: Final = 7 * 86400.0
_RENEWED: Final = 300.0
#: No host is reached by way of this proxy: without any, the library would use those of the environment.
_NO_PROXY: Final[ClientConfig] = {"proxy_url": "http://127.0.0.1:1", "proxy_excludes": "0.0.0.0/0,::/0,*"}


def cloud_of(settings: BucketSettings, address: BucketAddress) -> tuple[CloudTraits, StoreMaker, KeyFiles | None]:
    """What the cloud is like, how its stores are made, and the keys of S3 if they are configured."""
    from obstore.store import AzureStore, GCSStore, S3Store

    from mirror.store.cloud import clouds

    prefix = address.prefix or None

    def google(client: ClientConfig, retry: RetryConfig, unsigned: bool) -> CloudStore:
        return GCSStore(
            address.name, prefix=prefix, config=_google(settings), client_options=client, retry_config=retry
        )

    def azure(client: ClientConfig, retry: RetryConfig, unsigned: bool) -> CloudStore:
        return AzureStore(
            address.name, prefix=prefix, config=_azure(settings), client_options=client, retry_config=retry
        )

    if address.cloud == "gs":
        return clouds.GOOGLE, google, None
    if address.cloud == "az":
        return clouds.AZURE, azure, None
    keys = _keys(settings)
    options = _s3(settings, address)

    def s3(client: ClientConfig, retry: RetryConfig, unsigned: bool) -> CloudStore:
        return S3Store(
            address.name,
            prefix=prefix,
            config={**options, "unsigned_payload": unsigned},  # type: ignore[arg-type]
            client_options=client,
            retry_config=retry,
            credential_provider=keys,
        )

    return (clouds.S3 if settings.bulk_delete else clouds.S3_SINGLY), s3, keys


def _s3(settings: BucketSettings, address: BucketAddress) -> dict[str, Any]:
    """The library's options for S3. What is None here it finds in the environment, or has a default for."""
    endpoint = settings.endpoint
    if endpoint is not None and not settings.path_style:
        parts = urlsplit(endpoint)
        endpoint = f"{parts.scheme}://{address.name}.{parts.netloc}{parts.path}"
    encryption = "sse-c" if settings.customer_key is not None else settings.sse
    return _given(
        endpoint=endpoint,
        region=_region(settings),
        virtual_hosted_style_request=not settings.path_style,
        skip_signature=settings.anonymous or None,
        role_arn=settings.role,
        role_session_name=settings.role_session,
        endpoint_url_sts=settings.sts_url,
        web_identity_token_file=_text(settings.web_identity_token_file),
        metadata_endpoint=settings.metadata_url,
        server_side_encryption=encryption,
        sse_kms_key_id=settings.kms_key,
        sse_bucket_key_enabled=settings.kms_bucket_key,
        sse_customer_key_base64=settings.secret("customer_key"),
        request_payer=settings.requester_pays or None,
        checksum_algorithm=None if settings.checksum == "none" else settings.checksum,
        disable_bulk_delete=not settings.bulk_delete,
    )


def _google(settings: BucketSettings) -> Any:
    """The library's options for Google Cloud Storage."""
    file = settings.credentials_file
    kind = json.loads(file.read_bytes()).get("type") if file is not None else None
    return _given(
        base_url=settings.endpoint,
        skip_signature=settings.anonymous or None,
        service_account=_text(file) if kind == "service_account" else None,
        application_credentials=_text(file) if kind != "service_account" else None,
    )


def _azure(settings: BucketSettings) -> Any:
    """The library's options for Azure. The kind of credentials is said, so that those of the environment do not count
    beside others that are configured.
    """
    kinds = {
        "access_key": settings.account_key,
        "sas_token": settings.sas_token,
        "client_secret": settings.client_secret,
        "workload_identity": settings.web_identity_token_file,
    }
    kind = next((name for name, way in kinds.items() if way is not None), None)
    return _given(
        account_name=settings.account,
        endpoint=settings.endpoint,
        credential_type=kind,
        skip_signature=settings.anonymous or None,
        account_key=settings.secret("account_key"),
        sas_key=settings.secret("sas_token"),
        tenant_id=settings.tenant_id,
        client_id=settings.client_id,
        client_secret=settings.secret("client_secret"),
        federated_token_file=_text(settings.web_identity_token_file),
        authority_host=settings.authority,
        msi_endpoint=settings.metadata_url,
        encryption_key=settings.secret("customer_key"),
    )


def client_options(settings: BucketSettings) -> ClientConfig:
    """Options of connections, without their time limits."""
    options: ClientConfig = {"user_agent": f"registry-mirror/{__version__}", "allow_http": settings.allow_http}
    if settings.ca_file is not None:
        options["root_certificate"] = settings.ca_file.read_bytes()
    proxy = settings.secret("proxy")
    if proxy is None:
        return {**options, **_NO_PROXY}
    if proxy != "env":
        options["proxy_url"] = proxy
    return options


def _keys(settings: BucketSettings) -> KeyFiles | None:
    """The keys of S3 that are configured. They are given to the library by a function, so that it adds nothing from the
    environment to them, such as a session token, and so that files are read again.
    """
    from mirror.store.cloud.key_files import KeyFiles, S3Keys

    access, secret = settings.secret("access_key"), settings.secret("secret_key")
    if access is None or secret is None:
        return None
    files = {
        "access_key": settings.access_key_file,
        "secret_key": settings.secret_key_file,
        "token": settings.session_token_file,
    }
    keys = S3Keys(access, secret, settings.secret("session_token"))
    return KeyFiles(keys, {name: file for name, file in files.items() if file is not None})


def raw_requests(settings: BucketSettings, address: BucketAddress, files: KeyFiles | None) -> RawS3:
    """What sends requests to S3 that the library cannot make, with the same keys."""
    from mirror.store.cloud.aws_identity import AwsIdentity, WebIdentity, sts_url
    from mirror.store.cloud.raw_s3 import RawS3

    region = _region(settings) or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    parts = urlsplit(settings.endpoint or _endpoint_of_environment() or _at_amazon(region))
    if settings.path_style:
        url = f"{parts.scheme}://{parts.netloc}{parts.path}/{address.name}"
    else:
        url = f"{parts.scheme}://{address.name}.{parts.netloc}{parts.path}"
    proxy = settings.secret("proxy")
    if settings.role is not None and settings.web_identity_token_file is not None:
        configured = WebIdentity(
            settings.role,
            settings.web_identity_token_file,
            settings.role_session or "registry-mirror",
            settings.sts_url or sts_url(region),
        )
    else:
        configured = None
    identity = AwsIdentity(
        os.environ,
        region,
        lambda request: raw.ask(request),
        web_identity=configured,
        metadata_url=settings.metadata_url,
    )
    raw = RawS3(
        url,
        f"{address.prefix}/" if address.prefix else "",
        region,
        files.keys if files is not None else identity.keys,
        ca=settings.ca_file.read_text() if settings.ca_file is not None else None,
        proxies=None if proxy == "env" else {} if proxy is None else {"http": proxy, "https": proxy},
        timeout=settings.timeout,
    )
    return raw


def is_plain(settings: BucketSettings) -> bool:
    """Whether objects can be read without TLS, a proxy and headers that only the library knows."""
    bare = settings.customer_key is None and not settings.requester_pays and settings.proxy is None
    return bare and settings.endpoint is not None and settings.endpoint.startswith("http:")


def _endpoint_of_environment() -> str | None:
    """Where the library finds S3, if the settings do not say it."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _at_amazon(region: str) -> str:
    return f"https://s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")


def _region(settings: BucketSettings) -> str | None:
    if settings.region is not None or settings.endpoint is None:
        return settings.region
    # stores other than Amazon's seldom have one, and sign with this
    return None if os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") else "us-east-1"


def longest_signature(settings: BucketSettings) -> float | None:
    """Seconds for which a URL can be signed; None if not at all: nobody but the mirror has the customer's key."""
    if settings.anonymous or settings.customer_key is not None or settings.sas_token is not None:
        return None
    endless = settings.session_token is None and (
        settings.secret_key is not None or settings.account_key is not None or settings.credentials_file is not None
    )
    return _LONGEST_SIGNATURE if endless else _RENEWED


def _given(**options: object) -> dict[str, Any]:
    """Options without those that are not set."""
    return {name: value for name, value in options.items() if value is not None}


def _text(path: Path | None) -> str | None:
    return str(path) if path is not None else None
