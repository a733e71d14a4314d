"""An OpenTelemetry collector's stand-in on loopback: takes traces by OTLP over HTTP, and decodes them.

with Collector() as collector:
    ... endpoint=collector.url ...
    collector.spans
"""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Received:
    """A span; ids in hexadecimal, `parent` empty at a root, `kind` such as SERVER, `failed` with its message."""

    name: str
    kind: str
    trace: str
    span: str
    parent: str
    attributes: dict[str, str | int | float]
    failed: str | None


class Collector:
    """Keeps all that it is sent; `status` is what it answers."""

    def __init__(self, status: int = 200) -> None:
        self.spans: list[Received] = []
        self.resources: list[dict[str, str | int | float]] = []
        self.paths: list[str] = []
        #: The received bytes, for tests that look for what must not be in them.
        self.raw = b""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                outer._take(self.path, body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def named(self, name: str) -> list[Received]:
        """The spans of one name."""
        return [one for one in self.spans if one.name == name]

    def _take(self, path: str, body: bytes) -> None:
        self.paths.append(path)
        self.raw += body
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            self.resources.append({one.key: _value(one.value) for one in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans += [_received(span) for span in scope.spans]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _received(span: Span) -> Received:
    return Received(
        span.name,
        Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        {one.key: _value(one.value) for one in span.attributes},
        span.status.message if span.status.code == 2 else None,
    )


def _value(value: object) -> str | int | float:
    found = getattr(value, value.WhichOneof("value"))  # type: ignore[attr-defined]
    assert isinstance(found, str | int | float)
    return found
