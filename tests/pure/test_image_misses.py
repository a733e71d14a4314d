"""Records of misses: one for each image, bounded in every direction."""

from __future__ import annotations

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.image_misses import MOST_BLOBS, Miss, joined

_APP = Repo("docker.io", "library/app")


def _digest(number: int) -> Digest:
    return Digest.of(b"%d" % number)


def test_names() -> None:
    """As other commands take them; a repository alone is no image."""
    assert Miss(_APP, "v1", 0, 0).image == "docker.io/library/app:v1"
    assert Miss(_APP, _digest(1), 0, 0).image == f"docker.io/library/app@{_digest(1)}"
    assert Miss(_APP, None, 0, 0).image == "docker.io/library/app"


def test_two_of_one_image() -> None:
    """Counts add up, the span of time covers both, in whichever order they come."""
    early, late = Miss(_APP, "v1", 1, 5, 2, (_digest(1),)), Miss(_APP, "v1", 3, 9, 3, (_digest(2),))
    for one, other in ((early, late), (late, early)):
        assert one.and_(other) == Miss(_APP, "v1", 1, 9, 5, (_digest(2), _digest(1)))


def test_blobs_are_bounded() -> None:
    """Those that were asked for last stay."""
    miss = Miss(_APP, None, 0, 0)
    for number in range(100):
        miss = miss.and_(Miss(_APP, None, number, number, 1, (_digest(number),)))
    assert miss.blobs == tuple(_digest(99 - number) for number in range(MOST_BLOBS))


def test_joined() -> None:
    """One for each image, the most recent first; the least recent leave."""
    misses = [Miss(_APP, f"v{number % 5}", number, number) for number in range(10)]
    assert [(miss.image[-2:], miss.count) for miss in joined(misses, most=3)] == [("v4", 2), ("v3", 2), ("v2", 2)]
