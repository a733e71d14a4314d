"""Debian's docker-registry as a real upstream, with a log of every request that it was asked.

RegistryProcess(root) ── start() ──> serving ── stop() ──> stopped ── start() ──> serving, on the same port
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.engines.ports import with_free_ports
from tests.support.process import PATIENCE, ProgramProcess

_markers = count()


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the registry saw it. `status` and `written` (bytes of body) are None while it is answered."""

    method: str
    uri: str
    status: int | None = None
    written: int | None = None

    @property
    def path(self) -> str:
        """Without the query."""
        return self.uri.partition("?")[0]

    @property
    def is_blob(self) -> bool:
        """Whether it asked for a blob (uploads are none)."""
        return "/blobs/sha" in self.path

    @property
    def is_manifest(self) -> bool:
        """Whether it asked for a manifest or index."""
        return "/manifests/" in self.path


class RegistryProcess:
    """A registry on a port of its own and a directory of the caller's. Two may share a directory if one only reads."""

    def __init__(
        self,
        root: Path,
        *,
        read_only: bool = False,
        proxy: str | None = None,
        storage: Mapping[str, Any] | None = None,
    ) -> None:
        """`proxy` is the root URL of the registry that it pulls through. `storage` is a driver with its parameters,
        instead of that for files.
        """
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self._read_only = read_only
        self._proxy = proxy
        self._storage = storage or {"filesystem": {"rootdirectory": str(root / "data")}}
        self._process: ProgramProcess | None = None
        self._port = 0
        self._past: list[str] = []

    def start(self) -> RegistryProcess:
        """Returns once it listens, at the same port each time. Raises `ProgramFailed`."""
        if self._port:
            self._start([self._port])
        else:
            with_free_ports(1, self._start)
        return self

    def _start(self, ports: list[int]) -> None:
        [port] = ports
        settings: dict[str, Any] = {
            "version": "0.1",
            # at debug level every request is logged before it is answered, so one that is still running counts too
            "log": {"level": "debug", "formatter": "json", "accesslog": {"disabled": True}},
            "storage": {
                **self._storage,
                "maintenance": {"readonly": {"enabled": self._read_only}, "uploadpurging": {"enabled": False}},
            },
            "http": {"addr": f"127.0.0.1:{port}", "secret": "of the tests"},
        }
        if self._proxy is not None:
            settings["proxy"] = {"remoteurl": self._proxy}
        # several processes may share the directory, each with its own settings
        file = self.root / f"registry-{next(_markers)}.yml"
        file.write_text(json.dumps(settings))  # JSON is YAML too
        # its driver for S3 cannot begin with a file of authorities
        process = ProgramProcess(["docker-registry", "serve", file], env={"AWS_CA_BUNDLE": ""})
        try:
            process.wait_for(lambda line: f"listening on 127.0.0.1:{port}" in line, "it listens")
        except AssertionError:
            process.stop()
            raise
        self._process, self._port = process, port

    @property
    def address(self) -> str:
        """`127.0.0.1:port`; stays the same over a stop and start."""
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """Root URL, without a slash at its end."""
        return f"http://{self.address}"

    def stop(self) -> None:
        """Repeatable."""
        if self._process is not None:
            self._process.stop()
            self._past += self._process.lines
            self._process = None

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """While the block runs, no process listens at `address`."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def requests(self) -> list[Request]:
        """Every request up to now, in order of arrival. Requests of this call itself are left out."""
        if self._process is not None:
            mark = f"mark-{next(_markers)}"
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
            try:
                connection.request("GET", f"/v2/?{mark}")
                connection.getresponse().read()
            finally:
                connection.close()
            # the log is written in order: with this line, all earlier ones have been read
            self._process.wait_for(lambda line: mark in line, "the log shows a request")
        return _read(self._past + (self._process.lines if self._process is not None else []))

    def blob_gets(self, *, since: int = 0) -> list[Request]:
        """GETs of blobs, from request number `since` (of `requests`) on."""
        return [request for request in self.requests()[since:] if request.is_blob and request.method == "GET"]

    def sent(self, *, since: int = 0) -> dict[str, int]:
        """How many bytes it has sent of each blob that it was asked for, by digest, from request number `since` (of
        `requests`) on. Returns once all of these requests are answered.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            asked = [request for request in self.requests()[since:] if request.is_blob]
            # a request is logged as answered a moment after its client has the bytes
            if all(request.written is not None for request in asked):
                break
            assert time.monotonic() < deadline, f"not answered: {asked}"
        sent: dict[str, int] = {}
        for request in asked:
            digest = request.path.rpartition("/")[2]
            sent[digest] = sent.get(digest, 0) + (request.written or 0)
        return sent

    def __enter__(self) -> RegistryProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _read(lines: list[str]) -> list[Request]:
    """Requests out of log lines: one line when it begins, one when it is answered."""
    found: dict[str, Request] = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        uri, message = entry.get("http.request.uri", ""), entry.get("msg", "")
        if not uri.startswith("/v2/") or uri.startswith("/v2/?mark-"):
            continue
        key = entry["http.request.id"]
        if message == "authorizing request":
            found.setdefault(key, Request(entry["http.request.method"], uri))
        elif message.startswith("response completed"):
            found[key] = Request(
                entry["http.request.method"], uri, entry["http.response.status"], entry["http.response.written"]
            )
    return list(found.values())
