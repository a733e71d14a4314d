"""A registry on raw sockets that takes pushes, and fails on demand, byte by byte.

    with PushTarget() as target:
        target.fail("patch", cut(1000))           # the next PATCH breaks off after 1000 bytes, which are kept
        target.fail("manifest", throttled(3))     # the next PUT of a manifest is answered with 429
        ... push to target.url ...
        assert target.repository("team/app").tags["v1"] == digest

The kinds of requests: look (HEAD), get, mount, begin, patch, session (GET), commit, manifest, delete, token.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs, urlsplit

from mirror.oci.digest import Digest
from tests.support.relay import Relay

_SESSION: Final = re.compile(r"/v2/(.+)/blobs/uploads/([0-9a-f]+)")
_BEGIN: Final = re.compile(r"/v2/(.+)/blobs/uploads/")
_BLOB: Final = re.compile(r"/v2/(.+)/blobs/(sha[^/]+)")
_MANIFEST: Final = re.compile(r"/v2/(.+)/manifests/([^/]+)")
_REFERRERS: Final = re.compile(r"/v2/(.+)/referrers/([^/]+)")


@dataclass
class Asked:
    """One request: its kind, and the head of it. `received` are the bytes of its body that were read."""

    kind: str
    method: str
    target: str
    headers: Mapping[str, str]
    received: int = 0

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}


@dataclass
class TargetRepository:
    """What one repository has."""

    blobs: dict[Digest, bytes] = field(default_factory=dict)
    manifests: dict[Digest, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)


class Exchange:
    """One request on its connection; a fault reads and answers it as it likes."""

    def __init__(self, target: PushTarget, connection: socket.socket, incoming: Any, asked: Asked, length: int) -> None:
        self.target = target
        self.asked = asked
        self.left = length
        self._connection = connection
        self._incoming = incoming

    def read(self, size: int | None = None) -> bytes:
        """Bytes of the body; all that are left if `size` is None."""
        content: bytes = self._incoming.read(self.left if size is None else min(size, self.left))
        self.left -= len(content)
        self.asked.received += len(content)
        return content

    def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> bool:
        """Sends an answer. True: the connection takes the next request."""
        self.read()
        length = (
            {}
            if self.asked.method == "HEAD" and headers and "Content-Length" in headers
            else {"Content-Length": str(len(body))}
        )
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in {**length, **(headers or {})}.items())]
        content = b"" if self.asked.method == "HEAD" else body
        self._connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode() + content)
        return self.asked.headers.get("connection", "").lower() != "close"

    def error(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> bool:
        """Sends an error."""
        return self.answer(status, headers, json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode())

    def reset(self) -> bool:
        """Ends the connection with RST."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.close()
        return False


#: Handles a request; returns whether the connection goes on. `usual` is what the registry would do.
Fault: TypeAlias = Callable[[Exchange, Callable[[], bool]], bool]


def answers(status: int, code: str = "UNKNOWN", **headers: str) -> Fault:
    """An error instead of the answer."""
    return lambda exchange, usual: exchange.error(status, code, {k.replace("_", "-"): v for k, v in headers.items()})


def throttled(seconds: int) -> Fault:
    """429 with Retry-After."""
    return answers(429, "TOOMANYREQUESTS", Retry_After=str(seconds))


def cut(after: int, *, kept: bool = True) -> Fault:
    """RST after so many bytes of the body of a PATCH; the session keeps them, or is forgotten."""

    def fault(exchange: Exchange, usual: Callable[[], bool]) -> bool:
        content = exchange.read(after)
        exchange.target.keep(exchange.asked.path, content if kept else None)
        return exchange.reset()

    return fault


def says(header: str, value: str) -> Fault:
    """The usual work, and an answer with this header."""

    def fault(exchange: Exchange, usual: Callable[[], bool]) -> bool:
        exchange.target.more_headers = {header: value}
        try:
            return usual()
        finally:
            exchange.target.more_headers = {}

    return fault


def swallowed(exchange: Exchange, usual: Callable[[], bool]) -> bool:
    """The work is done, and the connection breaks before the answer."""
    exchange.target.mute = True
    try:
        usual()
    finally:
        exchange.target.mute = False
    return exchange.reset()


class PushTarget(Relay):
    """The registry. A context manager; options may be changed while it runs.

    `tokens`: bearer tokens are required, whose scope must cover the request. `mounts`, `referrers`, `tag_deletion`:
    whether it has these.
    """

    def __init__(self, *, tokens: bool = False, tls: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self._tls = tls
        self.tokens = tokens
        self.mounts = self.referrers = self.tag_deletion = True
        self.asked: list[Asked] = []
        self.more_headers: dict[str, str] = {}
        self.mute = False
        self._repositories: dict[str, TargetRepository] = {}
        self._sessions: dict[str, bytearray] = {}
        self._tokens: dict[str, set[tuple[str, str]]] = {}
        self._faults: dict[str, list[Fault]] = {}

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def repository(self, name: str) -> TargetRepository:
        """The content of a repository, which a test may change."""
        return self._repositories.setdefault(name, TargetRepository())

    def fail(self, kind: str, fault: Fault, times: int = 1) -> None:
        """The next requests of a kind; after those queued before."""
        with self._lock:
            self._faults.setdefault(kind, []).extend([fault] * times)

    def of_kind(self, *kinds: str) -> list[Asked]:
        """The requests of these kinds so far."""
        with self._lock:
            return [asked for asked in self.asked if asked.kind in kinds]

    def expire_tokens(self) -> None:
        """Refuse every token issued so far."""
        with self._lock:
            self._tokens.clear()

    def keep(self, path: str, content: bytes | None) -> None:
        """Append to the session of a path, or forget it."""
        match = _SESSION.fullmatch(path)
        assert match
        with self._lock:
            if content is None:
                self._sessions.pop(match[2], None)
            else:
                self._sessions[match[2]] += content

    # ------------------------------------------------------------------------------------------------------ serving

    def _serve(self, client: socket.socket) -> None:
        connection = client
        if self._tls:
            try:
                connection = self._tls.wrap_socket(client, server_side=True)
            except OSError:
                client.close()
                return
        with self._lock:
            self._open.add(connection)
        try:
            with connection, connection.makefile("rb") as incoming:
                while self._answer(connection, incoming):
                    pass
        except (OSError, ValueError):
            pass  # the client has left
        finally:
            with self._lock:
                self._open.discard(connection)

    def _answer(self, connection: socket.socket, incoming: Any) -> bool:
        line = incoming.readline().decode().rstrip("\r\n")
        if not line:
            return False
        method, target, _ = line.split(" ")
        headers: dict[str, str] = {}
        while text := incoming.readline().decode("latin-1").rstrip("\r\n"):
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        asked = Asked(_kind(method, target), method, target, headers)
        exchange = Exchange(self, connection, incoming, asked, int(headers.get("content-length", 0)))
        with self._lock:
            self.asked.append(asked)
            queued = self._faults.get(asked.kind)
            fault = queued.pop(0) if queued else None

        def usual() -> bool:
            return self._work(exchange)

        return fault(exchange, usual) if fault else usual()

    def _work(self, exchange: Exchange) -> bool:
        asked = exchange.asked
        if asked.kind == "token":
            return self._issue(exchange)
        if (refusal := self._refusal(asked)) is not None:
            return self._send(exchange, 401, {"WWW-Authenticate": refusal})
        handler: Callable[[Exchange], bool] = getattr(self, f"_{asked.kind}")
        return handler(exchange)

    def _send(
        self, exchange: Exchange, status: int, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> bool:
        if self.mute:
            exchange.read()
            return False
        return exchange.answer(status, {**(headers or {}), **self.more_headers}, body)

    # -------------------------------------------------------------------------------------------------------- logins

    def _refusal(self, asked: Asked) -> str | None:
        if not self.tokens:
            return None
        name = next(
            (m[1] for p in (_SESSION, _BEGIN, _BLOB, _MANIFEST, _REFERRERS) if (m := p.fullmatch(asked.path))), ""
        )
        wanted = {(name, "pull" if asked.kind in ("look", "get") else "delete" if asked.kind == "delete" else "push")}
        with self._lock:
            granted = self._tokens.get(asked.headers.get("authorization", "").removeprefix("Bearer "), set())
        if wanted <= granted:
            return None
        scopes = " ".join(f"repository:{repository}:{action}" for repository, action in wanted)
        return f'Bearer realm="{self.url}/token",service="target",scope="{scopes}"'

    def _issue(self, exchange: Exchange) -> bool:
        scopes = parse_qs(urlsplit(exchange.asked.target).query).get("scope", [])
        granted = set()
        for scope in " ".join(scopes).split():
            _, name, actions = scope.split(":")
            granted |= {(name, action) for action in actions.split(",")}
        token = secrets.token_hex(8)
        with self._lock:
            self._tokens[token] = granted
        return self._send(exchange, 200, {}, json.dumps({"token": token}).encode())

    # --------------------------------------------------------------------------------------------------------- verbs

    def _look(self, exchange: Exchange) -> bool:
        status, headers, body = self._find(exchange.asked)
        return self._send(exchange, status, {**headers, "Content-Length": str(len(body))})

    def _get(self, exchange: Exchange) -> bool:
        return self._send(exchange, *self._find(exchange.asked))

    def _find(self, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        if match := _BLOB.fullmatch(asked.path):
            content = self.repository(match[1]).blobs.get(Digest.parse(match[2]))
            return (404, {}, b"") if content is None else (200, {"Docker-Content-Digest": match[2]}, content)
        match = _MANIFEST.fullmatch(asked.path)
        if match is None:
            return 404, {}, b""
        repository = self.repository(match[1])
        digest = Digest.parse(match[2]) if ":" in match[2] else repository.tags.get(match[2])
        found = repository.manifests.get(digest) if digest else None
        if found is None:
            return 404, {}, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "unknown"}]}'
        return 200, {"Docker-Content-Digest": str(digest), "Content-Type": found[0]}, found[1]

    def _mount(self, exchange: Exchange) -> bool:
        match = _BEGIN.fullmatch(exchange.asked.path)
        assert match
        digest, source = Digest.parse(exchange.asked.query["mount"]), exchange.asked.query.get("from", "")
        content = self.repository(source).blobs.get(digest)
        if not self.mounts or content is None:
            return self._begin(exchange)
        self.repository(match[1]).blobs[digest] = content
        return self._send(exchange, 201, {"Location": f"/v2/{match[1]}/blobs/{digest}"})

    def _begin(self, exchange: Exchange) -> bool:
        match = _BEGIN.fullmatch(exchange.asked.path)
        assert match
        session = secrets.token_hex(8)
        self._sessions[session] = bytearray()
        return self._send(
            exchange, 202, {"Location": f"/v2/{match[1]}/blobs/uploads/{session}?state=x", "Range": "0-0"}
        )

    def _patch(self, exchange: Exchange) -> bool:
        match = _SESSION.fullmatch(exchange.asked.path)
        assert match
        held = self._sessions.get(match[2])
        if held is None:
            return exchange.error(404, "BLOB_UPLOAD_UNKNOWN")
        given = exchange.asked.headers.get("content-range")
        if int(given.partition("-")[0]) != len(held) if given else bool(held):
            return self._send(exchange, 416, self._range(match[1], match[2]))
        held += exchange.read()
        return self._send(exchange, 202, self._range(match[1], match[2]))

    def _session(self, exchange: Exchange) -> bool:
        match = _SESSION.fullmatch(exchange.asked.path)
        assert match
        if match[2] not in self._sessions:
            return exchange.error(404, "BLOB_UPLOAD_UNKNOWN")
        return self._send(exchange, 204, self._range(match[1], match[2]))

    def _range(self, name: str, session: str) -> dict[str, str]:
        held = len(self._sessions[session])
        return {"Location": f"/v2/{name}/blobs/uploads/{session}?state={held}", "Range": f"0-{max(0, held - 1)}"}

    def _commit(self, exchange: Exchange) -> bool:
        match = _SESSION.fullmatch(exchange.asked.path)
        assert match
        held = self._sessions.get(match[2])
        if held is None:
            return exchange.error(404, "BLOB_UPLOAD_UNKNOWN")
        held += exchange.read()
        digest = Digest.parse(exchange.asked.query["digest"])
        del self._sessions[match[2]]
        if not digest.matches(bytes(held)):
            return exchange.error(400, "DIGEST_INVALID")
        self.repository(match[1]).blobs[digest] = bytes(held)
        return self._send(exchange, 201, {"Docker-Content-Digest": str(digest)})

    def _manifest(self, exchange: Exchange) -> bool:
        match = _MANIFEST.fullmatch(exchange.asked.path)
        assert match
        content = exchange.read()
        repository, body = self.repository(match[1]), json.loads(content)
        digest = Digest.of(content)
        named = [body["config"], *body["layers"]] if "layers" in body else []
        missing = [entry for entry in named if Digest.parse(entry["digest"]) not in repository.blobs]
        children = [
            each for each in body.get("manifests", []) if Digest.parse(each["digest"]) not in repository.manifests
        ]
        if missing or children:
            return exchange.error(404, "MANIFEST_BLOB_UNKNOWN")
        repository.manifests[digest] = exchange.asked.headers["content-type"], content
        if ":" not in match[2]:
            repository.tags[match[2]] = digest
        subject = {"OCI-Subject": body["subject"]["digest"]} if self.referrers and "subject" in body else {}
        return self._send(exchange, 201, {"Docker-Content-Digest": str(digest), **subject})

    def _delete(self, exchange: Exchange) -> bool:
        match = _MANIFEST.fullmatch(exchange.asked.path)
        assert match
        if ":" in match[2] or not self.tag_deletion:
            return exchange.error(405, "UNSUPPORTED")
        return self._send(exchange, 202 if self.repository(match[1]).tags.pop(match[2], None) else 404)


def _kind(method: str, target: str) -> str:
    path = target.partition("?")[0]
    if path == "/token":
        return "token"
    if _SESSION.fullmatch(path):
        return {"PATCH": "patch", "PUT": "commit", "GET": "session"}[method]
    if _BEGIN.fullmatch(path):
        return "mount" if "mount=" in target else "begin"
    if method == "PUT":
        return "manifest"
    return {"HEAD": "look", "GET": "get", "DELETE": "delete"}[method]
