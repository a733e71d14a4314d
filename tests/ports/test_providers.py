"""The clouds' credentials: each cloud's own library, or protocol, against a stand-in that checks what it is sent."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import ConfigError, UpstreamDenied, UpstreamUnavailable
from mirror.upstream.credentials.acr import AcrIssuer
from mirror.upstream.credentials.ecr import EcrIssuer
from mirror.upstream.credentials.google import GoogleIssuer
from mirror.upstream.credentials.provider_options import ProviderOptions
from mirror.upstream.credentials.providers import PROVIDERS, missing_library, open_provider
from mirror.upstream.credentials.renewal import Renewed
from mirror.upstream.credentials.source import Credentials, CredentialsUnavailable
from mirror.upstream.http.proxies import Proxies
from mirror.upstream.http.transport import Endpoint
from tests.ports.conftest import Pulling
from tests.support.clock import Clock
from tests.support.clouds import Aws, Azure, AzureRegistry, GoogleCloud
from tests.support.live_mirror import PATIENCE, until
from tests.support.proxy import HttpProxy
from tests.support.scripted import Scripted, reply, reply_json

ROOT = Path(__file__).parents[2]
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
ROLE = "arn:aws:iam::123456789012:role/puller"


@pytest.fixture
def clock() -> Clock:
    """From the real time on: libraries look at their own clock."""
    return Clock(time.time())


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Of a machine without any cloud; metadata addresses are never asked by accident."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


@pytest.fixture
def aws(environment: pytest.MonkeyPatch) -> Iterator[Aws]:
    environment.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
    with Aws() as running:
        yield running


@pytest.fixture
def google() -> Iterator[GoogleCloud]:
    with GoogleCloud() as running:
        yield running


@pytest.fixture
def azure() -> Iterator[Azure]:
    with Azure() as running:
        yield running


async def given(source: Renewed) -> Credentials:
    credentials = await source.credentials()
    assert credentials
    return credentials


async def renewed(source: Renewed, password: str) -> None:
    """Until there are these: nobody waits for a renewal while the old ones are good."""
    async with asyncio.timeout(PATIENCE):
        while (await given(source)).password != password:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)


# ---------------------------------------------------------------------------------------------------- Google


async def test_google_by_key_file(google: GoogleCloud, tmp_path: Path, clock: Clock) -> None:
    """A JWT that the account's key signed is exchanged for a token, which is the password of a fixed user."""
    key = tmp_path / "key.json"
    key.write_text(google.key_file())
    source = open_provider(
        Endpoint("gcr.io", "https://gcr.io"), "google", ProviderOptions(key_file=key), now=clock, clock=clock
    )
    assert await given(source) == Credentials("oauth2accesstoken", "google-1")
    assert google.complaints == []
    clock.time += 3000
    assert (await given(source)).password == "google-1"
    clock.time += 500
    await renewed(source, "google-2")


async def test_google_by_metadata_server(google: GoogleCloud, clock: Clock) -> None:
    """Of the machine, or of the workload identity; the server is where the settings say."""
    options = ProviderOptions(metadata_url=google.url)
    source = open_provider(Endpoint("gcr.io", "https://gcr.io"), "google", options, now=clock, clock=clock)
    credentials = await asyncio.gather(*(given(source) for _ in range(50)))
    assert set(credentials) == {Credentials("oauth2accesstoken", "google-1")}
    assert google.complaints == []
    assert {request.header("Metadata-Flavor") for request in google.requests} == {"Google"}
    clock.time += 1790
    await renewed(source, "google-2")


async def test_google_by_application_default_credentials(
    google: GoogleCloud, tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    """As every Google library finds them."""
    key = tmp_path / "key.json"
    key.write_text(google.key_file())
    environment.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    issued = await GoogleIssuer("gcr.io", ProviderOptions()).obtain()
    assert issued.credentials == Credentials("oauth2accesstoken", "google-1")
    assert 3000 < issued.usable < issued.lasts <= 3600


async def test_google_without_any() -> None:
    """The message says what to do."""
    with pytest.raises(CredentialsUnavailable, match="google: no credentials found: give key_file"):
        await GoogleIssuer("gcr.io", ProviderOptions()).obtain()


async def test_a_google_key_that_is_refused(google: GoogleCloud, tmp_path: Path) -> None:
    """A revoked key is a refusal, not an outage; what Google says is not quoted."""
    key = tmp_path / "key.json"
    key.write_text(google.key_file())
    google.refuse = reply_json(400, {"error": "invalid_grant", "error_description": "canary"})
    with pytest.raises(UpstreamDenied, match="google: the token service refuses") as failure:
        await GoogleIssuer("gcr.io", ProviderOptions(key_file=key)).obtain()
    assert "canary" not in str(failure.value)


@pytest.mark.parametrize("content", ["", "canary", "[]", '{"type": "canary"}', '{"type": "service_account"}'])
async def test_a_google_key_file_that_is_none(tmp_path: Path, content: str) -> None:
    """The file is named and not quoted."""
    key = tmp_path / "key.json"
    key.write_text(content)
    with pytest.raises(CredentialsUnavailable, match=r"key_file .*key.json is not the key") as failure:
        await GoogleIssuer("gcr.io", ProviderOptions(key_file=key)).obtain()
    assert "canary" not in str(failure.value)
    with pytest.raises(CredentialsUnavailable, match="No such file"):
        await GoogleIssuer("gcr.io", ProviderOptions(key_file=tmp_path / "gone")).obtain()


async def test_google_that_does_not_answer(tmp_path: Path) -> None:
    """A token service that is away is an outage, during which stale answers may be given."""
    key = tmp_path / "key.json"
    with GoogleCloud() as google:
        key.write_text(google.key_file())
    with pytest.raises(CredentialsUnavailable, match="does not answer"):
        await GoogleIssuer("gcr.io", ProviderOptions(key_file=key)).obtain()


# ------------------------------------------------------------------------------------------------------- AWS


async def test_ecr(aws: Aws, clock: Clock) -> None:
    """Signed for the region in the registry's name; the token is good for 12 hours, and had anew before."""
    aws.expires_at = clock.time + 12 * 3600
    options = ProviderOptions(provider_url=aws.url)
    source = open_provider(Endpoint(ECR, f"https://{ECR}"), "ecr", options, now=clock, clock=clock)
    credentials = await asyncio.gather(*(given(source) for _ in range(20)))
    assert set(credentials) == {Credentials("AWS", "AKIDTEST-1")}
    assert (aws.scopes, aws.complaints) == ([("eu-west-1", "ecr")], [])
    clock.time += 10 * 3600
    assert (await given(source)).password == "AKIDTEST-1"
    clock.time += 3600
    aws.expires_at = clock.time + 12 * 3600
    await renewed(source, "AKIDTEST-2")


async def test_ecr_with_a_role(aws: Aws) -> None:
    """STS gives the role's credentials, with which the token is asked for."""
    issuer = EcrIssuer(ECR, "eu-west-1", ProviderOptions(role_arn=ROLE, provider_url=aws.url, sts_url=aws.url))
    assert (await issuer.obtain()).credentials == Credentials("AWS", "ASIAROLE-1")
    assert aws.scopes == [("eu-west-1", "sts"), ("eu-west-1", "ecr")]
    assert aws.complaints == []


async def test_ecr_public(aws: Aws) -> None:
    """Another API, in one region, whose answer has another shape."""
    options = ProviderOptions(provider_url=aws.url)
    source = open_provider(Endpoint("public.ecr.aws", "https://public.ecr.aws"), "ecr-public", options)
    assert await given(source) == Credentials("AWS", "AKIDTEST-1")
    assert (aws.scopes, aws.complaints) == ([("us-east-1", "ecr-public")], [])


async def test_ecr_refuses(aws: Aws) -> None:
    """The code is told, with what must be allowed; the text, which may quote a token, is not."""
    issuer = EcrIssuer(ECR, "eu-west-1", ProviderOptions(provider_url=aws.url))
    aws.refuse = reply_json(400, {"__type": "AccessDeniedException", "message": "canary"})
    with pytest.raises(UpstreamDenied, match=r"AccessDeniedException.*ecr:GetAuthorizationToken") as failure:
        await issuer.obtain()
    assert "canary" not in str(failure.value)
    aws.refuse = reply_json(400, {"__type": "ThrottlingException", "message": "canary"})
    with pytest.raises(CredentialsUnavailable, match="ThrottlingException"):
        await issuer.obtain()
    aws.refuse = None
    other = EcrIssuer(
        ECR, "eu-west-1", ProviderOptions(role_arn=f"{ROLE}-other", provider_url=aws.url, sts_url=aws.url)
    )
    with pytest.raises(UpstreamDenied, match=r"AssumeRole is refused.*sts:AssumeRole"):
        await other.obtain()


async def test_ecr_without_credentials_or_answer(aws: Aws, environment: pytest.MonkeyPatch) -> None:
    """Each is an outage of ours, and says what to look at."""
    with Scripted() as gone:
        pass
    with pytest.raises(CredentialsUnavailable, match="AWS does not answer"):
        await EcrIssuer(ECR, "eu-west-1", ProviderOptions(provider_url=gone.url)).obtain()
    environment.delenv("AWS_ACCESS_KEY_ID")
    environment.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CredentialsUnavailable, match="no AWS credentials found"):
        await EcrIssuer(ECR, "eu-west-1", ProviderOptions(provider_url=aws.url)).obtain()


async def test_ecr_by_the_instance(environment: pytest.MonkeyPatch, aws: Aws) -> None:
    """A machine's role is found at the metadata server, which is where the settings say."""
    environment.delenv("AWS_ACCESS_KEY_ID")
    environment.delenv("AWS_SECRET_ACCESS_KEY")
    environment.delenv("AWS_EC2_METADATA_DISABLED")
    aws.keys["AKIDMACHINE"] = "secret-of-the-machine"
    with Scripted() as metadata:
        root = "/latest/meta-data/iam/security-credentials"
        metadata.on("/latest/api/token", reply(200, b"session"))
        metadata.on(f"{root}/", reply(200, b"machine"))
        secret = {"AccessKeyId": "AKIDMACHINE", "SecretAccessKey": "secret-of-the-machine", "Token": "session"}
        whole = {"Code": "Success", "Type": "AWS-HMAC", "Expiration": "2099-01-01T00:00:00Z", **secret}
        metadata.on(f"{root}/machine", reply_json(200, whole))
        issuer = EcrIssuer(ECR, "eu-west-1", ProviderOptions(provider_url=aws.url, metadata_url=metadata.url))
        assert (await issuer.obtain()).credentials == Credentials("AWS", "AKIDMACHINE-1")


def test_an_ecr_region_that_is_not_known() -> None:
    """Neither in the name nor set: named at start."""
    with pytest.raises(ConfigError, match="set region"):
        open_provider(Endpoint("ecr.internal", "https://ecr.internal"), "ecr", ProviderOptions())


# ----------------------------------------------------------------------------------------------------- Azure


Ways = Callable[[Azure, Path], dict[str, Any]]


def _managed(azure: Azure, _folder: Path) -> dict[str, Any]:
    return {"metadata_url": azure.url}


def _chosen(azure: Azure, _folder: Path) -> dict[str, Any]:
    return {"metadata_url": azure.url, "client_id": azure.client}


def _principal(azure: Azure, _folder: Path) -> dict[str, Any]:
    identity = {"tenant": azure.tenant, "client_id": azure.client, "client_secret": azure.secret}
    return {"provider_url": azure.url, **identity}


def _workload(azure: Azure, folder: Path) -> dict[str, Any]:
    (folder / "token").write_text(azure.assertion + "\n")
    identity = {"tenant": azure.tenant, "client_id": azure.client, "token_file": folder / "token"}
    return {"provider_url": azure.url, **identity}


@pytest.mark.parametrize("way", [_managed, _chosen, _principal, _workload])
async def test_acr(
    azure: Azure,
    tmp_path: Path,
    clock: Clock,
    way: Ways,
    pulling: Pulling,
) -> None:
    """The authority's token is exchanged for a refresh token, that for one to pull with; renewed within three hours."""
    with AzureRegistry(azure, clock) as registry:
        digest = registry.add_image("team/app", "v1", [b"layer"])
        options = ProviderOptions(**way(azure, tmp_path))
        upstream = pulling(
            registry, open_provider(Endpoint("acr", registry.url), "acr", options, now=clock, clock=clock)
        )
        descriptors = await asyncio.gather(*(upstream.resolve("team/app", "v1") for _ in range(20)))
        assert {descriptor.digest for descriptor in descriptors} == {digest}
        assert (registry.exchanges, azure.complaints) == (1, [])
        clock.time += 2.8 * 3600
        registry.expire_tokens()
        assert (await upstream.resolve("team/app", "v1")).digest == digest
        await until(lambda: registry.exchanges == 2)


async def test_acr_as_aks_sets_it_up(azure: Azure, tmp_path: Path) -> None:
    """A pod with workload identity needs no settings: its environment has them."""
    (tmp_path / "token").write_text(azure.assertion)
    environment = {
        "AZURE_TENANT_ID": azure.tenant,
        "AZURE_CLIENT_ID": azure.client,
        "AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "token"),
        "AZURE_AUTHORITY_HOST": f"{azure.url}/",
    }
    with AzureRegistry(azure) as registry:
        issued = await AcrIssuer(Endpoint("acr", registry.url), ProviderOptions(), environment=environment).obtain()
        assert issued.credentials
        assert issued.credentials.identity_token == registry.users["refresh"]
        assert issued.lasts == pytest.approx(3 * 3600, abs=60)


async def test_acr_refusals(azure: Azure, tmp_path: Path) -> None:
    """Whoever says no is named, with what to look at; nothing of what was sent is."""
    with AzureRegistry(azure) as registry:
        endpoint = Endpoint("acr", registry.url)
        identity = ProviderOptions(tenant=azure.tenant, client_id=azure.client, provider_url=azure.url)
        wrong = AcrIssuer(endpoint, replace(identity, client_secret="canary-wrong"))
        with pytest.raises(UpstreamDenied, match=r"authority answers 401, invalid_client.*tenant_id") as failure:
            await wrong.obtain()
        assert "canary" not in str(failure.value)
        registry.trusting = False
        stranger = AcrIssuer(endpoint, ProviderOptions(metadata_url=azure.url))
        with pytest.raises(UpstreamDenied, match="token exchange answers 401: has the identity the role AcrPull"):
            await stranger.obtain()
        azure.refuse = reply_json(400, {"error": "invalid_request", "error_description": "Identity not found"})
        with pytest.raises(UpstreamDenied, match="managed identity"):
            await stranger.obtain()
        for broken in (reply_json(500, {}), reply(200, b"<html>"), reply_json(200, {}), reply(200, b"x" * 100_000)):
            azure.refuse = broken
            with pytest.raises(CredentialsUnavailable):
                await stranger.obtain()
        incomplete = AcrIssuer(endpoint, ProviderOptions(client_secret="x", provider_url=azure.url))
        with pytest.raises(CredentialsUnavailable, match="tenant_id and client_id must be set"):
            await incomplete.obtain()
        gone = AcrIssuer(endpoint, replace(identity, token_file=tmp_path / "gone"))
        with pytest.raises(CredentialsUnavailable, match="cannot be read"):
            await gone.obtain()


async def test_acr_that_is_redirected(azure: Azure) -> None:
    """A metadata server or registry that sends elsewhere is not followed: the tokens would go along."""
    with Scripted() as elsewhere, AzureRegistry(azure) as registry:
        azure.refuse = reply(307, b"", {"Location": f"{elsewhere.url}/x"})
        with pytest.raises(UpstreamUnavailable):
            await AcrIssuer(Endpoint("acr", registry.url), ProviderOptions(metadata_url=azure.url)).obtain()
        assert not elsewhere.requests


# --------------------------------------------------------------------------------------------------- proxies


async def test_clouds_behind_a_proxy(google: GoogleCloud, aws: Aws, azure: Azure, tmp_path: Path) -> None:
    """What issues credentials is reached through the registry's proxy; metadata servers are not."""
    key = tmp_path / "key.json"
    key.write_text(google.key_file())
    with HttpProxy() as proxy, AzureRegistry(azure) as registry:
        proxies = Proxies.given(proxy.url)

        async def requests_by_proxy(provider: Any, url: str, **options: Any) -> int:
            before = len(proxy.requests)
            given_by = open_provider(
                Endpoint(ECR, url, proxies=proxies), provider, ProviderOptions(**options), proxy=proxy.url
            )
            assert await given_by.credentials()
            return len(proxy.requests) - before

        assert await requests_by_proxy("google", "https://gcr.io", key_file=key) == 1
        assert await requests_by_proxy("google", "https://gcr.io", metadata_url=google.url) == 0
        assert await requests_by_proxy("ecr", f"https://{ECR}", provider_url=aws.url) == 1
        assert await requests_by_proxy("acr", registry.url, metadata_url=azure.url) == 1
    assert google.complaints == aws.complaints == azure.complaints == []


# ------------------------------------------------------------------------------------------------- libraries


@pytest.mark.parametrize(("provider", "extra"), [("google", "gcp"), ("ecr", "aws"), ("ecr-public", "aws")])
def test_a_missing_library_is_named(provider: Any, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that brings it, before anything is asked."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install 'registry-mirror\[{extra}\]'"):
        open_provider(Endpoint(ECR, f"https://{ECR}"), provider, ProviderOptions())


_LOADED = """
import sys
import mirror.app, mirror.process.worker, mirror.upstream.credentials.providers as providers
from mirror.upstream.credentials.provider_options import ProviderOptions
from mirror.upstream.http.transport import Endpoint
options = ProviderOptions()
providers.open_provider(Endpoint("acr", "https://example.azurecr.io"), "acr", options)
libraries = {"google.auth", "botocore", "requests"}
assert not libraries & set(sys.modules), libraries & set(sys.modules)
providers.open_provider(Endpoint("public.ecr.aws", "https://public.ecr.aws"), "ecr-public", options)
assert libraries & set(sys.modules) == {"botocore"}
"""


def test_libraries_are_loaded_where_they_are_needed() -> None:
    """Whoever does not use a cloud need not have its library; Azure's way needs none."""
    assert missing_library("acr") is None
    done = subprocess.run([sys.executable, "-c", _LOADED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(PROVIDERS) == {"google", "ecr", "ecr-public", "acr"}
