"""The section of the web page about hosted images, in a real browser, on a mirror of two workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.clients.conftest import OPEN_TO_PUSHES
from tests.support.browser import Seen, browser_page
from tests.support.images import Pusher
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, eventually

_MS = PATIENCE * 1000
_QUOTA = 'name = "corp"\nquota = "1GB"\n[[hosted.immutable]]\ntags = ["v*"]'
_HOSTED = OPEN_TO_PUSHES.replace('name = "corp"', _QUOTA) + '\n[admin]\nlisten = "127.0.0.1:0"'


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[MirrorProcess]:
    """With an image under a tag that is immutable and one that is not, and its page on a loopback port."""
    with MirrorProcess(write_config(tmp_path, {"docker.io": "http://127.0.0.1:9"}, more=_HOSTED)) as running:
        with closing(Pusher(running.url, "corp/team/app")) as pusher:
            image = pusher.image([{"own": b"first"}])
            for tag in ("v1", "latest"):
                pusher.tag("corp", tag, image)
        yield running


@pytest.fixture
def seen(mirror: MirrorProcess, tmp_path: Path) -> Iterator[Seen]:
    """The open page. At the end the browser has logged no error but of refusals."""

    def address() -> str | None:
        said = [line["address"] for line in mirror.log if line.get("event") == "admin listening"]
        return next((one for one in said if not one.startswith("unix:")), None)

    with browser_page(tmp_path / "browser", viewport={"width": 1200, "height": 900}) as opened:
        opened.page.goto(f"http://{eventually(address, 'the page is served')}/")
        expect(opened.page.locator("#connection")).to_have_text("live", timeout=_MS)
        yield opened
        assert opened.complaints == []


def _answer(page: Page, verb: str) -> None:
    """Answers the question by keyboard."""
    dialog = page.locator("#question")
    expect(dialog).to_be_visible(timeout=_MS)
    expect(page.locator("#question-no")).to_be_focused()
    if verb != "no":
        page.keyboard.press("Tab")
        expect(page.locator("#question-yes")).to_have_text(verb)
        expect(page.locator("#question-yes")).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden(timeout=_MS)


def test_what_is_hosted_is_shown(mirror: MirrorProcess, seen: Seen) -> None:
    """The quota, the repository with its size, and which tag is immutable; a repository leads to its images."""
    page = seen.page
    expect(page.locator("#quota-rows")).to_contain_text("of 1.0 GB", timeout=_MS)
    row = page.locator("#repository-rows li", has_text="corp/team/app")
    expect(row).to_contain_text("2 tags, 1 manifest", timeout=_MS)
    expect(page.locator("#collection-text")).to_contain_text("round")
    row.get_by_role("button").click()
    expect(page.locator("#image-rows tr")).to_have_count(2, timeout=_MS)
    expect(page.locator("#image-rows tr", has_text="app:v1")).to_contain_text("immutable")
    assert page.get_by_label("delete corp/team/app:v1", exact=True).count() == 0
    page.get_by_label("Search repositories", exact=True).fill("nothing")
    expect(page.locator("#repository-rows")).to_have_text("no such repository is here", timeout=_MS)


def test_a_tag_is_deleted_and_undeleted_after_a_question(mirror: MirrorProcess, seen: Seen) -> None:
    """By keyboard; whoever says no, or presses Escape, changes nothing."""
    page = seen.page
    button = page.get_by_label("delete corp/team/app:latest", exact=True)
    for leave in ("no", "Escape"):
        button.focus()
        page.keyboard.press("Enter")
        # the texts of the last question are still in the dialog while it is hidden
        expect(page.locator("#question")).to_be_visible(timeout=_MS)
        expect(page.locator("#question-title")).to_have_text("Delete corp/team/app:latest?", timeout=_MS)
        expect(page.locator("#question-lines")).to_contain_text("The tag goes; its image stays")
        expect(page.locator("#question-lines")).to_contain_text("It can be undeleted until")
        if leave == "no":
            _answer(page, "no")
        else:
            page.keyboard.press("Escape")
        expect(page.locator("#question")).to_be_hidden(timeout=_MS)
        expect(button).to_be_focused(timeout=_MS)
        assert mirror.get("/v2/corp/team/app/manifests/latest")[0] == 200
    page.keyboard.press("Enter")
    _answer(page, "delete")
    expect(page.locator("#notice")).to_have_text("corp/team/app:latest is deleted", timeout=_MS)
    assert mirror.get("/v2/corp/team/app/manifests/latest")[0] == 404
    undelete = page.get_by_label("undelete corp/team/app:latest", exact=True)
    expect(undelete).to_be_visible(timeout=_MS)
    expect(page.locator("#deleted-rows")).to_contain_text("to undo until")
    undelete.focus()
    page.keyboard.press("Enter")
    _answer(page, "undelete")
    expect(page.locator("#notice")).to_have_text("corp/team/app:latest is back", timeout=_MS)
    expect(page.locator("#deleted-rows")).to_have_text("nothing was deleted that can be undeleted", timeout=_MS)
    assert mirror.get("/v2/corp/team/app/manifests/latest")[0] == 200


def test_a_refusal_is_shown_before_the_question(mirror: MirrorProcess, seen: Seen) -> None:
    """A tag that somebody has frozen meanwhile."""
    page = seen.page
    button = page.get_by_label("delete corp/team/app:latest", exact=True)
    expect(button).to_be_visible(timeout=_MS)
    refusal = {"errors": [{"code": "DENIED", "message": "the tag is frozen", "detail": {}}]}
    page.route("**/admin/v1/hosted/**", lambda route: route.fulfill(status=403, body=json.dumps(refusal)))
    button.click()
    expect(page.locator("#notice")).to_have_text("corp/team/app:latest: the tag is frozen", timeout=_MS)
    expect(page.locator("#question")).to_be_hidden()
    # the browser itself tells of the refusal
    seen.complaints[:] = [one for one in seen.complaints if "403" not in one]
