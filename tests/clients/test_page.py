"""The web page in a real browser, on a mirror of two workers: what it shows, what it does, and what it must not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from mirror.nodes.clients import CLIENTS
from mirror.nodes.plan import MirrorUrl, Wanted
from tests.support.browser import Seen, browser_page
from tests.support.fake_registry import FakeRegistry, stall
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.node_files import GivenFiles
from tests.support.process import PATIENCE, eventually
from tests.support.scripted import Stall

_SIZE = 1 << 21
_MS = PATIENCE * 1000


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """Some images of one layer each."""
    with FakeRegistry() as running:
        for number in range(3):
            running.add_image("library/app", f"v{number}", [noise(_SIZE, number)])
        running.add_image("team/other", "v1", [noise(_SIZE, 9)])
        yield running


@pytest.fixture
def mirror(registry: FakeRegistry, tmp_path: Path) -> Iterator[MirrorProcess]:
    """With its page on a loopback port."""
    rule = '[[sync]]\nname = "nightly"\nfrom = "docker.io/library/app"\ncron = "0 0 1 1 *"'
    more = f'[admin]\nlisten = "127.0.0.1:0"\n{rule}'
    with MirrorProcess(write_config(tmp_path, {"docker.io": registry.url}, workers=2, more=more)) as running:
        yield running


def _address(mirror: MirrorProcess) -> str:
    def question() -> str | None:
        said = [line["address"] for line in mirror.log if line.get("event") == "admin listening"]
        return next((one for one in said if not one.startswith("unix:")), None)

    return f"http://{eventually(question, 'the page is served')}/"


@pytest.fixture
def seen(mirror: MirrorProcess, tmp_path: Path) -> Iterator[Seen]:
    """The open page. At the end the browser has logged no error, and no other host was contacted."""
    address = _address(mirror)
    with browser_page(tmp_path / "browser", viewport={"width": 1200, "height": 900}) as opened:
        opened.page.goto(address)
        expect(opened.page.locator("#connection")).to_have_text("live", timeout=_MS)
        yield opened
        assert [url for url in opened.requested if not url.startswith((address, "data:"))] == []
        assert opened.context.cookies() == []
        if mirror.running:
            assert opened.complaints == []


def _pull(mirror: MirrorProcess, name: str, tag: str) -> None:
    status, _, manifest = mirror.get(f"/v2/{name}/manifests/{tag}")
    assert status == 200
    for layer in [json.loads(manifest)["config"], *json.loads(manifest)["layers"]]:
        assert mirror.get(f"/v2/{name}/blobs/{layer['digest']}")[0] == 200


def test_a_pull_is_seen_while_it_happens(mirror: MirrorProcess, registry: FakeRegistry, seen: Seen) -> None:
    """A slow download appears with its progress, by itself, and is gone once it is done; the figures have grown."""
    page = seen.page
    expect(page.locator("#flights")).to_have_text("none at the moment", timeout=_MS)
    gate = Stall()
    registry.fail("blobs", stall(gate, after=_SIZE // 2), times=2)
    pulling = threading.Thread(target=_pull, args=(mirror, "library/app", "v1"))
    pulling.start()
    try:
        row = page.locator("#flights li", has_text="docker.io/library/app")
        expect(row).to_contain_text("1 client", timeout=_MS)
        expect(page.locator("#about")).to_contain_text("2 workers")
    finally:
        gate.release()
        pulling.join(PATIENCE)
    expect(page.locator("#flights")).to_have_text("none at the moment", timeout=_MS)
    expect(page.locator("#received")).not_to_have_text("0 B", timeout=_MS)
    expect(page.locator("#images")).to_contain_text("docker.io/library/app:v1", timeout=_MS)
    expect(page.locator("#upstream-rows")).to_contain_text("docker.io")
    expect(page.locator("#sync-rows")).to_contain_text("nightly")
    expect(page.locator("#ratio-chart svg")).to_be_visible()


def test_images_are_found_and_pinned(mirror: MirrorProcess, registry: FakeRegistry, seen: Seen) -> None:
    """By a part of the name; pinned and unpinned by a button that keeps the focus; the mirror knows of it."""
    for name, tag in (("library/app", "v0"), ("library/app", "v1"), ("team/other", "v1")):
        _pull(mirror, name, tag)
    page = seen.page
    page.get_by_label("Search", exact=True).fill("OTHER")
    expect(page.locator("#image-rows tr")).to_have_count(1, timeout=_MS)
    expect(page.locator("#image-rows tr")).to_contain_text("docker.io/team/other:v1")
    page.get_by_label("Search", exact=True).fill("app:v")
    expect(page.locator("#image-rows tr")).to_have_count(2, timeout=_MS)
    page.get_by_label("pin docker.io/library/app:v1", exact=True).click()
    button = page.get_by_label("unpin docker.io/library/app:v1", exact=True)
    expect(button).to_be_focused(timeout=_MS)
    pins = page.evaluate("fetch('/admin/v1/pins').then((answer) => answer.json())")["pins"]
    assert [one["image"] for one in pins] == ["docker.io/library/app:v1"]
    button.press("Enter")
    expect(page.get_by_label("pin docker.io/library/app:v1", exact=True)).to_be_focused(timeout=_MS)
    assert page.evaluate("fetch('/admin/v1/pins').then((answer) => answer.json())")["pins"] == []


#: Holds the next list of images back until an image is being pinned, and the pin until the page has that list.
_LATE_LIST = """() => {
  const real = window.fetch;
  let pinning, listed;
  const isPinning = new Promise((done) => { pinning = done; }), isListed = new Promise((done) => { listed = done; });
  window.fetch = async (url, options) => {
    if (options.method === "PUT") {
      pinning();
      await isListed;
      return real(url, options);
    }
    const answer = await real(url, options);
    if (!url.includes("/images?")) return answer;
    const body = await answer.text();
    document.body.dataset.listed = "held";
    await isPinning;
    // by then the button, which is disabled, has lost the focus
    for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
    listed();
    return new Response(body, { status: answer.status });
  };
}"""


def test_a_list_that_comes_while_an_image_is_pinned_is_not_shown(
    mirror: MirrorProcess, registry: FakeRegistry, seen: Seen
) -> None:
    """It says that the image is not pinned, and would take the button away."""
    _pull(mirror, "library/app", "v1")
    page = seen.page
    expect(page.locator("#image-rows tr")).to_have_count(1, timeout=_MS)
    page.evaluate(_LATE_LIST)
    expect(page.locator("body[data-listed=held]")).to_have_count(1, timeout=_MS)
    page.get_by_label("pin docker.io/library/app:v1", exact=True).click()
    expect(page.get_by_label("unpin docker.io/library/app:v1", exact=True)).to_be_focused(timeout=_MS)


def test_what_is_copied_is_what_configure_writes(mirror: MirrorProcess, seen: Seen) -> None:
    """Every client's button copies the file that `mirror configure` writes for the configured registry and the address
    under which the browser came, and for the address that is typed then; an invalid address gets an error message.
    """
    seen.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, address = seen.page, seen.page.get_by_label("Address of the mirror, as clients reach it")
    expect(page.locator("#client-files details")).to_have_count(len(CLIENTS), timeout=_MS)
    first = MirrorUrl.parse(address.input_value())
    assert first.host == "127.0.0.1"
    typed = MirrorUrl.parse("https://mirror.example")
    for url in (first, typed):
        address.fill(str(url))
        expect(page.locator("#client-files pre", has_text=f"configure docker {url} ")).to_have_count(1, timeout=_MS)
        for name, client in CLIENTS.items():
            section = page.locator(f"details[data-client={name}]")
            if section.get_attribute("open") is None:
                section.locator("summary").click()
            for change in client.plan(GivenFiles({}), Wanted(url, public=("docker.io",))).changes:
                page.get_by_label(f"copy the configuration for {name}: {change.path}", exact=True).click()
                expect(page.locator("#notice")).to_have_text(f"copied: put it into {change.path}", timeout=_MS)
                assert page.evaluate("navigator.clipboard.readText()") == change.content
    address.fill("http://user:s3cret@mirror")
    expect(page.locator("#clients-note")).to_contain_text("contains a user or password", timeout=_MS)
    # the browser itself tells of the refusal
    seen.complaints[:] = [one for one in seen.complaints if "400" not in one]


def test_names_from_outside_stay_text(mirror: MirrorProcess, registry: FakeRegistry, seen: Seen) -> None:
    """Text from the API never becomes markup, even if it contains some."""
    page = seen.page
    nasty = "<img src=x onerror=alert(1)><b>bold</b>"
    image: dict[str, Any] = {
        "image": nasty,
        "repository": nasty,
        "tag": None,
        "digest": nasty,
        "media_type": nasty,
        "complete": True,
    }
    image |= {"platforms": [nasty], "size": 1, "missing": 0, "last_pull": None, "pinned": False}
    page.route("**/admin/v1/images?*", lambda route: route.fulfill(json={"images": [image], "next": None}))
    failing = {"provider": nasty, "reason": "refused by <b>it</b>", "since": "2026-03-01T00:00:00Z"}
    address = {"url": nasty, "state": "ok", "failures": 0, "retry_in": 0, "credentials": failing}
    upstream: dict[str, Any] = {"name": nasty, "state": "ok", "endpoints": [address], "budget": None}
    page.route("**/admin/v1/upstreams", lambda route: route.fulfill(json={"upstreams": [upstream]}))
    page.get_by_label("Search", exact=True).fill("x")
    expect(page.locator("#image-rows")).to_contain_text(nasty, timeout=_MS)
    expect(page.locator("#upstream-rows")).to_contain_text(nasty, timeout=_MS)
    expect(page.locator("#upstream-rows .bad")).to_contain_text(f"credentials of {nasty}: refused by <b>it</b> (since ")
    assert page.locator("main img, main b").count() == 0


def test_a_mirror_that_is_gone_shows(mirror: MirrorProcess, seen: Seen) -> None:
    """The page says that what it shows is old."""
    mirror.stop()
    expect(seen.page.locator("#connection")).to_have_text("the mirror does not answer", timeout=_MS)
    expect(seen.page.locator("#connection")).to_have_class("gone")


def test_by_keyboard(mirror: MirrorProcess, registry: FakeRegistry, seen: Seen) -> None:
    """Everything that can be clicked is reached by Tab, in the order of reading, has a name, and shows the focus."""
    _pull(mirror, "library/app", "v0")
    page = seen.page
    expect(page.locator("#image-rows button")).to_have_count(1, timeout=_MS)
    expect(page.locator("#client-files summary")).to_have_count(len(CLIENTS), timeout=_MS)
    page.locator("body").focus()
    reached: list[str] = []
    outlines: set[str] = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "(() => { const e = document.activeElement; return ["
            "(e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent || '').trim(),"
            "getComputedStyle(e).outlineStyle]; })()"
        )
        if page.evaluate("document.activeElement === document.body") or (reached and name == reached[0]):
            break
        reached.append(name)
        outlines.add(outline)
    assert reached[0] == "Skip to content"
    wanted = ["Now", "Search", "pin docker.io/library/app:v0", "Address of the mirror, as clients reach it"]
    places = [reached.index(name) for name in wanted]
    assert places == sorted(places)
    assert all(reached)
    assert outlines == {"solid"}


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (1200, "dark")])
def test_small_and_dark(mirror: MirrorProcess, registry: FakeRegistry, tmp_path: Path, width: int, scheme: str) -> None:
    """On a phone nothing lies beyond the edge; in dark mode the page is dark, and its text is readable."""
    for tag in ("v0", "v1"):
        _pull(mirror, "library/app", tag)
    options: dict[str, Any] = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with browser_page(tmp_path / "browser", **options) as opened:
        page = opened.page
        page.goto(_address(mirror))
        expect(page.locator("#image-rows tr")).to_have_count(2, timeout=_MS)
        expect(page.locator("#saved-chart svg")).to_be_visible(timeout=_MS)
        page.screenshot(path=tmp_path / f"page-{width}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        back, text = page.evaluate(
            "(() => { const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
            ".map((c) => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)); })()"
        )
        assert (back < text) == (scheme == "dark")
        assert abs(back - text) > 400
        assert opened.complaints == []
