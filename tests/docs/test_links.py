"""Every link of every page leads to a file that is there, and to a heading that it has."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Final

import pytest

_ROOT: Final = Path(__file__).resolve().parents[2]
_PAGES: Final = [
    _ROOT / "README.md",
    *sorted(path for part in ("docs", "k8s", "bench", "tests") for path in (_ROOT / part).rglob("*.md")),
]
#: A link's text may hold code with brackets, as in [`[[route]]`](…).
_LINK: Final = re.compile(r"\[(?:`[^`]*`|[^\]`])*\]\(([^)\s]+)\)")


def _prose(page: Path) -> str:
    """Without blocks of code: what looks like a link or a heading there is none."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@cache
def _anchors(page: Path) -> frozenset[str]:
    """As GitHub makes them of headings: lower case, hyphens for spaces, no other signs, numbered from the second on."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", _prose(page), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return frozenset(found)


def _dead(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    dead = []
    for link in _LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and (target.suffix != ".md" or anchor not in _anchors(target.resolve()))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    """No link to a file or a heading that is not there."""
    assert _dead(page) == []


def test_a_dead_link_is_noticed(tmp_path: Path) -> None:
    """To a file, to a heading of another page, to one of its own; in code nothing is a link."""
    (tmp_path / "other.md").write_text("# One\n\n## `[[two]]` of it\n\n## One\n")
    page = tmp_path / "page.md"
    good = "[a](other.md) [b](other.md#two-of-it) [`[[c]]`](other.md#one-1) [d](#here)\n\n# Here\n"
    page.write_text(good + "[e](none.md) [`[[f]]`](other.md#three) [g](#there)\n\n```\n# There\n[h](x.md)\n```\n")
    assert _dead(page) == ["none.md", "other.md#three", "#there"]


def test_every_page_is_in_the_index() -> None:
    """docs/README.md leads to each page below docs."""
    index = _ROOT / "docs/README.md"
    led = {(index.parent / link.partition("#")[0]).resolve() for link in _LINK.findall(_prose(index))}
    assert {page for page in _PAGES if page.is_relative_to(_ROOT / "docs")} - led == {index}
