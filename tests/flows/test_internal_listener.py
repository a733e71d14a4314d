"""A replica as users run it: its workers share the internal listener, and what they have taken."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from mirror.peers.peer_signer import PeerSigner
from mirror.peers.secret_file import ClusterSecrets
from mirror.policy.cluster.peer_signatures import content_digest
from tests.support.certificates import Certificate
from tests.support.engines.ports import with_free_ports
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.peer_listener import SECRET, SENDER, request_bytes

_NOTICE: Final = "/peer/v1/notice"


@contextmanager
def _replica(folder: Path, certificate: Certificate | None = None) -> Iterator[tuple[MirrorProcess, int, PeerSigner]]:
    """A mirror of two workers, the port of its internal listener, and who signs in the name of another member. With a
    certificate, over TLS.
    """

    def start(ports: list[int]) -> tuple[MirrorProcess, int, PeerSigner]:
        return _started(folder, ports[0], certificate)

    mirror, port, signer = with_free_ports(1, start)
    with mirror:
        yield mirror, port, signer


def _started(folder: Path, port: int, certificate: Certificate | None) -> tuple[MirrorProcess, int, PeerSigner]:
    secret = folder / "cluster-secret"
    secret.write_text(SECRET)
    scheme = "http" if certificate is None else "https"
    own, sender = f"{scheme}://127.0.0.1:{port}", SENDER.replace("http", scheme)
    cluster = {"members": [own, sender], "address": own, "listen": f"127.0.0.1:{port}", "secret_file": str(secret)}
    if certificate is not None:
        pem = str(certificate.certificate)
        cluster |= {"tls_certificate": pem, "tls_key": str(certificate.key), "ca_file": pem}
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in cluster.items())
    config = write_config(folder, {"docker.io": "http://127.0.0.1:9"}, more=f"[cluster]\n{lines}")
    return MirrorProcess(config), port, PeerSigner("mirror", sender, ClusterSecrets(secret))


def _notice(signer: PeerSigner, port: int, scheme: str = "http") -> bytes:
    body = b'{"kinds": ["freezes"]}'
    headers = {"Content-Length": str(len(body)), "Mirror-Content-Digest": content_digest(body)}
    signed = signer.sign(f"{scheme}://127.0.0.1:{port}", "POST", _NOTICE, headers)
    return request_bytes("POST", _NOTICE, {**headers, "Authorization": signed.authorization}, body)


def _status(port: int, request: bytes) -> int:
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection, suppress(ConnectionError):
        connection.sendall(request)
        while piece := connection.recv(65536):
            answer += piece
    found = re.match(rb"HTTP/1.[01] (\d{3})", answer)
    assert found, answer
    return int(found[1])


def test_a_request_is_taken_once_by_all_workers_together(tmp_path: Path) -> None:
    """However many connections, workers and moments it comes by; also after a worker was replaced."""
    with _replica(tmp_path) as (mirror, port, signer), ThreadPoolExecutor(16) as clients:
        request = _notice(signer, port)
        statuses = list(clients.map(lambda _: _status(port, request), range(32)))
        assert sorted(statuses) == [204, *[401] * 31]
        [first, *_] = mirror.worker_pids()
        mirror.kill_worker(first)
        mirror.wait_for_workers(2)
        assert set(clients.map(lambda _: _status(port, request), range(16))) == {401}
        assert _status(port, _notice(signer, port)) == 204
        assert mirror.metrics()['mirror_peer_refused_total{reason="replay"}'] == 47


def test_without_a_certificate_of_the_cluster_nothing_is_said(tmp_path: Path) -> None:
    """The connection ends in the handshake, whatever the request, which is signed as it should be."""
    own = Certificate(tmp_path / "own", names="DNS:mirror")
    stranger = Certificate(tmp_path / "stranger", names="DNS:mirror")
    with _replica(tmp_path, own) as (_, port, signer):
        for shown in (None, stranger):
            context = own.client()
            if shown is not None:
                context.load_cert_chain(shown.certificate, shown.key)
            assert _over_tls(port, context, _notice(signer, port, "https")) == b""
        context = own.client()
        context.load_cert_chain(own.certificate, own.key)
        assert _over_tls(port, context, _notice(signer, port, "https")).startswith(b"HTTP/1.1 204")


def _over_tls(port: int, context: ssl.SSLContext, request: bytes) -> bytes:
    """The beginning of the answer; empty if the connection ends before it."""
    with (
        suppress(ssl.SSLError, ConnectionError),
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="mirror") as connection,
    ):
        connection.sendall(request)
        return connection.recv(65536)
    return b""


@pytest.mark.parametrize("path", ["/peer/v1/notice", "/peer/v1/blob/x", "/peer/v1/upload/v2/"])
def test_neither_listener_has_what_is_the_other_s(tmp_path: Path, path: str) -> None:
    with _replica(tmp_path) as (mirror, port, signer):
        # the public one, with a signature that is right
        signed = signer.sign(f"http://127.0.0.1:{port}", "GET", path, {})
        request = request_bytes("GET", path, {"Authorization": signed.authorization})
        assert _status(mirror.port, request) in (401, 404)
        for other in ("/v2/", "/metrics", "/readyz", "/token", "/admin/v1/status"):
            assert _status(port, request_bytes("GET", other, {})) == 401
