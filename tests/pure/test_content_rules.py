"""What may be pulled through, whoever asks."""

from __future__ import annotations

import json

import pytest

from mirror.errors import Denied
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, read_manifest
from mirror.oci.reference import Repo
from mirror.policy.content_rules import ContentLists, ContentRule, ImagePattern, check_size, patterns

_APP = Repo("docker.io", "library/app")
_LOCAL = Repo("localhost:5000", "app")
_DIGEST, _OTHER = Digest.of(b"x"), Digest.of(b"y")


@pytest.mark.parametrize(
    ("pattern", "repo", "tag", "digest", "fits"),
    [
        ("docker.io/library/app", _APP, "1.0", _DIGEST, True),
        ("docker.io/library/app", _APP, None, None, True),
        ("docker.io/**", _APP, "1.0", None, True),
        ("docker.io/*", _APP, "1.0", None, False),
        ("ghcr.io/**", _APP, "1.0", None, False),
        ("docker.io/library/app:1.*", _APP, "1.0", _DIGEST, True),
        ("docker.io/library/app:1.*", _APP, "2.0", _DIGEST, False),
        ("docker.io/library/app:1.*", _APP, None, _DIGEST, False),
        ("**:latest", _APP, "latest", None, True),
        (f"docker.io/library/app@{_DIGEST}", _APP, "1.0", _DIGEST, True),
        (f"docker.io/library/app@{_DIGEST}", _APP, None, _OTHER, False),
        (f"**@{_DIGEST}", _LOCAL, None, _DIGEST, True),
        ("localhost:5000/app", _LOCAL, "1.0", None, True),
        ("localhost:5000/app:1.0", _LOCAL, "1.0", None, True),
        ("localhost:5000/app:1.0", _LOCAL, "1.1", None, False),
    ],
)
def test_what_a_pattern_means(pattern: str, repo: Repo, tag: str | None, digest: Digest | None, fits: bool) -> None:
    """A repository, a tag of it, or a digest of it."""
    assert ImagePattern(pattern).fits(repo, tag, digest) is fits


@pytest.mark.parametrize("text", ["", ":1", "@x", "a b", "app@sha256:12", f"app:1@{_DIGEST}", "app:"])
def test_what_is_no_pattern(text: str) -> None:
    """A mistake must not deny nothing, or allow everything."""
    with pytest.raises(ValueError, match="not"):
        ImagePattern(text)


def _lists(allow: list[str], deny: list[str]) -> ContentLists:
    return ContentLists(patterns(allow), patterns(deny))


def test_denying_goes_first() -> None:
    """What is on both lists is denied; what is on none is, where there is a list of what is allowed."""
    lists = _lists(["docker.io/**"], ["docker.io/library/app:1.*", f"**@{_OTHER}"])
    lists.check(_APP, "2.0", _DIGEST)
    for tag, digest in [("1.0", _DIGEST), ("2.0", _OTHER), (None, _OTHER)]:
        with pytest.raises(Denied, match="is denied here by"):
            lists.check(_APP, tag, digest)
    with pytest.raises(Denied, match="on no list"):
        lists.check(_LOCAL, "1.0", None)
    with pytest.raises(Denied, match="is denied here by"):
        lists.check_blob(_APP, _OTHER)
    lists.check_blob(_APP, _DIGEST)


def test_a_tag_that_is_allowed_allows_its_digest() -> None:
    """Clients ask by tag first and go on by digest; another tag is refused."""
    lists = _lists(["docker.io/library/app:2.*"], [])
    lists.check(_APP, "2.0", None)
    lists.check(_APP, None, _DIGEST)
    with pytest.raises(Denied):
        lists.check(_APP, "3.0", None)
    with pytest.raises(Denied):
        lists.check(_LOCAL, None, _DIGEST)


def test_without_lists() -> None:
    """Everything is allowed."""
    ContentLists().check(_APP, "1.0", _DIGEST)


def test_a_digest_that_is_required() -> None:
    """A tag is refused with the word what to do instead."""
    rule = ContentRule(require_digest=True)
    rule.check_reference(_APP, _DIGEST)
    with pytest.raises(Denied, match=r"docker.io/library/app@sha256:… instead of docker.io/library/app:1.0"):
        rule.check_reference(_APP, "1.0")
    ContentRule().check_reference(_APP, "1.0")


def test_the_size_of_an_image() -> None:
    """Config and layers together, those with `urls` too; an image that does not say it is as good as too large."""

    def descriptor(size: int, **more: object) -> dict[str, object]:
        return {"mediaType": "application/x", "digest": str(Digest.of(b"%d" % size)), "size": size, **more}

    body = {
        "schemaVersion": 2,
        "config": descriptor(10),
        "layers": [descriptor(40), descriptor(50, urls=["https://example.com"])],
    }
    manifest = read_manifest(json.dumps(body).encode(), OCI_MANIFEST)
    check_size(ContentRule(largest=100), _APP, manifest)
    check_size(ContentRule(), _APP, manifest)
    with pytest.raises(Denied, match="has 100 B: at most 99 B may be pulled"):
        check_size(ContentRule(largest=99), _APP, manifest)
    old = {"schemaVersion": 1, "fsLayers": [{"blobSum": str(_DIGEST)}], "signatures": []}
    unsized = read_manifest(json.dumps(old).encode())
    check_size(ContentRule(), _APP, unsized)
    with pytest.raises(Denied, match="does not say its size"):
        check_size(ContentRule(largest=10**12), _APP, unsized)
