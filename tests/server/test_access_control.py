"""Who may do what, and what a caller is told: the access control by itself, without a mirror around it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from cryptography.fernet import Fernet, MultiFernet

from mirror.access.authentication import Authentication
from mirror.access.own_tokens import IssuedTokens
from mirror.access.static_tokens import StaticToken, StaticTokens
from mirror.errors import Denied, NameUnknown, RequestError, Unauthorized
from mirror.oci.authorization import CallerCredentials
from mirror.oci.reference import Repo
from mirror.oci.request import RegistryRequest, parse_request
from mirror.policy.access_rules import ANONYMOUS, Action, Identity, Policy, Rule, Scope, actions
from mirror.policy.routing import Registry, RoutingTable
from mirror.policy.virtual.members import VirtualMember, VirtualRules
from mirror.repository.protocol import Readable
from mirror.server.registry.access_control import AccessControl, MountSource, RegistryPusher
from mirror.server.registry.pull import RequestRecord
from tests.support.clock import Clock

_APP = Repo("corp", "team/app")
_BASE = Repo("docker.io", "library/alpine")
_TABLE = RoutingTable.build(
    [
        Registry("docker.io", library=True),
        Registry("ghcr.io", hosts=("ghcr.internal",)),
        Registry("corp", hosts=("corp.internal",), hosted=True),
        Registry("all", members=("corp", "docker.io")),
    ],
    "docker.io",
)
#: Which of the tokens below may do what with corp/team/app.
_RULES = {
    "reader": "pull",
    "pusher": "pull,push",
    "writer": "pull,write",
    "dropbox": "push",
    "cleaner": "pull,delete",
    "owner": "pull,write,delete",
}
_BLOB = "sha256:" + "0" * 64


class _Repository:
    """All that the access control looks at."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo


class _World:
    """An access control with one token for each name in `_RULES`, and for `stranger`."""

    def __init__(
        self,
        *,
        rules: Iterable[Rule] = (),
        realm: str | None = None,
        anonymous: bool = True,
        virtual: Mapping[str, VirtualRules] | None = None,
    ) -> None:
        self.clock = Clock()
        given = [
            Rule(True, (f"token:{name}",), actions(may.split(",")), ("corp/team/**",)) for name, may in _RULES.items()
        ]
        self.issued = IssuedTokens(MultiFernet([Fernet(Fernet.generate_key())]), lifetime=300.0, now=self.clock)
        tokens = StaticTokens(StaticToken(name, f"secret-{name}") for name in (*_RULES, "stranger"))
        self.access = AccessControl(
            Authentication([self.issued, tokens], now=self.clock),
            Policy((*given, *rules), hosted=frozenset({"corp"}), anonymous=anonymous, virtual=frozenset(virtual or {})),
            self.issued,
            _TABLE,
            repository_of=lambda repo: cast(Readable, _Repository(repo)),
            virtual=virtual,
            realm=realm,
        )

    async def login(self, name: str, query: str = "", **headers: str) -> tuple[str, dict[str, Any]]:
        """A token of ours, and the whole answer of the token endpoint."""
        request = _request("GET", f"/token{query}", name, **headers)
        answer = await self.access.token(request, RequestRecord())
        body = json.loads(cast(bytes, answer.body))
        return body["token"], body

    async def ask(self, method: str, target: str, caller: str, **headers: str) -> RegistryPusher | None:
        """Judge a request as the handler does; the pusher, if it is none for a pull."""
        request, wanted = _request(method, target, caller, **headers), parse_request(target)
        record = RequestRecord()
        identity = await self.access.enter(request, wanted, record)
        repo = _TABLE.route(wanted.name, host=request.headers["Host"], ns=wanted.query.get("ns"))
        name = wanted.query.get("from")
        source = None if name is None else _TABLE.route(name)
        needed = _actions(method, wanted)
        if needed == [Action.PULL]:
            with await self.access.admit(identity, cast(Readable, _Repository(repo)), request, wanted, record):
                return None
        mounted = None if source is None else MountSource(source, (source,))
        return self.access.authorize(identity, needed, repo, request, wanted, source=mounted)

    async def answer(self, method: str, target: str, caller: str, **headers: str) -> str:
        """What the caller is told, in short."""
        try:
            await self.ask(method, target, caller, **headers)
        except Unauthorized as error:
            return f"401 {error.challenge}"
        except (Denied, NameUnknown) as error:
            return f"{'403' if isinstance(error, Denied) else '404'} {error}"
        return "yes"


def _actions(method: str, wanted: RegistryRequest) -> list[Action]:
    if method in ("GET", "HEAD"):
        return [Action.PULL]
    return [Action.DELETE if method == "DELETE" else Action.PUSH]


def _request(method: str, target: str, caller: str, **headers: str) -> web.BaseRequest:
    """`caller` is the name of a token of the configuration, a token of ours, or empty."""
    sent = {"Host": "mirror:5000", **headers}
    if caller:
        secret = caller if caller.startswith("mirror-1.") else f"secret-{caller}"
        sent["Authorization"] = "Basic " + base64.b64encode(f"x:{secret}".encode()).decode()
    return make_mocked_request(method, target, headers=sent)


_TARGETS = {
    "pull": ("GET", "/v2/corp/team/app/manifests/1"),
    "push": ("POST", "/v2/corp/team/app/blobs/uploads/"),
    "delete": ("DELETE", "/v2/corp/team/app/manifests/1"),
}


@pytest.mark.parametrize("name", [*_RULES, "stranger", ""])
@pytest.mark.parametrize("verb", _TARGETS)
async def test_who_may_what(name: str, verb: str) -> None:
    """Who may do it: yes. Who may do something else here: denied, but a pull is answered like that of an unknown name.
    Who may do nothing: as for an unknown name; and who has not logged in is asked to.
    """
    world = _World()
    method, target = _TARGETS[verb]
    answer = await world.answer(method, target, name)
    may = {action.value for action in actions(_RULES.get(name, "pull").split(","))} if name in _RULES else set()
    if verb in may:
        assert answer == "yes"
    elif not name:
        scope = {"pull": "pull", "push": "pull,push", "delete": "delete"}[verb]
        expected = f'Bearer realm="http://mirror:5000/token",service="mirror",scope="repository:corp/team/app:{scope}"'
        assert answer == f"401 {expected}"
    elif may and verb != "pull":
        assert answer.startswith("403 token:")
    else:
        assert answer == "404 no such repository"
        # the same for a name that nobody has ever heard of
        assert await world.answer(method, target.replace("corp/team/app", "corp/no/such"), name) == answer


async def test_everybody_may_pull_and_who_pushes_must_log_in() -> None:
    """With anonymous pulls, a push by nobody in particular asks for what it needs, and `/v2/` asks as ever."""
    world = _World(rules=[Rule(True, ("*",), actions(["pull"]), ("corp/**",))])
    assert await world.answer("GET", "/v2/corp/team/app/manifests/1", "") == "yes"
    answer = await world.answer("PUT", "/v2/corp/team/app/manifests/1", "")
    assert answer.endswith('scope="repository:corp/team/app:pull,push"')
    assert (await world.answer("PUT", "/v2/corp/team/app/manifests/1", "stranger")).startswith("403 token:stranger may")
    with pytest.raises(Unauthorized):
        await world.access.enter(_request("GET", "/v2/", ""), parse_request("/v2/"), RequestRecord())


async def test_a_mount_asks_for_both_repositories() -> None:
    """The challenge names both; a token for the target alone is not enough if the caller may pull the source."""
    world = _World()
    target = f"/v2/corp/team/app/blobs/uploads/?mount={_BLOB}&from=corp/team/base"
    scopes = "repository:corp/team/app:pull,push repository:corp/team/base:pull"
    assert (await world.answer("POST", target, "")).endswith(f'scope="{scopes}"')
    narrow, _ = await world.login("pusher", "?scope=repository:corp/team/app:pull,push")
    assert (await world.answer("POST", target, narrow)).endswith(f'scope="{scopes}",error="insufficient_scope"')
    wide, _ = await world.login("pusher", f"?scope={scopes.replace(' ', '%20')}")
    assert await world.answer("POST", target, wide) == "yes"
    # a source that the caller may not pull makes no difference: what it has is not looked at
    hidden = target.replace("corp/team/base", "corp/secret/base")
    pusher = await world.ask("POST", hidden, narrow)
    assert pusher is not None
    assert not await pusher.may_pull(Repo("corp", "secret/base"))
    assert await pusher.may_pull(_BASE)


@pytest.mark.parametrize(
    ("query", "granted"),
    [
        ("", None),
        ("?scope=", None),
        ("?account=x&client_id=docker&offline_token=true&service=mirror", None),
        ("?scope=repository:corp/team/app:pull,push", "repository:corp/team/app:pull,push"),
        ("?scope=repository:corp/team/app:*", "repository:corp/team/app:pull,push"),
        ("?scope=repository:corp/team/app:delete", ""),
        ("?scope=repository(plugin):corp/team/app:pull", "repository:corp/team/app:pull"),
        (
            "?scope=repository:corp/team/app:push&scope=repository:alpine:pull,push",
            "repository:corp/team/app:push repository:docker.io/library/alpine:pull",
        ),
        ("?scope=repository:alpine:pull%20repository:corp/other:push", "repository:docker.io/library/alpine:pull"),
        ("?scope=registry:catalog:*", "registry:catalog:*"),
        ("?scope=repository:a/b:pull&ns=ghcr.io", "repository:ghcr.io/a/b:pull"),
        ("?scope=repository:../../corp:pull", ""),
        ("?scope=repository:corp/team/app", ""),
        ("?scope=repository:team/app:pull&ns=no.such", ""),
        ("?scope=repository:corp/team/app:admin,overwrite", ""),
        ("?scope=%00", ""),
    ],
)
async def test_a_token_is_limited_to_what_was_asked_for_and_is_allowed(query: str, granted: str | None) -> None:
    """Several parameters, several in one, `*`; what is unknown or not allowed is left out, never widened."""
    world = _World()
    _, answer = await world.login("pusher", query)
    assert answer.get("scope") == granted


async def test_too_many_scopes() -> None:
    """A limit, with a message."""
    world = _World()
    for query in ("&".join(["scope=a"] * 200), "scope=" + "%20".join(["a"] * 200)):
        with pytest.raises(RequestError, match=r"too many query parameters|more than 100 scopes"):
            await world.login("pusher", f"?{query}")


async def test_a_token_of_one_repository_is_none_for_another() -> None:
    """The rules would allow it: the client is asked for a token that is for it. Where they do not, nothing is said."""
    world = _World()
    token, _ = await world.login("owner", "?scope=repository:corp/team/app:pull,push")
    assert await world.answer("GET", "/v2/corp/team/app/manifests/1", token) == "yes"
    assert await world.answer("PUT", "/v2/corp/team/app/manifests/1", token) == "yes"
    for method, target, scope in [
        ("GET", "/v2/corp/team/other/manifests/1", "corp/team/other:pull"),
        ("PUT", "/v2/corp/team/other/manifests/1", "corp/team/other:pull,push"),
        ("DELETE", "/v2/corp/team/app/manifests/1", "corp/team/app:delete"),
        ("GET", "/v2/library/alpine/manifests/1", "library/alpine:pull"),
    ]:
        answer = await world.answer(method, target, token)
        assert answer.endswith(f',scope="repository:{scope}",error="insufficient_scope"')
    assert await world.answer("PUT", "/v2/corp/secret/manifests/1", token) == "404 no such repository"
    # names that mean another repository here: by host, by `ns`, by the path
    assert (await world.answer("GET", "/v2/team/app/manifests/1", token)).endswith('error="insufficient_scope"')
    assert await world.answer("GET", "/v2/team/app/manifests/1?ns=corp", token) == "yes"
    assert await world.answer("GET", "/v2/team/app/manifests/1", token, Host="corp.internal") == "yes"
    other = await world.answer("GET", "/v2/team/app/manifests/1?ns=ghcr.io", token)
    assert other.startswith('401 Bearer realm="http://mirror:5000/token?ns=ghcr.io"')


@pytest.mark.parametrize(
    ("target", "host", "realm", "expected"),
    [
        ("/v2/a/b/manifests/1", "mirror:5000", None, "http://mirror:5000/token"),
        ("/v2/a/b/manifests/1?ns=ghcr.io", "mirror:5000", None, "http://mirror:5000/token?ns=ghcr.io"),
        ("/v2/a/b/manifests/1?ns=no.such", "mirror:5000", None, "http://mirror:5000/token"),
        ('/v2/a/b/manifests/1?ns=ghcr.io"x', "mirror:5000", None, "http://mirror:5000/token"),
        ("/v2/a/b/manifests/1", "ghcr.internal", None, "http://ghcr.internal/token"),
        ("/v2/a/b/manifests/1", "ghcr.internal", "https://m/token", "https://m/token?ns=ghcr.io"),
        ("/v2/a/b/manifests/1", "other", "https://m/token", "https://m/token"),
    ],
)
async def test_the_token_endpoint_knows_which_registry_a_name_is_of(
    target: str, host: str, realm: str | None, expected: str
) -> None:
    """The scope that a client asks for is the name in its path; the registry may have been named elsewhere."""
    world = _World(realm=realm, anonymous=False)
    challenge = await world.answer("GET", target, "", Host=host) if "no.such" not in target else ""
    if not challenge:
        with pytest.raises(Unauthorized) as caught:
            await world.access.enter(_request("GET", target, "", Host=host), parse_request(target), RequestRecord())
        challenge = f"401 {caught.value.challenge}"
    assert f'realm="{expected}"' in challenge
    query = expected.partition("?")[2]
    _, answer = await world.login("reader", f"?{query}&scope=repository:a/b:pull", Host=host if realm is None else "m")
    assert answer["scope"] == f"repository:{_TABLE.route('a/b', host=host, ns=query[3:] or None)}:pull"


async def test_a_token_does_not_renew_or_widen_itself() -> None:
    """A narrower token from a wider one ends when that one ends; a wider one from a narrower does not exist."""
    world = _World()
    wide, _ = await world.login("owner")
    world.clock.time += 200
    narrow, answer = await world.login(wide, "?scope=repository:corp/team/app:pull")
    assert (answer["scope"], answer["expires_in"]) == ("repository:corp/team/app:pull", 100)
    same, answer = await world.login(narrow, "?scope=repository:corp/team/app:pull,push%20repository:alpine:pull")
    assert (same, answer["scope"]) == (narrow, "repository:corp/team/app:pull")
    assert (await world.login(narrow))[0] == narrow
    assert await world.issued.identify(CallerCredentials(bearer=narrow)) is not None
    world.clock.time += 101
    assert await world.issued.identify(CallerCredentials(bearer=narrow)) is None


async def test_the_rules_are_asked_at_each_use() -> None:
    """A scope gives nothing: a token from before the rules changed may do what they say now."""
    before, after = _World(), _World(rules=[Rule(False, ("token:owner",), actions(["push"]))])
    after.issued._keys = before.issued._keys
    token, answer = await before.login("owner", "?scope=repository:corp/team/app:pull,push")
    assert answer["scope"] == "repository:corp/team/app:pull,push"
    assert await before.answer("PUT", "/v2/corp/team/app/manifests/1", token) == "yes"
    assert (await after.answer("PUT", "/v2/corp/team/app/manifests/1", token)).startswith(
        "403 token:owner may not push"
    )


async def test_a_limited_token_lists_and_administers_only_if_it_is_for_that() -> None:
    """The list of all repositories has a scope of its own; there is none for the administration."""
    world = _World(rules=[Rule(True, ("token:owner",), actions(["admin"]))])
    wanted = parse_request("/v2/_catalog")
    token, _ = await world.login("owner", "?scope=repository:corp/team/app:pull")
    with pytest.raises(Unauthorized) as caught:
        await world.access.enter(_request("GET", "/v2/_catalog", token), wanted, RequestRecord())
    assert 'scope="registry:catalog:*",error="insufficient_scope"' in str(caught.value.challenge)
    token, _ = await world.login("owner", "?scope=registry:catalog:*")
    identity = await world.access.enter(_request("GET", "/v2/_catalog", token), wanted, RequestRecord())
    assert world.access.may_see(identity, _APP)
    with pytest.raises(Denied):
        await world.access.administrator(_request("GET", "/admin", token), lambda _: None)
    token, _ = await world.login("owner")
    await world.access.administrator(_request("GET", "/admin", token), lambda _: None)


async def test_who_may_push_but_not_pull() -> None:
    """The pusher of a HEAD, for reservations: none for callers who may not push, or whose token is not for pushes."""
    world = _World()

    async def pusher(caller: str) -> RegistryPusher | None:
        target = f"/v2/corp/team/app/blobs/{_BLOB}"
        request, wanted = _request("HEAD", target, caller), parse_request(target)
        identity = await world.access.enter(request, wanted, RequestRecord())
        return world.access.pusher(identity, _APP, request, wanted)

    found = await pusher("dropbox")
    assert found is not None
    assert found.name == "token:dropbox"
    assert not found.may(Action.PULL, _APP)
    # the base image is not in the scope of the token, and is looked at all the same: the caller may pull it
    token, _ = await world.login("dropbox", "?scope=repository:corp/team/app:pull,push")
    found = await pusher(token)
    assert found is not None
    assert found.may(Action.PULL, _BASE)
    assert await pusher("reader") is None
    assert await pusher((await world.login("pusher", "?scope=repository:corp/team/app:pull"))[0]) is None


def test_a_scope_in_words() -> None:
    """As the audit log shows it; moving a tag is part of a push."""
    grants = frozenset({(_APP, Action.PUSH), (_APP, Action.DELETE), (_APP, Action.PULL), (_BASE, Action.PULL)})
    scope = Scope(grants, catalog=True)
    assert (
        str(scope)
        == "repository:corp/team/app:pull,push,delete repository:docker.io/library/alpine:pull registry:catalog:*"
    )
    assert scope.covers(Action.OVERWRITE, _APP)
    assert not scope.covers(Action.OVERWRITE, _BASE)
    assert not scope.covers(Action.ADMIN, None)


async def test_the_record_shows_the_scope() -> None:
    """For the audit log: of the token that is used, and of the one that is issued."""
    world = _World()
    record = RequestRecord()
    await world.access.token(_request("GET", "/token?scope=repository:corp/team/app:pull", "reader"), record)
    assert (record.caller, record.scope) == ("token:reader", "repository:corp/team/app:pull")
    token, _ = await world.login("reader", "?scope=repository:corp/team/app:pull")
    record = RequestRecord()
    identity: Identity = await world.access.enter(_request("GET", "/v2/", token), parse_request("/v2/"), record)
    assert str(identity.scope) == record.scope == "repository:corp/team/app:pull"


async def test_names_of_virtual_repositories_are_allowed_by_members_alone() -> None:
    """Rules for everything, and for the virtual name, allow nothing with it: for each question that can be asked."""
    virtual = VirtualRules(
        "all", (VirtualMember("corp", hosted=True), VirtualMember("docker.io", library=True)), "corp"
    )
    everything = [
        Rule(True, ("*",), frozenset(Action), ()),
        Rule(True, ("*",), frozenset(Action), ("all/**",)),
        Rule(False, ("token:reader",), frozenset({Action.PULL}), ("docker.io/**",)),
    ]
    gate = _World(rules=everything, virtual={"all": virtual})
    asked, member = Repo("all", "team/app"), Repo("corp", "team/app")
    request, wanted = (
        _request("GET", "/v2/all/team/app/manifests/1", "reader"),
        parse_request("/v2/all/team/app/tags/list"),
    )
    identity = await gate.access.enter(request, wanted, RequestRecord())
    for who in (identity, ANONYMOUS):
        for action in Action:
            assert not gate.access.allows(who, action, asked)
            assert not gate.access.may(who, action, asked)
        assert not gate.access.may_see(who, asked)
        assert gate.access.pusher(who, asked, request, wanted) is None
        assert not await gate.access.may_pull(who, asked, request, wanted)
        with pytest.raises((NameUnknown, Unauthorized)):
            await gate.access.admit(who, cast(Readable, _Repository(asked)), request, wanted, RequestRecord())
        with pytest.raises((NameUnknown, Unauthorized)):
            gate.access.authorize(who, [Action.PUSH], asked, request, wanted)
        gate.access.refuse_stranger(who, asked, request, wanted)
    assert gate.access.admits_to_member(identity, member, asked, request, wanted)
    assert not gate.access.admits_to_member(identity, Repo("docker.io", "team/app"), asked, request, wanted)
    assert gate.access.admits_to_member(ANONYMOUS, Repo("docker.io", "team/app"), asked, request, wanted)


async def test_tokens_for_virtual_names() -> None:
    """A scope names what the client asks for: a token for one name is none for another that means the same."""
    virtual = VirtualRules(
        "all", (VirtualMember("corp", hosted=True), VirtualMember("docker.io", library=True)), "corp"
    )
    gate = _World(virtual={"all": virtual})
    token, body = await gate.login("pusher", "?scope=repository:all/team/app:pull,push,delete")
    assert body["scope"] == "repository:all/team/app:pull,push"
    request, wanted = _request("GET", "/v2/all/team/app/tags/list", token), parse_request("/v2/all/team/app/tags/list")
    identity = await gate.access.enter(request, wanted, RequestRecord())
    asked, member = Repo("all", "team/app"), Repo("corp", "team/app")
    assert gate.access.admits_to_member(identity, member, asked, request, wanted)
    assert gate.access.authorize(identity, [Action.PUSH], member, request, wanted, asked=asked)
    for named in (member, Repo("all", "team/other")):
        with pytest.raises(Unauthorized, match="scope"):
            gate.access.admits_to_member(identity, member, named, request, wanted)
        with pytest.raises(Unauthorized, match="scope"):
            gate.access.authorize(identity, [Action.PUSH], member, request, wanted, asked=named)
    source = MountSource(Repo("all", "team/base"), (Repo("corp", "team/base"),))
    with pytest.raises(Unauthorized, match="scope"):
        gate.access.authorize(identity, [Action.PUSH], member, request, wanted, asked=asked, source=source)
    # nothing is granted of what no member allows
    _, body = await gate.login("reader", "?scope=repository:all/team/app:pull,push")
    assert body["scope"] == "repository:all/team/app:pull"
    _, body = await gate.login("stranger", "?scope=repository:all/team/app:push")
    assert body["scope"] == ""
