"""Stand-ins for what the clouds issue credentials with, each checking what it is sent as the real one would.

    with GoogleCloud() as google: …   # token endpoint that verifies the signed JWT; metadata server
    with Aws() as aws: …              # STS (query protocol) and ECR (JSON protocol), signatures verified
    with Azure() as azure: …          # authority; metadata server
    with AzureRegistry(azure) as registry: …   # a registry that exchanges the authority's tokens

What each has issued is in `issued`; `refuse` makes it say no.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.support.fake_registry import FakeRegistry
from tests.support.scripted import Request, Script, Scripted, reply, reply_json


class _Cloud:
    """A server with a list of what it has issued."""

    def __init__(self) -> None:
        self.server = Scripted()
        self.server.on("*", self._checked)
        self.issued: list[str] = []
        self.refuse: Script | None = None
        #: Why requests were found wrong; a test that expects none looks here.
        self.complaints: list[str] = []

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def requests(self) -> list[Request]:
        return self.server.requests

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.stop()

    def issue(self, name: str) -> str:
        """Another one."""
        self.issued.append(f"{name}-{len(self.issued) + 1}")
        return self.issued[-1]

    def _checked(self, request: Request) -> Script:
        if self.refuse is not None:
            return self.refuse
        try:
            return self._answer(request)
        except (AssertionError, LookupError, ValueError) as error:
            self.complaints.append(f"{request.method} {request.target}: {error!r}")
            return reply_json(400, {"error": "invalid_request"})

    def _answer(self, request: Request) -> Script:
        raise NotImplementedError


class GoogleCloud(_Cloud):
    """`key_file()` is a service account's key, good at its token endpoint; the metadata server is on the same port."""

    def __init__(self) -> None:
        super().__init__()
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.email = "mirror@project.iam.gserviceaccount.com"

    def key_file(self) -> str:
        """As the console gives it."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return json.dumps(
            {
                "type": "service_account",
                "project_id": "project",
                "private_key_id": "key-1",
                "private_key": pem.decode(),
                "client_email": self.email,
                "client_id": "1",
                "token_uri": f"{self.url}/token",
            }
        )

    def _answer(self, request: Request) -> Script:
        if request.path == "/token":
            form = parse_qs(request.body.decode())
            assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
            self._verify(form["assertion"][0])
            return self._token(3600)
        assert request.header("Metadata-Flavor") == "Google", "not asked as the metadata server must be"
        flavour = {"Metadata-Flavor": "Google"}
        account = "/computeMetadata/v1/instance/service-accounts/default"
        if request.path == f"{account}/token":
            return self._token(1800)
        if request.path == f"{account}/":
            return reply_json(200, {"email": self.email, "aliases": ["default"], "scopes": ["x"]}, flavour)
        return reply(404, b"", flavour)

    def _token(self, expires_in: int) -> Script:
        body = {"access_token": self.issue("google"), "expires_in": expires_in, "token_type": "Bearer"}
        return reply_json(200, body, {"Metadata-Flavor": "Google"})

    def _verify(self, assertion: str) -> None:
        """RFC 7523, 3: signature, issuer, audience, time."""
        signed, _, signature = assertion.rpartition(".")
        self._key.public_key().verify(_decoded(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        header, claims = (json.loads(_decoded(part)) for part in signed.split("."))
        assert header["alg"] == "RS256"
        assert claims["iss"] == self.email
        # the library names Google whatever the key file says its token endpoint is
        assert claims["aud"] == "https://oauth2.googleapis.com/token", claims
        assert claims["iat"] - 300 < time.time() < claims["exp"]
        assert "cloud-platform" in claims["scope"]


class Aws(_Cloud):
    """ECR, ECR Public and STS on one port. `keys` are access keys with their secrets; a role's are added to them."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = {"AKIDTEST": "secret-of-the-test"}
        self.roles = {"arn:aws:iam::123456789012:role/puller"}
        self.expires_at = time.time() + 12 * 3600
        #: Region and service that each call was signed for.
        self.scopes: list[tuple[str, str]] = []

    def _answer(self, request: Request) -> Script:
        key = self._verify(request)
        service = self.scopes[-1][1]
        if service == "sts":
            form = parse_qs(request.body.decode())
            assert form["Action"] == ["AssumeRole"]
            if form["RoleArn"][0] not in self.roles:
                return self._error_xml("AccessDenied")
            self.keys["ASIAROLE"] = "secret-of-the-role"
            return self._assumed()
        target = request.header("X-Amz-Target")
        token = base64.b64encode(f"AWS:{self.issue(key)}".encode()).decode()
        data: Any = {"authorizationToken": token, "expiresAt": self.expires_at}
        if service == "ecr":
            assert target == "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken", target
            data = [{**data, "proxyEndpoint": "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com"}]
        else:
            assert service == "ecr-public"
            assert target == "SpencerFrontendService.GetAuthorizationToken", target
        return reply_json(200, {"authorizationData": data}, {"Content-Type": "application/x-amz-json-1.1"})

    def _assumed(self) -> Script:
        body = (
            '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>'
            "<AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>secret-of-the-role</SecretAccessKey>"
            "<SessionToken>session</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>"
            "</AssumeRoleResult></AssumeRoleResponse>"
        )
        return reply(200, body.encode(), {"Content-Type": "text/xml"})

    def _error_xml(self, code: str) -> Script:
        body = (
            f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"
        )
        return reply(403, body.encode(), {"Content-Type": "text/xml"})

    def _verify(self, request: Request) -> str:
        """Signature version 4 (AWS IAM User Guide, "Create a signed request"); returns the access key."""
        scheme, _, rest = (request.header("Authorization") or "").partition(" ")
        assert scheme == "AWS4-HMAC-SHA256", scheme
        fields = dict(part.strip().split("=", 1) for part in rest.split(","))
        key, day, region, service, end = fields["Credential"].split("/")
        signed = fields["SignedHeaders"]
        moment = request.header("X-Amz-Date") or ""
        assert moment.startswith(day)
        age = datetime.now(UTC) - datetime.strptime(moment, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        assert abs(age.total_seconds()) < 300
        headers = "".join(f"{name}:{(request.header(name) or '').strip()}\n" for name in signed.split(";"))
        hashed = hashlib.sha256(request.body).hexdigest()
        canonical = "\n".join((request.method, request.path, "", headers, signed, hashed))
        scope = f"{day}/{region}/{service}/{end}"
        text = "\n".join((scheme, moment, scope, hashlib.sha256(canonical.encode()).hexdigest()))
        signing = f"AWS4{self.keys[key]}".encode()
        for part in (day, region, service, end):
            signing = hmac.digest(signing, part.encode(), "sha256")
        assert hmac.new(signing, text.encode(), "sha256").hexdigest() == fields["Signature"], "signature"
        if key == "ASIAROLE":
            assert request.header("X-Amz-Security-Token") == "session"
        self.scopes.append((region, service))
        return key


class Azure(_Cloud):
    """The authority for one tenant and client, and the metadata server of a machine with a managed identity."""

    tenant, client, secret, assertion = "tenant-1", "client-1", "canary-client-secret", "canary-assertion"

    def _answer(self, request: Request) -> Script:
        if request.path == "/metadata/identity/oauth2/token":
            assert request.header("Metadata") == "true"
            assert request.query["resource"] == ["https://containerregistry.azure.net"]
            assert request.query.get("client_id", [self.client]) == [self.client]
            return reply_json(200, {"access_token": self.issue("entra"), "expires_in": "3599"})
        assert request.path == f"/{self.tenant}/oauth2/v2.0/token", request.path
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        assert form["grant_type"] == "client_credentials"
        assert form["scope"] == "https://containerregistry.azure.net/.default"
        good = form["client_id"] == self.client and (
            form.get("client_secret") == self.secret
            or (
                form.get("client_assertion") == self.assertion
                and form.get("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
            )
        )
        if not good:
            quoting = {"error": "invalid_client", "error_description": f"AADSTS7000215: {form}"}
            return reply_json(401, quoting)
        return reply_json(200, {"access_token": self.issue("entra"), "expires_in": 3599, "token_type": "Bearer"})


class AzureRegistry(FakeRegistry):
    """A registry whose refresh tokens, JWTs good for three hours by `now`, are had for tokens of `azure`."""

    def __init__(self, azure: Azure, now: Any = time.time) -> None:
        super().__init__(tokens=True, users={"nobody": "nothing"})
        self._azure = azure
        self._time = now
        self.exchanges = 0
        #: Whether the authority's tokens are good here.
        self.trusting = True

    def _route(self, request: Request) -> Script:
        if request.path != "/oauth2/exchange":
            return super()._route(request)
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        if (
            form.get("grant_type") != "access_token"
            or form.get("access_token") not in self._azure.issued
            or form.get("service") != self.host
            or not self.trusting
        ):
            return reply_json(401, {"errors": [{"code": "UNAUTHORIZED"}]})
        self.exchanges += 1
        claims = {"exp": self._time() + 3 * 3600, "jti": self.exchanges}
        token = ".".join(_encoded(json.dumps(part).encode()) for part in ({"alg": "RS256"}, claims, "signature"))
        self.users = {"refresh": token}
        return reply_json(200, {"refresh_token": token})


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
