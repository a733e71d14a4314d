"""What came of a run: figures to print, and what makes it a failed one."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.soaking.clients import Clients, Failure
from bench.soaking.history import Checked

_MIB: Final = 1 << 20
_SHOWN: Final = 20


@dataclass(slots=True)
class LogRead:
    """Of all lives of the mirror: warnings and errors by event, lines that speak of a crash, unexplained deaths."""

    events: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """`figures` are shown in order. `corrupt` and `failures` are shown whole, up to a bound."""

    figures: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    failed_pulls: int = 0
    corrupt: list[dict[str, Any]] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        """What does not hold fails the run."""
        if not holds:
            self.problems.append(problem)

    def text(self) -> str:
        """For people, and for the README."""
        width = max(map(len, self.figures), default=0)
        lines = [f"{name:<{width}}  {value}" for name, value in self.figures.items()]
        for failure in self.failures[:_SHOWN]:
            warm = ", all of it here" if failure.warm else ""
            lines.append(f"failed at {failure.at} s: {failure.kind} of {failure.what}{warm}")
            lines += [f"    {problem[:400]}" for problem in failure.problems]
        lines += [f"corrupt: {json.dumps(one)}" for one in self.corrupt]
        lines += [f"crash: {line[:2000]}" for line in self.crashes[:_SHOWN]]
        lines += [f"PROBLEM: {problem}" for problem in self.problems]
        return "\n".join([*lines, "failed" if self.problems else "passed"])

    def add_clients(self, clients: Clients, checked: Checked) -> None:
        """Operations, answers, and what was wrong with them."""
        self.failures, self.corrupt = clients.failures, checked.corrupt
        self.failed_pulls = sum(clients.failed.values())
        self.figures["operations"] = _counts(clients.done + clients.failed)
        self.figures["tried again"] = _counts(clients.retried)
        self.figures["failed after ordinary retry"] = _counts(clients.failed)
        self.figures["warm pulls, failed of them"] = f"{clients.warm_pulls}, {clients.warm_failed}"
        self.figures["answers"] = _counts(checked.answers)
        self.figures["statuses"] = _counts(checked.statuses)
        self.figures["complete 200 and 206 bodies checked"] = f"{checked.bodies}"
        self.figures["corrupt bodies"] = f"{checked.wrong}"
        self.figures["cut bodies"] = f"{checked.cut}, {checked.cut_and_wrong} of them with wrong bytes before the cut"
        self.figures["pulled"] = f"{checked.received / _MIB:,.0f} MiB, unique {checked.unique / _MIB:,.0f} MiB"
        self.expect(checked.wrong == 0, f"{checked.wrong} corrupt bodies")
        self.expect(checked.bodies > 0, "nothing was pulled")
        self.expect(clients.warm_failed == 0, f"{clients.warm_failed} warm pulls failed")
        self.expect(clients.bad_lists == 0, f"{clients.bad_lists} tag lists were wrong")

    def add_logs(self, read: LogRead) -> None:
        """What the mirror said itself."""
        self.figures["warnings and errors in the log"] = _counts(read.events)
        self.figures["crash lines"] = f"{len(read.crashes)}"
        self.crashes = [*read.crashes, *read.deaths]
        self.expect(not read.crashes, f"{len(read.crashes)} lines of crashes in the log")
        self.expect(not read.deaths, f"{len(read.deaths)} workers ended that nobody killed")


def read_logs(logs: Sequence[Path]) -> LogRead:
    """Line by line: they are long."""
    found = LogRead()
    for log in logs:
        with log.open(errors="replace") as file:
            for line in file:
                if "Traceback" in line or "crashed" in line:
                    found.crashes.append(f"{log.name}: {line.rstrip()}")
                if '"level":"info"' in line or '"level"' not in line:
                    continue
                entry = json.loads(line)
                found.events[str(entry.get("event"))] += 1
                if (entry.get("event") == "worker died" and entry.get("code") != -9) or "drain timeout" in line:
                    found.deaths.append(f"{log.name}: {line.rstrip()}")
    return found


def damaged_files(blobs: Path) -> tuple[int, list[str]]:
    """How many blobs lie in the store, and those whose bytes are not what their names say."""
    count, wrong = 0, []
    for place in blobs.glob("sha256/*/*"):
        count += 1
        with place.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != place.name:
                wrong.append(place.name)
    return count, wrong


def _counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{name} {counts[name]}" for name in sorted(counts)) or "none"
