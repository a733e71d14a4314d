"""A password in a file that somebody else rotates: when a new one is sent, and what counts while there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog

from mirror.errors import MirrorError
from mirror.upstream.credentials.secret_files import PasswordFile, secret_in
from mirror.upstream.credentials.source import Credentials
from tests.ports.conftest import Pulling
from tests.support.fake_registry import FakeRegistry

OLD, NEW = "canary-old", "canary-new"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Holds the old password."""
    file = tmp_path / "password"
    file.write_text(f"{OLD}\n")
    return file


@pytest.fixture
def source(path: Path) -> PasswordFile:
    """As it is made after the configuration was read."""
    return PasswordFile(path, "user", OLD, upstream="a.test")


def put(path: Path, content: bytes | str | None) -> None:
    """Write over a file, or remove it."""
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


async def current(source: PasswordFile) -> str:
    """The password that would be sent."""
    credentials = await source.credentials()
    assert isinstance(credentials, Credentials)
    assert credentials.username == "user"
    return credentials.password


def disguise(path: Path, text: str) -> None:
    """Write over a file so that it looks the same as before: size, time and inode."""
    before = os.stat(path)
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize(
    ("content", "secret"),
    [(b"word", "word"), (b" two words\r\n", "two words"), ("wört\n".encode(), "wört")],
)
def test_what_a_file_holds(content: bytes, secret: str) -> None:
    """All of it but the white space around it."""
    assert secret_in(content) == secret


@pytest.mark.parametrize(("content", "mistake"), [(b"", "empty"), (b" \r\n", "empty"), (b"canary\xff", "not text")])
def test_what_is_no_secret(content: bytes, mistake: str) -> None:
    """What is wrong is told; what stands there is not, in the cause neither."""
    with pytest.raises(ValueError, match=f"^{mistake}$") as caught:
        secret_in(content)
    assert caught.value.__cause__ is None


async def test_written_over(path: Path, source: PasswordFile) -> None:
    """The next one who asks has the new one."""
    assert await current(source) == OLD
    put(path, "longer than before")
    assert await current(source) == "longer than before"


async def test_replaced_by_rename(path: Path, source: PasswordFile) -> None:
    """Another file of the same size and time."""
    assert await current(source) == OLD
    fresh = path.with_name("fresh")
    fresh.write_text(f"{NEW}\n")
    os.utime(fresh, ns=(0, os.stat(path).st_mtime_ns))
    os.replace(fresh, path)
    assert await current(source) == NEW


async def test_a_mounted_kubernetes_secret(tmp_path: Path) -> None:
    """The file is a link through `..data`, which is exchanged; the link itself stays."""
    for folder, password in (("..1", OLD), ("..2", NEW)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "token").write_text(password)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "token").symlink_to("..data/token")
    source = PasswordFile(tmp_path / "token", "user", OLD, upstream="a.test")
    assert await current(source) == OLD
    (tmp_path / "..data_tmp").symlink_to("..2")
    os.replace(tmp_path / "..data_tmp", tmp_path / "..data")
    assert await current(source) == NEW


async def test_changed_before_it_was_looked_at(path: Path, source: PasswordFile) -> None:
    """Between the reading of the configuration and the first pull."""
    put(path, NEW)
    assert await current(source) == NEW


@pytest.mark.parametrize("looked_at", [True, False])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file or directory"), (b"\n", "empty"), (b"canary-\xff", "not text")],
    ids=["gone", "empty", "bytes"],
)
async def test_a_file_of_no_use(
    path: Path, source: PasswordFile, content: bytes | None, reason: str, looked_at: bool
) -> None:
    """What it said last is used on, from the configuration if it was never looked at; it is logged once, and told
    until the file is good again.
    """
    if looked_at:
        put(path, "later")
        assert await current(source) == "later"
    with structlog.testing.capture_logs() as logged:
        put(path, content)
        for _ in range(3):
            assert await current(source) == ("later" if looked_at else OLD)
            await source.reject(Credentials("user", OLD))
        message = f"{path}: {reason}; its last content stays in use"
        assert logged == [
            {"event": "credentials not reloaded", "upstream": "a.test", "reason": message, "log_level": "warning"}
        ]
        assert (source.issuing.provider, source.issuing.reason) == ("password_file", message)
        put(path, NEW)
        assert source.issuing.reason is None
        assert await current(source) == NEW
    assert len(logged) == 1


async def test_what_nobody_may_read(path: Path, source: PasswordFile) -> None:
    """A folder stands in its place: root, too, cannot read that."""
    put(path, None)
    os.mkdir(path)
    assert await current(source) == OLD
    assert source.issuing.reason == f"{path}: Is a directory; its last content stays in use"


@pytest.mark.parametrize("tokens", [True, False])
async def test_a_change_that_does_not_show(tokens: bool, path: Path, source: PasswordFile, pulling: Pulling) -> None:
    """Upstream refuses the old password, so the file is read again, and that same pull goes on with the new one."""
    with FakeRegistry(tokens=tokens, users={"user": OLD}) as registry:
        registry.add_image("team/app", "v1", [b"layer"])
        registry.add_image("team/other", "v1", [b"layer"])
        upstream = pulling(registry, source)
        await upstream.resolve("team/app", "v1")
        registry.users["user"] = NEW
        disguise(path, f"{NEW}\n")
        assert await current(source) == OLD
        # of a repository for which there is no token yet
        await upstream.resolve("team/other", "v1")
        assert await current(source) == NEW


async def test_refused_with_nothing_new(path: Path, source: PasswordFile, pulling: Pulling) -> None:
    """It is said to be refused; the first pull after the rotation is let in. No secret is told."""
    with FakeRegistry(users={"user": NEW}) as registry, structlog.testing.capture_logs() as logged:
        registry.add_image("team/app", "v1", [b"layer"])
        upstream = pulling(registry, source)
        with pytest.raises(MirrorError) as caught:
            await upstream.resolve("team/app", "v1")
        [health] = upstream.health()
        reasons = [login.reason for login in health.logins if login.reason]
        assert reasons == ["the registry refuses the credentials (401)"]
        put(path, NEW)
        await upstream.resolve("team/app", "v1")
        [health] = upstream.health()
        assert not [login for login in health.logins if login.reason]
    assert "canary" not in f"{caught.value} {reasons} {logged} {source!r} {await source.credentials()!r}"
