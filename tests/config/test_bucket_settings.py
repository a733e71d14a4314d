"""`store.bucket` and `[bucket]`: what is accepted, what is a mistake, and what is shown of it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from mirror.config import Config, hints, load, redacted_settings
from mirror.errors import ConfigError
from mirror.values.bucket_address import BucketAddress, parse_bucket
from tests.support.certificates import Certificate

_ROOT = Path(__file__).resolve().parents[2]
_S3 = "s3://images/mirror"
_AZ = "az://images"
_GS = "gs://images"
_KEY = "A" * 43 + "="


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Free of settings, and of a region."""
    for name in os.environ:
        if name.upper().startswith(("MIRROR__", "AWS_")):
            monkeypatch.delenv(name)
    return monkeypatch


def _load(folder: Path, bucket: str | None, store: dict[str, object] | None = None, **settings: object) -> Config:
    """The configuration with this bucket, and these settings of it."""
    named = {"bucket": bucket} if bucket else {}
    tables = {"store": {"root": str(folder / "store"), **named, **(store or {})}, "bucket": settings}
    lines = [
        f"[{table}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in content.items())
        for table, content in tables.items()
    ]
    file = folder / "mirror.toml"
    file.write_text("\n".join(lines))
    return load(file)


def _mistakes(
    folder: Path, bucket: str | None, store: dict[str, object] | None = None, **settings: object
) -> list[str]:
    try:
        _load(folder, bucket, store, **settings)
    except ConfigError as error:
        return list(error.mistakes)
    return []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://images", BucketAddress("s3", "images")),
        ("s3://images/", BucketAddress("s3", "images")),
        ("s3://my.images_1/a/b-c/", BucketAddress("s3", "my.images_1", "a/b-c")),
        ("gs://images/mirror", BucketAddress("gs", "images", "mirror")),
        ("az://images/mirror", BucketAddress("az", "images", "mirror")),
    ],
)
def test_addresses(text: str, expected: BucketAddress) -> None:
    """Parsed, and written again without a slash at the end."""
    assert parse_bucket(text) == expected
    assert parse_bucket(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "images",
        "S3://images",
        "https://images.s3.amazonaws.com",
        "s3://",
        "s3:///prefix",
        "s3://user:secret@images",
        "s3://images:9000/prefix",
        "s3://images//prefix",
        "s3://images/a//b",
        "s3://images/../b",
        "s3://images/a b",
        "s3://images/é",
        "s3://images/a?b",
        "s3://images/" + "a" * 201,
        "gs://Images",
        "az://my_images",
        "az://a--b",
    ],
)
def test_what_is_no_address(tmp_path: Path, text: str) -> None:
    """The message says what an address looks like."""
    with pytest.raises(ValueError, match=r"no bucket|name of a bucket|be a prefix"):
        parse_bucket(text)
    [mistake] = _mistakes(tmp_path, None, {"bucket": text})
    assert mistake.startswith("store.bucket: ")


@pytest.mark.parametrize(
    ("bucket", "settings", "expected"),
    [
        (None, {"region": "eu-central-1"}, "bucket.region: there is no bucket: set store.bucket"),
        (_GS, {"region": "eu-central-1"}, "bucket.region: is for buckets of s3:// only, and the bucket is gs://images"),
        (_AZ, {"account": "acc", "path_style": True}, "bucket.path_style: is for buckets of s3:// only"),
        (_S3, {"region": "x", "account": "acc"}, "bucket.account: is for buckets of az:// only"),
        (_GS, {"customer_key": _KEY}, "bucket.customer_key: is for buckets of s3:// and az:// only"),
        (_S3, {"region": "x", "credentials_file": "/x"}, "bucket.credentials_file: is for buckets of gs:// only"),
        (_S3, {}, "bucket.region: must be set"),
        (_S3, {"region": "eu central", "endpoint": "https://c"}, "bucket.region: "),
        (_S3, {"region": "x", "redirect_to": ["10.0.0.1/8"]}, "bucket.redirect_to[1]: "),
        (_S3, {"region": "x", "redirect_to": "10.0.0.0/8", "redirect_for": "8d"}, "bucket.redirect_for: "),
        (_S3, {"region": "x", "redirect_to": ["10.0.0.0/8"], "anonymous": True}, "bucket.redirect_to: not possible"),
        (_S3, {"region": "x", "redirect_to": ["::1"], "customer_key": _KEY}, "bucket.redirect_to: not possible"),
        (_S3, {"region": "x", "redirect_to": ["::1"], "requester_pays": True}, "bucket.redirect_to: not possible"),
        (
            _AZ,
            {"account": "acc", "redirect_to": ["::1"], "sas_token": "sv=1&sig=x"},
            "bucket.redirect_to: not possible",
        ),
        (_S3, {"region": "x", "access_key": "a"}, "bucket.secret_key: must be set"),
        (_S3, {"region": "x", "secret_key": "a"}, "bucket.access_key: must be set"),
        (_S3, {"region": "x", "session_token": "a"}, "bucket.session_token: belongs to"),
        (_S3, {"region": "x", "role": "arn:aws:iam::123456789012:role/m"}, "bucket.role: role and web_identity_token"),
        (_S3, {"region": "x", "role": "mirror"}, "bucket.role: "),
        (_S3, {"region": "x", "role_session": "mirror"}, "bucket.role_session: belongs to role"),
        (
            _S3,
            {"region": "x", "anonymous": True, "access_key": "a", "secret_key": "b"},
            "bucket.anonymous: anonymous and",
        ),
        (_S3, {"endpoint": "http://ceph.example"}, "bucket.endpoint: http:// is not encrypted"),
        (_S3, {"region": "x", "endpoint": "ceph.example"}, "bucket.endpoint: not an http or https URL"),
        (_S3, {"region": "x", "endpoint": "https://me:secret@ceph.example"}, "bucket.endpoint: contains a user"),
        (
            _S3,
            {"endpoint": "http://c", "allow_http": True, "sign_payload": False},
            "bucket.sign_payload: must be true over",
        ),
        (_S3, {"endpoint": "http://c", "allow_http": True, "customer_key": _KEY}, "bucket.customer_key: would be sent"),
        (_S3, {"region": "x", "checksum": "none", "sign_payload": False}, "bucket.sign_payload: must be true without"),
        (_S3, {"region": "x", "checksum": "MD5"}, "bucket.checksum: "),
        (_S3, {"region": "x", "kms_key": "k"}, "bucket.kms_key: needs sse"),
        (_S3, {"region": "x", "sse": "AES256", "kms_bucket_key": True}, "bucket.kms_bucket_key: needs sse"),
        (_S3, {"region": "x", "sse": "rot13"}, "bucket.sse: "),
        (_S3, {"region": "x", "sse": "AES256", "customer_key": _KEY}, "bucket.customer_key: sse and customer_key"),
        (_S3, {"region": "x", "customer_key": "short"}, "bucket.customer_key: not 32 bytes"),
        ("s3://my.images", {"region": "x", "path_style": False}, "bucket.path_style: must be true"),
        (_AZ, {}, "bucket.account: must be set"),
        (_AZ, {"account": "acc", "client_secret": "s"}, "bucket.client_secret: needs tenant_id and client_id"),
        (
            _AZ,
            {"account": "acc", "account_key": "a", "sas_token": "b"},
            "bucket.account_key: account_key and sas_token",
        ),
        (_S3, {"region": "x", "ca_file": "/nowhere"}, "bucket.ca_file: /nowhere cannot be read"),
        (_S3, {"region": "x", "proxy": "socks5://proxy"}, "bucket.proxy: proxy is neither"),
        (_S3, {"region": "x", "timeout": "0s"}, "bucket.timeout: "),
        (_S3, {"region": "x", "requests_per_second": -1}, "bucket.requests_per_second: "),
        (_S3, {"region": "x", "storage_class": "very cold"}, "bucket.storage_class: "),
        (
            _S3,
            {"region": "x", "storage_class": "GLACIER"},
            "bucket.storage_class: what is in the class GLACIER",
        ),
        (_S3, {"region": "x", "storage_class": "DEEP_ARCHIVE"}, "bucket.storage_class: what is in the class"),
        (_AZ, {"account": "acc", "storage_class": "Archive"}, "bucket.storage_class: what is in the class Archive"),
        (_S3, {"region": "x", "redirect_from": "2MB"}, "bucket.redirect_from: needs redirect_to"),
        (_S3, {"region": "x", "redirect_endpoint": "https://c"}, "bucket.redirect_endpoint: needs redirect_to"),
        (
            _S3,
            {"region": "x", "proxy": "proxy.example:3128"},
            "bucket.proxy: proxy is neither http://host:port nor env",
        ),
        (
            _S3,
            {"region": "x", "secret_key": "s", "secret_key_file": "/x", "access_key": "a"},
            "bucket.secret_key: secret_key and",
        ),
        (
            _S3,
            {"region": "x", "secret_key_file": "/nowhere", "access_key": "a"},
            "bucket.secret_key_file: /nowhere: No such",
        ),
    ],
)
def test_mistakes(tmp_path: Path, bucket: str | None, settings: dict[str, object], expected: str) -> None:
    """One line, which names the setting; no line shows a secret."""
    mistakes = _mistakes(tmp_path, bucket, None, **settings)
    assert len(mistakes) == 1, mistakes
    assert mistakes[0].startswith(expected), mistakes
    assert "me:secret" not in mistakes[0]


@pytest.mark.parametrize(
    ("bucket", "store", "expected"),
    [
        (None, {"cache_in_bucket": True}, "store.cache_in_bucket: needs store.bucket"),
        (None, {"bucket_capacity": "1TB"}, "store.bucket_capacity: needs store.bucket"),
        (_GS, {"bucket_capacity": "1TB"}, "store.bucket_capacity: is about cached content"),
        (_GS, {"cache_in_bucket": True, "bucket_capacity": "80%"}, "store.bucket_capacity: "),
        (_GS, {"cache_in_bucket": True, "bucket_capacity": "0"}, "store.bucket_capacity: "),
    ],
)
def test_mistakes_in_the_store(tmp_path: Path, bucket: str | None, store: dict[str, object], expected: str) -> None:
    """What is about a bucket needs one."""
    [mistake] = _mistakes(tmp_path, bucket, store)
    assert mistake.startswith(expected)


def test_files(tmp_path: Path) -> None:
    """Secrets are read from their files; what is in other files is looked at."""
    for name, content in (
        ("access", "AKIA\n"),
        ("secret", "s3cret\n"),
        ("customer", "short"),
        ("proxy", "nonsense://"),
    ):
        (tmp_path / name).write_text(content)
    config = _load(
        tmp_path,
        _S3,
        region="eu-central-1",
        access_key_file=str(tmp_path / "access"),
        secret_key_file=str(tmp_path / "secret"),
    )
    assert config.bucket.access_key is not None
    assert config.bucket.access_key.get_secret_value() == "AKIA"
    assert config.bucket.secret_key is not None
    assert config.bucket.secret_key.get_secret_value() == "s3cret"
    shown = json.dumps(redacted_settings(config))
    assert "s3cret" not in shown
    assert "AKIA" not in shown
    mistakes = _mistakes(
        tmp_path,
        _S3,
        region="x",
        customer_key_file=str(tmp_path / "customer"),
        proxy_file=str(tmp_path / "proxy"),
        ca_file=str(tmp_path / "access"),
    )
    assert [mistake.partition(": ")[0] for mistake in mistakes] == [
        "bucket.customer_key_file",
        "bucket.proxy_file",
        "bucket.ca_file",
    ]
    google = tmp_path / "google.json"
    for content, expected in (("{}", "is of type 'None'"), ("no", "is not JSON"), ('{"type": "x"}', "is of type 'x'")):
        google.write_text(content)
        [mistake] = _mistakes(tmp_path, _GS, credentials_file=str(google))
        assert mistake.startswith(f"bucket.credentials_file: {google} {expected}")
    google.write_text('{"type": "service_account"}')
    assert _mistakes(tmp_path, _GS, credentials_file=str(google)) == []


def test_a_region_of_the_environment(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    """As in pods and tasks of AWS; settings come from the environment, too."""
    environment.setenv("AWS_REGION", "eu-central-1")
    environment.setenv("MIRROR__BUCKET__RETRIES", "7")
    environment.setenv("MIRROR__BUCKET__SECRET_KEY", "from-env")
    environment.setenv("MIRROR__BUCKET__ACCESS_KEY", "AKIA")
    config = _load(tmp_path, _S3)
    assert config.bucket.retries == 7
    assert config.bucket.secret_key is not None
    assert config.bucket.secret_key.get_secret_value() == "from-env"
    assert "from-env" not in repr(config)


def test_hints(tmp_path: Path) -> None:
    """What is allowed, and hardly meant."""
    config = _load(
        tmp_path,
        _S3,
        {"cache_in_bucket": True},
        endpoint="http://127.0.0.1:9000",
        allow_http=True,
        checksum="none",
        ca_file=str(Certificate(tmp_path / "tls").certificate),
    )
    assert [hint.partition(": ")[0] for hint in hints(config) if "bucket" in hint] == [
        "store.bucket_capacity",
        "bucket.checksum",
        "bucket.endpoint",
    ]


@pytest.mark.parametrize(
    ("bucket", "left_out"),
    [
        (
            _S3,
            r"account\w*|sas_\w+|tenant_id|client_\w+|authority|credentials_file|role\w*|sts_url|web_\w+|sse|kms_\w+"
            r"|redirect_\w+",
        ),
        (
            _S3,
            r"account\w*|sas_\w+|tenant_id|client_\w+|authority|credentials_file|access_\w+|secret_\w+|session_\w+"
            r"|customer_\w+",
        ),
        (
            _AZ,
            r"region|path_style|access_\w+|secret_\w+|session_\w+|role\w*|sts_url|sse|kms_\w+|requester_pays|checksum"
            r"|sign_payload|bulk_delete|credentials_file|sas_\w+|client_secret\w*|web_\w+|redirect_\w+",
        ),
    ],
    ids=["s3 with keys", "s3 with a role", "azure"],
)
def test_the_examples_are_good(tmp_path: Path, bucket: str, left_out: str) -> None:
    """Those that belong together, with the secrets in place and no files."""
    text = (_ROOT / "config/mirror.toml").read_text()
    [part] = [one for one in text.split("\n\n") if re.search(r"^#\[bucket\]", one, re.MULTILINE)]
    token = tmp_path / "token"
    token.write_text("token")
    lines = [
        line.removeprefix("#")
        for line in part.splitlines()
        if (found := re.match(r"#(\w+) = ", line)) and not re.fullmatch(rf"(?!web_)\w+_file|{left_out}", found[1])
    ]
    settings = re.sub(r'(customer_key) = ".*"', rf'\1 = "{_KEY}"', "\n".join(lines))
    settings = settings.replace("redirect_to = []", 'redirect_to = ["10.0.0.0/8"]')
    settings = re.sub(r'(web_identity_token_file) = ".*"', rf'\1 = "{token}"', settings)
    file = tmp_path / "mirror.toml"
    file.write_text(f'[store]\nbucket = "{bucket}"\n[bucket]\n{settings}\n')
    assert len(load(file).bucket.model_fields_set) > 10


def test_settings_that_seem_to_be_missing_because_they_are_wrong(tmp_path: Path) -> None:
    """Only what is wrong is reported, not each setting that needs it."""
    [mistake] = _mistakes(tmp_path, "s4://images", {"cache_in_bucket": True}, region="x", access_key="a")
    assert mistake.startswith("store.bucket: 's4://images' is no bucket")
    [mistake] = _mistakes(tmp_path, _S3, endpoint="store.example", access_key="a", secret_key="b")
    assert mistake.startswith("bucket.endpoint: not an http")
