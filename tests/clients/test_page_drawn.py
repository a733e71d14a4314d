"""How the web page shows answers that a small mirror never gives, in a real browser whose clock the tests set.

The page's files and their headers are the mirror's own; the answers are invented, in the form of its OpenAPI document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from jsonschema import Draft202012Validator
from playwright.sync_api import Page, Route, expect

from mirror.server.admin.assets import ASSETS
from mirror.server.admin.operations import PREFIX, openapi
from mirror.values.timestamps import format_moment
from tests.support.browser import Seen, browser_page
from tests.support.process import PATIENCE

_MS: Final = PATIENCE * 1000
#: Not a secure context for a browser, as a mirror in a network without TLS is none.
_SITE: Final = "http://mirror.example:5001"
_NOW: Final = 1_800_000_000
_DOCUMENT: Final = openapi("test")
_DIGEST: Final = "sha256:" + "a" * 64
#: Markup, a turn of the reading direction (shown as an escape), and more letters than fit anywhere.
_NASTY: Final = '<img src=x onerror="alert(1)"><script>alert(2)</script>\u202e&lt;' + "w" * 240


def _traffic(requests: int = 0, hits: int = 0, sent: int = 0, received: int = 0) -> dict[str, Any]:
    ratio = hits / requests if requests else None
    saved = max(0, sent - received)
    return {
        "requests": requests,
        "hits": hits,
        "hit_ratio": ratio,
        "sent": sent,
        "received": received,
        "saved": saved,
    }


def _at(seconds: float) -> str:
    """The time that many seconds from now."""
    return format_moment(_NOW + seconds)


def _image(name: str, **more: Any) -> dict[str, Any]:
    return {
        "image": name,
        "repository": name,
        "tag": None,
        "digest": _DIGEST,
        "media_type": "application/json",
        "complete": True,
        "manifests_only": False,
        "platforms": ["linux/amd64"],
        "size": 1,
        "missing": 0,
        "last_pull": None,
        "pinned": False,
        "frozen": False,
        "hosted": False,
        "immutable": False,
        **more,
    }


def _flight(number: int, **more: Any) -> dict[str, Any]:
    common = {"repository": "docker.io/library/app", "upstream": "docker.io", "received": number, "size": 5000}
    return {"digest": f"sha256:{number:064x}", **common, "followers": 1, "filling": True, "workers": [1], **more}


def _rule(text: str) -> dict[str, Any]:
    """A sync rule that has failed, with this wherever there can be a text."""
    words = dict.fromkeys(("name", "repository", "tags", "schedule", "started_by"), text)
    times = dict.fromkeys(("started", "ended", "last_success", "next_run"), "2026-03-01T00:00:00Z")
    rest = {"platforms": [text], "referrers": True, "every_replica": False, "progress": None, "consecutive_failures": 3}
    return {**words, **times, **rest, "state": "failed", "result": {"failures": [text]}}


def _quiet() -> dict[str, Any]:
    """A mirror with nothing in it that does nothing."""
    return {
        "status": {
            "version": "1",
            "worker": 1,
            "uptime": 5.0,
            "workers": [{"worker": 1, "uptime": 5.0, "flights": 0}, {"worker": 2, "uptime": 90000.0, "flights": 0}],
            "store": {
                "root": "/var/lib/mirror",
                "bytes": 0,
                "limit": 1000,
                "quarantine_bytes": 0,
                "hosted_damaged": 0,
                "failing_workers": 0,
            },
            "hosted": [],
            "bucket": None,
            "index": {"error": None},
            "flights": 0,
            "traffic": _traffic(),
            "offline": False,
            "unread": [],
            "cluster": None,
        },
        "history": {"interval": 60.0, "points": [{"at": _at(0), **_traffic()}]},
        "flights": {"flights": []},
        "upstreams": {"upstreams": []},
        "images": {"images": [], "next": None},
        "eviction": {"dry_run": True, "blobs": 0, "bytes": 0, "more": 0, "images": []},
        "hosted": {"repositories": [], "next": None},
        "deleted": {"deleted": [], "more": 0},
        "collection": {"last": None, "sweep": None},
        "damaged": {"damaged": [], "more": 0},
        "events": {"endpoints": [], "events": []},
        "replication": {"rules": []},
        "retention": {"last": None, "next": None},
        "jobs": {"jobs": []},
        "sync": {"rules": []},
        "clients": {
            "mirror": _SITE,
            "clients": [
                {"client": "docker", "command": "do it", "files": [{"path": "/etc/x", "content": "line 1\nline 2\n"}]}
                | {"next_steps": ["a restart"], "notes": []}
            ],
        },
    }


@dataclass
class _Drawn:
    """The page on answers that the test sets; what it was asked for by the page is in `asked`."""

    page: Page
    seen: Seen
    answers: dict[str, Any] = field(default_factory=_quiet)
    asked: list[str] = field(default_factory=list)
    #: In place of an answer.
    instead: Callable[[Route], None] | None = None

    def give(self, route: Route) -> None:
        url = urlsplit(route.request.url)
        if (asset := ASSETS.get(url.path)) is not None:
            route.fulfill(body=asset.content, headers=dict(asset.headers))
            return
        name = url.path.removeprefix(f"{PREFIX}/")
        self.asked.append(name)
        if self.instead is not None:
            self.instead(route)
            return
        answer = self.answers[name]
        answer = answer(url.query) if callable(answer) else answer
        schema = _DOCUMENT["paths"][url.path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        Draft202012Validator({**schema, "components": _DOCUMENT["components"]}).validate(answer)
        route.fulfill(json=answer)


@pytest.fixture
def opened(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[_Drawn]:
    """In a window as wide as a phone."""
    options = {"viewport": {"width": 360, "height": 740}, **getattr(request, "param", {})}
    with browser_page(tmp_path / "browser", **options) as seen:
        drawn = _Drawn(seen.page, seen)
        seen.context.route("**/*", drawn.give)
        seen.page.clock.install(time=_NOW)
        yield drawn
        # a browser tells of that header wherever there is no TLS
        assert [one for one in seen.complaints if "Cross-Origin-Opener-Policy" not in one] == []


def _load(drawn: _Drawn) -> Page:
    drawn.page.goto(f"{_SITE}/")
    expect(drawn.page.locator("#connection")).to_have_text("live", timeout=_MS)
    return drawn.page


def _no_wider(page: Page) -> None:
    """Nothing lies beyond the edge of a phone."""
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_an_empty_mirror(opened: _Drawn) -> None:
    """It says of each thing that there is none, and of how long it has run what the oldest worker says."""
    page = _load(opened)
    for place in ("#flights", "#upstream-rows", "#job-rows", "#sync-rows", "#next", "#images-note"):
        expect(page.locator(place)).to_contain_text(re.compile("none|nothing|no such"), timeout=_MS)
    expect(page.locator("#about")).to_have_text("1, 2 workers, up 1 d")
    assert "NaN" not in page.locator("body").inner_text()
    _no_wider(page)


def test_names_without_mercy(opened: _Drawn) -> None:
    """Markup, letters without end and turns of the reading direction, wherever a name or an error of somebody else
    stands: they stay text, and the page as wide as it is.
    """
    opened.answers["images"]["images"] = [_image(_NASTY, platforms=[_NASTY], complete=False, missing=2, frozen=True)]
    opened.answers["flights"]["flights"] = [_flight(1, repository=_NASTY), _flight(2, repository=None, size=None)]
    login = {"provider": _NASTY, "reason": _NASTY, "since": "2026-03-01T00:00:00Z"}
    address = {"url": _NASTY, "state": "down", "failures": 9, "retry_in": 30.0, "credentials": login, "reason": _NASTY}
    budget = {"limit": 100, "remaining": 0, "window": 21600.0, "seen": "2026-03-01T00:00:00Z", "resets_in": 5.0}
    opened.answers["upstreams"]["upstreams"] = [
        {"name": _NASTY, "state": "down", "endpoints": [address], "budget": budget}
    ]
    times = dict.fromkeys(("created", "started", "ended"))
    job = {"id": "1", "kind": _NASTY, "state": "failed", **times, "result": {"first_failure": _NASTY}}
    opened.answers["jobs"]["jobs"] = [{**job, "arguments": {"images": [_NASTY]}}]
    opened.answers["sync"]["rules"] = [_rule(_NASTY)]
    victim = {"digest": None, "names": [_NASTY], "last_used": None, "bytes": 5, "blobs": []}
    opened.answers["eviction"]["images"] = [victim]
    opened.answers["status"]["store"]["root"] = _NASTY
    opened.answers["clients"]["clients"][0]["notes"] = [_NASTY]
    page = _load(opened)
    for place in ("#images", "#flights", "#upstream-rows", "#job-rows", "#sync-rows", "#next", "#client-files"):
        expect(page.locator(place)).to_contain_text(_NASTY.replace("\u202e", "\\u202e"), timeout=_MS)
    page.locator("summary").click()
    assert page.locator("main img, main script, main b").count() == 0
    _no_wider(page)


def _hosted_things(text: str) -> dict[str, Any]:
    """What the section about hosted registries shows, with this wherever there can be a text."""
    counts = dict.fromkeys(("repositories", "manifests", "links", "blobs", "bytes", "deletions", "referrers"), 1)
    waits = {"waiting_links": 1, "waiting_blobs": 1, "waiting_bytes": 5, "waiting_since": _at(-60)}
    waiting = {"kind": "link", "repository": text, "digest": _DIGEST, "size": 5, "since": _at(-60), "may_go": _at(60)}
    unread = {"unread_count": 1, "unread": [{"what": text, "reason": text}]}
    round_ = {"begun": _at(-9), "ended": _at(-8), "complete": True, **counts, **waits, **unread}
    event = {"id": "1", "type": text, "endpoint": text, "about": text, "made": _at(-60), "dead": False, "attempts": 3}
    endpoint = {"endpoint": text, "configured": False, "waiting": 1, "dead": 2, "lost": 3, "oldest": _at(-60)}
    repository = {"repository": text, "tags": 1, "manifests": 2, "deleted": 3, "size": None}
    deletion = {"image": text, "digest": _DIGEST, "tags": [text], "deleted": _at(-60), "by": text, "until": _at(60)}
    damaged = {"digest": _DIGEST, "size": 5, "found": _at(-60), "repositories": [text]}
    left = [{"what": text, "reason": text}]
    retained = {
        "begun": _at(-9),
        "ended": _at(-8),
        "by": text,
        "complete": True,
        "resumed": 0,
        "repositories": 1,
        "tags": 1,
        "manifests": 2,
        "stayed": 3,
        "unread_count": 1,
        "unread": left,
    }
    judged = {
        "tags": [{"name": text, "digest": _DIGEST, "goes": True, "reason": text}],
        "manifests": [{"name": _DIGEST, "digest": _DIGEST, "goes": False, "reason": text}],
    }
    replication = {
        **dict.fromkeys(("name", "repositories", "to", "schedule", "started_by"), text),
        **dict.fromkeys(("started", "ended", "last_success", "next_run"), _at(-60)),
        "tags": [text],
        "on": "push",
        "deletes": "never",
        "overwrite": False,
        "state": "failed",
        "progress": None,
        "result": {"failures": [text], "conflicts": [text]},
        "consecutive_failures": 1,
    }
    return {
        "hosted": {"repositories": [repository], "next": "more"},
        "deleted": {"deleted": [deletion], "more": 2},
        "collection": {"last": {**round_, "waiting": [{**waiting, "why": text}]}, "sweep": None},
        "damaged": {"damaged": [damaged], "more": 1},
        "events": {"endpoints": [endpoint], "events": [{**event, "error": text}]},
        "replication": {"rules": [replication]},
        "retention": {"last": retained, "next": _at(60)},
        "retention/plan": {"repositories": [{"repository": text, "unread": None, "more": 4, **judged}]},
    }


def test_hosted_things_without_mercy(opened: _Drawn) -> None:
    """The same of names and errors in the section about hosted registries, and in the question about a deletion."""
    opened.answers |= _hosted_things(_NASTY)
    opened.answers["status"]["hosted"] = [
        {"scope": _NASTY, "bytes": 990, "quota": 1000},
        {"scope": "lab", "bytes": None, "quota": None},
    ]
    opened.answers["images"]["images"] = [
        _image(_NASTY, hosted=True),
        _image("corp/app:v1", hosted=True, immutable=True),
    ]
    page = _load(opened)
    for place in ("quota", "repository", "deleted", "waiting", "damaged", "endpoint", "replication", "retention"):
        expect(page.locator(f"#{place}-rows")).to_contain_text(_NASTY.replace("\u202e", "\\u202e"), timeout=_MS)
    expect(page.locator("#collection-text")).to_contain_text("1 could not be read, and lost nothing", timeout=_MS)
    expect(page.locator("#endpoint-rows")).to_contain_text("1 waiting, 2 dead, 3 lost")
    expect(page.locator("#image-rows")).to_contain_text("immutable")
    page.locator("#repository-rows summary").click()
    plan = page.locator("#repository-rows details li")
    expect(plan.nth(0)).to_contain_text("of 6 tags and manifests, 1 would go", timeout=_MS)
    expect(plan.nth(1)).to_contain_text(" goes: ")
    expect(plan.nth(2)).to_contain_text(f"{_DIGEST} stays: ")
    expect(plan.nth(3)).to_contain_text("and 4 more: mirror retention --dry-run")
    page.get_by_label(re.compile("^undelete")).click()
    expect(page.locator("#question-title")).to_contain_text(_NASTY.replace("\u202e", "\\u202e"))
    assert page.locator("main img, main script, main b, dialog img, dialog script").count() == 0
    _no_wider(page)


def test_a_mirror_that_hosts_nothing(opened: _Drawn) -> None:
    """It has no section about it, and is not asked."""
    page = _load(opened)
    expect(page.locator("#hosted")).to_be_hidden()
    page.clock.run_for(40_000)
    assert not {"hosted", "deleted", "collection", "damaged", "events", "replication", "retention"} & {*opened.asked}


#: Words, numbers and buttons of the list of images that are on several lines.
_BROKEN: Final = """() => [...document.querySelectorAll("#images td, #images th, #images button, #images .item")]
  .filter((one) => !one.matches("td:first-child, [data-label=platforms]") || one.matches(".item")).filter((one) => {
    const range = document.createRange();
    range.selectNodeContents(one);
    const lines = [...range.getClientRects()].filter((line) => line.width > 0);
    return lines.some((line) => line.top > lines[0].bottom);
  }).map((one) => one.textContent)"""


@pytest.mark.parametrize("width", [360, 800, 1300, 2000])
def test_a_word_is_not_broken(opened: _Drawn, width: int) -> None:
    """Sizes, times, states, platforms and buttons stay on their lines, and nothing lies beyond the edge."""
    many = ["linux/386", "linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64", "linux/ppc64le", "linux/s390x"]
    name = "ghcr.io/acme/platform/services/payments-gateway:2026.11.28-rc.4"
    lately = "2027-01-15T07:56:40Z"
    states: list[dict[str, Any]] = [{}, {"complete": False, "missing": 12}, {"complete": False, "manifests_only": True}]
    opened.answers["images"]["images"] = [
        _image(name, size=187_000_000, platforms=many, last_pull=lately, pinned=pinned, frozen=True, **state)
        for pinned in (False, True)
        for state in states
    ]
    opened.page.set_viewport_size({"width": width, "height": 900})
    page = _load(opened)
    expect(page.locator("#image-rows tr")).to_have_count(6, timeout=_MS)
    expect(page.locator("#image-rows")).to_contain_text("3 min ago", timeout=_MS)
    assert page.evaluate(_BROKEN) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_mirror_that_goes_and_comes_back(opened: _Drawn) -> None:
    """A screen reader says once that the mirror is gone and once that it is back, although seconds are counted beside
    it; the same if a proxy in front of the mirror answers instead.
    """
    page = _load(opened)
    page.evaluate(
        "window.told = []; new MutationObserver(() => told.push(document.getElementById('connection').textContent))"
        ".observe(document.getElementById('connection'), {childList: true, characterData: true, subtree: true})"
    )
    for instead in (
        lambda route: route.abort(),
        lambda route: route.fulfill(status=502, body="<html>Bad Gateway</html>"),
    ):
        opened.instead = instead
        page.clock.fast_forward(1000)
        expect(page.locator("#connection")).to_have_text("the mirror does not answer", timeout=_MS)
        expect(page.locator("#connection")).to_have_class("gone")
        page.clock.fast_forward(60_000)
        expect(page.locator("#last-answer")).to_contain_text("last answer 1 min ago", timeout=_MS)
        page.clock.fast_forward(60_000)
        expect(page.locator("#last-answer")).to_contain_text("last answer 2 min ago", timeout=_MS)
        opened.instead = None
        page.clock.fast_forward(1000)
        expect(page.locator("#connection")).to_have_text("live", timeout=_MS)
        expect(page.locator("#last-answer")).to_be_empty()
    assert page.evaluate("told") == ["the mirror does not answer", "live"] * 2
    opened.seen.complaints.clear()  # the browser's own, about what did not come


def test_who_is_logged_out_is_not_asked_again_and_again(opened: _Drawn) -> None:
    """The page says what to do, and asks no more: each question would have the browser ask for a password."""
    page = _load(opened)
    refusal = {"errors": [{"code": "UNAUTHORIZED", "message": "log in", "detail": {}}]}
    opened.instead = lambda route: route.fulfill(status=401, json=refusal)
    page.clock.fast_forward(1000)
    expect(page.locator("#connection")).to_have_text("log in; load this page again to log in", timeout=_MS)
    asked = len(opened.asked)
    page.clock.run_for(60_000)
    assert len(opened.asked) == asked
    opened.seen.complaints.clear()  # the browser's own, about the refusal


def test_a_store_that_is_counted(opened: _Drawn) -> None:
    """While the store is counted, the page says that its fill level and the next evictions are unknown, and all else
    works.
    """
    refusal = {"errors": [{"code": "UNAVAILABLE", "message": "the index is being rebuilt", "detail": {}}]}

    def instead(route: Route) -> None:
        opened.instead = None
        if urlsplit(route.request.url).path.endswith("/eviction"):
            route.fulfill(status=503, json=refusal)
        else:
            opened.give(route)
        opened.instead = instead

    opened.instead = instead
    opened.answers["status"]["store"]["quarantine_bytes"] = 5000
    page = _load(opened)
    expect(page.locator("#next")).to_have_text("the index is being rebuilt", timeout=_MS)
    expect(page.locator("#fullness-text")).to_contain_text("5.0 kB of damaged blobs set aside", timeout=_MS)
    opened.answers["status"]["store"].update(bytes=None, limit=None, failing_workers=1)
    opened.answers["status"]["index"]["error"] = "no connection"
    page.clock.fast_forward(1000)
    expect(page.locator("#fullness-text")).to_contain_text("being counted in /var/lib/mirror", timeout=_MS)
    expect(page.locator("#fullness-text")).to_contain_text("the last write failed", timeout=_MS)
    expect(page.locator("#fullness-text")).to_contain_text("the index is not used: no connection", timeout=_MS)
    expect(page.locator("#connection")).to_have_text("live", timeout=_MS)
    opened.seen.complaints.clear()  # the browser's own, about the refusal


def test_a_page_that_nobody_sees_asks_nothing(opened: _Drawn) -> None:
    """While its tab is hidden; it goes on once it is shown again."""
    page = _load(opened)
    show = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    show += "document.dispatchEvent(new Event('visibilitychange'))"
    expect(page.locator("#client-files details")).to_have_count(1, timeout=_MS)
    page.evaluate(show % "true")
    page.clock.fast_forward(1000)
    # what had begun has ended
    page.wait_for_load_state("networkidle")
    asked = len(opened.asked)
    page.clock.run_for(60_000)
    assert len(opened.asked) == asked
    opened.answers["status"]["version"] = "2"
    page.evaluate(show % "false")
    page.clock.fast_forward(1000)
    expect(page.locator("#about")).to_contain_text("2, 2 workers", timeout=_MS)


def test_charts_with_gaps(opened: _Drawn) -> None:
    """No line over hours without requests; saved is what was sent more than came, over each hour and over the day."""
    points = [
        {"at": _at(-71990), **_traffic(10, 0, 0, 900_000)},  # a prefetch
        {"at": _at(-71930), **_traffic(10, 10, 400_000, 0)},
        {"at": _at(-70800), **_traffic(10, 5, 0, 0)},
        {"at": _at(-1000), **_traffic(10, 10, 600_000, 0)},
        {"at": _at(0), **_traffic(10, 9, 0, 0)},
    ]
    opened.answers["history"]["points"] = points
    page = _load(opened)
    expect(page.locator("#ratio-chart polyline")).to_have_count(2, timeout=_MS)
    expect(page.locator("#ratio-chart svg")).to_have_attribute("aria-label", re.compile(r"now 9\d.0 %"))
    expect(page.locator("#saved-chart rect")).to_have_count(1)
    expect(page.locator("#saved-chart svg")).to_have_attribute("aria-label", re.compile("100 kB in all"))


def test_a_thousand_downloads(opened: _Drawn) -> None:
    """All of them have a row, which stays the same one from one round to the next."""
    opened.answers["flights"]["flights"] = [_flight(number) for number in range(1000)]
    page = _load(opened)
    rows = page.locator("#flights li")
    expect(rows).to_have_count(1000, timeout=_MS)
    page.evaluate("window.row = document.querySelector('#flights').children[500]")
    opened.answers["flights"]["flights"] = [_flight(number, received=2500) for number in range(500, 1000)]
    page.clock.fast_forward(1000)
    expect(rows).to_have_count(500, timeout=_MS)
    assert page.evaluate("row === document.querySelector('#flights').children[0]")
    expect(rows.first).to_contain_text("2.5 kB of 5.0 kB")


def test_rows_stay_under_the_hands(opened: _Drawn) -> None:
    """Ten thousand images come by pages; what was asked for, or is selected, is not drawn anew."""

    def images(query: str) -> dict[str, Any]:
        after = int(parse_qs(query).get("after", ["a:0"])[0].rpartition(":")[2])
        names = [f"docker.io/a:{number:05}" for number in range(after, min(10_000, after + 50))]
        return {"images": [_image(name) for name in names], "next": f"docker.io/a:{after + 50}"}

    opened.answers["images"] = images
    page = _load(opened)
    rows = page.locator("#image-rows tr")
    expect(rows).to_have_count(50, timeout=_MS)
    page.evaluate("window.row = document.querySelector('#image-rows').children[3]")
    page.evaluate("getSelection().selectAllChildren(row.firstElementChild)")
    for _ in range(10):
        page.clock.fast_forward(1000)
    assert page.evaluate("getSelection().toString()").strip() == "docker.io/a:00003"
    page.evaluate("getSelection().removeAllRanges()")
    page.get_by_role("button", name="More").click()
    expect(rows).to_have_count(100, timeout=_MS)
    expect(page.locator("#images-note")).to_have_text("100 or more images")
    # an answer from before may have drawn the first page anew once nothing was selected any more
    page.evaluate("window.row = document.querySelector('#image-rows').children[3]")
    page.evaluate("document.activeElement.blur(); document.dispatchEvent(new Event('visibilitychange'))")
    for _ in range(10):
        page.clock.fast_forward(1000)
    assert page.evaluate("row === document.querySelector('#image-rows').children[3]")


def test_copying_without_tls(opened: _Drawn) -> None:
    """Where the browser gives a page no clipboard, what is copied is in it all the same."""
    page = _load(opened)
    assert page.evaluate("navigator.clipboard === undefined")
    page.locator("summary").click()
    page.get_by_label("copy the configuration for docker: /etc/x").click()
    expect(page.locator("#notice")).to_have_text("copied: put it into /etc/x", timeout=_MS)
    page.get_by_label("Search", exact=True).focus()
    page.evaluate(
        "document.addEventListener('paste', (event) => { window.pasted = event.clipboardData.getData('text'); })"
    )
    page.keyboard.press("Control+V")
    assert page.wait_for_function("window.pasted").json_value() == "line 1\nline 2\n"


_CONTRASTS = """() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor;
      if (!color.startsWith("rgba(0, 0, 0, 0")) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length || element.disabled) continue;
    const style = getComputedStyle(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [bright, dark] = [light(ink), light(behind(element))].sort((a, b) => b - a);
    const name = element.tagName + "." + (element.className.baseVal ?? element.className);
    found.push([name, (bright + 0.05) / (dark + 0.05)]);
  }
  return found;
}"""


@pytest.mark.parametrize("opened", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_everything_written_can_be_read(opened: _Drawn) -> None:
    """Each text stands out from what is behind it by 4.5 to 1 (WCAG 2.2, 1.4.3), in both schemes."""
    opened.answers["images"]["images"] = [_image("docker.io/a:1"), _image("docker.io/a:2", complete=False, missing=1)]
    states = [(state, f"https://{state}.example") for state in ("ok", "failing", "throttled", "down")]
    opened.answers["upstreams"]["upstreams"] = [
        {
            "name": state,
            "state": state,
            "endpoints": [
                {
                    "url": url,
                    "state": state,
                    "failures": 0,
                    "retry_in": 0.0,
                    "reason": None if state == "ok" else "503",
                    "credentials": None,
                }
            ],
            "budget": None,
        }
        for state, url in states
    ]
    page = _load(opened)
    expect(page.locator("#image-rows tr")).to_have_count(2, timeout=_MS)
    expect(page.locator("#upstream-rows li")).to_have_count(4, timeout=_MS)
    expect(page.locator("#client-files details")).to_have_count(1, timeout=_MS)
    page.locator("summary").click()
    contrasts = page.evaluate(_CONTRASTS)
    assert len(contrasts) > 40
    assert [one for one in contrasts if one[1] < 4.5] == []


def test_a_hosted_image_has_no_button_to_pin_it(opened: _Drawn) -> None:
    """It is never evicted; the row says why."""
    opened.answers["images"]["images"] = [_image("docker.io/a:1"), _image("corp/a:1", hosted=True)]
    page = _load(opened)
    expect(page.get_by_label(re.compile("^pin "))).to_have_count(1, timeout=_MS)
    expect(page.get_by_label("delete corp/a:1", exact=True)).to_have_count(1)
    expect(page.locator("#image-rows tr").nth(1)).to_contain_text("hosted")


def test_everything_has_a_name(opened: _Drawn) -> None:
    """Every control and every meter has a name for screen readers."""
    opened.answers["images"]["images"] = [_image("docker.io/a:1"), _image("docker.io/a:2", pinned=True)]
    opened.answers["flights"]["flights"] = [_flight(1), _flight(2, size=None)]
    page = _load(opened)
    expect(page.locator("#image-rows tr")).to_have_count(2, timeout=_MS)
    expect(page.locator("#client-files details")).to_have_count(1, timeout=_MS)
    page.locator("summary").click()
    tree = page.locator("body").aria_snapshot()
    things = re.findall(r"- (button|link|textbox|searchbox|progressbar|meter|img|table|region|navigation)\b(.*)", tree)
    assert {kind for kind, _ in things} >= {
        "button",
        "link",
        "searchbox",
        "textbox",
        "progressbar",
        "meter",
        "img",
        "table",
    }
    assert [thing for thing in things if not thing[1].strip().startswith('"')] == []
    assert "pressed" not in tree
