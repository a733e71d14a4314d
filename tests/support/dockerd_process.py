"""dockerd with everything of its own, and its API over a unix socket (no command line program needed)."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import socket
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode

from tests.support.mounts import overlay_works, unmount_below
from tests.support.process import PATIENCE, ProgramProcess
from tests.support.pulls import OFFLINE


class PullFailed(AssertionError):
    """dockerd answered that a pull failed; the message has its answer."""


class PushFailed(AssertionError):
    """dockerd answered that a push failed; the message has its answer."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class DockerdProcess:
    """A running dockerd; it serves when the constructor returns. `directory` must have a short path."""

    def __init__(self, directory: Path, *, mirror: str = "", settings: Path | None = None) -> None:
        """`settings` is a `daemon.json` instead of one with `mirror`."""
        directory.mkdir()
        self.directory = directory
        self.socket = directory / "d.sock"
        if settings is None:
            settings = directory / "daemon.json"
            # without this file it would read the machine's own
            settings.write_text(json.dumps({"registry-mirrors": [mirror], "max-download-attempts": 1}))
        self._process = ProgramProcess(
            [
                "dockerd",
                f"--config-file={settings}",
                f"--host=unix://{self.socket}",
                f"--data-root={directory}/data",
                f"--exec-root={directory}/exec",
                f"--pidfile={directory}/pid",
                f"--storage-driver={'overlay2' if overlay_works(directory) else 'vfs'}",
                # pulling needs no network of containers, and the machine's packet filter is not ours to write to
                "--bridge=none",
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
                "--ip-masq=false",
            ],
            env=OFFLINE,
        )
        try:
            self._process.wait_for(lambda line: "API listen on" in line, "it serves")
        except BaseException:
            self.stop()
            raise

    @contextlib.contextmanager
    def _ask(
        self, method: str, target: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self.socket)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body)
        kind = "application/x-tar" if isinstance(body, bytes) else "application/json"
        try:
            connection.request(method, target, content, {"Host": "docker", "Content-Type": kind, **(headers or {})})
            answer = connection.getresponse()
            if answer.status >= 400:
                raise PullFailed(f"{method} {target}: {answer.status} {answer.read()[:2000]!r}\n{self._process.tail()}")
            yield answer
        finally:
            connection.close()

    def log_in(self, server: str, username: str, password: str) -> None:
        """`docker login`. Raises `PullFailed` where the server refuses."""
        account = {"username": username, "password": password, "serveraddress": server}
        with self._ask("POST", "/auth", account) as answer:
            answer.read()

    def pull(self, name: str, *, platform: str = "", account: tuple[str, str] | None = None) -> None:
        """`docker pull`, as a user name with a password where one is given. Raises `PullFailed`."""
        words = {"fromImage": name, **({"platform": platform} if platform else {})}
        headers = {} if account is None else _registry_auth(account)
        with self._ask("POST", "/images/create?" + urlencode(words), headers=headers) as answer:
            if error := _error_of(answer):
                raise PullFailed(f"{name}: {error}\n{self._process.tail()}")

    def build(self, name: str, dockerfile: str, files: Mapping[str, bytes]) -> None:
        """`docker build` without BuildKit, of a context with these files."""
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            for path, content in {"Dockerfile": dockerfile.encode(), **files}.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        with self._ask("POST", "/build?" + urlencode({"t": name, "version": "1"}), context.getvalue()) as answer:
            error = _error_of(answer)
            assert not error, f"{name}: {error}\n{self._process.tail()}"

    def tag(self, name: str, other: str) -> None:
        """`docker tag`."""
        repository, _, tag = other.rpartition(":")
        words = urlencode({"repo": repository, "tag": tag})
        with self._ask("POST", f"/images/{quote(name, safe='/')}/tag?{words}") as answer:
            answer.read()

    def push(self, name: str, *, account: tuple[str, str] | None = None) -> None:
        """`docker push`, as a user name with a password where one is given. Raises `PushFailed`."""
        repository, _, tag = name.rpartition(":")
        target = f"/images/{quote(repository, safe='/')}/push?{urlencode({'tag': tag})}"
        with self._ask("POST", target, headers=_registry_auth(account)) as answer:
            if error := _error_of(answer):
                raise PushFailed(f"{name}: {error}\n{self._process.tail()}")

    def inspect(self, name: str) -> dict[str, Any]:
        """`docker image inspect`."""
        with self._ask("GET", f"/images/{quote(name, safe='/')}/json") as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def names(self) -> list[str]:
        """Tags of every image it has."""
        with self._ask("GET", "/images/json") as answer:
            return [tag for image in json.load(answer) for tag in image["RepoTags"] or []]

    def save(self, name: str, target: Path) -> None:
        """`docker save` into a file."""
        with self._ask("GET", f"/images/{quote(name, safe='/')}/get") as answer, target.open("wb") as file:
            while chunk := answer.read(1 << 20):
                file.write(chunk)

    def remove(self, name: str) -> None:
        """`docker image rm --force`."""
        with self._ask("DELETE", f"/images/{quote(name, safe='/')}?force=1") as answer:
            answer.read()

    def stop(self) -> None:
        """Repeatable; unmounts what it left."""
        self._process.stop()
        unmount_below(self.directory)

    def __enter__(self) -> DockerdProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _registry_auth(account: tuple[str, str] | None) -> dict[str, str]:
    """The header with which a client of dockerd hands it an account for a registry; pushes need it in any case."""
    said = {} if account is None else {"username": account[0], "password": account[1]}
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(said).encode()).decode()}


def _error_of(answer: http.client.HTTPResponse) -> str | None:
    """The last error among the lines of progress; None if all went well."""
    lines = [json.loads(line) for line in answer.read().splitlines() if line.strip()]
    return next((str(line["error"]) for line in reversed(lines) if "error" in line), None)
