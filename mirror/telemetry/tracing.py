"""Traces for an OpenTelemetry collector. The only file that imports the library; it is imported only if tracing is on.

    request                             server; continues the client's traceparent
    ├── tag                             what a tag points to: freeze, memory, disk or upstream
    │   └── upstream resolve            client; one for each try
    │       upstream token              client; a token was exchanged
    ├── manifest ── upstream manifest
    └── flight ──┬─ peer blob           client; until another replica's first byte; its request follows
                 ├─ upstream blob       until upstream's headers
                 ├─ fill                its body
                 └─ evict               room is made

A flight belongs to the request that began it; requests that join it say so (`mirror.cache` = `joined`). The
`traceparent` is sent to other replicas alone: upstreams are foreign hosts, and need not know which client asks for
what.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mirror import telemetry

#: Seconds within which a collector must accept a batch.
_PATIENCE: Final = 5
#: Seconds that a stopping worker waits until the remaining spans are sent.
_AT_THE_END: Final = 10
#: Most characters of an error's text.
_LONGEST: Final = 500
#: Types of attribute values that are sent.
_VALUES: Final = (str, int, float)

_Value = str | int | float | None


def start(endpoint: str, sample: float, *, version: str) -> Callable[[], Awaitable[None]]:
    """Blocking. Trace from now on; `sample` is the share of requests traced if the client has not decided. The returned
    function ends tracing and sends the remaining spans.
    """
    url = endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(sample)),
        resource=Resource.create(
            {
                "service.name": "mirror",
                "service.version": version,
                "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
            }
        ),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(_Exporter(OTLPSpanExporter(endpoint=url, timeout=_PATIENCE), url)))
    telemetry.set_tracing(_Tracing(provider.get_tracer("mirror", version)))
    telemetry.log.info("tracing started", endpoint=url, sample=sample)

    async def stop() -> None:
        telemetry.set_tracing(None)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            provider.shutdown()
            with suppress(RuntimeError):  # the loop has ended, so no task waits
                loop.call_soon_threadsafe(ended.set)

        # a daemon thread, so that a collector that hangs does not keep the process from ending
        threading.Thread(target=shut_down, daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_AT_THE_END):
                await ended.wait()

    return stop


class _Exporter(SpanExporter):
    """Logs once that the collector accepts nothing, and once that it does again, instead of a line for each try."""

    def __init__(self, inner: OTLPSpanExporter, url: str) -> None:
        self._inner = inner
        self._url = url
        self._failed = False
        self._last_message = _LastMessage()
        logger = logging.getLogger("opentelemetry.exporter")
        logger.handlers[:] = [self._last_message]
        logger.propagate = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called in a thread of the library."""
        result = self._inner.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._failed:
            telemetry.log.warning("traces cannot be sent", endpoint=self._url, reason=self._last_message.text)
        elif self._failed and not failed:
            telemetry.log.info("traces sent again", endpoint=self._url)
        self._failed = failed
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()  # type: ignore[no-untyped-call]  # the library leaves it untyped

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _LastMessage(logging.Handler):
    """Remembers the last message that the library logged."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


class _Tracing:
    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    def span(self, name: str, attributes: Mapping[str, _Value], *, client: bool = False) -> telemetry.TraceSpan:
        kind = trace.SpanKind.CLIENT if client else trace.SpanKind.INTERNAL
        made = _Span(self._tracer, name, kind, None)
        made.note(**attributes)
        return made

    def request(self, method: str, path: str, headers: Mapping[str, str]) -> telemetry.TraceSpan:
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        # without a traceparent the request begins a new trace: the span that is current here is not its parent
        parent = self._propagator.extract(carrier, contexts.Context())
        made = _Span(self._tracer, "request", trace.SpanKind.SERVER, parent)
        made.note(http__request__method=method, url__path=path[:1024])
        return made

    def headers(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier


class _Span:
    """Begins when it is entered. An error is recorded by its type and text only: a stack trace could contain a
    secret.
    """

    def __init__(self, tracer: trace.Tracer, name: str, kind: trace.SpanKind, parent: contexts.Context | None) -> None:
        self._tracer, self._name, self._kind, self._parent = tracer, name, kind, parent
        self._noted: dict[str, str | int | float] = {}

    def __enter__(self) -> telemetry.TraceSpan:
        self._span = self._tracer.start_span(
            self._name, self._parent, self._kind, record_exception=False, set_status_on_exception=False
        )
        self._token = contexts.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        contexts.detach(self._token)
        if self._span.is_recording():
            if error is not None:
                self.note(error__type=type(error).__name__)
                description = telemetry.redact(str(error))[:_LONGEST]
                self._span.set_status(trace.StatusCode.ERROR, f"{type(error).__name__}: {description}")
            elif int(self._noted.get("http.response.status_code", 0)) >= 500:
                self._span.set_status(trace.StatusCode.ERROR)
            self._span.set_attributes(self._noted)
        self._span.end()

    def note(self, **attributes: _Value) -> None:
        for name, value in attributes.items():
            if isinstance(value, _VALUES):
                self._noted[name.replace("__", ".")] = telemetry.redact(value) if isinstance(value, str) else value
