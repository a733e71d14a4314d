"""Requests between replicas: each part that is signed counts, and nothing that was signed for another is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import ConfigError
from mirror.policy.cluster.peer_secrets import parse_secrets
from mirror.policy.cluster.peer_signatures import (
    ANSWER_HEADER,
    SIGNED_HEADERS,
    PeerCall,
    PeerRefused,
    SignedParts,
    content_digest,
    sign,
    sign_answer,
    verify,
    verify_answer,
)

_SECRET = b"s" * 32
_OTHER = b"o" * 32
_A, _B, _C = (f"http://10.0.0.{number}:5001" for number in (1, 2, 3))
_PARTS = SignedParts("GET", "/peer/v1/blob/docker.io/library/alpine/sha256:aa?x=1", {"Range": "bytes=5-", "Host": "b"})
_NONCE = "0" * 32


def _sign(parts: SignedParts = _PARTS, *, secret: bytes = _SECRET, receiver: str = _B, now: float = 1000.0) -> str:
    return sign(secret, parts, cluster="mirror", sender=_A, receiver=receiver, now=now, nonce=_NONCE)


def _verify(
    authorization: str | None, parts: SignedParts = _PARTS, *, receiver: str = _B, now: float = 1000.0
) -> PeerCall:
    members = {_A, _B, _C}
    return verify(
        [_OTHER, _SECRET], parts, authorization, cluster="mirror", receiver=receiver, members=members, now=now
    )


def _reason(authorization: str | None, parts: SignedParts = _PARTS, **others: float) -> str:
    with pytest.raises(PeerRefused) as refused:
        _verify(authorization, parts, **others)  # type: ignore[arg-type]  # `now` alone
    return refused.value.reason


def test_a_signed_request_is_taken_and_says_who_sent_it() -> None:
    call = _verify(_sign())
    assert (call.sender, call.nonce, call.time, call.secret) == (_A, _NONCE, 1000.0, _SECRET)
    assert _SECRET.decode() not in repr(call)
    # what is not signed may differ, and the names of headers have any case
    assert _verify(_sign(), replace(_PARTS, headers={"RANGE": "bytes=5-", "Via": "x"})).sender == _A


@pytest.mark.parametrize(
    "changed",
    [
        replace(_PARTS, method="DELETE"),
        replace(_PARTS, target=f"{_PARTS.target}&y=2"),
        replace(_PARTS, target=_PARTS.target.replace("alpine", "alpine/../secret")),
        replace(_PARTS, headers={}),
        replace(_PARTS, headers={"Range": "bytes=0-"}),
        *(replace(_PARTS, headers={"Range": "bytes=5-", name: ""}) for name in SIGNED_HEADERS if name != "range"),
    ],
    ids=repr,
)
def test_each_signed_part_counts(changed: SignedParts) -> None:
    assert _reason(_sign(), changed) == "signature"


@given(st.lists(st.text("ab:,", max_size=3), min_size=3, max_size=3), st.integers(0, 2), st.integers(0, 2))
def test_no_part_can_flow_into_another(parts: list[str], place: int, other: int) -> None:
    """Two requests that differ in any part have different signatures, however their parts are cut."""
    moved = list(parts)
    moved[place], moved[other] = moved[other], moved[place]
    made = [sign_answer(_SECRET, 200, one, {"Location": two, "Range": three}) for one, two, three in (parts, moved)]
    assert (made[0] == made[1]) == (parts == moved)


def test_a_request_for_another_replica_is_not_taken() -> None:
    assert _reason(_sign(receiver=_C)) == "signature"


def test_what_each_refusal_is_called() -> None:
    assert _reason(None) == "unsigned"
    assert _reason("Bearer abc") == "unsigned"
    assert _reason(_sign() + ", x=1") == "unsigned"
    assert _reason(_sign(secret=b"x" * 32)) == "signature"
    assert _reason(_sign().replace("version=1", "version=2")) == "version"
    assert _reason(_sign().replace('"mirror"', '"other"')) == "cluster"
    assert _reason(_sign().replace(_A, "http://10.9.9.9:5001")) == "signature"
    assert _reason(_sign(), now=1061.0) == "time"
    assert _reason(_sign(), now=939.0) == "time"
    assert _verify(_sign(), now=1060.0).sender == _A
    stranger = sign(
        _SECRET, _PARTS, cluster="mirror", sender="http://10.9.9.9:5001", receiver=_B, now=1e3, nonce=_NONCE
    )
    assert _reason(stranger) == "member"
    own = sign(_SECRET, _PARTS, cluster="mirror", sender=_B, receiver=_B, now=1e3, nonce=_NONCE)
    assert _reason(own) == "member"


def test_an_answer_is_good_for_one_request_only() -> None:
    headers = {"Content-Length": "5", "Mirror-Offset": "3"}
    mac = sign_answer(_SECRET, 206, _NONCE, headers)
    verify_answer(_SECRET, 206, _NONCE, {**headers, ANSWER_HEADER.upper(): mac, "Date": "now"})
    for status, nonce, changed, secret in (
        (200, _NONCE, headers, _SECRET),
        (206, "1" * 32, headers, _SECRET),
        (206, _NONCE, {**headers, "Content-Length": "6"}, _SECRET),
        (206, _NONCE, {"Content-Length": "5"}, _SECRET),
        (206, _NONCE, headers, _OTHER),
    ):
        with pytest.raises(PeerRefused) as refused:
            verify_answer(secret, status, nonce, {**changed, ANSWER_HEADER: mac})
        assert refused.value.reason == "answer"
    with pytest.raises(PeerRefused):
        verify_answer(_SECRET, 206, _NONCE, headers)


def test_a_small_body_is_signed_by_its_digest() -> None:
    assert content_digest(b"") == f"sha256:{'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'}"


def test_the_secret_has_one_or_two_lines() -> None:
    one, two = b"a" * 32, b"b" * 64
    assert parse_secrets(one) == (one,)
    assert parse_secrets(b"\n " + one + b"\r\n" + two + b"\n\n") == (one, two)
    for content, message in (
        (b" \n", "empty"),
        (b"a" * 31, "line 1"),
        (one + b"\nshort", "line 2"),
        (b"\n".join([one, two, one]), "3 lines"),
        (b"a" * 5000, "4096"),
    ):
        with pytest.raises(ConfigError, match=message) as refused:
            parse_secrets(content)
        assert "short" not in str(refused.value)
