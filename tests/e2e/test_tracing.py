"""One command from the request to the feed: one trace, in the logs of three processes and at a collector."""

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx

from tests.otlp_fixture import Collector, Received, until_received
from tests.trio_fixture import SERVICES, Trio, settled

MakeTrio = Callable[..., Awaitable[Trio]]

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
TITLE, NOTES, PATH, QUERY = (f"canary-{name}-{uuid4().hex}" for name in ("title", "notes", "path", "query"))


async def _planned(client: httpx.AsyncClient) -> tuple[str, str, str]:
    """A trip with a stop; its id, the stop's, and the address of its own delegation's feed."""
    trip = await _new(
        client,
        "/schedule/trips",
        title="To Oslo",
        principals=["Minister"],
        home={"place": "Lisbon", "zone": "Europe/Lisbon"},
        starts_on="2023-03-01",
        ends_on="2023-03-03",
    )
    stop = await _new(
        client,
        f"/schedule/trips/{trip}/stops",
        place="Oslo",
        country="Norway",
        zone="Europe/Oslo",
        arrives="2023-03-01T12:00:00",
        departs="2023-03-03T09:00:00",
    )
    ours = await _new(client, f"/participants/trips/{trip}/delegations", name="Ours", kind="own")
    links, end = f"/notifications/trips/{trip}/feed-links", time.monotonic() + 90
    while True:
        link = await client.post(links, json={"delegation": ours, "level": "full", "label": "Ours"})
        if link.status_code == 201:
            return trip, stop, link.json()["url"]
        assert (link.status_code, time.monotonic() < end) == (409, True), link.text
        await asyncio.sleep(0.02)


async def _new(client: httpx.AsyncClient, path: str, **body: Any) -> str:
    headers = {"Idempotency-Key": str(uuid4())}
    while (answer := await client.post(path, json=body, headers=headers)).status_code == 503:
        await asyncio.sleep(0.1)  # a database that was slow to answer counts as away
    assert answer.status_code == 201, answer.text
    made: str = answer.json()["id"]
    return made


async def _schedule(client: httpx.AsyncClient, trip: str, stop: str, traceparent: str) -> None:
    body = {"stop": stop, "title": TITLE, "kind": "bilateral", "start": "2023-03-02T10:00:00", "duration": "PT1H"}
    answer = await client.post(
        f"/schedule/trips/{trip}/meetings?{QUERY}=1",
        json={**body, "notes": NOTES},
        headers={"traceparent": traceparent},
    )
    assert answer.status_code == 201, answer.text


async def _until_in_feed(client: httpx.AsyncClient, url: str) -> str:
    end = time.monotonic() + 90
    while TITLE not in (feed := (await client.get(url)).text.replace("\r\n ", "")):
        assert time.monotonic() < end, feed
        await asyncio.sleep(0.02)
    return feed


def _lines(trio: Trio, service: str, trace: str) -> list[dict[str, Any]]:
    """What `grep` finds."""
    lines = (trio.folder / f"{service}.log").read_text().splitlines()
    return [json.loads(line) for line in lines if trace in line]


def _events(trio: Trio, trace: str) -> dict[str, list[str]]:
    """By service, what its lines of a trace tell of."""
    return {name: sorted(line["event"] for line in _lines(trio, name, trace)) for name in SERVICES}


async def test_one_trace_id_finds_the_way_of_a_command_in_the_logs_of_all_three(make_trio: MakeTrio) -> None:
    trio = await make_trio(None)
    trio.start(*SERVICES)
    async with trio.client() as client:
        await settled(trio, client)
        trip, stop, url = await _planned(client)
        await settled(trio, client)
        await _schedule(client, trip, stop, TRACEPARENT)
        feed = await _until_in_feed(client, url)
        await settled(trio, client)
    expected = {
        "schedule": ["http.answered", "relay.published"],
        "participants": ["message.applied"],
        "notifications": ["body.stored", "message.applied", "trip.rendered"],
    }
    end = time.monotonic() + 90  # a line comes a moment after what it tells of
    while (found := _events(trio, TRACE)) != expected and time.monotonic() < end:
        await asyncio.sleep(0.05)
    assert found == expected
    in_order = [line["event"] for line in _lines(trio, "notifications", TRACE)]
    assert in_order == ["message.applied", "trip.rendered", "body.stored"]
    assert TRACE not in feed
    assert CALLER not in feed


async def test_one_command_is_one_trace_at_the_collector_and_no_span_holds_what_it_was_about(
    make_trio: MakeTrio, collector: Collector
) -> None:
    # sent as they come: a stop gives the last ones a second and a half
    often = {"OTEL_BSP_SCHEDULE_DELAY": "200", "OTEL_EXPORTER_OTLP_TIMEOUT": "60"}
    trio = await make_trio(None, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, **often)
    trio.start(*SERVICES)
    async with trio.client() as client:
        await settled(trio, client)
        trip, stop, url = await _planned(client)
        await settled(trio, client)
        await _schedule(client, trip, stop, TRACEPARENT)
        await _until_in_feed(client, url)
        secret = url.rpartition("/")[2].removesuffix(".ics")
        for path in (f"/notifications/feeds/{secret}.ics", f"/feeds/{secret}/{PATH}", f"/schedule/{PATH}?{QUERY}=2"):
            assert (await client.get(path)).status_code == 404
        await _schedule(client, trip, stop, f"00-{TRACE.upper()}-{CALLER}-01")
        await settled(trio, client)
    await asyncio.to_thread(until_received, collector, _all_have_come)
    codes = await asyncio.to_thread(trio.stop, signal.SIGTERM, *SERVICES)
    assert codes == dict.fromkeys(SERVICES, 0), trio.said()
    _check_one_trace([span for span in collector.spans if span.trace == TRACE], trip)
    (other,) = [span for span in collector.spans if span.name == "ScheduleMeeting" and span.trace != TRACE]
    (request,) = [span for span in collector.spans if span.id == other.parent]
    assert (request.name, request.parent) == ("POST /schedule/trips/{trip}/meetings", "")  # the wrong one began anew
    assert not any("healthz" in span.name or "readyz" in span.name for span in collector.spans)
    for canary in (secret, TITLE, NOTES, PATH, QUERY, trio.token, "Oslo", "Minister", "Ours"):
        assert not any(canary.encode() in body for body in collector.bodies), canary


def _all_have_come(spans: list[Received]) -> bool:
    names = {(span.name, span.attributes.get("http.response.status_code")) for span in spans}
    return (
        sum(span.trace == TRACE for span in spans) >= 7
        and sum(span.name == "ScheduleMeeting" for span in spans) == 2
        and {("POST /schedule/trips/{trip}/meetings", 201), ("GET /feeds/{secret}.ics", 200), ("GET", 404)} <= names
    )


def _check_one_trace(spans: list[Received], trip: str) -> None:
    by_name = {(span.service.removeprefix("attache-"), span.name): span for span in spans}
    request = by_name.pop(("schedule", "POST /schedule/trips/{trip}/meetings"))
    command = by_name.pop(("schedule", "ScheduleMeeting"))
    published = [by_name.pop(("schedule", f"publish attache.schedule{kind}")) for kind in ("", ".cleared")]
    heard = [by_name.pop((name, "process attache.schedule.cleared")) for name in ("participants", "notifications")]
    render = by_name.pop(("notifications", "render"))
    assert (by_name, len(spans)) == ({}, 7)
    assert (request.kind, request.parent) == ("SERVER", CALLER)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/schedule/trips/{trip}/meetings",
        "http.response.status_code": 201,
    }
    assert (command.kind, command.parent) == ("INTERNAL", request.id)
    assert command.attributes == {"attache.command": "ScheduleMeeting", "attache.trip": trip}
    assert {(span.kind, span.parent) for span in published} == {("PRODUCER", command.id)}
    assert {(span.kind, span.parent) for span in heard} == {("CONSUMER", command.id)}
    assert heard[1].attributes["messaging.consumer.group.name"] == "attache.notifications"
    told = {name: value for name, value in heard[1].attributes.items() if not name.startswith("messaging.consumer")}
    operation = {"messaging.operation.name": "publish", "messaging.operation.type": "send"}
    assert published[1].attributes == {**told, **operation}
    assert told["messaging.destination.name"] == "attache.schedule.cleared"
    assert told["cloudevents.event_type"] == "attache.MeetingScheduled.v1"
    assert (render.parent, render.links) == (heard[1].id, ((TRACE, heard[1].id),))
    assert render.attributes == {"attache.trip": trip}
    assert not any(span.failed for span in spans)
