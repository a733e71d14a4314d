"""Amazon's registries: GetAuthorizationToken of ECR, or of ECR Public, through botocore.

    AWS credentials: the library's own chain (environment, files, container, web identity, instance) ─────┐
         └── `role_arn`: AssumeRole at STS, for that token alone ──> GetAuthorizationToken ──> AWS:<token>, 12 hours

The registry accepts the token as Basic credentials. Needs the extra `aws`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable
from typing import Any, Final

import botocore.session
from botocore import exceptions
from botocore.config import Config

from mirror.errors import UpstreamDenied, UpstreamError
from mirror.policy.upstream.token_lifetime import usable_seconds
from mirror.upstream.credentials.provider_options import ProviderOptions
from mirror.upstream.credentials.renewal import Issued
from mirror.upstream.credentials.source import Credentials, CredentialsUnavailable

#: The region in which ECR Public issues tokens, for clients of every region.
_PUBLIC_REGION: Final = "us-east-1"
_LONGEST: Final = 60.0
#: AWS error codes that mean wrong credentials or missing permissions, not a failing service.
_DENIED: Final = (
    *("AccessDenied", "AccessDeniedException", "UnrecognizedClientException", "InvalidClientTokenId"),
    *("InvalidSignatureException", "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "OptInRequired"),
)


class EcrIssuer:
    """Issues ECR tokens. `region` is None for ECR Public; `now` gives epoch seconds."""

    def __init__(
        self,
        upstream: str,
        region: str | None,
        options: ProviderOptions,
        *,
        proxy: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._upstream = upstream
        self._public = region is None
        self._region = region or _PUBLIC_REGION
        self._options = options
        self._now = now
        self._session = botocore.session.Session()
        if options.metadata_url:
            self._session.set_config_variable("ec2_metadata_service_endpoint", options.metadata_url)
        self._config = Config(
            connect_timeout=5,
            read_timeout=10,
            retries={"total_max_attempts": 2},
            proxies={"http": proxy, "https": proxy} if proxy else None,
        )

    async def obtain(self) -> Issued:
        """Obtain a new token. Raises `UpstreamDenied`, `CredentialsUnavailable`."""
        try:
            async with asyncio.timeout(_LONGEST):
                data = await asyncio.to_thread(self._ask)
        except TimeoutError as error:
            raise self._unavailable(f"no token within {_LONGEST:g} s") from error
        try:
            username, _, password = base64.b64decode(data["authorizationToken"]).decode().partition(":")
            lasts = max(0.0, data["expiresAt"].timestamp() - self._now())
        except (KeyError, AttributeError, TypeError, binascii.Error, UnicodeDecodeError) as error:
            raise self._unavailable("GetAuthorizationToken answered without a token") from error
        return Issued(Credentials(username, password), usable_seconds(lasts), lasts)

    def _ask(self) -> Any:
        """Return `authorizationData` of the answer. Blocking."""
        try:
            client = self._client("ecr-public" if self._public else "ecr", self._options.provider_url, self._assume())
            try:
                data = client.get_authorization_token().get("authorizationData")
            finally:
                client.close()
        except exceptions.ClientError as error:
            raise self._refused(error) from error
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
            raise self._unavailable(
                "no AWS credentials found: give the mirror's environment, pod or machine some (a role, a key)"
            ) from error
        except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
            raise self._unavailable("AWS does not answer; is its API reachable from here?") from error
        except exceptions.BotoCoreError as error:
            # the class of the exception says what is wrong with the configuration; its text may quote secrets
            raise self._unavailable(f"the AWS library gives up ({type(error).__name__}): check its settings") from error
        return data[0] if isinstance(data, list) and data else data

    def _assume(self) -> dict[str, str]:
        """The temporary credentials of `role_arn`; empty if no role is configured."""
        role = self._options.role_arn
        if role is None:
            return {}
        client = self._client("sts", self._options.sts_url, {})
        try:
            assumed = client.assume_role(RoleArn=role, RoleSessionName="registry-mirror")["Credentials"]
        finally:
            client.close()
        return {
            "aws_access_key_id": assumed["AccessKeyId"],
            "aws_secret_access_key": assumed["SecretAccessKey"],
            "aws_session_token": assumed["SessionToken"],
        }

    def _client(self, service: str, url: str | None, credentials: dict[str, str]) -> Any:
        return self._session.create_client(
            service, region_name=self._region, endpoint_url=url, config=self._config, **credentials
        )

    def _refused(self, error: exceptions.ClientError) -> UpstreamError:
        # only the code: the text of SignatureDoesNotMatch quotes the session token
        code = str(error.response.get("Error", {}).get("Code", "unknown"))[:60]
        message = f"{error.operation_name} is refused ({code})"
        if code not in _DENIED:
            return self._unavailable(message)
        allow = "sts:AssumeRole" if error.operation_name == "AssumeRole" else "ecr:GetAuthorizationToken"
        if self._public and error.operation_name != "AssumeRole":
            allow = "ecr-public:GetAuthorizationToken and sts:GetServiceBearerToken"
        return UpstreamDenied(
            f"ecr: {message}: check the AWS credentials, and that they are allowed {allow}",
            upstream=self._upstream,
            status=403,
        )

    def _unavailable(self, why: str) -> CredentialsUnavailable:
        return CredentialsUnavailable(f"ecr: {why}", upstream=self._upstream)
