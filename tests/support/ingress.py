"""nginx before several mirrors, as an ingress: TLS, and each request at the next of them.

with tls_ingress(tmp_path, [5001, 5002]) as front:
    ... push to front.address, by a client that trusts front.certificate ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.certificates import Certificate
from tests.support.engines.ports import free_ports
from tests.support.nginx import in_http, nginx

#: As docs/hosted.md says under "Behind an ingress". A mirror that does not answer is tried at each request, so that no
#: test waits for a pause.
_SERVER: Final = """
upstream mirrors {{ {servers} }}
server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certificate}; ssl_certificate_key {key};
    client_max_body_size 0;
    location / {{
        proxy_pass http://mirrors;
        proxy_http_version 1.1;
        proxy_request_buffering off; proxy_buffering off;
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_connect_timeout 2s; proxy_read_timeout 300s; proxy_send_timeout 300s;
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Ingress:
    """`address` is `127.0.0.1:port`, to be reached by https; `certificate` is the one that it shows."""

    address: str
    certificate: Certificate

    def trusted_by_clients(self, folder: Path) -> Path:
        """A folder of certificates, as `--cert-dir` of podman and skopeo wants it."""
        place = folder / "trusted"
        place.mkdir(exist_ok=True)
        (place / "ca.crt").write_bytes(self.certificate.certificate.read_bytes())
        return place


@contextmanager
def tls_ingress(folder: Path, ports: Sequence[int]) -> Iterator[Ingress]:
    """Before the mirrors at these ports of the loopback address."""
    certificate = Certificate(folder / "ingress")
    [port] = free_ports(1)
    servers = " ".join(f"server 127.0.0.1:{one} max_fails=0;" for one in ports)

    def configure(directory: Path) -> str:
        text = _SERVER.format(servers=servers, port=port, certificate=certificate.certificate, key=certificate.key)
        return in_http(directory, text)

    with nginx(configure):
        yield Ingress(f"127.0.0.1:{port}", certificate)
