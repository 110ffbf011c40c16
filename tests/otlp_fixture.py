"""A collector in a test: takes spans by OTLP over HTTP, keeps them decoded, and every byte that came."""

import contextlib
import gzip
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan


@dataclass(frozen=True, kw_only=True)
class Received:
    """A span as it came; ids are hexadecimal, `links` are (trace id, span id)."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    links: tuple[tuple[str, str], ...]
    attributes: dict[str, Any]
    failed: bool


@dataclass(kw_only=True)
class Collector:
    """What came. `bodies` are the requests' bytes, for what may stand nowhere in them."""

    port: int
    spans: list[Received] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, body: bytes, headers: dict[str, str]) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        self.bodies.append(body)
        self.headers.append(headers)
        for resource in request.resource_spans:
            service = next(one.value.string_value for one in resource.resource.attributes if one.key == "service.name")
            self.spans += [_received(span, service) for scope in resource.scope_spans for span in scope.spans]


Collecting = Callable[..., contextlib.AbstractContextManager[Collector]]
"""`with collecting() as collector`, `collecting(port)`."""


@contextlib.contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    """A collector, until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            received.take(body, {name.lower(): value for name, value in self.headers.items()} | {"": self.path})
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    received = Collector(port=server.server_port)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector for the test's time."""
    with collecting() as made:
        yield made


def until_received(collector: Collector, holds: Callable[[list[Received]], bool], patience: float = 120.0) -> None:
    """Until the spans that came are as wanted."""
    end = time.monotonic() + patience
    while not holds(collector.spans):
        assert time.monotonic() < end, "\n".join(map(str, collector.spans))
        time.sleep(0.02)


def _received(span: ProtoSpan, service: str) -> Received:
    return Received(
        service=service,
        name=span.name,
        kind=ProtoSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        attributes={
            one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value") for one in span.attributes
        },
        failed=span.status.code == 2,
    )
