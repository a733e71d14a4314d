"""The admin API over the network: TLS, and administrators who show a certificate."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import bcrypt
import pytest

from mirror.config import load
from mirror.errors import ConfigError
from tests.support.certificates import Certificate
from tests.support.fake_registry import FakeRegistry
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, eventually


class _Guarded:
    """A mirror whose admin API is on all addresses; `ops` of `admins` may administer, and alice, by password."""

    def __init__(self, folder: Path, registry: FakeRegistry) -> None:
        self.folder = folder
        self.server = Certificate(folder / "server")
        self.ops = Certificate(folder / "ops", "/O=admins/CN=ops")
        self.node = Certificate(folder / "node", "/O=nodes/CN=node-7")
        self.stranger = Certificate(folder / "stranger", "/O=admins/CN=ops")
        authorities = folder / "clients.pem"
        authorities.write_bytes(self.ops.certificate.read_bytes() + self.node.certificate.read_bytes())
        (folder / "htpasswd").write_text(f"alice:{bcrypt.hashpw(b'alice-pw', bcrypt.gensalt(4)).decode()}\n")
        more = [
            '[admin]\nlisten = "0.0.0.0:0"',
            f'[access]\nclient_ca = "{authorities}"\nhtpasswd = "{folder}/htpasswd"\naudit_log = "{folder}/audit"',
            '[[access.rule]]\neffect = "allow"\ncallers = ["group:admins", "user:alice"]\nactions = ["admin"]',
        ]
        self.config = write_config(folder, {"docker.io": registry.url}, workers=1, more="\n".join(more))
        tls = f'[server]\ntls_certificate = "{self.server.certificate}"\ntls_key = "{self.server.key}"\n'
        self.config.write_text(self.config.read_text().replace("[server]\n", tls, 1))
        self.port = 0

    def ask(
        self, shown: Certificate | None, method: str = "GET", path: str = "/admin/v1/status", **headers: str
    ) -> tuple[int, str | None]:
        """Status, and the challenge of a 401."""
        context = ssl.create_default_context(cafile=str(self.server.certificate))
        if shown is not None:
            context.load_cert_chain(shown.certificate, shown.key)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(
            http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=PATIENCE)
        ) as connection:
            connection.request(method, path, headers=named)
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers["WWW-Authenticate"]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[_Guarded]:
    """Running."""
    with FakeRegistry() as registry:
        made = _Guarded(tmp_path, registry)
        with MirrorProcess(made.config) as mirror:

            def listening() -> str | None:
                said = [line["address"] for line in mirror.log if line.get("event") == "admin listening"]
                return next((one for one in said if not one.startswith("unix:")), None)

            made.port = int(eventually(listening, "the admin API listens").rpartition(":")[2])
            yield made


def test_administrators_by_certificate(guarded: _Guarded) -> None:
    """Whom a rule allows it by the certificate's organisation is in; another of the same authority is not, nor is who
    shows none; one that another authority has signed ends the handshake.
    """
    assert guarded.ask(guarded.ops) == (200, None)
    assert guarded.ask(guarded.ops, path="/") == (200, None)
    assert guarded.ask(guarded.node) == (403, None)
    status, challenge = guarded.ask(None)
    assert (status, (challenge or "").startswith("Basic ")) == (401, True)
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        guarded.ask(guarded.stranger)
    password = "Basic " + base64.b64encode(b"alice:alice-pw").decode()
    assert guarded.ask(None, Authorization=password) == (200, None)
    # what is said in words goes before what the connection shows
    wrong = "Basic " + base64.b64encode(b"alice:wrong").decode()
    assert guarded.ask(guarded.ops, Authorization=wrong)[0] == 401


def test_a_certificate_is_no_proof_of_intent(guarded: _Guarded) -> None:
    """A browser shows it for pages of any site: what changes something needs the header, and no other origin."""
    pin = ("PUT", "/admin/v1/pins/app:v1")
    assert guarded.ask(guarded.ops, *pin)[0] == 403
    assert guarded.ask(guarded.ops, *pin, Mirror_Admin="1", Origin="https://evil.example")[0] == 403
    assert guarded.ask(guarded.ops, *pin, Mirror_Admin="1")[0] == 200
    assert guarded.ask(guarded.node, *pin, Mirror_Admin="1")[0] == 403
    lines = [json.loads(line) for line in (guarded.folder / "audit").read_text().splitlines()]
    assert [(line["action"], line.get("caller"), line["status"], line["client"]) for line in lines] == [
        ("pin", "certificate:ops", 403, "127.0.0.1"),
        ("pin", None, 403, "127.0.0.1"),
        ("pin", "certificate:ops", 200, "127.0.0.1"),
        ("pin", "certificate:node-7", 403, "127.0.0.1"),
    ]


def test_nothing_but_tls(guarded: _Guarded) -> None:
    """Who speaks plain HTTP gets no answer, and who speaks TLS 1.1 no connection."""
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=PATIENCE) as plain:
        plain.sendall(b"GET /admin/v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        try:
            said = plain.recv(1 << 16)
        except ConnectionError:
            said = b""
    assert not said.startswith(b"HTTP/")
    old = ssl.create_default_context(cafile=str(guarded.server.certificate))
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", guarded.port), timeout=PATIENCE) as raw,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        old.wrap_socket(raw, server_hostname="127.0.0.1")


def test_certificates_without_tls(guarded: _Guarded) -> None:
    """Client certificates on listeners that speak no TLS are a mistake that is named."""
    text = "\n".join(line for line in guarded.config.read_text().splitlines() if not line.startswith("tls_"))
    guarded.config.write_text(text)
    with pytest.raises(ConfigError, match="client_ca"):
        load(guarded.config)
