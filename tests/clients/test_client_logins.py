"""Real clients log in at the mirror, with two accounts of different rights, and with a client certificate."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import io
import json
import shutil
import ssl
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import grpc
import pytest

from tests.clients.conftest import Library, open_site, short_directory
from tests.support.certificates import Certificate
from tests.support.containerd_process import CRI_NAMESPACE, PULLS, ContainerdProcess, Cri, write_hosts
from tests.support.dockerd_process import DockerdProcess, PullFailed
from tests.support.fake_registry import FakeRegistry
from tests.support.images import Published
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.mounts import unmount_below
from tests.support.process import CommandFailed, eventually, run
from tests.support.pulls import OFFLINE
from tests.support.registry_process import RegistryProcess
from tests.support.skopeo import compare_directory

_ALICE, _BOB = ("alice", "alices-word"), ("bob", "bobs-word")


@dataclass(frozen=True, slots=True)
class Guarded:
    """A mirror with access rules: alice may pull everything, bob nothing of docker.io, others nothing at all."""

    mirror: MirrorProcess
    docker: Published
    ghcr: Published
    directory: Path

    def called(self, image: Published) -> str:
        """The image by the mirror's own name."""
        return f"{self.mirror.address}/{image.registry}/{image.repository}:{image.tag}"


def _access(directory: Path) -> str:
    hashed = {name: bcrypt.hashpw(word.encode(), bcrypt.gensalt(5)).decode() for name, word in (_ALICE, _BOB)}
    (directory / "htpasswd").write_text("".join(f"{name}:{one}\n" for name, one in hashed.items()))
    return f"""
        [access]
        anonymous = false
        htpasswd = "{directory}/htpasswd"
        audit_log = "{directory}/audit.jsonl"
        [[access.rule]]
        effect = "allow"
        callers = ["user:alice", "certificate:node-*"]
        [[access.rule]]
        effect = "allow"
        callers = ["user:bob"]
        repositories = ["ghcr.io/**"]
    """


@pytest.fixture(scope="module")
def guarded(library: Library) -> Iterator[Guarded]:
    """With two registries behind it, and two workers, which must take each other's tokens."""
    with open_site(library, _access) as site:
        yield Guarded(site.mirror, site.images["oci"], site.foreign["skopeo"], site.directory)


def _refused(error: BaseException) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("unauthorized", "name unknown", "name_unknown", "not found", "401", "404"))


def test_skopeo(guarded: Guarded) -> None:
    """`--src-creds`: alice gets what does not exist for bob; without credentials nothing exists."""

    def copy(image: Published, account: tuple[str, str] | None) -> Path:
        target = guarded.directory / "skopeo"
        shutil.rmtree(target, ignore_errors=True)
        options = [f"--src-creds={':'.join(account)}"] if account else ["--src-no-creds"]
        words = ["skopeo", "--insecure-policy", "copy", "--all", "--src-tls-verify=false", *options]
        run([*words, f"docker://{guarded.called(image)}", f"dir:{target}"], env=OFFLINE)
        return target

    compare_directory(copy(guarded.docker, _ALICE), guarded.docker, every_platform=True)
    compare_directory(copy(guarded.ghcr, _BOB), guarded.ghcr, every_platform=True)
    for image, account in [(guarded.docker, _BOB), (guarded.ghcr, ("bob", "wrong")), (guarded.ghcr, None)]:
        with pytest.raises(CommandFailed) as caught:
            copy(image, account)
        assert _refused(caught.value)


def test_podman_logs_in(guarded: Guarded) -> None:
    """`podman login` refuses a wrong password, keeps a right one, and pulls with it."""
    place = guarded.directory / "podman"
    place.mkdir()
    accounts = place / "auth.json"
    (place / "registries.conf").write_text(f'[[registry]]\nlocation = "{guarded.mirror.address}"\ninsecure = true\n')

    def podman(*words: str) -> bytes:
        options = [f"--root={place}/root", f"--runroot={place}/run", "--storage-driver=vfs", "--events-backend=none"]
        settings = {"CONTAINERS_REGISTRIES_CONF": str(place / "registries.conf"), "REGISTRY_AUTH_FILE": str(accounts)}
        return run(["podman", *options, *words], env={**OFFLINE, **settings})

    def log_in(name: str, word: str) -> None:
        podman("login", "--tls-verify=false", f"--username={name}", f"--password={word}", guarded.mirror.address)

    try:
        with pytest.raises(CommandFailed):
            log_in("alice", "wrong")
        log_in(*_BOB)
        podman("pull", "--quiet", guarded.called(guarded.ghcr))
        with pytest.raises(CommandFailed) as caught:
            podman("pull", "--quiet", guarded.called(guarded.docker))
        assert _refused(caught.value)
        log_in(*_ALICE)
        pulled = podman("pull", "--quiet", guarded.called(guarded.docker)).decode().strip()
        assert pulled == guarded.docker.native.config.digest.partition(":")[2]
    finally:
        unmount_below(place)


def test_containerd(guarded: Guarded) -> None:
    """`ctr --user`, and a header in `hosts.toml`, which is how nodes are given an account of their own."""
    encoded = base64.b64encode(":".join(_ALICE).encode()).decode()
    section = f'[host."{guarded.mirror.url}"]{PULLS}'
    with_header = f'{section}  [host."{guarded.mirror.url}".header]\n    Authorization = "Basic {encoded}"\n'
    hosts = write_hosts(guarded.directory / "hosts", {"docker.io": section, "ghcr.io": with_header})
    with ContainerdProcess(guarded.directory / "c", hosts=hosts) as containerd:
        pull = ("images", "pull", "--hosts-dir", str(hosts), "--snapshotter", containerd.snapshotter)
        with pytest.raises(CommandFailed):
            containerd.ctr(*pull, "--user", ":".join(_BOB), guarded.docker.name)
        containerd.ctr(*pull, "--user", ":".join(_ALICE), guarded.docker.name)
        containerd.compare(guarded.docker, [guarded.docker.native])
        cri = Cri(containerd.socket)
        try:
            with pytest.raises(grpc.RpcError):
                cri.pull(guarded.docker.name)
            cri.pull(guarded.ghcr.name)
        finally:
            cri.close()
        containerd.compare(guarded.ghcr, [guarded.ghcr.native], CRI_NAMESPACE)


def test_docker_logs_in(guarded: Guarded) -> None:
    """`docker login` reports a wrong password; pulls by the mirror's name use the account."""
    with DockerdProcess(guarded.directory / "d", mirror=guarded.mirror.url) as dockerd:
        with pytest.raises(PullFailed):
            dockerd.log_in(guarded.mirror.address, "alice", "wrong")
        dockerd.log_in(guarded.mirror.address, *_ALICE)
        for image, account in [(guarded.docker, _BOB), (guarded.docker, None), (guarded.ghcr, ("bob", "wrong"))]:
            with pytest.raises(PullFailed):
                dockerd.pull(guarded.called(image), account=account)
        dockerd.pull(guarded.called(guarded.docker), account=_ALICE)
        assert dockerd.inspect(guarded.called(guarded.docker))["Id"] == guarded.docker.native.config.digest
        dockerd.pull(guarded.called(guarded.ghcr), account=_BOB)


def test_what_the_audit_says(guarded: Guarded) -> None:
    """Of one answered and one refused pull: who, what, from where; and no password, here or in the log."""
    target = f"/v2/{guarded.docker.registry}/{guarded.docker.repository}/manifests/{guarded.docker.tag}"
    for (name, word), status in [(_ALICE, 200), (_BOB, 404)]:
        encoded = base64.b64encode(f"{name}:{word}".encode()).decode()
        assert guarded.mirror.get(target, {"Authorization": f"Basic {encoded}"})[0] == status
    log = guarded.directory / "audit.jsonl"
    wanted = [("user:alice", 200, guarded.docker.tag), ("user:bob", 404, guarded.docker.tag)]

    def last_two() -> list[tuple[str, int, str]]:
        entries = [json.loads(line) for line in log.read_text().splitlines()][-2:]
        return [(line["caller"], line["status"], line["reference"]) for line in entries]

    # an answer that is given again is written down after it was given
    eventually(lambda: last_two() == wanted, "both are written down")
    everything = log.read_text() + guarded.mirror.tail() + "\n".join(map(str, guarded.mirror.log))
    assert not [word for _, word in (_ALICE, _BOB) if word in everything]


def test_a_private_upstream() -> None:
    """Two users log in with what they have at a private registry: what alice has pulled is not given to bob, cached or
    not, and each is given what is theirs; neither password is in the log.
    """
    directory = short_directory()
    upstream = FakeRegistry(tokens=True, users=dict((_ALICE, _BOB)))
    upstream.rights = {"alice": {"acme/secret", "acme/open"}, "bob": {"acme/open"}, "": set()}
    layers = {name: gzip.compress(_tar_of(name)) for name in ("acme/secret", "acme/open")}
    for name, layer in layers.items():
        upstream.add_image(name, "1.0", [layer])

    def copy(mirror: MirrorProcess, name: str, account: tuple[str, str]) -> bool:
        target = directory / "copied"
        shutil.rmtree(target, ignore_errors=True)
        words = ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", f"--src-creds={':'.join(account)}"]
        try:
            run([*words, f"docker://{mirror.address}/docker.io/{name}:1.0", f"dir:{target}"], env=OFFLINE)
        except CommandFailed as error:
            if not _refused(error):
                raise
            return False
        return (target / hashlib.sha256(layers[name]).hexdigest()).read_bytes() == layers[name]

    try:
        with upstream:
            config = write_config(directory, {"docker.io": upstream.url})
            config.write_text(config.read_text().replace("[[route]]", 'access = "verify"\n[[route]]'))
            with MirrorProcess(config) as mirror:
                for _ in range(2):
                    assert copy(mirror, "acme/secret", _ALICE)
                    assert not copy(mirror, "acme/secret", _BOB)
                    assert not copy(mirror, "acme/secret", ("alice", "wrong"))
                    assert copy(mirror, "acme/open", _BOB)
                log = json.dumps(mirror.log)
        # two layers and one config, which both images have: each was fetched once
        assert len(upstream.of_kind("blobs")) == 3
        assert not [word for _, word in (_ALICE, _BOB) if word in log]
    finally:
        shutil.rmtree(directory)


def _tar_of(text: str) -> bytes:
    """A layer with one file."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        entry = tarfile.TarInfo("word")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text.encode()))
    return written.getvalue()


def test_client_certificates(library: Library) -> None:
    """containerd's `client` and a plain TLS client are let in by their certificate; who has none is asked."""
    directory = short_directory()
    server = Certificate(directory / "server")
    node = Certificate(directory / "node", "/O=nodes/CN=node-7")
    stranger = Certificate(directory / "stranger", "/CN=node-8")
    try:
        with RegistryProcess(library.docker_root, read_only=True) as docker:
            config = write_config(directory, {"docker.io": docker.url})
            text = config.read_text()
            tls = f'[server]\ntls_certificate = "{server.certificate}"\ntls_key = "{server.key}"\n'
            text = text.replace("[server]\n", tls, 1)
            guard = _access(directory).replace("[access]", f'[access]\nclient_ca = "{node.certificate}"')
            config.write_text(f"{text}\n{guard}")
            image = library.images["oci"]
            with MirrorProcess(config) as mirror:

                def status(shown: Certificate | None) -> int:
                    context = ssl.create_default_context(cafile=str(server.certificate))
                    if shown is not None:
                        context.load_cert_chain(shown.certificate, shown.key)
                    connection = http.client.HTTPSConnection("127.0.0.1", mirror.port, context=context, timeout=60)
                    try:
                        connection.request("GET", f"/v2/{image.repository}/manifests/{image.tag}")
                        return connection.getresponse().status
                    finally:
                        connection.close()

                assert status(node) == 200
                assert status(None) == 401
                with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
                    status(stranger)
                url = f"https://{mirror.address}"
                section = (
                    f'[host."{url}"]{PULLS}  ca = "{server.certificate}"\n'
                    f'  client = [["{node.certificate}", "{node.key}"]]\n'
                )
                hosts = write_hosts(directory / "hosts", {"docker.io": section})
                with ContainerdProcess(directory / "c", hosts=hosts) as containerd:
                    pull = ("images", "pull", "--hosts-dir", str(hosts), "--snapshotter", containerd.snapshotter)
                    containerd.ctr(*pull, image.name)
                    containerd.compare(image, [image.native])
                assert {line.get("caller") for line in mirror.requests(path="/blobs/")} == {"certificate:node-7"}
    finally:
        shutil.rmtree(directory)
