"""What is kept of damaged blobs that were set aside."""

from __future__ import annotations

import pytest

from mirror.oci.digest import Digest
from mirror.policy.quarantine_limits import QuarantinedBlob, QuarantineLimits

NOW = 1_000_000.0
LARGE = 1 << 50


def aside(number: int, size: int = 100) -> QuarantinedBlob:
    """Set aside so many seconds ago."""
    return QuarantinedBlob(Digest.of(str(number).encode()), size, NOW - number)


def test_what_is_old_goes() -> None:
    """From the end of its time on; the oldest first."""
    kept = [aside(5), aside(30), aside(10), aside(9), aside(-100)]
    assert QuarantineLimits(10**9, 10.0).surplus(kept, NOW, LARGE) == [aside(30), aside(10)]


def test_of_what_is_too_much_the_newest_stays() -> None:
    """As many as fit; what is older than one that does not fit goes as well, so that what stays has no holes."""
    kept = [aside(1), aside(2, 150), aside(3, 100), aside(4, 1)]
    assert QuarantineLimits(350, 1e9).surplus(kept, NOW, LARGE) == [aside(4, 1)]
    assert QuarantineLimits(249, 1e9).surplus(kept, NOW, LARGE) == [aside(4, 1), aside(3, 100), aside(2, 150)]
    assert QuarantineLimits(99, 1e9).surplus(kept, NOW, LARGE) == kept[::-1]


def test_a_small_store_keeps_less() -> None:
    """Never more than a tenth of what all blobs may take."""
    assert QuarantineLimits().surplus([aside(1), aside(2)], NOW, 2000) == []
    assert QuarantineLimits().surplus([aside(1), aside(2)], NOW, 1999) == [aside(2)]


@pytest.mark.parametrize("nothing", [QuarantineLimits(size=0), QuarantineLimits(keep=0.0)])
def test_limits_of_zero(nothing: QuarantineLimits) -> None:
    """Where one of both is 0, an empty file goes too."""
    kept = [aside(2, 0), aside(1, 7)]
    assert nothing.surplus(kept, NOW, LARGE) == kept


def test_only_so_many() -> None:
    """However small they are: each look at the store lists them."""
    kept = [aside(number, 0) for number in range(1003)]
    assert QuarantineLimits().surplus(kept, NOW, LARGE) == [aside(1002, 0), aside(1001, 0), aside(1000, 0)]
