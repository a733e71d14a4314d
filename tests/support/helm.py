"""Charts, rendered by Helm itself: its own library, which the test extra brings."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.kustomize import Object
from tests.support.process import run

#: Helm is written in Go, whose runtime has threads and signal handlers of its own: it gets a process of its own, too.
_RENDER = """
import json, sys
import helm_python
folder, values, namespace = sys.argv[1:]
with helm_python.Chart.load(folder) as chart:
    print(json.dumps(chart.render(json.loads(values), name="mirror", namespace=namespace)))
"""
_LINT = """
import json, sys
import helm_python
print(json.dumps(helm_python.lint(sys.argv[1])))
"""


def files(chart: Path, values: dict[str, Any], *, namespace: str = "mirror") -> dict[str, str]:
    """The text that each template renders to, by its path in the chart, as `helm template` has it. Raises
    `CommandFailed`, with what Helm says, if the values do not fit the chart's schema.
    """
    rendered: dict[str, str] = json.loads(run([sys.executable, "-c", _RENDER, chart, json.dumps(values), namespace]))
    return rendered


def render(chart: Path, values: dict[str, Any], *, namespace: str = "mirror") -> list[Object]:
    """Every object of a chart, but for its notes. Raises `CommandFailed`."""
    texts = [text for name, text in files(chart, values, namespace=namespace).items() if name.endswith(".yaml")]
    return [one for text in texts for one in yaml.safe_load_all(text) if one is not None]


def lint(chart: Path) -> list[str]:
    """What Helm finds wrong with a chart, but for remarks."""
    found = json.loads(run([sys.executable, "-c", _LINT, chart]))
    # 1: a remark, such as that there is no icon
    wrong: list[str] = [message["error"] for message in found["messages"] if message["severity"] > 1]
    return [*wrong, *map(str, found["errors"])]
