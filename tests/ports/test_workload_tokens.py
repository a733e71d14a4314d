"""CI and pods without stored secrets: tokens shaped like those of GitHub Actions, GitLab and Kubernetes, signed by keys
of the test, and rules about their claims.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.fernet import Fernet, MultiFernet
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from mirror.access.authentication import Authentication
from mirror.access.oidc import Issuer, Issuers, OidcIssuer, claim_values
from mirror.access.own_tokens import IssuedTokens
from mirror.config import Config, access_policy, load, named_claims
from mirror.errors import ConfigError, Unauthorized
from mirror.oci.authorization import CallerCredentials
from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action, AuthMethod, check_caller, read_claims
from tests.support.clock import Clock

_KEYS = {name: rsa.generate_private_key(65537, 2048) for name in ("github", "gitlab", "cluster")}
_URLS = {
    "github": "https://token.actions.githubusercontent.com",
    "gitlab": "https://gitlab.example.com",
    "cluster": "https://kubernetes.default.svc.cluster.local",
}
_GITHUB = {
    "jti": "2a0b8c4e",
    "sub": "repo:acme/app:ref:refs/heads/main",
    "ref": "refs/heads/main",
    "sha": "example-sha",
    "repository": "acme/app",
    "repository_owner": "acme",
    "repository_visibility": "private",
    "repository_id": "74",
    "actor": "alice",
    "workflow": "example-workflow",
    "head_ref": "",
    "base_ref": "",
    "event_name": "push",
    "ref_type": "branch",
    "ref_protected": "true",
    "runner_environment": "github-hosted",
    "job_workflow_ref": "acme/automation/.github/workflows/oidc.yml@refs/heads/main",
    "environment": "production",
    "run_attempt": "2",
}
_GITLAB = {
    "sub": "project_path:acme/app:ref_type:branch:ref:main",
    "namespace_id": "72",
    "namespace_path": "acme",
    "project_id": "20",
    "project_path": "acme/app",
    "user_id": "1",
    "user_login": "alice",
    "user_access_level": "developer",
    "user_identities": [{"provider": "github", "extern_uid": "2435223452345"}],
    "pipeline_source": "push",
    "ref": "main",
    "ref_type": "branch",
    "ref_protected": "true",
    "environment_protected": "false",
    "groups_direct": ["acme", "acme/ops"],
}
_CLUSTER = {
    "sub": "system:serviceaccount:shop:builder",
    "kubernetes.io": {
        "namespace": "shop",
        "node": {"name": "n1", "uid": "2d81d2f1"},
        "pod": {"name": "build-7f", "uid": "c4b6a2b1"},
        "serviceaccount": {"name": "builder", "uid": "14ee3fa4"},
    },
}
_SHAPES: dict[str, Mapping[str, Any]] = {"github": _GITHUB, "gitlab": _GITLAB, "cluster": _CLUSTER}
_APP = Repo("corp", "team/app")


class _Site:
    """The access of a mirror with these issuers, and one rule that lets `callers` push."""

    def __init__(self, folder: Path, callers: Sequence[str], issuers: Sequence[str] = tuple(_URLS)) -> None:
        self.clock = Clock()
        for name in issuers:
            jwk = {**RSAAlgorithm.to_jwk(_KEYS[name].public_key(), as_dict=True), "kid": "k", "use": "sig"}
            (folder / f"{name}.json").write_text(json.dumps({"keys": [jwk]}))
        rule = {"effect": "allow", "callers": list(callers), "actions": ["push"], "repositories": ["corp/**"]}
        entries = [
            {"name": name, "issuer": _URLS[name], "audience": "mirror", "keys_file": folder / f"{name}.json"}
            for name in issuers
        ]
        settings: dict[str, Any] = {"hosted": [{"name": "corp"}], "access": {"issuer": entries, "rule": [rule]}}
        self.config = Config(**settings)
        made = [
            Issuer(
                OidcIssuer(
                    entry.issuer,
                    entry.audience,
                    keys_file=entry.keys_file,
                    name=entry.title,
                    claims=named_claims(self.config.access, entry.title),
                ),
                now=self.clock,
            )
            for entry in self.config.access.issuer
        ]
        self.issued = IssuedTokens(MultiFernet([Fernet(Fernet.generate_key())]), lifetime=300.0, now=self.clock)
        members = {AuthMethod.ISSUER: Issuers(made)}
        self.front = Authentication([self.issued, *made], members, now=self.clock)
        self.policy = access_policy(self.config)

    def token(self, name: str, key: str = "", **more: Any) -> str:
        """A token of this issuer, signed by it or by `key`'s."""
        times = {"iat": self.clock(), "nbf": self.clock(), "exp": self.clock() + 300}
        claims = {"iss": _URLS[name], "aud": "mirror", **times, **_SHAPES[name], **more}
        return jwt.encode(claims, _KEYS[key or name], "RS256", headers={"kid": "k"})

    async def may_push(self, token: str) -> bool:
        """Sent in every way that clients send a token, also through one that the mirror issues for it."""
        presented = CallerCredentials("anybody", token)
        identity = await self.front.authenticate(presented)
        assert await self.front.authenticate(CallerCredentials(bearer=token)) == identity
        ours = CallerCredentials(bearer=self.issued.issue(identity))
        assert await self.front.authenticate(ours) == identity
        return self.policy.allows(identity, Action.PUSH, _APP)


@pytest.mark.parametrize(
    ("name", "caller"),
    [
        ("github", "claim:issuer=github,repository=acme/app"),
        ("github", "claim:repository=acme/app,issuer=github,ref=refs/heads/main,environment=production"),
        ("github", "claim:issuer=github,ref=refs/heads/*,repository_owner=acme"),
        ("github", "claim:issuer=github,job_workflow_ref=acme/automation/*@refs/heads/main"),
        ("github", "claim:issuer=github,iss=https://token.actions.githubusercontent.com"),
        ("github", "issuer:github"),
        ("gitlab", "claim:issuer=gitlab,project_path=acme/app,ref_protected=true"),
        ("gitlab", "claim:issuer=gitlab,groups_direct=acme/ops"),
        ("gitlab", "issuer:git*"),
        ("cluster", "claim:issuer=cluster,kubernetes.io.namespace=shop"),
        ("cluster", "claim:issuer=cluster,kubernetes.io.serviceaccount.name=builder,kubernetes.io.namespace=sh*"),
        ("cluster", "subject:system:serviceaccount:shop:*"),
    ],
)
async def test_claims_that_are_met(name: str, caller: str, tmp_path: Path) -> None:
    """By the tokens of that issuer, and by no other issuer's, whatever these contain."""
    site = _Site(tmp_path, [caller])
    for issuer in _URLS:
        if issuer == name:
            assert await site.may_push(site.token(issuer))
        elif caller.startswith("claim:"):
            # another issuer says the same, word for word
            assert not await site.may_push(site.token(issuer, **{**_SHAPES[name], "sub": "x"}))
        elif issuer == "cluster":
            assert not await site.may_push(site.token(issuer))


@pytest.mark.parametrize(
    ("caller", "more"),
    [
        ("claim:repository=acme/app", {"repository": "acme/other"}),
        ("claim:repository=acme/app", {"repository": "evil/acme/app"}),
        ("claim:repository=acme/app", {"repository": "acme/app\n"}),
        ("claim:repository=acme/app", {"repository": ["acme/other"]}),
        ("claim:repository=acme/app", {"repository": {"acme/app": "acme/app"}}),
        ("claim:repository=acme/app", {"repository": None}),
        ("claim:repository=ACME/app", {}),
        ("claim:repository=acme/app,ref=refs/heads/main", {"ref": "refs/heads/mine"}),
        ("claim:repository=acme/app,no_such_claim=x", {}),
        ("claim:no_such_claim=*", {}),
        ("claim:repository=acme.app", {}),
    ],
)
async def test_claims_that_are_not_met(caller: str, more: Mapping[str, Any], tmp_path: Path) -> None:
    """One that differs is enough; a value is compared as a whole, and a missing one fits nothing."""
    site = _Site(tmp_path, [caller], ["github"])
    assert not await site.may_push(site.token("github", **more))


async def test_one_issuer_need_not_be_named(tmp_path: Path) -> None:
    """With several, the configuration must say whose claims are meant."""
    site = _Site(tmp_path, ["claim:repository=acme/app,ref=refs/heads/main"], ["github"])
    assert await site.may_push(site.token("github"))
    assert not await site.may_push(site.token("github", ref="refs/pull/1/merge"))


async def test_a_token_that_is_forged(tmp_path: Path) -> None:
    """Signed by another issuer's key, for another audience, or too old: whatever it claims, it is refused."""
    site = _Site(tmp_path, ["claim:issuer=github,repository=acme/app"])
    for token in (
        site.token("github", "gitlab"),
        site.token("github", aud="other"),
        site.token("github", exp=site.clock() - 1),
        site.token("github", nbf=site.clock() + 3600),
        site.token("github", iss=_URLS["gitlab"]),
    ):
        with pytest.raises(Unauthorized):
            await site.front.authenticate(CallerCredentials("x", token))


async def test_a_token_from_before_the_rules_named_a_claim(tmp_path: Path) -> None:
    """What the mirror issued does not have the claim: the client is asked to log in again, and nothing is assumed."""
    before = _Site(tmp_path, ["claim:repository=acme/app"], ["github"])
    identity = await before.front.authenticate(CallerCredentials("x", before.token("github")))
    token = CallerCredentials(bearer=before.issued.issue(identity))
    after = _Site(tmp_path, ["claim:repository=acme/app,ref=refs/heads/main"], ["github"])
    after.issued._keys = before.issued._keys
    with pytest.raises(Unauthorized):
        await after.front.authenticate(token)
    assert await after.may_push(after.token("github"))


@pytest.mark.parametrize(
    ("claims", "name", "values"),
    [
        ({"a": "x"}, "a", {"x"}),
        ({"a": ["x", 1, True, None, ["y"], {"z": 1}]}, "a", {"x", "1", "true"}),
        ({"a": False}, "a", {"false"}),
        ({"a": 0}, "a", {"0"}),
        ({"a": 1.5}, "a", set()),
        ({"a": {"b": {"c": "x"}}}, "a.b.c", {"x"}),
        ({"a.b": {"c": "x"}}, "a.b.c", {"x"}),
        ({"a.b.c": "x"}, "a.b.c", {"x"}),
        ({"a.b": {"c": "x"}, "a": {"b.c": "y"}}, "a.b.c", set()),
        ({"a": {"b": "x"}}, "a", set()),
        ({"a": [{"b": "x"}]}, "a.b", set()),
        ({}, "a", set()),
    ],
)
def test_the_values_of_a_claim(claims: Mapping[str, Any], name: str, values: set[str]) -> None:
    """Nested, with dots in keys, in lists; what can be read in two ways has no value."""
    assert claim_values(claims, name) == values


@pytest.mark.parametrize(
    "text",
    [
        "claim:",
        "claim:a",
        "claim:=x",
        "claim:a=",
        "claim:a=x,issuer=y,issuer=z",
        "claim:issuer=x",
        "claim:a b=x",
        "claim:a= x",
    ],
)
def test_claims_that_cannot_be_read(text: str) -> None:
    """A mistake in a rule is told."""
    with pytest.raises(ValueError, match="claim"):
        check_caller(text)


def test_a_value_with_commas_and_equal_signs() -> None:
    """A comma ends a value only where another claim begins."""
    read = read_claims("claim:issuer=x,dn=CN=a,b c,o=d")
    assert (read.issuer, read.wanted) == ("x", (("dn", "CN=a,b c"), ("o", "d")))
    assert read_claims(str(read)) == read


@pytest.mark.parametrize(
    ("issuers", "caller", "mistake"),
    [
        ([], "claim:a=x", "names no issuer: write claim:issuer=NAME,… (names of [[access.issuer]]: there is none)"),
        (["https://a", "https://b"], "claim:a=x", "names no issuer: write claim:issuer=NAME,… (names of"),
        (["https://a"], "claim:issuer=b,a=x", "'b' is not the name of an [[access.issuer]] (a)"),
        (["https://a"], "issuer:b", "'b' is not the name of an [[access.issuer]] (a)"),
        (["https://a/1", "https://a/2"], "issuer:a", "2 issuers are called a; set name in [[access.issuer]]"),
    ],
)
def test_rules_about_issuers_that_are_not_there(
    issuers: Sequence[str], caller: str, mistake: str, tmp_path: Path
) -> None:
    """Such a rule would never fit, or be taken for another issuer's."""
    file = tmp_path / "mirror.toml"
    entries = "".join(f'[[access.issuer]]\nissuer = "{url}"\naudience = "m"\n' for url in issuers)
    file.write_text(f'{entries}[[access.rule]]\neffect = "allow"\ncallers = ["{caller}"]\n')
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert any(one.startswith("access.rule[1].callers[1]: ") and mistake in one for one in caught.value.mistakes)
