"""A trial push past what stands before a mirror: the answers of proxies, and the mirror's own, are scripted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from mirror.nodes.findings import Finding, Level
from mirror.nodes.plan import ClientLogin, MirrorUrl
from mirror.nodes.probe import ProbeAnswer, Visitor
from mirror.nodes.trial_push import TrialPush

_MIRROR = MirrorUrl("https", "mirror.example.com")
_UPLOADS = "/v2/corp/app/blobs/uploads/"
_TAG = "GET /v2/corp/app/manifests/mirror-doctor"
_BODY = f"PATCH {_UPLOADS}mirror-doctor"


def _error(status: int, code: str, message: str = "so it is") -> ProbeAnswer:
    return ProbeAnswer(status, {}, json.dumps({"errors": [{"code": code, "message": message}]}).encode())


def _login(realm: str) -> ProbeAnswer:
    return ProbeAnswer(401, {"www-authenticate": f'Bearer realm="{realm}",service="mirror"'}, b"")


class _Scripted(Visitor):
    """A visitor whose requests are answered from a list, by method and path; a kind of exception is raised."""

    asked: list[tuple[str, str | None]]
    answers: dict[str, ProbeAnswer | type[Exception]]

    def __init__(
        self, answers: Mapping[str, ProbeAnswer | type[Exception]], account: ClientLogin | None = None
    ) -> None:
        super().__init__(_MIRROR, account=account)
        set_ = object.__setattr__
        set_(self, "answers", {**_GOOD, **answers})
        set_(self, "asked", [])

    @property
    def stranger(self) -> Visitor:
        return self

    def at(self, elsewhere: MirrorUrl) -> Visitor:
        self.asked.append((f"at {elsewhere}", None))
        return self

    def ask(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, *, wait: float = 0.0
    ) -> ProbeAnswer:
        authorization = (headers or {}).get("Authorization")
        line = f"{method} {target.partition('?')[0]}"
        self.asked.append((line, authorization))
        answer = self.answers[
            f"{line} with a token" if authorization and f"{line} with a token" in self.answers else line
        ]
        if isinstance(answer, type):
            raise answer
        return answer


_SESSION = ProbeAnswer(202, {"location": f"{_UPLOADS}a-session"}, b"")
_GOOD: dict[str, ProbeAnswer | type[Exception]] = {
    f"POST {_UPLOADS}": _login("https://mirror.example.com/token"),
    "GET /token": ProbeAnswer(200, {}, b'{"token": "a-token"}'),
    f"POST {_UPLOADS} with a token": _SESSION,
    f"DELETE {_UPLOADS}a-session": ProbeAnswer(204, {}, b""),
    _TAG: _error(404, "MANIFEST_UNKNOWN"),
    _BODY: _error(404, "BLOB_UPLOAD_UNKNOWN"),
}
_UNKNOWN = _error(404, "NAME_UNKNOWN", "no such repository")
_ALICE = ClientLogin("alice", "s3cret")


def _look(
    answers: Mapping[str, ProbeAnswer | type[Exception]], account: ClientLogin | None = _ALICE
) -> dict[str, Finding]:
    return {finding.what: finding for finding in TrialPush(_Scripted(answers, account), "corp/app").look()}


def test_all_is_well() -> None:
    """The account goes to the token endpoint alone; everything after it is asked with the token."""
    visitor = _Scripted({}, _ALICE)
    found = TrialPush(visitor, "corp/app").look()
    assert [(one.what, one.level) for one in found] == [
        (what, Level.OK) for what in ("login", "pull corp/app", "push corp/app", "large bodies")
    ]
    token = "Bearer a-token"
    assert visitor.asked == [
        (f"POST {_UPLOADS}", None),
        ("GET /token", None),
        (_TAG, token),
        (f"POST {_UPLOADS}", token),
        (f"DELETE {_UPLOADS}a-session", token),
        (_BODY, token),
    ]
    assert "s3cret" not in repr(visitor)


def test_everybody_may_push() -> None:
    """Then nobody is asked for a login, and one session is begun."""
    visitor = _Scripted({f"POST {_UPLOADS}": _SESSION})
    found = {finding.what: finding for finding in TrialPush(visitor, "corp/app").look()}
    assert "login" not in found
    assert found["push corp/app"].text.startswith("everybody may push")
    assert [line for line, _ in visitor.asked].count(f"POST {_UPLOADS}") == 1


@pytest.mark.parametrize(
    ("answers", "what", "text", "advice"),
    [
        ({f"POST {_UPLOADS}": _login("http://mirror.example.com/token")}, "login", "without TLS", "X-Forwarded-Proto"),
        ({f"POST {_UPLOADS}": _login("https://@/token")}, "login", "sends clients to", "access.realm"),
        (
            {f"POST {_UPLOADS}": ProbeAnswer(401, {"www-authenticate": "Basic"}, b"")},
            "login",
            "without a token endpoint",
            "proxy",
        ),
        ({"GET /token": _error(401, "UNAUTHORIZED")}, "login", "status 401", "user name and password"),
        ({"GET /token": ProbeAnswer(404, {}, b"<html>")}, "login", "status 404", "forward /token"),
        ({"GET /token": ProbeAnswer(200, {}, b"<html>")}, "login", "no token", "proxy"),
        ({"GET /token": ConnectionRefusedError}, "login", "sends clients to", "Host"),
        (
            {_TAG: _UNKNOWN, f"POST {_UPLOADS} with a token": _UNKNOWN},
            "pull corp/app",
            "may not pull",
            'actions = ["pull"]',
        ),
        ({_TAG: _UNKNOWN, f"POST {_UPLOADS} with a token": _UNKNOWN}, "push corp/app", "neither", '["pull", "push"]'),
        ({_TAG: _error(503, "UNAVAILABLE")}, "pull corp/app", "status 503", "log"),
        (
            {f"POST {_UPLOADS} with a token": _error(403, "DENIED", "user:alice may not push here")},
            "push corp/app",
            "may not push",
            'callers = ["user:alice"], actions = ["push"], repositories = ["corp/app"]',
        ),
        (
            {f"POST {_UPLOADS} with a token": _error(403, "DENIED", "the registry corp is read-only")},
            "push corp/app",
            "read-only",
            "read_only",
        ),
        ({f"POST {_UPLOADS} with a token": _error(405, "UNSUPPORTED")}, "push corp/app", "405", "[[hosted]]"),
        ({f"POST {_UPLOADS} with a token": _error(507, "UNAVAILABLE")}, "push corp/app", "507", "disk is full"),
        (
            {
                f"POST {_UPLOADS} with a token": ProbeAnswer(
                    202, {"location": f"http://10.0.0.1:5000{_UPLOADS}a-session"}, b""
                )
            },
            "push corp/app",
            "http://10.0.0.1:5000",
            "Location",
        ),
        ({_BODY: ProbeAnswer(413, {}, b"<html>")}, "large bodies", "413", "client_max_body_size 0"),
        ({_BODY: TimeoutError}, "large bodies", "before all of it", "buffering"),
        ({_TAG: ConnectionResetError}, "reach", "ConnectionResetError", "running"),
    ],
)
def test_what_is_wrong_is_named(answers: dict[str, Any], what: str, text: str, advice: str) -> None:
    """A problem, in the words of whoever answered, with what to do; nothing that is secret."""
    found = _look(answers)
    assert found[what].level is Level.PROBLEM
    assert text in found[what].text
    assert advice in found[what].advice
    assert "s3cret" not in str(found)


def test_a_caller_who_may_only_push() -> None:
    """A warning: under a virtual name that nobody has yet, the mirror answers likewise."""
    found = _look({_TAG: _UNKNOWN})
    assert (found["pull corp/app"].level, found["push corp/app"].level) == (Level.WARNING, Level.OK)
    assert "virtual name" in found["pull corp/app"].text


def test_a_session_that_cannot_be_cancelled() -> None:
    """A warning: the mirror ends it by itself."""
    found = _look({f"DELETE {_UPLOADS}a-session": ProbeAnswer(403, {}, b"<html>")})
    assert found["push corp/app"].level is Level.WARNING
    assert "status 403" in found["push corp/app"].text


def test_without_an_account() -> None:
    """It is said that one is needed, and nothing else is asked."""
    found = _look({}, None)
    assert list(found) == ["login"]
    assert "--username" in found["login"].advice


def test_a_token_endpoint_elsewhere() -> None:
    """`access.realm` may name another host: there the token is asked for."""
    visitor = _Scripted({f"POST {_UPLOADS}": _login("https://login.example.com/token")}, _ALICE)
    found = TrialPush(visitor, "corp/app").look()
    assert found[0].level is Level.OK
    assert ("at https://login.example.com", None) in visitor.asked
