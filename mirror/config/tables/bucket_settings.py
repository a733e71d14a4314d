"""Settings of the bucket: how it is reached, with which credentials, and how objects are written to it."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, SecretStr

from mirror.config import values
from mirror.config.section import Section
from mirror.config.values import Listed, Seconds, Size


def _customer_key(secret: SecretStr) -> SecretStr:
    check_customer_key(secret.get_secret_value())
    return secret


def _proxy(secret: SecretStr) -> SecretStr:
    check_proxy(secret.get_secret_value())
    return secret


def check_proxy(text: str) -> None:
    """Raises `ValueError` if this is no URL of a proxy, and not `env`. The message does not quote it."""
    values.proxy(text)
    if text != "env" and "://" not in text:
        raise ValueError("proxy is neither http://host:port nor env")


def check_customer_key(text: str) -> None:
    """Raises `ValueError` if this is no key of 256 bits in base64. The message does not quote it."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    # the other spelling of the last bits is refused by the stores
    if len(key) != 32 or base64.b64encode(key).decode() != text:
        raise ValueError("not 32 bytes in base64 (openssl rand -base64 32)")


class BucketSettings(Section):
    """`[bucket]`: how the bucket of `store.bucket` is reached. What is not set is found as the clouds' own tools do."""

    # ----------------------------------------------------------------------------------------------- where it is
    endpoint: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="URL of the object store, if it is not the cloud itself: https://ceph.example.com."
    )
    allow_http: bool = Field(
        False, description="The endpoint may be http://: contents, though not the secret key, can be read on the way."
    )
    region: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9-]{1,64}$",
        description="s3: the region; needed at AWS, unless AWS_REGION is set. Other stores: us-east-1 if not set.",
    )
    path_style: bool = Field(
        True, description="s3: the bucket's name is in the path of URLs; false: in their host name."
    )
    account: str | None = Field(None, pattern=r"^[a-z0-9]{3,24}$", description="az: the storage account; must be set.")

    # ------------------------------------------------------------------------------------------------ credentials
    anonymous: bool = Field(False, description="Send no credentials at all.")
    access_key: SecretStr | None = Field(
        None,
        description=(
            "s3: the access key. With no credentials here: AWS_* variables, web identity (IRSA), pod identity, "
            "the role of the ECS task or of the machine, in this order."
        ),
    )
    access_key_file: Path | None = Field(None, description="File that contains the access key.")
    secret_key: SecretStr | None = Field(None, description="s3: the secret key that belongs to the access key.")
    secret_key_file: Path | None = Field(
        None, description="File that contains the secret key; such files are read again when they change."
    )
    session_token: SecretStr | None = Field(None, description="s3: the token of temporary keys.")
    session_token_file: Path | None = Field(None, description="File that contains the token.")
    role: str | None = Field(
        None,
        pattern=r"^arn:[A-Za-z0-9-]+:iam::[0-9]{12}:role/\S+$",
        description="s3: ARN of a role to assume with the web identity of web_identity_token_file.",
    )
    role_session: str | None = Field(
        None, pattern=r"^[\w+=,.@-]{2,64}$", description="s3: the name of that session, as it appears in CloudTrail."
    )
    sts_url: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="s3: another address of STS, where the role is assumed."
    )
    web_identity_token_file: Path | None = Field(
        None, description="s3, az: file with the token of a workload identity, such as a Kubernetes service account's."
    )
    credentials_file: Path | None = Field(
        None,
        description=(
            "gs: key of a service account, or application default credentials. Not set: "
            "GOOGLE_APPLICATION_CREDENTIALS, or the metadata server (workload identity of GKE)."
        ),
    )
    account_key: SecretStr | None = Field(
        None,
        description=(
            "az: a key of the account. With no credentials here: AZURE_* variables, workload identity, or the managed "
            "identity of the machine."
        ),
    )
    account_key_file: Path | None = Field(None, description="File that contains the key of the account.")
    sas_token: SecretStr | None = Field(None, description="az: a shared access signature, as the portal shows it.")
    sas_token_file: Path | None = Field(None, description="File that contains the shared access signature.")
    tenant_id: str | None = Field(None, description="az: the tenant of a service principal or workload identity.")
    client_id: str | None = Field(
        None, description="az: the service principal or workload identity, or one of several managed identities."
    )
    client_secret: SecretStr | None = Field(None, description="az: the secret of a service principal.")
    client_secret_file: Path | None = Field(None, description="File that contains the client secret.")
    authority: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="az: where tokens are issued, for national clouds: https://login.microsoftonline.us."
    )
    metadata_url: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="s3, az: another address of the machine's metadata service."
    )

    # ------------------------------------------------------------------------------------------ how it is written
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = Field(
        None, description="s3: how objects are encrypted in the store; not set: as the bucket's own rule says."
    )
    kms_key: str | None = Field(
        None, min_length=1, description="s3: ID or ARN of the key, for sse = aws:kms; not set: the account's default."
    )
    kms_bucket_key: bool | None = Field(
        None, description="s3: one data key for the whole bucket, for sse = aws:kms; not set: as the bucket says."
    )
    customer_key: Annotated[SecretStr, AfterValidator(_customer_key)] | None = Field(
        None, description="s3, az: your own key for each object, 32 bytes in base64; nothing is readable without it."
    )
    customer_key_file: Path | None = Field(None, description="File that contains that key.")
    storage_class: str | None = Field(
        None,
        pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$",
        description="The class of hosted and cached bytes: INTELLIGENT_TIERING, STANDARD, Cool; not set: the bucket's.",
    )
    requester_pays: bool = Field(False, description="s3: the mirror pays for requests to somebody else's bucket.")
    checksum: Literal["CRC64NVME", "SHA256", "none"] = Field(
        "CRC64NVME", description="s3: the checksum that the store must check when it takes an object."
    )
    sign_payload: bool = Field(
        True,
        description=(
            "s3: sign what is uploaded as well. false: only over TLS, and only if the store was seen to refuse a "
            "wrong checksum; takes half of the CPU time."
        ),
    )
    bulk_delete: bool = Field(True, description="s3: delete up to 1000 objects with one request; false: one by one.")

    # --------------------------------------------------------------------------- clients that read it themselves
    redirect_to: Listed[Annotated[str, AfterValidator(values.network)]] = Field(
        [],
        description="Addresses and networks of clients that are sent to the bucket for blobs (307); none: nobody is.",
    )
    redirect_from: Size = Field("1MB", description="Smaller blobs are always sent by the mirror.")
    redirect_for: Seconds = Field(
        300.0,
        ge=10,
        le=7 * 86400,
        description="How long the URL is valid, and a right that was taken away still counts; never longer than the "
        "credentials that sign it.",
    )
    redirect_endpoint: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="URL by which clients reach the object store, if it is not endpoint."
    )

    # ----------------------------------------------------------------------------------------------- the connection
    ca_file: Path | None = Field(
        None, description="PEM file of certificate authorities to trust in addition to the system's."
    )
    proxy: Annotated[SecretStr, AfterValidator(_proxy)] | None = Field(
        None, description="http://host:port of a proxy; env: use HTTPS_PROXY, HTTP_PROXY and NO_PROXY."
    )
    proxy_file: Path | None = Field(
        None, description="File that contains the URL of the proxy, with user and password."
    )
    connect_timeout: Seconds = Field(
        3.0, gt=0, le=60, description="Time limit for opening a connection, including TLS."
    )
    read_timeout: Seconds = Field(
        20.0, ge=1, le=600, description="A transfer in which no byte moves for this long is broken off, and goes on."
    )
    timeout: Seconds = Field(
        15.0, ge=1, le=600, description="Time limit for a request without much content, with its repetitions."
    )
    retries: int = Field(
        4, ge=0, le=20, description="How often a request that fails, and may succeed later, is repeated."
    )
    requests_per_second: float = Field(
        0, ge=0, description="Limit for the requests of all workers together; 0: none. Beyond it, they wait."
    )

    def secret(self, name: str) -> str | None:
        """The secret of this name (`SECRETS`), for those who need it; None if it is not set."""
        secret: SecretStr | None = getattr(self, name)
        return secret.get_secret_value() if secret is not None else None


#: Settings that are for some clouds only.
ONLY_FOR: Final = {
    **dict.fromkeys(
        (
            "region",
            "path_style",
            "access_key",
            "access_key_file",
            "secret_key",
            "secret_key_file",
            "session_token",
            "session_token_file",
            "role",
            "role_session",
            "sts_url",
            "sse",
            "kms_key",
            "kms_bucket_key",
            "requester_pays",
            "checksum",
            "sign_payload",
            "bulk_delete",
        ),
        ("s3",),
    ),
    **dict.fromkeys(
        (
            "account",
            "account_key",
            "account_key_file",
            "sas_token",
            "sas_token_file",
            "tenant_id",
            "client_id",
            "client_secret",
            "client_secret_file",
            "authority",
        ),
        ("az",),
    ),
    **dict.fromkeys(("web_identity_token_file", "metadata_url", "customer_key", "customer_key_file"), ("s3", "az")),
    "credentials_file": ("gs",),
}

#: Secrets, each of which may be in a file, `<name>_file`.
SECRETS: Final = (
    "access_key",
    "secret_key",
    "session_token",
    "account_key",
    "sas_token",
    "client_secret",
    "customer_key",
    "proxy",
)
