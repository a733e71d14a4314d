"""What of an upstream's error is repeated, and what never is."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.policy.upstream.quoting import quoted, secrets_of

PASSWORD = "pa ss/w%rd&ü"
BASIC = "Basic " + base64.b64encode(f"robot:{PASSWORD}".encode()).decode()
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJyb2JvdCJ9.c2lnbmF0dXJlLW9mLWE"


def _error(message: str) -> bytes:
    return json.dumps({"errors": [{"code": "DENIED", "message": message}]}).encode()


def test_an_error_is_repeated() -> None:
    """Its code and message; control characters are escaped, and what is long is cut."""
    assert quoted(_error("no such project"), BASIC) == " (DENIED: no such project)"
    assert quoted(_error("a\x1b[31m\n"), None) == " (DENIED: a\\x1b[31m\\n)"
    assert len(quoted(_error("x" * 10_000), None)) < 300


@pytest.mark.parametrize(
    "repeated",
    [
        PASSWORD,
        f"robot:{PASSWORD}",
        BASIC,
        BASIC.partition(" ")[2],
        BASIC.partition(" ")[2].rstrip("="),
        quote(PASSWORD, safe=""),
        quote_plus(PASSWORD),
        base64.b64encode(PASSWORD.encode()).decode(),
        PASSWORD.encode().hex(),
        json.dumps(PASSWORD),
    ],
)
def test_76_a_password_is_not_repeated(repeated: str) -> None:
    """Faults row 76: a registry that quotes the password, in clear or encoded, is not quoted."""
    assert quoted(_error(f"the login {repeated} is wrong"), BASIC) == ""


@pytest.mark.parametrize("repeated", [TOKEN, *TOKEN.split(".")])
def test_76_a_token_is_not_repeated(repeated: str) -> None:
    """Faults row 76: nor any part of a token."""
    assert quoted(_error(f"token {repeated} expired"), f"Bearer {TOKEN}") == ""


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[]", b'{"errors": []}', b'{"errors": [1]}', b'{"errors": null}', b"[" * 60_000]
)
def test_an_answer_without_an_error(content: bytes) -> None:
    """Nothing is made up."""
    assert quoted(content, None) == ""


@given(st.text(min_size=1, max_size=50), st.text(max_size=20))
def test_76_no_password_at_all(password: str, around: str) -> None:
    """Faults row 76: whatever the password is."""
    authorization = "Basic " + base64.b64encode(f"robot:{password}".encode("utf-8", "surrogatepass")).decode()
    message = f"{around}{password}{around}"
    if password.isprintable():
        assert quoted(_error(message), authorization) == ""


def test_no_credentials_no_secrets() -> None:
    """An empty or odd header has no part that every message would hold."""
    for authorization in ("", "Basic", "Basic ", "Basic !!", "Bearer"):
        assert "" not in secrets_of(authorization)
