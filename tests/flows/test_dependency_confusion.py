"""No way leads from a name that a hosted member of a virtual registry has to an upstream."""

from __future__ import annotations

import base64
import errno
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import Got, LiveMirror
from tests.support.push_client import OPEN, PushClient, hosting_mirror
from tests.support.unreadable import every, nth, refusing

_THEIRS: Final = b"from the public registry"
_VIRTUAL: Final = {
    "name": "all",
    "aliases": ["every"],
    "host_headers": ["images.example.com"],
    "members": ["docker.io", "corp", "quay.io"],
    "writable": "corp",
}
#: The ways to name the repository: path, Host, and further headers are those of the client.
_WAYS: Final = (
    ("all/team/app", "", ""),
    ("ALL/team/app", "", ""),
    ("every/team/app", "", ""),
    ("team/app", "images.example.com", ""),
    ("team/app", "IMAGES.example.com:443", ""),
    ("all/team/app", "images.example.com", ""),
    ("docker.io/team/app", "images.example.com", ""),
    ("team/app", "", "ns=all"),
    ("team/app", "", "ns=every"),
    ("all/team/app", "", "ns=all"),
    ("all/team/app", "", "ns=docker.io"),
    ("every/team/app", "", "ns=quay.io"),
    ("all/team/app", "", "ns=unknown.example"),
    ("team/app", "images.example.com", "ns=docker.io"),
    ("team/app", "images.example.com.", "ns=docker.io"),
    ("team/app", "images.example.com.:443", "ns=quay.io"),
    ("team/app", "images.example.com:", "ns=docker.io"),
    ("team/app", "", ""),
)


@dataclass(frozen=True)
class Confusing:
    """A mirror, and two public registries that have an image under the name that `corp` has."""

    mirror: LiveMirror
    hub: FakeRegistry
    quay: FakeRegistry
    ours: Digest
    theirs: Digest
    referrer: Digest

    async def ask(self, method: str, path: str, what: str, host: str = "", query: str = "", **headers: str) -> Got:
        """One request for something of the repository."""
        parameters = f"{'&' if '?' in what else '?'}{query}" if query else ""
        if host:
            headers["Host"] = host
        return await self.mirror.ask(f"/v2/{path}/{what}{parameters}", method=method, headers=headers)

    def assert_untouched(self) -> None:
        """Neither of the public registries was asked for the name."""
        for registry in (self.hub, self.quay):
            assert [one.target for one in registry.requests if "team/app" in one.target] == []

    def assert_not_theirs(self, answer: Got, *allowed: int) -> None:
        """An error, or ours."""
        assert answer.status in allowed, answer
        assert _THEIRS not in answer.body
        assert answer.headers.get("Docker-Content-Digest") in (None, str(self.ours))
        if answer.status == 200:  # an error names what was asked
            assert str(self.theirs) not in answer.body.decode(errors="replace")
        assert str(self.referrer) not in answer.body.decode(errors="replace")


@contextmanager
def _public() -> Iterator[tuple[FakeRegistry, Digest, Digest]]:
    with FakeRegistry() as registry:
        for tag in ("v1", "v2", "latest"):
            theirs = registry.add_image("team/app", tag, [_THEIRS])
        subject = {"mediaType": OCI_MANIFEST, "digest": str(theirs), "size": 1}
        referrer = registry.add_image("team/app", None, [b"signed"], subject=subject)
        yield registry, theirs, referrer


@asynccontextmanager
async def _confusing(tmp_path: Path, **more: Any) -> AsyncIterator[Confusing]:
    """`corp/team/app` has the tag v1. The caches have all of the public ones."""
    virtual = {**_VIRTUAL, **more.pop("virtual", {})}
    with _public() as (hub, theirs, referrer), _public() as (quay, _, _):
        upstreams = {"docker.io": hub.url, "quay.io": quay.url}
        access = {"token": [{"name": name, "token": f"s-{name}"} for name in ("in", "out", "puller")]}
        rules = [{**OPEN, "actions": ["pull"]}, {**OPEN, "callers": ["token:in"]}]
        settings = {
            "rules": rules,
            "default_registry": "all",
            "access": access,
            **more,
            "virtual": [virtual],
            "upstreams": upstreams,
        }
        async with hosting_mirror(tmp_path, **settings) as mirror:
            mirror.session.headers.update(_as("in"))
            ours = Digest.of(await PushClient(mirror, "corp/team/app").push_image("v1", b"ours"))
            del mirror.session.headers["Authorization"]
            for registry in ("docker.io", "quay.io"):
                for what in ("manifests/v1", "manifests/v2", f"blobs/{Digest.of(_THEIRS)}"):
                    assert (await mirror.ask(f"/v2/{registry}/team/app/{what}")).status == 200
            await mirror.idle()
            hub.forget()
            quay.forget()
            yield Confusing(mirror, hub, quay, ours, theirs, referrer)


def _questions(theirs: Digest) -> tuple[tuple[str, str, int], ...]:
    return (
        ("GET", "manifests/v1", 200),
        ("HEAD", "manifests/v1", 200),
        ("GET", "manifests/v2", 404),
        ("HEAD", "manifests/v2", 404),
        ("GET", "manifests/latest", 404),
        ("GET", f"manifests/{theirs}", 404),
        ("HEAD", f"manifests/{theirs}", 404),
        ("GET", f"blobs/{Digest.of(_THEIRS)}", 404),
        ("HEAD", f"blobs/{Digest.of(_THEIRS)}", 404),
        ("GET", "tags/list", 200),
        ("GET", "tags/list?n=1", 200),
        ("GET", "tags/list?n=1&last=v1", 200),
        ("GET", f"referrers/{theirs}", 200),
        ("HEAD", f"referrers/{theirs}", 200),
    )


async def test_every_way_to_the_name(tmp_path: Path) -> None:
    """By path, alias, Host, `?ns=` and as the default registry; for tags, digests, blobs, lists and referrers."""
    async with _confusing(tmp_path) as site:
        for path, host, query in _WAYS:
            if (path, host) == ("docker.io/team/app", "images.example.com"):
                continue
            for method, what, status in _questions(site.theirs):
                answer = await site.ask(method, path, what, host, query)
                site.assert_not_theirs(answer, status)
        site.assert_untouched()
        # what is named as a whole is the repository of that name, and the client has named no other
        answer = await site.ask("GET", "docker.io/team/app", "manifests/v1", "images.example.com")
        site.assert_not_theirs(answer, 404)


async def test_mounts_take_nothing_of_theirs(tmp_path: Path) -> None:
    """A mount from the virtual name finds what the owner has, although the public layer is cached here."""
    async with _confusing(tmp_path) as site:
        client = PushClient(site.mirror, "corp/team/other")
        for source in ("all/team/app", "every/team/app"):
            for content, status in ((_THEIRS, 202), (b"ours", 201)):
                mount = f"{client.uploads}?mount={Digest.of(content)}&from={source}"
                assert (await client.ask("POST", mount, headers=_as("in"))).status == status
        site.assert_untouched()


@pytest.mark.parametrize("reason", ["deleted tag", "deleted", "deleted at once", "all gone"])
async def test_a_deleted_repository_keeps_its_name(tmp_path: Path, reason: str) -> None:
    """Whatever is deleted, and also once every record has gone; only `release` gives the name back."""
    hosted = {"keep_deleted": 7 * 86400.0 if reason in ("deleted tag", "deleted") else 0.0}
    async with _confusing(tmp_path, hosted=hosted) as site:
        target = f"/v2/corp/team/app/manifests/{'v1' if reason == 'deleted tag' else site.ours}"
        assert (await PushClient(site.mirror).ask("DELETE", target, headers=_as("in"))).status == 202
        records, repo = site.mirror.app.storage.hosted.records, Repo("corp", "team/app")
        if reason == "all gone":
            for digest in list(records.linked(repo)):
                records.drop_link(repo, digest)
        for method, what, _ in _questions(site.theirs):
            answer = await site.ask(method, "all/team/app", what)
            site.assert_not_theirs(answer, 200 if what.startswith(("tags", "referrers")) else 404, 404)
        site.assert_untouched()
        assert records.release(repo) == (reason == "all gone")
        answer = await site.ask("GET", "all/team/app", "manifests/v1")
        assert answer.headers.get("Docker-Content-Digest") == (str(site.theirs) if reason == "all gone" else None)


async def test_an_upstream_that_is_down_changes_nothing(tmp_path: Path) -> None:
    """A name of ours is answered, and one of theirs is no 404."""
    async with _confusing(tmp_path) as site:
        site.hub.away()
        site.quay.away()
        for method, what, status in _questions(site.theirs):
            site.assert_not_theirs(await site.ask(method, "all/team/app", what), status)
        assert (await site.ask("GET", "all/other/app", "manifests/v1")).status in (502, 503, 504)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
async def test_143_what_cannot_be_read_is_never_absent(tmp_path: Path, number: int) -> None:
    """At each read of an answer, with nothing in memory: 503, or the answer; one after the other, and all at once."""
    async with _confusing(tmp_path) as site:
        app = site.mirror.app
        for method, what, status in _questions(site.theirs):
            for step in range(100):
                app.shared.caches.manifests.clear()
                app.storage.hosted.records.note_change(Repo("corp", "team/app"))
                with refusing(site.mirror.root, nth(step), number) as reads:
                    answer = await site.ask(method, "all/team/app", what)
                site.assert_not_theirs(answer, status, 503)
                if len(reads) <= step:
                    break
            else:
                pytest.fail("it reads on and on")
        folder = Path(app.storage.layout.repository(Repo("corp", "team/app")))
        for path in (folder, folder / "_tags", folder / "_manifests", folder / "_changes", folder / "_tags/v1"):
            app.storage.hosted.records.note_change(Repo("corp", "team/app"))
            with refusing(site.mirror.root, every(str(path)), number):
                for method, what, status in _questions(site.theirs):
                    site.assert_not_theirs(await site.ask(method, "all/team/app", what), status, 503)
        site.assert_untouched()


def _as(name: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"x:s-{name}".encode()).decode()}


_CLOSED: Final = (
    {"effect": "allow", "callers": ["token:in"], "actions": ["pull", "write"], "repositories": ["corp/**"]},
    {"effect": "allow", "callers": ["token:puller"], "actions": ["pull"], "repositories": ["corp/**"]},
    {"effect": "allow", "callers": ["*"], "actions": ["pull"], "repositories": ["docker.io/**", "quay.io/**"]},
)
_TOKENS: Final = {"token": [{"name": name, "token": f"s-{name}"} for name in ("in", "out", "puller")]}


async def test_rights_open_no_way(tmp_path: Path) -> None:
    """Who may not pull ours gets what an unknown name gets, and never theirs; who has not logged in is asked to."""
    async with _confusing(tmp_path, rules=_CLOSED) as site:
        for method, what, status in _questions(site.theirs):
            site.assert_not_theirs(await site.ask(method, "all/team/app", what, **_as("puller")), status)
            refused = await site.ask(method, "all/team/app", what, **_as("out"))
            site.assert_not_theirs(refused, 404)
            stranger = await site.ask(method, "all/team/app", what)
            site.assert_not_theirs(stranger, 401)
            assert 'scope="repository:all/team/app:pull"' in stranger.headers["WWW-Authenticate"]
            assert method == "HEAD" or refused.code == "NAME_UNKNOWN"
        site.assert_untouched()
        mount = f"?mount={Digest.of(b'ours')}&from=all/team/app"
        client = PushClient(site.mirror, "corp/team/other")
        assert (await client.ask("POST", client.uploads + mount, headers=_as("in"))).status == 201
        assert (await client.ask("POST", client.uploads + mount, headers=_as("out"))).status == 404


async def test_the_other_spelling_of_a_name(tmp_path: Path) -> None:
    """On Docker Hub, `nginx` is `library/nginx`: a hosted member that has one of them keeps both."""
    async with _confusing(tmp_path) as site:
        site.mirror.session.headers.update(_as("in"))
        for name in ("nginx", "library/redis"):
            await PushClient(site.mirror, f"corp/{name}").push_image("v1", b"ours")
        for name in ("library/nginx", "library/redis", "library/other"):
            site.hub.add_image(name, "v1", [_THEIRS])
            site.quay.add_image(name.removeprefix("library/"), "v1", [_THEIRS])
        for name, status in (("nginx", 200), ("library/nginx", 404), ("redis", 404), ("library/redis", 200)):
            answer = await site.ask("GET", f"all/{name}", "manifests/v1")
            assert answer.status == status, name
            assert Digest.of(_THEIRS).hex not in answer.body.decode()
        assert [one.target for one in site.hub.requests if "nginx" in one.target or "redis" in one.target] == []
        assert [one.target for one in site.quay.requests if "nginx" in one.target or "redis" in one.target] == []
        assert (await site.ask("GET", "all/other", "manifests/v1")).status == 200


async def test_what_was_remembered_before_the_push(tmp_path: Path) -> None:
    """A name that was answered from upstream a moment ago is ours with the first push, for tags and digests alike."""
    async with _confusing(tmp_path) as site:
        digest = site.hub.add_image("new/app", "v1", [_THEIRS])
        for what in ("manifests/v1", f"manifests/{digest}", f"blobs/{Digest.of(_THEIRS)}"):
            assert (await site.ask("GET", "all/new/app", what)).status == 200
        site.mirror.session.headers.update(_as("in"))
        ours = await PushClient(site.mirror, "all/new/app").push_image("v2", b"ours")
        del site.mirror.session.headers["Authorization"]
        for what in ("manifests/v1", f"manifests/{digest}", f"blobs/{Digest.of(_THEIRS)}"):
            assert (await site.ask("GET", "all/new/app", what)).status == 404
        answer = await site.ask("GET", "all/new/app", "manifests/v2")
        assert answer.body == ours
        assert (await site.ask("GET", "all/new/app", "tags/list")).json["tags"] == ["v2"]


async def test_reserved_names(tmp_path: Path) -> None:
    """Nobody is asked for a name that is reserved, pushed or not."""
    async with _confusing(tmp_path, virtual={"reserved": ["secret-*/**", "tool"]}) as site:
        for name in ("secret-a/app", "tool", "library/tool"):
            site.hub.add_image(name, "v1", [_THEIRS])
            assert (await site.ask("GET", f"all/{name}", "manifests/v1")).status == 404
        assert site.hub.requests == []
        site.mirror.session.headers.update(_as("in"))
        await PushClient(site.mirror, "all/secret-a/app").push_image("v1", b"ours")
        assert (await site.ask("GET", "all/secret-a/app", "manifests/v1")).status == 200


async def test_a_reserved_name_does_not_tell_whether_it_is_taken(tmp_path: Path) -> None:
    """The answers for a name that a hosted member has, and for one that nobody has, are the same to who may not pull
    there, in either spelling.
    """
    reserved = {"reserved": ["team/**", "tool", "free"]}
    async with _confusing(tmp_path, rules=_CLOSED, virtual=reserved) as site:
        site.mirror.session.headers.update(_as("in"))
        await PushClient(site.mirror, "corp/tool").push_image("v1", b"ours")
        del site.mirror.session.headers["Authorization"]
        pairs = (("team/app", "team/none"), ("tool", "free"), ("library/tool", "library/free"))
        for method, what, _ in _questions(site.theirs):
            for taken, free in pairs:
                for login, status in (({}, 401), (_as("out"), 404)):
                    answers = [await site.ask(method, f"all/{name}", what, **login) for name in (taken, free)]
                    assert [answer.status for answer in answers] == [status, status], (method, what, taken, login)
                    assert len({answer.code for answer in answers if method != "HEAD"}) < 2
        site.assert_untouched()


def _damage(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"{}")


async def test_a_damaged_image_of_the_first_member_is_not_replaced_by_another(tmp_path: Path) -> None:
    """Two hosted members have the tag: the first decides, also if it is damaged, or the caller may not pull there."""
    with _public() as (hub, _, _):
        rules = [
            {**OPEN, "callers": ["token:in"], "repositories": ["corp/**"]},
            {**OPEN, "repositories": ["base/**"]},
        ]
        async with hosting_mirror(
            tmp_path,
            rules=rules,
            access=_TOKENS,
            more_hosted=[{"name": "base"}],
            upstreams={"docker.io": hub.url},
            virtual=[{"name": "all", "members": ["corp", "base", "docker.io"]}],
        ) as mirror:
            contents = {}
            for registry in ("corp", "base"):
                client = PushClient(mirror, f"{registry}/team/app")
                mirror.session.headers.update(_as("in"))
                contents[registry] = await client.push_image("v1", registry.encode())
            await client.push_image("only", b"in the second")
            del mirror.session.headers["Authorization"]
            assert (await mirror.ask("/v2/all/team/app/manifests/v1")).status == 401
            assert (await mirror.ask("/v2/all/team/app/manifests/v1", headers=_as("out"))).status == 404
            assert (await mirror.ask("/v2/all/team/app/manifests/only")).status == 200
            assert (await mirror.ask("/v2/all/team/app/manifests/v1", headers=_as("in"))).body == contents["corp"]
            assert (await mirror.ask("/v2/all/team/app/tags/list", headers=_as("out"))).json["tags"] == ["only", "v1"]
            _damage(Path(mirror.app.storage.layout.hosted_blob(Digest.of(contents["corp"]))))
            mirror.app.shared.caches.manifests.clear()
            answer = await mirror.ask("/v2/all/team/app/manifests/v1", headers=_as("in"))
            assert answer.status == 404
            # by digest, everybody has the same bytes
            digest = Digest.of(contents["base"])
            assert (await mirror.ask(f"/v2/all/team/app/manifests/{digest}", headers=_as("in"))).status == 200


async def test_names_of_virtual_repositories_allow_nothing(tmp_path: Path) -> None:
    """A rule about the virtual name opens and closes nothing."""
    rules = [
        {"effect": "allow", "callers": ["*"], "actions": ["pull", "write", "delete"], "repositories": ["all/**"]},
    ]
    async with _confusing(tmp_path, rules=[*rules, {**OPEN, "callers": ["token:in"]}]) as site:
        assert (await site.ask("GET", "all/team/app", "manifests/v1")).status == 401
        assert (await site.ask("GET", "all/team/app", "manifests/v1", **_as("out"))).status == 404
        answer = await PushClient(site.mirror, "all/team/app").ask(
            "POST", "/v2/all/team/app/blobs/uploads/", headers=_as("out")
        )
        assert answer.status == 404


async def test_an_unreadable_name_takes_no_push_and_no_mount(tmp_path: Path) -> None:
    """Whether a member before the writable one has the name cannot be said: 503."""
    async with _confusing(tmp_path) as site:
        parts = site.mirror.app.router.resolve("all/team/app", host=None, ns=None).parts  # type: ignore[attr-defined]
        with pytest.raises(StoreError), refusing(site.mirror.root, lambda _count, _path: True, errno.EIO):
            parts.answering(Repo("all", "team/app"))
        client = PushClient(site.mirror, "corp/team/other")
        folder = str(site.mirror.app.storage.layout.manifests(Repo("corp", "team/app")))
        with refusing(site.mirror.root, every(folder), errno.EIO):
            mount = f"{client.uploads}?mount={Digest.of(b'ours')}&from=all/team/app"
            assert (await client.ask("POST", mount, headers=_as("in"))).status == 503
        assert (await client.ask("POST", mount, headers=_as("in"))).status == 201
