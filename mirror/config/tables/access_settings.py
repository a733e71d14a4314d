"""The settings that say who may use the mirror."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from mirror.config import values
from mirror.config.section import Section
from mirror.config.values import Listed, Seconds
from mirror.policy.access_rules import check_caller


class TokenSettings(Section):
    """`[[access.token]]`: a token that lets its bearer in."""

    name: str = Field(min_length=1, max_length=200, description="The token's name in rules and logs.")
    token: SecretStr | None = Field(None, description="The token itself.")
    token_file: Path | None = Field(None, description="File that contains the token.")
    groups: list[str] = Field([], description="Groups of the token's bearer, for rules.")

    @model_validator(mode="after")
    def _one(self) -> TokenSettings:
        if (self.token is None) == (self.token_file is None):
            raise ValueError("needs either token or token_file")
        return self


class IssuerSettings(Section):
    """`[[access.issuer]]`: an OpenID Connect issuer, whose JSON web tokens let their bearers in."""

    issuer: Annotated[str, AfterValidator(values.url)] = Field(description="The `iss` of its tokens.")
    name: Annotated[str, AfterValidator(values.issuer_name)] = Field(
        "", description="The issuer's name in rules; the host in `issuer` if not set."
    )
    audience: str = Field(min_length=1, description="The `aud` of tokens for this mirror.")
    keys_url: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="URL of the issuer's keys (JWKS); from its discovery document if not set."
    )
    keys_file: Path | None = Field(None, description="File with the issuer's keys, instead of a URL.")
    issuer_ca_file: Path | None = Field(
        None, description="PEM file of the authorities to trust for connections to the issuer."
    )
    bearer_file: Path | None = Field(None, description="File with a token that is sent when the keys are fetched.")
    name_claim: str = Field("sub", description="The claim that contains the name.")
    groups_claim: str = Field("groups", description="The claim that contains the groups.")
    prefix: str = Field("", description="Put before names and groups, to keep issuers apart.")

    @property
    def title(self) -> str:
        """The issuer's name in rules."""
        return self.name or (urlsplit(self.issuer).hostname or "")


class RuleSettings(Section):
    """`[[access.rule]]`: who may do what; a rule that denies takes precedence over all that allow."""

    effect: Literal["allow", "deny"] = Field(description="Whether the rule allows or denies.")
    callers: list[Annotated[str, AfterValidator(check_caller)]] = Field(
        min_length=1,
        description="*, anonymous, authenticated, user:…, token:…, robot:…, subject:…, certificate:…, upstream:…, "
        "issuer:…, group:…, claim:NAME=VALUE,…",
    )
    actions: list[Literal["pull", "push", "overwrite", "write", "delete", "admin"]] = Field(
        ["pull"],
        min_length=1,
        description="The actions that the rule allows or denies: pull, push (new tags), overwrite (move a tag), "
        "write (both), delete, admin.",
    )
    repositories: list[Annotated[str, AfterValidator(values.route_pattern)]] = Field(
        [], description="Patterns as in routes; none: all repositories."
    )


class AccessSettings(Section):
    """`[access]`: who may use the mirror."""

    anonymous: bool = Field(True, description="Whether clients that do not log in are let in.")
    htpasswd: Path | None = Field(None, description="Accounts: an htpasswd file with bcrypt hashes.")
    groups: dict[str, Listed[str]] = Field({}, description='Groups of accounts, for rules: ops = ["alice"].')
    client_ca: Path | None = Field(
        None, description="PEM file; client certificates issued by these authorities let their holders in."
    )
    realm: Annotated[str, AfterValidator(values.url)] | None = Field(
        None, description="URL of the token endpoint as clients reach it; derived from the Host header if not set."
    )
    token_lifetime: Seconds = Field(300.0, ge=60, description="How long a token that the mirror issues is valid.")
    token_key_file: Path | None = Field(
        None,
        description=(
            "File with the key of the mirror's own tokens, to be shared by replicas; created beside the "
            "store if not set."
        ),
    )
    verified_for: Seconds = Field(
        300.0,
        gt=0,
        description='How long an upstream\'s answer about a caller is valid, for upstreams with access = "verify".',
    )
    verified_while_down: Seconds = Field(3600.0, description="The same while the upstream is down.")
    audit_log: Path | None = Field(
        None, description="File to which a JSON line is written for each access and each refusal."
    )
    token: list[TokenSettings] = Field([])
    issuer: list[IssuerSettings] = Field([])
    rule: list[RuleSettings] = Field([])

    @property
    def has_no_login(self) -> bool:
        """True if there is no way to log in."""
        return self.htpasswd is None and self.client_ca is None and not self.token and not self.issuer

    @property
    def has_admins(self) -> bool:
        """True if a rule lets callers that have logged in administer the mirror."""
        return any(
            rule.effect == "allow"
            and "admin" in rule.actions
            and not rule.repositories
            and any(caller != "anonymous" for caller in rule.callers)
            for rule in self.rule
        )

    @property
    def is_open(self) -> bool:
        """True if everybody may pull everything from other registries than hosted ones, so that callers need not be
        identified there.
        """
        return self.has_no_login and self.anonymous and not self.rule
