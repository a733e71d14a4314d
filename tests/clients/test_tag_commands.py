"""The commands for the history of tags, with a real registry whose tag moves and a real client that pulls by tag."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from tests.support.command import mirror as command
from tests.support.images import Published, Pusher
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import eventually
from tests.support.registry_process import RegistryProcess
from tests.support.skopeo import Skopeo, compare_directory

_REPOSITORY: Final = "library/moving"
_IMAGE: Final = f"docker.io/{_REPOSITORY}:1.2.3"
_AT: Final = f"/v2/{_REPOSITORY}/manifests/1.2.3"
_TREE: Final = Path(__file__).resolve().parents[2]


@pytest.fixture
def registry(directory: Path) -> Iterator[RegistryProcess]:
    with RegistryProcess(directory / "registry") as process:
        yield process


def _push(registry: RegistryProcess, word: str, tag: str = "1.2.3") -> Published:
    """Move the tag to an image that says this word."""
    with Pusher(registry.url, _REPOSITORY) as pusher:
        return pusher.tag("docker.io", tag, pusher.image([{"etc/word": word.encode()}]))


class _Commands:
    """`mirror …` as people run it."""

    def __init__(self, config: Path) -> None:
        self._config = config

    def __call__(self, *words: str, code: int = 0) -> str:
        """Standard output of a command that ends with this code, or standard error where that is not 0."""
        done = command(words[0], "--config", self._config, *words[1:])
        assert done.status == code, f"{words}: {done}"
        return done.err if code else done.out

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


def _answers(mirror: MirrorProcess, digest: str) -> bool:
    """Whether every worker says so, as far as twenty connections meet them all."""
    asked = [mirror.get(_AT, method=method) for method in ("GET", "HEAD") * 10]
    return all(status == 200 and headers["Docker-Content-Digest"] == digest for status, headers, _ in asked)


def test_a_tag_that_moved_is_frozen_where_it_was(registry: RegistryProcess, directory: Path) -> None:
    """Push, pull, push, pull; freeze at the first, and skopeo gets it by tag from two workers, upstream gone; unfreeze,
    and it gets the second.
    """
    first = _push(registry, "first")
    config = write_config(directory, {"docker.io": registry.url}, tag_ttl="0s")
    mirror_command = _Commands(config)
    with MirrorProcess(config) as mirror:
        mirror.wait_for_workers(2)
        skopeo, target = Skopeo(directory, mirror.address), directory / "copy"
        skopeo.copy(_IMAGE, target)
        second = _push(registry, "second")
        skopeo.copy(_IMAGE, target)
        compare_directory(target, second, every_platform=True)
        moved = mirror.wait_for_event("version tag moved")
        assert (moved["level"], moved["was"], moved["now"]) == ("warning", first.digest, second.digest)
        assert mirror.metrics()['mirror_version_tags_moved_total{upstream="docker.io"}'] == 1

        history = mirror_command.json("history", _IMAGE)
        assert [(one["digest"], one["complete"], one["answers"]) for one in history["sightings"]] == [
            (second.digest, True, True),
            (first.digest, True, False),
        ]
        assert (history["answers"], history["frozen"]) == (second.digest, None)

        assert first.digest in mirror_command("freeze", _IMAGE, "--at", first.digest, "--reason", "1.2.3 was moved")
        eventually(lambda: _answers(mirror, first.digest), "both workers see the freeze")
        before = len(registry.requests())
        skopeo.copy(_IMAGE, target)
        compare_directory(target, first, every_platform=True)
        assert len(registry.requests()) == before
        with registry.stopped():
            skopeo.copy(_IMAGE, target)
            compare_directory(target, first, every_platform=True)
        assert mirror.requests(path=_AT)[-1]["tag"] == "frozen"

        [frozen] = mirror_command.json("freezes")
        assert (frozen["image"], frozen["digest"], frozen["reason"]) == (_IMAGE, first.digest, "1.2.3 was moved")
        shown = mirror_command("history", _IMAGE)
        assert re.search(rf"{first.digest}.*complete.*frozen", shown)
        assert f"{_IMAGE} is frozen at {first.digest}" in shown
        assert first.digest in mirror_command("freezes")

        mirror_command("unfreeze", _IMAGE)
        eventually(lambda: _answers(mirror, second.digest), "both workers see that it is over")
        skopeo.copy(_IMAGE, target)
        compare_directory(target, second, every_platform=True)
        assert "is not frozen" in mirror_command("unfreeze", _IMAGE, code=1)
        assert mirror_command.json("freezes") == []


def test_freezing_at_a_date_and_at_what_it_is(registry: RegistryProcess, directory: Path) -> None:
    """A date means what the tag pointed to then; without one, what it points to now, also if that has to be asked."""
    first = _push(registry, "first")
    config = write_config(directory, {"docker.io": registry.url}, tag_ttl="0s", workers=1)
    LocalStore(Layout(directory / "store"))
    command = _Commands(config)
    assert first.digest in command("freeze", _IMAGE)
    command("unfreeze", _IMAGE)
    # as if it had been seen in January, and then until it moved
    history = directory / f"store/repositories/docker.io/{_REPOSITORY}/_history/1.2.3"
    written = json.loads(history.read_bytes())
    [sighting] = written["sightings"]
    sighting["firstSeen"] = 1735689600.0
    history.write_text(json.dumps(written))
    second = _push(registry, "second")
    with MirrorProcess(config) as mirror:
        assert _answers(mirror, second.digest)
        assert second.digest in command("freeze", _IMAGE)
        assert first.digest in command("freeze", _IMAGE, "--at", "2025-01-31")
        eventually(lambda: _answers(mirror, first.digest), "it is back in January")
        # what is frozen stays what it is
        assert first.digest in command("freeze", _IMAGE, "--reason", "again")
    output = command("freeze", _IMAGE, "--at", "2024-12-31T23:59:59", code=1)
    assert "begins at 2025-01-01T00:00:00Z" in output
    assert command.json("history", _IMAGE)["answers"] == first.digest


def test_freezing_at_any_digest_of_the_repository(registry: RegistryProcess, directory: Path) -> None:
    """Upstream is asked for a digest that this mirror has never seen, and the image is fetched when it is pulled; a
    digest that does not exist is an error, and changes nothing.
    """
    image, other = _push(registry, "first"), _push(registry, "other", tag="9.9")
    config = write_config(directory, {"docker.io": registry.url}, workers=1)
    LocalStore(Layout(directory / "store"))
    command = _Commands(config)
    output = command("freeze", f"{_REPOSITORY}:1.2.3@{other.digest}")
    assert "1 missing" in output
    unknown = "sha256:" + "0" * 64
    assert f"has no manifest {unknown}, neither here nor upstream" in command("freeze", _IMAGE, "--at", unknown, code=1)
    with MirrorProcess(config) as mirror:
        target = directory / "copy"
        Skopeo(directory, mirror.address).copy(_IMAGE, target)
        compare_directory(target, other, every_platform=True)
        assert mirror.get(f"/v2/{_REPOSITORY}/manifests/{image.digest}")[0] == 200
    with registry.stopped():
        assert other.digest in command("freeze", _IMAGE, "--at", other.digest)
        assert "no connection to docker.io" in command("freeze", _IMAGE, "--at", unknown, code=1)


def test_a_minimum_age_in_the_configuration(registry: RegistryProcess, directory: Path) -> None:
    """A moved tag still answers its old digest, a new tag is refused, and `mirror history` shows what is held back."""
    first = _push(registry, "first")
    config = write_config(directory, {"docker.io": registry.url}, tag_ttl="0s", workers=1)
    with MirrorProcess(config) as mirror:
        assert _answers(mirror, first.digest)
    config.write_text(config.read_text().replace('tag_ttl = "0s"', 'tag_ttl = "0s"\nminimum_age = "1h"'))
    command = _Commands(config)
    with MirrorProcess(config) as mirror:
        status, _, body = mirror.get(_AT)
        assert status == 403
        assert b"minimum_age" in body
        history = directory / f"store/repositories/docker.io/{_REPOSITORY}/_history/1.2.3"
        written = json.loads(history.read_bytes())
        written["sightings"][0]["firstSeen"] -= 3601
        history.write_text(json.dumps(written))
        assert _answers(mirror, first.digest)
        second = _push(registry, "second")
        target = directory / "copy"
        Skopeo(directory, mirror.address).copy(_IMAGE, target)
        compare_directory(target, first, every_platform=True)
        assert mirror.requests(path=_AT)[-1]["tag"] == "minimum-age"
    found = command.json("history", _IMAGE)
    assert [(one["digest"], one["held_back"], one["answers"]) for one in found["sightings"]] == [
        (second.digest, True, False),
        (first.digest, False, True),
    ]
    assert found["newest_served_from"]
    assert found["sightings"][0]["here"] is False
    assert re.search(rf"{second.digest}.*not here.*held back", command("history", _IMAGE))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("history", "docker.io/library/never:1"), 1, "never seen"),
        (("history", "example.org/app:1"), 2, "not configured"),
        (("history", "UPPER:1"), 2, "not a repository name"),
        (("history", "app@sha256:" + "0" * 64), 2, "never moves"),
        (("freeze", "app:1", "--at", "yesterday"), 2, "not a date"),
        (("freeze", "app:1", "--at", "2999-01-01"), 2, "in the future"),
        (("freeze", "app:1", "--at", "sha256:short"), 2, "sha256:short"),
        (("freeze", "app:1", "--at", "2025-01-31"), 1, "no history"),
        (("freeze", "app:1@sha256:" + "0" * 64, "--at", "2025-01-31"), 2, "tag without a digest"),
        (("unfreeze", "app:1"), 1, "is not frozen"),
    ],
)
def test_bad_arguments(directory: Path, words: tuple[str, ...], code: int, message: str) -> None:
    """Each mistake has a clear message: exit status 2 for invalid arguments, 1 for what cannot be done."""
    config = write_config(directory, {"docker.io": "http://127.0.0.1:9"})
    commands = _Commands(config)
    # if there is no store yet, the message says that instead
    LocalStore(Layout(directory / "store"))
    assert message in commands(*words, code=code)
