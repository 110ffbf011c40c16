"""Spans: what becomes of them where a collector is, is away, or is not wanted, and what none of them may hold."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from deploy.kafka_node import free_port
from services.schedule.settings import ScheduleSettings
from shared.errors import NotFound
from shared.settings import WrongSetting, load
from shared.trace_context import trace_id
from shared.tracing import OFF, Tracing, make_tracing
from tests.otlp_fixture import Collector, collecting, until_received

ROOT = Path(__file__).resolve().parents[2]
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
CANARY = f"canary-{uuid4().hex}"
NEEDED = {
    "database_url": "postgresql+asyncpg://schedule@127.0.0.1/schedule",
    "bus_url": "postgresql+asyncpg://bus@127.0.0.1/bus",
    "service_token": "attache_none",
}


@pytest.fixture
def collector(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Collector:
    """One that is waited for at the end, however slow the machine is."""
    monkeypatch.setattr("shared.tracing_otlp.CLOSE_SECONDS", 60.0)
    return collector


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None of OpenTelemetry's variables but the test's own."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def _tracing(endpoint: str | None, **settings: Any) -> Tracing:
    return make_tracing(load(ScheduleSettings, **NEEDED, otel_exporter_otlp_endpoint=endpoint, **settings), "schedule")


def test_without_an_endpoint_nothing_is_loaded_and_everything_is_carried_on() -> None:
    program = (
        "import sys\n"
        "from services.notifications.main import create_app\n"
        "from services.notifications.settings import NotificationsSettings\n"
        "from shared.settings import load\n"
        f"create_app(load(NotificationsSettings, domain='x.example', **{NEEDED!r}))\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (ran.stdout.splitlines()[-1:], ran.returncode) == ([b"[]"], 0), ran.stderr
    assert OFF.request("GET", SAMPLED).traceparent == OFF.command("PlanTrip", "t", SAMPLED).traceparent == SAMPLED
    assert OFF.request("GET", None).traceparent is None


@pytest.mark.parametrize(("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")])
def test_what_is_switched_off_by_a_standard_variable_is_off(
    environment: pytest.MonkeyPatch, collector: Collector, name: str, value: str
) -> None:
    environment.setenv(name, value)
    assert _tracing(collector.endpoint) is OFF


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"otel_exporter_otlp_endpoint": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"otel_exporter_otlp_traces_endpoint": "collector:4318"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
        ({"otel_exporter_otlp_protocol": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ({"otel_exporter_otlp_traces_protocol": "grpc"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
    ],
)
def test_wrong_setting_is_named(given: dict[str, str], said: str, environment: pytest.MonkeyPatch) -> None:
    for name, value in given.items():
        environment.setenv(name.upper(), value)
    with pytest.raises(WrongSetting, match=said):
        load(ScheduleSettings, **NEEDED)


@pytest.mark.parametrize(
    ("general", "traces", "refused"),
    [
        ("grpc", "http/protobuf", None),
        ("http/json", "http/protobuf", None),
        ("grpc", "", "^OTEL_EXPORTER_OTLP_PROTOCOL is not http/protobuf"),
        ("http/protobuf", "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: "),
        ("protobuf", "http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL: "),
    ],
)
def test_the_protocol_for_traces_goes_before_the_general_one(
    environment: pytest.MonkeyPatch, general: str, traces: str, refused: str | None
) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", general)
    environment.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", traces)
    with nullcontext() if refused is None else pytest.raises(WrongSetting, match=refused):
        load(ScheduleSettings, **NEEDED)


@pytest.mark.parametrize(
    ("variables", "settings", "name"),
    [
        ({}, {}, "attache-schedule"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=planning,region=north"}, {}, "planning"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=planning"}, {"otel_service_name": "desk"}, "desk"),
    ],
)
async def test_spans_are_sent_at_the_end_under_the_name_that_is_set(
    environment: pytest.MonkeyPatch,
    collector: Collector,
    variables: dict[str, str],
    settings: dict[str, str],
    name: str,
) -> None:
    for variable, value in variables.items():
        environment.setenv(variable, value)
    tracing = _tracing(collector.endpoint, otel_exporter_otlp_headers="x-key=abc%20d", **settings)
    with tracing.command("PlanTrip", "t-1", SAMPLED) as span:
        assert span.traceparent != SAMPLED
    await tracing.close()
    (received,) = collector.spans
    assert span.traceparent == f"00-{TRACE}-{received.id}-01"
    assert (received.service, received.name, received.trace, received.parent) == (name, "PlanTrip", TRACE, PARENT)
    assert (collector.headers[0][""], collector.headers[0]["x-key"]) == ("/v1/traces", "abc d")


@pytest.mark.parametrize(
    ("general", "path"), [(None, "/spans"), (None, "/spans/"), ("http://127.0.0.1:9/other", "/spans")]
)
async def test_an_endpoint_for_traces_is_enough_and_taken_as_it_is(
    environment: pytest.MonkeyPatch, collector: Collector, general: str | None, path: str
) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{collector.endpoint}{path}")
    tracing = _tracing(general)
    with tracing.command("PlanTrip", "t-1", SAMPLED):
        """Something goes on."""
    await tracing.close()
    assert [headers[""] for headers in collector.headers] == [path]
    assert [received.name for received in collector.spans] == ["PlanTrip"]


async def test_headers_for_traces_stand_in_the_place_of_the_general_ones(
    environment: pytest.MonkeyPatch, collector: Collector
) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=all,x-other=all")
    environment.setenv("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-key=traces")
    tracing = _tracing(collector.endpoint)
    with tracing.command("PlanTrip", "t-1", SAMPLED):
        """Something goes on."""
    await tracing.close()
    assert (collector.headers[0]["x-key"], collector.headers[0].get("x-other")) == ("traces", None)


async def test_what_the_sampler_does_not_want_is_carried_on_unsampled(
    environment: pytest.MonkeyPatch, collector: Collector
) -> None:
    environment.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    tracing = _tracing(collector.endpoint)
    with tracing.request("GET", None) as begun, tracing.command("PlanTrip", "t", UNSAMPLED) as carried:
        for span in (begun, carried):
            assert span.traceparent is not None
            assert int(span.traceparent[-2:], 16) & 1 == 0
            assert (trace_id(span.traceparent) == TRACE) is (span is carried)
    with tracing.deriving("render", "t", [UNSAMPLED]):
        """Of changes that nobody follows."""
    await tracing.close()
    assert collector.spans == []


async def test_one_thing_made_of_several_traces_links_to_each(collector: Collector) -> None:
    tracing = _tracing(collector.endpoint)
    other = uuid4().hex
    with tracing.deriving("render", "t-1", [SAMPLED, None, f"00-{other}-{PARENT}-01", f"00-{uuid4().hex}-{PARENT}-00"]):
        """Two changes that are followed, one that is not, one without a trace."""
    await tracing.close()
    (received,) = collector.spans
    assert (received.parent, received.links) == ("", ((TRACE, PARENT), (other, PARENT)))
    assert received.trace not in (TRACE, other)


async def test_failure_is_told_by_its_kind_and_a_refusal_by_its_slug(collector: Collector) -> None:
    tracing = _tracing(collector.endpoint)
    with pytest.raises(ValueError, match=CANARY), tracing.command("PlanTrip", "t", SAMPLED):
        raise ValueError(CANARY)
    with pytest.raises(NotFound), tracing.command("CancelTrip", "t", SAMPLED):
        raise NotFound(f"there is no {CANARY}")
    with tracing.request(f"GET-{CANARY}", None) as span:
        span.answered(None, 503)
    await tracing.close()
    told = [(one.name, one.failed, {**one.attributes, "attache.trip": ""}) for one in collector.spans]
    assert told == [
        ("PlanTrip", True, {"attache.command": "PlanTrip", "attache.trip": "", "error.type": "ValueError"}),
        ("CancelTrip", False, {"attache.command": "CancelTrip", "attache.trip": "", "attache.refusal": "not-found"}),
        (
            "HTTP",
            True,
            {
                "http.request.method": "_OTHER",
                "http.response.status_code": 503,
                "error.type": "503",
                "attache.trip": "",
            },
        ),
    ]
    assert not any(CANARY.encode() in body for body in collector.bodies)


async def test_collector_that_is_away_is_said_once_and_that_it_is_back_too(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # seconds
    port = free_port()
    tracing = _tracing(f"http://127.0.0.1:{port}")

    def trace() -> None:
        with tracing.command("PlanTrip", str(UUID(int=7)), SAMPLED):
            """Nothing waits for the collector."""

    def until_said(event: str) -> None:
        end = time.monotonic() + 120
        while not any(line["event"] == event for line in lines):
            assert time.monotonic() < end, lines
            trace()
            time.sleep(0.01)

    with capture_logs() as lines:
        until_said("traces.unsent")
        with collecting(port) as back:
            until_said("traces.sent")
            until_received(back, lambda spans: len(spans) > 0)
            trace()
            await tracing.close()
    told = [(line["event"], line["service"]) for line in lines]
    assert told[:2] == [("traces.unsent", "schedule"), ("traces.sent", "schedule")]
    assert not any(one == following for one, following in pairwise(told))  # it may have been too slow once more
    assert caplog.records == []


async def test_close_does_not_wait_for_a_collector_that_hangs(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracing = _tracing(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with tracing.command("PlanTrip", "t", SAMPLED):
            """Something to send."""
        before = set(threading.enumerate())
        await tracing.close()
        # it is still at it, for a minute, and nobody waits for it, not even the end of the process
        left = [thread for thread in threading.enumerate() if thread not in before and "Thread-" in thread.name]
        assert [thread.daemon for thread in left] == [True]


def test_lost_batches_are_one_line_until_one_arrives() -> None:
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    from shared.tracing_otlp import _Exporter  # the SDK is loaded with it, so not for the other tests

    results = [SpanExportResult.FAILURE, SpanExportResult.FAILURE, SpanExportResult.SUCCESS, SpanExportResult.SUCCESS]

    class Flaky(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:  # noqa: ARG002  as the base class names it
            return results.pop(0)

    exporter = _Exporter(Flaky(), "schedule")
    with capture_logs() as lines:
        for _ in range(4):
            exporter.export([])
    assert [line["event"] for line in lines] == ["traces.unsent", "traces.sent"]
