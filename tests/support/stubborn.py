"""Clients that pull images all the time, try again as real ones do, and look at every byte.

    with Stubborn(port, images, clients=4) as clients:
        ... kill, cut, reload ...
    clients.pulled, clients.failed, clients.broken     # whole images; pulls given up; answers that broke off
    clients.corrupt                                    # complete answers whose bytes their digest does not name: []

A pull is the manifest by tag, the manifest by digest, and every blob, some by parts. A request that breaks, is refused
or gets a 5xx is made again, at most `tries` times in a row without an answer; what has come of a blob is resumed by
Range, as containerd does it. A blob with all the bytes that its manifest says is judged and done, even if its answer
broke off before the end of its last chunk: the range after the last byte would be refused, rightly.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any


class _GivenUp(Exception):
    """No answer after so many tries."""


class Stubborn:
    """`ports` are those of one mirror, or of several replicas: each connection goes to the next of them. `images` are
    repositories and tags. `pause` in seconds lies between two tries; `keep` reuses connections.
    """

    def __init__(
        self,
        ports: int | Sequence[int],
        images: Sequence[tuple[str, str]],
        *,
        clients: int = 4,
        tries: int = 10,
        pause: float = 0.05,
        keep: bool = False,
        seed: int = 0,
        timeout: float = 30.0,
    ) -> None:
        self._ports = itertools.cycle([ports] if isinstance(ports, int) else list(ports))
        self._images = list(images)
        self._tries = tries
        self._pause = pause
        self._keep = keep
        self._timeout = timeout
        self._leaving = threading.Event()
        self._counting = threading.Condition()
        self.pulled = self.broken = self.requests = self.bytes = 0
        self.failed: list[str] = []
        self.corrupt: list[str] = []
        self.statuses: Counter[int] = Counter()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed * 1000 + number),), daemon=True)
            for number in range(clients)
        ]

    def wait_for_pulls(self, more: int, *, timeout: float = 120.0) -> None:
        """Until so many more images were pulled whole."""
        with self._counting:
            wanted = self.pulled + more
            assert self._counting.wait_for(lambda: self.pulled >= wanted or self.failed, timeout), (
                "no pull came to an end"
            )

    def leave(self) -> None:
        """Every client stops after its pull."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(180)
            assert not thread.is_alive(), "a client hangs"

    def _run(self, chance: random.Random) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", timeout=self._timeout)
        while not self._leaving.is_set():
            name, tag = chance.choice(self._images)
            try:
                self._pull(connection, chance, name, tag)
            except _GivenUp as error:
                with self._counting:
                    self.failed.append(f"{name}:{tag}: {error}")
                    self._counting.notify_all()
            else:
                with self._counting:
                    self.pulled += 1
                    self._counting.notify_all()
        connection.close()

    def _pull(self, connection: http.client.HTTPConnection, chance: random.Random, name: str, tag: str) -> None:
        digest, body = self._get(connection, f"/v2/{name}/manifests/{tag}")
        _, again = self._get(connection, f"/v2/{name}/manifests/{digest}")
        if again != body:
            self.corrupt.append(f"{name}:{tag} and {digest} differ")
        manifest = json.loads(body)
        wanted = [manifest["config"], *manifest["layers"]]
        chance.shuffle(wanted)
        for one in wanted:
            self._get_blob(connection, chance, f"/v2/{name}/blobs/{one['digest']}", one["digest"], one["size"])

    def _get(self, connection: http.client.HTTPConnection, target: str) -> tuple[str, bytes]:
        for _ in range(self._tries):
            status, headers, body, whole = self._ask(connection, target, {})
            if status == 200 and whole:
                digest = str(headers["Docker-Content-Digest"])
                self._judge(target, digest, body)
                return digest, body
            self._leaving.wait(self._pause)
        raise _GivenUp(f"{target}: {status} {body[:200]!r}")

    def _get_blob(
        self, connection: http.client.HTTPConnection, chance: random.Random, target: str, digest: str, size: int
    ) -> None:
        came = bytearray()
        tries = 0
        if size > 1 and chance.random() < 0.2:
            # a part by itself, from the middle
            middle = size // 2
            status, _, part, whole = self._ask(connection, target, {"Range": f"bytes={middle}-"})
            half = part if status == 206 and whole else b""
        else:
            half = b""
        while True:
            headers = {"Range": f"bytes={len(came)}-"} if came else {}
            status, said, body, whole = self._ask(connection, target, headers)
            if status == 200:
                if whole:
                    self._judge(target, digest, body)
                came[:] = body
            elif status == 206:
                start = int(said["Content-Range"].split()[1].partition("-")[0])
                came[start:] = body
            if status in (200, 206) and (whole or len(came) >= size):
                break
            tries = 0 if body and status in (200, 206) else tries + 1
            if tries >= self._tries:
                raise _GivenUp(f"{target}: {status} {body[:200]!r}")
            self._leaving.wait(self._pause)
        self._judge(target, digest, bytes(came))
        if half and bytes(came[size - len(half) :]) != half:
            self.corrupt.append(f"{target}: another second half")

    def _ask(
        self, connection: http.client.HTTPConnection, target: str, headers: dict[str, str]
    ) -> tuple[int, Any, bytes, bool]:
        """Status (0: no answer), headers, the received part of the body, and whether that is the whole body."""
        status, said, body, whole = 0, None, b"", False
        if connection.sock is None:
            # it connects when it is asked next
            connection.port = next(self._ports)
        try:
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            status, said = answer.status, answer.headers
            body = answer.read()
            whole = True
        except http.client.IncompleteRead as error:
            body = error.partial
            connection.close()
        except (OSError, http.client.HTTPException):
            connection.close()
        if not self._keep:
            connection.close()
        with self._counting:
            self.requests += 1
            self.bytes += len(body)
            self.statuses[status] += 1
            self.broken += not whole
        return status, said, body, whole

    def _judge(self, target: str, digest: str, body: bytes) -> None:
        algorithm, _, encoded = digest.partition(":")
        if hashlib.new(algorithm, body).hexdigest() != encoded:
            self.corrupt.append(f"{target}: {len(body)} bytes that are not {digest}")

    def __enter__(self) -> Stubborn:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.leave()
        else:
            # after any failure, no server may be left that answers them
            self._leaving.set()
