"""The Grafana dashboard fits the mirror that it is for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from mirror import telemetry
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import live_mirror

_BOARD: dict[str, Any] = json.loads((Path(__file__).parents[2] / "config/grafana-dashboard.json").read_text())
_NAME = re.compile(r"\bmirror_\w+")
#: Labels that Prometheus adds.
_SCRAPED = {"job", "instance", "le"}


def _expressions() -> list[str]:
    return [target["expr"] for panel in _BOARD["panels"] for target in panel.get("targets", ())]


async def test_every_metric_and_label_of_the_dashboard_exists(tmp_path: Path) -> None:
    """What its expressions and variables name is in the exposition of a mirror, with the labels that they sum by."""
    with FakeRegistry() as registry:
        async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
            text = (await mirror.ask("/metrics")).body.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    # a counter is called without its suffix here, a histogram without that of its samples
    names = {f"{name}_total" if one.type == "counter" else name for name, one in families.items()}
    names |= {f"{name}_bucket" for name, one in families.items() if one.type == "histogram"}
    queries = [variable["definition"] for variable in _BOARD["templating"]["list"] if variable["type"] == "query"]
    expressions = [*_expressions(), *queries]
    assert len(expressions) > 40
    for expression in expressions:
        found = set(_NAME.findall(re.sub(r"\{[^}]*\}", "", expression)))
        assert found, expression
        assert found <= names, (expression, found - names)


def test_its_labels_are_declared() -> None:
    """Labels that an expression selects or sums by are ones of the metrics that it names, or of the scrape."""
    labels: dict[str, set[str]] = {}
    for one in vars(telemetry).values():
        if isinstance(one, MetricWrapperBase):
            labels[one._name] = set(one._labelnames)
    for expression in _expressions():
        used = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in re.split(r",\s*", group)}
        used |= set(re.findall(r"(\w+)=~?\"", expression))
        metrics = [re.sub(r"_(total|bucket)$", "", name) for name in _NAME.findall(expression)]
        assert used <= _SCRAPED.union(*(labels[name] for name in metrics)), expression


def test_every_metric_of_hosting_and_of_replicas_is_shown() -> None:
    """What pushes, copies, events and replicas are counted by has a panel: whoever declares one more adds it."""
    shown = {
        re.sub(r"_(total|bucket)$", "", name) for expression in _expressions() for name in _NAME.findall(expression)
    }
    groups = (
        "pushes",
        "received",
        "uploads",
        "hosted",
        "ledger",
        "collect",
        "cop",
        "replication",
        "retention",
        "backup",
        "events",
        "peer",
        "leases",
    )
    declared = {one._name for one in vars(telemetry).values() if isinstance(one, MetricWrapperBase)}
    hosting = {name for name in declared if name.removeprefix("mirror_").startswith(groups)}
    assert len(hosting) > 25
    assert hosting - shown == set()


def test_each_panel_stands_for_itself() -> None:
    """Ids are unique, none covers another, and each asks the data source that is chosen, for the mirrors chosen."""
    panels = _BOARD["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
    for expression in _expressions():
        selectors = re.findall(r"mirror_\w+(\{[^}]*\})?", expression)
        assert all('job=~"$job", instance=~"$instance"' in one for one in selectors), expression
    variables = {one["name"]: one["type"] for one in _BOARD["templating"]["list"]}
    assert variables == {"datasource": "datasource", "job": "query", "instance": "query"}
