"""What the library for object stores is told: it accepts all that the settings can say. Nobody is asked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mirror.app.object_storage.cloud_options import client_options, cloud_of, is_plain, longest_signature, raw_requests
from mirror.config import BucketSettings
from mirror.values.bucket_address import parse_bucket
from tests.support.certificates import Certificate

_ROLE = {"role": "arn:aws:iam::123456789012:role/mirror", "web_identity_token_file": Path("/token")}
_KEYS = {"access_key": SecretStr("AKIA"), "secret_key": SecretStr("secret")}
_CUSTOMER = {"customer_key": SecretStr("A" * 43 + "=")}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without any credentials."""
    for name in os.environ:
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")):
            monkeypatch.delenv(name)
    return monkeypatch


def _settings(**settings: Any) -> BucketSettings:
    return BucketSettings.model_validate({}).model_copy(update=settings)


def _store(url: str, **settings: Any) -> Any:
    """Made as for use."""
    given = _settings(**settings)
    _, make, _ = cloud_of(given, parse_bucket(url))
    return make(client_options(given), {"max_retries": 0}, not given.sign_payload)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"region": "eu-central-1"}, {"region": "eu-central-1", "checksum_algorithm": "CRC64NVME"}),
        ({"endpoint": "https://ceph.example"}, {"region": "us-east-1", "endpoint": "https://ceph.example"}),
        (
            {"endpoint": "https://ceph.example:8443", "path_style": False},
            {"endpoint": "https://images.ceph.example:8443", "virtual_hosted_style_request": True},
        ),
        ({"region": "x", **_ROLE, "role_session": "me"}, {"role_arn": _ROLE["role"], "role_session_name": "me"}),
        ({"region": "x", "sse": "aws:kms", "kms_key": "k", "kms_bucket_key": True}, {"sse_kms_key_id": "k"}),
        ({"region": "x", "sse": "AES256"}, {"server_side_encryption": "AES256"}),
        ({"region": "x", **_CUSTOMER}, {"server_side_encryption": "sse-c"}),
        ({"region": "x", "anonymous": True, "requester_pays": True}, {"skip_signature": True}),
        ({"region": "x", "sign_payload": False, "bulk_delete": False}, {"unsigned_payload": True}),
        (
            {"region": "x", "metadata_url": "http://imds", "sts_url": "https://sts.x"},
            {"metadata_endpoint": "http://imds"},
        ),
    ],
)
def test_s3(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each setting has its option; none that is not set is given."""
    config = _store("s3://images/mirror", **settings).config
    found = {name.removeprefix("aws_"): value for name, value in config.items()}
    assert {name: str(found[name]).lower() for name in expected} == {
        name: str(value).lower() for name, value in expected.items()
    }
    assert "kms" in str(settings) or not [name for name in found if "kms" in name]


def test_keys_are_given_by_a_function(environment: pytest.MonkeyPatch) -> None:
    """So that the library adds no token from the environment to them, and shows them nowhere."""
    environment.setenv("AWS_SESSION_TOKEN", "of-somebody-else")
    store = _store("s3://images", region="x", **_KEYS)
    assert store.credential_provider()["token"] is None
    assert "secret" not in repr(store) + json.dumps({k: str(v) for k, v in store.config.items() if "token" not in k})


@pytest.mark.parametrize(
    "settings",
    [
        {"account_key": SecretStr("c2VjcmV0")},
        {"sas_token": SecretStr("sv=2020&sig=c2VjcmV0")},
        {"tenant_id": "t", "client_id": "c", "client_secret": SecretStr("s"), "authority": "https://login.example"},
        {"tenant_id": "t", "client_id": "c", "web_identity_token_file": Path("/token")},
        {"client_id": "c", "metadata_url": "http://imds"},
        {"anonymous": True},
        {},
        {"account_key": SecretStr("c2VjcmV0"), **_CUSTOMER},
    ],
)
def test_azure(settings: dict[str, Any]) -> None:
    """Each way to be known."""
    assert "images" in repr(_store("az://images/mirror", account="example", **settings))


@pytest.mark.parametrize("kind", ["authorized_user", None])
def test_google(tmp_path: Path, kind: str | None) -> None:
    """With a file of credentials, or without any."""
    file = tmp_path / "google.json"
    file.write_text(json.dumps({"type": kind, "client_id": "i", "client_secret": "s", "refresh_token": "r"}))
    settings = {"credentials_file": file} if kind else {"anonymous": True}
    assert "images" in repr(_store("gs://images/mirror", **settings))


def test_connections(tmp_path: Path) -> None:
    """An authority is added; without a proxy, those of the environment are not used."""
    certificate = Certificate(tmp_path / "tls").certificate
    options = client_options(_settings(ca_file=certificate))
    assert options["root_certificate"] == certificate.read_bytes()
    assert options["proxy_excludes"].endswith("*")
    assert "proxy_url" not in client_options(_settings(proxy=SecretStr("env")))
    assert client_options(_settings(proxy=SecretStr("http://p:1")))["proxy_url"] == "http://p:1"
    assert _store("s3://images", region="x", ca_file=certificate)


@pytest.mark.parametrize(
    ("settings", "environment_has", "url"),
    [
        ({"region": "eu-central-1"}, {}, "https://s3.eu-central-1.amazonaws.com/images"),
        ({"region": "cn-north-1"}, {}, "https://s3.cn-north-1.amazonaws.com.cn/images"),
        ({"region": "x", "path_style": False}, {}, "https://images.s3.x.amazonaws.com"),
        ({}, {"AWS_REGION": "y"}, "https://s3.y.amazonaws.com/images"),
        ({}, {"AWS_REGION": "y", "AWS_ENDPOINT_URL": "https://ceph.example/s3"}, "https://ceph.example/s3/images"),
        ({"endpoint": "http://weed:8333"}, {"AWS_ENDPOINT_URL": "https://other"}, "http://weed:8333/images"),
    ],
)
def test_where_our_own_requests_go(
    environment: pytest.MonkeyPatch, settings: dict[str, Any], environment_has: dict[str, str], url: str
) -> None:
    """To the same place as those of the library."""
    for name, value in environment_has.items():
        environment.setenv(name, value)
    assert repr(raw_requests(_settings(**settings), parse_bucket("s3://images/prefix"), None)) == f"<RawS3 {url}>"


def test_what_credentials_allow() -> None:
    """How long a URL may live, and whether objects may be read by requests of ours."""
    assert longest_signature(_settings(**_KEYS)) == 7 * 86400
    assert longest_signature(_settings(**_KEYS, session_token=SecretStr("t"))) == 300
    assert longest_signature(_settings(region="x")) == 300
    for cannot in ({"anonymous": True}, {**_KEYS, **_CUSTOMER}, {"sas_token": SecretStr("s")}):
        assert longest_signature(_settings(**cannot)) is None
    http = {"endpoint": "http://weed:8333"}
    assert is_plain(_settings(**http))
    for other in ({"endpoint": "https://weed"}, {**http, "proxy": SecretStr("env")}, {**http, **_CUSTOMER}, {}):
        assert not is_plain(_settings(**other))
