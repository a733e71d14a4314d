"""Keys of S3 that belong to where the mirror runs, for the few requests that the library cannot make.

The library finds the same ones for all others, in the same order, and does not give them out:

    variables ──> web identity (IRSA) ──> pod identity, ECS task ──> the machine's role (IMDSv2) ──> none
"""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

from mirror import telemetry
from mirror.store.cloud.key_files import S3Keys
from mirror.store.cloud.s3_xml import text_of
from mirror.store.cloud.timed_requests import TimedRequests, succeeded

#: Keys are asked for again so many seconds before they end.
_MARGIN: Final = 300.0
#: Nobody is asked again for so long after nothing was found.
_PAUSE: Final = 60.0
_TIMEOUT: Final = 5.0
_LONGEST: Final = 1 << 20

#: Sends a request and returns the answer's body. Raises `OSError`, `HTTPException`.
Ask = Callable[[urllib.request.Request], bytes]


@dataclass(frozen=True, slots=True)
class WebIdentity:
    """A role to assume with the token in a file."""

    role: str
    token_file: Path
    session: str
    sts_url: str


@dataclass(frozen=True, slots=True)
class _Found:
    keys: S3Keys | None
    until: float


class AwsIdentity:
    """The keys of the place where this process runs. May be used from any thread."""

    def __init__(
        self,
        environment: Mapping[str, str],
        region: str,
        ask: Ask,
        *,
        web_identity: WebIdentity | None = None,
        metadata_url: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`ask` reaches STS; the services of machine and container are asked without a proxy. `web_identity`: the one
        that is configured; None: that of the environment, if any. `now` is the time in epoch seconds.
        """
        self._environment = environment
        self._region = region
        self._ask = ask
        self._web_identity = web_identity or _web_identity(environment, region)
        self._metadata_url = metadata_url or environment.get("AWS_METADATA_ENDPOINT") or "http://169.254.169.254"
        self._now = now
        self._lock = threading.Lock()
        self._found = _Found(None, 0.0)
        self._near = TimedRequests(proxies={})

    def __repr__(self) -> str:
        return f"<AwsIdentity {'with' if self._found.keys else 'without'} keys>"

    def keys(self) -> S3Keys | None:
        """The present keys; None if there are none to be had. Blocks for some seconds at most."""
        with self._lock:
            if self._now() >= self._found.until:
                try:
                    self._found = self._look()
                except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
                    telemetry.log.debug("keys not found", reason=str(error)[:160])
                    self._found = _Found(None, self._now() + _PAUSE)
            return self._found.keys

    def _look(self) -> _Found:
        given = self._environment
        if given.get("AWS_ACCESS_KEY_ID") and given.get("AWS_SECRET_ACCESS_KEY"):
            token = given.get("AWS_SESSION_TOKEN") or given.get("AWS_TOKEN") or None
            return _Found(S3Keys(given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"], token), float("inf"))
        if self._web_identity is not None:
            return self._assumed(self._web_identity)
        full, relative = (
            given.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
            given.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
        )
        if full or relative:
            headers = {}
            if file := given.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
                headers["Authorization"] = Path(file).read_text().strip()
            return self._parsed(self._get(full or f"http://169.254.170.2{relative}", headers))
        return self._of_machine()

    def _assumed(self, identity: WebIdentity) -> _Found:
        """AssumeRoleWithWebIdentity (AWS Security Token Service API)."""
        fields = {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": identity.role,
            "RoleSessionName": identity.session,
            "WebIdentityToken": identity.token_file.read_text().strip(),
        }
        request = urllib.request.Request(  # noqa: S310 - the scheme is http or https, as configured
            identity.sts_url, urllib.parse.urlencode(fields).encode(), method="POST"
        )
        answer = self._ask(request).decode()
        parts = [text_of(answer, tag) for tag in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")]
        if not all(parts):
            raise ValueError("STS gave no credentials")
        return _Found(S3Keys(*parts[:3]), _moment(parts[3]) - _MARGIN)

    def _of_machine(self) -> _Found:
        """The role of the machine (Amazon EC2 User Guide, "Use IMDSv2")."""
        base = f"{self._metadata_url}/latest"
        token = self._get(f"{base}/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "600"}, method="PUT").decode()
        headers = {"X-aws-ec2-metadata-token": token}
        place = f"{base}/meta-data/iam/security-credentials/"
        role = self._get(place, headers).decode().split("\n")[0].strip()
        return self._parsed(self._get(f"{place}{urllib.parse.quote(role)}", headers))

    def _parsed(self, content: bytes) -> _Found:
        found: Any = json.loads(content)
        keys = S3Keys(found["AccessKeyId"], found["SecretAccessKey"], found["Token"])
        return _Found(keys, _moment(found["Expiration"]) - _MARGIN)

    def _get(self, url: str, headers: Mapping[str, str], *, method: str = "GET") -> bytes:
        request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310 - as configured
        return succeeded(self._near.ask(request, _TIMEOUT, _LONGEST))


def _web_identity(environment: Mapping[str, str], region: str) -> WebIdentity | None:
    role, file = environment.get("AWS_ROLE_ARN"), environment.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    if not role or not file:
        return None
    session = environment.get("AWS_ROLE_SESSION_NAME") or "registry-mirror"
    url = environment.get("AWS_ENDPOINT_URL_STS") or sts_url(region)
    return WebIdentity(role, Path(file), session, url)


def sts_url(region: str) -> str:
    """The address of STS in a region."""
    return f"https://sts.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")


def _moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
