"""`python -m bench.many_trips --trips 1000`: what a thousand trips like the demo's cost, one step at a time.

It loads the demo trip as `make run` does, writes copies of it (other ids, the same facts) into the logs of schedule and
participants, and then starts the three services as processes on a real Kafka, one after the other: how fast a relay
publishes a backlog, how fast the notifications service takes it in, how fast links are issued and feeds rendered, how
long it takes to start with all of it, and what it holds in memory and on disk. It prints what was measured in this
run; nothing is judged.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from sqlalchemy import text

from deploy.kafka_node import KafkaNode, free_port
from services.data_folder import tokens
from services.embedded import EmbeddedPostgres
from services.participants.projections import STORE as PARTICIPANTS
from services.schedule.projections import STORE as SCHEDULE
from shared.database import driver_of, make_engine
from shared.event_store import Append, EventStore, NewEvent
from shared.logs import set_up

STORES: Mapping[str, EventStore] = {"schedule": SCHEDULE, "participants": PARTICIPANTS}
ANY_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
PATIENCE_SECONDS = 3600.0
SIDE_BY_SIDE = 64


class Services:
    """The three services' processes on one PostgreSQL and one Kafka."""

    def __init__(self, data: Path, postgres: EmbeddedPostgres, kafka: str) -> None:
        self.ports = {name: free_port() for name in ("schedule", "participants", "notifications")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {
            **os.environ,
            "BUS": "kafka",
            "KAFKA_BOOTSTRAP": kafka,
            "TOKENS_FILE": str(data / "tokens"),
            "SERVICE_TOKEN": tokens(data)["services"],
            "LOG_LEVEL": "error",
            **{f"{name.upper()}_URL": f"http://127.0.0.1:{port}" for name, port in self.ports.items()},
            **{f"{name.upper()}_PORT": str(port) for name, port in self.ports.items()},
            **{f"{name.upper()}_DATABASE_URL": postgres.url(name) for name in self.ports},
        }

    async def start(self, name: str) -> float:
        """Start one; returns the seconds until it answers."""
        begun = time.monotonic()
        command = [sys.executable, "-m", f"services.{name}", "serve"]
        self.processes[name] = await asyncio.to_thread(subprocess.Popen, command, env=self._environment)
        async with httpx.AsyncClient() as client:

            async def answers() -> bool:
                try:
                    return (await client.get(f"{self.base(name)}/healthz")).is_success
                except httpx.TransportError:
                    return False

            await until(answers)
        return time.monotonic() - begun

    def base(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}/{name}"

    def stop(self, *names: str) -> None:
        for name in names or tuple(self.processes):
            process = self.processes.pop(name)
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    def memory(self, name: str) -> float:
        """Resident, in MB."""
        pages = int(Path(f"/proc/{self.processes[name].pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trips", type=int, default=200)
    given = arguments.parse_args()
    set_up("bench", log_format="json", level="error")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        data = Path(folder) / "data"
        say("the demo trip is loaded")
        load_demo(data)
        postgres = stack.enter_context(EmbeddedPostgres(data))
        kafka = KafkaNode(Path(folder) / "kafka", free_port())
        kafka.start()
        stack.callback(kafka.stop)
        kafka.wait_ready()
        services = Services(data, postgres, kafka.address)
        stack.callback(services.stop)
        asyncio.run(measure(given.trips, data, postgres, services))
        show("Kafka's folder", size(kafka.folder) / 1e6, "MB")
    return 0


async def measure(trips: int, data: Path, postgres: EmbeddedPostgres, services: Services) -> None:
    """All steps, each with its line."""
    for name in STORES:
        say(f"{trips - 1} copies are written into the log of {name}")
        await copy_events(name, postgres.url(name), trips - 1)
    for name in STORES:
        await relay_backlog(name, postgres, services)
    await take_in("notifications", postgres, services)
    await issue_links(data, postgres, services)
    show("notifications holds", services.memory("notifications"), "MB, after that work")
    services.stop("notifications")
    show("it starts with all that in", await services.start("notifications"), "s")
    show("and holds then", services.memory("notifications"), "MB")
    for name in services.ports:
        driver = await connect(postgres, name)
        show(f"database {name}", await driver.fetchval("SELECT pg_database_size(current_database())") / 1e6, "MB")
        await driver.close()


def load_demo(data: Path) -> None:
    """The demo trip's events, by the same way as `make run`, which is then stopped."""
    command = [sys.executable, "-m", "services", "up", "--port", "0", "--data", str(data), "--bus", "local"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until_made = time.monotonic() + 120
    while not (data / "run.json").exists() and time.monotonic() < until_made:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.wait(60)


async def copy_events(name: str, url: str, copies: int) -> None:
    """Append whole copies of the one trip's events, each under ids of its own."""
    engine, store = make_engine(url, name="bench"), STORES[name]
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        driver = await driver_of(connection)
        rows = await driver.fetch(
            "SELECT stream, type, data, metadata, key, open_sequence IS NOT NULL AS open FROM events ORDER BY position"
        )
    begun, events = time.monotonic(), 0
    for number in range(copies):
        streams: dict[str, list[NewEvent]] = {}
        for row in rows:
            stream, data = renamed(number, row["stream"]), renamed(number, row["data"])
            event = store.codec.decode(row["type"], data)
            streams.setdefault(stream, []).append(NewEvent(id=uuid.uuid4(), data=event, open=row["open"]))
        appends = [Append(stream=one, expected_version=0, events=new) for one, new in streams.items()]
        async with engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
            metadata = json.loads(rows[0]["metadata"])
            await store.append(connection, renamed(number, rows[0]["key"]), metadata, appends)
        events += len(rows)
    await engine.dispose()
    spent = time.monotonic() - begun
    show(f"{name}: a trip has", len(rows), f"events; {events:,} written in {spent:.0f} s, a trip to a commit")


async def relay_backlog(name: str, postgres: EmbeddedPostgres, services: Services) -> None:
    """Start one producer; its log is published from the beginning, as to a new broker."""
    driver = await connect(postgres, name)
    await services.start(name)
    await rate(
        f"{name} publishes its log",
        lambda: driver.fetchval("SELECT position FROM relay_cursor"),
        await driver.fetchval("SELECT max(position) FROM events"),
        "events/s",
    )
    await driver.close()


async def take_in(name: str, postgres: EmbeddedPostgres, services: Services) -> None:
    """Start the consumer; all that the producers told is applied."""
    heads = 0
    for producer in STORES:
        driver = await connect(postgres, producer)
        heads += await driver.fetchval("SELECT sum(cleared_sequence)::bigint FROM heads")
        await driver.close()
    driver = await connect(postgres, name)
    await services.start(name)
    marks = "SELECT coalesce(sum(sequence), 0)::bigint FROM consumer_marks"
    await rate(f"{name} takes them in", lambda: driver.fetchval(marks), heads, "messages/s")
    await driver.close()


async def issue_links(data: Path, postgres: EmbeddedPostgres, services: Services) -> None:
    """A link for each delegation of each trip, by HTTP; then until each has its feed."""
    driver = await connect(postgres, "notifications")
    delegations = await driver.fetch("SELECT trip, id FROM things WHERE kind = 'delegation' ORDER BY trip, id")
    headers = {"Authorization": f"Bearer {tokens(data)['demo']}"}
    # one trip is rendered at most once a second, and the answer waits for the feed: so trip by trip it would be slow
    begun, left = time.monotonic(), sorted(delegations, key=lambda row: row["id"])
    async with httpx.AsyncClient(base_url=services.base("notifications"), headers=headers, timeout=30) as client:

        async def work() -> None:
            while left:
                row = left.pop()
                body = {"delegation": str(row["id"]), "level": "delegation", "label": "phones"}
                answer = await client.post(f"/trips/{row['trip']}/feed-links", json=body)
                if answer.status_code not in (201, 409):  # the demo's dissolved delegation gets none
                    raise SystemExit(f"a link was refused: {answer.text}")

        await asyncio.gather(*(work() for _ in range(SIDE_BY_SIDE)))
    spent = time.monotonic() - begun
    show("links issued", len(delegations) / spent, f"/s ({len(delegations):,}, {SIDE_BY_SIDE} side by side)")

    async def rendered() -> bool:
        return await driver.fetchval("SELECT NOT EXISTS (SELECT FROM marks)") is True

    await until(rendered)
    bodies = await driver.fetchrow("SELECT count(*) AS count, avg(octet_length(compressed)) AS size FROM bodies")
    whole = time.monotonic() - begun
    show(
        "feeds rendered meanwhile",
        bodies["count"] / whole,
        f"/s ({bodies['count']:,} bodies of {bodies['size']:.0f} B, gzip)",
    )
    await driver.close()


async def rate(said: str, position: Callable[[], Awaitable[Any]], goal: int, unit: str) -> None:
    """How fast a position grows, from when it first moved until it is at its goal."""
    first = await position() or 0

    async def moved() -> bool:
        return (await position() or 0) > first or first >= goal

    await until(moved)
    begun, start = time.monotonic(), await position()

    async def there() -> bool:
        return bool(await position() >= goal)

    await until(there)
    spent = time.monotonic() - begun
    show(said, (goal - start) / max(spent, 1e-3), f"{unit} ({goal:,} in {spent:.0f} s)")


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for it; raises TimeoutError after an hour."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await holds():
            await asyncio.sleep(0.05)


async def connect(postgres: EmbeddedPostgres, name: str) -> Any:
    """A plain connection to one service's database."""
    return await asyncpg.connect(postgres.url(name).replace("+asyncpg", ""))


def renamed(number: int, said: str) -> str:
    """The text with every id in it replaced by that copy's own."""
    return ANY_ID.sub(lambda found: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{number}/{found[0]}")), said)


def size(folder: Path) -> int:
    """Bytes of room that a folder's files take; Kafka's indexes are made larger than they are filled."""
    return sum(one.stat().st_blocks * 512 for one in folder.rglob("*") if one.is_file())


def say(line: str) -> None:
    """Progress, on standard error."""
    print(f"... {line}", file=sys.stderr, flush=True)


def show(what: str, figure: float, unit: str) -> None:
    """One measured line."""
    print(f"{what:32}{figure:>12,.1f} {unit}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
