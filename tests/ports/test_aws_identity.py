"""The keys of a machine, a task or a pod at AWS, as its services give them out."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from mirror.store.cloud.aws_identity import AwsIdentity, WebIdentity, sts_url
from mirror.store.cloud.key_files import S3Keys

_END = 2_000_000_000.0
_MOMENT = datetime.fromtimestamp(_END, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Handler(BaseHTTPRequestHandler):
    """Each service checks what it is sent, as those of AWS do."""

    server: _Services

    def do_PUT(self) -> None:
        self._answer(b"imds-token" if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None)

    def do_GET(self) -> None:
        keys = {"AccessKeyId": "AKIA", "SecretAccessKey": "secret", "Token": "token", "Expiration": _MOMENT}
        of_machine = self.headers["X-aws-ec2-metadata-token"] == "imds-token"
        if self.path == "/latest/meta-data/iam/security-credentials/" and of_machine:
            self._answer(b"the role\n")
        elif self.path == "/latest/meta-data/iam/security-credentials/the%20role" and of_machine:
            self._answer(json.dumps(keys).encode())
        elif self.path == "/pod" and self.headers["Authorization"] == "pod-token":
            self._answer(json.dumps({**keys, "AccessKeyId": "POD"}).encode())
        else:
            self._answer(None)

    def do_POST(self) -> None:
        fields = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        good = fields["WebIdentityToken"] == ["web&token"] and fields["RoleArn"] == ["arn:role"]
        self._answer(
            f"<R><Credentials><AccessKeyId>WEB</AccessKeyId><SecretAccessKey>a&amp;b</SecretAccessKey>"
            f"<SessionToken>s</SessionToken><Expiration>{_MOMENT}</Expiration></Credentials></R>".encode()
            if good
            else None
        )

    def _answer(self, content: bytes | None) -> None:
        self.server.asked += 1
        self.send_response(403 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


class _Services(ThreadingHTTPServer):
    asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def services() -> Iterator[_Services]:
    """Those of AWS, on the loopback address."""
    with _Services(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _ask(request: urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request, timeout=20) as answer:
        content: bytes = answer.read()
    return content


def test_the_order_of_places(services: _Services, tmp_path: Path) -> None:
    """Variables, then web identity, then pod identity, then the machine."""
    (tmp_path / "web").write_text("web&token\n")
    (tmp_path / "pod").write_text("pod-token\n")
    environment = {
        "AWS_ACCESS_KEY_ID": "ENV",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ROLE_ARN": "arn:role",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "web"),
        "AWS_ENDPOINT_URL_STS": services.url,
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{services.url}/pod",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "pod"),
        "AWS_METADATA_ENDPOINT": services.url,
    }
    found = []
    for gone in ("", "AWS_ACCESS_KEY_ID", "AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        environment.pop(gone, None)
        found.append(AwsIdentity(environment, "eu-central-1", _ask).keys())
    assert found == [
        S3Keys("ENV", "secret"),
        S3Keys("WEB", "a&b", "s"),
        S3Keys("POD", "secret", "token"),
        S3Keys("AKIA", "secret", "token"),
    ]


def test_a_configured_role_comes_before_that_of_the_environment(services: _Services, tmp_path: Path) -> None:
    """As the settings say it."""
    (tmp_path / "web").write_text("web&token")
    identity = WebIdentity("arn:role", tmp_path / "web", "mirror", services.url)
    environment = {"AWS_ROLE_ARN": "arn:other", "AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere"}
    keys = AwsIdentity(environment, "x", _ask, web_identity=identity).keys()
    assert keys == S3Keys("WEB", "a&b", "s")
    assert sts_url("eu-central-1") == "https://sts.eu-central-1.amazonaws.com"
    assert sts_url("cn-north-1") == "https://sts.cn-north-1.amazonaws.com.cn"


def test_keys_are_asked_for_again_before_they_end(services: _Services) -> None:
    """Until then nobody is asked."""
    time = [_END - 1000]
    identity = AwsIdentity({}, "x", _ask, metadata_url=services.url, now=lambda: time[0])
    for moment, asked in ((_END - 1000, 3), (_END - 301, 3), (_END - 299, 6)):
        time[0] = moment
        assert identity.keys() == S3Keys("AKIA", "secret", "token")
        assert services.asked == asked
    assert "secret" not in repr(identity)


def test_without_an_identity_there_are_no_keys(services: _Services, tmp_path: Path) -> None:
    """A refusal is no error, and is not asked for again at once."""
    time = [1000.0]
    environment = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{services.url}/pod"}
    identity = AwsIdentity(environment, "x", _ask, now=lambda: time[0])
    for moment, asked in ((1000.0, 1), (1059.0, 1), (1060.0, 2)):
        time[0] = moment
        assert identity.keys() is None
        assert services.asked == asked
    missing = {"AWS_ROLE_ARN": "r", "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "missing")}
    assert AwsIdentity(missing, "x", _ask).keys() is None
