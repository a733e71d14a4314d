"""Images that the tests make themselves, without network, and push to a registry over the distribution API.

Everything is seeded: the same image has the same digest in every run (but the one that umoci makes, with its clock).
No two images share a blob, so that the first pull of each is cold, whichever images were pulled before.

    oci       one layer, OCI manifest, busybox with ENTRYPOINT and CMD
    schema2   one layer, Docker image manifest v2 schema 2
    index     OCI index of three platforms
    list      Docker manifest list of two platforms
    many      forty layers, one of which covers files of another
    big       one layer of more than 200 MiB that does not compress
    umoci     made by umoci and pushed by skopeo, as people do
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import platform
import random
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit

from tests.support.process import PATIENCE, program, run

#: Bytes of the big layer's one file; the layer itself is a little larger.
BIG: Final = 64 * 1024 * 1024

_GO_NAMES: Final = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}

#: The platform that clients on this machine choose from an index.
NATIVE: Final = "linux/" + _GO_NAMES.get(platform.machine(), platform.machine())

_OCI: Final = {
    "manifest": "application/vnd.oci.image.manifest.v1+json",
    "index": "application/vnd.oci.image.index.v1+json",
    "config": "application/vnd.oci.image.config.v1+json",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "tar": "application/vnd.oci.image.layer.v1.tar",
}
_DOCKER: Final = {
    "manifest": "application/vnd.docker.distribution.manifest.v2+json",
    "index": "application/vnd.docker.distribution.manifest.list.v2+json",
    "config": "application/vnd.docker.container.image.v1+json",
    "gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
}


def sha256(content: bytes) -> str:
    """`sha256:…` of bytes in memory."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob as its descriptor says; `size` in bytes."""

    media_type: str
    digest: str
    size: int

    def to_json(self) -> dict[str, Any]:
        """Its descriptor."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True)
class Image:
    """An image of one platform: what was pushed. `files` are the digests of what a container would see, by path."""

    manifest: bytes
    media_type: str
    platform: str
    config: Blob
    layers: tuple[Blob, ...]
    diff_ids: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of the manifest."""
        return sha256(self.manifest)

    @property
    def blobs(self) -> dict[str, int]:
        """Config and layers: size in bytes by digest."""
        return {blob.digest: blob.size for blob in (self.config, *self.layers)}

    def to_json(self) -> dict[str, Any]:
        """Its descriptor in an index."""
        system, _, architecture = self.platform.partition("/")
        return {
            **Blob(self.media_type, self.digest, len(self.manifest)).to_json(),
            "platform": {"architecture": architecture, "os": system},
        }


@dataclass(frozen=True, slots=True)
class Published:
    """The content that a tag names: one image, or an index of several."""

    registry: str
    repository: str
    tag: str
    content: bytes
    media_type: str
    images: tuple[Image, ...]

    @property
    def digest(self) -> str:
        """Of the manifest or index that the tag names."""
        return sha256(self.content)

    @property
    def name(self) -> str:
        """`docker.io/library/oci:v1`, as people write it."""
        return f"{self.registry}/{self.repository}:{self.tag}"

    @property
    def is_index(self) -> bool:
        """Whether the tag names an index."""
        return self.content != self.images[0].manifest

    @property
    def native(self) -> Image:
        """The image for this machine."""
        return next(image for image in self.images if image.platform == NATIVE)

    @property
    def blobs(self) -> dict[str, int]:
        """Blobs of every platform: size in bytes by digest."""
        return {digest: size for image in self.images for digest, size in image.blobs.items()}


class Pusher:
    """Pushes to one repository (distribution-spec, "Push")."""

    def __init__(self, url: str, repository: str) -> None:
        self.repository = repository
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE, blocksize=1 << 20)

    def _ask(
        self, method: str, target: str, body: Any, headers: Mapping[str, str], wanted: int
    ) -> http.client.HTTPMessage:
        self._connection.request(method, target, body, dict(headers))
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == wanted, f"{method} {target}: {answer.status} {body[:1000]!r}"
        return answer.headers

    def blob(self, media_type: str, content: bytes | Path) -> Blob:
        """Upload a blob, from memory or from a file."""
        if isinstance(content, Path):
            with content.open("rb") as file:
                digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
            blob = Blob(media_type, digest, content.stat().st_size)
        else:
            blob = Blob(media_type, sha256(content), len(content))
        begun = self._ask("POST", f"/v2/{self.repository}/blobs/uploads/", b"", {}, 202)
        place = urlsplit(begun["Location"])
        target = f"{place.path}?{place.query}&digest={blob.digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        if isinstance(content, Path):
            with content.open("rb") as file:
                self._ask("PUT", target, file, headers, 201)
        else:
            self._ask("PUT", target, content, headers, 201)
        return blob

    def manifest(self, reference: str, media_type: str, content: bytes) -> None:
        """Put a manifest or index under a tag or digest."""
        target = f"/v2/{self.repository}/manifests/{reference}"
        answer = self._ask("PUT", target, content, {"Content-Type": media_type}, 201)
        assert answer["Docker-Content-Digest"] == sha256(content)

    def image(
        self,
        layers: Sequence[Mapping[str, bytes]],
        *,
        types: Mapping[str, str] = _OCI,
        platform: str = NATIVE,
        config: Mapping[str, Any] | None = None,
    ) -> Image:
        """Push an image whose layers are given as files; its manifest goes up by digest."""
        blobs, diff_ids = [], []
        files: dict[str, str] = {}
        for layer in layers:
            tar = _tar(layer)
            blobs.append(self.blob(types["gzip"], gzip.compress(tar, 6, mtime=0)))
            diff_ids.append(sha256(tar))
            files |= {path: sha256(content) for path, content in layer.items()}
        return self._assemble(blobs, diff_ids, files, types, platform, config)

    def image_of_tar(self, tar: Path, files: Mapping[str, str]) -> Image:
        """Push an image of one uncompressed layer that lies in a file."""
        blob = self.blob(_OCI["tar"], tar)
        return self._assemble([blob], [blob.digest], files, _OCI, NATIVE, None)

    def _assemble(
        self,
        layers: Sequence[Blob],
        diff_ids: Sequence[str],
        files: Mapping[str, str],
        types: Mapping[str, str],
        platform: str,
        config: Mapping[str, Any] | None,
    ) -> Image:
        system, _, architecture = platform.partition("/")
        described = {
            "created": "2024-01-01T00:00:00Z",
            "architecture": architecture,
            "os": system,
            # the repository's name makes the config, and with it the image's id, its own
            "config": {"Labels": {"repository": self.repository}, **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
            "history": [{"created": "2024-01-01T00:00:00Z", "created_by": f"layer {n}"} for n in range(len(layers))],
        }
        config_blob = self.blob(types["config"], _json(described))
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": types["manifest"],
                "config": config_blob.to_json(),
                "layers": [layer.to_json() for layer in layers],
            }
        )
        self.manifest(sha256(manifest), types["manifest"], manifest)
        return Image(manifest, types["manifest"], platform, config_blob, tuple(layers), tuple(diff_ids), dict(files))

    def tag(self, registry: str, tag: str, *images: Image, index: str | None = None) -> Published:
        """Name one image, or an index of several of the media type given."""
        content, media_type = images[0].manifest, images[0].media_type
        if index is not None:
            listed = [image.to_json() for image in images]
            content, media_type = _json({"schemaVersion": 2, "mediaType": index, "manifests": listed}), index
        self.manifest(tag, media_type, content)
        return Published(registry, self.repository, tag, content, media_type, images)

    def close(self) -> None:
        """Repeatable."""
        self._connection.close()

    def __enter__(self) -> Pusher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def publish_all(url: str, scratch: Path, registry: str = "docker.io") -> dict[str, Published]:
    """Push every image of the table above to the registry at `url`; `scratch` is for files on the way."""
    return {
        "oci": publish_small(url, registry, "library/of-oci"),
        "schema2": publish_small(url, registry, "library/of-schema2", types=_DOCKER),
        "index": _publish_index(url, registry, "library/of-index", _OCI, ("amd64", "arm64", "s390x")),
        "list": _publish_index(url, registry, "team/deep/of-list", _DOCKER, ("amd64", "arm64")),
        "many": _publish_many(url, registry),
        "big": _publish_big(url, scratch, registry),
        "umoci": _publish_umoci(url, scratch, registry),
    }


def publish_small(
    url: str, registry: str, repository: str, tag: str = "v1", *, types: Mapping[str, str] = _OCI
) -> Published:
    """An image that runs: busybox with an ENTRYPOINT and a CMD that prints the repository's name."""
    with Pusher(url, repository) as pusher:
        busybox = Path(program("busybox")).read_bytes()
        words = {"Entrypoint": ["/bin/busybox"], "Cmd": ["echo", f"this is {repository}"], "Env": ["PATH=/bin"]}
        layer = {"bin/busybox": busybox, "etc/origin": f"{registry}/{repository}".encode()}
        return pusher.tag(registry, tag, pusher.image([layer], types=types, config=words))


def _publish_index(
    url: str, registry: str, repository: str, types: Mapping[str, str], architectures: Sequence[str]
) -> Published:
    with Pusher(url, repository) as pusher:
        platforms = sorted({NATIVE, *(f"linux/{name}" for name in architectures)})
        images = [
            pusher.image(
                [{"etc/platform": f"{name} of {repository}".encode(), "srv/noise": _noise(name + repository, 65_536)}],
                types=types,
                platform=name,
            )
            for name in platforms
        ]
        return pusher.tag(registry, "v1", *images, index=types["index"])


def _publish_many(url: str, registry: str) -> Published:
    with Pusher(url, "library/of-many") as pusher:
        layers = [{f"srv/{n}": _noise(f"many {n}", 40_000 + n), "srv/last": f"layer {n}".encode()} for n in range(40)]
        return pusher.tag(registry, "v1", pusher.image(layers))


def _publish_big(url: str, scratch: Path, registry: str) -> Published:
    """The noise goes straight into a tar file, so that it is never in memory as a whole."""
    tar, step = scratch / "big.tar", 1 << 20
    noise, whole = random.Random("big"), hashlib.sha256()
    # one file: its header, then blocks of 512 bytes, two empty ones at the end
    with tar.open("wb") as file:
        file.write(_entry("srv/noise", BIG).tobuf(tarfile.USTAR_FORMAT))
        for _ in range(BIG // step):
            chunk = noise.randbytes(step)
            whole.update(chunk)
            file.write(chunk)
        file.write(bytes(2 * tarfile.BLOCKSIZE))
    with Pusher(url, "library/of-big") as pusher:
        image = pusher.image_of_tar(tar, {"srv/noise": "sha256:" + whole.hexdigest()})
        tar.unlink()
        return pusher.tag(registry, "v1", image)


def _publish_umoci(url: str, scratch: Path, registry: str) -> Published:
    repository, layout, bundle = "library/of-umoci", scratch / "umoci", scratch / "bundle"
    run(["umoci", "init", "--layout", layout])
    run(["umoci", "new", "--image", f"{layout}:v1"])
    run(["umoci", "unpack", "--image", f"{layout}:v1", bundle])
    busybox, place = Path(program("busybox")).read_bytes(), bundle / "rootfs" / "bin" / "busybox"
    place.parent.mkdir(parents=True)
    place.write_bytes(busybox)
    place.chmod(0o755)
    run(["umoci", "repack", "--image", f"{layout}:v1", bundle])
    words = ["--config.entrypoint", "/bin/busybox", "--config.cmd", "echo", "--config.cmd", "hello"]
    run(["umoci", "config", "--image", f"{layout}:v1", *words, "--os", "linux", "--architecture", NATIVE[6:]])
    target = f"{urlsplit(url).netloc}/{repository}:v1"
    run(["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", f"oci:{layout}:v1", f"docker://{target}"])
    content = run(["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{target}"])
    read = json.loads(content)
    described = json.loads((layout / "blobs" / "sha256" / read["config"]["digest"].partition(":")[2]).read_bytes())
    image = Image(
        content,
        _OCI["manifest"],  # umoci leaves it to the Content-Type
        NATIVE,
        Blob(read["config"]["mediaType"], read["config"]["digest"], read["config"]["size"]),
        tuple(Blob(layer["mediaType"], layer["digest"], layer["size"]) for layer in read["layers"]),
        tuple(described["rootfs"]["diff_ids"]),
        {"bin/busybox": sha256(busybox)},
    )
    return Published(registry, repository, "v1", content, image.media_type, (image,))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _noise(seed: str, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def _entry(path: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode, entry.mtime = size, 0o755, 1_700_000_000
    return entry


def _tar(files: Mapping[str, bytes]) -> bytes:
    """An uncompressed layer, its directories first (some clients want them named)."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted({str(parent) for path in files for parent in Path(path).parents} - {"."}):
            entry = _entry(name, 0)
            entry.type = tarfile.DIRTYPE
            tar.addfile(entry)
        for path, content in files.items():
            tar.addfile(_entry(path, len(content)), io.BytesIO(content))
    return made.getvalue()
