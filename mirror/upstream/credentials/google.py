"""Google's registries (gcr.io, pkg.dev): an access token of a service account, through google-auth.

    key_file       the key of a service account signs a token request, sent to the `token_uri` in the key file
    metadata_url   only the metadata server, at that URL
    neither        application default credentials: GOOGLE_APPLICATION_CREDENTIALS, gcloud's own, the metadata server

The registry accepts the token as the password of the user `oauth2accesstoken`. Needs the extra `gcp`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any, Final

import google.auth
import requests
from google.auth import exceptions
from google.auth.compute_engine import Credentials as MetadataCredentials
from google.auth.transport.requests import Request
from google.oauth2.service_account import Credentials as KeyCredentials

from mirror.errors import UpstreamDenied, UpstreamError, reason_of
from mirror.policy.upstream.token_lifetime import usable_seconds
from mirror.upstream.credentials.provider_options import ProviderOptions
from mirror.upstream.credentials.renewal import Issued
from mirror.upstream.credentials.source import Credentials, CredentialsUnavailable

_USER: Final = "oauth2accesstoken"
#: The scope that gcloud requests, too; the roles of the account limit what the token permits.
_SCOPES: Final = ["https://www.googleapis.com/auth/cloud-platform"]
_METADATA: Final = ("http://metadata.google.internal", "http://169.254.169.254", "https://metadata.google.internal")
#: Seconds: for one request, and for all of them (the library tries the metadata server several times).
_TIMEOUT: Final = 10.0
_LONGEST: Final = 45.0


class GoogleIssuer:
    """Issues access tokens. `now` gives epoch seconds."""

    def __init__(
        self,
        upstream: str,
        options: ProviderOptions,
        *,
        proxy: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._upstream = upstream
        self._key_file = options.key_file
        self._metadata_url = options.metadata_url
        self._proxy = proxy
        self._now = now

    async def obtain(self) -> Issued:
        """Obtain a new token. Raises `UpstreamDenied`, `CredentialsUnavailable`."""
        try:
            async with asyncio.timeout(_LONGEST):
                token, expires_at = await asyncio.to_thread(self._refresh)
        except TimeoutError as error:
            raise self._unavailable(f"no token within {_LONGEST:g} s") from error
        lasts = max(0.0, expires_at - self._now())
        return Issued(Credentials(_USER, token), usable_seconds(lasts), lasts)

    def _refresh(self) -> tuple[str, float]:
        """The token and its expiry in epoch seconds. Blocking. Each call reads the key file: it may be rotated."""
        with requests.Session() as session:
            transport = _Transport(session, self._metadata_url, self._proxy)
            try:
                credentials = self._find(transport)
                credentials.refresh(transport)
            except exceptions.DefaultCredentialsError as error:
                raise self._unavailable(
                    "no credentials found: give key_file, or run with a service account on Google Cloud"
                ) from error
            except exceptions.RefreshError as error:
                raise self._refused(error) from error
            except exceptions.GoogleAuthError as error:
                raise self._unavailable("the token service does not answer") from error
        if not credentials.token or credentials.expiry is None:
            raise self._unavailable("the token service answered without a token")
        return str(credentials.token), credentials.expiry.replace(tzinfo=UTC).timestamp()

    def _find(self, transport: _Transport) -> Any:
        if self._key_file is not None:
            return self._read_key(self._key_file)
        if self._metadata_url is not None:
            return MetadataCredentials(scopes=_SCOPES)  # type: ignore[no-untyped-call]  # the library is untyped
        return google.auth.default(scopes=_SCOPES, request=transport)[0]

    def _read_key(self, path: Path) -> Any:
        try:
            content = json.loads(path.read_bytes())
            kind = content["type"]
            if kind != "service_account":
                raise self._unavailable(f"key_file {path} is not the key of a service account")
            return KeyCredentials.from_service_account_info(content, scopes=_SCOPES)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise self._unavailable(f"key_file {path}: {reason_of(error)}") from error
        except (ValueError, KeyError, TypeError, exceptions.GoogleAuthError) as error:
            # without the text of the cause, which may quote the file
            raise self._unavailable(f"key_file {path} is not the key of a service account") from error

    def _refused(self, error: exceptions.RefreshError) -> UpstreamError:
        if error.retryable or isinstance(error.__cause__, exceptions.TransportError):
            return self._unavailable("the token service does not answer; are it and the metadata server reachable?")
        return UpstreamDenied(
            "google: the token service refuses; is the key still valid, the service account enabled, and the clock "
            "right?",
            upstream=self._upstream,
            status=403,
        )

    def _unavailable(self, why: str) -> CredentialsUnavailable:
        return CredentialsUnavailable(f"google: {why}", upstream=self._upstream)


class _Transport(Request):
    """The library's own transport with three changes: our time-out, the configured address of the metadata server, and
    the proxy for every other request.
    """

    def __init__(self, session: requests.Session, metadata_url: str | None, proxy: str | None) -> None:
        super().__init__(session)
        self._metadata_url = metadata_url
        self._proxy = proxy

    def __call__(self, url: str, *arguments: Any, **more: Any) -> Any:
        root = next((server for server in _METADATA if url.startswith(f"{server}/")), None)
        if root:
            url = f"{self._metadata_url or root}{url.removeprefix(root)}"
            more["proxies"] = {"no_proxy": "*"}
        elif self._proxy:
            more["proxies"] = {"http": self._proxy, "https": self._proxy}
        more["timeout"] = min(more.get("timeout") or _TIMEOUT, _TIMEOUT)
        return super().__call__(url, *arguments, **more)  # type: ignore[no-untyped-call]
