"""A small, well-behaved registry with knobs that hurt; on top of `scripted`, so that faults may break HTTP too.

    with FakeRegistry() as registry:                       # FakeRegistry(tokens=True, users={"u": "p"}, cdn=True)
        digest = registry.add_blob("team/app", b"…")
        manifest = registry.add_image("team/app", "v1", layers=[b"…"])
        registry.fail("blobs", status(503), times=2)       # the next two requests for blobs
        ... ask registry.url ...
        assert registry.count("blobs", "GET") == 3

Kinds of requests: `ping manifests blobs tags referrers token cdn`. A fault gets the request and the well-behaved
answer's function, and returns the steps to send instead.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeAlias

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from tests.support.scripted import Answering, Close, Request, Reset, Script, Scripted, Stall, head, reply, reply_json

Fault: TypeAlias = Callable[[Request, Answering], Script]

_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|tags|referrers)/(?P<what>[^/]+)")
_TEXT = {"Content-Type": "text/html"}


# ------------------------------------------------------------------------------------------------------- faults


def status(code: int, headers: Mapping[str, str] | None = None, *, message: str = "on purpose") -> Fault:
    """Another status, with an error body of the distribution specification."""
    return lambda request, answer: _error(code, "UNKNOWN", message, headers, body=request.method != "HEAD")


def throttle(retry_after: int | str | None = 7) -> Fault:
    """429."""
    return status(429, {} if retry_after is None else {"Retry-After": str(retry_after)}, message="too many")


def html(code: int = 200) -> Fault:
    """A page of a proxy or a captive portal."""
    page = reply(code, b"<html><body>hello</body></html>", _TEXT)
    return lambda request, answer: page[:1] if request.method == "HEAD" else page


def cut(after: int) -> Fault:
    """The body ends after so many bytes, the connection with it."""

    def fault(request: Request, answer: Answering) -> Script:
        start, body = _whole(answer(request))
        return [start, body[:after], Close()]

    return fault


def reset(after: int) -> Fault:
    """Likewise, by RST."""

    def fault(request: Request, answer: Answering) -> Script:
        start, body = _whole(answer(request))
        return [start, body[:after], Reset()]

    return fault


def stall(gate: Stall, after: int = 0) -> Fault:
    """The body waits at the gate after so many bytes."""

    def fault(request: Request, answer: Answering) -> Script:
        start, body = _whole(answer(request))
        return [start, body[:after], gate, body[after:]]

    return fault


def silence(gate: Stall) -> Fault:
    """Nothing comes before the gate opens, not even the head."""
    return lambda request, answer: [gate, *answer(request)]


def wrong_bytes(request: Request, answer: Answering) -> Script:
    """As many bytes, but others."""
    start, body = _whole(answer(request))
    return [start, bytes(byte ^ 0xFF for byte in body)]


def gzipped(request: Request, answer: Answering) -> Script:
    """A proxy that compresses without being asked."""
    _, body = _whole(answer(request))
    return reply(200, gzip.compress(body), {"Content-Encoding": "gzip"})


def ignore_range(request: Request, answer: Answering) -> Script:
    """200 with the whole blob, whichever part was requested."""
    return answer(
        Request(
            request.method,
            request.target,
            request.version,
            tuple((name, value) for name, value in request.headers if name.lower() != "range"),
            request.body,
            request.connection,
        )
    )


def refuse_ranges(code: int, headers: Mapping[str, str] | None = None, *, but: int = 0) -> Fault:
    """Another status for every request with a range but the first few; the fault has to be queued for all requests."""
    left = [None] * but

    def fault(request: Request, answer: Answering) -> Script:
        if request.header("Range") is None:
            return answer(request)
        if left:
            left.pop()
            return answer(request)
        return status(code, headers)(request, answer)

    return fault


# ----------------------------------------------------------------------------------------------------- registry


@dataclass
class _Repository:
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    manifests: dict[Digest, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)


class FakeRegistry:
    """The registry. A context manager; every option may be changed while it runs.

    `tokens`: Bearer challenges, a token service on the same port. `users`: names and passwords; with some, repositories
    are for them alone: by token if `tokens`, else by Basic. `rights`: which repositories each user may pull, "" being
    anonymous callers; None: every user may pull everything. `cdn`: blobs are redirected to
    signed URLs on a second port, each good for `cdn_uses` requests. `referrers`: whether that API is there.
    """

    def __init__(
        self,
        *,
        tokens: bool = False,
        users: Mapping[str, str] | None = None,
        cdn: bool = False,
        referrers: bool = True,
        page: int = 100,
        tls: ssl.SSLContext | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self.tokens = tokens
        self.users = dict(users or {})
        self.referrers = referrers
        self.page = page
        #: Tags in a page at the most, whatever is asked for; None: as many as are asked for.
        self.largest_page: int | None = None
        #: The largest `n` that is not refused with 400.
        self.largest_n: int | None = None
        self.rights: dict[str, set[str]] | None = None
        self.expires_in: Any = 300
        self.token_field = "token"
        self.realm: str | None = None
        self.head_says = True
        self.cdn_uses = 1000
        #: Pulls allowed and left, as Docker Hub counts them: by GET of a manifest. None: not counted.
        self.budget: tuple[int, int] | None = None
        self.window = 21600
        self._front = Scripted(tls=tls, host=address)
        self._cdn = Scripted(tls=tls) if cdn else None
        self._front.on("*", self._route)
        if self._cdn:
            self._cdn.on("*", lambda request: self._faulty("cdn", request, self._serve_signed))
        self._lock = threading.RLock()
        self._repositories: dict[str, _Repository] = {}
        self._faults: dict[str, list[Fault]] = {}
        self._good_tokens: dict[str, str] = {}
        self._signed: dict[str, list[Any]] = {}
        self._issued = 0

    def away(self) -> None:
        """Refuse connections, and break those that are open, until `back`."""
        self._front.away()

    def back(self) -> None:
        """Answer again, on the same port."""
        self._front.back()

    # ----------------------------------------------------------------------------------------------- content

    def add_blob(self, name: str, content: bytes, algorithm: str = "sha256") -> Digest:
        """A blob of a repository."""
        digest = Digest.of(content, algorithm)
        with self._lock:
            self.repository(name).blobs[digest] = content
        return digest

    def add_manifest(
        self, name: str, content: bytes, media_type: str, tag: str | None = None, algorithm: str = "sha256"
    ) -> Digest:
        """Exactly these bytes; a tag is moved to them."""
        digest = Digest.of(content, algorithm)
        with self._lock:
            self.repository(name).manifests[digest] = media_type, content
            if tag:
                self.repository(name).tags[tag] = digest
        return digest

    def add_image(
        self, name: str, tag: str | None, layers: Sequence[bytes], config: bytes = b"{}", **more: Any
    ) -> Digest:
        """An OCI image of these layers; `more` are further fields of the manifest."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self._descriptor(name, "application/vnd.oci.image.config.v1+json", config),
            "layers": [self._descriptor(name, "application/vnd.oci.image.layer.v1.tar", layer) for layer in layers],
            **more,
        }
        return self.add_manifest(name, json.dumps(manifest).encode(), OCI_MANIFEST, tag)

    def add_index(self, name: str, tag: str | None, children: Sequence[Digest]) -> Digest:
        """An index of manifests that are there."""
        manifests = [
            {"mediaType": kind, "digest": str(digest), "size": len(content)}
            for digest in children
            for kind, content in [self.repository(name).manifests[digest]]
        ]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
        return self.add_manifest(name, json.dumps(index).encode(), OCI_INDEX, tag)

    def manifest(self, name: str, digest: Digest) -> bytes:
        """The bytes of one."""
        return self.repository(name).manifests[digest][1]

    def drop_tag(self, name: str, tag: str) -> None:
        """Only the name; the manifest stays."""
        with self._lock:
            del self.repository(name).tags[tag]

    def clear(self) -> None:
        """It has nothing any more."""
        self._repositories.clear()

    def repository(self, name: str) -> _Repository:
        """The content of a repository, which a test may change."""
        return self._repositories.setdefault(name, _Repository())

    def _descriptor(self, name: str, media_type: str, content: bytes) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": str(self.add_blob(name, content)), "size": len(content)}

    # ------------------------------------------------------------------------------------------------- knobs

    def fail(self, kind: str, fault: Fault, times: int = 1) -> None:
        """The next requests of a kind; after those queued before."""
        with self._lock:
            self._faults.setdefault(kind, []).extend([fault] * times)

    def heal(self) -> None:
        """No faults from now on."""
        with self._lock:
            self._faults.clear()

    def expire_tokens(self) -> None:
        """Refuse every token issued so far, whatever its stated lifetime."""
        with self._lock:
            self._good_tokens.clear()

    def expire_urls(self) -> None:
        """Every signed URL given so far is refused."""
        with self._lock:
            self._signed.clear()

    # ----------------------------------------------------------------------------------------------- the log

    @property
    def arrivals(self) -> threading.Condition:
        """Notified when a request has come, which is in `requests` by then."""
        return self._front.arrivals

    @property
    def requests(self) -> list[Request]:
        """All that came to the registry and its token service, in order."""
        return list(self._front.requests)

    @property
    def cdn_requests(self) -> list[Request]:
        """All that came to the second port."""
        return list(self._cdn.requests) if self._cdn else []

    def of_kind(self, kind: str, method: str | None = None) -> list[Request]:
        """The requests of one kind."""
        if kind == "cdn":
            return self.cdn_requests
        return [one for one in self.requests if _kind(one) == kind and method in (None, one.method)]

    def count(self, kind: str, method: str | None = None) -> int:
        """How many of one kind."""
        return len(self.of_kind(kind, method))

    def forget(self) -> None:
        """Empty the log."""
        self._front.requests.clear()
        if self._cdn:
            self._cdn.requests.clear()

    @property
    def url(self) -> str:
        """Without a path."""
        return self._front.url

    @property
    def host(self) -> str:
        """`127.0.0.1:port`."""
        return self._front.url.partition("://")[2]

    def start(self) -> FakeRegistry:
        """Begin to accept."""
        self._front.start()
        if self._cdn:
            self._cdn.start()
        return self

    def stop(self) -> None:
        """Close everything."""
        self._front.stop()
        if self._cdn:
            self._cdn.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --------------------------------------------------------------------------------------------- answering

    def _route(self, request: Request) -> Script:
        kind = _kind(request)
        answer = self._token if kind == "token" else self._registry
        return self._faulty(kind, request, answer)

    def _faulty(self, kind: str, request: Request, answer: Answering) -> Script:
        with self._lock:
            queued = self._faults.get(kind)
            fault = queued.pop(0) if queued else None
        return fault(request, answer) if fault else answer(request)

    def _registry(self, request: Request) -> Script:
        found = _PATH.fullmatch(request.path)
        if refusal := self._refusal(request, found["name"] if found else None):
            return refusal
        if request.path == "/v2/":
            return reply_json(200, {})
        if request.method not in ("GET", "HEAD") or not found:
            return _error(405 if found else 404, "UNSUPPORTED", "")
        with self._lock:
            repository = self._repositories.get(found["name"])
        if repository is None:
            return _error(404, "NAME_UNKNOWN", found["name"], body=request.method == "GET")
        match found["kind"]:
            case "manifests":
                return self._manifest(request, repository, found["what"])
            case "blobs":
                return self._blob(request, repository, found["what"])
            case "tags":
                return self._tags(request, repository)
            case _:
                return self._referrers(repository, found["what"])

    def _manifest(self, request: Request, repository: _Repository, reference: str) -> Script:
        with self._lock:
            digest = Digest.parse(reference) if ":" in reference else repository.tags.get(reference)
            known = repository.manifests.get(digest) if digest else None
        if known is None:
            return _error(404, "MANIFEST_UNKNOWN", reference, body=request.method == "GET")
        media_type, content = known
        headers = {"Content-Type": media_type, "Docker-Content-Digest": str(digest)}
        with self._lock:
            if self.budget:
                limit, left = self.budget
                if request.method == "GET" and not left:
                    return _error(429, "TOOMANYREQUESTS", "You have reached your pull rate limit", self._counted())
                if request.method == "GET":
                    self.budget = limit, left - 1
                headers |= self._counted()
        if request.method == "HEAD":
            return [head(200, {**headers, "Content-Length": str(len(content))} if self.head_says else {})]
        return reply(200, content, headers)

    def _counted(self) -> dict[str, str]:
        limit, left = self.budget or (0, 0)
        return {
            "ratelimit-limit": f"{limit};w={self.window}",
            "ratelimit-remaining": f"{left};w={self.window}",
            "docker-ratelimit-source": "192.0.2.1",
        }

    def _blob(self, request: Request, repository: _Repository, digest: str) -> Script:
        content = repository.blobs.get(Digest.parse(digest))
        if request.method == "HEAD":
            return _error(401, "UNAUTHORIZED", "HEAD of blobs is not for you", body=False)
        if content is None:
            return _error(404, "BLOB_UNKNOWN", digest)
        if self._cdn is None:
            return _part(request, content)
        with self._lock:
            self._issued += 1
            target = f"/data/{digest}?X-Signature=a%2Fb%7E+{self._issued}&Expires=1"
            self._signed[target] = [content, self.cdn_uses]
        return reply(307, b"", {"Location": self._cdn.url + target})

    def _serve_signed(self, request: Request) -> Script:
        with self._lock:
            known = self._signed.get(request.target)
            if not known or not known[1]:
                return reply(403, b"<Error><Code>AccessDenied</Code></Error>", {"Content-Type": "application/xml"})
            known[1] -= 1
        return _part(request, known[0])

    def _tags(self, request: Request, repository: _Repository) -> Script:
        size = int(request.query.get("n", [str(self.page)])[0])
        if self.largest_n is not None and size > self.largest_n:
            return _error(400, "PAGINATION_NUMBER_INVALID", str(size))
        size = min(size, self.largest_page or size)
        after = request.query.get("last", [""])[0]
        with self._lock:
            tags = [tag for tag in sorted(repository.tags) if tag > after]
        more = {"Link": f'<{request.path}?n={size}&last={tags[size - 1]}>; rel="next"'} if len(tags) > size else {}
        return reply_json(200, {"name": "x", "tags": tags[:size]}, more)

    def _referrers(self, repository: _Repository, digest: str) -> Script:
        if not self.referrers:
            return _error(404, "NOT_FOUND", "")
        listed = []
        with self._lock:
            for referrer, (media_type, content) in repository.manifests.items():
                body = json.loads(content)
                if (body.get("subject") or {}).get("digest") == digest:
                    found = {"mediaType": media_type, "digest": str(referrer), "size": len(content)}
                    listed.append({**found, "artifactType": body.get("artifactType", "")})
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
        return reply_json(200, index, {"Content-Type": OCI_INDEX})

    # -------------------------------------------------------------------------------------------- who may

    def _refusal(self, request: Request, name: str | None) -> Script | None:
        given = request.header("Authorization") or ""
        scope = f"repository:{name}:pull" if name else ""
        if self.tokens:
            with self._lock:
                if scope in self._good_tokens.get(given.removeprefix("Bearer "), "missing").split(" ") or (
                    not scope and given.removeprefix("Bearer ") in self._good_tokens
                ):
                    return None
            realm = self.realm or f"{self.url}/token"
            challenge = f'Bearer realm="{realm}",service="fake"' + (f',scope="{scope}"' if scope else "")
        elif self.users:
            if self._is_user(given) and self._may(_user(given), scope):
                return None
            challenge = 'Basic realm="fake"'
        else:
            return None
        return _error(401, "UNAUTHORIZED", "", {"WWW-Authenticate": challenge}, body=request.method != "HEAD")

    def _may(self, user: str, scope: str) -> bool:
        return self.rights is None or not scope or scope.split(":")[1] in self.rights.get(user, set())

    def _is_user(self, authorization: str) -> bool:
        given = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        return bool(given) and self.users.get(given.partition(":")[0]) == given.partition(":")[2]

    def _token(self, request: Request) -> Script:
        query = request.query
        if request.method == "POST":
            query = Request("GET", f"?{request.body.decode()}", "", (), b"", 0).query
            if query.get("refresh_token", [""])[0] not in self.users.values():
                return _error(401, "UNAUTHORIZED", "")
        given = request.header("Authorization") or ""
        if request.method == "GET" and self.users and not self._is_user(given) and (given or self.rights is None):
            return _error(401, "UNAUTHORIZED", "")
        with self._lock:
            self._issued += 1
            token = f"token-{self._issued}"
            # who lacks a right gets a token all the same, without it
            granted = [scope for scope in query.get("scope", []) if self._may(_user(given), scope)]
            self._good_tokens[token] = " ".join(granted)
        body = {self.token_field: token, "expires_in": self.expires_in}
        return reply_json(200, {name: value for name, value in body.items() if value is not None})


def _kind(request: Request) -> str:
    found = _PATH.fullmatch(request.path)
    return found["kind"] if found else "token" if request.path.startswith("/token") else "ping"


def _user(authorization: str) -> str:
    return base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")[0]


def _part(request: Request, content: bytes) -> Script:
    """The whole blob, or the one range that was requested."""
    wanted = request.header("Range")
    if not wanted:
        return reply(200, content, {"Accept-Ranges": "bytes"})
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, stop = int(first), min(int(last) + 1, len(content)) if last else len(content)
    if start >= len(content):
        return reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
    return reply(206, content[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})


def _error(
    code: int, name: str, message: str, headers: Mapping[str, str] | None = None, *, body: bool = True
) -> Script:
    answer = reply_json(code, {"errors": [{"code": name, "message": message}]}, headers)
    return answer if body else answer[:1]


def _whole(script: Script) -> tuple[bytes, bytes]:
    """A well-behaved answer as head and body."""
    sent = b"".join(step for step in script if isinstance(step, bytes))
    start, gap, body = sent.partition(b"\r\n\r\n")
    return start + gap, body
