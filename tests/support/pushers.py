"""Clients that push, move and delete all the time, try again as real ones do, and remember what was acknowledged.

    with Pushers(port, seed=1) as pushers:
        pushers.go()                 # they push, retag and delete, each in a repository of its own
        ... kill, cut ...
        ... a mirror serves again at that port ...
        pushers.rest()               # no request is under way; some were never answered
        pushers.look()               # all that was acknowledged is as it was acknowledged
    pushers.wrong                    # what was not, in words: []

A client knows of each tag and manifest what it may be: one state after an answer, two while an answer is missing. What
a client or `look` has once seen must stay. Layers are shared by all clients.

With the ports of several replicas, each request goes to any of them, and clients rest only once what they do is
acknowledged: what one replica did without an answer, another need not know of yet.

Between a simulated power cut and the end of the worker, the worker still reads what is in the kernel's memory and will
be lost. So `lose()` comes before such a cut: what is only seen from then on proves nothing. Acknowledgements count.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from tests.support.images import sha256
from tests.support.live_mirror import noise

_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_TAGS: Final = ("v1", "v2", "latest")
#: Manifests of a repository above which the next action deletes one.
_ENOUGH: Final = 5
#: The layers that all clients share, in bytes.
_SIZES: Final = (37, 4_000, 30_000, 70_000, 70_001, 150_000, 300_000, 300_001)
_LAYERS: Final = [noise(size, seed=700 + number) for number, size in enumerate(_SIZES)]


def open_to_pushers(*, keep_deleted: str = "0s", grace: str = "1s", collect_every: str = "10ms") -> str:
    """The settings of a mirror that `Pushers` push to: everybody may do everything, and uploads that a fault has
    interrupted stay open for the rest of the test. By default, what is not named goes at once.
    """
    return f"""
    [[hosted]]
    name = "corp"
    keep_deleted = "{keep_deleted}"
    [hosting]
    grace = "{grace}"
    collect_every = "{collect_every}"
    max_uploads = 100000
    max_uploads_per_caller = 100000
    [[access.rule]]
    effect = "allow"
    callers = ["*"]
    actions = ["pull", "push", "overwrite", "delete"]
"""


class _Resting(Exception):
    """No answer came, and the client has to rest now."""


@dataclass(frozen=True, slots=True)
class _Image:
    digest: str
    manifest: bytes
    blobs: dict[str, bytes]


@dataclass(slots=True)
class _Repository:
    """What one client knows. The sets have every value that is possible now; None is an absent tag."""

    name: str
    images: dict[str, _Image] = field(default_factory=dict)
    manifests: dict[str, set[bool]] = field(default_factory=dict)
    tags: dict[str, set[str | None]] = field(default_factory=dict)
    #: Blobs whose upload was acknowledged.
    blobs: dict[str, bytes] = field(default_factory=dict)

    def here(self) -> list[_Image]:
        return [self.images[digest] for digest, may_be in self.manifests.items() if may_be == {True}]


class Pushers:
    """`ports` are those of one mirror, or of several replicas. `registry` is the hosted registry. With `blobs_stay`,
    nothing is collected meanwhile: each blob must stay.
    """

    def __init__(
        self,
        ports: int | Sequence[int],
        *,
        registry: str = "corp",
        clients: int = 4,
        seed: int = 0,
        blobs_stay: bool = False,
        tries: int = 2000,
        patience: float = 60.0,
    ) -> None:
        """`tries`: how often a client asks for one thing before it takes the mirror for broken; `patience` is how many
        seconds it waits for bytes of an answer.
        """
        self._all_ports = [ports] if isinstance(ports, int) else list(ports)
        self.ports = self._all_ports
        self.tries = tries
        self.patience = patience
        self._blobs_stay = blobs_stay
        self._repositories = [_Repository(f"{registry}/team-{number}/app") for number in range(clients)]
        self._changing = threading.Condition()
        self._going = self._leaving = False
        self._busy = 0
        self._losing = False
        self._finishing = False
        #: Never set before the end: what a client waits on between two tries.
        self.pause = threading.Event()
        #: Kinds of acknowledged changes, and statuses of all answers (0: none).
        self.acknowledged: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(one, random.Random(seed * 1000 + number)), daemon=True)
            for number, one in enumerate(self._repositories)
        ]

    # -------------------------------------------------------------------------------------------- from the test

    def go(self) -> None:
        """The clients begin, or go on."""
        with self._changing:
            self._going = True
            self._losing = False
            self._finishing = False
            self._changing.notify_all()

    def avoid(self, port: int | None) -> None:
        """From now on no request begins at this port, as at a replica that an ingress found ill; None: at each."""
        self.ports = [each for each in self._all_ports if each != port]

    def lose(self) -> None:
        """To be called right before the power is cut: until `go`, clients believe only what is acknowledged."""
        self._losing = True

    def rest(self) -> None:
        """Returns once no client has a request under way; with several replicas, once what they do is acknowledged."""
        with self._changing:
            self._going = False
            self._finishing = len(self._all_ports) > 1
            assert self._changing.wait_for(lambda: not self._busy, 600 if self._finishing else 120), "a client hangs"

    def wait_for(self, more: int, *, timeout: float = 120.0) -> None:
        """Until so many more changes were acknowledged."""
        with self._changing:
            wanted = self.acknowledged.total() + more
            done = self._changing.wait_for(lambda: self.acknowledged.total() >= wanted or self.wrong, timeout)
            assert done, f"nothing is acknowledged: {dict(self.statuses)}"

    def look(self) -> int:
        """Compare all that the mirror has with what clients know; returns how many manifests were read whole."""
        return sum(self._look(one) for one in self._repositories)

    def delete_all(self) -> None:
        """Delete every manifest, while the clients rest."""
        connection = _Connection(self, insisting=True)
        for one in self._repositories:
            for image in one.here():
                self._delete_manifest(connection, one, image)
        connection.close()

    def _say(self, wrong: str) -> None:
        with self._changing:
            self.wrong.append(wrong)
            self._changing.notify_all()

    # ---------------------------------------------------------------------------------------------- a client

    def _run(self, repository: _Repository, chance: random.Random) -> None:
        connection = _Connection(self, random.Random(chance.random()) if len(self.ports) > 1 else None)
        while True:
            with self._changing:
                self._changing.wait_for(lambda: self._going or self._leaving)
                if self._leaving:
                    break
                self._busy += 1
            try:
                self._act(connection, repository, chance)
            except _Resting:
                pass  # what was asked for may have happened or not
            except Exception as error:
                self._say(f"{repository.name}: {error!r}")
                self._leaving = True
            finally:
                connection.close()
                with self._changing:
                    self._busy -= 1
                    self._changing.notify_all()

    def _act(self, connection: _Connection, repository: _Repository, chance: random.Random) -> None:
        here = repository.here()
        tags = [tag for tag, may_be in repository.tags.items() if may_be - {None}]
        dice = chance.random()
        if here and (len(here) > _ENOUGH or dice < 0.15):
            self._delete_manifest(connection, repository, chance.choice(here))
        elif tags and dice < 0.25:
            self._delete_tag(connection, repository, chance.choice(tags))
        elif here and dice < 0.4:
            self._put_manifest(connection, repository, chance.choice(here), chance.choice(_TAGS), chance)
        else:
            self._push(connection, repository, chance)
        if chance.random() < 0.3:
            self._look_at_tags(connection, repository)

    def _push(self, connection: _Connection, repository: _Repository, chance: random.Random) -> None:
        layers = chance.sample(_LAYERS, chance.randrange(1, 4))
        config = json.dumps({"made": chance.random(), "in": repository.name}).encode()
        blobs = {sha256(one): one for one in (config, *layers)}
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
                "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer) for layer in layers],
            }
        ).encode()
        image = _Image(sha256(manifest), manifest, blobs)
        repository.images[image.digest] = image
        for digest, content in blobs.items():
            self._push_blob(connection, repository, digest, content, chance)
        self._put_manifest(connection, repository, image, chance.choice(_TAGS), chance)

    def _put_manifest(
        self, connection: _Connection, repository: _Repository, image: _Image, tag: str, chance: random.Random
    ) -> None:
        for _ in range(20):
            # before the first byte of the request: from now on both may be
            repository.manifests.setdefault(image.digest, {False}).add(True)
            repository.tags.setdefault(tag, {None}).add(image.digest)
            target = f"/v2/{repository.name}/manifests/{tag}"
            status, _, body = connection.insist("PUT", target, image.manifest, {"Content-Type": _MANIFEST})
            if status == 201:
                repository.manifests[image.digest] = {True}
                repository.tags[tag] = {image.digest}
                self._count("manifest")
                return
            if b"MANIFEST_BLOB_UNKNOWN" not in body or self._blobs_stay:
                break
            # collected meanwhile, as a client that waits for longer than the grace time has to expect
            for digest, content in image.blobs.items():
                self._push_blob(connection, repository, digest, content, chance)
        self._say(f"PUT {target}: {status} {body[:300]!r}")

    def _delete_tag(self, connection: _Connection, repository: _Repository, tag: str) -> None:
        repository.tags[tag].add(None)
        target = f"/v2/{repository.name}/manifests/{tag}"
        status, _, body = connection.insist("DELETE", target)
        if status == 202 or self._has_seen(status == 404):
            repository.tags[tag] = {None}
            self._count("tag deleted")
        else:
            self._say(f"DELETE {target}: {status} {body[:300]!r}")

    def _delete_manifest(self, connection: _Connection, repository: _Repository, image: _Image) -> None:
        repository.manifests[image.digest].add(False)
        for may_be in repository.tags.values():
            if image.digest in may_be:
                may_be.add(None)
        target = f"/v2/{repository.name}/manifests/{image.digest}"
        status, _, body = connection.insist("DELETE", target)
        if status == 202 or self._has_seen(status == 404):
            repository.manifests[image.digest] = {False}
            for may_be in repository.tags.values():
                may_be.discard(image.digest)
            self._count("manifest deleted")
        else:
            self._say(f"DELETE {target}: {status} {body[:300]!r}")

    def _push_blob(
        self, connection: _Connection, repository: _Repository, digest: str, content: bytes, chance: random.Random
    ) -> None:
        name = repository.name
        if chance.random() < 0.5 and connection.insist("HEAD", f"/v2/{name}/blobs/{digest}")[0] == 200:
            return
        begin = f"/v2/{name}/blobs/uploads/"
        way = chance.random()
        if way < 0.2:
            target = f"{begin}?digest={digest}"
            status, headers, body = connection.insist("POST", target, content)
        elif way < 0.4:
            source = chance.choice(self._repositories).name
            target = f"{begin}?mount={digest}&from={source}"
            status, headers, body = connection.insist("POST", target)
        else:
            target = begin
            status, headers, body = connection.insist("POST", target)
        if status == 202:
            status, body = self._send(connection, begin, headers["Location"], digest, content, chance)
        if status == 201:
            repository.blobs[digest] = content
            self._count("blob")
        else:
            self._say(f"POST {target}: {status} {body[:300]!r}")

    def _send(
        self,
        connection: _Connection,
        begin: str,
        place: str,
        digest: str,
        content: bytes,
        chance: random.Random,
    ) -> tuple[int, bytes]:
        """The bytes of a session, in one or several requests; after a broken one from where the mirror says."""
        arrived, pieces = 0, chance.choice((1, 1, 2, 4))
        step = max(1, len(content) // pieces)
        while True:
            if pieces == 1 or arrived >= len(content):
                rest = content[arrived:]
                target = f"{place}{'&' if '?' in place else '?'}digest={digest}"
                status, _, body = connection.ask("PUT", target, rest)
                if status == 201:
                    return status, body
            else:
                piece = content[arrived : arrived + step]
                span = {"Content-Range": f"{arrived}-{arrived + len(piece) - 1}"}
                status, headers, body = connection.ask("PATCH", place, piece, span)
                if status == 202:
                    arrived += len(piece)
                    place = headers["Location"]
                    continue
            if status and status < 500 and status not in (404, 409, 416):
                return status, body
            # where the session is now; a session that is gone may have ended with the blob
            status, headers, body = connection.insist("GET", place)
            # `0-0` may mean no byte or one: a new session leaves no doubt
            if status == 204 and headers["Range"] != "0-0":
                arrived, place = int(headers["Range"].partition("-")[2]) + 1, headers["Location"]
                continue
            if status not in (204, 404):
                return status, body
            if self._has_seen(connection.insist("HEAD", f"{begin.removesuffix('uploads/')}{digest}")[0] == 200):
                return 201, b""
            status, headers, body = connection.insist("POST", begin)
            if status != 202:
                return status, body
            arrived, place = 0, headers["Location"]

    def _has_seen(self, seen: bool) -> bool:
        """Whether that can be relied on. Raises `_Resting` if the power is cut."""
        if seen and self._losing:
            raise _Resting
        return seen

    def _count(self, kind: str) -> None:
        with self._changing:
            self.acknowledged[kind] += 1
            self._changing.notify_all()

    # ------------------------------------------------------------------------------------- what the mirror has

    def _look_at_tags(self, connection: _Connection, repository: _Repository) -> None:
        """What was acknowledged is seen by the next request."""
        for tag in list(repository.tags):
            self._look_at_tag(connection, repository, tag)

    def _look_at_tag(
        self, connection: _Connection, repository: _Repository, tag: str, *, insisting: bool = False
    ) -> None:
        target = f"/v2/{repository.name}/manifests/{tag}"
        status, headers, body = connection.insist("GET", target, headers={"Accept": _MANIFEST})
        seen = headers["Docker-Content-Digest"] if status == 200 else None
        if status not in (200, 404):
            self._say(f"GET {target}: {status} {body[:300]!r}")
        elif self._losing and not insisting:
            raise _Resting
        elif seen not in repository.tags[tag]:
            # whether all replicas say so, and still do, shows where to look
            others = {port: connection.ask("GET", target, port=port)[1]["Docker-Content-Digest"] for port in self.ports}
            self._say(f"{target} is {seen} at {connection.port}, and may be {repository.tags[tag]}; now it is {others}")
        elif seen is not None and body != repository.images[seen].manifest:
            self._say(f"{target}: {len(body)} bytes that are not {seen}")
        else:
            repository.tags[tag] = {seen}
            if seen is not None:
                repository.manifests[seen] = {True}

    def _look(self, repository: _Repository) -> int:
        connection = _Connection(self, insisting=True)
        name, whole = repository.name, 0
        try:
            for digest, may_be in list(repository.manifests.items()):
                status, _, body = connection.insist("GET", f"/v2/{name}/manifests/{digest}")
                if status not in (200, 404) or (status == 200) not in may_be:
                    self._say(f"{name}@{digest} answers {status}, and may be {may_be}")
                    continue
                repository.manifests[digest] = {status == 200}
                if status == 404:
                    # a manifest that is gone has no tags
                    for tags in repository.tags.values():
                        tags.discard(digest)
                        if not tags:
                            tags.add(None)
                    continue
                if body != repository.images[digest].manifest:
                    self._say(f"{name}@{digest}: {len(body)} other bytes")
                for blob, content in repository.images[digest].blobs.items():
                    self._look_at_blob(connection, name, blob, content)
                whole += 1
            for tag in list(repository.tags):
                self._look_at_tag(connection, repository, tag, insisting=True)
            self._look_at_list(connection, repository)
            for blob, content in repository.blobs.items() if self._blobs_stay else ():
                self._look_at_blob(connection, name, blob, content)
        finally:
            connection.close()
        return whole

    def _look_at_blob(self, connection: _Connection, name: str, digest: str, content: bytes) -> None:
        status, _, body = connection.insist("GET", f"/v2/{name}/blobs/{digest}")
        if status != 200:
            self._say(f"{name}: blob {digest} answers {status}")
        elif hashlib.sha256(body).digest() != hashlib.sha256(content).digest():
            self._say(f"{name}: {len(body)} bytes that are not {digest}")

    def _look_at_list(self, connection: _Connection, repository: _Repository) -> None:
        """Each tag was looked at, so there is one value for each."""
        status, _, body = connection.insist("GET", f"/v2/{repository.name}/tags/list")
        listed = json.loads(body)["tags"] if status == 200 else []
        known = sorted(tag for tag, may_be in repository.tags.items() if may_be - {None})
        if listed != known:
            self._say(f"{repository.name} lists {listed}, and has {known}")

    def __enter__(self) -> Pushers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changing:
            self._leaving = True
            self._going = False
            self.pause.set()
            self._changing.notify_all()
        for thread in self._threads:
            thread.join(60)


class _Connection:
    """One client's: to each port one that is made anew whenever it breaks. `chance` chooses the port of a request."""

    def __init__(self, pushers: Pushers, chance: random.Random | None = None, *, insisting: bool = False) -> None:
        """`insisting`: also while the clients rest."""
        self._pushers = pushers
        self._chance = chance or random.Random(0)
        self._insisting = insisting
        self._connections: dict[int, http.client.HTTPConnection] = {}
        #: Where it asked last.
        self.port = 0

    def insist(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, Any, bytes]:
        """Ask until there is an answer that is not the mirror's trouble. Raises `_Resting`."""
        tries = 0
        while True:
            answer = self.ask(method, target, body, headers)
            # a replica that does not reach the bucket warns that others may know better
            if answer[0] and answer[0] < 500 and "Warning" not in answer[1]:
                return answer
            tries += 1
            if tries > self._pushers.tries:
                raise AssertionError(f"{method} {target}: {answer[0]} {answer[2][:300]!r}")
            self._pushers.pause.wait(0.01)

    def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        port: int | None = None,
    ) -> tuple[int, Any, bytes]:
        """Ask once, at this port; None: at any. Status 0 if no whole answer came. Raises `_Resting`."""
        if not (self._insisting or self._pushers._going or self._pushers._finishing):
            raise _Resting
        if port is None:
            port = self._chance.choice(self._pushers.ports)
        self.port = port
        connection = self._connections.get(port)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=self._pushers.patience)
            self._connections[port] = connection
        try:
            connection.request(method, target, body, headers or {})
            answer = connection.getresponse()
            status, said, content = answer.status, answer.headers, answer.read()
        except (OSError, http.client.HTTPException):
            self._connections.pop(port).close()
            status, said, content = 0, http.client.HTTPMessage(), b""
        with self._pushers._changing:
            self._pushers.statuses[status] += 1
        return status, said, content

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(content), "size": len(content)}
