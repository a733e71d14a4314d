"""Mistakes in `[events]`, and what is only a warning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mirror.config import hints, load, redacted_settings
from mirror.errors import ConfigError
from mirror.policy.events.changes import TYPES
from mirror.policy.events.subscriptions import matching_types

_HOSTED = '[[hosted]]\nname = "corp"\n'


def _load(folder: Path, text: str) -> list[str]:
    """The mistakes, or else the warnings about events."""
    file = folder / "mirror.toml"
    file.write_text(_HOSTED + text)
    try:
        return [hint for hint in hints(load(file)) if hint.startswith("events")]
    except ConfigError as error:
        return list(error.mistakes)


def _endpoint(**settings: object) -> str:
    return "[[events.endpoint]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "ci"}, "needs either url or url_file"),
        ({"name": "ci", "url": "https://x.test/", "url_file": "/x"}, "needs either url or url_file"),
        ({"url": "https://x.test/"}, "events.endpoint[1].name: must be set"),
        ({"name": "CI", "url": "https://x.test/"}, "events.endpoint[1].name"),
        ({"name": "ci", "url": "ftp://x.test/"}, "url: not an http or https URL"),
        ({"name": "ci", "url": "https://me:secret@x.test/"}, "url: contains a user"),
        ({"name": "ci", "url": "https://x.test/ a"}, "url: not an http or https URL that may be used"),
        ({"name": "ci", "url": "https://x.test/", "events": ["pushed"]}, "matches no type of events"),
        ({"name": "ci", "url": "https://x.test/", "events": []}, "events.endpoint[1].events"),
        ({"name": "ci", "url": "https://x.test/", "repositories": ["corp"]}, "matches nothing"),
        ({"name": "ci", "url": "https://x.test/", "timeout": "0s"}, "events.endpoint[1].timeout"),
        ({"name": "ci", "url": "https://x.test/", "proxy": "socks5://x"}, "neither http://host:port nor env"),
        ({"name": "ci", "url": "https://x.test/", "secret_file": "/nowhere"}, "secret_file: /nowhere cannot be read"),
        ({"name": "ci", "url": "https://x.test/", "ca_file": "/nowhere"}, "ca_file: /nowhere cannot be read: No such"),
        ({"name": "ci", "url_file": "/nowhere"}, "events.endpoint[1].url_file"),
    ],
)
def test_mistakes_of_an_endpoint(tmp_path: Path, settings: dict[str, object], expected: str) -> None:
    """Each is named by its setting; no URL is quoted."""
    mistakes = _load(tmp_path, _endpoint(**settings))
    assert [mistake for mistake in mistakes if expected in mistake], mistakes
    assert "secret@" not in "".join(mistakes)
    assert "x.test" not in "".join(mistakes)


def test_mistakes_in_files(tmp_path: Path) -> None:
    """An empty secret would send without a signature; a URL in a file is checked like one in the settings."""
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "url").write_text("nonsense with a token")
    text = _endpoint(name="ci", url_file=str(tmp_path / "url"), secret_file=str(tmp_path / "empty"))
    mistakes = _load(tmp_path, text)
    assert [mistake.partition(":")[0] for mistake in mistakes] == [
        "events.endpoint[1].secret_file",
        "events.endpoint[1].url_file",
    ] or len(mistakes) == 2
    assert "token" not in "".join(mistakes)


def test_an_endpoint_gets_all_but_two_types(tmp_path: Path) -> None:
    """If it does not say which: what docs/configuration.md promises, also of types that are added later."""
    file = tmp_path / "mirror.toml"
    file.write_text(_endpoint(name="ci", url="https://x.test/"))
    [endpoint] = load(file).events.endpoint
    taken = {kind for pattern in endpoint.events for kind in matching_types(pattern)}
    assert set(TYPES) - taken == {"mirror.image.mounted", "mirror.image.pulled"}


def test_two_endpoints_of_one_name(tmp_path: Path) -> None:
    """What waits is kept by name."""
    mistakes = _load(tmp_path, 2 * _endpoint(name="ci", url="https://x.test/"))
    assert mistakes == ["events.endpoint: ci is the name of two endpoints"]


def test_warnings(tmp_path: Path) -> None:
    """What is valid, but most likely not what was meant."""
    (tmp_path / "secret").write_text("between us\n")
    assert _load(tmp_path, _endpoint(name="ci", url="https://x.test/")) == [
        "events.endpoint[1]: without secret_file, ci cannot know that events come from here"
    ]
    more = {"secret_file": str(tmp_path / "secret"), "repositories": ["crop/**", "corp/**"]}
    assert _load(tmp_path, _endpoint(name="ci", url="https://x.test/", **more)) == [
        "events.endpoint[1].repositories[1]: crop/** matches no registry that is configured here"
    ]


def test_the_url_is_not_shown(tmp_path: Path) -> None:
    """Given in the settings or in a file: it may contain a secret."""
    (tmp_path / "url").write_text("https://x.test/hook?token=hidden\n")
    file = tmp_path / "mirror.toml"
    file.write_text(
        _endpoint(name="a", url_file=str(tmp_path / "url")) + _endpoint(name="b", url="https://x.test/?token=hidden")
    )
    config = load(file)
    assert [each.url.get_secret_value() for each in config.events.endpoint if each.url] == [
        "https://x.test/hook?token=hidden",
        "https://x.test/?token=hidden",
    ]
    assert "hidden" not in json.dumps(redacted_settings(config))
    assert "hidden" not in repr(config)
