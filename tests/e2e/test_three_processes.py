"""The three services as three processes do the same as the one, and lose and repeat nothing when one is killed."""

import asyncio
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from deploy.kafka_node import KafkaNode, free_port
from services.demo.load_file import Loaded, LoadFile
from services.demo.player import play
from services.demo.trip_file import DEMO, read_trip_file
from shared.bus import Bus, Partition
from shared.bus_kafka import KafkaBus
from shared.bus_local import LocalBus
from shared.database import make_engine
from shared.messages import read_delivery, topic_of
from shared.tokens import add_token

if TYPE_CHECKING:
    from tests.e2e.conftest import StartUp

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("schedule", "participants", "notifications")
BASE = "http://attache.test"
UUIDS = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
STAMPS = re.compile(r"^(DTSTAMP|LAST-MODIFIED|CREATED):.*$", re.MULTILINE)


class ByPath(httpx.AsyncBaseTransport):
    """One address in front of three, as the proxy has it: the first part of the path names the service."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = {**ports, "feeds": ports["notifications"]}
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        port = self._ports[request.url.path.split("/")[1]]
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=port)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass(kw_only=True)
class Trio:
    """The three processes, their databases and their bus."""

    folder: Path
    databases: Mapping[str, str]
    environment: Mapping[str, str]
    ports: Mapping[str, int]
    token: str
    bus: Callable[[], Bus]
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, *names: str) -> None:
        for name in names:
            self.processes[name] = self._run(name, "serve")

    def command(self, command: str, *names: str) -> dict[str, int]:
        """Run one command of each service at the same time; their exit codes."""
        running = {name: self._run(name, command) for name in names}
        return {name: process.wait(60) for name, process in running.items()}

    def stop(self, number: signal.Signals, *names: str) -> dict[str, int]:
        for name in names:
            self.processes[name].send_signal(number)
        return {name: self.processes.pop(name).wait(20) for name in names}

    def client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.AsyncClient(transport=ByPath(self.ports), base_url=BASE, headers=headers, timeout=15)

    def said(self) -> str:
        return "\n".join((self.folder / f"{name}.log").read_text()[-3000:] for name in SERVICES)

    def _run(self, name: str, command: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"services.{name}", command],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@pytest.fixture
async def make_trio(make_database: Callable[..., Awaitable[str]], tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """`await make_trio("host:port" | None)`: nothing serves yet. On the local bus the command line has migrated."""
    trios: list[Trio] = []
    engines = []

    async def make(kafka: str | None) -> Trio:
        migrated = {name: f"services/{name}/migrations" for name in SERVICES} if kafka else {}
        databases = {name: await make_database(migrated.get(name)) for name in (*SERVICES, "bus")}
        ports = {name: free_port() for name in SERVICES}
        environment = {
            "BUS": "kafka" if kafka else "local",
            "BUS_URL": databases["bus"],
            "KAFKA_BOOTSTRAP": kafka or "",
            "TOKENS_FILE": str(tmp_path / "tokens"),
            "SERVICE_TOKEN": add_token(tmp_path / "tokens", "services", ("service",)),
            "PUBLIC_URL": BASE,
            "LOG_FORMAT": "json",
            **{f"{name.upper()}_DATABASE_URL": databases[name] for name in SERVICES},
            **{f"{name.upper()}_URL": f"http://127.0.0.1:{port}" for name, port in ports.items()},
            **{f"{name.upper()}_PORT": str(port) for name, port in ports.items()},
        }
        engines.append(make_engine(databases["bus"], name="test-bus"))
        trio = Trio(
            folder=tmp_path,
            databases=databases,
            environment=environment,
            ports=ports,
            token=add_token(tmp_path / "tokens", "test", ("planner", "staff", "operator")),
            bus=lambda: KafkaBus(kafka) if kafka else LocalBus(engines[0]),
        )
        trios.append(trio)
        if not kafka:
            assert trio.command("migrate", *SERVICES) == dict.fromkeys(SERVICES, 0), trio.said()
        return trio

    yield make
    for trio in trios:
        for process in trio.processes.values():
            process.kill()
            process.wait()
    for engine in engines:
        await engine.dispose()


@pytest.fixture
def one_process_feeds(start_up: "StartUp", loaded_folder: Path) -> dict[tuple[str, str], list[str]]:
    """Every feed of the demo trip as the one process on the local bus serves it, by delegation and level."""
    up = start_up(loaded_folder)
    run = up.ready()
    with httpx.Client(trust_env=False) as client:
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
        await _settled(trio, client)
        feeds = {(feed.delegation, feed.level): _comparable(await _text(client, feed.url)) for feed in loaded.feeds}
        assert feeds == one_process_feeds
        await _measure(client, loaded, bus)
        await _kill_each_in_a_stream(trio, client, loaded)
        await _settled(trio, client)
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
        trip = await _new(client, "/schedule/trips", TRIP)
        stop = await _new(client, f"/schedule/trips/{trip}/stops", STOP)
        meeting = await _new(client, f"/schedule/trips/{trip}/meetings", {**MEETING, "stop": stop})
        node.start()
        node.wait_ready()
        delegation = await _new(client, f"/participants/trips/{trip}/delegations", {"name": "Ours", "kind": "own"})
        link = {"delegation": delegation, "level": "full", "label": "Ours"}
        url = (await _do(client, f"/notifications/trips/{trip}/feed-links", link, patience=30))["url"]
        await _settled(trio, client)
        await _until_in(client, url, "SUMMARY:Talks")
        node.kill()
        for number in range(10):
            await _do(client, f"/schedule/meetings/{meeting}/revise", {"title": f"Talks {number}"})
            await _do(client, f"/participants/delegations/{delegation}/rename", {"name": f"Ours {number}"})
        assert "SUMMARY:Talks" in await _text(client, url)
        for name in SERVICES:
            assert (await client.get(f"/{name}/healthz")).status_code == 200
        await _until(lambda: _stalled(client, "schedule"), 20, trio)
        node.start()
        node.wait_ready()
        await _until_in(client, url, "SUMMARY:Talks 9", 30)
        await _settled(trio, client)
        await _nothing_lost_or_repeated(trio)
        codes = trio.stop(signal.SIGTERM, *SERVICES)
    assert codes == dict.fromkeys(SERVICES, 0), trio.said()


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
    assert longest < 5


async def _kill_each_in_a_stream(trio: Trio, client: httpx.AsyncClient, loaded: Loaded) -> None:
    meeting = await _a_meeting(client, loaded)
    delegation = loaded.feeds[0].delegation_id

    async def stream() -> None:
        for number in range(60):
            await _do(client, f"/schedule/meetings/{meeting}/revise", {"title": f"Talks {number}"}, patience=60)
            await _do(client, f"/participants/delegations/{delegation}/rename", {"name": f"We {number}"}, patience=60)
            if number % 20 == 7:
                link = {"delegation": delegation, "level": "full", "label": f"Link {number}"}
                path = f"/notifications/trips/{loaded.trip}/feed-links"
                assert (await _do(client, path, link, patience=60))["url"]
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
    await _until_in(client, feed.url, "SUMMARY:Talks 59", 20)


async def _stopped_in_the_middle_of_commands(trio: Trio, client: httpx.AsyncClient, loaded: Loaded) -> None:
    """SIGTERM ends each promptly with 0, and what was answered is there afterwards."""
    meeting = await _a_meeting(client, loaded)

    async def one(number: int) -> str | None:
        with contextlib.suppress(httpx.TransportError):
            answer = await client.post(f"/schedule/meetings/{meeting}/revise", json={"title": f"Last {number}"})
            return answer.headers["ETag"] if answer.status_code == 200 else None
        return None

    under_way = [asyncio.create_task(one(number)) for number in range(12)]
    await asyncio.sleep(0.03)
    began = time.monotonic()
    codes = await asyncio.to_thread(trio.stop, signal.SIGTERM, *SERVICES)
    seconds = time.monotonic() - began
    print(f"SIGTERM: {seconds:.1f} s")
    assert (codes, seconds < 8) == (dict.fromkeys(SERVICES, 0), True), trio.said()
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
        found = await _told(bus, topic_of(name, openly=False), {key for _, key, _ in stored})
        assert found == [(str(event), key, sequence) for event, key, sequence in sorted(stored, key=lambda r: r[1:])]
        parked = await _rows(trio.databases[name], "SELECT topic, key, sequence, slug FROM parked_messages")
        assert parked == []
    await bus.close()


async def _told(bus: Bus, topic: str, keys: set[str]) -> list[tuple[str, str, int]]:
    """A topic's messages of these keys, each once: by key, in the order of their first coming."""

    async def start(partitions: frozenset[Partition]) -> Mapping[Partition, int]:
        return dict.fromkeys(partitions, 0)

    async def leave(partitions: frozenset[Partition]) -> None: ...

    member = await bus.subscribe(f"test-{uuid4()}", [topic], on_assigned=start, on_revoked=leave)
    seen: dict[str, tuple[str, str, int]] = {}
    position: dict[Partition, int] = {}
    try:
        async with asyncio.timeout(20):
            while len(member.assigned()) < 8 or any(
                position.get(one, 0) < end for one, end in (await member.ends()).items()
            ):
                for partition, deliveries in (await member.fetch(1000, 0.1)).items():
                    position[partition] = deliveries[-1].offset + 1
                    for message in map(read_delivery, deliveries):
                        if message.key in keys:
                            seen.setdefault(message.id, (message.id, message.key, message.sequence))
    finally:
        await member.close()
    return sorted(seen.values(), key=lambda one: one[1])  # stable: within a key as they came


async def _settled(trio: Trio, client: httpx.AsyncClient) -> None:
    async def settled() -> bool:
        reports = [(await client.get(f"/{name}/readyz")).json() for name in SERVICES]
        counts = [
            report.get(name) for report in reports for name in ("unpublished", "unheard", "catching_up", "waiting")
        ]
        return all(report["ready"] for report in reports) and counts == [0] * len(counts)

    await _until(settled, 60, trio)


async def _alive(trio: Trio, client: httpx.AsyncClient) -> None:
    async def alive() -> bool:
        answers = [await client.get(f"/{name}/healthz") for name in SERVICES]
        return all(answer.status_code == 200 for answer in answers)

    await _until(alive, 30, trio)


async def _stalled(client: httpx.AsyncClient, service: str) -> bool:
    answer = await client.get(f"/{service}/readyz")
    return answer.status_code == 503 and answer.json()["unpublished"] > 0


async def _until(true: Callable[[], Awaitable[bool]], seconds: float, trio: Trio) -> None:
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if await true():
                return
        assert time.monotonic() < until, trio.said()
        await asyncio.sleep(0.05)


async def _until_in(client: httpx.AsyncClient, url: str, line: str, seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while f"{line}\r\n" not in await _text(client, url):
        assert time.monotonic() < until, f"{line} did not come"
        await asyncio.sleep(0.01)


async def _text(client: httpx.AsyncClient, url: str) -> str:
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = await client.get(url)
            if answer.status_code == 200:
                return answer.text
        await asyncio.sleep(0.05)


async def _do(client: httpx.AsyncClient, path: str, body: Mapping[str, Any], patience: float = 5) -> dict[str, Any]:
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
