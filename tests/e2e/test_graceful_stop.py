"""SIGTERM under load: every command is answered and stands in the log once, and another process goes on at once."""

import asyncio
import dataclasses
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from uuid import uuid4

import asyncpg
import httpx
import pytest

from deploy.kafka_node import free_port
from shared.messages import topic_of
from tests.trio_fixture import Trio, told, until

TRIP = {
    "title": "To Oslo",
    "principals": ["Minister"],
    "home": {"place": "Lisbon", "zone": "Europe/Lisbon"},
    "starts_on": "2023-03-01",
    "ends_on": "2023-03-03",
}
LEADER = (
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = 2 AND objid = 0 AND objsubid = 2 AND granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)

TRIES = 3
"""It serves on for four seconds: who looks may be held up for longer, and then there is nothing to be seen."""


@pytest.fixture(params=["local", "kafka"])
async def two(
    request: pytest.FixtureRequest, make_trio: Callable[..., Awaitable[Trio]]
) -> AsyncIterator[tuple[Trio, Trio]]:
    """Two processes of the schedule service, the first of which leads."""
    first = await make_trio(request.getfixturevalue("kafka_address") if request.param == "kafka" else None)
    port = free_port()
    environment = {**first.environment, "SCHEDULE_PORT": str(port)}
    second = dataclasses.replace(first, environment=environment, ports={**first.ports, "schedule": port}, processes={})
    try:
        for one in (first, second):
            await _started(one)
            await until(lambda: _is_led_by_another(first, 0), 120, first)  # by the first, before there is a second
        yield first, second
    finally:
        for process in second.processes.values():
            process.kill()
            process.wait()


async def test_a_stop_under_load_loses_nothing_and_hands_over_at_once(two: tuple[Trio, Trio]) -> None:
    leading, standby = two
    done: list[str] = []
    for _ in range(TRIES):
        stop = await _stopped_under_load(leading, standby)
        done += stop.done
        if stop.answers is not None and stop.serves_on:
            break
        await _started(leading)
        leading, standby = standby, leading
    assert stop.answers == (503, 200, "close")
    assert stop.serves_on
    stored = Counter(str(row["key"]) for row in await _rows(leading, "SELECT key FROM events"))
    assert stored == dict.fromkeys(done, 1)
    bus = leading.bus()
    assert {key for _, key, _ in await told(bus, topic_of("schedule", openly=False), set(stored))} == set(stored)
    await bus.close()


@dataclass(frozen=True, kw_only=True)
class Stop:
    """What was seen of one: which trips were acknowledged meanwhile, what it said, whether it outlived its lead."""

    done: list[str]
    answers: tuple[int, int, str] | None
    serves_on: bool


async def _stopped_under_load(leading: Trio, standby: Trio) -> Stop:
    led = await _leader(leading)
    assert led is not None
    [before] = await _rows(leading, "SELECT count(*) FROM events")
    stopped = asyncio.Event()
    async with leading.client() as client, standby.client() as other:
        load = [asyncio.create_task(_plan_trips(client, other, stopped)) for _ in range(6)]
        await until(lambda: _has_trips(leading, before["count"] + 20), 120, leading)
        began = time.monotonic()
        leading.processes["schedule"].send_signal(signal.SIGTERM)
        answers = await _told_while_it_stops(client)
        await until(lambda: _is_led_by_another(leading, led), 120, leading)
        serves_on = leading.processes["schedule"].poll() is None
        led_after = time.monotonic() - began
        code = await asyncio.to_thread(leading.processes.pop("schedule").wait, 120)
        ended_after = time.monotonic() - began
        stopped.set()
        done = [one for task in load for one in await task]
        await until(lambda: _all_published(standby), 120, standby)
    print(f"another leads after {led_after:.2f} s, ended after {ended_after:.2f} s, {len(done)} commands")
    assert code == 0, leading.said()
    return Stop(done=done, answers=answers, serves_on=serves_on)


async def _started(one: Trio) -> None:
    one.start("schedule")
    async with one.client() as client:
        await until(lambda: _ready(client), 120, one)


async def _told_while_it_stops(client: httpx.AsyncClient) -> tuple[int, int, str] | None:
    """How it says that it stops, and the status and the connection of another answer; None where it has ended."""
    try:
        while "stopping" not in (red := await client.get("/schedule/readyz")).json()["reasons"]:
            pass
        alive = await client.get("/schedule/healthz")
    except httpx.TransportError:
        return None
    return red.status_code, alive.status_code, alive.headers["connection"]


async def _plan_trips(client: httpx.AsyncClient, other: httpx.AsyncClient, stopped: asyncio.Event) -> list[str]:
    """Trips, one after the other, each by one command with one key; by the other process once the first is gone."""
    done = []
    asked = client
    while not stopped.is_set():
        headers = {"Idempotency-Key": str(uuid4())}
        while True:
            try:
                answer = await asked.post("/schedule/trips", json=TRIP, headers=headers)
            except httpx.TransportError:
                assert asked is client
                asked = other
                continue
            if answer.status_code != 503:  # a database that was slow to answer counts as away
                break
        assert answer.status_code == 201, answer.text
        done.append(answer.json()["id"])
    return done


async def _ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/schedule/readyz")).status_code == 200


async def _leader(trio: Trio) -> int | None:
    rows = await _rows(trio, LEADER)
    return rows[0]["pid"] if rows else None


async def _is_led_by_another(trio: Trio, before: int) -> bool:
    return await _leader(trio) not in (None, before)


async def _has_trips(trio: Trio, count: int) -> bool:
    [row] = await _rows(trio, "SELECT count(*) FROM events")
    return bool(row["count"] >= count)


async def _all_published(trio: Trio) -> bool:
    [row] = await _rows(trio, "SELECT (SELECT position FROM relay_cursor) = (SELECT max(position) FROM events) AS all_")
    return bool(row["all_"])


async def _rows(trio: Trio, query: str) -> "list[asyncpg.Record]":
    connection = await asyncpg.connect(trio.databases["schedule"].replace("+asyncpg", ""))
    try:
        return list(await connection.fetch(query))
    finally:
        await connection.close()
