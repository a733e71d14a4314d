"""What every implementation of `Pins` does. A test class inherits `PinsSuite` and supplies the fixtures.

`pins` is empty; `another` is the same pins in another process.
"""

from __future__ import annotations

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import Pin
from mirror.ports import Pins

_REPO = Repo("docker.io", "library/app")
_TAG = Pin(_REPO, "1.0", "the release", 5.0)
_DIGEST = Pin(_REPO, Digest.of(b"x"), "", 6.0, 99.5)


class PinsSuite:
    """Fixtures to supply: `pins`, `another`."""

    def test_pins_come_back_as_they_were_put(self, pins: Pins, another: Pins) -> None:
        """By tag and by digest, with and without an end; another process sees them, and none is unreadable."""
        pins.put(_TAG)
        pins.put(_DIGEST)
        assert set(another.all()) == {_TAG, _DIGEST}
        found, unread = another.look()
        assert set(found) == {_TAG, _DIGEST}
        assert list(unread) == []
        assert another.get(_REPO, "1.0") == _TAG
        assert another.get(_REPO, Digest.of(b"x")) == _DIGEST
        assert another.get(_REPO, "2.0") is None

    def test_a_dropped_pin_is_gone(self, pins: Pins, another: Pins) -> None:
        """And others stay; repeatable."""
        pins.put(_TAG)
        pins.put(_DIGEST)
        assert another.drop(_REPO, "1.0")
        assert not another.drop(_REPO, "1.0")
        assert list(pins.all()) == [_DIGEST]

    def test_a_pin_that_is_put_again_is_replaced(self, pins: Pins, another: Pins) -> None:
        """There is one pin for each tag or digest of a repository."""
        pins.put(_TAG)
        pins.put(newer := Pin(_REPO, "1.0", "until the audit", 7.0, 8.0))
        assert list(another.all()) == [newer]
