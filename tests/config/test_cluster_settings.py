"""`[cluster]`: what is accepted, what is a mistake, and what is shown of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mirror.config import Config, hints, load, redacted_settings
from mirror.errors import ConfigError
from tests.support.certificates import Certificate

_MEMBERS = ["http://10.0.0.1:5001", "http://10.0.0.2:5001"]
_DNS = ["dns+http://mirror-internal.mirror.svc:5001"]
_SECRET = "not-to-be-shown-" * 4


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Free of settings."""
    for name in os.environ:
        if name.upper().startswith("MIRROR__"):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """The file with the secret."""
    file = tmp_path / "cluster-secret"
    file.write_text(_SECRET)
    return file


def _load(folder: Path, more: str = "", **settings: Any) -> Config:
    """The configuration with these settings of the cluster."""
    lines = [
        f"{name} = {json.dumps(str(value) if isinstance(value, Path) else value)}" for name, value in settings.items()
    ]
    file = folder / "mirror.toml"
    file.write_text("\n".join([f'store.root = "{folder}/store"', "[cluster]", *lines, more]))
    return load(file)


def _mistakes(folder: Path, more: str = "", **settings: Any) -> list[str]:
    try:
        _load(folder, more, **settings)
    except ConfigError as error:
        return list(error.mistakes)
    return []


def test_a_cluster_needs_an_address_and_a_secret(tmp_path: Path, secret: Path) -> None:
    loaded = _load(tmp_path, members=_MEMBERS, address="http://10.0.0.1:5001/", secret_file=secret)
    assert loaded.cluster.has_members
    assert loaded.cluster.address == "http://10.0.0.1:5001"
    assert _SECRET not in json.dumps(redacted_settings(loaded))
    assert [mistake.split(":")[0] for mistake in _mistakes(tmp_path, members=_MEMBERS)] == [
        "cluster.address",
        "cluster.secret_file",
    ]
    assert _mistakes(tmp_path, members=_MEMBERS, address="http://10.0.0.3:5001", secret_file=secret) == [
        "cluster.address: http://10.0.0.3:5001 is not one of cluster.members"
    ]


def test_the_address_comes_from_the_environment_of_a_pod(
    tmp_path: Path, secret: Path, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("MIRROR__CLUSTER__ADDRESS", "http://10.244.1.17:5001")
    environment.setenv("MIRROR__CLUSTER__MEMBERS", _DNS[0])
    loaded = _load(tmp_path, secret_file=secret)
    assert (loaded.cluster.members, loaded.cluster.address) == (_DNS, "http://10.244.1.17:5001")


def test_members_that_are_looked_up_have_ip_addresses_and_one_port(tmp_path: Path, secret: Path) -> None:
    [mistake] = _mistakes(tmp_path, members=_DNS, secret_file=secret)
    assert mistake.startswith("cluster.address: must be set")
    [mistake] = _mistakes(tmp_path, members=_DNS, address="http://10.0.0.1:5002", secret_file=secret)
    assert "differs from dns+http://mirror-internal.mirror.svc:5001 in scheme or port" in mistake
    [mistake] = _mistakes(tmp_path, members=_DNS, address="http://pod-0:5001", secret_file=secret)
    assert "pod-0 is a name" in mistake
    [mistake] = _mistakes(tmp_path, members=[*_DNS, _MEMBERS[0]], address=_MEMBERS[0], secret_file=secret)
    assert "stands alone" in mistake
    [mistake] = _mistakes(tmp_path, members=_DNS, address=_DNS[0], secret_file=secret)
    assert mistake.startswith("cluster.address: one address, without dns+")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is empty"),
        ("too short", "line 1 has less than 32 bytes"),
        ("x" * 40 + "\nno", "line 2"),
        (None, "No such"),
    ],
)
def test_the_secret_is_looked_at(tmp_path: Path, secret: Path, content: str | None, expected: str) -> None:
    secret.unlink()
    if content is not None:
        secret.write_text(content)
    [mistake] = _mistakes(tmp_path, members=_MEMBERS, address=_MEMBERS[0], secret_file=secret)
    assert mistake.startswith(f"cluster.secret_file: {secret}: ")
    assert expected in mistake
    assert "too short" not in mistake


def test_settings_without_a_cluster_are_a_mistake(tmp_path: Path, secret: Path) -> None:
    assert _mistakes(tmp_path, secret_file=secret, listen="0.0.0.0:5009") == [
        "cluster.listen: there is no cluster: set cluster.members",
        "cluster.secret_file: there is no cluster: set cluster.members",
    ]
    assert not _load(tmp_path).cluster.has_members


@pytest.mark.parametrize(
    ("listen", "more", "expected"),
    [
        ("unix:/run/x.sock", "", "other replicas need host:port"),
        ("0.0.0.0:0", "", "a port that they know"),
        ("0.0.0.0:5000", "", "127.0.0.1:5000 of server.listen exclude each other"),
        ("127.0.0.1:5007", '[admin]\nlisten = "127.0.0.1:5007"', "127.0.0.1:5007 of admin.listen exclude each other"),
    ],
)
def test_the_internal_listener_has_a_port_of_its_own(
    tmp_path: Path, secret: Path, listen: str, more: str, expected: str
) -> None:
    settings: dict[str, Any] = {"members": _MEMBERS, "address": _MEMBERS[0], "secret_file": secret}
    [mistake] = _mistakes(tmp_path, more, listen=listen, **settings)
    assert mistake.startswith("cluster.listen: ")
    assert expected in mistake


def test_members_are_all_of_one_kind(tmp_path: Path, secret: Path) -> None:
    mixed = ["http://10.0.0.1:5001", "https://10.0.0.2:5001"]
    [mistake] = _mistakes(tmp_path, members=mixed, address=mixed[0], secret_file=secret)
    assert "do not mix" in mistake
    twice = [_MEMBERS[0], "http://10.0.0.1:5001/"]
    [mistake] = _mistakes(tmp_path, members=twice, address=_MEMBERS[0], secret_file=secret)
    assert mistake == "cluster.members: http://10.0.0.1:5001 is there more than once"
    [mistake] = _mistakes(tmp_path, members=["10.0.0.1:5001"], address=_MEMBERS[0], secret_file=secret)
    assert mistake.startswith("cluster.members[1]: '10.0.0.1:5001' is not an address such as")


def test_tls_needs_its_three_files(tmp_path: Path, secret: Path) -> None:
    members = ["https://mirror-0:5001", "https://mirror-1:5001"]
    settings: dict[str, Any] = {"members": members, "address": members[0], "secret_file": secret}
    assert {mistake.split(":")[0] for mistake in _mistakes(tmp_path, **settings)} == {
        "cluster.tls_certificate",
        "cluster.tls_key",
        "cluster.ca_file",
    }
    made = Certificate(tmp_path)
    files: dict[str, Any] = {"tls_certificate": made.certificate, "tls_key": made.key, "ca_file": made.certificate}
    assert _mistakes(tmp_path, **settings, **files) == []
    [mistake] = _mistakes(tmp_path, **settings, **{**files, "tls_key": secret})
    assert "are not PEM files that belong together" in mistake
    [mistake] = _mistakes(tmp_path, **settings, **{**files, "ca_file": secret})
    assert mistake == f"cluster.ca_file: {secret} contains no certificate"
    [mistake] = _mistakes(tmp_path, members=_MEMBERS, address=_MEMBERS[0], secret_file=secret, ca_file=made.certificate)
    assert mistake == "cluster.ca_file: is for members with https://"


def test_hosted_registries_and_logins_need_what_replicas_share(tmp_path: Path, secret: Path) -> None:
    settings: dict[str, Any] = {"members": _MEMBERS, "address": _MEMBERS[0], "secret_file": secret}
    mistakes = _mistakes(tmp_path, '[[hosted]]\nname = "corp"', **settings)
    assert [mistake.split(":")[0] for mistake in mistakes] == ["cluster.members", "access.token_key_file"]
    [mistake] = _mistakes(tmp_path, '[[access.token]]\nname = "ci"\ntoken = "0123456789abcdef"', **settings)
    assert mistake.startswith("access.token_key_file: must be set in a cluster")


def test_hints(tmp_path: Path, secret: Path) -> None:
    alone = _load(tmp_path, members=_MEMBERS[:1], address=_MEMBERS[0], secret_file=secret)
    assert "cluster.members: this replica is the only member" in hints(alone)
    old = _load(tmp_path, "[hosting]\ntag_freshness = 90", members=_MEMBERS, address=_MEMBERS[0], secret_file=secret)
    assert any(hint.startswith("hosting.tag_freshness: for 90 s after a push") for hint in hints(old))
    without = _load(tmp_path, '[hosting]\ntag_freshness = "1s"')
    assert "hosting.tag_freshness: has no effect without cluster.members" in hints(without)
