"""Lists of tags, and of what refers to a manifest."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, OCI_INDEX, OCI_MANIFEST
from tests.support.fake_registry import FakeRegistry, html, silence, status
from tests.support.live_mirror import LiveMirror, reached
from tests.support.scripted import Scripted, Stall, reply, reply_json

_LIST = "/v2/library/app/tags/list"
_TAGS = ["1.0", "1.1", "2.0", "A", "_x", "a", "latest", "z-9"]


@pytest.fixture
def tags(registry: FakeRegistry) -> list[str]:
    """Of library/app, sorted as bytes."""
    for tag in reversed(_TAGS):
        registry.add_image("library/app", tag, [b"layer"])
    return _TAGS


def _next(headers: Mapping[str, str]) -> str | None:
    link = headers.get("Link")
    if link is None:
        return None
    target, _, relation = link.partition(">; ")
    assert relation == 'rel="next"'
    return target.removeprefix("<")


# ----------------------------------------------------------------------------------------------------- tags


async def test_all(registry: FakeRegistry, mirror: LiveMirror, tags: list[str]) -> None:
    """Upstream's list, not only what is cached; sorted; asked for once, whatever pages are wanted."""
    for target in (_LIST, f"{_LIST}?n=3", f"{_LIST}?last=a"):
        answer = await mirror.ask(target)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
    assert (await mirror.ask(_LIST)).json == {"name": "library/app", "tags": tags}
    assert "Link" not in (await mirror.ask(_LIST)).headers
    assert registry.count("tags") == 1


@pytest.mark.parametrize("size", [1, 3, 7, 8, 9])
@pytest.mark.parametrize("prefix", ["/v2/app", "/v2/library/app", "/v2/docker.io/library/app"])
@pytest.mark.parametrize("ns", ["", "&ns=docker.io"])
async def test_pages(mirror: LiveMirror, tags: list[str], size: int, prefix: str, ns: str) -> None:
    """Following `Link` gives every tag once. It leads to our own path, as the client says it, and keeps `ns`."""
    found: list[str] = []
    target: str | None = f"{prefix}/tags/list?n={size}{ns}"
    while target is not None:
        assert target.startswith(f"{prefix}/tags/list?")
        assert target.endswith(ns)
        answer = await mirror.ask(target)
        page = answer.json["tags"]
        assert 0 < len(page) <= size
        found += page
        target = _next(answer.headers)
    assert found == tags


async def test_last(mirror: LiveMirror, tags: list[str]) -> None:
    """`last` need not be a tag: what sorts behind it follows."""
    for last in ("1.0", "1.05", "", "zzz", "%C3%A9"):
        answer = await mirror.ask(f"{_LIST}?last={last}")
        wanted = [tag for tag in tags if tag > ("é" if last.startswith("%") else last)]
        assert answer.json["tags"] == wanted, last


async def test_n(mirror: LiveMirror, tags: list[str]) -> None:
    """Zero gives none and no `Link`, so that nobody asks for ever; a huge number is clamped; nonsense is refused."""
    answer = await mirror.ask(f"{_LIST}?n=0")
    assert (answer.json["tags"], answer.headers.get("Link")) == ([], None)
    assert (await mirror.ask(f"{_LIST}?n=999999999999999999")).json["tags"] == tags
    for n in ("-1", "x", "1.5", "9" * 19, "%D9%A3", "0x1", "1%20"):
        answer = await mirror.ask(f"{_LIST}?n={n}")
        assert (answer.status, answer.code) == (400, "PAGINATION_NUMBER_INVALID"), n


async def test_clamped(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """CVE-2023-2253: one page never holds more than 10,000 tags, asked for or not; `Link` leads on."""
    every = [f"v{number:06}" for number in range(10_050)]
    registry.fail("tags", lambda request, answer: reply_json(200, {"name": "x", "tags": every[::-1]}))
    for target in (_LIST, f"{_LIST}?n=100000"):
        answer = await mirror.ask(target)
        assert answer.json["tags"] == every[:10_000]
        following = _next(answer.headers)
        assert following is not None
        assert (await mirror.ask(following)).json["tags"] == every[10_000:]


async def test_pages_of_upstream(registry: FakeRegistry, mirror: LiveMirror, tags: list[str]) -> None:
    """Upstream may give its list in pages that are smaller than we ask for."""
    registry.largest_page = 3
    assert (await mirror.ask(_LIST)).json["tags"] == tags
    assert registry.count("tags") == 3


async def test_head(mirror: LiveMirror, tags: list[str]) -> None:
    """HEAD has the headers and no body."""
    whole = await mirror.ask(_LIST)
    answer = await mirror.ask(_LIST, method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(whole.body))


async def test_believed_for_a_while(registry: FakeRegistry, mirror: LiveMirror, tags: list[str]) -> None:
    """A list is believed for a minute, then asked for anew."""
    await mirror.ask(_LIST)
    registry.add_image("library/app", "zz-new", [b"layer"])
    assert "zz-new" not in (await mirror.ask(_LIST)).json["tags"]
    mirror.clock.forward(61)
    assert "zz-new" in (await mirror.ask(_LIST)).json["tags"]


async def test_many_ask_once(registry: FakeRegistry, mirror: LiveMirror, tags: list[str]) -> None:
    """However many ask at once, upstream is asked once."""
    gate = Stall()
    registry.fail("tags", silence(gate))
    asking = [asyncio.create_task(mirror.ask(_LIST)) for _ in range(50)]
    await reached(gate)
    gate.release()
    assert all(answer.json["tags"] == tags for answer in await asyncio.gather(*asking))
    assert registry.count("tags") == 1


async def test_cached_ones_while_down(registry: FakeRegistry, mirror: LiveMirror, tags: list[str]) -> None:
    """While upstream is down the tags that were pulled are listed, with a warning; where there are none, an error."""
    for tag in ("latest", "1.0"):
        await mirror.ask(f"/v2/library/app/manifests/{tag}")
    registry.stop()
    answer = await mirror.ask(_LIST)
    assert (answer.status, answer.json["tags"]) == (200, ["1.0", "latest"])
    assert answer.headers["Warning"].startswith("299 ")
    answer = await mirror.ask("/v2/library/other/tags/list")
    assert (answer.status, answer.code) == (503, "UNAVAILABLE")


@pytest.mark.parametrize(
    ("upstream", "wanted", "code"),
    [(401, 401, "UNAUTHORIZED"), (403, 403, "DENIED"), (404, 404, "NAME_UNKNOWN"), (429, 429, "TOOMANYREQUESTS")],
)
async def test_errors(registry: FakeRegistry, mirror: LiveMirror, upstream: int, wanted: int, code: str) -> None:
    """Upstream's word keeps its class."""
    registry.fail("tags", status(upstream), times=3)
    answer = await mirror.ask(_LIST)
    assert (answer.status, answer.code) == (wanted, code)


@pytest.mark.parametrize("body", [{"tags": "x"}, {"tags": [1]}, [], "x"])
async def test_lists_that_are_none(registry: FakeRegistry, mirror: LiveMirror, body: Any) -> None:
    """502, and not remembered."""
    registry.add_image("library/app", "v1", [b"layer"])
    registry.fail("tags", lambda request, answer: reply_json(200, body))
    assert (await mirror.ask(_LIST)).status == 502
    registry.fail("tags", html())
    assert (await mirror.ask(_LIST)).status == 502
    assert (await mirror.ask(_LIST)).json["tags"] == ["v1"]


async def test_tags_outside_the_grammar(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Nor can a list of upstream smuggle what is no tag into a `Link` or a path; null means none."""
    listed = ["ok", "../x", "a>b", "a\r\nb", "", "x" * 129]
    registry.fail("tags", lambda request, answer: reply_json(200, {"name": "x", "tags": listed}))
    assert (await mirror.ask(_LIST)).json["tags"] == ["ok"]
    mirror.clock.forward(61)
    registry.fail("tags", lambda request, answer: reply_json(200, {"name": "x", "tags": None}))
    assert (await mirror.ask(_LIST)).json["tags"] == []


# ------------------------------------------------------------------------------------------------ referrers


@pytest.fixture
def subject(registry: FakeRegistry) -> Digest:
    """An image with two signatures and a list of parts."""
    image = registry.add_image("library/app", "v1", [b"layer"])
    size = len(registry.manifest("library/app", image))
    pointer = {"mediaType": OCI_MANIFEST, "digest": str(image), "size": size}
    for number, kind in enumerate(["application/x.signature", "application/x.signature", "application/x.sbom"]):
        registry.add_image("library/app", None, [b"%d" % number], subject=pointer, artifactType=kind)
    return image


async def test_referrers(registry: FakeRegistry, mirror: LiveMirror, subject: Digest) -> None:
    """An index of all that refers to a digest; asked for once."""
    for _ in range(2):
        answer = await mirror.ask(f"/v2/library/app/referrers/{subject}")
        assert (answer.status, answer.headers["Content-Type"]) == (200, OCI_INDEX)
        assert answer.json["schemaVersion"] == 2
        assert answer.json["mediaType"] == OCI_INDEX
        assert len(answer.json["manifests"]) == 3
        assert "OCI-Filters-Applied" not in answer.headers
        assert {"mediaType", "digest", "size", "artifactType"} <= answer.json["manifests"][0].keys()
    assert registry.count("referrers") == 1


async def test_filtered(mirror: LiveMirror, subject: Digest) -> None:
    """`artifactType` is applied by us, whatever upstream does, and the answer says so."""
    for kind, count in (("application/x.signature", 2), ("application/x.sbom", 1), ("application/other", 0)):
        answer = await mirror.ask(f"/v2/library/app/referrers/{subject}?artifactType={kind.replace('/', '%2F')}")
        assert answer.headers["OCI-Filters-Applied"] == "artifactType"
        assert [one["artifactType"] for one in answer.json["manifests"]] == [kind] * count


async def test_pages_of_referrers(registry: FakeRegistry, mirror: LiveMirror, subject: Digest) -> None:
    """A list that takes more bytes here than a manifest may have comes in pages, each of which links to the next. A
    client that asks for one type gets the first page that has some of it.
    """
    digests = sorted(Digest.of(b"%d" % number) for number in range(5))
    kinds = ["application/x.large"] * 4 + ["application/x.small"]
    index = {
        "manifests": [
            {
                "mediaType": OCI_MANIFEST,
                "digest": str(digest),
                "size": 7,
                "artifactType": kind,
                # three bytes in the list of upstream, six in ours
                "annotations": {"filling": "\u202e" * 250_000},
            }
            for digest, kind in zip(digests[::-1], kinds[::-1], strict=True)
        ]
    }
    body = json.dumps(index, ensure_ascii=False).encode()
    registry.fail("referrers", lambda request, answer: reply(200, body))
    base = f"/v2/library/app/referrers/{subject}"
    target, pages, found = base, 0, []
    while target:
        answer = await mirror.ask(target)
        assert len(answer.body) <= LARGEST
        found += [each["digest"] for each in answer.json["manifests"]]
        pages += 1
        link = re.fullmatch(r'<(.+)>; rel="next"', answer.headers.get("Link", ""))
        target = link[1] if link else ""
    assert pages == 3
    assert found == [str(digest) for digest in digests]
    [small] = (await mirror.ask(f"{base}?artifactType=application/x.small")).json["manifests"]
    assert small["digest"] == str(digests[-1])
    for last in ("sha256:0", "none"):
        answer = await mirror.ask(f"{base}?last={last}")
        assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    assert registry.count("referrers") == 1


@pytest.mark.parametrize("api", [True, False])
async def test_nothing_refers(registry: FakeRegistry, mirror: LiveMirror, api: bool) -> None:
    """An empty index, never 404: also where upstream has no such API, nor such an image."""
    registry.referrers = api
    registry.add_image("library/app", "v1", [b"layer"])
    for digest in (Digest.of(b"unknown"), Digest.of(b"unknown", "sha512")):
        answer = await mirror.ask(f"/v2/library/app/referrers/{digest}")
        assert (answer.status, answer.json["manifests"]) == (200, [])


async def test_fallback_tag(registry: FakeRegistry, mirror: LiveMirror, subject: Digest) -> None:
    """Where upstream has no such API, the index under the fallback tag is read (distribution-spec, "Referrers Tag
    Schema").
    """
    registry.referrers = False
    pointer = {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 1}
    sbom = registry.add_image("library/app", None, [b"sbom"], subject=pointer, artifactType="application/x.sbom")
    size = len(registry.manifest("library/app", sbom))
    one = {"mediaType": OCI_MANIFEST, "digest": str(sbom), "size": size, "artifactType": "application/x.sbom"}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [one]}
    registry.add_manifest("library/app", json.dumps(index).encode(), OCI_INDEX, f"sha256-{subject.hex}")
    answer = await mirror.ask(f"/v2/library/app/referrers/{subject}")
    assert answer.json["manifests"] == [one]


async def test_an_upstream_without_referrers_api_delays_no_request(
    registry: FakeRegistry, mirror: LiveMirror, subject: Digest
) -> None:
    """Faults row 10: a web page on another host that answers 429 in place of the API is nothing but that page's."""
    registry.add_index("library/app", f"sha256-{subject.hex}", [])
    with Scripted() as pages:
        pages.on("*", reply(429, b"<html>", {"Retry-After": "300"}))
        registry.fail("referrers", status(302, {"Location": f"{pages.url}/packages"}), times=9)
        for digest in (subject, Digest.of(b"unknown")):
            answer = await mirror.ask(f"/v2/library/app/referrers/{digest}")
            assert (answer.status, answer.json["manifests"]) == (200, [])
        assert len(pages.requests) == 1
    assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
    assert (await mirror.ask(f"/v2/library/app/blobs/{Digest.of(b'layer')}")).status == 200


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_none(registry: FakeRegistry, mirror: LiveMirror, subject: Digest, number: str) -> None:
    """502, and not 500: what is not JSON is refused where it is read."""
    one = f'{{"mediaType": "{OCI_MANIFEST}", "digest": "{subject}", "size": 1, "platform": {{"x": {number}}}}}'
    registry.fail("referrers", lambda request, answer: reply(200, f'{{"manifests": [{one}]}}'.encode()))
    answer = await mirror.ask(f"/v2/library/app/referrers/{subject}")
    assert (answer.status, answer.code) == (502, "UNAVAILABLE")
    registry.fail("tags", lambda request, answer: reply(200, f'{{"tags": ["a"], "x": {number}}}'.encode()))
    answer = await mirror.ask(_LIST)
    assert (answer.status, answer.code) == (502, "UNAVAILABLE")


async def test_stored_lists_while_upstream_is_down(registry: FakeRegistry, mirror: LiveMirror, subject: Digest) -> None:
    """While upstream is down those that were pulled are named, with a warning."""
    listed = (await mirror.ask(f"/v2/library/app/referrers/{subject}")).json["manifests"]
    pulled = next(one for one in listed if one["artifactType"] == "application/x.sbom")
    assert (await mirror.ask(f"/v2/library/app/manifests/{pulled['digest']}")).status == 200
    registry.stop()
    mirror.clock.forward(61)
    answer = await mirror.ask(f"/v2/library/app/referrers/{subject}")
    assert answer.status == 200
    assert [one["digest"] for one in answer.json["manifests"]] == [pulled["digest"]]
    assert answer.headers["Warning"].startswith("299 ")


@pytest.mark.parametrize("digest", ["sha256:short", "latest", "md5:d41d8cd98f00b204e9800998ecf8427e"])
async def test_referrers_of_no_digest(registry: FakeRegistry, mirror: LiveMirror, digest: str) -> None:
    """400 DIGEST_INVALID, and nobody is asked."""
    answer = await mirror.ask(f"/v2/library/app/referrers/{digest}")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    assert not registry.requests
