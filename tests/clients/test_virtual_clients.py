"""podman, skopeo and containerd use one name for a hosted registry and two docker-registries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.clients.conftest import OPEN_TO_PUSHES, Library, Site, open_site
from tests.support.containerd_process import PULLS, ContainerdProcess, write_hosts
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.podman import Podman
from tests.support.process import CommandFailed, run
from tests.support.pulls import OFFLINE
from tests.support.pushed import read_pushed
from tests.support.skopeo import compare_directory

_VIRTUAL = """
    [[virtual]]
    name = "all"
    members = ["corp", "docker.io", "ghcr.io"]
    writable = "corp"
"""


@pytest.fixture(scope="module")
def virtual(library: Library) -> Iterator[Site]:
    """With the virtual registry `all` over `corp`, docker.io and ghcr.io."""
    with open_site(library, lambda directory: f"{OPEN_TO_PUSHES}{_VIRTUAL}") as site:
        yield site


def _name(site: Site, repository: str) -> str:
    """A repository by its virtual name."""
    return f"{site.mirror.address}/all/{repository}"


def _asked(site: Site, repository: str) -> list[str]:
    """The requests for a repository that the two registries have got."""
    requests = [*site.docker.requests(), *site.ghcr.requests()]
    return [request.path for request in requests if f"/{repository}/" in request.path]


def _skopeo(*words: str) -> str:
    return run(["skopeo", "--insecure-policy", *words], env=OFFLINE).decode()


def _copy(source: str, target: str) -> None:
    _skopeo("copy", "--all", "--src-tls-verify=false", "--dest-tls-verify=false", source, target)


def test_skopeo_copies_from_every_member(virtual: Site, tmp_path: Path) -> None:
    """What only one of the two registries has, by one name; the tags too. What is copied to the name is hosted."""
    for image in (virtual.images["index"], virtual.foreign["skopeo"]):
        target = tmp_path / image.registry
        _copy(f"docker://{_name(virtual, image.repository)}:{image.tag}", f"dir:{target}")
        compare_directory(target, image, every_platform=True)
        tags = json.loads(_skopeo("list-tags", "--tls-verify=false", f"docker://{_name(virtual, image.repository)}"))
        assert image.tag in tags["Tags"]
    _copy(f"dir:{tmp_path / 'docker.io'}", f"docker://{_name(virtual, 'skopeo/copied')}:v1")
    pushed = read_pushed(virtual.mirror.url, "corp/skopeo/copied", "v1")
    assert pushed.media_type == virtual.images["index"].media_type
    _copy(f"docker://{_name(virtual, 'skopeo/copied')}:v1", f"dir:{tmp_path / 'again'}")
    compare_directory(tmp_path / "again", virtual.images["index"], every_platform=True)
    assert _asked(virtual, "skopeo/copied") == []


def test_podman_takes_a_public_name_over(virtual: Site) -> None:
    """An image that is built on a public one and pushed under the same name: from then on, the name is ours."""
    base = virtual.images["oci"]
    name = _name(virtual, base.repository)
    with closing(Podman(virtual.directory / "podman", virtual.mirror.address)) as podman:
        podman("pull", "--quiet", "--tls-verify=false", f"{name}:{base.tag}")
        context = virtual.directory / "context"
        context.mkdir()
        (context / "own").write_bytes(b"our own")
        (context / "Dockerfile").write_text(f"FROM {name}:{base.tag}\nCOPY own /srv/own\n")
        podman("build", "--isolation=chroot", "--tag", f"{name}:patched", str(context))
        podman("push", "--tls-verify=false", f"{name}:patched")
        known = podman.inspect(f"{name}:patched")["Id"]
        podman("image", "rm", "--force", f"{name}:patched", f"{name}:{base.tag}")
        before = len(_asked(virtual, base.repository))
        podman("pull", "--quiet", "--tls-verify=false", f"{name}:patched")
        assert podman.inspect(f"{name}:patched")["Id"] == known
        with pytest.raises(CommandFailed, match=r"manifest unknown|does not exist"):
            podman("pull", "--quiet", "--tls-verify=false", f"{name}:{base.tag}")
        assert len(_asked(virtual, base.repository)) == before
    assert {layer.digest for layer in base.native.layers} < read_pushed(
        virtual.mirror.url, f"corp/{base.repository}", "patched"
    ).blobs.keys()


def test_containerd_with_one_file_for_all_registries(virtual: Site) -> None:
    """`_default/hosts.toml` sends the pulls of every registry to one name: hosted images come first, whatever registry
    the image names, and `?ns=` opens no other way.
    """
    section = f'[host."{virtual.mirror.url}/v2/all"]{PULLS}  override_path = true\n'
    hosts = write_hosts(virtual.directory / "hosts", {"_default": section})
    ours, hidden = virtual.images["many"], virtual.foreign["ctr"]
    source = f"docker://{virtual.mirror.address}/docker.io/{ours.repository}:{ours.tag}"
    _copy(source, f"docker://{virtual.mirror.address}/corp/team/app:{ours.tag}")
    # the name of an image of ghcr.io
    _copy(source, f"docker://{virtual.mirror.address}/corp/{hidden.repository}:{hidden.tag}")
    with ContainerdProcess(virtual.directory / "c", hosts=hosts) as containerd:

        def pull(name: str) -> None:
            containerd.ctr("images", "pull", "--snapshotter", containerd.snapshotter, "--hosts-dir", str(hosts), name)

        for image in (virtual.images["schema2"], virtual.foreign["prefix"]):
            pull(image.name)
            containerd.compare(image, (image.native,))
        pull(f"docker.io/team/app:{ours.tag}")
        pull(f"quay.io/team/app:{ours.tag}")
        assert ours.native.digest in containerd.content()
        pull(hidden.name)
        assert hidden.native.digest not in containerd.content()
    assert _asked(virtual, "team/app") == _asked(virtual, hidden.repository) == []
    asked = {line["asked"] for line in virtual.mirror.requests() if line["path"].startswith("/v2/all/team/app")}
    assert asked == {"all/team/app"}
    assert any("ns=quay.io" in line["path"] for line in virtual.mirror.requests())


_CLOSED = """
    [[hosted]]
    name = "corp"
    [[access.token]]
    name = "ci"
    token = "s-ci"
    [[access.token]]
    name = "stranger"
    token = "s-stranger"
    [[access.rule]]
    effect = "allow"
    callers = ["token:ci"]
    actions = ["pull", "push"]
    repositories = ["corp/**"]
"""


def test_skopeo_logs_in_for_the_virtual_name(virtual: Site, tmp_path: Path) -> None:
    """By tokens whose scopes have that name: to push, to mount from it, and to pull. A login without rights for what is
    hosted pulls what is public, and nothing else.
    """
    image = virtual.images["oci"]
    upstreams = {"docker.io": virtual.docker.url, "ghcr.io": virtual.ghcr.url}
    with MirrorProcess(write_config(tmp_path, upstreams, more=f"{_CLOSED}{_VIRTUAL}")) as mirror:
        public, ours = (f"docker://{mirror.address}/all/{name}" for name in (image.repository, "team/app"))
        tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
        _skopeo("copy", *tls, f"{public}:{image.tag}", f"dir:{tmp_path / 'public'}")
        _skopeo("copy", *tls, "--dest-creds=x:s-ci", f"dir:{tmp_path / 'public'}", f"{ours}:v1")
        creds = ("--src-creds=x:s-ci", "--dest-creds=x:s-ci")
        _skopeo("copy", *tls, *creds, f"{ours}:v1", f"docker://{mirror.address}/all/team/other:v1")
        uploaded = [line for line in mirror.requests(path="/v2/all/team/other/blobs/uploads/") if line["received"]]
        assert uploaded == []
        _skopeo("copy", *tls, "--src-creds=x:s-ci", f"{ours}:v1", f"dir:{tmp_path / 'ours'}")
        compare_directory(tmp_path / "ours", image, every_platform=False)
        for login in ((), ("--src-creds=x:s-stranger",)):
            with pytest.raises(CommandFailed):
                _skopeo("copy", *tls, *login, f"{ours}:v1", f"dir:{tmp_path / 'refused'}")
        _skopeo("copy", *tls, "--src-creds=x:s-stranger", f"{public}:{image.tag}", f"dir:{tmp_path / 'again'}")
    assert _asked(virtual, "team/app") == []
