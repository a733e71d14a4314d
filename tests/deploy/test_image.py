"""The image: built by buildah from a base that comes through the mirror, then run read-only and unprivileged."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.base_image import publish_python
from tests.support.buildah import Buildah
from tests.support.images import Published, publish_small
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import CommandFailed, ProgramProcess, program, run
from tests.support.pulls import wanted_blobs
from tests.support.registry_process import RegistryProcess
from tests.support.skopeo import Skopeo, compare_directory
from tests.support.wheels import native_libraries, pack_wheels, with_dependencies

_ROOT: Final = Path(__file__).resolve().parents[2]
_NAME: Final = "localhost/registry-mirror"
#: Libraries for a cloud's registries, as a build may ask for.
_EXTRAS: Final = "aws,otel"
_USER: Final = "65532:65532"

#: Run in a mount namespace of its own: the root filesystem becomes read-only, but for the store and /tmp; then the
#: image's command takes this process's place, as the image's user, with no capability and no way to gain one.
_START: Final = """
set -eu
root=$1; store=$2; config=$3; shift 3
mount --bind "$root" "$root"
mount --bind "$store" "$root/var/lib/mirror"
mount --bind "$config" "$root/etc/mirror/mirror.toml"
mount -t tmpfs tmpfs "$root/tmp"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs "$@"
"""


@dataclass(frozen=True, slots=True)
class Built:
    """The image, what its base was fetched by, and where its root filesystem lies."""

    config: dict[str, Any]
    root: Path
    registry: RegistryProcess
    mirror: MirrorProcess
    base: Published
    small: Published
    directory: Path


def base_of_dockerfile() -> tuple[str, str]:
    """Repository on Docker Hub and tag of the base image."""
    found = re.search(r"^ARG PYTHON=docker\.io/(\S+):(\S+)$", (_ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found, "the Dockerfile names its base in full"
    return found[1], found[2]


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    """One build for all: it is the slow part."""
    directory = Path(tempfile.mkdtemp(prefix="mt-"))
    try:
        needed = with_dependencies([f"registry-mirror[{_EXTRAS}]"])
        needed = [one for one in needed if one.metadata["Name"] != "registry-mirror"]
        wheels = directory / "wheels"
        wheels.mkdir()
        pack_wheels([*needed, *with_dependencies(["setuptools"])], wheels)
        (directory / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        with (
            RegistryProcess(directory / "registry") as registry,
            MirrorProcess(write_config(directory, {"docker.io": registry.url})) as mirror,
        ):
            base = publish_python(registry.url, *base_of_dockerfile(), libraries=native_libraries(needed))
            small = publish_small(registry.url, "docker.io", "library/small")
            buildah = Buildah(directory / "b", mirror.address)
            try:
                secret = f"id=pip.conf,src={directory / 'pip.conf'}"
                options = ["--secret", secret, "--build-arg", f"EXTRAS={_EXTRAS}"]
                buildah.build(_ROOT, _NAME, *options, "--volume", f"{wheels}:/wheels:ro")
                with buildah.mounted(_NAME) as root:
                    yield Built(buildah.config(_NAME), root, registry, mirror, base, small, directory)
            finally:
                buildah.close()
    finally:
        shutil.rmtree(directory)


def test_the_base_came_through_the_mirror_once(built: Built) -> None:
    """Two stages stand on it; each of its blobs was asked of the registry once, by the mirror."""
    asked = [request for request in built.registry.blob_gets() if built.base.repository in request.path]
    assert sorted(request.path.rpartition("/")[2] for request in asked) == sorted(wanted_blobs(built.base))
    assert built.mirror.requests(path=f"{built.base.repository}/manifests/")


def test_what_the_image_says_about_itself(built: Built) -> None:
    """A numeric user that is not root, a volume, a port, a stop signal, a health check, commands without a shell."""
    config = built.config
    assert config["User"] == _USER
    assert config["Volumes"] == {"/var/lib/mirror": {}}
    assert list(config["ExposedPorts"]) in (["5000"], ["5000/tcp"])
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "/opt/mirror/healthcheck.py"]
    assert config["Entrypoint"] == ["mirror"]
    assert config["Cmd"] == ["serve", "--config", "/etc/mirror/mirror.toml"]
    assert config["Labels"]["org.opencontainers.image.title"] == "registry-mirror"


def test_the_image_holds_nothing_that_only_the_build_needs(built: Built) -> None:
    """No source, no secret, no second pip; the extras that were asked for; nothing but the store is the user's own."""
    installed = {path.name for path in (built.root / "opt/mirror").glob("lib/*/site-packages/*")}
    assert {"botocore", "opentelemetry", "mirror"} <= installed
    assert not (built.root / "src").exists()
    assert not (built.root / "etc/pip.conf").exists() or not (built.root / "etc/pip.conf").stat().st_size
    assert not list((built.root / "opt/mirror").glob("lib/*/site-packages/pip"))
    owned = run(["find", built.root, "-xdev", "-uid", "65532"]).decode().splitlines()
    assert owned == [str(built.root / "var/lib/mirror")]
    assert (built.root / "etc/mirror/mirror.toml").read_text() == (_ROOT / "config/container.toml").read_text()


def test_it_serves_read_only_without_root(built: Built) -> None:
    """Its own command, under a read-only root and without capabilities, answers a pull, is found healthy, and drains at
    SIGTERM, with exit status 0.
    """
    store, settings = built.directory / "store-of-image", built.directory / "container.toml"
    store.mkdir()
    # a fresh ext4 volume has this folder, which only root may read
    (store / "lost+found").mkdir(mode=0o700)
    shutil.chown(store, 65532, 65532)
    text = (_ROOT / "config/container.toml").read_text().replace("0.0.0.0:5000", "127.0.0.1:0")
    settings.write_text(f'{text}\n[[upstream]]\nname = "docker.io"\nurl = "{built.registry.url}"\n')
    inside: list[str | Path] = ["unshare", "--mount", "sh", "-c", _START, "sh", built.root, store, settings]
    command: list[str | Path] = [
        "env",
        "-i",
        *built.config["Env"],
        program("chroot"),
        f"--userspec={_USER}",
        "--groups=",
        built.root,
    ]
    command += [*built.config["Entrypoint"], *built.config["Cmd"]]
    with ProgramProcess([*inside, *command]) as mirror:
        address = mirror.wait_for(_address, "it listens")
        skopeo = Skopeo(built.directory, address)
        skopeo.copy(built.small.name, built.directory / "pulled")
        compare_directory(built.directory / "pulled", built.small, every_platform=False)

        check: list[str | Path] = [sys.executable, built.root / "opt/mirror/healthcheck.py"]
        run(check, env={"HEALTH_URL": f"http://{address}/livez"})
        with pytest.raises(CommandFailed, match="status 404"):
            run(check, env={"HEALTH_URL": f"http://{address}/nothing"})
        assert mirror.stop() == 0
    with pytest.raises(CommandFailed, match="exit code 1"):
        run(check, env={"HEALTH_URL": f"http://{address}/livez"})


def _address(line: str) -> str | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    address: str | None = entry["address"] if entry.get("event") == "listening" else None
    return address


def test_the_dockerfile_passes_hadolint() -> None:
    """With every rule, none switched off."""
    run([Path(sys.executable).with_name("hadolint"), "--failure-threshold", "style", _ROOT / "Dockerfile"])
    assert "hadolint ignore" not in (_ROOT / "Dockerfile").read_text()


def test_the_build_context_is_only_what_is_copied() -> None:
    """The .dockerignore lets in what the Dockerfile copies from outside, and nothing else."""
    lines = (_ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in lines if line and line[0] not in "#!"] == ["*", "**/__pycache__"]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (_ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(" ".join(copied).split())
