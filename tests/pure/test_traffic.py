"""Hits, savings, and how they are kept over time."""

from __future__ import annotations

from mirror.policy.traffic import Traffic, add_point, read_points, since


def _requests(**counts: int) -> list[tuple[dict[str, str], float]]:
    return [({"kind": "blob", "status": "200", "cache": cache}, float(count)) for cache, count in counts.items()]


def test_hits_need_no_download() -> None:
    """Hits, followed downloads, confirmed and stale tags count; what failed counts for nothing."""
    requests = _requests(hit=5, joined=1, revalidated=1, stale=1, miss=1, bypass=1, none=100)
    requests += [({"kind": "manifest", "status": "404", "cache": "miss"}, 50.0)]
    requests += [({"kind": "tags", "status": "200", "cache": "hit"}, 50.0)]
    found = Traffic.of(requests, [({}, 1000.0), ({}, 500.0)], [({}, 400.0)])
    assert (found.requests, found.hits, found.hit_ratio, found.saved) == (10, 8, 0.8, 1100)


def test_nothing_is_saved_ahead_of_time() -> None:
    """What was fetched before anybody asked is no debt, and before the first request there is no ratio."""
    assert (Traffic(received=10).saved, Traffic().hit_ratio) == (0, None)


def test_totals_that_begin_anew() -> None:
    """Between two totals is their difference; after a restart everything is new."""
    before, after = Traffic(10, 5, 100, 50), Traffic(12, 6, 150, 50)
    assert since(after, before) == Traffic(2, 1, 50, 0)
    assert since(Traffic(3, 1, 10, 10), before) == Traffic(3, 1, 10, 10)


def test_old_points_are_dropped() -> None:
    """The oldest go, and what a clock that was set has left in the future; nonsense in the file is passed over."""
    points = add_point([(0.0, Traffic()), (50.0, Traffic()), (999.0, Traffic())], 100.0, Traffic(1), 60.0)
    assert [at for at, _ in points] == [50.0, 100.0]
    assert read_points([[1, 2, 1, 3, 4], [1, 2], "x", [1, 2, "3", 4, 5]]) == [(1.0, Traffic(2, 1, 3, 4))]
    assert read_points("nonsense") == []
