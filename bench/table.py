"""Results as a Markdown table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.results import FIGURES, Figure, Results
from bench.systems import NGINX, REGISTRY


def as_table(results: Results, systems: Sequence[str], facts: Mapping[str, str]) -> str:
    """Median and, in brackets, lowest and highest of all rounds; one row for each figure that was measured."""
    header = ["figure", "unit", *systems, "÷ nginx", "÷ docker-registry", "target", ""]
    rows = [_row(figure, results, systems) for figure in FIGURES if figure.key in results.values]
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [_line(header, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    lines += [_line(row, widths) for row in rows]
    return "\n".join([*lines, "", *(f"{name}: {value}" for name, value in facts.items())])


def as_json(results: Results, facts: Mapping[str, str]) -> dict[str, Any]:
    """Every round's value, and the verdicts."""
    return {
        "machine": dict(facts),
        "figures": {
            figure.key: {
                "title": figure.title,
                "unit": figure.unit,
                "values": results.values[figure.key],
                "targets": [str(target) for target in figure.targets],
                "met": results.met(figure),
            }
            for figure in FIGURES
            if figure.key in results.values
        },
    }


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _row(figure: Figure, results: Results, systems: Sequence[str]) -> list[str]:
    verdict = {None: "", True: "met", False: "**missed**"}[results.met(figure)]
    return [
        figure.title,
        figure.unit,
        *(_cell(figure.key, system, results) for system in systems),
        *(_ratio(results.ratio(figure.key, against)) for against in (NGINX, REGISTRY)),
        ", ".join(str(target) for target in figure.targets),
        verdict,
    ]


def _cell(key: str, system: str, results: Results) -> str:
    median, spread = results.median(key, system), results.spread(key, system)
    if median is None or spread is None:
        return "–"
    return f"{_number(median)} ({_number(spread[0])}–{_number(spread[1])})"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
