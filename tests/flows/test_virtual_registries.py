"""One name for several registries: who answers, with what rights, and where pushes go."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from mirror.errors import RequestError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from tests.support.fake_registry import FakeRegistry, status
from tests.support.live_mirror import Got, LiveMirror, noise
from tests.support.push_client import OPEN, PushClient, descriptor, document, hosting_mirror

ALL: Final = {"name": "all", "members": ["corp", "docker.io", "quay.io"], "writable": "corp"}
_PULL: Final = {"effect": "allow", "callers": ["*"], "actions": ["pull"], "repositories": ["corp/**"]}
_TOKENS: Final = {"token": [{"name": name, "token": f"s-{name}"} for name in ("in", "out")]}


@pytest.fixture
def hub() -> Iterator[FakeRegistry]:
    """The first upstream."""
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def quay() -> Iterator[FakeRegistry]:
    """The second one."""
    with FakeRegistry() as registry:
        yield registry


@asynccontextmanager
async def _virtual_mirror(
    root: Path,
    hub: FakeRegistry,
    quay: FakeRegistry,
    *,
    virtual: Mapping[str, Any] | None = None,
    rules: Sequence[Mapping[str, Any]] = (OPEN,),
    **more: Any,
) -> AsyncIterator[LiveMirror]:
    """Hosts `corp`, mirrors two upstreams, and has the virtual registry `all`."""
    upstreams: dict[str, Any] = {"docker.io": hub.url, "quay.io": quay.url, **more.pop("upstreams", {})}
    tables = [{**ALL, **(virtual or {})}]
    async with hosting_mirror(root, rules=rules, upstreams=upstreams, virtual=tables, **more) as mirror:
        yield mirror


def _as(name: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"x:s-{name}".encode()).decode()}


def _digest(answer: Got) -> str | None:
    return answer.headers.get("Docker-Content-Digest")


# ------------------------------------------------------------------------------------------------------ who answers


async def test_who_answers(tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry) -> None:
    """The hosted member alone for a name that it has; else the upstreams in order, and only a 404 leads to the next."""
    hub.add_image("team/app", "v1", [b"the hub's"])
    hub.add_image("team/app", "v2", [b"the hub's"])
    both = hub.add_image("org/both", "v1", [b"from the hub"])
    quay.add_image("org/both", "v1", [b"from quay"])
    later = quay.add_image("org/both", "v2", [b"only at quay"])
    only = quay.add_image("org/only", "v1", [b"only there"])
    async with _virtual_mirror(tmp_path, hub, quay) as mirror:
        ours = Digest.of(await PushClient(mirror, "corp/team/app").push_image("v1", b"ours"))
        for method in ("GET", "HEAD"):
            assert _digest(await mirror.ask("/v2/all/team/app/manifests/v1", method=method)) == str(ours)
            assert (await mirror.ask("/v2/all/team/app/manifests/v2", method=method)).status == 404
            for name, tag, digest in (("both", "v1", both), ("both", "v2", later), ("only", "v1", only)):
                assert _digest(await mirror.ask(f"/v2/all/org/{name}/manifests/{tag}", method=method)) == str(digest)
        assert not [request for request in hub.requests if "team/app" in request.target]
        for name, digest, layer in (
            ("both", both, b"from the hub"),
            ("both", later, b"only at quay"),
            ("only", only, b"only there"),
        ):
            assert (await mirror.ask(f"/v2/all/org/{name}/manifests/{digest}")).status == 200
            assert (await mirror.ask(f"/v2/all/org/{name}/blobs/{Digest.of(layer)}")).body == layer
        assert (await mirror.ask("/v2/all/org/neither/manifests/v1")).status == 404


async def test_144_an_error_is_no_absence(tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry) -> None:
    """For a tag, a member that cannot answer is the answer; for a digest, another member may have the content. 404 only
    if all said so.
    """
    digest = quay.add_image("org/app", "v1", [b"a layer"])
    async with _virtual_mirror(tmp_path, hub, quay) as mirror:
        for code in (500, 503, 429, 502):
            hub.fail("manifests", status(code), times=1000)
            answer = await mirror.ask("/v2/all/org/app/manifests/v1")
            assert answer.status in (429, 502, 503)
            assert (await mirror.ask(f"/v2/all/org/app/manifests/{digest}")).status == 200
            absent = await mirror.ask(f"/v2/all/org/app/manifests/{Digest.of(b'absent')}")
            assert absent.status == answer.status
            hub.heal()
            mirror.clock.forward(60)
        assert (await mirror.ask("/v2/all/org/app/manifests/v1")).status == 200


async def test_a_digest_goes_to_the_member_that_gave_the_tag(
    tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry
) -> None:
    """The first member is not asked for manifests and layers that it cannot have; nor after a restart."""
    child = quay.add_image("org/app", None, [b"a layer", b"another"])
    digest = quay.add_index("org/app", "v1", [child])
    async with _virtual_mirror(tmp_path, hub, quay) as mirror:
        await mirror.ask("/v2/all/org/app/manifests/v1", method="HEAD")
        assert (await mirror.ask("/v2/all/org/app/manifests/v1")).status == 200
        hub.forget()
        assert (await mirror.ask(f"/v2/all/org/app/manifests/{digest}")).status == 200
        assert (await mirror.ask(f"/v2/all/org/app/manifests/{child}")).status == 200
        assert (await mirror.ask(f"/v2/all/org/app/blobs/{Digest.of(b'a layer')}")).body == b"a layer"
        await mirror.idle()
        assert hub.requests == []
    async with _virtual_mirror(tmp_path, hub, quay) as mirror:
        for content in (b"a layer", b"another"):
            assert (await mirror.ask(f"/v2/all/org/app/blobs/{Digest.of(content)}")).body == content
        assert hub.requests == []


async def test_a_hit_asks_nobody(tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry) -> None:
    """Neither the member that has it, nor, for a while, the member before that does not."""
    digest = quay.add_image("org/app", "v1", [b"a layer"])
    async with _virtual_mirror(tmp_path, hub, quay) as mirror:
        targets = [f"/v2/all/org/app/{what}" for what in ("manifests/v1", f"manifests/{digest}")]
        for target in targets:
            assert (await mirror.ask(target)).status == 200
        hub.forget()
        quay.forget()
        for target in targets * 3:
            assert (await mirror.ask(target)).cache == "hit"
        assert [*hub.requests, *quay.requests] == []
        mirror.clock.forward(11)
        hub.add_image("org/app", "v1", [b"now the first has it"])
        assert _digest(await mirror.ask(targets[0])) != str(digest)


@pytest.mark.parametrize("account", [False, True])
async def test_a_refusal(tmp_path: Path, account: bool, quay: FakeRegistry) -> None:
    """It means "not found" at a registry that is asked without an account, or if the configuration says so; but not for
    a repository that the mirror has content of.
    """
    quay.add_image("org/app", "v1", [b"a layer"])
    with FakeRegistry(tokens=account, users={"mirror": "word"}) as hub:
        hub.rights = {"mirror": {"org/known"}, "": {"org/known"}}
        hub.add_image("org/known", "v1", [b"known"])
        quay.add_image("org/known", "v1", [b"another image"])
        login = {"username": "mirror", "password": "word"} if account else {}
        if not account:
            hub.users = {}
        upstreams = {"docker.io": {"url": hub.url, **login}}
        for absent in ([], ["docker.io"]):
            virtual = {"refusal_means_absent": absent}
            root = tmp_path / str(len(absent))
            async with _virtual_mirror(root, hub, quay, upstreams=upstreams, virtual=virtual) as mirror:
                assert (await mirror.ask("/v2/all/org/known/manifests/v1")).status == 200
                # from now on, it refuses everything
                users, hub.users, rights, hub.rights = (
                    hub.users,
                    {"mirror": "word"},
                    hub.rights,
                    {"mirror": set(), "": set()},
                )
                goes_on = bool(absent) or not account
                answer = await mirror.ask("/v2/all/org/app/manifests/v1")
                assert answer.status == (200 if goes_on else 401)
                missing = await mirror.ask("/v2/all/org/missing/manifests/v1")
                assert missing.status == (404 if goes_on else 401)
                mirror.clock.forward(100_000_000)
                assert (await mirror.ask("/v2/all/org/known/manifests/v1")).status == 401
                hub.users, hub.rights = users, rights


async def test_rules_about_content_stay_those_of_the_member(
    tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry
) -> None:
    """What the mirror refuses at one member is not replaced by another member's image."""
    hub.add_image("org/app", "v1", [b"refused"])
    quay.add_image("org/app", "v1", [b"another"])
    async with _virtual_mirror(tmp_path, hub, quay, content={"deny": ["docker.io/org/app:v1"]}) as mirror:
        assert (await mirror.ask("/v2/all/org/app/manifests/v1")).code == "DENIED"


# ------------------------------------------------------------------------------------------------------------ lists


async def test_lists_are_merged(tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry) -> None:
    """Tags of all upstreams in pages, sorted, each once; referrers likewise; an error of one member is the answer."""
    for number in range(7):
        digest = hub.add_image("org/app", f"v{number * 2}", [b"layer"])
        quay.add_image("org/app", f"v{number}", [b"layer"])
    subject = {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": 1}
    signed = [
        registry.add_image("org/app", None, [text], subject=subject)
        for registry, text in ((hub, b"one"), (quay, b"two"), (quay, b"one"))
    ]
    async with _virtual_mirror(tmp_path, hub, quay) as mirror:
        wanted = sorted({f"v{number}" for number in (*range(7), *range(0, 14, 2))})
        assert (await mirror.ask("/v2/all/org/app/tags/list")).json == {"name": "org/app", "tags": wanted}
        listed: list[str] = []
        target = "/v2/all/org/app/tags/list?n=3"
        while target:
            answer = await mirror.ask(target)
            listed += answer.json["tags"]
            target = answer.headers.get("Link", "").partition(">")[0].removeprefix("<")
        assert listed == wanted
        found = (await mirror.ask(f"/v2/all/org/app/referrers/{digest}")).json["manifests"]
        assert [each["digest"] for each in found] == sorted(set(map(str, signed)))
        for kind, target in (("tags", "tags/list"), ("referrers", f"referrers/{digest}")):
            mirror.clock.forward(3600)
            quay.fail(kind, status(500), times=1000)
            assert (await mirror.ask(f"/v2/all/org/other/{target}")).status in (502, 503)
            quay.heal()
        assert (await mirror.ask("/v2/all/org/absent/tags/list")).status == 404


async def test_hosted_lists_are_merged_by_rights(tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry) -> None:
    """The lists of the hosted members that the caller may pull from."""
    rules = [{**OPEN, "callers": ["token:in"]}, {**OPEN, "repositories": ["base/**"]}]
    virtual = {"members": ["corp", "base", "docker.io"]}
    hub.add_image("team/app", "theirs", [b"theirs"])
    async with _virtual_mirror(
        tmp_path, hub, quay, rules=rules, virtual=virtual, more_hosted=[{"name": "base"}], access=_TOKENS
    ) as mirror:
        mirror.session.headers.update(_as("in"))
        for registry in ("corp", "base"):
            content = await PushClient(mirror, f"{registry}/team/app").push_image(f"of-{registry}", b"ours")
            subject = descriptor(content, OCI_MANIFEST)
            config = {"mediaType": "application/vnd.oci.empty.v1+json", **descriptor(b"{}", "")}
            config["mediaType"] = "application/vnd.oci.empty.v1+json"
            client = PushClient(mirror, f"{registry}/team/app")
            await client.push_blob(b"{}")
            signature = document(OCI_MANIFEST, artifactType=f"by/{registry}", config=config, layers=[], subject=subject)
            assert (await client.put(signature, Digest.of(signature))).status == 201
        target = f"/v2/all/team/app/referrers/{Digest.of(content)}"
        assert (await mirror.ask("/v2/all/team/app/tags/list")).json["tags"] == ["of-base", "of-corp"]
        assert len((await mirror.ask(target)).json["manifests"]) == 2
        mirror.session.headers.update(_as("out"))
        assert (await mirror.ask("/v2/all/team/app/tags/list")).json["tags"] == ["of-base"]
        assert [each["artifactType"] for each in (await mirror.ask(target)).json["manifests"]] == ["by/base"]
        assert (await mirror.ask("/v2/all/team/app/manifests/of-corp")).status == 404
        del mirror.session.headers["Authorization"]
        for what in ("tags/list", "manifests/of-corp"):
            assert (await mirror.ask(f"/v2/all/team/app/{what}")).status == 401
        assert (await mirror.ask("/v2/_catalog")).json["repositories"] == ["base/team/app"]


# ----------------------------------------------------------------------------------------------------------- pushes


async def test_pushes_go_to_the_writable_member(tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry) -> None:
    """Uploads, mounts, manifests and deletions under the virtual name; the client stays under it."""
    async with _virtual_mirror(tmp_path, hub, quay) as mirror:
        client = PushClient(mirror, "all/team/app")
        location = await client.begin()
        assert location.startswith("/v2/all/team/app/blobs/uploads/")
        assert (await client.ask("GET", location)).status == 204
        part = await client.ask("PATCH", location, body=b"half ")
        assert part.headers["Location"].startswith("/v2/all/team/app/blobs/uploads/")
        done = await client.finish(part.headers["Location"], Digest.of(b"half and half"), b"and half")
        assert done.status == 201
        assert done.headers["Location"].startswith("/v2/all/team/app/blobs/")
        content = await client.push_image("v1", b"half and half", b"a layer")
        answer = await client.put(content, "v2")
        assert answer.headers["Location"].startswith("/v2/all/team/app/manifests/")
        for name in ("all", "corp"):
            assert (await mirror.ask(f"/v2/{name}/team/app/manifests/v1")).body == content
        mounted = f"/v2/all/team/other/blobs/uploads/?mount={Digest.of(b'a layer')}&from=all/team/app"
        assert (await client.ask("POST", mounted)).status == 201
        assert (await mirror.ask(f"/v2/corp/team/other/blobs/{Digest.of(b'a layer')}")).body == b"a layer"
        assert (await client.ask("DELETE", "/v2/all/team/app/manifests/v1")).status == 202
        assert (await mirror.ask("/v2/corp/team/app/manifests/v1")).status == 404
        assert (await client.ask("DELETE", f"/v2/all/team/app/manifests/{Digest.of(content)}")).status == 202
        assert (await client.ask("DELETE", f"/v2/all/team/app/blobs/{Digest.of(b'a layer')}")).status in (202, 405)
        assert [*hub.requests, *quay.requests] == []


async def test_a_push_on_a_name_of_an_upstream_uploads_what_is_missing(
    tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry
) -> None:
    """HEAD by a pusher is the writable member's answer: a blob that only the upstream has must be uploaded, one that is
    cached here is reserved. Neither takes the name, and a caller who only pulls gets the upstream's answer.
    """
    hub.add_image("library/alpine", "v1", [b"a public layer"])
    public = Digest.of(b"a public layer")
    rules = [_PULL, {**OPEN, "callers": ["token:in"]}]
    async with _virtual_mirror(tmp_path, hub, quay, rules=rules, access=_TOKENS) as mirror:
        target = f"/v2/all/library/alpine/blobs/{public}"
        for status_of_pusher in (404, 200, 200):
            assert (await mirror.ask(target, method="HEAD", headers=_as("in"))).status == status_of_pusher
            assert (await mirror.ask(target, method="HEAD")).status == 200
            assert (await mirror.ask(target, headers=_as("in"))).body == b"a public layer"
            await mirror.idle()
        assert (await mirror.ask("/v2/all/library/alpine/manifests/v1")).status == 200
        mirror.session.headers.update(_as("in"))
        client = PushClient(mirror, "all/library/alpine")
        content = await client.push_image("patched", b"a public layer", b"a patch")
        assert (await mirror.ask(target, method="HEAD")).status == 200
        assert (await mirror.ask("/v2/all/library/alpine/manifests/patched")).body == content
        assert (await mirror.ask("/v2/all/library/alpine/manifests/v1")).status == 404


async def test_lazy_parts_for_a_caller_who_may_push(tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry) -> None:
    """As for anybody else, unless the writable member has the blob: that is sent."""
    layer = noise(3_000_000)
    hub.add_image("library/alpine", "v1", [layer])
    rules = [_PULL, {**OPEN, "callers": ["token:in"]}]
    route = [{"match": "docker.io/**", "ranges": "lazy", "lazy_share": 1.0, "lazy_pause": "0s"}]
    async with _virtual_mirror(tmp_path, hub, quay, rules=rules, access=_TOKENS, route=route) as mirror:
        assert (await mirror.ask("/v2/all/library/alpine/manifests/v1")).status == 200
        target = f"/v2/all/library/alpine/blobs/{Digest.of(layer)}"
        for is_lazy in (True, False):
            got = await mirror.ask(target, headers={**_as("in"), "Range": "bytes=2000000-2000009"})
            assert (got.status, got.body) == (206, layer[2_000_000:2_000_010])
            assert got.headers["Cache-Status"].endswith("; detail=unverified") is is_lazy
            if is_lazy:
                mirror.session.headers.update(_as("in"))
                await PushClient(mirror, "corp/library/alpine").push_image("v1", layer)


async def test_where_no_push_goes(tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry) -> None:
    """Without a writable member: 405. Under a name that a member before the writable one has: 403. To strangers, both
    look like an unknown name.
    """
    rules = [{**OPEN, "callers": ["token:in"]}, {**OPEN, "callers": ["token:in"], "repositories": ["base/**"]}]
    hosted = [{"name": "base"}]
    for writable in (None, "base"):
        virtual = {"members": ["corp", "base"], "writable": writable}
        async with _virtual_mirror(
            tmp_path / str(writable), hub, quay, rules=rules, virtual=virtual, more_hosted=hosted, access=_TOKENS
        ) as mirror:
            mirror.session.headers.update(_as("in"))
            await PushClient(mirror, "corp/team/app").push_image("v1", b"ours")
            client = PushClient(mirror, "all/team/app")
            for method, target in (
                ("POST", client.uploads),
                ("PUT", "/v2/all/team/app/manifests/v2"),
                ("DELETE", "/v2/all/team/app/manifests/v1"),
            ):
                answer = await client.ask(method, target, body=b"{}" if method == "PUT" else None)
                message = answer.json["errors"][0]["message"]
                if writable:
                    assert (answer.status, answer.code) == (403, "DENIED")
                    assert "corp/team/app" in message
                else:
                    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
                    assert "writable" in message
                mirror.session.headers.update(_as("out"))
                assert (await client.ask(method, target)).status == 404
                del mirror.session.headers["Authorization"]
                assert (await client.ask(method, target)).status == 401
                mirror.session.headers.update(_as("in"))
            assert (await mirror.ask("/v2/all/team/app/manifests/v1")).status == 200


async def test_tokens_as_clients_ask_for_them(tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry) -> None:
    """The challenge names what the client asked for; the token is good for that name, and no other."""
    rules = [{**OPEN, "callers": ["token:in"]}]
    async with _virtual_mirror(tmp_path, hub, quay, rules=rules, access=_TOKENS) as mirror:
        client = PushClient(mirror, "all/team/app")
        challenge = (await client.ask("POST", client.uploads)).headers["WWW-Authenticate"]
        assert 'scope="repository:all/team/app:pull,push"' in challenge
        answer = await mirror.ask("/token?service=mirror&scope=repository:all/team/app:pull,push", headers=_as("in"))
        mirror.session.headers["Authorization"] = f"Bearer {answer.json['token']}"
        await client.push_image("v1", b"ours")
        assert (await mirror.ask("/v2/all/team/app/manifests/v1")).status == 200
        for target in ("/v2/corp/team/app/manifests/v1", "/v2/all/team/other/manifests/v1"):
            refused = await mirror.ask(target)
            assert refused.status == 401
            assert "insufficient_scope" in refused.headers["WWW-Authenticate"]
        mount = f"{PushClient(mirror, 'all/team/app').uploads}?mount={Digest.of(b'x')}&from=all/team/base"
        refused = await client.ask("POST", mount)
        assert refused.status == 401
        assert "repository:all/team/base:pull" in refused.headers["WWW-Authenticate"]


# ------------------------------------------------------------------------------------------------------------- seen


async def test_logs_have_both_names(tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry) -> None:
    """The member as the repository, and what was asked; who was passed over; nothing of that for other requests."""
    quay.add_image("org/app", "v1", [b"a layer"])
    log = tmp_path / "audit.log"
    async with _virtual_mirror(tmp_path, hub, quay, access={"audit_log": log}) as mirror:
        await PushClient(mirror, "all/team/app").push_image("v1", b"ours")
        mirror.clear_log()
        await mirror.ask("/v2/all/org/app/manifests/v1")
        await mirror.ask("/v2/quay.io/org/app/manifests/v1")
        one, other = mirror.events("request")
        assert (one["asked"], one["passed"]) == ("all/org/app", ["docker.io: ManifestUnknown"])
        assert not {"asked", "passed"} & set(other)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    pushed = [line for line in lines if line["action"] == "push" and line["kind"] == "manifest"]
    assert [(line["repository"], line["asked"]) for line in pushed] == [("corp/team/app", "all/team/app")]
    pulled = [(line["repository"], line.get("asked")) for line in lines if line["action"] == "pull"]
    assert pulled == [("quay.io/org/app", "all/org/app"), ("quay.io/org/app", None)]


async def test_a_sealed_site_reports_no_miss_of_what_another_member_has(
    tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry
) -> None:
    """Members that have nothing of a name are not asked; one miss is reported of what no member has."""
    quay.add_image("org/app", "v1", [b"a layer"])
    async with _virtual_mirror(tmp_path, hub, quay) as mirror:
        for what in ("manifests/v1", f"blobs/{Digest.of(b'a layer')}"):
            assert (await mirror.ask(f"/v2/all/org/app/{what}")).status == 200
        await mirror.idle()
    async with _virtual_mirror(tmp_path, hub, quay, offline=True) as mirror:
        for what in ("manifests/v1", "tags/list", f"blobs/{Digest.of(b'a layer')}"):
            assert (await mirror.ask(f"/v2/all/org/app/{what}")).status == 200
        assert (await mirror.ask("/v2/all/org/absent/manifests/v1")).status == 404
        await mirror.app.shared.misses.flush()
        reported = json.loads((mirror.root / "misses.json").read_text())
        assert [(miss["registry"], miss["name"]) for miss in reported["misses"]] == [("docker.io", "org/absent")]


async def test_the_admin_api_takes_virtual_names(tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry) -> None:
    """They become names of the members that answer, and a name under which nothing is here is a mistake."""
    quay.add_image("org/app", "v1", [b"a layer"])
    async with _virtual_mirror(tmp_path, hub, quay) as mirror:
        await PushClient(mirror, "all/team/app").push_image("v1", b"ours")
        assert (await mirror.ask("/v2/all/org/app/manifests/v1")).status == 200
        await mirror.idle()
        admin = mirror.app.admin
        assert str(admin.hosted.parse("all/team/app:v1", repository=False)[1]) == "corp/team/app:v1"
        assert str(admin._parse_image("all/org/app:v1")) == "quay.io/org/app:v1"
        for text in ("all/org/absent:v1", "all/org/app:v1"):
            with pytest.raises(RequestError, match=r"name the image of a member|use `mirror purge`"):
                admin.hosted.parse(text, repository=False)


async def test_to_take_a_name_over_needs_the_right_to_overwrite(
    tmp_path: Path, hub: FakeRegistry, quay: FakeRegistry
) -> None:
    """Once the mirror has something of the upstream's repository; a new name, and one of ours, need it not."""
    hub.add_image("org/app", "v1", [b"theirs"])
    rules = [_PULL, {**OPEN, "callers": ["token:out"], "actions": ["push"]}, {**OPEN, "callers": ["token:in"]}]
    async with _virtual_mirror(tmp_path, hub, quay, rules=rules, access=_TOKENS) as mirror:
        assert (await mirror.ask("/v2/all/org/app/manifests/v1")).status == 200
        await mirror.idle()
        mirror.session.headers.update(_as("out"))
        client = PushClient(mirror, "all/org/app")
        for method, target in (("POST", client.uploads), ("PUT", "/v2/all/org/app/manifests/v2")):
            answer = await client.ask(method, target, body=b"{}" if method == "PUT" else None)
            assert (answer.status, answer.code) == (403, "DENIED")
            assert "overwrite in corp/org/app" in answer.json["errors"][0]["message"]
        await PushClient(mirror, "all/org/new").push_image("v1", b"ours")
        mirror.session.headers.update(_as("in"))
        await client.push_image("v1", b"ours")
        mirror.session.headers.update(_as("out"))
        await client.push_image("v2", b"ours as well")
