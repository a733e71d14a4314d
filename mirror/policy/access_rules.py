"""Which identity may do what with which repository. Pure functions of identities and rules.

The order of the rules does not matter. An action is decided by the first of these that applies:

    1. a deny rule fits                                                 refused
    2. the identity is a robot                                          allowed if the robot's own list has it
    3. an allow rule fits                                               allowed
    4. it is not a pull, or the registry is hosted                      refused
    5. another allow rule names pull and can match this registry        refused: it is for other identities or names
    6. no allow rule names pull and can match this registry             allowed to every admitted identity

So a rule about one registry changes nothing for another, and nobody may use a hosted registry until a rule allows it.

A refusal must not reveal whether a repository exists. So it is answered like a request for an unknown name, or, if the
client has not authenticated, with an authentication challenge. Both answers are the same for existing and unknown
names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from mirror.oci.authorization import CallerCredentials
from mirror.oci.reference import Repo
from mirror.policy.routing import can_match_below, compile_pattern


class Action(Enum):
    """What a rule allows or denies."""

    PULL = "pull"
    #: Upload blobs and manifests, and make new tags.
    PUSH = "push"
    #: Move a tag that exists to another manifest.
    OVERWRITE = "overwrite"
    DELETE = "delete"
    ADMIN = "admin"


class AuthMethod(Enum):
    """How an identity was authenticated."""

    ANONYMOUS = "anonymous"
    PASSWORD = "password"  # noqa: S105  # a kind, not a password
    TOKEN = "token"  # noqa: S105  # a kind, not a token
    ROBOT = "robot"
    ISSUER = "issuer"
    CERTIFICATE = "certificate"
    #: By the caller's own credentials for an upstream, which only that upstream can check.
    UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a token may be used for, at most: these actions with these repositories, and the list of all of them. The
    rules are asked in addition, at each use.
    """

    grants: frozenset[tuple[Repo, Action]] = frozenset()
    catalog: bool = False

    def covers(self, action: Action, repo: Repo | None) -> bool:
        """Whether the token may be used for this; a token for `push` also moves tags, if the rules allow it."""
        if repo is None:
            return False
        return (repo, Action.PUSH if action is Action.OVERWRITE else action) in self.grants

    def __and__(self, other: Scope) -> Scope:
        return Scope(self.grants & other.grants, self.catalog and other.catalog)

    def __str__(self) -> str:
        """As in the token specification, with the registry's name: `repository:corp/app:pull,push`."""
        actions: dict[str, set[str]] = {}
        for repo, action in self.grants:
            actions.setdefault(str(repo), set()).add(action.value)
        # `pull,push` and not `push,pull` is what clients write, and `delete` comes last
        order = [Action.PULL.value, Action.PUSH.value, Action.DELETE.value]
        texts = [f"repository:{name}:{','.join(sorted(of, key=order.index))}" for name, of in sorted(actions.items())]
        return " ".join([*texts, *(["registry:catalog:*"] if self.catalog else [])])


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller who was admitted. `name` is unique for its `method`: of an account or token, a JWT's subject."""

    name: str
    method: AuthMethod
    groups: frozenset[str] = frozenset()
    #: The caller's own credentials for an upstream, if `means` is `UPSTREAM`; never shown.
    own: CallerCredentials | None = field(default=None, repr=False)
    #: What the presented token is limited to; None: to nothing. It does not change what the rules say.
    scope: Scope | None = field(default=None, compare=False)
    #: What the identity rests on, such as a hash of the account's password hash; it holds no more once that is another.
    proof: str = field(default="", repr=False, compare=False)
    #: Seconds for which what was presented was still valid when it was read; None: it says of itself no end.
    holds_for: float | None = field(default=None, repr=False, compare=False)
    #: Of an issuer's token: the issuer's name, and the values of those of its claims that rules name.
    issuer: str = ""
    claims: frozenset[tuple[str, str]] = field(default=frozenset(), repr=False)
    #: A robot's own rules, of which one must allow what it does, beside those of the policy that deny.
    only: tuple[Rule, ...] | None = field(default=None, repr=False)

    @property
    def names(self) -> frozenset[str]:
        """The entries of a rule's `callers`, without `*` within a name, that mean this identity."""
        if self.is_anonymous:
            return frozenset({"*", "anonymous"})
        issuer = (f"issuer:{self.issuer}",) if self.issuer else ()
        return frozenset({"*", "authenticated", str(self), *issuer, *(f"group:{group}" for group in self.groups)})

    @property
    def is_anonymous(self) -> bool:
        """Whether the caller presented no credentials."""
        return self.method is AuthMethod.ANONYMOUS

    def __str__(self) -> str:
        return "anonymous" if self.is_anonymous else f"{_KINDS[self.method]}:{self.name}"


ANONYMOUS: Final = Identity("", AuthMethod.ANONYMOUS)

#: The prefix before the colon in a rule's `callers`.
_KINDS: Final = {
    AuthMethod.PASSWORD: "user",
    AuthMethod.TOKEN: "token",
    AuthMethod.ROBOT: "robot",
    AuthMethod.ISSUER: "subject",
    AuthMethod.CERTIFICATE: "certificate",
    AuthMethod.UPSTREAM: "upstream",
}
_CALLER: Final = re.compile(
    r"\*|anonymous|authenticated|(?:user|token|robot|subject|certificate|upstream|group|issuer):\S(?:.*\S)?"
)


def check_caller(text: str) -> str:
    """Return one entry of a rule's `callers` unchanged. Raises `ValueError` if it is invalid."""
    if text.startswith("claim:"):
        read_claims(text)
    elif not _CALLER.fullmatch(text):
        raise ValueError(
            f"{text!r} is none of *, anonymous, authenticated, claim:NAME=VALUE, and user, token, robot, subject,"
            " certificate, upstream, issuer or group with a colon and a name"
        )
    return text


#: A comma between two claims; the value of a claim may contain others.
_NEXT_CLAIM: Final = re.compile(r",(?=[^=,\s]+=)")


@dataclass(frozen=True, slots=True)
class Claims:
    """What an entry `claim:issuer=github,repository=acme/app,ref=refs/heads/*` asks of a token: the name of its issuer
    (empty: the only one that is configured), and claims with patterns for their values, all of which must be met.
    """

    issuer: str
    wanted: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        parts = (("issuer", self.issuer), *self.wanted) if self.issuer else self.wanted
        return "claim:" + ",".join(f"{name}={value}" for name, value in parts)


def read_claims(text: str) -> Claims:
    """Parse an entry `claim:...` of a rule's `callers`. Raises `ValueError`."""
    issuer, wanted = "", []
    for part in _NEXT_CLAIM.split(text.removeprefix("claim:")):
        name, _, value = part.partition("=")
        if not name or not value or any(character.isspace() for character in name) or value != value.strip():
            raise ValueError(f"{text!r} is not claim:NAME=VALUE, with commas between several of them")
        if name == "issuer" and issuer:
            raise ValueError(f"{text!r} names two issuers")
        if name == "issuer":
            issuer = value
        else:
            wanted.append((name, value))
    if not wanted:
        raise ValueError(f"{text!r} names no claim; for every token of an issuer, write issuer:{issuer}")
    return Claims(issuer, tuple(wanted))


@dataclass(frozen=True, slots=True)
class _ClaimTest:
    """`Claims`, compiled."""

    issuer: str
    wanted: tuple[tuple[str, re.Pattern[str]], ...]

    def is_met(self, identity: Identity) -> bool:
        return identity.issuer == self.issuer and all(
            any(name == claim and pattern.fullmatch(value) for claim, value in identity.claims)
            for name, pattern in self.wanted
        )


def _claim_test(text: str) -> _ClaimTest:
    """Raises `ValueError` if no issuer is named: a claim of one issuer says nothing about those of another."""
    claims = read_claims(text)
    if not claims.issuer:
        raise ValueError(f"{text!r} names no issuer")
    return _ClaimTest(claims.issuer, tuple((name, with_stars(value)) for name, value in claims.wanted))


def with_stars(text: str) -> re.Pattern[str]:
    """A pattern in which `*` stands for any characters, also slashes: names and claims may contain them."""
    return re.compile(".*".join(re.escape(part) for part in text.split("*")), re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the access policy.

    `callers` has entries that `check_caller` accepts; `*` within a name stands for any characters, and `claim:` entries
    name their issuer. `match` has patterns for `registry/name`, as in routes; an empty one means every repository.
    """

    allow: bool
    callers: tuple[str, ...]
    actions: frozenset[Action]
    match: tuple[str, ...] = ()
    name: str = ""
    #: The entries of `callers` without a `*`, and those with one.
    _exact: frozenset[str] = field(init=False, repr=False, compare=False)
    _names: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)
    _claims: tuple[_ClaimTest, ...] = field(init=False, repr=False, compare=False)
    _repositories: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        claims = [caller for caller in self.callers if caller.startswith("claim:")]
        named = [check_caller(caller) for caller in self.callers if caller not in claims]
        stars = [caller for caller in named if "*" in caller and caller != "*"]
        object.__setattr__(self, "_exact", frozenset(named) - frozenset(stars))
        object.__setattr__(self, "_names", tuple(map(with_stars, stars)))
        object.__setattr__(self, "_claims", tuple(map(_claim_test, claims)))
        object.__setattr__(self, "_repositories", tuple(compile_pattern(pattern) for pattern in self.match))

    def fits(self, identity: Identity, action: Action, repo: Repo | None) -> bool:
        """Whether this rule applies to the identity, action and repository.

        `repo` None means the mirror as a whole; only rules without patterns apply to that.
        """
        return action in self.actions and self._is_about(identity) and self._covers(repo)

    def _is_about(self, identity: Identity) -> bool:
        names = identity.names
        if not self._exact.isdisjoint(names) or any(test.is_met(identity) for test in self._claims):
            return True
        return any(pattern.fullmatch(name) for pattern in self._names for name in names)

    def can_cover(self, registry: str) -> bool:
        """Whether this rule can apply to a repository of the registry."""
        return not self.match or any(can_match_below(pattern, f"{registry}/") for pattern in self.match)

    def _covers(self, repo: Repo | None) -> bool:
        if not self._repositories:
            return True
        return repo is not None and any(pattern.fullmatch(str(repo)) for pattern in self._repositories)


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules. `anonymous` says whether callers without credentials are admitted at all; `hosted` has the names of
    the hosted registries. `virtual` has those of the virtual ones, whose names allow nothing: the rules about their
    members decide.
    """

    rules: tuple[Rule, ...] = ()
    anonymous: bool = True
    hosted: frozenset[str] = frozenset()
    virtual: frozenset[str] = frozenset()
    #: The rules by action and by what the names of their repositories begin with, so that few must be looked at.
    _begins: dict[tuple[Action, str], list[Rule]] = field(init=False, repr=False, compare=False)
    #: Patterns that together match the registries for which rules say who may pull.
    _pulls: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pulls = [rule for rule in self.rules if rule.allow and Action.PULL in rule.actions]
        object.__setattr__(self, "_pulls", frozenset(_head(one) for rule in pulls for one in rule.match or ("**",)))
        begins: dict[tuple[Action, str], list[Rule]] = {}
        for rule in self.rules:
            for beginning in dict.fromkeys(map(_beginning, rule.match or ("**",))):
                for action in rule.actions:
                    begins.setdefault((action, beginning), []).append(rule)
        object.__setattr__(self, "_begins", begins)

    def allows(self, identity: Identity, action: Action, repo: Repo | None) -> bool:
        """Whether the identity may do this with the repository (None: the mirror as a whole)."""
        if identity.is_anonymous and not self.anonymous:
            return False
        if repo is not None and repo.registry in self.virtual:
            return False
        fitting = [rule for rule in self.candidates(action, repo) if rule.fits(identity, action, repo)]
        if identity.only is not None:
            listed = any(rule.fits(identity, action, repo) for rule in identity.only)
            return listed and all(rule.allow for rule in fitting)
        if fitting:
            return all(rule.allow for rule in fitting)
        return action is Action.PULL and repo is not None and self.is_open(repo.registry)

    def may_anybody(self, action: Action, registry: str) -> bool:
        """Whether there can be a caller who may do this with some repository of the registry, as far as the rules
        that allow say. Rules that deny are not looked at.
        """
        for rule in self.rules:
            reachable = self.anonymous or any(caller != "anonymous" for caller in rule.callers)
            if rule.allow and action in rule.actions and reachable and rule.can_cover(registry):
                return True
        return action is Action.PULL and self.is_open(registry)

    def is_open(self, registry: str) -> bool:
        """Whether every admitted identity may pull from this registry, if no rule fits."""
        if registry in self.hosted:
            return False
        return not any(can_match_below(pattern, f"{registry}/") for pattern in self._pulls)

    def candidates(self, action: Action, repo: Repo | None) -> Iterator[Rule]:
        """The rules that may fit, some of them more than once."""
        for beginning in _beginnings(repo):
            yield from self._begins.get((action, beginning), ())


def _head(pattern: str) -> str:
    """A pattern for the same registries, with as little as possible about the names in them: many have the same."""
    first, slash, rest = pattern.partition("/")
    if "**" in first:
        return pattern[: pattern.index("**") + 2]
    return f"{first}/*" if slash and rest else pattern


def _beginning(pattern: str) -> str:
    """What every name that this pattern matches begins with: at most two whole components, or the whole name if the
    pattern matches only one name.
    """
    literal = re.split(r"[*?]", pattern, maxsplit=1)[0]
    if literal == pattern:
        return pattern
    components = literal.split("/")[:-1][:2]
    return "".join(f"{component}/" for component in components)


def _beginnings(repo: Repo | None) -> tuple[str, ...]:
    """The results of `_beginning` for all patterns that can match the repository."""
    if repo is None:
        return ("",)
    first, slash, _ = repo.name.partition("/")
    return ("", f"{repo.registry}/", f"{repo.registry}/{first}{slash}", str(repo))[: 4 if slash else 3]


def actions(names: Iterable[str]) -> frozenset[Action]:
    """The actions that a configuration names; `write` is `push` and `overwrite`. Raises `ValueError`."""
    return frozenset(action for name in names for action in (_WRITE if name == "write" else (Action(name),)))


_WRITE: Final = (Action.PUSH, Action.OVERWRITE)
