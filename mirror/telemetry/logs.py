"""The log: one JSON object in each line, without secrets."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
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
        try:
            self._output.write(line)
            self._output.flush()
        except (OSError, ValueError):
            LOG_LOST.inc()

    def flush(self) -> None:
        """Nothing to do: `write` flushes each line."""


def set_up_logging(level: str = "info", output: TextIO | None = None) -> None:
    """Log JSON lines, one event each, to standard error (or `output`). JSON escapes control characters."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            _redact_event,
            structlog.processors.JSONRenderer(ensure_ascii=True, separators=(",", ":")),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Output(output or sys.stderr))),
        cache_logger_on_first_use=False,
    )
    # libraries log through the standard module; their lines go to the same stream in the same format
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(max(number, logging.WARNING))


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)
