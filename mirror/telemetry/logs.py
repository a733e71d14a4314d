"""The log: one JSON object in each line, without secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TextIO, cast

import structlog

from mirror.telemetry.metrics import LOG_LOST

log: Final[structlog.typing.FilteringBoundLogger] = structlog.get_logger()

_SECRET_KEYS: Final = re.compile(r"authori[sz]ation|passw|secret|token|cookie|credential", re.IGNORECASE)
#: URL queries may hold signatures, user parts may hold passwords, and headers may hold both.
_SECRET_TEXT: Final = (
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s\"'<>?#]*)\?[^\s\"'<>]*", re.IGNORECASE), r"\1?…"),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s\"'<>/@]*@", re.IGNORECASE), r"\1…@"),
    (re.compile(r"\b(basic|bearer)\s+[a-z0-9._~+/=-]{6,}", re.IGNORECASE), r"\1 …"),
)


def redact(text: str) -> str:
    """The text without possible secrets: queries and user parts of URLs, credentials in headers."""
    for pattern, instead in _SECRET_TEXT:
        text = pattern.sub(instead, text)
    return text


def _redact_event(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Redact an event, as the last step before its line is written, so that call sites need not do so."""
    for key, value in event.items():
        if isinstance(value, str):
            if _SECRET_KEYS.search(key):
                event[key] = "…"
            elif "://" in value or "earer" in value or "asic" in value:
                event[key] = redact(value)
    return event


class _Output:
    """The stream of the log. A line that cannot be written is lost and counted, but no answer fails because of it: the
    disk of the log may be full, and the reader of a pipe may be gone.
    """

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def write(self, line: str) -> None:
        self.write_lines(line, 1)

    def write_lines(self, lines: str, count: int) -> None:
        try:
            self._output.write(lines)
            self._output.flush()
        except (OSError, ValueError):
            LOG_LOST.inc(count)

    def flush(self) -> None:
        """Nothing to do: `write` flushes each line."""


def set_up_logging(level: str = "info", output: TextIO | None = None) -> None:
    """Log JSON lines, one event each, to standard error (or `output`). JSON escapes control characters."""
    global _direct
    number = logging.getLevelNamesMapping()[level.upper()]
    processors: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        _redact_event,
        structlog.processors.JSONRenderer(ensure_ascii=True, separators=(",", ":")),
    ]
    lines = _Output(output or sys.stderr)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, lines)),
        cache_logger_on_first_use=False,
    )
    _direct = _Direct(lines, processors, tuple(processors), number)
    # libraries log through the standard module; their lines go to the same stream in the same format
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(max(number, logging.WARNING))


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


# -------------------------------------------------------------------------------- many lines that differ in few fields


@dataclass(frozen=True, slots=True)
class _Direct:
    """Where lines go that were made from a `LinePattern`, for as long as the log has these processors."""

    output: _Output
    processors: list[Any]
    configured: tuple[Any, ...]
    level: int


_direct: _Direct | None = None


class LinePattern:
    """The lines of one event that differ in few fields. All others are redacted and rendered once."""

    def __init__(self, event: str, fields: Mapping[str, object], varying: Sequence[str]) -> None:
        """`fields` are in the order of the line; those that are `varying` have any value."""
        fixed = _redact_event(None, "", {**fields, "event": event})
        pieces = ["{"]
        for key, value in {**fixed, "level": "info", "time": ""}.items():
            pieces[-1] += f"{_JSON(key)}:"
            if key == "time":
                pieces[-1] += '"'
            elif key in varying:
                pieces.append(",")
            else:
                pieces[-1] += f"{_JSON(value)},"
        #: The text before each varying field, and after the last one, up to the time.
        self.pieces: Final = tuple(pieces)

    def __repr__(self) -> str:
        return f"<LinePattern {self.pieces!r}>"


_JSON: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


def takes_lines() -> bool:
    """True if `write_lines` would write what `log.info` would. False if the log was configured in another way, or does
    not have such lines.
    """
    direct = _direct
    return (
        direct is not None
        and direct.level <= logging.INFO
        and structlog.get_config()["processors"] is direct.processors
        and tuple(direct.processors) == direct.configured
    )


def write_lines(lines: Sequence[str]) -> None:
    """Write lines that were made from a `LinePattern`, each up to its time, which is now. Raises nothing."""
    if _direct is not None:
        end = f'{datetime.now(UTC).isoformat().replace("+00:00", "Z")}"}}\n'
        _direct.output.write_lines(end.join(lines) + end, len(lines))
