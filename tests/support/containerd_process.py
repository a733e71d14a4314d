"""containerd with everything of its own: root, state, socket, plugins. No shared file is read or written.

Its two ways to pull: `ctr` (the client's resolver, `--hosts-dir`) and the container runtime interface of Kubernetes
(the daemon's resolver, `config_path`), which is spoken to directly, over gRPC, with messages encoded here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import grpc

from tests.support.images import Image, Published
from tests.support.mounts import overlay_works, unmount_below
from tests.support.process import PATIENCE, ProgramProcess, run
from tests.support.pulls import OFFLINE

#: What a mirror is used for, in a `[host…]` section.
PULLS: Final = '\n  capabilities = ["pull", "resolve"]\n'

#: The namespace in which the runtime interface keeps its images.
CRI_NAMESPACE: Final = "k8s.io"

_PLUGINS: Final = "io.containerd"


def write_hosts(directory: Path, hosts: Mapping[str, str]) -> Path:
    """`hosts.toml` files by registry name (`_default` for all others); the values are their `[host…]` sections.

    The registry itself is set to a port that refuses, so that only the mirror can have answered.
    """
    for name, section in hosts.items():
        place = directory / name
        place.mkdir(parents=True)
        (place / "hosts.toml").write_text(f'server = "https://127.0.0.1:9"\n{section}\n')
    return directory


class ContainerdProcess:
    """A running containerd; it serves when the constructor returns. `directory` must have a short path."""

    def __init__(self, directory: Path, *, hosts: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.hosts = hosts
        self.socket = directory / "c.sock"
        self.snapshotter = "overlayfs" if overlay_works(directory) else "native"
        settings = directory / "config.toml"
        settings.write_text(
            f"""
            version = 2
            root = "{directory}/root"
            state = "{directory}/state"
            temp = "{directory}/temp"
            disabled_plugins = [
                "{_PLUGINS}.snapshotter.v1.aufs", "{_PLUGINS}.snapshotter.v1.btrfs",
                "{_PLUGINS}.snapshotter.v1.devmapper", "{_PLUGINS}.snapshotter.v1.zfs",
                "{_PLUGINS}.internal.v1.tracing", "{_PLUGINS}.tracing.processor.v1.otlp",
            ]
            [grpc]
            address = "{self.socket}"
            [ttrpc]
            address = "{directory}/t.sock"
            [plugins."{_PLUGINS}.internal.v1.opt"]
            path = "{directory}/opt"
            [plugins."{_PLUGINS}.grpc.v1.cri"]
            stream_server_port = "0"
            disable_tcp_service = true
            [plugins."{_PLUGINS}.grpc.v1.cri".cni]
            bin_dir = "{directory}/cni"
            conf_dir = "{directory}/net.d"
            [plugins."{_PLUGINS}.grpc.v1.cri".containerd]
            snapshotter = "{self.snapshotter}"
            [plugins."{_PLUGINS}.grpc.v1.cri".registry]
            config_path = "{hosts}"
            """
        )
        self._process = ProgramProcess(["containerd", "--config", settings], env=OFFLINE)
        try:
            self._process.wait_for(lambda line: "containerd successfully booted" in line, "it serves")
        except BaseException:
            self.stop()
            raise

    def ctr(self, *words: str, namespace: str = "default", timeout: float = PATIENCE) -> bytes:
        """Run one `ctr` command and return what it says."""
        return run(["ctr", "--address", self.socket, "--namespace", namespace, *words], env=OFFLINE, timeout=timeout)

    def content(self, namespace: str = "default") -> dict[str, str]:
        """The sizes of the blobs in its content store, as it prints them, by digest."""
        lines = self.ctr("content", "ls", namespace=namespace).decode().splitlines()[1:]
        return {words[0]: words[1] for words in (line.split() for line in lines) if words}

    def blob_file(self, digest: str) -> Path:
        """Where its content store keeps a blob; every namespace that holds it shares the file."""
        algorithm, _, encoded = digest.partition(":")
        return self.directory / "root" / f"{_PLUGINS}.content.v1.content" / "blobs" / algorithm / encoded

    def compare(self, image: Published, images: Iterable[Image], namespace: str = "default") -> None:
        """Manifests and blobs of these platforms are in the namespace as they were pushed, byte for byte."""
        content = self.content(namespace)
        wanted = {image.digest: len(image.content)}
        for one in images:
            wanted |= {one.digest: len(one.manifest), **one.blobs}
        for digest, size in wanted.items():
            assert digest in content
            with self.blob_file(digest).open("rb") as file:
                assert "sha256:" + hashlib.file_digest(file, "sha256").hexdigest() == digest
                assert file.tell() == size

    def tail(self) -> str:
        """The last log lines, for failure messages."""
        return self._process.tail()

    def stop(self) -> None:
        """Repeatable; unmounts what it left."""
        self._process.stop()
        unmount_below(self.directory)

    def __enter__(self) -> ContainerdProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


# ------------------------------------------------------------------- the container runtime interface (CRI, v1)


@dataclass(frozen=True, slots=True)
class CriImage:
    """`runtime.v1.Image`; `size` in bytes."""

    id: str
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    size: int


class Cri:
    """`runtime.v1.ImageService` over a unix socket: what the kubelet calls."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}")

    def _call(self, method: str, request: bytes) -> dict[int, list[Any]]:
        call = self._channel.unary_unary(f"/runtime.v1.ImageService/{method}")
        return _decode(call(request, timeout=PATIENCE, wait_for_ready=True))

    def pull(self, image: str) -> str:
        """`PullImage`; returns the image's reference. Raises `grpc.RpcError`."""
        reference: bytes = self._call("PullImage", _message(1, _message(1, image.encode())))[1][0]
        return reference.decode()

    def status(self, image: str) -> CriImage | None:
        """`ImageStatus`; None if it is not there."""
        found = self._call("ImageStatus", _message(1, _message(1, image.encode())))
        if 1 not in found:
            return None
        fields = _decode(found[1][0])
        tags, digests = ([text.decode() for text in fields.get(number, [])] for number in (2, 3))
        return CriImage(fields[1][0].decode(), tuple(tags), tuple(digests), fields.get(4, [0])[0])

    def remove(self, image: str) -> None:
        """`RemoveImage`."""
        self._call("RemoveImage", _message(1, _message(1, image.encode())))

    def close(self) -> None:
        """Repeatable."""
        self._channel.close()


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _message(number: int, content: bytes) -> bytes:
    """One length-delimited field (protobuf encoding, wire type 2): a string or a message within a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _decode(message: bytes) -> dict[int, list[Any]]:
    """Fields by number: integers of varints, bytes of everything length-delimited."""
    fields: dict[int, list[Any]] = {}
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    while position < len(message):
        key = varint()
        match key & 7:
            case 0:
                fields.setdefault(key >> 3, []).append(varint())
            case 2:
                length = varint()
                fields.setdefault(key >> 3, []).append(message[position : position + length])
                position += length
            case other:
                raise ValueError(f"wire type {other} is in no message that is read here")
    return fields
