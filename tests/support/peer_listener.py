"""An internal listener in this process, and who asks it.

async with peer_listener(verbs) as listener:
    answer = await listener.ask("POST", "/peer/v1/notice", body=b"{}")
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from mirror.clock import steady_time
from mirror.peers.members import ClusterMembers
from mirror.peers.peer_health import PeerHealth
from mirror.peers.peer_signer import PeerSigner
from mirror.peers.secret_file import ClusterSecrets
from mirror.peers.used_nonces import UsedNonces
from mirror.policy.cluster.peer_signatures import SignedParts, content_digest, sign
from mirror.server.peers.peer_front import PeerFront, PeerVerb
from mirror.server.registry.connection_limit import ConnectionLimiter
from mirror.server.registry.handler import RegistryServer

SECRET: Final = "the secret of the cluster in tests"
#: Who asks.
SENDER: Final = "http://10.0.0.9:5001"


@dataclass(slots=True)
class PeerListener:
    """A listener; `address` is its own, `members` whom it knows."""

    address: str
    port: int
    members: ClusterMembers
    front: PeerFront
    nonces: UsedNonces
    secret_file: Path
    listening: asyncio.Server
    #: What the listener takes for the time.
    clock: list[float] = field(default_factory=lambda: [time.time()])

    def close(self) -> None:
        """Nobody can connect any more."""
        self.listening.close()

    def signer(self, own: str = SENDER) -> PeerSigner:
        """Signs in the name of a member."""
        return PeerSigner("mirror", own, ClusterSecrets(self.secret_file), now=lambda: self.clock[0])

    def signed(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        secret: str = SECRET,
        cluster: str = "mirror",
        sender: str = SENDER,
        receiver: str | None = None,
        age: float = 0.0,
        nonce: str | None = None,
    ) -> bytes:
        """A whole request, as it is sent."""
        sent = dict(headers or {})
        if body:
            sent |= {"Content-Length": str(len(body)), "Mirror-Content-Digest": content_digest(body)}
        elif method in ("POST", "PUT", "PATCH"):
            sent["Content-Length"] = "0"
        authorization = sign(
            secret.encode(),
            SignedParts(method, target, sent),
            cluster=cluster,
            sender=sender,
            receiver=receiver or self.address,
            now=self.clock[0] - age,
            nonce=nonce or secrets.token_hex(16),
        )
        return request_bytes(method, target, {**sent, "Authorization": authorization}, body)

    def exchange(self, request: bytes) -> bytes:
        """Blocking: sends bytes on a connection of its own, and returns all that comes back until it is closed."""
        answer = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection, suppress(ConnectionError):
            connection.sendall(request)
            while piece := connection.recv(65536):
                answer += piece
        return answer


def request_bytes(method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request as it is sent."""
    lines = [f"{method} {target} HTTP/1.1", "Host: peer", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def peer_listener(
    folder: Path,
    verbs: Iterable[PeerVerb],
    *,
    members: Iterable[str] = (SENDER,),
    tls: ssl.SSLContext | None = None,
    tls_name: str | None = None,
    nonces: UsedNonces | None = None,
    doubt: Callable[[ClusterMembers], Awaitable[None]] | None = None,
    head: float = 20.0,
) -> AsyncIterator[PeerListener]:
    """Listens on a free port of 127.0.0.1. `doubt` is called with the members when a stranger asks; `head` is how many
    seconds the head of a request may take.
    """
    secret_file = folder / "cluster-secret"
    secret_file.write_text(SECRET)
    own = socket.create_server(("127.0.0.1", 0))
    port = own.getsockname()[1]
    address = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    known = ClusterMembers(address, members, PeerHealth())
    clock = [float(int(time.time()))]
    # made long ago: tests sign as if they had waited
    memory = nonces or UsedNonces(UsedNonces.made().descriptor, steady=lambda: steady_time() + 1000)
    front = PeerFront(
        {verb.name: verb for verb in verbs},
        known,
        ClusterSecrets(secret_file),
        memory,
        cluster="mirror",
        version="1.2.3",
        doubt=partial(doubt, known) if doubt is not None else None,
        tls_name=tls_name,
        now=lambda: clock[0],
    )
    server = RegistryServer(front, limiter=ConnectionLimiter(head=head), access_log=None)
    loop = asyncio.get_running_loop()
    factory = server if tls is None else partial(server.over_tls, tls)
    listening = await loop.create_server(factory, sock=own)
    try:
        yield PeerListener(address, port, known, front, memory, secret_file, listening, clock)
    finally:
        listening.close()
        await server.shutdown(0.1)
        if nonces is None:
            memory.close()
