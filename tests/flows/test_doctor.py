"""`mirror doctor`: it finds what is wrong with a node or a mirror, says what to do, and nothing that is secret."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import bcrypt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.certificates import Certificate
from tests.support.command import mirror as mirror_command
from tests.support.doctor import Doctor
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import run
from tests.support.redis_server import RedisServer
from tests.support.scripted import reply_json
from tests.support.tmpfs import remount_read_only, tmpfs

_IMAGE = ("--image", "library/app:v1")


@pytest.fixture
def mirror(registry: FakeRegistry, tmp_path: Path) -> Iterator[MirrorProcess]:
    """With an image that nobody has pulled yet."""
    registry.add_image("library/app", "v1", [noise(1000)])
    with MirrorProcess(write_config(tmp_path, {"docker.io": registry.url}, workers=1)) as process:
        yield process


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The node's files."""
    path = tmp_path / "root"
    path.mkdir()
    return path


def _configure(root: Path, client: str, url: str) -> None:
    run([sys.executable, "-m", "mirror", "configure", client, url, "--root", str(root), "--apply"])


def test_a_node_that_is_well(mirror: MirrorProcess, root: Path) -> None:
    """Every finding is good, the trial came through the mirror, exit status 0."""
    for client in ("containerd", "docker"):
        _configure(root, client, mirror.url)
    found = Doctor(mirror.url, *_IMAGE, "--root", root)
    assert found.code == 0, found.said
    assert {level for level, _, _ in found.findings.values()} == {"ok"}
    assert "mirror; fwd=uri-miss" in found.findings["HEAD docker.io/library/app:v1"][1]
    assert "mirror; fwd=uri-miss; stored" in found.findings["GET docker.io/library/app:v1"][1]
    assert {"/livez", "/readyz", "API", "clock", "client containerd", "client docker"} <= found.findings.keys()
    mirror.wait_for_event("request", path="/v2/library/app/manifests/v1?ns=docker.io")


def test_for_people(mirror: MirrorProcess, root: Path) -> None:
    """One line for each finding, what to do below it, a sum at the end."""
    command = [sys.executable, "-m", "mirror", "doctor", mirror.url, "--client", "podman", "--root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "ok      API: registry/2.0" in lines
    [at] = [
        number for number, line in enumerate(lines) if line.startswith("PROBLEM client podman: docker.io: bypasses")
    ]
    assert lines[at + 1] == f"        -> mirror configure podman {mirror.url} --apply"
    assert lines[-1].endswith("1 problem, 0 warnings")


@pytest.mark.parametrize(
    ("client", "file", "text"),
    [
        ("docker", "etc/docker/daemon.json", '{"registry-mirrors": ["https://old.internal"]}'),
        (
            "containerd",
            "etc/containerd/certs.d/docker.io/hosts.toml",
            'server = "https://registry-1.docker.io"\n[host."https://old.internal"]\n',
        ),
        (
            "podman",
            "etc/containers/registries.conf.d/90-x.conf",
            '[[registry]]\nlocation = "docker.io"\n[[registry.mirror]]\nlocation = "old.internal/docker.io"\n',
        ),
    ],
)
def test_a_client_that_goes_around(mirror: MirrorProcess, root: Path, client: str, file: str, text: str) -> None:
    """It asks another mirror, whatever `mirror configure` once wrote; the file is named."""
    _configure(root, client, mirror.url)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)
    found = Doctor(mirror.url, "--client", client, "--root", root)
    level, said, advice = found.findings[f"client {client}"]
    assert (found.code, level) == (1, "problem")
    assert "old.internal" in said
    assert Path(file).name in said or "hosts.toml" in said
    assert "mirror configure" in advice


def test_a_client_whose_file_cannot_be_read(mirror: MirrorProcess, root: Path) -> None:
    """A problem among the others, not the end."""
    file = root / "etc/docker/daemon.json"
    file.parent.mkdir(parents=True)
    file.write_text("{,}")
    found = Doctor(mirror.url, "--root", root)
    assert found.level("client docker") == "problem"
    assert "line 1, column 2" in found.findings["client docker"][1]


def test_a_registry_that_is_down(mirror: MirrorProcess, registry: FakeRegistry, root: Path, tmp_path: Path) -> None:
    """A trial pull of what is not cached fails with the mirror's own words; its own machine names the registry."""
    registry.stop()
    found = Doctor(mirror.url, *_IMAGE, "--root", root, "--config", tmp_path / "mirror.toml")
    assert found.code == 1
    level, text, advice = found.findings["GET docker.io/library/app:v1"]
    assert level == "problem"
    assert "status 503" in text
    assert "mirror check --online" in advice
    assert found.level("registry docker.io") == "problem"
    assert found.level("/readyz") == "ok"


def test_no_mirror_at_the_address(root: Path) -> None:
    """The trial pull is not tried."""
    found = Doctor("http://127.0.0.1:9", *_IMAGE, "--root", root)
    assert found.code == 1
    assert list(found.findings) == ["reach", "clients"]
    assert "refused" in found.findings["reach"][1]


def test_an_unknown_host_name(root: Path) -> None:
    """DNS is named, not the mirror."""
    found = Doctor("http://mirror.invalid:5000", *_IMAGE, "--root", root)
    assert (found.code, found.findings["reach"][1]) == (1, "mirror.invalid: no such name")
    assert "DNS" in found.findings["reach"][2]


def test_clients_without_configuration(mirror: MirrorProcess, root: Path) -> None:
    """A node with nothing but the programs goes around the mirror, and is not called well; nor is one with none."""
    found = Doctor(mirror.url, "--root", root)
    assert (found.code, found.level("clients")) == (0, "warning")
    for program in ("usr/bin/dockerd", "usr/local/bin/k3s", "etc/crio/crio.conf"):
        (root / program).parent.mkdir(parents=True, exist_ok=True)
        (root / program).touch()
    found = Doctor(mirror.url, "--root", root)
    assert "clients" not in found.findings
    for client in ("docker", "k3s", "crio"):
        assert found.level(f"client {client}") == "warning"
        assert "bypasses this mirror" in found.findings[f"client {client}"][1]


def test_something_else_there(registry: FakeRegistry, root: Path) -> None:
    """A registry is no mirror: its answers lack our mark."""
    registry.add_image("library/app", "v1", [noise(1000)])
    found = Doctor(registry.url, *_IMAGE, "--root", root)
    assert found.level("/livez") == "problem"
    assert "not from the mirror" in found.findings["GET docker.io/library/app:v1"][1]


def test_an_image_that_is_nowhere(mirror: MirrorProcess, root: Path) -> None:
    """404, with the error's message."""
    found = Doctor(mirror.url, "--image", "library/never:v1", "--root", root)
    assert "status 404: " in found.findings["GET docker.io/library/never:v1"][1]


# --------------------------------------------------------------------------------------------------------- TLS


def _secure(registry: FakeRegistry, tmp_path: Path, certificate: Path, key: Path) -> Path:
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
    setting = f'[server]\ntls_certificate = "{certificate}"\ntls_key = "{key}"'
    config.write_text(config.read_text().replace("[server]", setting))
    return config


def test_a_certificate_of_a_private_authority(registry: FakeRegistry, tmp_path: Path, root: Path) -> None:
    """Not trusted without `--ca-file`; with it the names and the days left are told: few are a warning.

    Where the mirror runs its metrics tell, and `mirror check`.
    """
    made = Certificate(tmp_path / "tls")
    config = _secure(registry, tmp_path, made.certificate, made.key)
    checked = mirror_command("check", "--config", config)
    assert (checked.status, "certificate for" in checked.err, "valid for another" in checked.err) == (0, True, True)
    with MirrorProcess(config) as mirror:
        url = f"https://{mirror.address}"
        with urllib.request.urlopen(f"{url}/metrics", context=made.client()) as answer:
            [until] = re.findall(rb"\nmirror_certificate_expires_timestamp_seconds (\S+)\n", answer.read())
        assert 1.9 * 86400 < float(until) - time.time() < 2 * 86400
        found = Doctor(url, "--root", root)
        assert (found.code, found.level("certificate")) == (1, "problem")
        assert "not trusted" in found.findings["certificate"][1]
        found = Doctor(url, "--root", root, "--ca-file", made.certificate)
        assert (found.code, found.level("certificate")) == (0, "warning")
        assert "localhost, 127.0.0.1" in found.findings["certificate"][1]


def test_docker_and_the_token_endpoint(registry: FakeRegistry, tmp_path: Path, root: Path) -> None:
    """With containerd's image store it needs the authority in the system's store as well, where the mirror asks for a
    login; nothing is said once it is there, of a mirror that asks nobody, or where there is no Docker.
    """
    made = Certificate(tmp_path / "tls")
    config = _secure(registry, tmp_path, made.certificate, made.key)
    with MirrorProcess(config) as mirror:
        url = f"https://{mirror.address}"
        _configure(root, "docker", url)
        assert "docker" not in Doctor(url, "--root", root, "--ca-file", made.certificate).findings
    (tmp_path / "htpasswd").write_text(f"alice:{bcrypt.hashpw(b'wonderland', bcrypt.gensalt(4)).decode()}\n")
    config.write_text(f'{config.read_text()}\n[access]\nanonymous = false\nhtpasswd = "{tmp_path}/htpasswd"\n')
    with MirrorProcess(config) as mirror:
        url = f"https://{mirror.address}"
        words = (url, "--ca-file", made.certificate, "--client")
        found = Doctor(*words, "docker", "--root", root)
        assert found.level("docker") == "warning"
        assert "token endpoint" in found.findings["docker"][1]
        assert "system's store" in found.findings["docker"][2]
        assert "docker" not in Doctor(*words, "podman", "--root", root).findings
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(made.certificate))
            assert "docker" not in Doctor(*words, "docker", "--root", root).findings
        local = f"https://localhost:{mirror.address.rpartition(':')[2]}"
        found = Doctor(local, "--ca-file", made.certificate, "--client", "docker", "--root", root)
        assert found.level("docker") == "warning"
        assert "by http" in found.findings["docker"][1]


def test_an_expired_certificate(registry: FakeRegistry, tmp_path: Path, root: Path) -> None:
    """It is said for how long, whoever is trusted."""
    certificate, key = _expired(tmp_path)
    config = _secure(registry, tmp_path, certificate, key)
    checked = mirror_command("check", "--config", config)
    # as pulls go on being served to whoever does not look
    assert (checked.status, "expired 3 days ago: renew it" in checked.err) == (0, True)
    with MirrorProcess(config) as mirror:
        found = Doctor(f"https://{mirror.address}", "--root", root, "--ca-file", certificate)
    assert (found.code, found.level("certificate")) == (1, "problem")
    assert "expired 3 days ago" in found.findings["certificate"][1]
    assert "renew" in found.findings["certificate"][2]


def _expired(directory: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mirror.internal")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now - timedelta(days=3))
        .sign(key, hashes.SHA256())
    )
    places = directory / "expired.pem", directory / "expired.key"
    places[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    places[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return places


def test_a_certificate_of_another_name(registry: FakeRegistry, tmp_path: Path, root: Path) -> None:
    """Both names are told: that of the certificate and that of the URL."""
    made = Certificate(tmp_path / "tls", names="DNS:other.internal")
    with MirrorProcess(_secure(registry, tmp_path, made.certificate, made.key)) as mirror:
        found = Doctor(f"https://{mirror.address}", "--root", root, "--ca-file", made.certificate)
        assert (found.code, found.level("certificate")) == (1, "problem")
        assert "for other.internal: not trusted" in found.findings["certificate"][1]
        assert "127.0.0.1" in found.findings["certificate"][1]
        found = Doctor(f"http://{mirror.address}", "--root", root)
    assert (found.code, found.level("reach")) == (1, "problem")
    assert "begin with https://" in found.findings["reach"][2]


def test_plain_where_tls_is_expected(mirror: MirrorProcess, root: Path) -> None:
    """A handshake that fails is said to be one."""
    found = Doctor(f"https://{mirror.address}", "--root", root)
    assert "begin with http://" in found.findings["certificate"][2]


# ----------------------------------------------------------------------------------------------- its own machine


def test_the_mirrors_own_machine(registry: FakeRegistry, tmp_path: Path) -> None:
    """Disk, Redis, registries and limits are good."""
    with RedisServer() as redis:
        config = write_config(tmp_path, {"docker.io": registry.url}, index=redis.url, capacity="1MB")
        (tmp_path / "store").mkdir()
        found = Doctor("--config", config)
    assert found.code == 0, found.said
    looked_at = {"store", "disk", "inodes", "open files", "redis", "registry docker.io", "budget docker.io", "pins"}
    assert looked_at == found.findings.keys()
    assert "no limit" in found.findings["budget docker.io"][1]
    assert "version" in found.findings["redis"][1]
    assert not list((tmp_path / "store").iterdir())


@pytest.mark.parametrize(("left", "code", "level"), [(80, 0, "ok"), (3, 0, "warning"), (0, 1, "problem")])
def test_the_budget_of_docker_hub(registry: FakeRegistry, tmp_path: Path, left: int, code: int, level: str) -> None:
    """It is asked for by HEAD of the image that is there for that, so that looking costs no pull."""
    registry.add_image("ratelimitpreview/test", "latest", [b"layer"])
    registry.budget = 100, left
    found = Doctor("--config", write_config(tmp_path, {"docker.io": registry.url}))
    assert (found.code, found.level("budget docker.io")) == (code, level), found.said
    assert f"{left} of 100 pulls left within 6 hours" in found.findings["budget docker.io"][1]
    assert registry.budget == (100, left)


@pytest.mark.parametrize(("hours", "text"), [(1, "ahead of the registries'"), (-1, "behind the registries'")])
def test_the_clock_of_the_mirrors_machine(registry: FakeRegistry, tmp_path: Path, hours: int, text: str) -> None:
    """Tokens and certificates depend on it; the registries say what time it is."""
    date = format_datetime(datetime.now(UTC) - timedelta(hours=hours), usegmt=True)
    registry.fail("ping", lambda _request, _answer: reply_json(200, {}, {"Date": date}))
    found = Doctor("--config", write_config(tmp_path, {"docker.io": registry.url}))
    level, said, advice = found.findings["clock of this machine"]
    assert (found.code, level) == (1, "problem")
    assert text in said
    assert "synchronise the clocks" in advice


def test_a_wrong_login_at_a_registry(tmp_path: Path) -> None:
    """It is the registry's finding, with what to do, and without the password; its budget is not asked for."""
    (tmp_path / "word").write_text("s3cret-w0rd\n")
    login = f'username = "me"\npassword_file = "{tmp_path / "word"}"\n[[route]]'
    with FakeRegistry(tokens=True, users={"me": "other"}) as registry:
        config = write_config(tmp_path, {"docker.io": registry.url})
        config.write_text(config.read_text().replace("[[route]]", login))
        found = Doctor("--config", config)
    assert (found.code, found.level("registry docker.io")) == (1, "problem")
    assert "check the credentials" in found.findings["registry docker.io"][2]
    assert "budget docker.io" not in found.findings
    assert "s3cret" not in found.said


@pytest.mark.parametrize("secure", [False, True])
def test_the_mirrors_own_listener(registry: FakeRegistry, tmp_path: Path, secure: bool) -> None:
    """Without a URL it is asked where the configuration says; its own certificate will do, whatever it names."""
    registry.add_image("library/app", "v1", [noise(1000)])
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
    if secure:
        made = Certificate(tmp_path / "tls", names="DNS:mirror.internal")
        config = _secure(registry, tmp_path, made.certificate, made.key)
    with MirrorProcess(config) as mirror:
        config.write_text(config.read_text().replace("127.0.0.1:0", mirror.address))
        found = Doctor("--config", config, *_IMAGE)
    assert found.code == 0, found.said
    assert found.level("GET docker.io/library/app:v1") == "ok"
    assert ("certificate" in found.findings) == secure
    assert not secure or "for mirror.internal: valid" in found.findings["certificate"][1]


def test_a_dead_redis_and_its_password(registry: FakeRegistry, tmp_path: Path) -> None:
    """Named without the password."""
    index = "redis://me:s3cret-w0rd@127.0.0.1:9/0"
    found = Doctor("--config", write_config(tmp_path, {"docker.io": registry.url}, index=index))
    assert (found.code, found.level("redis")) == (1, "problem")
    assert "redis://127.0.0.1:9/0" in found.findings["redis"][1]
    assert "s3cret" not in found.said


def test_a_full_disk(registry: FakeRegistry, tmp_path: Path) -> None:
    """Not even the trial file of the doctor fits."""
    config = write_config(tmp_path, {"docker.io": registry.url})
    with tmpfs(tmp_path, "size=64k") as point:
        (point / "all").write_bytes(bytes(64 * 1024))
        config.write_text(config.read_text().replace(str(tmp_path / "store"), str(point)))
        found = Doctor("--config", config)
        assert [path.name for path in point.iterdir()] == ["all"]
    assert found.code == 1
    assert "No space left" in found.findings["store"][1]
    assert found.level("disk") == "problem"


def test_a_read_only_disk(registry: FakeRegistry, tmp_path: Path) -> None:
    """As a kernel makes it after errors of the disk."""
    config = write_config(tmp_path, {"docker.io": registry.url})
    with tmpfs(tmp_path, "size=1m") as point:
        remount_read_only(point)
        config.write_text(config.read_text().replace(str(tmp_path / "store"), str(point)))
        found = Doctor("--config", config)
    assert (found.code, found.level("store")) == (1, "problem")
    assert "Read-only" in found.findings["store"][1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("http://mirror", "--client", "emacs"), "'emacs' is not one of"),
        (("http://mirror", "--image", "A B"), "--image"),
        (("mirror",), "MIRROR_URL"),
        (("--config", "/nonexistent"), "No such file"),
    ],
)
def test_unusable_arguments(words: tuple[str, ...], reason: str) -> None:
    """Exit status 2 and what is wrong."""
    found = Doctor(*words)
    assert found.code == 2
    assert reason in found.said


def test_pins_that_cannot_be_read(registry: FakeRegistry, tmp_path: Path) -> None:
    """A problem each, with the file and what to do; and one where the disk does not list them."""
    config = write_config(tmp_path, {"docker.io": registry.url})
    assert Doctor("--config", config).level("pins") == "ok"
    pins = tmp_path / "store" / "pins"
    pins.mkdir(parents=True)
    file = pins / f"{'0' * 32}.json"
    file.write_text("garbage")
    found = Doctor("--config", config)
    assert found.code == 1
    assert found.level("pins") == "problem"
    assert str(file) in found.findings["pins"][1]
    assert "restore the file, or delete it" in found.findings["pins"][1]
    file.unlink()
    pins.rmdir()
    pins.write_text("no folder")
    found = Doctor("--config", config)
    assert "Not a directory" in found.findings["pins"][1]
    assert found.findings["pins"][2]
