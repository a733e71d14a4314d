"""What `mirror check --online` says of the other replicas."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mirror.peers.member_check import MemberCheck, check_members
from mirror.peers.members import ClusterMembers
from mirror.peers.peer_client import PeerClient
from mirror.peers.peer_health import PeerHealth
from mirror.peers.peer_signer import PeerSigner
from mirror.peers.secret_file import ClusterSecrets
from mirror.server.peers.notices import NoticeEffects
from tests.support.command import mirror
from tests.support.engines.ports import free_ports
from tests.support.peer_listener import SECRET, SENDER, peer_listener


def _checked(
    folder: Path, *, secret: str = SECRET, own: str = SENDER, cluster: str = "mirror", late: float = 0.0
) -> MemberCheck:
    """What this replica finds out about a real one that knows it as `SENDER`."""

    async def run() -> MemberCheck:
        async with peer_listener(folder, [NoticeEffects().verb()]) as listener:
            health = PeerHealth()
            file = folder / "own-secret"
            file.write_text(secret)
            signer = PeerSigner(cluster, own, ClusterSecrets(file), now=lambda: listener.clock[0] - late)
            client = PeerClient(signer, health)
            try:
                [found] = await check_members(ClusterMembers(own, [listener.address], health), client)
            finally:
                await client.aclose()
            assert found.member == listener.address
            return found

    return asyncio.run(run())


def test_a_replica_that_answers(tmp_path: Path) -> None:
    """With its version."""
    found = _checked(tmp_path)
    assert (found.ok, found.detail, found.advice) == (True, "answers, version 1.2.3", "")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"secret": "another secret of more than 32 bytes"}, "another secret"),
        ({"own": "http://10.6.6.6:5001"}, "http://10.6.6.6:5001 is no member"),
        ({"cluster": "staging"}, "cluster staging"),
    ],
)
def test_a_replica_that_refuses_this_one(tmp_path: Path, wrong: dict[str, object], said: str) -> None:
    """Its reason is shown, and what to compare."""
    found = _checked(tmp_path, **wrong)  # type: ignore[arg-type]
    assert not found.ok
    assert said in found.detail
    assert "cluster.secret_file" in found.advice


def test_a_replica_with_another_clock(tmp_path: Path) -> None:
    """It answers by its own clock, and somebody should look all the same."""
    found = _checked(tmp_path, late=3600.0)
    assert (found.ok, found.detail) == (False, "answers, but the clocks differ by 3600 s")
    assert "clock" in found.advice


def test_a_replica_that_is_not_there(tmp_path: Path) -> None:
    """The network is named, and no other one is held up by it."""

    async def run() -> list[MemberCheck]:
        async with peer_listener(tmp_path, [NoticeEffects().verb()]) as listener:
            nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
            health = PeerHealth()
            client = PeerClient(listener.signer(), health)
            try:
                members = ClusterMembers(SENDER, [listener.address, nobody], health)
                return sorted(await check_members(members, client), key=lambda one: one.ok)
            finally:
                await client.aclose()

    absent, there = asyncio.run(run())
    assert (absent.ok, there.ok) == (False, True)
    assert "does not answer" in absent.detail
    assert "mirror-internal" in absent.advice


def test_a_cluster_of_one(tmp_path: Path) -> None:
    """Is a mistake of the list of members, or of its name."""

    async def run() -> list[MemberCheck]:
        file = tmp_path / "secret"
        file.write_text(SECRET)
        client = PeerClient(PeerSigner("mirror", SENDER, ClusterSecrets(file)), health := PeerHealth())
        return list(await check_members(ClusterMembers(SENDER, [], health), client))

    [found] = asyncio.run(run())
    assert (found.member, found.ok) == (SENDER, False)
    assert "cluster.members" in found.advice


def test_the_command_asks_all_replicas(tmp_path: Path) -> None:
    """Also of a mirror that is sealed, and has no bucket; its status says that one did not answer."""
    (tmp_path / "secret").write_text(SECRET)
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    file = tmp_path / "mirror.toml"
    file.write_text(
        f"""offline = true
        [store]
        root = "{tmp_path}/store"
        [cluster]
        members = ["{SENDER}", "{nobody}"]
        address = "{SENDER}"
        secret_file = "{tmp_path}/secret"
        """
    )
    done = mirror("check", "--online", "--config", file)
    assert done.status == 1
    assert f"FAILED replica {nobody}: " in done.out
    asked = mirror("check", "--online", "--json", "--config", file)
    assert [one["ok"] for one in asked.json["members"]] == [False]
    assert mirror("check", "--config", file).status == 0
