"""`mirror prefetch` as people run it: a process of its own, beside a server on the same store or alone."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from mirror.cli.prefetch_command import prefetch
from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from mirror.store.local.layout import Layout
from tests.clients.conftest import Library, Site
from tests.support.command import mirror as command
from tests.support.gated_registry import GatedRegistry
from tests.support.images import NATIVE
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, ProgramProcess, eventually
from tests.support.pulls import expect_each_once, wanted_blobs
from tests.support.redis_server import RedisServer
from tests.support.registry_process import RegistryProcess
from tests.support.skopeo import Skopeo, compare_directory

_TREE = Path(__file__).resolve().parents[2]
_COMMAND = [sys.executable, "-m", "mirror", "prefetch"]
_ENVIRONMENT = {"PYTHONPATH": str(_TREE)}
_LAYER = noise(8 << 20, 5)
_GATE = 3 << 20


def _run(*arguments: str | Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *map(str, arguments)],
        env={**os.environ, **_ENVIRONMENT, **environment},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.fixture(scope="module")
def skopeo(site: Site) -> Skopeo:
    return Skopeo(site.directory, site.mirror.address)


@pytest.fixture(scope="module")
def config(site: Site) -> Path:
    """That of the running mirror."""
    return site.directory / "mirror.toml"


# -------------------------------------------------------------------------------------------------- beside a server


@pytest.mark.parametrize("name", ["oci", "schema2", "index", "many", "big"])
def test_prefetched_images_are_pulled_without_upstream(site: Site, skopeo: Skopeo, config: Path, name: str) -> None:
    """Every platform, through the running server, by tag; each blob was asked of upstream once."""
    image, target = site.images[name], site.directory / name
    before = site.mark(image)
    done = _run(image.name, "-c", config)
    assert done.returncode == 0, done
    assert f"{len(image.images) + image.is_index + len(image.blobs)} (" in done.stdout
    with site.docker.stopped():
        skopeo.copy(image.name, target, "--all")
    compare_directory(target, image, every_platform=True)
    expect_each_once(site.fetched(image, before), wanted_blobs(image, every_platform=True))

    again = _run(image.name, "-c", config, "--json")
    assert again.returncode == 0, again
    assert json.loads(again.stdout)["new"]["count"] == 0
    assert again.stderr == ""


def test_one_platform(site: Site, skopeo: Skopeo, config: Path) -> None:
    """This machine's is enough for a pull on this machine, and no other was fetched."""
    image, target = site.images["list"], site.directory / "one"
    before = site.mark(image)
    assert _run(image.name, "-c", config, "--platform", NATIVE).returncode == 0
    with site.docker.stopped():
        skopeo.copy(image.name, target)
    compare_directory(target, image, every_platform=False)
    expect_each_once(site.fetched(image, before), wanted_blobs(image))
    absent = _run(image.name, "-c", config, "--platform", "plan9/mips")
    assert absent.returncode == 1
    assert f"failed: {image.name}: not for plan9/mips; it is for linux/amd64, linux/arm64\n" in absent.stdout


def test_lists(site: Site, skopeo: Skopeo, config: Path, tmp_path: Path) -> None:
    """Images of a plain list, of a folder of manifests and of a Compose file, from both registries, in one go."""
    plain, manifests, compose = tmp_path / "images.txt", tmp_path / "manifests", tmp_path / "compose.yaml"
    manifests.mkdir()
    plain.write_text(f"# ours\n{site.foreign['skopeo'].name}\n")
    (manifests / "job.yaml").write_text(
        "apiVersion: batch/v1\nkind: CronJob\nspec: {jobTemplate: {spec: {template: {spec: {containers: "
        f"[{{name: a, image: '{site.foreign['podman'].name}'}}]}}}}}}}}}}\n"
    )
    (manifests / "chart.yaml").write_text("{{- if .Values.on }}\nkind: Pod\n{{- end }}\n")
    compose.write_text("services: {a: {image: '${REGISTRY:-ghcr.io}/owner/ctr:${TAG}'}, b: {build: .}}\n")
    lists: list[str | Path] = ["--from-file", plain, "--from-k8s", manifests, "--from-compose", compose]
    done = _run("-c", config, *lists, "--json", TAG="1.0")
    assert done.returncode == 0, done
    names = [site.foreign[name].name for name in ("skopeo", "podman", "ctr")]
    told = json.loads(done.stdout)
    assert [one["image"] for one in told["images"]] == names
    [warning] = told["warnings"]
    assert warning.startswith(f"{manifests}/chart.yaml:")
    assert warning in done.stderr
    with site.ghcr.stopped():
        for name in ("skopeo", "podman", "ctr"):
            skopeo.copy(site.foreign[name].name, tmp_path / name)
            compare_directory(tmp_path / name, site.foreign[name], every_platform=True)


def test_referrers_of_a_registry_without_any(site: Site, config: Path) -> None:
    """An old registry has neither the API nor the tags; that is no failure."""
    done = _run(site.images["oci"].name, "-c", config, "--referrers")
    assert done.returncode == 0, done


def test_a_failure(site: Site, config: Path) -> None:
    """Exit status 1, what failed and why in the summary; what else was asked for is here."""
    done = _run("library/never-was:v1", site.images["oci"].name, "-c", config)
    assert done.returncode == 1
    assert "failed: docker.io/library/never-was:v1: docker.io/library/never-was has no tag v1\n" in done.stdout
    assert done.stdout.endswith("already here, 1 failure\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shared", [False, True], ids=["embedded", "redis"])
def test_several_at_once(library: Library, directory: Path, shared: bool) -> None:
    """Three of them on one store, without a server: each blob is asked of upstream once, and each says that all is
    here.
    """
    images = [library.images[name] for name in ("oci", "index", "many")]
    with RegistryProcess(library.docker_root, read_only=True) as upstream, ExitStack() as stack:
        index = stack.enter_context(RedisServer()).url if shared else ""
        config = write_config(directory, {"docker.io": upstream.url}, index=index)
        with ThreadPoolExecutor(3) as pool:
            names = [image.name for image in images]
            done = list(pool.map(lambda _: _run(*names, "-c", config, "--json"), range(3)))
        assert [one.returncode for one in done] == [0, 0, 0], [one.stdout + one.stderr for one in done]
        expect_each_once(upstream.sent(), {digest: size for image in images for digest, size in image.blobs.items()})
        assert _run(*names, "-c", config, "--json").returncode == 0


# ----------------------------------------------------------------------------------------------------- interrupted


@pytest.fixture
def gated() -> Iterator[GatedRegistry]:
    """A registry whose one layer stops in the middle."""
    with GatedRegistry(_LAYER, gate=_GATE) as registry:
        yield registry


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_interrupted_in_mid_blob(gated: GatedRegistry, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Received bytes stay; the same command asks upstream for the rest alone, so each byte is received once. The audit
    log has both runs, unless there was no time to write to it.
    """
    audit = tmp_path / "audit.log"
    config = write_config(tmp_path, {"docker.io": gated.url}, more=f'[access]\naudit_log = "{audit}"')
    partial = Layout(tmp_path / "store").ingest(Digest.parse(gated.digest), "docker.io")
    with ProgramProcess([*_COMMAND, "gated:v1", "-c", config], env=_ENVIRONMENT, name="prefetch") as running:
        gated.wait_at_gate()
        eventually(lambda: partial.exists() and partial.stat().st_size == _GATE, "all bytes up to the gate")
        running.signal(number)
        assert running.wait() == code
        assert any("the same command continues" in line for line in running.lines) == (code > 0)
        assert not any("Traceback" in line for line in running.lines), running.tail()
    assert partial.stat().st_size == _GATE
    gated.open_gate()
    done = _run("gated:v1", "-c", config)
    assert done.returncode == 0, done
    told = [(line["action"], line["status"]) for line in map(json.loads, audit.read_text().splitlines())]
    assert told == [*([("prefetch", 499)] if code > 0 else []), ("prefetch", 200)]
    assert [request.start for request in gated.blob_requests] == [None, _GATE]
    assert (tmp_path / "store/blobs/sha256" / gated.digest[7:9] / gated.digest[7:]).read_bytes() == _LAYER


def test_a_server_takes_over_and_is_followed(gated: GatedRegistry, tmp_path: Path) -> None:
    """A client of a running server follows what a prefetch downloads; when that is killed, the server goes on, and
    upstream sends each byte once.
    """
    config = write_config(tmp_path, {"docker.io": gated.url}, workers=1)
    partial = Layout(tmp_path / "store").ingest(Digest.parse(gated.digest), "docker.io")
    received: list[bytes] = []
    with MirrorProcess(config) as mirror:
        target = f"/v2/library/gated/blobs/{gated.digest}"
        with ProgramProcess([*_COMMAND, "gated:v1", "-c", config], env=_ENVIRONMENT, name="prefetch") as running:
            gated.wait_at_gate()
            client = threading.Thread(target=lambda: received.append(mirror.get(target)[2]))
            client.start()
            eventually(lambda: partial.stat().st_size == _GATE, "all bytes up to the gate")
            [worker] = mirror.wait_for_workers(1)
            eventually(lambda: _has_open(worker, partial), "the server watches it")
            running.kill()
        gated.wait_for_requests(2)
        gated.open_gate()
        client.join(PATIENCE)
        assert received == [_LAYER]
    assert [request.start for request in gated.blob_requests] == [None, _GATE]


def _has_open(pid: int, file: Path) -> bool:
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(entry.readlink())
    return file in links


# ------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name an image, or a list"),
        (["quay.io/x/y"], "quay.io/x/y: the registry quay.io is not configured in this mirror"),
        (["alpine:"], "not a tag: ''"),
        (["alpine", "--platform", "linux"], "--platform: not a platform such as linux/amd64: 'linux'"),
        (["--from-file", "absent.txt"], "absent.txt: No such file or directory"),
        (["--from-file", "two.txt"], "two.txt:2: more than one image on a line: 'a b'"),
        (["--from-file", "unknown.txt"], "unknown.txt:1: quay.io/x/y: the registry quay.io is not configured"),
        (["--from-k8s", "broken.yaml"], "broken.yaml:1: not YAML"),
        (["--from-compose", "broken.yaml"], "broken.yaml:1: not YAML"),
        (["--from-compose", "two.txt"], "two.txt: not a Compose file"),
        (["alpine", "--concurrency", "0"], "must be 1 or more"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: list[str], says: str) -> None:
    """Exit status 2 and what is wrong, file and line where there is one; the store is not even made."""
    (tmp_path / "two.txt").write_text("a\na b\n")
    (tmp_path / "unknown.txt").write_text("quay.io/x/y\n")
    (tmp_path / "broken.yaml").write_text("a: b: c\n")
    config = write_config(tmp_path, {"docker.io": "http://127.0.0.1:9"})
    paths = [str(tmp_path / one) if (tmp_path / one).exists() else one for one in arguments]
    done = command("prefetch", *paths, "-c", config)
    assert done.status == 2, done
    assert says in " ".join(done.err.replace(f"{tmp_path}/", "").split())
    assert done.out == ""
    assert not (tmp_path / "store").exists()


def test_every_mistake_at_once(tmp_path: Path) -> None:
    """All mistakes are reported at once, not one after the other."""
    config = write_config(tmp_path, {"docker.io": "http://127.0.0.1:9"})
    (tmp_path / "images.txt").write_text("quay.io/a/b\nalpine\nghcr.io/c/d\n")
    done = _run("UPPER", "--from-file", tmp_path / "images.txt", "-c", config)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 3


def test_only_the_list(tmp_path: Path) -> None:
    """`--dry-run` prints the images in the form of a list, and contacts no upstream."""
    config = write_config(tmp_path, {"docker.io": "http://127.0.0.1:9"})
    pod = "kind: Pod\nspec: {containers: [{image: alpine}, {image: bitnami/redis:7}]}\n"
    done = _run("alpine", "--from-k8s", "-", "-c", config, "--dry-run", stdin=pod)
    assert done.returncode == 0, done
    assert done.stdout == (
        "docker.io/library/alpine:latest  # standard input:2\ndocker.io/bitnami/redis:7  # standard input:2\n"
    )
    again = _run("--from-file", "-", "-c", config, "--dry-run", "--json", stdin=done.stdout)
    assert json.loads(again.stdout) == {
        "images": [
            {"image": "docker.io/library/alpine:latest", "from": ["standard input:1"]},
            {"image": "docker.io/bitnami/redis:7", "from": ["standard input:2"]},
        ],
        "warnings": [],
    }
    assert not (tmp_path / "store").exists()


def test_the_store_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of another user could not read what root downloads: refused before anything is written."""
    config = write_config(tmp_path, {"docker.io": "http://127.0.0.1:9"})
    (tmp_path / "store").mkdir()
    (tmp_path / "store/store.json").write_text("{}")
    owner = os.geteuid()
    monkeypatch.setattr("mirror.cli.prefetch_command.os.geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match=f"belongs to user {owner}, and this is user {owner + 1}"):
        prefetch(["alpine"], config)
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["store.json"]


# ------------------------------------------------------------------------------------------------------ on a terminal


def test_on_a_terminal(gated: GatedRegistry, tmp_path: Path) -> None:
    """Bars on standard error, one for the blob under way and one in total, gone at the end; the table on standard
    output.
    """
    config = write_config(tmp_path, {"docker.io": gated.url})
    ours, theirs = pty.openpty()
    shown = bytearray()

    def look() -> None:
        while True:
            try:
                shown.extend(os.read(ours, 4096))
            except OSError:
                return  # the other side is closed

    environment = {**os.environ, **_ENVIRONMENT, "TERM": "xterm", "COLUMNS": "120"}
    looking = threading.Thread(target=look)
    with subprocess.Popen(
        [*_COMMAND, "gated:v1", "-c", str(config)], env=environment, stdout=subprocess.PIPE, stderr=theirs
    ) as running:
        os.close(theirs)
        looking.start()
        gated.wait_at_gate()
        bar = gated.digest[7:19].encode()
        eventually(lambda: bar in shown and b"in total" in shown and b"3.1/8.4 MB" in shown, "both bars")
        gated.open_gate()
        assert running.stdout
        printed = running.stdout.read().decode()
    looking.join(PATIENCE)
    os.close(ours)
    assert running.returncode == 0, shown.decode()
    assert "docker.io/library/gated:v1" in printed
    assert "\x1b" not in printed
