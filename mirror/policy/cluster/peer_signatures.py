"""How requests between replicas, and the answers to them, are signed with the secret that they share.

    sender   ── method, target, signed headers, sender, receiver, cluster, version, time, nonce ──> MAC ──> request
    receiver ── the same, as received, with its own address as the receiver ──> the same MAC? ──> time? ──> nonce new?
                                                                   time wrong: 401 with the receiver's time, signed like
                                                                   an answer; the sender asks once more, by that clock
    receiver ── status, nonce of the request, signed headers ──> MAC ──> answer ──> the same MAC? ── sender

The secret is never sent. The address of the receiver is signed, so that a request for one replica is good for no other;
so is the nonce in an answer, so that no answer is good for another request. The MAC is HMAC-SHA-256 (RFC 2104), over
parts that each have their length before them, so that no two requests give the same bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

#: The version of the protocol between replicas; it changes if an older replica could misunderstand a request.
VERSION: Final = 1
SCHEME: Final = "Mirror-HMAC-SHA256"
#: The header of an answer that has its MAC.
ANSWER_HEADER: Final = "Mirror-Answer-MAC"
#: The header of a refusal because of the time: that of the receiver, in epoch seconds.
TIME_HEADER: Final = "Mirror-Time"
#: Seconds by which the clock of the sender may differ from that of the receiver.
WINDOW: Final = 60.0
#: Headers of requests and answers that are signed if they are present, in lower case; the signature covers that one is
#: absent as well. `mirror-content-digest` is `sha256:…` of a small body.
SIGNED_HEADERS: Final = (
    "content-length",
    "content-range",
    "docker-content-digest",
    "docker-upload-uuid",
    "location",
    "mirror-content-digest",
    "mirror-granted",
    "mirror-hops",
    "mirror-identity",
    "mirror-offset",
    "mirror-size",
    "mirror-time",
    "range",
)

_AUTHORIZATION: Final = re.compile(
    rf'{SCHEME} cluster="(?P<cluster>[a-z0-9._-]{{1,63}})", version=(?P<version>[0-9]{{1,4}}), '
    r'from="(?P<sender>[!#-~]{1,300})", time=(?P<time>[0-9]{1,12}), nonce=(?P<nonce>[0-9a-f]{32}), '
    r"mac=(?P<mac>[0-9a-f]{64})"
)


class PeerRefused(Exception):
    """A request or an answer that does not come from a replica of this cluster. `reason` is one of a few words, for
    metrics; `status` is the HTTP status that a request is answered with. `call` is the request if a replica has signed
    it, and only its time is wrong: it is told the right one.
    """

    def __init__(self, reason: str, message: str, status: int = 401, *, call: PeerCall | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.call = call


@dataclass(frozen=True, slots=True)
class SignedParts:
    """What of a request is signed: `target` is the raw path and query, `headers` may have any others as well."""

    method: str
    target: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PeerCall:
    """A request that was verified: who sent it, its nonce (32 hexadecimal digits), its time in epoch seconds, and the
    secret of the sender, with which the answer is signed.
    """

    sender: str
    nonce: str
    time: float
    secret: bytes

    def __repr__(self) -> str:
        return f"<PeerCall {self.nonce} from {self.sender}>"


def sign(secret: bytes, parts: SignedParts, *, cluster: str, sender: str, receiver: str, now: float, nonce: str) -> str:
    """The value of `Authorization` for a request. `now` is in epoch seconds, `nonce` 32 random hexadecimal digits that
    are used once.
    """
    time = str(int(now))
    mac = _request_mac(secret, parts, cluster, str(VERSION), sender, receiver, time, nonce)
    return f'{SCHEME} cluster="{cluster}", version={VERSION}, from="{sender}", time={time}, nonce={nonce}, mac={mac}'


def verify(
    secrets: Sequence[bytes],
    parts: SignedParts,
    authorization: str | None,
    *,
    cluster: str,
    receiver: str,
    members: Collection[str],
    now: float,
) -> PeerCall:
    """Who sent a request, if one of the secrets has signed it, for this replica, within the last minute. That the nonce
    is new is for the caller to see. Raises `PeerRefused`.
    """
    found = _AUTHORIZATION.fullmatch(authorization or "")
    if found is None:
        raise PeerRefused("unsigned", "the request is not signed by a replica")
    if int(found["version"]) != VERSION:
        message = f"the request speaks version {found['version']} of the protocol, this replica version {VERSION}"
        raise PeerRefused("version", message, 400)
    if found["cluster"] != cluster:
        # whoever has not signed learns neither the name of the cluster nor the address of the replica
        raise PeerRefused("cluster", f"the request is for the cluster {found['cluster']}, and this is another one")
    names = "cluster", "version", "sender"
    given = [found[name] for name in names]
    for secret in secrets:
        mac = _request_mac(secret, parts, *given, receiver, found["time"], found["nonce"])
        if hmac.compare_digest(mac, found["mac"]):
            break
    else:
        raise PeerRefused(
            "signature",
            "the signature is not right: another secret, another address of this replica, or changed on the way",
        )
    sender, time = found["sender"], float(found["time"])
    if sender not in members:
        raise PeerRefused("member", f"{sender} is no member that this replica knows", 403)
    if sender == receiver:
        raise PeerRefused("member", "a replica does not ask itself", 403)
    call = PeerCall(sender, found["nonce"], time, secret)
    if abs(now - time) > WINDOW:
        message = f"the clocks differ by {abs(now - time):.0f} s, or the request was delayed"
        raise PeerRefused("time", message, call=call)
    return call


def sign_answer(secret: bytes, status: int, nonce: str, headers: Mapping[str, str]) -> str:
    """The value of `Mirror-Answer-MAC` for the answer to the request with this nonce."""
    return _mac(secret, "answer", (str(status), nonce, *_signed(headers)))


def verify_answer(secret: bytes, status: int, nonce: str, headers: Mapping[str, str]) -> None:
    """Raises `PeerRefused` if an answer is not that of the replica that was asked. `secret` and `nonce` are those of
    the request; `headers` are those of the answer, with names of any case.
    """
    given = _lower(headers).get(ANSWER_HEADER.lower(), "").encode("utf-8", "surrogateescape")
    if not hmac.compare_digest(sign_answer(secret, status, nonce, headers).encode(), given):
        raise PeerRefused("answer", f"the answer ({status}) is not signed by a replica of this cluster")


def content_digest(body: bytes) -> str:
    """The value of `Mirror-Content-Digest`, which signs a small body."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def _request_mac(secret: bytes, parts: SignedParts, *about: str) -> str:
    return _mac(secret, "request", (parts.method, parts.target, *about, *_signed(parts.headers)))


def _signed(headers: Mapping[str, str]) -> Iterable[str]:
    """The signed headers; a header that is absent differs from one that is empty."""
    values = _lower(headers)
    return (f"{name}:{values[name]}" if name in values else name for name in SIGNED_HEADERS)


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _mac(secret: bytes, kind: str, parts: Iterable[str]) -> str:
    made = hmac.new(secret, digestmod=hashlib.sha256)
    for part in (kind, *parts):
        data = part.encode("utf-8", "surrogateescape")
        made.update(b"%d:%s," % (len(data), data))
    return made.hexdigest()
