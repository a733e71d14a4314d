"""The client that pushes, as a process of its own and the same for every system. Bodies go out by `sendfile`.

python -m bench.push_client PORT MODE FILE DIGEST…     prints a `Pushed` as JSON

blobs    each connection pushes one file, as podman does: POST, PATCH with the whole body, PUT
images   FILE has one JSON line for each image; eight connections push them, as a client does: HEAD and POST and PUT
         for each blob, then the manifest
mounts   FILE has one line for each mount: the target of a POST
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.process import BenchFailed

_ROOT: Final = Path(__file__).resolve().parent.parent
#: Connections that push small images, or mount, at once.
_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Pushed:
    """Seconds from the first request to the last answer."""

    seconds: float


def push_blobs(port: int, repository: str, files: Sequence[tuple[Path, str]]) -> Pushed:
    """Push files with their digests, all at once. Raises `BenchFailed`."""
    return _run(port, "blobs", repository, *(f"{path}={digest}" for path, digest in files))


def push_images(port: int, images: Path) -> Pushed:
    """Push images, described line by line (`small_images`). Raises `BenchFailed`."""
    return _run(port, "images", str(images))


def mount(port: int, targets: Path) -> Pushed:
    """Mount as the lines of a file say. Raises `BenchFailed`."""
    return _run(port, "mounts", str(targets))


def _run(port: int, *arguments: str) -> Pushed:
    argv = [sys.executable, "-m", "bench.push_client", str(port), *arguments]
    done = subprocess.run(argv, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"{arguments[0]} to port {port}: {done.stderr[-1000:]}")
    return Pushed(json.loads(done.stdout)["seconds"])


class _Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._connection.connect()

    def ask(
        self, method: str, target: str, wanted: Iterable[int], body: bytes = b"", kind: str = "application/octet-stream"
    ) -> http.client.HTTPResponse:
        headers = {"Content-Type": kind} if body else {}
        if method in ("POST", "PUT"):
            headers["Content-Length"] = str(len(body))
        self._connection.request(method, target, body=body or None, headers=headers)
        return self._answer(method, target, wanted)

    def send_file(self, method: str, target: str, path: Path, wanted: Iterable[int]) -> http.client.HTTPResponse:
        size = path.stat().st_size
        connection = self._connection
        connection.putrequest(method, target)
        connection.putheader("Content-Type", "application/octet-stream")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        with path.open("rb") as file:
            sent = 0
            while sent < size:
                sent += os.sendfile(connection.sock.fileno(), file.fileno(), sent, size - sent)
        return self._answer(method, target, wanted)

    def _answer(self, method: str, target: str, wanted: Iterable[int]) -> http.client.HTTPResponse:
        answer = self._connection.getresponse()
        said = answer.read()
        if answer.status not in wanted:
            raise BenchFailed(f"{method} {target}: {answer.status} {said[:300]!r}")
        return answer

    def begin(self, repository: str) -> str:
        location = self.ask("POST", f"/v2/{repository}/blobs/uploads/", (202,)).headers["Location"]
        return location if location.startswith("/") else "/" + location.split("/", 3)[3]


def _finished(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={digest}"


def _push_file(port: int, repository: str, path: Path, digest: str) -> None:
    client = _Client(port)
    location = client.begin(repository)
    location = client.send_file("PATCH", location, path, (202,)).headers["Location"]
    location = location if location.startswith("/") else "/" + location.split("/", 3)[3]
    client.ask("PUT", _finished(location, digest), (201,))


def _push_images(client: _Client, images: Iterable[dict[str, str]]) -> None:
    for image in images:
        repository = image["repository"]
        for name in ("config", "layer"):
            content, digest = image[name].encode(), image[f"{name}Digest"]
            client.ask("HEAD", f"/v2/{repository}/blobs/{digest}", (404,))
            client.ask("PUT", _finished(client.begin(repository), digest), (201,), content)
        kind = "application/vnd.oci.image.manifest.v1+json"
        client.ask("PUT", f"/v2/{repository}/manifests/{image['tag']}", (201,), image["manifest"].encode(), kind)


def _mount(client: _Client, targets: Iterable[str]) -> None:
    for target in targets:
        client.ask("POST", target, (201,))


def _together(works: Sequence[Callable[[], None]]) -> float:
    """The seconds that all of them take side by side."""
    failed: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = time.perf_counter()
    if failed:
        raise failed[0]
    return ended - begun


def _main() -> None:
    port, mode, *rest = sys.argv[1:]
    if mode == "blobs":
        repository, *files = rest
        pairs = [(Path(path), digest) for path, _, digest in (file.partition("=") for file in files)]
        works: list[Callable[[], None]] = [
            lambda path=path, digest=digest: _push_file(int(port), repository, path, digest)  # type: ignore[misc]
            for path, digest in pairs
        ]
    else:
        lines = Path(rest[0]).read_text().splitlines()
        clients = [(_Client(int(port)), lines[number::_AT_ONCE]) for number in range(_AT_ONCE)]
        if mode == "images":
            works = [
                lambda client=client, share=share: _push_images(client, [json.loads(line) for line in share])  # type: ignore[misc]
                for client, share in clients
            ]
        else:
            works = [lambda client=client, share=share: _mount(client, share) for client, share in clients]  # type: ignore[misc]
    print(json.dumps({"seconds": _together(works)}))


if __name__ == "__main__":
    _main()
