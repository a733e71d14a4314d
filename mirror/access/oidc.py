"""Tokens of an identity provider: JWTs (RFC 7519) signed by an OpenID Connect issuer, for example by a Kubernetes
cluster for its service accounts.

The issuer's keys:

    unknown ── first token ──> fetched ── an hour ──> fetched again; while that fails, the old ones stay
                                  └── a token names an unknown key: fetched again, at most once a minute

Only asymmetric signatures are accepted: with a symmetric one, anybody who knows the public key could sign (RFC 8725,
3.1). Issuer, audience and times are always checked.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import jwt

from mirror import telemetry
from mirror.aio.singleflight import SingleFlight
from mirror.errors import AccessUnavailable
from mirror.oci.authorization import CallerCredentials
from mirror.oci.strict_json import read_json
from mirror.policy.access_rules import AuthMethod, Identity

_ALGORITHMS: Final = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
_LARGEST: Final = 1 << 20
_KEEP: Final = 3600.0
_ASK_AGAIN: Final = 60.0
_TIMEOUT: Final = 5.0
_SLACK: Final = 60.0


@dataclass(frozen=True, slots=True)
class OidcIssuer:
    """Settings of an issuer. `url` is the `iss` of its tokens and the base of its discovery document; `keys_file`, or
    else `keys_url`, replaces discovery. `bearer_file` holds a token that is sent when keys are fetched (a cluster may
    require one). `name_claim` and `groups_claim` are the claims with name and groups; `prefix` is put before both.
    `name` is the issuer's name in rules, `claims` are the claims that rules name.
    """

    url: str
    audience: str
    keys_url: str | None = None
    keys_file: Path | None = None
    ca_file: Path | None = None
    bearer_file: Path | None = None
    name_claim: str = "sub"
    groups_claim: str = "groups"
    prefix: str = ""
    name: str = ""
    claims: frozenset[str] = frozenset()

    @property
    def proof(self) -> str:
        """What an identity of this issuer rests on: with other settings, the caller must log in again."""
        parts = (self.url, self.audience, self.name_claim, self.groups_claim, self.prefix, *sorted(self.claims))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


class Issuer:
    """Authenticates by an issuer's tokens; see `mirror.ports.Authenticator`. A token may come as a bearer, or as the
    password of any user name.
    """

    def __init__(self, settings: OidcIssuer, *, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._proof = settings.proof
        self._now = now
        self._keys: dict[str | None, Any] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._once = SingleFlight()

    def __repr__(self) -> str:
        return f"<Issuer {self._settings.url} keys={len(self._keys)}>"

    async def identify(self, presented: CallerCredentials) -> Identity | None:
        """The identity in a token that this issuer has signed for us, or None. Raises `AccessUnavailable` while its
        keys cannot be fetched.
        """
        token = presented.secret
        if token.count(".") != 2:
            return None
        try:
            header = jwt.get_unverified_header(token)
            claimed = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError):
            return None
        if claimed.get("iss") != self._settings.url or header.get("alg") not in _ALGORITHMS:
            return None
        key = await self._key(header.get("kid"))
        return None if key is None else self._read(token, key)

    def _read(self, token: str, key: Any) -> Identity | None:
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=_ALGORITHMS,
                audience=self._settings.audience,
                issuer=self._settings.url,
                # times are compared with our own clock, below, not by the library
                options={
                    "require": ["exp", "iss", "aud"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            return None
        begins, ends, now = _date(claims.get("nbf", 0)), _date(claims["exp"]), self._now()
        if begins is None or ends is None or not begins - _SLACK <= now < ends:
            return None
        return self._identity(claims, ends - now)

    def _identity(self, claims: Mapping[str, Any], holds_for: float) -> Identity | None:
        name, groups = claims.get(self._settings.name_claim), claims.get(self._settings.groups_claim)
        if not isinstance(name, str) or not name or not _is_unicode(name):
            return None
        listed = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
        prefix = self._settings.prefix
        return Identity(
            prefix + name,
            AuthMethod.ISSUER,
            frozenset(prefix + group for group in listed if isinstance(group, str)),
            proof=self._proof,
            holds_for=holds_for,
            issuer=self._settings.name,
            claims=frozenset(
                (claim, value) for claim in self._settings.claims for value in claim_values(claims, claim)
            ),
        )

    async def current(self, identity: Identity) -> Identity | None:
        """See `Membership.current`: a token of ours carries the claims that rules named when it was issued."""
        return identity if identity.proof == self._proof else None

    async def _key(self, name: str | None) -> Any:
        """The key that a token names, or the only key if the token names none; None if there is no such key. Raises
        `AccessUnavailable`.
        """
        now = self._now()
        if self._find(name) is None or not 0 <= now - self._fetched_at < _KEEP:
            # if the key is unknown and a fetch is under way, wait for that fetch: it may bring the key
            waits = self._find(name) is None and self._once.under_way("keys")
            if waits or not 0 <= now - self._tried_at < _ASK_AGAIN:
                await self._once.run("keys", self._fetch)
            elif not self._keys:
                raise AccessUnavailable(f"the keys of the issuer {self._settings.url} cannot be fetched")
        return self._find(name)

    def _find(self, name: str | None) -> Any:
        if name is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(name)

    async def _fetch(self) -> None:
        self._tried_at = self._now()
        try:
            keys = _parse(await self._read_keys())
        except (OSError, ValueError, RecursionError, aiohttp.ClientError, TimeoutError) as error:
            telemetry.log.warning("issuer keys unavailable", issuer=self._settings.url, reason=repr(error))
            if not self._keys:
                raise AccessUnavailable(f"the keys of the issuer {self._settings.url} cannot be fetched") from error
            return
        self._keys, self._fetched_at = keys, self._now()

    async def _read_keys(self) -> Any:
        settings = self._settings
        if settings.keys_file is not None:
            return read_json(await asyncio.to_thread(settings.keys_file.read_bytes))
        headers = {"Accept": "application/json"}
        if settings.bearer_file is not None:
            headers["Authorization"] = f"Bearer {(await asyncio.to_thread(settings.bearer_file.read_text)).strip()}"
        trusted = await asyncio.to_thread(_trusted, settings.ca_file)
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(_TIMEOUT), connector=aiohttp.TCPConnector(ssl=trusted), headers=headers
        ) as session:
            url = settings.keys_url
            if url is None:
                document = await _get(session, f"{settings.url.rstrip('/')}/.well-known/openid-configuration")
                url = document.get("jwks_uri") if isinstance(document, dict) else None
                if not isinstance(url, str) or not url.startswith(("https://", "http://")):
                    raise ValueError("the discovery document has no jwks_uri")
                if settings.url.startswith("https://") and not url.startswith("https://"):
                    raise ValueError("the discovery document leads from https to http")
            return await _get(session, url)

    async def aclose(self) -> None:
        """Cancel a fetch under way. Repeatable."""
        await self._once.aclose()


class Issuers:
    """The `Membership` of identities of all issuers."""

    def __init__(self, issuers: Iterable[Issuer]) -> None:
        self._issuers = tuple(issuers)

    async def current(self, identity: Identity) -> Identity | None:
        """See `Membership.current`."""
        for issuer in self._issuers:
            if present := await issuer.current(identity):
                return present
        return None

    def stamp(self) -> object:
        """See `Membership.stamp`: a token does not become another one."""
        return None


def claim_values(claims: Mapping[str, Any], name: str) -> frozenset[str]:
    """The values of a claim as rules compare them: texts, numbers, `true` and `false`, and those in a list.

    Parts of a nested claim are separated by dots: `kubernetes.io.namespace`. Keys may contain dots as well; a name that
    can be read in two ways has no value.
    """
    found = _found(claims, name)
    if len(found) != 1:
        return frozenset()
    values = found[0] if isinstance(found[0], list) else found
    return frozenset(text for value in values if (text := _as_text(value)) is not None)


def _found(claims: object, name: str) -> list[Any]:
    """Everything that the name can mean."""
    if not isinstance(claims, Mapping):
        return []
    found: list[Any] = []
    for key, value in claims.items():
        if key == name:
            found.append(value)
        elif name.startswith(f"{key}."):
            found += _found(value, name[len(key) + 1 :])
    return found


def _is_unicode(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can write, but no record or file (RFC 8259, 8.2)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else None


def _date(claim: object) -> float | None:
    """A NumericDate (RFC 7519, 2) in epoch seconds; None unless the claim is a finite JSON number."""
    if isinstance(claim, bool) or not isinstance(claim, int | float):
        return None
    try:
        date = float(claim)
    except OverflowError:
        return None
    return date if math.isfinite(date) else None


def _trusted(ca_file: Path | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


async def _get(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url, allow_redirects=False) as response:
        if response.status != 200:
            raise ValueError(f"{url} answers {response.status}")
        content = await response.content.read(_LARGEST + 1)
        while len(content) <= _LARGEST and (more := await response.content.read(_LARGEST)):
            content += more
        if len(content) > _LARGEST:
            raise ValueError(f"{url} answers with more than {_LARGEST} bytes")
        return read_json(content)


def _parse(listed: Any) -> dict[str | None, Any]:
    """Public keys by name (RFC 7517); keys of kinds that we do not use are left out. Raises `ValueError`."""
    if not isinstance(listed, dict) or not isinstance(listed.get("keys"), list):
        raise ValueError("not a JSON Web Key Set")
    keys: dict[str | None, Any] = {}
    for key in listed["keys"]:
        if not isinstance(key, dict) or key.get("kty") not in ("RSA", "EC", "OKP") or key.get("use", "sig") != "sig":
            continue
        name = key.get("kid")
        if name is not None and not isinstance(name, str):
            continue
        try:
            keys[name] = jwt.PyJWK(key).key
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
            continue
    if not keys:
        raise ValueError("no key that can be used")
    return keys
