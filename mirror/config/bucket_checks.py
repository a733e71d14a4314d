"""Checks of `store.bucket` and `[bucket]`: what belongs together, what excludes each other, and files."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator
from typing import Any, Final

from mirror.config.files import unreadable
from mirror.config.settings import StoreSettings
from mirror.config.tables.bucket_settings import ONLY_FOR, SECRETS, BucketSettings
from mirror.values.bucket_address import BucketAddress, parse_bucket

_FILES: Final = ("ca_file", "web_identity_token_file", "credentials_file")

#: Each way to be known to the store, by the first of its settings; they exclude each other.
_WAYS: Final = ("anonymous", "access_key", "web_identity_token_file", "account_key", "sas_token", "client_secret")
#: Storage classes whose objects have to be restored before they can be read, in upper case, by cloud. Those of Google
#: can all be read at once.
_UNREADABLE: Final = {"s3": ("GLACIER", "DEEP_ARCHIVE"), "az": ("ARCHIVE",)}
#: The types of a file of credentials that the library for Google Cloud Storage can use.
_GOOGLE_TYPES: Final = ("service_account", "authorized_user")


def check_bucket(store: StoreSettings, bucket: BucketSettings) -> list[str]:
    """The mistakes in the settings of the bucket, and in the files that they name."""
    if store.bucket is None:
        unused = _written(bucket)
        return [
            *(["store.cache_in_bucket: needs store.bucket"] if store.cache_in_bucket else []),
            *(["store.bucket_capacity: needs store.bucket"] if store.bucket_capacity is not None else []),
            *(f"bucket.{name}: there is no bucket: set store.bucket" for name in unused),
        ]
    mistakes = []
    if store.bucket_capacity is not None and not store.cache_in_bucket:
        mistakes.append("store.bucket_capacity: is about cached content: set store.cache_in_bucket")
    address = parse_bucket(store.bucket)
    of_others = [name for name in _written(bucket) if address.cloud not in _clouds(name)]
    if of_others:
        # what else is wrong with them does not matter
        return [*mistakes, *(f"bucket.{name}: {_only_for(name)}, and the bucket is {address}" for name in of_others)]
    found = [*_credentials(address, bucket), *_connection(address, bucket), *_encryption(bucket), *_files(bucket)]
    found += [*_redirects(bucket), *_storage_class(address, bucket)]
    return [*mistakes, *(f"bucket.{mistake}" for mistake in found)]


def bucket_hints(store: StoreSettings, bucket: BucketSettings) -> list[str]:
    """Warnings about settings that are valid, and hardly meant."""
    hints = []
    if store.bucket is not None and store.cache_in_bucket and store.bucket_capacity is None:
        hints.append("store.bucket_capacity: not set: cached content in the bucket has no limit, and costs money")
    if store.bucket is not None and bucket.checksum == "none":
        hints.append("bucket.checksum: without it, some stores keep bytes that were changed on the way")
    if bucket.endpoint is not None and bucket.endpoint.startswith("http:"):
        hints.append("bucket.endpoint: http:// lets others read and change what is sent; use https:// if you can")
    if bucket.redirect_to and (bucket.redirect_endpoint or bucket.endpoint or "").startswith("http:"):
        hints.append("bucket.redirect_to: clients that insist on https:// do not follow to http://")
    return hints


def _written(bucket: BucketSettings) -> list[str]:
    """The settings that are given, without the secrets that were read from their files."""
    given = bucket.model_fields_set
    return sorted(name for name in given if not (name in SECRETS and f"{name}_file" in given))


def _clouds(name: str) -> tuple[str, ...]:
    return ONLY_FOR.get(name, ("s3", "gs", "az"))


def _only_for(name: str) -> str:
    return f"is for buckets of {' and '.join(f'{cloud}://' for cloud in _clouds(name))} only"


def _given(bucket: BucketSettings, name: str) -> bool:
    """True if a setting, or its file, is given."""
    return bool(getattr(bucket, name)) or getattr(bucket, f"{name}_file", None) is not None


def _credentials(address: BucketAddress, bucket: BucketSettings) -> Iterator[str]:
    if _given(bucket, "access_key") != _given(bucket, "secret_key"):
        lacks = "secret_key" if _given(bucket, "access_key") else "access_key"
        yield f"{lacks}: must be set: access_key and secret_key (or their files) belong together"
    if _given(bucket, "session_token") and not _given(bucket, "access_key"):
        yield "session_token: belongs to access_key and secret_key"
    if address.cloud == "s3" and (bucket.role is None) != (bucket.web_identity_token_file is None):
        yield "role: role and web_identity_token_file belong together"
    if bucket.role is None:
        yield from (f"{name}: belongs to role" for name in ("role_session", "sts_url") if getattr(bucket, name))
    if address.cloud == "az":
        if bucket.account is None:
            yield "account: must be set for a bucket of az://"
        if _given(bucket, "client_secret") and not (bucket.tenant_id and bucket.client_id):
            yield "client_secret: needs tenant_id and client_id"
        if bucket.web_identity_token_file and not (bucket.tenant_id and bucket.client_id):
            yield "web_identity_token_file: needs tenant_id and client_id"
    ways = [way for way in _WAYS if _given(bucket, way)]
    if bucket.anonymous and bucket.credentials_file is not None:
        ways.append("credentials_file")
    if len(ways) > 1:
        yield f"{ways[0]}: {' and '.join(ways)} exclude each other"


def _connection(address: BucketAddress, bucket: BucketSettings) -> Iterator[str]:
    if bucket.endpoint is not None and bucket.endpoint.startswith("http:"):
        if not bucket.allow_http:
            yield "endpoint: http:// is not encrypted; if that is meant, set allow_http = true"
        if bucket.customer_key is not None or bucket.customer_key_file is not None:
            yield "customer_key: would be sent over http://, where others can read it"
        if not bucket.sign_payload:
            yield "sign_payload: must be true over http://, where others can change what is sent"
    if not bucket.sign_payload and bucket.checksum == "none":
        yield "sign_payload: must be true without a checksum"
    if address.cloud == "s3" and bucket.endpoint is None and bucket.region is None:
        names = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT")
        if not any(os.environ.get(name) for name in names):
            yield "region: must be set for a bucket at AWS; for another store, set endpoint"
    if not bucket.path_style and "." in address.name:
        yield "path_style: must be true: the certificates of host names do not match a bucket whose name has a dot"


def _redirects(bucket: BucketSettings) -> Iterator[str]:
    if not bucket.redirect_to:
        names = ("redirect_from", "redirect_for", "redirect_endpoint")
        yield from (f"{name}: needs redirect_to" for name in names if name in bucket.model_fields_set)
        return
    needs = {"anonymous": "nothing would sign the URL", "requester_pays": "clients would have to send it, too"}
    yield from (f"redirect_to: not possible with {name}: {why}" for name, why in needs.items() if getattr(bucket, name))
    for name, why in (("customer_key", "clients would need the key"), ("sas_token", "it cannot sign URLs")):
        if _given(bucket, name):
            yield f"redirect_to: not possible with {name}: {why}"


def _storage_class(address: BucketAddress, bucket: BucketSettings) -> Iterator[str]:
    if (bucket.storage_class or "").upper() in _UNREADABLE.get(address.cloud, ()):
        yield f"storage_class: what is in the class {bucket.storage_class} cannot be read at once, as pulls need it"


def _encryption(bucket: BucketSettings) -> Iterator[str]:
    kms = bucket.sse is not None and bucket.sse.startswith("aws:kms")
    if bucket.kms_key is not None and not kms:
        yield "kms_key: needs sse = aws:kms or aws:kms:dsse"
    if bucket.kms_bucket_key is not None and not kms:
        yield "kms_bucket_key: needs sse = aws:kms or aws:kms:dsse"
    if bucket.sse is not None and _given(bucket, "customer_key"):
        yield "customer_key: sse and customer_key exclude each other"


def _files(bucket: BucketSettings) -> Iterator[str]:
    if mistakes := unreadable({setting: getattr(bucket, setting) for setting in _FILES}):
        yield from mistakes
        return
    if bucket.ca_file is not None:
        try:
            ssl.create_default_context(cafile=bucket.ca_file)
        except (OSError, ssl.SSLError):
            yield f"ca_file: {bucket.ca_file} contains no certificate"
    if bucket.credentials_file is not None:
        try:
            content: Any = json.loads(bucket.credentials_file.read_bytes())
            kind = content.get("type") if isinstance(content, dict) else None
        except (OSError, ValueError):
            yield f"credentials_file: {bucket.credentials_file} is not JSON"
            return
        if kind not in _GOOGLE_TYPES:
            yield (
                f"credentials_file: {bucket.credentials_file} is of type {str(kind)[:40]!r}, "
                f"not {' or '.join(_GOOGLE_TYPES)}"
            )
