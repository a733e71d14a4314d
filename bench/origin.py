"""The upstream: files served by nginx, as fast as they go or at a limited rate, every answer written to a log.

Files are the fastest registry there is, so that the systems measured are the narrow place and not their upstream.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.content import MANIFEST_TYPE, Image
from bench.process import Server, free_port, program, wait_listening


@dataclass(frozen=True, slots=True)
class Sent:
    """GET requests that upstream answered, and the bytes of their bodies."""

    requests: int
    size: int


def nginx_head(directory: Path, workers: int) -> str:
    """What every nginx here has in common: nothing outside its own directory."""
    user = "user root root;" if os.geteuid() == 0 else ""
    temporary = " ".join(f"{kind}_temp_path {directory}/tmp-{kind};" for kind in ("fastcgi", "uwsgi", "scgi"))
    return f"""{user} daemon off; worker_processes {workers}; worker_rlimit_nofile 16384;
pid {directory}/nginx.pid; error_log {directory}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  sendfile on; tcp_nopush on; keepalive_requests 100000000; {temporary}
  client_body_temp_path {directory}/tmp-body; proxy_temp_path {directory}/tmp-proxy;"""


class Origin:
    """A registry of `files`; `fast` and `slow` are its addresses; `rate` is bytes a second of a slow connection.

    `serving` is what its servers have besides, and `listening` what stands behind their addresses: for TLS.
    """

    def __init__(
        self,
        directory: Path,
        files: Path,
        images: Sequence[Image],
        rate: int,
        *,
        scheme: str = "http",
        serving: str = "",
        listening: str = "",
    ) -> None:
        directory.mkdir()
        self.files = files
        self._log = directory / "access.log"
        self._log.touch()
        ports = free_port(), free_port()
        self.fast, self.slow = (f"{scheme}://127.0.0.1:{port}" for port in ports)
        digests = "\n".join(
            f'"{image.manifest_path(reference)}" {image.manifest};'
            for image in images
            for reference in ("latest", image.manifest)
        )
        servers = "\n".join(
            f"""server {{
  listen 127.0.0.1:{port} {listening} backlog=4096; {serving} root {files}; {limit}
  location = /v2/ {{ default_type application/json; add_header Docker-Distribution-Api-Version registry/2.0;
    return 200 "{{}}"; }}
  location /v2/ {{ default_type application/octet-stream; }}
  location ~ /manifests/ {{ default_type {MANIFEST_TYPE}; add_header Docker-Content-Digest $content_digest; }}
}}"""
            for port, limit in zip(ports, ("", f"limit_rate {rate};"), strict=True)
        )
        config = directory / "nginx.conf"
        config.write_text(f"""{nginx_head(directory, 2)}
map_hash_bucket_size 512;
map $uri $content_digest {{ default ""; {digests} }}
log_format sent "$request_method $body_bytes_sent $uri";
access_log {self._log} sent;
{servers}
}}
""")
        self._server = Server(
            [program("nginx"), "-c", str(config), "-e", str(directory / "error.log")], log=directory / "output"
        )
        for port in ports:
            wait_listening(self._server, port)

    def mark(self) -> int:
        """A place in the log, for `sent`."""
        return self._log.stat().st_size

    def sent(self, path: str, since: int) -> Sent:
        """What was sent of one path; a request is counted once its answer has ended."""
        with self._log.open("rb") as file:
            file.seek(since)
            lines = file.read().decode().splitlines()
        sizes = [int(line.split()[1]) for line in lines if line.startswith("GET ") and line.endswith(f" {path}")]
        return Sent(len(sizes), sum(sizes))

    def stop(self) -> None:
        """Repeatable."""
        self._server.stop()
