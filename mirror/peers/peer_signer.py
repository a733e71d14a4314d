"""Signs what this replica asks of others, and judges their answers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mirror import telemetry
from mirror.peers.secret_file import ClusterSecrets
from mirror.policy.cluster.peer_signatures import TIME_HEADER, SignedParts, sign, verify_answer


@dataclass(frozen=True, slots=True)
class SignedCall:
    """A request that was signed: the value of its `Authorization`, and what its answer is judged by."""

    authorization: str
    nonce: str
    secret: bytes

    def __repr__(self) -> str:
        return f"<SignedCall {self.nonce}>"

    def check(self, status: int, headers: Mapping[str, str]) -> None:
        """Raises `PeerRefused` if this is not the answer of the replica that was asked."""
        verify_answer(self.secret, status, self.nonce, headers)


class PeerSigner:
    """Signs in the name of this replica. May be used from any thread."""

    def __init__(
        self, cluster: str, own: str, secrets: ClusterSecrets, *, now: Callable[[], float] = time.time
    ) -> None:
        """`own` is the address of this replica, `now` the clock in epoch seconds."""
        self._cluster = cluster
        self._own = own
        self._secrets = secrets
        self._now = now
        #: By how many seconds the clock of a member is ahead, if it has said so.
        self._offsets: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<PeerSigner {self._own} of {self._cluster}>"

    def sign(self, member: str, method: str, target: str, headers: Mapping[str, str]) -> SignedCall:
        """Signs a request to a member. `target` is the raw path and query, `headers` are those that will be sent;
        whatever of `SIGNED_HEADERS` the client adds by itself must be among them (`Content-Length`).
        """
        secret, nonce = self._secrets.all()[0], secrets.token_hex(16)
        parts, now = SignedParts(method, target, headers), self._now() + self.ahead(member)
        value = sign(secret, parts, cluster=self._cluster, sender=self._own, receiver=member, now=now, nonce=nonce)
        return SignedCall(value, nonce, secret)

    def ahead(self, member: str) -> float:
        """By how many seconds a member's clock is ahead, as far as it has refused a request for that; 0 otherwise."""
        return self._offsets.get(member, 0.0)

    def learn(self, member: str, status: int, headers: Mapping[str, str]) -> bool:
        """True if a member has refused a request because of its time, and said its own: signed again, it is taken.
        `headers` are those of an answer that was checked, and find names in lower case.
        """
        told = headers.get(TIME_HEADER.lower(), "")
        if status != 401 or not told.isdecimal() or len(told) > 12:
            return False
        offset = float(told) - self._now()
        telemetry.log.warning("peer clock differs", peer=member, ahead=round(offset))
        self._offsets[member] = offset
        return True
