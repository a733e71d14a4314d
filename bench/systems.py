"""The systems that are compared, each set up for speed: two workers, a cache of its own on the disk, and no access log,
except where small requests are measured.

start(directory, upstream) ──> Running ── stop() ──> ended; the directory holds the cache until it is removed
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.origin import nginx_head
from bench.process import Server, free_port, program, wait_listening

NGINX: Final = "nginx"
NGINX_DEFAULTS: Final = "nginx-defaults"
REGISTRY: Final = "docker-registry"
MIRROR: Final = "mirror"
#: In the comparisons with an object store: nginx that stores nothing, and a mirror without a bucket.
NGINX_PASSING: Final = "nginx-passing"
MIRROR_ON_DISK: Final = "mirror-on-disk"
#: In the comparisons of replicas `MIRROR` is three of them; a single one, and three whose tags may be a second old.
ONE_MIRROR: Final = "one-mirror"
MIRROR_1S: Final = "mirror-1s"

#: Worker processes of nginx and of the mirror; distribution takes as many threads as there are cores.
WORKERS: Final = 2

#: A registry that everybody may pull from and push to.
HOSTED: Final = """[[hosted]]
name = "corp"
[[access.rule]]
effect = "allow"
callers = ["*"]
actions = ["pull", "write"]
repositories = ["corp/**"]
"""

_ROOT: Final = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Running:
    """A system that answers on a port of the loopback."""

    name: str
    port: int
    server: Server

    @property
    def pid(self) -> int:
        """The root of its process tree."""
        return self.server.pid

    def stop(self) -> None:
        """Repeatable."""
        self.server.stop()


#: With buffers of a page, as nginx has them by default, a cold blob takes it half as much CPU again.
_BUFFERS: Final = """proxy_buffers 16 64k; proxy_buffer_size 64k; proxy_busy_buffers_size 256k;
    proxy_temp_file_write_size 256k;"""


@dataclass(frozen=True, slots=True)
class Encryption:
    """TLS of a system: the certificate of its upstream, which it trusts, and whether its clients come over TLS as well,
    where it shows the same certificate.
    """

    certificate: Path
    key: Path
    to_clients: bool


#: Both sides take the same protocols everywhere; the cipher is then the first of OpenSSL's, AES-256-GCM. nginx has no
#: TLS 1.3 to upstreams unless it is told to.
_PROTOCOLS: Final = "TLSv1.2 TLSv1.3"


def nginx_tls(certificate: Path, key: Path) -> str:
    """What an nginx that serves over TLS has in its `server`."""
    return f"ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols {_PROTOCOLS};"


def _nginx(directory: Path, upstream: str) -> Running:
    return _nginx_with(NGINX, _BUFFERS, directory, upstream)


def _nginx_defaults(directory: Path, upstream: str) -> Running:
    return _nginx_with(NGINX_DEFAULTS, "", directory, upstream)


#: One fetch however many ask; without the two times nginx gives up waiting after 5 s and fetches once more.
_LOCKS: Final = "proxy_cache_lock on; proxy_cache_lock_timeout 1h; proxy_cache_lock_age 1h;"
_CACHE: Final = f"proxy_cache blobs; proxy_cache_key $uri; proxy_cache_valid 200 1d; {_LOCKS}"


#: A line of the mirror's access log, with the same fields.
_LINE: Final = (
    '{"id":"$request_id","client":"$remote_addr","method":"$request_method","path":"$request_uri","status":$status,'
    '"bytes":$body_bytes_sent,"cache":"$upstream_cache_status","upstream":"$proxy_host","duration":$request_time,'
    '"event":"request","level":"info","time":"$time_iso8601"}'
)


def _nginx_with(
    name: str,
    buffers: str,
    directory: Path,
    upstream: str,
    location: str = "/v2/",
    cache: str = _CACHE,
    tls: Encryption | None = None,
    *,
    logs: bool = False,
) -> Running:
    directory.mkdir()
    port = free_port()
    scheme, _, address = upstream.partition("://")
    trusts = (
        f"""proxy_ssl_protocols {_PROTOCOLS}; proxy_ssl_verify on; proxy_ssl_name localhost;
    proxy_ssl_trusted_certificate {tls.certificate};"""
        if tls
        else ""
    )
    shows = nginx_tls(tls.certificate, tls.key) if tls and tls.to_clients else ""
    config = directory / "nginx.conf"
    config.write_text(f"""{nginx_head(directory, WORKERS)}
{f"log_format line escape=json '{_LINE}'; access_log {directory}/requests line;" if logs else "access_log off;"}
proxy_cache_path {directory}/cache levels=1:2 keys_zone=blobs:16m max_size=100g inactive=1d use_temp_path=off;
upstream origin {{ server {address}; keepalive 16; }}
server {{
  listen 127.0.0.1:{port} {"ssl" if shows else ""} backlog=4096; {shows}
  location {location} {{
    {trusts}
    proxy_pass {scheme}://origin; proxy_http_version 1.1; proxy_set_header Connection "";
    {cache}
    {buffers}
  }}
}}
}}
""")
    server = Server([program("nginx"), "-c", str(config), "-e", str(directory / "error.log")], log=directory / "output")
    wait_listening(server, port)
    return Running(name, port, server)


def nginx_before(name: str, directory: Path, store: str) -> Running:
    """nginx before an object store whose objects everybody may read: with a cache, as above, or without one as
    `NGINX_PASSING`.
    """
    buffers = "" if name == NGINX_DEFAULTS else _BUFFERS
    return _nginx_with(name, buffers, directory, store, "/", "" if name == NGINX_PASSING else _CACHE)


def _registry(directory: Path, upstream: str) -> Running:
    return _start_registry(directory, f'proxy: {{remoteurl: "{upstream}"}}\n')


def _hosting_registry(directory: Path) -> Running:
    return _start_registry(directory, "")


def registry_with(directory: Path, driver: str) -> Running:
    """docker-registry that hosts by a storage driver: `name: {settings}`."""
    return _start_registry(directory, "", driver)


def _start_registry(directory: Path, more: str, driver: str = "") -> Running:
    """docker-registry with the same settings, and `more`."""
    directory.mkdir()
    port = free_port()
    config = directory / "config.yml"
    config.write_text(f"""version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{{driver or f"filesystem: {{rootdirectory: {directory}/cache}}"}, cache: {{blobdescriptor: inmemory}}}}
http: {{addr: "127.0.0.1:{port}"}}
{more}""")
    # its client of S3 cannot use a bundle of authorities from the environment
    argv = [program("env"), "-u", "AWS_CA_BUNDLE", program("docker-registry"), "serve", str(config)]
    server = Server(argv, log=directory / "output")
    wait_listening(server, port)
    return Running(REGISTRY, port, server)


def _mirror(directory: Path, upstream: str, *, logs: bool = False) -> Running:
    return start_mirror(directory, f'[[upstream]]\nname = "docker.io"\nurl = "{upstream}"\n', logs=logs)


def _logging_nginx(directory: Path, upstream: str) -> Running:
    return _nginx_with(NGINX, _BUFFERS, directory, upstream, logs=True)


def _logging_mirror(directory: Path, upstream: str) -> Running:
    return _mirror(directory, upstream, logs=True)


def _hosting_mirror(directory: Path) -> Running:
    return start_mirror(directory, HOSTED)


def start_mirror(directory: Path, more: str, name: str = MIRROR, serving: str = "", *, logs: bool = False) -> Running:
    """A mirror with the same settings, and `more`, which begins in the table `[store]`; `serving` is in `[server]`."""
    directory.mkdir()
    config = directory / "mirror.toml"
    config.write_text(f"""[server]
listen = ["127.0.0.1:0"]
workers = {WORKERS}
access_log = {str(logs).lower()}
{serving}
[store]
root = "{directory}/cache"
capacity = "50GB"
{more}""")
    argv = [sys.executable, "-m", "mirror", "serve", "--config", str(config)]
    server = Server(argv, log=directory / "output", cwd=_ROOT)
    port = server.line(listening_port, "listening")
    wait_listening(server, port)
    return Running(name, port, server)


def listening_port(line: str) -> int | None:
    """The port in the line by which a mirror says that it listens; None for any other line."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or event.get("event") != "listening":
        return None
    return int(str(event["address"]).rpartition(":")[2])


#: How to start those that take pushes: with a new directory.
HOSTS: Final[Mapping[str, Callable[[Path], Running]]] = {REGISTRY: _hosting_registry, MIRROR: _hosting_mirror}

#: How to start each: with a new directory and the address of its upstream.
SYSTEMS: Final[Mapping[str, Callable[[Path, str], Running]]] = {
    NGINX: _nginx,
    NGINX_DEFAULTS: _nginx_defaults,
    REGISTRY: _registry,
    MIRROR: _mirror,
}


def start_encrypted(name: str, directory: Path, upstream: str, tls: Encryption) -> Running:
    """nginx, with either buffers, or the mirror, before an upstream that is reached over TLS."""
    if name == MIRROR:
        shown = f'tls_certificate = "{tls.certificate}"\ntls_key = "{tls.key}"' if tls.to_clients else ""
        reached = f'[[upstream]]\nname = "docker.io"\nurl = "{upstream}"\nca_file = "{tls.certificate}"\n'
        return start_mirror(directory, reached, serving=shown)
    buffers = "" if name == NGINX_DEFAULTS else _BUFFERS
    return _nginx_with(name, buffers, directory, upstream, tls=tls)


#: Those of `SYSTEMS` that `start_encrypted` can start.
ENCRYPTED: Final = (NGINX, NGINX_DEFAULTS, MIRROR)

#: The same for small requests: nginx and the mirror write the same access log, as both do in production.
LOGGING: Final[Mapping[str, Callable[[Path, str], Running]]] = {
    **SYSTEMS,
    NGINX: _logging_nginx,
    MIRROR: _logging_mirror,
}

#: What a run compares unless it is told otherwise.
COMPARED: Final = (NGINX, REGISTRY, MIRROR)
