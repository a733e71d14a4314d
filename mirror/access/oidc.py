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
import math
import ssl
import time
from collections.abc import Callable, Mapping
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


class Issuer:
    """Authenticates by an issuer's tokens; see `mirror.ports.Authenticator`. A token may come as a bearer, or as the
    password of any user name.
    """

    def __init__(self, settings: OidcIssuer, *, now: Callable[[], float] = time.time) -> None:
        self._settings = settings
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
        begins, ends = _date(claims.get("nbf", 0)), _date(claims["exp"])
        if begins is None or ends is None or not begins - _SLACK <= self._now() < ends:
            return None
        return self._identity(claims)

    def _identity(self, claims: Mapping[str, Any]) -> Identity | None:
        name, groups = claims.get(self._settings.name_claim), claims.get(self._settings.groups_claim)
        if not isinstance(name, str) or not name:
            return None
        listed = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
        prefix = self._settings.prefix
        return Identity(
            prefix + name, AuthMethod.ISSUER, frozenset(prefix + group for group in listed if isinstance(group, str))
        )

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
