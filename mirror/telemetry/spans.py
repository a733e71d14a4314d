"""Spans of a trace, as the rest of the mirror makes them: they cost nothing while tracing is off.

`tracing.py` makes the real ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol


class TraceSpan(Protocol):
    """A traced period of time, entered and left with `with`; an exception that leaves it is noted."""

    def __enter__(self) -> TraceSpan: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None: ...

    def note(self, **attributes: str | int | float | None) -> None:
        """Add attributes; dots in their names are written `__`. Attributes that are None are left out."""


class Tracing(Protocol):
    """Makes spans (`mirror/telemetry/tracing.py`)."""

    def span(self, name: str, attributes: Mapping[str, str | int | float | None], *, client: bool = False) -> TraceSpan:
        """A child of the current span; it is itself the current span while it is entered."""

    def request(self, method: str, path: str, headers: Mapping[str, str]) -> TraceSpan:
        """The span of a client's request, which continues the trace of its `traceparent` (W3C Trace Context)."""

    def headers(self) -> dict[str, str]:
        """The headers by which another replica continues the trace at the current span."""


class _NoSpan:
    """The span used while tracing is off."""

    __slots__ = ()

    def __enter__(self) -> TraceSpan:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, **_: str | int | float | None) -> None:
        pass


_NO_SPAN: Final = _NoSpan()
_tracing: Tracing | None = None


def set_tracing(tracing: Tracing | None) -> None:
    """Make spans with this from now on; None: make none."""
    global _tracing
    _tracing = tracing


def span(name: str, **attributes: str | int | float | None) -> TraceSpan:
    """A span to be used in a `with`; dots in attribute names are written `__`."""
    return _NO_SPAN if _tracing is None else _tracing.span(name, attributes)


def client_span(name: str, **attributes: str | int | float | None) -> TraceSpan:
    """A span for a request of ours to another host."""
    return _NO_SPAN if _tracing is None else _tracing.span(name, attributes, client=True)


def request_span(method: str, path: str, headers: Mapping[str, str]) -> TraceSpan | None:
    """The span of a client's request; None while tracing is off."""
    return None if _tracing is None else _tracing.request(method, path, headers)


def trace_headers() -> dict[str, str]:
    """Headers for a request to another replica, which continues the trace; none while tracing is off. Upstreams are
    foreign hosts, and get none.
    """
    return {} if _tracing is None else _tracing.headers()
