"""Somebody with a token of an identity provider, or none, who makes others of it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.support.clock import Clock
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror

_RSA = rsa.generate_private_key(65537, 2048)
_EC = ec.generate_private_key(ec.SECP256R1())
_ED = ed25519.Ed25519PrivateKey.generate()
_KEYS: list[dict[str, Any]] = [
    {**RSAAlgorithm.to_jwk(_RSA.public_key(), as_dict=True), "kid": "rsa"},
    {**ECAlgorithm.to_jwk(_EC.public_key(), as_dict=True), "kid": "ec"},
    {**OKPAlgorithm.to_jwk(_ED.public_key(), as_dict=True), "kid": "ed"},
    {"kty": "RSA", "kid": ["not", "a", "name"]},
    {"kty": "EC", "kid": "half", "crv": 5},
]
_NOW = 1_800_000_000
_TARGET = "/v2/library/app/manifests/1.0"


@asynccontextmanager
async def _issuer(asked: list[str]) -> AsyncIterator[str]:
    """Its URL; each request for keys, or for anything else, is counted."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response(text=json.dumps({"keys": _KEYS, "jwks_uri": f"http://{request.host}/keys"}))

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _mirror(root: Path, registry: FakeRegistry, asked: list[str]) -> AsyncIterator[tuple[LiveMirror, str, Clock]]:
    """A mirror that only the issuer's tokens open, the issuer's URL, and the clock of its tokens."""
    registry.add_image("library/app", "1.0", [b"layer"])
    async with _issuer(asked) as url:
        access: dict[str, Any] = {"anonymous": False, "issuer": [{"issuer": url, "audience": "mirror"}]}
        async with live_mirror(root, {"docker.io": registry.url}, access=access) as mirror:
            clock = Clock(_NOW)
            mirror.app.front._access._authentication._methods[-1]._now = clock  # type: ignore[union-attr]  # there is one
            yield mirror, url, clock


async def _status(mirror: LiveMirror, token: str) -> int:
    return (await mirror.ask(_TARGET, headers={"Authorization": f"Bearer {token}"})).status


def _part(value: bytes | dict[str, Any]) -> str:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _claims(url: str, **more: Any) -> dict[str, Any]:
    claims = {"iss": url, "aud": "mirror", "sub": "web", "exp": _NOW + 600, **more}
    return {name: value for name, value in claims.items() if value != "absent"}


def _signed(claims: bytes | dict[str, Any], **header: Any) -> str:
    """A token signed by the issuer's own RSA key, with any content."""
    content = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return jwt.api_jws.encode(content, _RSA, "RS256", headers={"kid": "rsa", **header})


async def test_another_algorithm_than_the_key_has(registry: FakeRegistry, tmp_path: Path) -> None:
    """No algorithm, a symmetric one with the public key as its secret, or one of another kind of key: refused."""
    public = _RSA.public_key()
    secrets = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(_KEYS[0]).encode(),
        b"",
    ]
    async with _mirror(tmp_path, registry, []) as (mirror, url, _):
        assert await _status(mirror, _signed(_claims(url))) == 200
        for secret in secrets:
            text = f"{_part({'alg': 'HS256', 'kid': 'rsa'})}.{_part(_claims(url))}"
            assert await _status(mirror, f"{text}.{_part(hmac.digest(secret, text.encode(), hashlib.sha256))}") == 401
        for kid in ("rsa", "ec", "ed"):
            for algorithm in ("none", "None", "RS256", "PS512", "ES256", "ES384", "EdDSA", "", ["RS256"], None, 5):
                for signature in (b"", b"\0" * 64, b"\0" * 256):
                    header = {"alg": algorithm, "kid": kid}
                    assert await _status(mirror, f"{_part(header)}.{_part(_claims(url))}.{_part(signature)}") == 401


async def test_a_key_that_is_named_as_one_likes(registry: FakeRegistry, tmp_path: Path) -> None:
    """Invalid names, paths, addresses of keys and keys within the token: none is used, and no host is asked."""
    asked: list[str] = []
    mine = {**ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True), "kid": "mine"}
    async with _mirror(tmp_path, registry, asked) as (mirror, url, clock):
        elsewhere = {"jku": f"{url}/mine", "x5u": f"{url}/mine", "jwk": mine, "x5c": ["AAAA"]}
        assert await _status(mirror, _signed(_claims(url), **elsewhere)) == 200
        before = list(asked)
        stranger = ec.generate_private_key(ec.SECP256R1())
        for kid in ("mine", "../keys", "/dev/null", f"{url}/mine", "' or 1=1", "rsa\0", *(f"k{n}" for n in range(50))):
            token = jwt.encode(_claims(url), stranger, "ES256", headers={"kid": kid, **elsewhere})
            assert await _status(mirror, token) == 401
        for odd in (["rsa"], {"rsa": 1}, 1, True, None):
            assert await _status(mirror, f"{_part({'alg': 'RS256', 'kid': odd})}.{_part(_claims(url))}.AAAA") == 401
        assert asked == before
        # a minute later the first of them has the keys fetched again, and no other
        clock.time += 61
        for number in range(20):
            token = jwt.encode(_claims(url), stranger, "ES256", headers={"kid": f"later{number}"})
            assert await _status(mirror, token) == 401
        assert len(asked) == 2 * len(before)
        assert not [path for path in asked if "mine" in path]


_GOOD: dict[str, list[Any]] = {
    "aud": ["mirror", ["mirror"], ["other", "mirror"]],
    "exp": [_NOW + 0.5, 2**53],
    "nbf": ["absent", 0, -1, _NOW + 30, 1.5],
    "groups": ["absent", None, 5, [1, None, {"a": 1}], [["ops"]], "ops"],
}
_BAD: dict[str, list[Any]] = {
    "aud": ["absent", None, "", "Mirror", "mirror ", "mirrors", [], ["other"], [["mirror"]], {"mirror": 1}],
    "exp": ["absent", None, "", "9999999999", True, [1], {}, -1, 0, 10**400, _NOW],
    "nbf": ["1", None, True, [1], 10**400, _NOW + 3600, 1e308],
    "sub": ["absent", None, "", 5, ["web"], "web\ud800"],
}


async def test_claims(registry: FakeRegistry, tmp_path: Path) -> None:
    """Signed by the issuer, and all the same for somebody else, over, not begun, or nothing that a claim may be."""
    async with _mirror(tmp_path, registry, []) as (mirror, url, _):
        for listed, status in ((_GOOD, 200), (_BAD, 401)):
            for claim, values in listed.items():
                for value in values:
                    token = _signed(_claims(url, **{claim: value}))
                    assert await _status(mirror, token) == status, f"{claim} {value!r}"


@pytest.mark.parametrize(
    "make",
    [
        lambda url: b'{"exp": Infinity, "nbf": -Infinity, "iss": "%s", "aud": "mirror", "sub": "x"}' % url,
        lambda url: b'{"exp": NaN, "iss": "%s", "aud": "mirror", "sub": "x"}' % url,
        lambda url: b'{"exp": 1e999, "iss": "%s", "aud": "mirror", "sub": "x"}' % url,
        lambda url: b'{"exp": 9999999999, "iss": "%s/", "aud": "mirror", "sub": "x"}' % url,
        lambda url: b'{"exp": 9999999999, "iss": "%s", "aud": "mirror", "sub": "x"}' % url[:-1],
        lambda url: b'{"exp": 9999999999, "iss": ["%s"], "aud": "mirror", "sub": "x"}' % url,
        lambda url: b'{"exp": 9999999999, "iss": "%s", "iss": "x", "aud": "mirror", "sub": "x"}' % url,
        lambda url: b'{"exp": 9999999999, "exp": 1, "iss": "%s", "aud": "mirror", "sub": "x"}' % url,
        lambda url: b'{"exp": 9999999999, "iss": "%s", "aud": "mirror", "sub": "x"} trailing' % url,
        lambda url: b"[]",
        lambda url: b"\xff\xfe",
        lambda url: b'{"a": %s1%s}' % (b"[" * 1500, b"]" * 1500),
        lambda url: b'{"exp": ' + b"9" * 5000 + b"}",
    ],
)
async def test_odd_json(make: Callable[[bytes], bytes], registry: FakeRegistry, tmp_path: Path) -> None:
    """Of a repeated name the last counts, as for the issuer; a payload that is no JSON object is refused."""
    async with _mirror(tmp_path, registry, []) as (mirror, url, _):
        assert await _status(mirror, _signed(make(url.encode()))) == 401


async def test_odd_spellings(registry: FakeRegistry, tmp_path: Path) -> None:
    """A token is good as it was signed: not padded, not with blanks, not longer, and with nothing it insists on."""
    async with _mirror(tmp_path, registry, []) as (mirror, url, _):
        good = _signed(_claims(url))
        head, claims, signature = good.split(".")
        bad = [
            f"{good}=",
            f"{good}.",
            f".{good}",
            f"{good}.{signature}",
            f"{head}=.{claims}.{signature}",
            f"{head}.{claims}=.{signature}",
            f"{head}.{claims}.",
            f"{head}.{claims}",
            f"{head}!.{claims}.{signature}",
            f"{head}.{claims}.{signature}!!!!",
            f"{head}.{_part(_claims(url, sub='root'))}.{signature}",
            f"{_part({'alg': 'RS256', 'kid': 'rsa', 'x': 1})}.{claims}.{signature}",
            _signed(_claims(url), crit=["exp"]),
            _signed(_claims(url), crit=["unknown"], unknown=1),
            f"{good}{'A' * 5000}",
            good.replace(".", " ."),
        ]
        for token in bad:
            assert await _status(mirror, token) == 401, token
        assert await _status(mirror, f"{_part(b'[' * 3000)}.{claims}.{signature}") == 401
        assert await _status(mirror, good) == 200


async def test_a_name_with_line_ends(registry: FakeRegistry, tmp_path: Path) -> None:
    """What an issuer signs may be anything: in the log it is one line, and one name."""
    async with _mirror(tmp_path, registry, []) as (mirror, url, _):
        name = 'web\n{"event": "request", "caller": "root"}\x1b[31m'
        assert await _status(mirror, _signed(_claims(url, sub=name))) == 200
        assert [line["caller"] for line in mirror.events("request")] == [f"subject:{name}"]
        assert "\x1b" not in mirror.log_text


async def test_a_token_of_ours_has_one_spelling(registry: FakeRegistry, tmp_path: Path) -> None:
    """Padded otherwise, with other characters between, cut, or twice named, it is none."""
    access: dict[str, Any] = {"anonymous": False, "token": [{"name": "ci", "token": "s3cret"}]}
    async with live_mirror(tmp_path, {"docker.io": registry.url}, access=access) as mirror:
        token = (await mirror.ask("/token", headers={"Authorization": "Bearer s3cret"})).json["token"]
        name, _, inside = token.partition(".")
        bad = [
            f"{token}=",
            f"{token}====",
            f"{name}.!{inside}",
            f"{token[:50]}~{token[50:]}",
            token[:-4],
            token.upper(),
        ]
        bad += [f"{name}.{token}", f"{name}.", f"{name}.{inside[:-1]}", f"{name}.{'A' * 1000}", f"{token}.a.b"]
        for one in bad:
            basic = base64.b64encode(f"x:{one}".encode()).decode()
            for header in (f"Bearer {one}", f"Basic {basic}"):
                assert (await mirror.ask("/v2/", headers={"Authorization": header})).status == 401, one
        assert (await mirror.ask("/v2/", headers={"Authorization": f"Bearer {token}"})).status == 200


async def test_a_token_for_one_is_none_for_another(registry: FakeRegistry, tmp_path: Path) -> None:
    """A token from `/token` states the identity; the requested scope grants nothing, and rules hold under every
    spelling of a name.
    """
    registry.add_image("secret/app", "1.0", [b"secret"])
    registry.add_image("library/app", "1.0", [b"layer"])
    rule = {"effect": "allow", "callers": ["token:ci"], "repositories": ["docker.io/library/**"]}
    access: dict[str, Any] = {"anonymous": False, "token": [{"name": "ci", "token": "s3cret"}], "rule": [rule]}
    upstreams = {"docker.io": {"url": registry.url, "aliases": ["hub.example"], "host_headers": ["hub.internal"]}}
    async with live_mirror(tmp_path, upstreams, access=access) as mirror:
        scopes = "&".join(f"scope=repository:{name}:pull,push,*" for name in ("secret/app", "**", "library/app"))
        got = await mirror.ask(
            f"/token?service=other&{scopes}&account=root", headers={"Authorization": "Bearer s3cret"}
        )
        who = {"Authorization": f"Bearer {got.json['token']}"}
        for method in ("GET", "HEAD"):
            assert (await mirror.ask(_TARGET, method=method, headers=who)).status == 200
            for target in (
                "/v2/secret/app/manifests/1.0",
                "/v2/docker.io/secret/app/manifests/1.0",
                "/v2/hub.example/secret/app/manifests/1.0",
                "/v2/secret/app/manifests/1.0?ns=docker.io",
                "/v2/secret/app/manifests/1.0?ns=hub.example",
                "/v2/docker.io/secret/app/manifests/1.0?ns=DOCKER.IO",
                "/v2/secret%2fapp/manifests/1.0",
                "/v2/secret/app/manifests/1.0?ns=docker.io&ns=library",
                f"/v2/library/app/blobs/{registry.add_blob('secret/app', b'secret')}",
                f"/v2/library/app/manifests/{registry.add_image('secret/app', '1.0', [b'secret'])}",
            ):
                assert (await mirror.ask(target, method=method, headers=who)).status == 404, target
            for target in (
                "/v2/library/../secret/app/manifests/1.0",
                "/v2/library/%2e%2e/secret/app/manifests/1.0",
                "/v2/library//secret/app/manifests/1.0",
                "/v2/Secret/app/manifests/1.0",
                "/v2/secret/app%00/manifests/1.0",
            ):
                assert (await mirror.ask(target, method=method, headers=who)).status == 400, target
        hosted = await mirror.ask("/v2/secret/app/manifests/1.0", headers={**who, "Host": "hub.internal"})
        assert hosted.status == 404
        assert not [one for one in registry.requests if "secret/app" in one.target]
