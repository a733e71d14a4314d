"""The ways in which callers say who they are, each against what a real client or provider sends."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bcrypt
import jwt
import pytest
from aiohttp import web
from cryptography.fernet import Fernet, MultiFernet
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from mirror.access.audit import AuditLog
from mirror.access.authentication import Authentication, Nobody
from mirror.access.certificate import identity_of
from mirror.access.htpasswd import Htpasswd, costs_to_spend, parse_htpasswd
from mirror.access.oidc import Issuer, Issuers, OidcIssuer
from mirror.access.own_tokens import IssuedTokens, read_keys
from mirror.access.robots import new_secret
from mirror.access.static_tokens import StaticToken, StaticTokens
from mirror.errors import AccessUnavailable, ConfigError, Unauthorized
from mirror.oci.authorization import CallerCredentials
from mirror.policy.access_rules import ANONYMOUS, AuthMethod, Identity
from tests.support.clock import Clock
from tests.support.tmpfs import tmpfs


def _hashed(password: str, kind: str = "2y") -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode().replace("$2b$", f"${kind}$", 1)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """For bcrypt."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


# -------------------------------------------------------------------------------------------------- htpasswd


@pytest.mark.parametrize(
    ("hashed", "further"), [(None, [12]), (9, [9, 10, 11]), (10, [10, 11]), (12, [])], ids=["nobody", "9", "10", "12"]
)
def test_every_refusal_costs_the_same(hashed: int | None, further: list[int]) -> None:
    """2^n steps for a hash of cost n: an account's own and the further ones add up to the dearest account's."""
    accounts = [_hash_of_cost(cost) for cost in (10, 12, 9)]
    found = costs_to_spend(None if hashed is None else _hash_of_cost(hashed), accounts)
    assert found == further
    assert sum(2**cost for cost in [*([] if hashed is None else [hashed]), *found]) == 2**12


def _hash_of_cost(cost: int) -> str:
    return f"$2b${cost:02}$" + "a" * 53


async def test_a_refusal_spends_what_the_dearest_account_costs(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that does not exist, and a wrong password of a cheap and of a dear account: the same steps of bcrypt."""
    path = tmp_path / "accounts"
    hashed = {name: bcrypt.hashpw(name.encode(), bcrypt.gensalt(cost)).decode() for name, cost in _COSTS.items()}
    path.write_text("".join(f"{name}:{one}\n" for name, one in hashed.items()))
    steps: list[int] = []
    check = bcrypt.checkpw

    def counted(password: bytes, against: bytes) -> bool:
        steps.append(2 ** int(against[4:6]))
        return check(password, against)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    accounts = Htpasswd(path, threads)
    accounts.load()
    for name in ("nobody", *_COSTS):
        steps.clear()
        assert await accounts.identify(CallerCredentials(name, "wrong")) is None
        assert sum(steps) == 2**6
    assert await accounts.identify(CallerCredentials("cheap", "cheap"))


_COSTS = {"cheap": 4, "middling": 5, "dear": 6}


async def test_accounts(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    """The right password of the right name, with the account's groups; nothing else."""
    path = tmp_path / "htpasswd"
    path.write_text(f"# people\n\nalice:{_hashed('one')}\nbob:{_hashed('two', '2b')}\n")
    accounts = Htpasswd(path, threads, {"alice": frozenset({"ops"})})
    accounts.load()
    assert await accounts.identify(CallerCredentials("alice", "one")) == Identity(
        "alice", AuthMethod.PASSWORD, frozenset({"ops"})
    )
    assert await accounts.identify(CallerCredentials("bob", "two")) == Identity("bob", AuthMethod.PASSWORD)
    for name, password in [("alice", "two"), ("carol", "one"), ("alice", ""), ("", "one"), ("alice", "one" * 100)]:
        assert await accounts.identify(CallerCredentials(name, password)) is None
    assert await accounts.identify(CallerCredentials(bearer="one")) is None


async def test_accounts_follow_their_file(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    """A changed file counts at once; one that is spoiled or gone leaves the accounts as they were."""
    path = tmp_path / "htpasswd"
    path.write_text(f"alice:{_hashed('one')}\n")
    accounts = Htpasswd(path, threads)
    accounts.load()
    path.write_text(f"alice:{_hashed('changed')}\n\n")
    assert await accounts.identify(CallerCredentials("alice", "one")) is None
    assert await accounts.identify(CallerCredentials("alice", "changed")) is not None
    path.write_text("alice:plain\n")
    assert await accounts.identify(CallerCredentials("alice", "changed")) is not None
    path.unlink()
    assert await accounts.identify(CallerCredentials("alice", "changed")) is not None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alice", "line 1"),
        (":x", "line 1"),
        ("\nalice:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "line 2: the hash of 'alice' is not bcrypt"),
        ("alice:$apr1$abc$def", "not bcrypt"),
        (f"a:{_hashed('x')}\na:{_hashed('x')}", "twice"),
    ],
)
def test_an_unusable_file_of_accounts(text: str, says: str, tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    """It is refused at the start, with the line and without the hash."""
    with pytest.raises(ValueError, match="line") as caught:
        parse_htpasswd(text)
    assert says in str(caught.value)
    assert "W6ph5" not in str(caught.value)
    (tmp_path / "htpasswd").write_text(text)
    with pytest.raises(ConfigError, match=r"access\.htpasswd"):
        Htpasswd(tmp_path / "htpasswd", threads).load()


def test_a_missing_file_of_accounts(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    """It is named."""
    with pytest.raises(ConfigError, match="nowhere"):
        Htpasswd(tmp_path / "nowhere", threads).load()


# ---------------------------------------------------------------------------------------------- given tokens


async def test_given_tokens() -> None:
    """As a bearer, or as anybody's password; never by name."""
    given = StaticTokens([StaticToken("ci", "s3cret", frozenset({"robots"})), StaticToken("other", "else")])
    ci = Identity("ci", AuthMethod.TOKEN, frozenset({"robots"}))
    assert await given.identify(CallerCredentials(bearer="s3cret")) == ci
    assert await given.identify(CallerCredentials("whoever", "s3cret")) == ci
    for presented in (
        CallerCredentials(bearer="s3cre"),
        CallerCredentials("ci", ""),
        CallerCredentials("ci", "ci"),
        CallerCredentials(),
    ):
        assert await given.identify(presented) is None
    assert "s3cret" not in repr(StaticToken("ci", "s3cret"))


# --------------------------------------------------------------------------------------------- issued tokens


async def test_issued_tokens() -> None:
    """They say who it is until their time is over; one more second is too much."""
    clock = Clock(1_800_000_000.0)
    issued = IssuedTokens(MultiFernet([Fernet(Fernet.generate_key())]), lifetime=300, now=clock)
    identity = Identity("alice", AuthMethod.PASSWORD, frozenset({"b", "a"}))
    token = issued.issue(identity)
    assert "alice" not in token
    for seconds, good in [(0, True), (299, True), (300, False), (1e9, False), (-3600, False)]:
        clock.time = 1_800_000_000 + seconds
        assert (await issued.identify(CallerCredentials(bearer=token)) == identity) is good
    clock.time = 1_800_000_000
    assert await issued.identify(CallerCredentials("alice", token)) == identity
    for wrong in (token[:-2] + "AA", token[:40], "mirror-1.", token.removeprefix("mirror-1."), ""):
        assert await issued.identify(CallerCredentials(bearer=wrong)) is None


async def test_keys_of_issued_tokens(tmp_path: Path) -> None:
    """Made once whoever comes first, for this user alone; a second key may take over without sending anybody away."""
    path = tmp_path / "token.key"
    first = IssuedTokens(read_keys(path, create=True), lifetime=300)
    again = IssuedTokens(read_keys(path, create=True), lifetime=300)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["token.key"]
    token = first.issue(ANONYMOUS)
    assert await again.identify(CallerCredentials(bearer=token)) == ANONYMOUS
    path.write_text(f"{Fernet.generate_key().decode()}\n{path.read_text()}")
    rotated = IssuedTokens(read_keys(path, create=False), lifetime=300)
    assert await rotated.identify(CallerCredentials(bearer=token)) == ANONYMOUS
    assert await first.identify(CallerCredentials(bearer=rotated.issue(ANONYMOUS))) is None


def test_unusable_keys(tmp_path: Path) -> None:
    """Named, not shown."""
    (tmp_path / "short").write_text("c2VjcmV0")
    with pytest.raises(ConfigError, match="short: not one or more keys") as caught:
        read_keys(tmp_path / "short", create=False)
    assert "c2VjcmV0" not in str(caught.value)
    with pytest.raises(ConfigError, match="none"):
        read_keys(tmp_path / "none", create=False)
    with pytest.raises(ConfigError, match="cannot be created"):
        read_keys(tmp_path / "no" / "folder", create=True)


# --------------------------------------------------------------------------------------- identity providers


@dataclass
class _Provider:
    """An OpenID Connect issuer: a discovery document and keys, both counted."""

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    status: int = 200
    wants: str | None = None
    body: bytes | None = None
    gate: asyncio.Event | None = None

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.path)
        if self.gate is not None:
            await self.gate.wait()
        if self.wants and request.headers.get("Authorization") != f"Bearer {self.wants}":
            return web.Response(status=401)
        if self.body is not None:
            return web.Response(body=self.body)
        content: Any = {"keys": self.keys}
        if request.path == "/.well-known/openid-configuration":
            content = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        return web.Response(status=self.status, text=json.dumps(content))


@asynccontextmanager
async def _serving(provider: _Provider) -> AsyncIterator[_Provider]:
    runner = web.ServerRunner(web.Server(provider))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield provider
    finally:
        await runner.cleanup()


_RSA = rsa.generate_private_key(65537, 2048)
_EC = ec.generate_private_key(ec.SECP256R1())
_ED = ed25519.Ed25519PrivateKey.generate()


def _public(kind: str, name: str | None) -> dict[str, Any]:
    made = {
        "rsa": lambda: RSAAlgorithm.to_jwk(_RSA.public_key(), as_dict=True),
        "ec": lambda: ECAlgorithm.to_jwk(_EC.public_key(), as_dict=True),
        "ed": lambda: OKPAlgorithm.to_jwk(_ED.public_key(), as_dict=True),
    }[kind]()
    return {**made, **({"kid": name} if name else {}), "use": "sig"}


def _token(
    provider: _Provider, clock: Clock, key: Any = _RSA, algorithm: str = "RS256", kid: str | None = "k", **more: Any
) -> str:
    claims = {
        "iss": provider.url,
        "aud": "mirror",
        "sub": "system:serviceaccount:shop:web",
        "exp": clock.time + 600,
        "nbf": clock.time,
        **more,
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers={"kid": kid} if kid else {})


@pytest.mark.parametrize(
    ("kind", "key", "algorithm"),
    [("rsa", _RSA, "RS256"), ("rsa", _RSA, "PS256"), ("ec", _EC, "ES256"), ("ed", _ED, "EdDSA")],
)
async def test_tokens_of_an_issuer(kind: str, key: Any, algorithm: str) -> None:
    """Found by the discovery document, whatever the key; the keys are fetched once."""
    clock = Clock(1_800_000_000.0)
    async with _serving(_Provider(keys=[_public(kind, "k")])) as provider:
        issuer = Issuer(OidcIssuer(provider.url, "mirror"), now=clock)
        token = _token(provider, clock, key, algorithm, groups=["devs"])
        expected = Identity("system:serviceaccount:shop:web", AuthMethod.ISSUER, frozenset({"devs"}))
        found = await asyncio.gather(*[issuer.identify(CallerCredentials(bearer=token)) for _ in range(10)])
        assert found == [expected] * 10
        assert await issuer.identify(CallerCredentials("oauth", token)) == expected
        assert provider.asked == ["/.well-known/openid-configuration", "/keys"]


async def test_tokens_that_are_not_good() -> None:
    """Another issuer, audience or key; expired, not yet good, or without an end; unsigned; signed by the public key."""
    clock = Clock(1_800_000_000.0)
    async with _serving(_Provider(keys=[_public("rsa", "k")])) as provider:
        issuer = Issuer(OidcIssuer(provider.url, "mirror"), now=clock)
        other = rsa.generate_private_key(65537, 2048)
        unsigned = jwt.encode({"iss": provider.url, "aud": "mirror", "sub": "x", "exp": clock.time + 9}, "", "none")
        symmetric = jwt.encode(
            {"iss": provider.url, "aud": "mirror", "sub": "x", "exp": clock.time + 9}, "k" * 64, "HS256"
        )
        bad = [
            _token(provider, clock, iss="https://evil.example"),
            _token(provider, clock, aud="other"),
            _token(provider, clock, aud=None),
            _token(provider, clock, exp=clock.time - 1),
            _token(provider, clock, exp=None),
            _token(provider, clock, exp="soon"),
            _token(provider, clock, nbf=clock.time + 3600),
            _token(provider, clock, sub=None),
            _token(provider, clock, other),
            unsigned,
            symmetric,
            "a.b.c",
            "",
        ]
        for token in bad:
            assert await issuer.identify(CallerCredentials(bearer=token)) is None, token
        assert await issuer.identify(CallerCredentials(bearer=_token(provider, clock))) is not None


async def test_keys_that_change() -> None:
    """An unknown key makes the keys be fetched again, but not more often than once a minute."""
    clock = Clock(1_800_000_000.0)
    async with _serving(_Provider(keys=[_public("rsa", "old")])) as provider:
        issuer = Issuer(OidcIssuer(provider.url, "mirror", keys_url=f"{provider.url}/keys"), now=clock)
        assert await issuer.identify(CallerCredentials(bearer=_token(provider, clock, kid="old")))
        provider.keys = [_public("ec", "new")]
        token = _token(provider, clock, _EC, "ES256", "new")
        for _ in range(5):
            assert await issuer.identify(CallerCredentials(bearer=token)) is None
        assert provider.asked == ["/keys"]
        clock.time += 61
        assert await issuer.identify(CallerCredentials(bearer=token))
        assert provider.asked == ["/keys"] * 2


async def test_many_tokens_while_keys_are_fetched() -> None:
    """Who comes while the first keys, or new ones, are on their way waits for them; they are fetched once."""
    clock = Clock(1_800_000_000.0)
    async with _serving(_Provider(keys=[_public("rsa", "old")])) as provider:
        issuer = Issuer(OidcIssuer(provider.url, "mirror", keys_url=f"{provider.url}/keys"), now=clock)
        old, new = _token(provider, clock, kid="old"), _token(provider, clock, _EC, "ES256", "new")
        provider.gate = asyncio.Event()
        for token, asked in ((old, 1), (new, 2)):
            provider.gate.clear()
            asking = [asyncio.create_task(issuer.identify(CallerCredentials(bearer=token))) for _ in range(20)]
            while len(provider.asked) < asked:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0)
            asking += [asyncio.create_task(issuer.identify(CallerCredentials(bearer=token))) for _ in range(20)]
            await asyncio.sleep(0)
            provider.gate.set()
            assert all(await asyncio.gather(*asking))
            provider.keys.append(_public("ec", "new"))
            clock.time += 61
        assert provider.asked == ["/keys"] * 2


async def test_an_issuer_that_is_down() -> None:
    """Without keys nobody can be told, which is no refusal; with keys of before, those stay."""
    clock = Clock(1_800_000_000.0)
    async with _serving(_Provider(keys=[_public("rsa", "k")], status=500)) as provider:
        issuer = Issuer(OidcIssuer(provider.url, "mirror"), now=clock)
        token = _token(provider, clock, exp=clock.time + 90_000)
        for _ in range(3):
            with pytest.raises(AccessUnavailable):
                await issuer.identify(CallerCredentials(bearer=token))
        assert len(provider.asked) == 1
        provider.status = 200
        clock.time += 61
        assert await issuer.identify(CallerCredentials(bearer=token))
    clock.time += 7200
    assert await issuer.identify(CallerCredentials(bearer=token))


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b'{"keys": []}', b'{"keys": [{"kty": "oct", "k": "AAAA"}]}', b"x" * (2 << 20)]
)
async def test_an_issuer_that_talks_nonsense(body: bytes) -> None:
    """It has no keys, and no symmetric ones above all."""
    clock = Clock(1_800_000_000.0)
    async with _serving(_Provider(body=body)) as provider:
        issuer = Issuer(OidcIssuer(provider.url, "mirror", keys_url=f"{provider.url}/keys"), now=clock)
        with pytest.raises(AccessUnavailable):
            await issuer.identify(CallerCredentials(bearer=_token(provider, clock)))


async def test_keys_of_a_cluster(tmp_path: Path) -> None:
    """A cluster wants a token for its keys; keys may also lie in a file, claims elsewhere, and names get a prefix."""
    clock = Clock(1_800_000_000.0)
    (tmp_path / "token").write_text("let-me\n")
    async with _serving(_Provider(keys=[_public("rsa", "k")], wants="let-me")) as provider:
        settings = OidcIssuer(provider.url, "mirror", bearer_file=tmp_path / "token", prefix="prod:")
        found = await Issuer(settings, now=clock).identify(CallerCredentials(bearer=_token(provider, clock)))
        assert found == Identity("prod:system:serviceaccount:shop:web", AuthMethod.ISSUER)
        (tmp_path / "keys").write_text(json.dumps({"keys": [_public("rsa", None)]}))
        settings = OidcIssuer(
            provider.url, "mirror", keys_file=tmp_path / "keys", name_claim="email", groups_claim="role"
        )
        token = _token(provider, clock, kid=None, email="a@example.com", role="dev")
        found = await Issuer(settings, now=clock).identify(CallerCredentials(bearer=token))
        assert found == Identity("a@example.com", AuthMethod.ISSUER, frozenset({"dev"}))


# ------------------------------------------------------------------------------------------ all of them


async def test_all_ways_together() -> None:
    """The first way that knows it counts; nothing presented is nobody; what none knows is refused."""
    authentication = Authentication(
        [StaticTokens([StaticToken("a", "1")]), StaticTokens([StaticToken("b", "1"), StaticToken("c", "2")])]
    )
    assert await authentication.identify([]) == ANONYMOUS
    assert (await authentication.identify(["Bearer 1"])).name == "a"
    assert (await authentication.identify(["Bearer 2"])).name == "c"
    for _ in range(2):
        with pytest.raises(Unauthorized, match="unknown or wrong"):
            await authentication.identify(["Bearer 3"])


class _Counting:
    def __init__(self, answer: Callable[[CallerCredentials], Identity | None]) -> None:
        self.asked = 0
        self._answer = answer

    async def identify(self, presented: CallerCredentials) -> Identity | None:
        self.asked += 1
        await asyncio.sleep(0)
        return self._answer(presented)


async def test_what_was_found_is_remembered() -> None:
    """Once however many ask, for a minute; a refusal for ten seconds; an error not at all."""
    clock = Clock(0.0)
    right = Identity("alice", AuthMethod.PASSWORD)
    way = _Counting(lambda presented: right if presented.password == "right" else None)
    authentication = Authentication([way], now=clock)
    good = CallerCredentials("alice", "right")
    assert await asyncio.gather(*[authentication.authenticate(good) for _ in range(50)]) == [right] * 50
    assert way.asked == 1
    clock.time = 59.9
    await authentication.authenticate(good)
    assert way.asked == 1
    clock.time = 60.0
    await authentication.authenticate(good)
    assert way.asked == 2
    for at, asked in [(70.0, 3), (79.9, 3), (80.0, 4)]:
        clock.time = at
        with pytest.raises(Unauthorized):
            await authentication.authenticate(CallerCredentials("alice", "wrong"))
        assert way.asked == asked

    def down(_presented: CallerCredentials) -> Identity | None:
        raise AccessUnavailable("down")

    broken = _Counting(down)
    for asked in (1, 2):
        with pytest.raises(AccessUnavailable):
            await Authentication([broken]).authenticate(good)
        assert broken.asked == asked
    await authentication.aclose()


async def test_what_was_found_is_not_remembered_beyond_its_end() -> None:
    """A token of an issuer and one of ours are good until the second that they name, also if they were just used."""
    clock = Clock(1_800_000_000.0)
    async with _serving(_Provider(keys=[_public("rsa", "k")])) as provider:
        issuer = Issuer(OidcIssuer(provider.url, "mirror"), now=clock)
        issued = IssuedTokens(MultiFernet([Fernet(Fernet.generate_key())]), lifetime=40, now=clock)
        front = Authentication([issued, issuer], {AuthMethod.ISSUER: Issuers([issuer])}, now=clock)
        theirs = CallerCredentials(bearer=_token(provider, clock, exp=clock.time + 30))
        ours = CallerCredentials(bearer=issued.issue(await front.authenticate(theirs)))
        for passed, presented in [(29.5, theirs), (39.5, ours)]:
            clock.time = 1_800_000_000.0 + passed
            await front.authenticate(presented)
            clock.time += 0.5
            with pytest.raises(Unauthorized):
                await front.authenticate(presented)
        await front.aclose()
        await issuer.aclose()


async def test_what_was_found_slowly_is_not_remembered_beyond_its_end() -> None:
    """Who asks afterwards whether the identity still holds may wait for a provider meanwhile."""
    clock = Clock(0.0)
    held = Identity("alice", AuthMethod.ISSUER, holds_for=10.0)
    way = _Counting(lambda _: held if clock.time < 10.0 else None)

    class _SlowMember:
        def stamp(self) -> object:
            return None

        async def current(self, identity: Identity) -> Identity | None:
            clock.time = max(clock.time, 5.0)
            return identity

    front = Authentication([way], {AuthMethod.ISSUER: _SlowMember()}, now=clock)
    presented = CallerCredentials(bearer="a token")
    await front.authenticate(presented)
    clock.time = 10.0
    with pytest.raises(Unauthorized):
        await front.authenticate(presented)
    await front.aclose()


@pytest.mark.parametrize(
    ("subject", "identity"),
    [
        (
            ((("organizationName", "system:nodes"),), (("commonName", "system:node:n1"),)),
            Identity("system:node:n1", AuthMethod.CERTIFICATE, frozenset({"system:nodes"})),
        ),
        (((("commonName", "n1"),),), Identity("n1", AuthMethod.CERTIFICATE)),
        (((("organizationName", "o"),),), None),
        (((("commonName", "a"), ("commonName", "b")),), None),
        ((), None),
    ],
)
def test_who_a_certificate_is(subject: tuple[Any, ...], identity: Identity | None) -> None:
    """Common name and organisations, as in Kubernetes; what is ambiguous is nobody."""
    assert identity_of({"subject": subject}) == identity
    assert identity_of(None) is None
    assert identity_of({}) is None


# ------------------------------------------------------------------------------------------------- audit


def test_the_audit_log(tmp_path: Path) -> None:
    """A line each, for this user alone; a file that is moved away is opened anew; control characters are escaped."""
    path = tmp_path / "audit"
    log = AuditLog(path, now=lambda: datetime(2026, 1, 2, tzinfo=UTC))
    log.record(caller="alice", status=200, reason=None)
    path.rename(tmp_path / "audit.1")
    log.record(caller="bob\n{}", status=404)
    assert json.loads((tmp_path / "audit.1").read_text()) == {
        "time": "2026-01-02T00:00:00.000Z",
        "caller": "alice",
        "status": 200,
    }
    [line] = path.read_text().splitlines()
    assert json.loads(line)["caller"] == "bob\n{}"
    assert path.stat().st_mode & 0o777 == 0o600
    log.close()
    log.close()


def test_an_audit_log_that_cannot_be_written(tmp_path: Path) -> None:
    """It fails nothing, and goes on when it can."""
    path = tmp_path / "folder" / "audit"
    log = AuditLog(path)
    log.record(caller="lost")
    path.parent.mkdir()
    log.record(caller="kept")
    assert json.loads(path.read_text())["caller"] == "kept"
    log.close()
    assert os.listdir(path.parent) == ["audit"]


@pytest.mark.parametrize("is_open", [False, True], ids=["opened later", "open"])
def test_an_audit_log_on_a_disk_that_fills_up(tmp_path: Path, *, is_open: bool) -> None:
    """A line that is cut off is lost alone, whichever process goes on when there is room again: one that has the file
    open, or one that opens it.
    """
    with tmpfs(tmp_path, "size=64k") as point:
        path = point / "audit"
        log, other, later = AuditLog(path), AuditLog(path), AuditLog(path)
        log.record(caller="a" * 1000)
        if is_open:
            other.record(caller="b")
        with (point / "other").open("wb") as file, suppress(OSError):
            while True:
                os.write(file.fileno(), bytes(4096))
        for number in range(8):
            log.record(caller=f"{number}" * 1000)
        assert not path.read_bytes().endswith(b"\n")
        (point / "other").unlink()
        other.record(caller="other")
        log.record(caller="again")
        later.record(caller="later")
        for each in (log, other, later):
            each.close()
        *whole, other_line, again, last = path.read_text().splitlines()
        assert [json.loads(line)["caller"] for line in (other_line, again, last)] == ["other", "again", "later"]
        with pytest.raises(ValueError, match="Expecting" if is_open else "Unterminated"):
            json.loads(whole[-1])


def test_an_audit_log_that_root_begins(tmp_path: Path) -> None:
    """It is for the owner of its folder, who could not go on with a file of root's; an old file keeps its owner."""
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, 12345, 54321)
    for name, wanted in (("new", (12345, 54321)), ("old", (7, 8))):
        if name == "old":
            (folder / name).write_text("{}\n")
            os.chown(folder / name, 7, 8)
        log = AuditLog(folder / name)
        log.record(caller="cli:root")
        log.close()
        status = (folder / name).stat()
        assert (status.st_uid, status.st_gid) == wanted


# ------------------------------------------------------------------------------------------ identities that end


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ("nothing", True),
        ("another account", True),
        ("the same password, hashed anew", True),
        ("another password", False),
        ("removed", False),
        ("unusable", True),
        ("no file", True),
    ],
)
async def test_an_account_that_changes(change: str, holds: bool, tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    """The next request sees it, with a remembered password and with a token from before. A token is bound to the hash:
    a new one of the same password ends it, too, and the client logs in again.
    """
    path = tmp_path / "accounts"
    path.write_text(f"alice:{_hashed('one')}\n")
    accounts = Htpasswd(path, threads, {"alice": frozenset({"ops"})})
    accounts.load()
    issued = IssuedTokens(MultiFernet([Fernet(Fernet.generate_key())]), lifetime=300.0)
    front = Authentication([issued, accounts], {AuthMethod.PASSWORD: accounts})
    password = CallerCredentials("alice", "one")
    identity = await front.authenticate(password)
    token = CallerCredentials(bearer=issued.issue(Identity("alice", AuthMethod.PASSWORD, proof=identity.proof)))
    # the groups are those of now, not those in the token
    assert (await front.authenticate(token)).groups == frozenset({"ops"})
    match change:
        case "another account":
            path.write_text(path.read_text() + f"bob:{_hashed('two')}\n")
        case "the same password, hashed anew":
            path.write_text(f"alice:{_hashed('one')}\n# anew\n")
        case "another password":
            path.write_text(f"alice:{_hashed('other')}\n# other\n")
        case "removed":
            path.write_text("")
        case "unusable":
            path.write_text("nonsense")
        case "no file":
            path.unlink()
    if holds:
        assert await front.authenticate(password) == identity
    else:
        with pytest.raises(Unauthorized):
            await front.authenticate(password)
    if holds and change != "the same password, hashed anew":
        assert await front.authenticate(token) == identity
    else:
        with pytest.raises(Unauthorized):
            await front.authenticate(token)


async def test_a_new_account_is_let_in_although_it_was_just_refused(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    """A refusal is remembered only while the file stays as it is."""
    path = tmp_path / "accounts"
    path.write_text("")
    accounts = Htpasswd(path, threads)
    accounts.load()
    front = Authentication([accounts], {AuthMethod.PASSWORD: accounts})
    with pytest.raises(Unauthorized):
        await front.authenticate(CallerCredentials("alice", "one"))
    path.write_text(f"alice:{_hashed('one')}\n")
    assert (await front.authenticate(CallerCredentials("alice", "one"))).name == "alice"


async def test_a_token_of_a_way_in_that_is_no_more() -> None:
    """What the configuration has no longer, lets nobody in; a changed secret is another token."""
    issued = IssuedTokens(MultiFernet([Fernet(Fernet.generate_key())]), lifetime=300.0)
    before = StaticTokens([StaticToken("ci", "s3cret", frozenset({"old"}))])
    identity = await before.identify(CallerCredentials(bearer="s3cret"))
    assert identity is not None
    token = CallerCredentials(bearer=issued.issue(identity))
    for tokens, groups in [
        ([StaticToken("ci", "s3cret", frozenset({"new"}))], {"new"}),
        ([StaticToken("ci", "changed")], None),
        ([StaticToken("other", "s3cret")], None),
        ([], None),
    ]:
        after = StaticTokens(tokens)
        front = Authentication([issued, after], {AuthMethod.TOKEN: after})
        if groups is None:
            with pytest.raises(Unauthorized):
                await front.authenticate(token)
        else:
            assert (await front.authenticate(token)).groups == groups
    with pytest.raises(Unauthorized):
        await Authentication([issued], {AuthMethod.TOKEN: Nobody()}).authenticate(token)


async def test_no_secret_of_ours_is_shown_to_an_upstream() -> None:
    """Names and passwords that nobody knows here may be those of an upstream; no token or secret of ours is."""
    front = Authentication([], foreign=True)
    assert (await front.authenticate(CallerCredentials("alice", "pw"))).method is AuthMethod.UPSTREAM
    for secret in ("mirror-1.expired", "mirror_robot_revoked", new_secret()[0]):
        with pytest.raises(Unauthorized):
            await front.authenticate(CallerCredentials("alice", secret))
