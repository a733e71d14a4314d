"""Redis as operators run it: a primary with replicas and Sentinels, and a Cluster; each server a process of the test's
own on loopback, which a test may kill or pause.

`SentinelSet` and `ClusterSet` are the fixtures `redis_sentinels` and `redis_cluster`: one of each in a test process,
started for the first test that asks for it. `heal` makes it as it was, and empty, for the next test.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from redis.crc import key_slot

from mirror.index.redis_address import Place, RedisAddress, RedisKind, RedisLogin, RedisTls
from tests.support.engines.ports import free_ports
from tests.support.redis_server import RedisServer

SERVICE = "mirror"
#: Milliseconds until a server that does not answer counts as down.
DOWN_AFTER = 500
_SLOTS = 16384
#: Seconds after which a node that was asked to take over has done so, or has given up because the machine is busy.
_HAND_OVER_TAKES = 6.0
_STORED_NOWHERE = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--repl-diskless-load", "swapdb")


class RedisSet:
    """Servers that replace each other; `kind` says how clients find the one in charge."""

    kind: RedisKind

    def __init__(self, tls: Path | None = None) -> None:
        """`tls` is a folder with `ca.pem`, `server.pem`, `server.key`, `client.pem` and `client.key`; all connections
        are TLS then, and clients need a certificate.
        """
        self._tls = tls
        self._ports = free_ports(self._count())
        self.servers = [self._server(number, port) for number, port in enumerate(self._ports)]

    # ------------------------------------------------------------------------------------------- what each kind has

    def _count(self) -> int:
        raise NotImplementedError

    def _server(self, number: int, port: int) -> _Node:
        raise NotImplementedError

    def _settle(self) -> None:
        """Wait until everybody knows everybody, and all replicas have all data."""
        raise NotImplementedError

    @property
    def nodes(self) -> tuple[Place, ...]:
        """What clients are given."""
        raise NotImplementedError

    def primary(self, tag: str = "") -> _Node:
        """The server that has the keys of this hash tag now, as most of the others see it."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------------- common to all

    def address(self, login: RedisLogin | None = None, sentinel_login: RedisLogin | None = None) -> RedisAddress:
        """For clients."""
        tls = None
        if self._tls is not None:
            tls = RedisTls(*(str(self._tls / name) for name in ("ca.pem", "client.pem", "client.key")))
        service = SERVICE if self.kind is RedisKind.SENTINEL else ""
        return RedisAddress(
            self.nodes,
            kind=self.kind,
            service=service,
            login=login or RedisLogin(),
            sentinel_login=sentinel_login or RedisLogin(),
            tls=tls,
        )

    @property
    def url(self) -> str:
        """For a configuration, without a login."""
        address = str(self.address())
        if self._tls is None:
            return address
        files = {"ssl_ca_certs": "ca.pem", "ssl_certfile": "client.pem", "ssl_keyfile": "client.key"}
        return f"{address}?{'&'.join(f'{name}={self._tls / file}' for name, file in files.items())}"

    def wait_for_another(self, old: _Node, tag: str = "") -> None:
        """Until another server than this one has the keys."""
        _until(lambda: self.primary(tag) is not old, "another primary")

    def everywhere(self, *words: str) -> None:
        """Send one command to every server that holds data."""
        for each in self.servers:
            each.command(*words)

    def flush(self) -> None:
        """Empty it."""
        for each in self.servers:
            with suppress(OSError):
                each.command("FLUSHALL")

    def heal(self) -> None:
        """Start what was killed, wake what is paused, wait until all is well, and empty it."""
        for each in self._all():
            each.wake()
        self._settle()
        self.flush()

    def _all(self) -> Sequence[_Node]:
        return self.servers

    def start(self) -> None:
        """Returns once everything is well."""
        for each in self._all():
            each.wake()
        self._join()
        self._settle()

    def _join(self) -> None:
        """Introduce the servers to each other."""

    def stop(self) -> None:
        """End all processes. Repeatable."""
        for each in self._all():
            each.__exit__(None, None, None)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _options(self, port: int) -> list[str]:
        """Where to listen."""
        if self._tls is None:
            return ["--bind", "127.0.0.1", "--port", str(port)]
        files = {"cert": "server.pem", "key": "server.key", "ca-cert": "ca.pem"}
        return [
            *("--bind", "127.0.0.1", "--port", "0", "--tls-port", str(port), "--tls-replication", "yes"),
            *(word for name, file in files.items() for word in (f"--tls-{name}-file", str(self._tls / file))),
        ]


class SentinelSet(RedisSet):
    """A primary, two replicas and three Sentinels; more than one Sentinel must agree that the primary is down."""

    kind = RedisKind.SENTINEL

    def __init__(self, tls: Path | None = None, *arguments: str) -> None:
        """`arguments` are those of each server that holds data, as on its command line."""
        self._arguments = arguments
        super().__init__(tls)
        self.sentinels = [self._sentinel() for _ in range(3)]

    def _count(self) -> int:
        return 3

    def _server(self, number: int, port: int) -> _Node:
        follows = ("--replicaof", "127.0.0.1", str(self._ports[0])) if number else ()
        return _Node(
            port, *self._options(port), *_STORED_NOWHERE, "--repl-ping-replica-period", "1", *self._arguments, *follows
        )

    def _sentinel(self) -> _Node:
        [port] = free_ports(1)
        lines = [
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.servers[0].port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER}",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        return _Node(port, "--sentinel", *self._options(port), configuration="\n".join(lines))

    def _all(self) -> Sequence[_Node]:
        return [*self.servers, *self.sentinels]

    @property
    def nodes(self) -> tuple[Place, ...]:
        return tuple(("127.0.0.1", each.port) for each in self.sentinels)

    def primary(self, tag: str = "") -> _Node:
        asked = [each for each in self.sentinels if each.answers]
        votes = Counter(each.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE) for each in asked)
        [(named, _)] = votes.most_common(1)
        port = int(named.split(b"\r\n")[-2])
        return next(each for each in self.servers if each.port == port)

    def _settle(self) -> None:
        def is_well() -> bool:
            primaries = {each.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE) for each in self.sentinels}
            known = [_fields(each.command("SENTINEL", "MASTER", SERVICE)) for each in self.sentinels]
            well = [(one.get("num-slaves"), one.get("num-other-sentinels"), one.get("flags")) for one in known]
            if len(primaries) != 1 or not _is_primary(primary := self.primary()):
                return False
            for each in self.servers:
                if each is not primary and _is_primary(each):
                    # a Sentinel would do so as well, but looks every ten seconds only
                    each.command("REPLICAOF", "127.0.0.1", str(primary.port))
            return well == [("2", "2", "master")] * 3 and all(map(_has_data, self.servers))

        _until(is_well, "the Sentinels know each other and a primary with two replicas")


class ClusterSet(RedisSet):
    """Three primaries, each with a third of the slots and one replica."""

    kind = RedisKind.CLUSTER

    def _count(self) -> int:
        return 6

    def _server(self, number: int, port: int) -> _Node:
        tls = ("--tls-cluster", "yes") if self._tls is not None else ()
        return _Node(
            port,
            *self._options(port),
            *_STORED_NOWHERE,
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", *tls),
            *("--cluster-port", str(free_ports(1)[0]), "--cluster-node-timeout", "1000"),
            *("--cluster-replica-validity-factor", "0"),
        )

    @property
    def nodes(self) -> tuple[Place, ...]:
        return tuple(("127.0.0.1", each.port) for each in self.servers)

    def _join(self) -> None:
        first = self.servers[0]
        for number, each in enumerate(self.servers[:3]):
            slots = str(_SLOTS * number // 3), str(_SLOTS * (number + 1) // 3 - 1)
            assert each.command("CLUSTER", "ADDSLOTSRANGE", *slots) == b"+OK\r\n"
            assert each.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1)) == b"+OK\r\n"
        for each in self.servers[1:]:
            bus = each.option("--cluster-port")
            assert first.command("CLUSTER", "MEET", "127.0.0.1", str(each.port), bus) == b"+OK\r\n"
        _until(lambda: all(len(self._known(each)) == 6 for each in self.servers), "all nodes know each other")
        for replica, primary in zip(self.servers[3:], self.servers, strict=False):
            name = primary.command("CLUSTER", "MYID").split(b"\r\n")[1].decode()
            assert replica.command("CLUSTER", "REPLICATE", name) == b"+OK\r\n"

    def _known(self, node: _Node) -> list[bytes]:
        lines = node.command("CLUSTER", "NODES").split(b"\n")
        return [line for line in lines if b"connected" in line and b"handshake" not in line]

    def primary(self, tag: str = "") -> _Node:
        slot = key_slot(f"{{{tag}}}".encode())
        votes: Counter[int] = Counter()
        for each in self.servers:
            if each.answers:
                votes.update(port for first, last, port in self._ranges(each) if first <= slot <= last)
        [(port, _)] = votes.most_common(1)
        return next(each for each in self.servers if each.port == port)

    def hand_over(self, tag: str) -> None:
        """Let its replica take over from the primary, which goes on as the replica of that one."""
        old = self.primary(tag)
        lead = re.compile(rb"slave\r\n\$9\r\n127\.0\.0\.1\r\n:%d\r\n" % old.port)
        heir = next(each for each in self.servers if lead.search(each.command("ROLE")))
        asked_at = float("-inf")

        def is_done() -> bool:
            nonlocal asked_at
            if time.monotonic() - asked_at > _HAND_OVER_TAKES:
                asked_at = time.monotonic()
                heir.command("CLUSTER", "FAILOVER")
            owners = [
                port
                for each in self.servers
                for first, last, port in self._ranges(each)
                if first <= key_slot(f"{{{tag}}}".encode()) <= last
            ]
            return owners == [heir.port] * len(self.servers)

        _until(is_done, "the replica has taken over")

    def _ranges(self, node: _Node) -> list[tuple[int, int, int]]:
        """First slot, last slot and port of each range, as a node sees it."""
        found = []
        for line in self._known(node):
            words = line.decode().split(" ")
            port = int(words[1].partition("@")[0].rpartition(":")[2])
            found += [
                (int(each.partition("-")[0]), int(each.rpartition("-")[2]), port)
                for each in words[8:]
                if re.fullmatch(r"\d+(-\d+)?", each)
            ]
        return found

    def _settle(self) -> None:
        def is_well() -> bool:
            return (
                all(
                    b"cluster_state:ok" in (said := each.command("CLUSTER", "INFO"))
                    and b"cluster_slots_ok:16384" in said
                    and len(self._known(each)) == 6
                    and not any(b"fail" in line for line in self._known(each))
                    and sum(b"slave" in line for line in self._known(each)) == 3
                    and _has_data(each)
                    for each in self.servers
                )
                and sum(_is_primary(each) for each in self.servers) == 3
            )

        _until(is_well, "the Cluster is whole")


class _Node(RedisServer):
    """One server on a port of loopback, and on a unix socket for the test."""

    def __init__(self, port: int, *arguments: str, configuration: str = "") -> None:
        super().__init__(*arguments, configuration=configuration)
        self.port = port
        self._options = arguments
        self._paused = False

    def option(self, name: str) -> str:
        """The value of an option that it was started with."""
        return self._options[self._options.index(name) + 1]

    @property
    def answers(self) -> bool:
        """Whether it was neither killed nor paused."""
        return self.runs and not self._paused

    def pause(self) -> None:
        self._paused = True
        super().pause()

    def resume(self) -> None:
        super().resume()
        self._paused = False

    def kill(self) -> None:
        super().kill()
        self._paused = False

    def wake(self) -> None:
        """Let it run, whatever was done to it."""
        if self.runs:
            self.resume()
        else:
            self.start()


def _is_primary(server: RedisServer) -> bool:
    return server.command("ROLE").startswith(b"*3\r\n$6\r\nmaster")


def _has_data(server: RedisServer) -> bool:
    """Whether it is a primary, or a replica whose link is up."""
    said = server.command("INFO", "replication")
    return b"role:master" in said or (b"master_link_status:up" in said and b"master_sync_in_progress:0" in said)


def _fields(reply: bytes) -> dict[str, str]:
    """A flat array of names and values."""
    words = [word.decode() for word in reply.split(b"\r\n")[2::2]]
    return dict(zip(words[::2], words[1::2], strict=False))


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        with suppress(OSError, StopIteration, ValueError):
            if condition():
                return
        assert time.monotonic() < deadline, f"not within two minutes: {what}"
        time.sleep(0.02)
