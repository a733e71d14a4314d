"""`mirror configure` as people run it: what it prints, its exit status, and that it keeps secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.certificates import Certificate
from tests.support.command import mirror as command

_URL = "http://mirror.internal:5000"


def _mirror(root: Path, *words: str) -> tuple[int, str, str]:
    """Exit status, standard output and error."""
    done = command("configure", *words, "--root", root)
    return done.status, done.out, done.err


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Another root than this machine's."""
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_it_only_shows_at_first(root: Path, words: tuple[str, ...]) -> None:
    """A difference as `diff -u` shows it, what would have to be reloaded, and nothing on the disk."""
    code, said, _ = _mirror(root, "docker", _URL, *words)
    assert code == 0
    assert said.startswith("--- /dev/null\n+++ /etc/docker/daemon.json\n@@")
    assert '+  "registry-mirrors": ["http://mirror.internal:5000"],' in said
    assert "nothing was changed; --apply makes the changes\nthen: systemctl reload docker\n" in said
    assert not list(root.iterdir())


def test_apply_again_and_undo(root: Path) -> None:
    """Each says what it did, where the backup is, and what has to be reloaded, if anything."""
    file = root / "etc/docker/daemon.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    _, said, _ = _mirror(root, "docker", _URL, "--apply")
    assert "/etc/docker/daemon.json: changed; backup: /etc/docker/daemon.json.before-mirror-" in said
    assert "now: systemctl reload docker" in said
    _, said, _ = _mirror(root, "docker", _URL, "--apply")
    assert "nothing to change" in said
    assert "systemctl" not in said
    assert _mirror(root, "docker", "--undo", "--dry-run")[1].startswith("--- /etc/docker/daemon.json\n+++ /etc/docker")
    assert _mirror(root, "docker", "--undo")[1] == "/etc/docker/daemon.json: changed\nnow: systemctl reload docker\n"
    assert file.read_text() == "{}"
    assert _mirror(root, "docker", "--undo")[1] == "nothing to undo\n"


def test_conflicts_are_named_and_nothing_is_done(root: Path) -> None:
    """Exit status 1, also with --apply."""
    later = root / "etc/containers/registries.conf.d/99-ours.conf"
    later.parent.mkdir(parents=True)
    later.write_text('[[registry]]\nlocation = "ghcr.io"\n')
    code, _, trouble = _mirror(root, "podman", _URL, "--apply")
    assert code == 1
    assert "99-ours.conf: has a block for ghcr.io" in trouble
    assert len(list(later.parent.iterdir())) == 1


def test_a_mirror_that_moves_after_an_edit(root: Path) -> None:
    """What configuration management has added to config.toml stays, and is no reason to refuse another URL."""
    assert _mirror(root, "containerd", _URL, "--apply")[0] == 0
    config = root / "etc/containerd/config.toml"
    config.write_text(config.read_text() + "# rolled out by somebody\n")
    edited = config.read_text()
    code, said, trouble = _mirror(root, "containerd", "https://other.internal", "--apply")
    assert (code, trouble) == (0, "")
    assert "note: /etc/containerd/config.toml: was edited since configure wrote it, and is left unchanged" in said
    assert config.read_text() == edited
    hosts = (root / "etc/containerd/certs.d/_default/hosts.toml").read_text()
    assert '[host."https://other.internal"]' in hosts
    assert _URL not in hosts
    code, _, trouble = _mirror(root, "containerd", "--undo")
    assert (code, "+# rolled out by somebody" in trouble) == (1, True)


def test_undo_refuses_and_shows_what_changed(root: Path) -> None:
    """Exit status 1."""
    _mirror(root, "k3s", _URL, "--apply")
    file = root / "etc/rancher/k3s/registries.yaml"
    file.write_text(file.read_text() + "configs: {}\n")
    code, _, trouble = _mirror(root, "k3s", "--undo")
    assert code == 1
    assert "was changed since" in trouble
    assert "+configs: {}" in trouble


def test_passwords_are_written_and_not_shown(root: Path, tmp_path: Path) -> None:
    """Neither in the difference nor in what is said."""
    word = tmp_path / "word"
    word.write_text("s3cret-w0rd\n")
    certificate = Certificate(tmp_path / "tls").certificate
    words = (
        "https://mirror.internal",
        "--username",
        "node",
        "--password-file",
        str(word),
        "--ca-file",
        str(certificate),
    )
    for client, file in (("k3s", "etc/rancher/k3s/registries.yaml"), ("containerd", "")):
        shown = _mirror(root, client, *words)[1] + _mirror(root, client, *words, "--apply")[1]
        assert "s3cret" not in shown
        assert "bm9kZTpzM2NyZXQ" not in shown
        if file:
            assert "s3cret-w0rd" in (root / file).read_text()
            assert (root / file).stat().st_mode & 0o777 == 0o600
    assert (root / "etc/containerd/certs.d/_default/mirror-ca.pem").read_text() == certificate.read_text()


def test_a_password_without_tls_is_told_about(root: Path, tmp_path: Path) -> None:
    """It is done all the same: the network may be one's own. On this machine alone nobody can listen."""
    word = tmp_path / "word"
    word.write_text("s3cret-w0rd\n")
    words = ("--username", "node", "--password-file", str(word), "--apply")
    code, said, _ = _mirror(root, "containerd", _URL, *words)
    assert (code, "note: the password crosses the network" in said) == (0, True)
    assert "crosses the network" not in _mirror(root, "containerd", "http://127.0.0.1:5000", *words)[1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("docker",), "MIRROR_URL is missing"),
        (("emacs", _URL), "'emacs' is not one of"),
        (("docker", "mirror:5000"), "write http://host:port"),
        (("docker", _URL, "--apply", "--dry-run"), "exclude each other"),
        (("docker", _URL, "--registry", "ghcr.io"), "docker.io only"),
        (("containerd", _URL, "--registry", "a b"), "not the name of a registry"),
        (("containerd", _URL, "--username", "me"), "belong together"),
        (("containerd", _URL, "--ca-file", "/dev/null"), "http://"),
        (("containerd", "https://mirror", "--ca-file", "/dev/null"), "contains no certificate"),
        (("containerd", "https://mirror", "--ca-file", "/nonexistent"), "No such file"),
        (("containerd", _URL, "--username", "me", "--password-file", "/nonexistent"), "No such file"),
    ],
)
def test_unusable_arguments(root: Path, words: tuple[str, ...], reason: str) -> None:
    """Exit status 2 and what is wrong."""
    code, _, trouble = _mirror(root, *words, "--apply") if "--apply" not in words else _mirror(root, *words)
    assert code == 2
    assert reason in trouble
    assert not list(root.iterdir())


def test_a_private_key_is_no_authority(root: Path, tmp_path: Path) -> None:
    """It would be copied to where everybody can read it."""
    made = Certificate(tmp_path / "tls")
    both = tmp_path / "both.pem"
    both.write_text(made.certificate.read_text() + made.key.read_text())
    code, _, trouble = _mirror(root, "docker", "https://mirror", "--ca-file", str(both), "--apply")
    assert code == 2
    assert "private key" in trouble


def test_aliases_of_docker_hub_mean_docker_hub(root: Path) -> None:
    """Clients know it by one name only."""
    said = _mirror(root, "containerd", _URL, "--registry", "index.docker.io")[1]
    assert "/etc/containerd/certs.d/docker.io/hosts.toml" in said
