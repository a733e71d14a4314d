"""Azure Container Registry: an access token of Microsoft Entra, exchanged at the registry for a refresh token.

    managed identity ──── GET  metadata server ───────────┐
    service principal ─── POST authority, a secret ───────┼──> access token ── POST <registry>/oauth2/exchange
    workload identity ─── POST authority, a token file ───┘                        └──> refresh token, 3 hours

`tokens.py` uses the refresh token as an identity token and exchanges it for an access token for each scope. Sources:
the pages docs/Token-BasicAuth and AAD-OAuth in Azure/acr; RFC 6749, 4.4; RFC 7523, 2.2. Both are plain HTTP requests,
so no Azure library is needed.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
from yarl import URL

from mirror.errors import UpstreamDenied, UpstreamError, UpstreamUnavailable
from mirror.oci.coding import decode_base64url
from mirror.oci.strict_json import read_json
from mirror.policy.upstream.token_lifetime import usable_seconds
from mirror.policy.upstream.url_bounds import parse_url
from mirror.upstream.credentials.provider_options import ProviderOptions
from mirror.upstream.credentials.renewal import Issued
from mirror.upstream.credentials.source import Credentials, CredentialsUnavailable
from mirror.upstream.http.client import open_session, read_limited, translated
from mirror.upstream.http.transport import Endpoint

_AUTHORITY: Final = "https://login.microsoftonline.com"
_METADATA: Final = "http://169.254.169.254"
#: The audience of the access token: container registries, the same in every Azure cloud.
_AUDIENCE: Final = "https://containerregistry.azure.net"
_ASSERTION: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_LARGEST: Final = 64 * 1024
_TIMEOUT: Final = 20.0
#: Seconds for which a refresh token is assumed to be valid if it names no expiry.
_LIFETIME: Final = 3 * 3600.0
_TOKEN: Final = re.compile(r"[!-~]{1,32768}")
_ERROR: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}")


class AcrIssuer:
    """Issues refresh tokens for the registry at `endpoint`.

    The options select the identity: with `client_secret` a service principal, with `token_file` a workload identity,
    with neither a managed identity (`client_id` selects it if the machine has several). Missing values are taken from
    `environment`, as AKS sets them (AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_FEDERATED_TOKEN_FILE,
    AZURE_AUTHORITY_HOST). The endpoint's proxies apply to every request except those to the metadata server.
    `now` gives epoch seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        options: ProviderOptions,
        *,
        environment: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        given = os.environ if environment is None else environment
        self._upstream = endpoint.name
        self._endpoint = endpoint
        self._tenant = options.tenant or given.get("AZURE_TENANT_ID", "")
        self._client_id = options.client_id or given.get("AZURE_CLIENT_ID", "")
        self._client_secret = options.client_secret
        stated = given.get("AZURE_FEDERATED_TOKEN_FILE")
        self._token_file = options.token_file or (Path(stated) if stated and not options.client_secret else None)
        self._authority = (options.provider_url or given.get("AZURE_AUTHORITY_HOST") or _AUTHORITY).rstrip("/")
        self._metadata = (options.metadata_url or _METADATA).rstrip("/")
        self._now = now

    async def obtain(self) -> Issued:
        """Obtain a new refresh token. Raises `UpstreamDenied`, `UpstreamUnavailable`."""
        base = self._endpoint.bounds.base
        form = {"grant_type": "access_token", "service": base.authority}
        if self._tenant:
            form["tenant"] = self._tenant
        form["access_token"] = await self._access_token()
        async with open_session(self._endpoint) as session:
            url = f"{base.scheme}://{base.authority}/oauth2/exchange"
            service = "the registry's token exchange"
            answer = await self._ask(session, service, "POST", url, data=form, **self._options(url))
        token = self._token(answer, "refresh_token", service)
        lasts = _expiry(token, self._now())
        return Issued(Credentials(identity_token=token), usable_seconds(lasts), lasts)

    async def _access_token(self) -> str:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT, sock_connect=5.0)
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), timeout=timeout) as session:
            if self._client_secret is None and self._token_file is None:
                service = "the metadata server"
                query = {"api-version": "2018-02-01", "resource": _AUDIENCE}
                if self._client_id:
                    query["client_id"] = self._client_id
                url = str(URL(f"{self._metadata}/metadata/identity/oauth2/token").with_query(query))
                answer = await self._ask(session, service, "GET", url, headers={"Metadata": "true"})
            else:
                service = "the authority"
                url = f"{self._authority}/{self._tenant}/oauth2/v2.0/token"
                form = await asyncio.to_thread(self._grant)
                answer = await self._ask(session, service, "POST", url, data=form, **self._options(url))
        return self._token(answer, "access_token", service)

    def _grant(self) -> dict[str, str]:
        """The form that a client sends to the authority. Blocking: the token file is rotated, so each call reads it."""
        if not self._tenant or not self._client_id:
            raise self._unavailable("tenant_id and client_id must be set")
        form = {
            "grant_type": "client_credentials",
            "client_id": self._client_id,
            "scope": f"{_AUDIENCE}/.default",
        }
        if self._client_secret is not None:
            return {**form, "client_secret": self._client_secret}
        try:
            assertion = self._token_file.read_text().strip() if self._token_file else ""
        except (OSError, UnicodeDecodeError) as error:
            raise self._unavailable(f"the token file {self._token_file} cannot be read") from error
        return {**form, "client_assertion_type": _ASSERTION, "client_assertion": assertion}

    def _options(self, url: str) -> dict[str, Any]:
        parsed, endpoint = parse_url(url), self._endpoint
        identity = endpoint.identity_for(parsed)
        tls = {"ssl": identity} if identity else {}
        return {"headers": endpoint.proxies.headers(parsed), **endpoint.proxies.options(parsed), **tls}

    async def _ask(self, session: aiohttp.ClientSession, service: str, method: str, url: str, **more: Any) -> Any:
        try:
            async with (
                translated(self._upstream, service),
                asyncio.timeout(_TIMEOUT),
                session.request(method, URL(url, encoded=True), allow_redirects=False, **more) as response,
            ):
                status, content = response.status, await read_limited(response, _LARGEST + 1)
        except UpstreamUnavailable as error:
            raise self._unavailable(f"{error}; is it reachable from here?") from error
        answer = _read(content)
        if status != 200 or answer is None:
            raise self._refused(service, status, answer)
        return answer

    def _refused(self, service: str, status: int, answer: Any) -> UpstreamError:
        """The error for a refusal. Its message shows only the error code: the error text may quote the request."""
        error = answer.get("error") if isinstance(answer, dict) else None
        code = f", {error}" if isinstance(error, str) and _ERROR.fullmatch(error) else ""
        message = f"{service} answers {status}{code}"
        if status not in (400, 401, 403):
            return self._unavailable(message)
        advice = {
            "the metadata server": "has this machine the managed identity that is asked for?",
            "the authority": "check tenant_id, client_id and the secret or token file",
        }.get(service, "has the identity the role AcrPull in this registry?")
        return UpstreamDenied(f"acr: {message}: {advice}", upstream=self._upstream, status=403)

    def _token(self, answer: Any, name: str, service: str) -> str:
        token = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise self._unavailable(f"{service} answered without a token")
        return token

    def _unavailable(self, why: str) -> CredentialsUnavailable:
        return CredentialsUnavailable(f"acr: {why}", upstream=self._upstream)


def _read(content: bytes) -> Any:
    try:
        return read_json(content) if len(content) <= _LARGEST else None
    except ValueError:
        return None


def _expiry(token: str, now: float) -> float:
    """Seconds until the `exp` of a JWT (RFC 7519, 4.1.4), at most 31 days; `_LIFETIME` if it has none.

    The signature is not checked: the registry enforces the expiry.
    """
    try:
        expires_at = read_json(decode_base64url(token.split(".")[1]))["exp"]
        return min(max(0.0, float(expires_at) - now), 31 * 24 * 3600.0)
    except (ValueError, LookupError, TypeError):
        return _LIFETIME
