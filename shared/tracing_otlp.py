"""Spans to a collector, by OTLP over HTTP, with OpenTelemetry's own SDK.

The standard variables say the rest: `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`,
`OTEL_EXPORTER_OTLP_*`. Spans go from a bounded queue, in a thread of their own: a collector that is away costs what it
would have been sent, and one line. Parents are named by `traceparent` alone, as they come; nothing hangs on the context
of a task. Names of attributes are those of the semantic conventions (HTTP, messaging, CloudEvents).
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from threading import Thread
from types import TracebackType
from typing import Any, Final

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.util.re import parse_env_headers

from shared.bus import Record
from shared.errors import Refusal
from shared.messages import Message, topic_of
from shared.settings import Settings
from shared.trace_context import read, trace_id
from shared.tracing import Span, Tracing

CLOSE_SECONDS = 1.5
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"})
_SAMPLED: Final = TraceFlags.SAMPLED
_ROOT: Final = Context()
"""No parent: what happens to be current in a task is none of a span's business."""

log = structlog.get_logger()


def otlp_tracing(settings: Settings, service: str) -> "OtlpTracing":
    """A service's spans go to the endpoint for traces as it is, or to `/v1/traces` below the general one."""
    for name in ("opentelemetry.exporter", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a line for each attempt; `_Exporter` says it once
    headers = settings.otel_exporter_otlp_traces_headers or settings.otel_exporter_otlp_headers
    exporter = OTLPSpanExporter(
        endpoint=settings.otel_exporter_otlp_traces_endpoint or f"{settings.otel_exporter_otlp_endpoint}/v1/traces",
        headers=parse_env_headers(headers.get_secret_value(), liberal=True) if headers is not None else None,
    )
    provider = TracerProvider(resource=_resource(settings, service), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Exporter(exporter, service)))
    return OtlpTracing(provider, settings.bus)


class OtlpTracing(Tracing):
    """The traces of one service, recorded as far as the sampler wants them."""

    on = True

    def __init__(self, provider: TracerProvider, bus: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("attache")
        self._bus = bus

    def request(self, method: str, traceparent: str | None) -> Span:
        method = method if method in _METHODS else "_OTHER"
        attributes = {"http.request.method": method}
        return _OtlpSpan(self._start(_verb(method), SpanKind.SERVER, traceparent, attributes), method)

    def command(self, name: str, trip: str, traceparent: str) -> Span:
        attributes = {"attache.command": name, "attache.trip": trip}
        return _OtlpSpan(self._start(name, SpanKind.INTERNAL, traceparent, attributes))

    def published(self, records: Sequence[Record], began: int) -> None:
        ended = time.time_ns()
        for record in records:
            envelope = {name.removeprefix("ce_"): value for name, value in record.headers}
            attributes = self._messaging("publish", "send", record.topic, envelope)
            name, parent = f"publish {record.topic}", read(envelope.get("traceparent"))
            self._start(name, SpanKind.PRODUCER, parent, attributes, began=began).end(ended)

    def taking(self, message: Message, group: str) -> Span:
        topic = topic_of(message.source.rpartition("/")[2], openly=False)
        envelope = {
            "id": message.id,
            "type": message.ce_type,
            "source": message.source,
            "subject": message.subject,
            "partitionkey": message.key,
        }
        attributes = self._messaging("process", "process", topic, envelope)
        attributes["messaging.consumer.group.name"] = group
        return _OtlpSpan(self._start(f"process {topic}", SpanKind.CONSUMER, message.traceparent, attributes))

    def deriving(self, name: str, trip: str, traceparents: Iterable[str | None]) -> Span:
        """Within the trace of its changes if they are of one; else a trace of its own that links to all of them."""
        given = [one for one in traceparents if one]
        changes = [one for one in given if _context(one).trace_flags & _SAMPLED]
        if given and not changes:
            return Span(given[-1])
        parent = changes[-1] if len({trace_id(one) for one in changes}) == 1 else None
        links = [Link(_context(one)) for one in changes]
        return _OtlpSpan(self._start(name, SpanKind.INTERNAL, parent, {"attache.trip": trip}, links=links))

    async def close(self) -> None:
        # a thread that nobody waits for: an exporter amid an attempt cannot be cancelled
        ending = Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, CLOSE_SECONDS)

    def _start(
        self,
        name: str,
        kind: SpanKind,
        parent: str | None,
        attributes: Mapping[str, str],
        *,
        links: Sequence[Link] = (),
        began: int | None = None,
    ) -> trace.Span:
        context = _ROOT if parent is None else trace.set_span_in_context(NonRecordingSpan(_context(parent)), _ROOT)
        return self._tracer.start_span(name, context, kind, attributes, links, began)

    def _messaging(self, name: str, kind: str, topic: str, envelope: Mapping[str, str]) -> dict[str, str]:
        key = {"messaging.kafka.message.key": envelope["partitionkey"]} if self._bus == "kafka" else {}
        return {
            "messaging.system": self._bus,
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
            "messaging.destination.name": topic,
            "messaging.message.id": envelope["id"],
            "cloudevents.event_id": envelope["id"],
            "cloudevents.event_type": envelope["type"],
            "cloudevents.event_source": envelope["source"],
            "cloudevents.event_subject": envelope["subject"],
            **key,
        }


class _OtlpSpan(Span):
    __slots__ = ("_method", "_span")

    def __init__(self, span: trace.Span, method: str = "") -> None:
        context = span.get_span_context()
        super().__init__(f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}")
        self._span = span
        self._method = method

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Refusal):
            self._span.set_attribute("attache.refusal", error.slug)  # an answer, and no fault of the service
        elif kind is not None:
            # the kind alone: messages of exceptions hold values
            self._span.set_attribute("error.type", kind.__qualname__)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()

    def answered(self, route: str | None, status: int) -> None:
        if route is not None:
            self._span.set_attribute("http.route", route)
            self._span.update_name(f"{_verb(self._method)} {route}")
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(StatusCode.ERROR)


class _Exporter(SpanExporter):
    """Says in one line that spans are lost, and in one more that they arrive again."""

    def __init__(self, inner: SpanExporter, service: str) -> None:
        self._inner = inner
        self._service = service
        self._well = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        well = result is SpanExportResult.SUCCESS
        if self._well and not well:
            log.warning("traces.unsent", service=self._service, said="the collector does not take them; they are lost")
        elif well and not self._well:
            log.info("traces.sent", service=self._service)
        self._well = well
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)


def _resource(settings: Settings, service: str) -> Resource:
    """Named as OTEL_SERVICE_NAME says, or else OTEL_RESOURCE_ATTRIBUTES, or else after the service."""
    given: Mapping[str, Any] = OTELResourceDetector().detect().attributes
    name = settings.otel_service_name or given.get("service.name") or f"attache-{service}"
    return Resource.create({"service.name": name})


def _context(traceparent: str) -> SpanContext:
    _, trace_hex, span_hex, flags = traceparent.split("-")
    return SpanContext(int(trace_hex, 16), int(span_hex, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _verb(method: str) -> str:
    return "HTTP" if method == "_OTHER" else method
