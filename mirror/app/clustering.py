"""Opens what makes this mirror a replica of a cluster. Without `cluster.members`, nothing of it is even loaded."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from mirror import __version__
from mirror.aio.singleflight import cancel_and_wait
from mirror.config import ClusterSettings, Config
from mirror.errors import ConfigError, reason_of
from mirror.peers.member_lookup import MemberLookup
from mirror.peers.members import ClusterMembers
from mirror.peers.peer_client import PeerClient
from mirror.peers.peer_health import PeerHealth
from mirror.peers.peer_notices import PeerNotices
from mirror.peers.peer_signer import PeerSigner
from mirror.peers.secret_file import ClusterSecrets
from mirror.peers.session_owners import SessionOwners
from mirror.peers.used_nonces import UsedNonces
from mirror.policy.cluster.member_addresses import parse_member
from mirror.rounds import begin
from mirror.server.peers.notices import NoticeEffects
from mirror.server.peers.peer_front import PeerFront, PeerVerb

#: Seconds that a start waits for the first lookup of the members; they are looked up again anyway.
_FIRST_LOOKUP: Final = 2.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The other replicas: who they are, how they are asked, and what they may ask. `client_tls` is None without TLS.

    Whatever answers a verb of the internal listener puts it into `verbs`, and whatever a notice has to change goes into
    `effects`, both before the listener opens.
    """

    settings: ClusterSettings
    members: ClusterMembers
    secrets: ClusterSecrets
    signer: PeerSigner
    client: PeerClient
    notices: PeerNotices
    health: PeerHealth
    sessions: SessionOwners
    client_tls: ssl.SSLContext | None = None
    lookup: MemberLookup | None = None
    effects: NoticeEffects = field(default_factory=NoticeEffects, init=False)
    verbs: dict[str, PeerVerb] = field(default_factory=dict, init=False)

    def add(self, verb: PeerVerb) -> None:
        """Answer a verb."""
        self.verbs[verb.name] = verb

    def front(self, nonces: UsedNonces, *, now: Callable[[], float] = time.time) -> PeerFront:
        """The handler of the internal listener; `now` is the clock in epoch seconds."""
        self.add(self.effects.verb())
        return PeerFront(
            self.verbs,
            self.members,
            self.secrets,
            nonces,
            cluster=self.settings.name,
            version=__version__,
            doubt=self.lookup.doubt if self.lookup is not None else None,
            tls_name=self.settings.tls_name if self.client_tls is not None else None,
            now=now,
        )


async def open_cluster(config: Config, stack: AsyncExitStack) -> Cluster:
    """Opens what reaches the other replicas, also for commands; `stack` closes it. Raises `ConfigError`."""
    settings = config.cluster
    if settings.secret_file is None:
        raise ConfigError(["cluster.secret_file: must be set"])
    secrets = await asyncio.to_thread(ClusterSecrets, settings.secret_file)
    name = parse_member(settings.members[0])
    health = PeerHealth()
    members = ClusterMembers(settings.address, [] if name.lookup else settings.members, health)
    lookup = None
    if name.lookup:
        lookup = MemberLookup(name, members)
        looking = begin(lookup.run())
        stack.push_async_callback(cancel_and_wait, looking)
        await lookup.first(_FIRST_LOOKUP)
    tls = _client_tls(settings) if name.is_tls else None
    signer = PeerSigner(settings.name, settings.address, secrets)
    client = PeerClient(signer, health, tls=tls, tls_name=settings.tls_name if tls is not None else None)
    stack.push_async_callback(client.aclose)
    notices = PeerNotices(members, client)
    stack.push_async_callback(notices.aclose)
    sessions = SessionOwners(members, secrets)
    return Cluster(settings, members, secrets, signer, client, notices, health, sessions, tls, lookup)


def _client_tls(settings: ClusterSettings) -> ssl.SSLContext:
    """Trusts the authority of the replicas and no other, and shows this replica's certificate. Raises `ConfigError`."""
    return _with_certificate(settings, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


def server_tls(settings: ClusterSettings) -> ssl.SSLContext | None:
    """The context of the internal listener, which asks for a certificate of the same authority; None without TLS.
    Raises `ConfigError`.
    """
    if settings.tls_certificate is None:
        return None
    context = _with_certificate(settings, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _with_certificate(settings: ClusterSettings, context: ssl.SSLContext) -> ssl.SSLContext:
    if settings.tls_certificate is None:
        raise ConfigError(["cluster.tls_certificate: must be set for members with https://"])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # without a password callback, a key with a passphrase would make OpenSSL ask on the terminal
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password=lambda: "")
        context.load_verify_locations(settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError([f"cluster.tls_certificate, tls_key, ca_file: cannot be used: {reason_of(error)}"]) from error
    return context
