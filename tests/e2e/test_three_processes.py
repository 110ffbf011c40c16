"""The three services as three processes do the same as the one, and lose and repeat nothing when one is killed."""

import asyncio
import contextlib
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from deploy.kafka_node import KafkaNode
from services.demo.load_file import Loaded, LoadFile
from services.demo.player import play
from services.demo.trip_file import DEMO, read_trip_file
from shared.messages import topic_of
from tests.trio_fixture import ROOT, SERVICES, Trio, settled, told, until

if TYPE_CHECKING:
    from tests.conftest import PostgresServer
    from tests.e2e.conftest import StartUp

GRACE_PERIOD = 45.0
"""Seconds after which Compose kills what was asked to stop."""
UUIDS = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SEQUENCES = re.compile(r"^SEQUENCE:([0-9]+)\r$", re.MULTILINE)
MODIFIED = re.compile(r"^LAST-MODIFIED:(.*)\r$", re.MULTILINE)
STAMPS = re.compile(r"^(DTSTAMP|LAST-MODIFIED|CREATED):.*$", re.MULTILINE)


@pytest.fixture
def one_process_feeds(start_up: "StartUp", loaded_folder: Path) -> dict[tuple[str, str], list[str]]:
    """Every feed of the demo trip as the one process on the local bus serves it, by delegation and level."""
    up = start_up(loaded_folder)
    run = up.ready()
    with httpx.Client(trust_env=False, timeout=120) as client:
        feeds = {
            (feed["delegation"], feed["level"]): _comparable(client.get(feed["url"]).text) for feed in run["feeds"]
        }
    assert up.stop() == 0
    return feeds


@pytest.mark.parametrize("bus", ["local", "kafka"])
async def test_three_processes_do_as_the_one_and_lose_nothing_when_each_is_killed_in_turn(
    bus: str,
    request: pytest.FixtureRequest,
    make_trio: Callable[..., Awaitable[Trio]],
    one_process_feeds: dict[tuple[str, str], list[str]],
) -> None:
    trio = await make_trio(request.getfixturevalue("kafka_address") if bus == "kafka" else None)
    trio.start(*SERVICES)
    async with trio.client() as client:
        loaded = await play(read_trip_file(DEMO), client, LoadFile(trio.folder / "load.json"))
        await settled(trio, client)
        await _served(client, loaded, one_process_feeds)
        await _measure(client, loaded, bus)
        await _kill_each_in_a_stream(trio, client, loaded)
        await settled(trio, client)
        await _nothing_lost_or_repeated(trio)
        await _stopped_in_the_middle_of_commands(trio, client, loaded)
        assert trio.command("verify", *SERVICES) == dict.fromkeys(SERVICES, 0), trio.said()


async def test_kafka_that_is_away_holds_up_no_command_and_no_feed_and_then_all_arrives(
    make_trio: Callable[..., Awaitable[Trio]], breakable_kafka: KafkaNode
) -> None:
    node = breakable_kafka
    node.stop()  # its port is known, and nobody answers there
    trio = await make_trio(node.address)
    trio.start(*SERVICES)
    async with trio.client() as client:
        await _alive(trio, client)
        trip, _, meeting = await _planned(client)
        node.start()
        node.wait_ready(180)
        delegation, url = await _subscribed(client, trip)
        await settled(trio, client)
        await _until_in(client, url, "SUMMARY:Talks")
        node.kill()
        for number in range(10):
            await _do(client, f"/schedule/meetings/{meeting}/revise", {"title": f"Talks {number}"})
            await _do(client, f"/participants/delegations/{delegation}/rename", {"name": f"Ours {number}"})
        assert "SUMMARY:Talks" in await _text(client, url)
        for name in SERVICES:
            assert (await client.get(f"/{name}/healthz")).status_code == 200
        await until(lambda: _stalled(client, "schedule"), 120, trio)
        node.start()
        node.wait_ready(180)
        await _until_in(client, url, "SUMMARY:Talks 9")
        await settled(trio, client)
        await _nothing_lost_or_repeated(trio)
        codes = trio.stop(signal.SIGTERM, *SERVICES)
    assert codes == dict.fromkeys(SERVICES, 0), trio.said()


@pytest.mark.parametrize("bus", ["local", "kafka"])
async def test_a_database_that_is_put_back_takes_its_ghosts_out_of_the_feeds(
    bus: str,
    request: pytest.FixtureRequest,
    make_trio: Callable[..., Awaitable[Trio]],
    postgres_server: "PostgresServer",
) -> None:
    trio = await make_trio(request.getfixturevalue("kafka_address") if bus == "kafka" else None)
    trio.start(*SERVICES)
    async with trio.client() as client:
        await _alive(trio, client)
        trip, stop, meeting = await _planned(client)
        url = (await _subscribed(client, trip))[1]
        await _until_in(client, url, "SUMMARY:Talks")
        await settled(trio, client)
        before = await _text(client, url)
        assert trio.stop(signal.SIGTERM, "schedule") == {"schedule": 0}, trio.said()
        live, backup = await _copied(postgres_server, trio.databases["schedule"])
        trio.start("schedule")
        await _alive(trio, client)
        ghost = {**MEETING, "stop": stop, "title": "Ghost", "start": "2023-03-02T14:00:00"}
        await _new(client, f"/schedule/trips/{trip}/meetings", ghost)
        await _do(client, f"/schedule/meetings/{meeting}/revise", {"title": "Ghost talks"})
        await _until_in(client, url, "SUMMARY:Ghost")
        await _until_in(client, url, "SUMMARY:Ghost talks")
        assert trio.command("restored", "schedule") == {"schedule": 1}  # it runs
        trio.stop(signal.SIGKILL, "schedule")
        await _put_back(postgres_server, live, backup)
        assert trio.command("restored", "schedule") == {"schedule": 0}, trio.said()
        trio.start("schedule")
        await _until_in(client, url, "SUMMARY:Talks")
        after = await _text(client, url)
        assert "SUMMARY:Ghost" not in after
        assert _unstamped(after) == _unstamped(before)
        assert sorted(SEQUENCES.findall(after)) == ["0", "1"]  # the stop's, and the meeting's that went back
        await _do(client, f"/schedule/meetings/{meeting}/revise", {"title": "True talks"})
        await _until_in(client, url, "SUMMARY:True talks")
        await settled(trio, client)
        trio.stop(signal.SIGTERM, *SERVICES)
        assert trio.command("verify", *SERVICES) == dict.fromkeys(SERVICES, 0), trio.said()


async def test_when_all_databases_are_put_back_no_calendar_entry_is_told_as_an_older_one(
    make_trio: Callable[..., Awaitable[Trio]], postgres_server: "PostgresServer"
) -> None:
    """What calendars saw after the backup is known to nobody any more: the feeds' own database was put back too."""
    trio = await make_trio(None)
    trio.start(*SERVICES)
    async with trio.client() as client:
        await _alive(trio, client)
        trip, _, meeting = await _planned(client)
        url = (await _subscribed(client, trip))[1]
        await _until_in(client, url, "SUMMARY:Talks")
        await settled(trio, client)
        before = await _text(client, url)
        trio.stop(signal.SIGTERM, *SERVICES)
        copies = [await _copied(postgres_server, trio.databases[name]) for name in SERVICES]
        trio.start(*SERVICES)
        await _alive(trio, client)
        for hour in (11, 12, 13):
            await _do(client, f"/schedule/meetings/{meeting}/reschedule", {"start": f"2023-03-02T{hour}:00:00"})
        await _until_in(client, url, "DTSTART;TZID=Europe/Oslo:20230302T130000")
        seen = await _text(client, url)
        trio.stop(signal.SIGKILL, *SERVICES)
        for live, backup in copies:
            await _put_back(postgres_server, live, backup)
        assert trio.command("restored", *SERVICES) == dict.fromkeys(SERVICES, 0), trio.said()
        trio.start(*SERVICES)
        await _alive(trio, client)
        await _until_in(client, url, "DTSTART;TZID=Europe/Oslo:20230302T100000")
        await settled(trio, client)
        highest = max(map(int, SEQUENCES.findall(seen)))
        assert highest == 3
        after = await _until_above(client, url, highest)
        assert _unstamped(after) == _unstamped(before)
        assert min(MODIFIED.findall(after)) > max(MODIFIED.findall(seen))
        trio.stop(signal.SIGTERM, *SERVICES)
        epochs = await _epochs(trio)
        await until(lambda: _left_alone(trio), 120, trio)  # at the server a connection outlives its client for a moment
        command = [sys.executable, "-m", "services", "restored", "--nothing-lost"]
        process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **trio.environment}, cwd=ROOT)
        assert await process.wait() == 0
        risen = {name for name, epoch in (await _epochs(trio)).items() if epoch > epochs[name]}
        assert risen == {"schedule", "participants"}  # a drill's feeds keep every byte
        assert trio.command("verify", *SERVICES) == dict.fromkeys(SERVICES, 0), trio.said()


async def _epochs(trio: Trio) -> dict[str, int]:
    found = {name: await _rows(trio.databases[name], "SELECT epoch FROM relay_cursor") for name in SERVICES}
    return {name: rows[0][0] for name, rows in found.items()}


async def _left_alone(trio: Trio) -> bool:
    others = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'attache-%'"
    return not any([await _rows(trio.databases[name], others) for name in SERVICES])


async def _copied(server: "PostgresServer", url: str) -> tuple[str, str]:
    """A backup of a database whose service does not run: the names of both."""
    live = url.rsplit("/", 1)[1]
    await server.execute(f"CREATE DATABASE {live}_backup OWNER {server.role} TEMPLATE {live}")
    return live, f"{live}_backup"


async def _put_back(server: "PostgresServer", live: str, backup: str) -> None:
    await server.execute(f"DROP DATABASE {live} WITH (FORCE)")
    await server.execute(f"ALTER DATABASE {backup} RENAME TO {live}")


def _unstamped(feed: str) -> str:
    return SEQUENCES.sub("", STAMPS.sub("", feed))


async def _measure(client: httpx.AsyncClient, loaded: Loaded, bus: str) -> None:
    """From the answer of a command to the first GET of the feed that shows it; a trip is rendered once a second."""
    feed = next(feed for feed in loaded.feeds if feed.level == "full")
    meeting = await _a_meeting(client, loaded)
    took, shown = [], []
    for number in range(6):
        began = time.perf_counter()
        await _do(client, f"/schedule/meetings/{meeting}/revise", {"title": f"Measured {number}"})
        answered = time.perf_counter()
        await _until_in(client, feed.url, f"SUMMARY:Measured {number}")
        took.append(answered - began)
        shown.append(time.perf_counter() - answered)
        await asyncio.sleep(0.13 * number)  # at another moment of the second each time
    middle, longest = statistics.median(shown), max(shown)
    print(
        f"{bus}: command {statistics.median(took) * 1000:.0f} ms, to the feed {middle:.2f} s, at most {longest:.2f} s"
    )
    assert middle < 8  # it is told by itself, and not found by who looks each half minute


async def _kill_each_in_a_stream(trio: Trio, client: httpx.AsyncClient, loaded: Loaded) -> None:
    meeting = await _a_meeting(client, loaded)
    delegation = loaded.feeds[0].delegation_id

    async def stream() -> None:
        for number in range(60):
            await _do(client, f"/schedule/meetings/{meeting}/revise", {"title": f"Talks {number}"})
            await _do(client, f"/participants/delegations/{delegation}/rename", {"name": f"We {number}"})
            if number % 20 == 7:
                link = {"delegation": delegation, "level": "full", "label": f"Link {number}"}
                path = f"/notifications/trips/{loaded.trip}/feed-links"
                # its address is told once: where the answer was lost with the process, the repeated one has none
                assert (await _do(client, path, link))["label"] == f"Link {number}"
            await asyncio.sleep(0.02)

    streaming = asyncio.create_task(stream())
    for name in SERVICES:
        await asyncio.sleep(0.4)
        assert trio.stop(signal.SIGKILL, name) == {name: -signal.SIGKILL}
        await asyncio.sleep(0.2)
        trio.start(name)
        await _alive(trio, client)
    await streaming
    feed = next(feed for feed in loaded.feeds if feed.level == "full")
    await _until_in(client, feed.url, "SUMMARY:Talks 59")


async def _stopped_in_the_middle_of_commands(trio: Trio, client: httpx.AsyncClient, loaded: Loaded) -> None:
    """SIGTERM ends each promptly with 0, and what was answered is there afterwards."""
    meeting = await _a_meeting(client, loaded)

    async def one(number: int) -> str | None:
        with contextlib.suppress(httpx.TransportError):
            answer = await client.post(f"/schedule/meetings/{meeting}/revise", json={"title": f"Last {number}"})
            return answer.headers["ETag"] if answer.status_code == 200 else None
        return None

    under_way = [asyncio.create_task(one(number)) for number in range(12)]
    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    began = time.monotonic()
    codes = await asyncio.to_thread(trio.stop, signal.SIGTERM, *SERVICES)
    seconds = time.monotonic() - began
    print(f"SIGTERM: {seconds:.1f} s")
    assert (codes, seconds < GRACE_PERIOD) == (dict.fromkeys(SERVICES, 0), True), trio.said()
    answered = [int(etag.strip('"')) for etag in await asyncio.gather(*under_way) if etag]
    revisions = await _rows(
        trio.databases["schedule"], "SELECT version FROM events WHERE stream = $1", f"meeting/{meeting}"
    )
    assert answered
    assert set(answered) <= {version for (version,) in revisions}


async def _nothing_lost_or_repeated(trio: Trio) -> None:
    """Each stored event is on its cleared topic, in order per key, and in the others' marks."""
    bus = trio.bus()
    for name in SERVICES:
        stored = await _rows(trio.databases[name], "SELECT id, key, cleared_sequence FROM events ORDER BY position")
        found = await told(bus, topic_of(name, openly=False), {key for _, key, _ in stored})
        assert found == [(str(event), key, sequence) for event, key, sequence in sorted(stored, key=lambda r: r[1:])]
        parked = await _rows(trio.databases[name], "SELECT topic, key, sequence, slug FROM parked_messages")
        assert parked == []
    await bus.close()


async def _served(client: httpx.AsyncClient, loaded: Loaded, wanted: Mapping[tuple[str, str], list[str]]) -> None:
    """Feeds are what is wanted, within the moment that a stored body takes to come to who serves it."""
    end = time.monotonic() + 120
    while True:
        feeds = {(feed.delegation, feed.level): _comparable(await _text(client, feed.url)) for feed in loaded.feeds}
        if feeds == wanted or time.monotonic() > end:
            break
        await asyncio.sleep(0.1)
    assert feeds == wanted


async def _planned(client: httpx.AsyncClient) -> tuple[str, str, str]:
    """A trip with one stop and one meeting, "Talks"."""
    trip = await _new(client, "/schedule/trips", TRIP)
    stop = await _new(client, f"/schedule/trips/{trip}/stops", STOP)
    return trip, stop, await _new(client, f"/schedule/trips/{trip}/meetings", {**MEETING, "stop": stop})


async def _subscribed(client: httpx.AsyncClient, trip: str) -> tuple[str, str]:
    """A delegation of the trip, and the address of its feed."""
    delegation = await _new(client, f"/participants/trips/{trip}/delegations", {"name": "Ours", "kind": "own"})
    link = {"delegation": delegation, "level": "full", "label": "Ours"}
    return delegation, (await _do(client, f"/notifications/trips/{trip}/feed-links", link))["url"]


async def _alive(trio: Trio, client: httpx.AsyncClient) -> None:
    async def alive() -> bool:
        answers = [await client.get(f"/{name}/healthz") for name in SERVICES]
        return all(answer.status_code == 200 for answer in answers)

    await until(alive, 120, trio)


async def _stalled(client: httpx.AsyncClient, service: str) -> bool:
    answer = await client.get(f"/{service}/readyz")
    # a database that was slow to answer is red too, and then nobody can tell how much is unpublished
    return answer.status_code == 503 and answer.json().get("unpublished", 0) > 0


async def _until_in(client: httpx.AsyncClient, url: str, line: str, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while f"{line}\r\n" not in await _text(client, url):
        assert time.monotonic() < until, f"{line} did not come"
        await asyncio.sleep(0.01)


async def _until_above(client: httpx.AsyncClient, url: str, sequence: int, seconds: float = 120) -> str:
    """The feed, once each SEQUENCE is above that: a stored body takes a moment to come to who serves it."""
    until = time.monotonic() + seconds
    while min(map(int, SEQUENCES.findall(text := await _text(client, url)))) <= sequence:
        assert time.monotonic() < until, text
        await asyncio.sleep(0.05)
    return text


async def _text(client: httpx.AsyncClient, url: str) -> str:
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = await client.get(url)
            if answer.status_code == 200:
                return answer.text
        await asyncio.sleep(0.05)


async def _do(client: httpx.AsyncClient, path: str, body: Mapping[str, Any], patience: float = 120) -> dict[str, Any]:
    """One command, with one key, until it is answered."""
    headers = {"Idempotency-Key": str(uuid4())}
    until = time.monotonic() + patience
    answer: httpx.Response | None = None
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            answer = await client.post(path, json=body, headers=headers)
            if answer.status_code in (200, 201):
                found: dict[str, Any] = answer.json()
                return found
            assert answer.status_code in (409, 503), answer.text
        await asyncio.sleep(0.05)
    raise AssertionError(f"{path} was not answered: {answer.text if answer else 'nobody is there'}")


async def _new(client: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> str:
    return str((await _do(client, path, body))["id"])


async def _a_meeting(client: httpx.AsyncClient, loaded: Loaded) -> str:
    items = (await client.get(f"/schedule/trips/{loaded.trip}/meetings")).json()["items"]
    return str(next(item["id"] for item in items if item["status"] == "confirmed"))


async def _rows(url: str, query: str, *values: object) -> Sequence[Any]:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return [tuple(row) for row in await connection.fetch(query, *values)]
    finally:
        await connection.close()


def _comparable(feed: str) -> list[str]:
    """A feed's blocks without what differs from load to load: ids and stamps."""
    return sorted(UUIDS.sub("<id>", STAMPS.sub(r"\1:<stamp>", feed)).split("BEGIN:VEVENT\r\n"))


TRIP = {
    "title": "To Oslo",
    "principals": ["Minister"],
    "home": {"place": "Lisbon", "zone": "Europe/Lisbon"},
    "starts_on": "2023-03-01",
    "ends_on": "2023-03-03",
}
STOP = {
    "place": "Oslo",
    "country": "Norway",
    "zone": "Europe/Oslo",
    "arrives": "2023-03-01T12:00:00",
    "departs": "2023-03-03T09:00:00",
}
MEETING = {"title": "Talks", "kind": "bilateral", "start": "2023-03-02T10:00:00", "duration": "PT1H"}
