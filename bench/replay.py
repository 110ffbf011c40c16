"""`python -m bench.replay`: what going through the past costs beside the least that has to be done for it.

Copies of the demo trip's events are written into the schedule's log. In each round, one after the other and on the
same data: `verify` and the read models' `rebuild` beside a cursor that only reads the rows and parses their JSON; and
the messages of that log taken into the notifications service's picture, 200 to a transaction as its consumer does,
beside as many transactions that parse them and put the last body of each thing into a table, in one statement. Figures
are medians; nothing is judged.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.many_trips import copy_events, load_demo
from services.embedded import EmbeddedPostgres
from services.notifications.reactions import apply_of
from services.schedule import published
from services.schedule.projections import MODELS, STORE
from shared import contracts
from shared.bus import Delivery, Record
from shared.consumer import BATCH
from shared.database import driver_of, make_engine
from shared.marks import Marks
from shared.messages import read_delivery, record, topic_of
from shared.taking import Taking
from shared.wiring import versioned

DATABASES = ("schedule", "notifications")
TOPIC = topic_of("schedule", openly=False)
PICTURE = "things, marks, sequence_floors, consumer_marks"

Work = Callable[[], Awaitable[int]]
"""Does all of it; returns how many events it went through."""


def main() -> int:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trips", type=int, default=50)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="attache-bench-") as name:
        folder = Path(name) / "data"
        Path(name).chmod(0o711)  # PostgreSQL runs as another user where root starts it
        load_demo(folder)
        with EmbeddedPostgres(folder) as postgres:
            asyncio.run(_measure({one: postgres.url(one) for one in DATABASES}, given.trips, given.rounds))
    return 0


async def _measure(urls: dict[str, str], trips: int, rounds: int) -> None:
    await copy_events("schedule", urls["schedule"], trips - 1)
    async with AsyncExitStack() as stack:
        log, picture = (make_engine(urls[name], name="bench", command_timeout=None) for name in DATABASES)
        stack.push_async_callback(log.dispose)
        stack.push_async_callback(picture.dispose)
        deliveries = [each async for each in _deliveries(log)]
        print(f"{'way':44}{'events/s':>10}{'beside the least':>18}   spread", flush=True)
        await _pair(
            rounds,
            "rows read, JSON parsed",
            lambda: _read(log),
            {
                "verify: digests, versions, numbers": lambda: _verify(log),
                "rebuild of the schedule's read models": lambda: _rebuild(log),
            },
        )
        await _pair(
            rounds,
            "parsed, the last of each thing put",
            lambda: _put(picture, deliveries),
            {
                "messages taken into the feeds' picture": lambda: _take(picture, deliveries),
            },
        )


async def _pair(rounds: int, name: str, least: Work, ways: dict[str, Work]) -> None:
    rates: dict[str, list[float]] = {one: [] for one in (name, *ways)}
    for number in range(rounds + 1):
        for one, work in {name: least, **ways}.items():
            began = time.perf_counter()
            count = await work()
            if number:  # the first one warms up
                rates[one].append(count / (time.perf_counter() - began))
    for one, found in rates.items():
        ratios = [mine / other for mine, other in zip(found, rates[name], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{one:44}{statistics.median(found):10,.0f}{statistics.median(ratios):18.2f}   {spread}", flush=True)


async def _read(engine: AsyncEngine) -> int:
    count = 0
    async with engine.begin() as connection:
        await connection.execute(text("SELECT 1"))
        driver = await driver_of(connection)
        async for row in driver.cursor("SELECT * FROM events ORDER BY position", prefetch=1000):
            json.loads(row["data"])
            count += 1
    return count


async def _verify(engine: AsyncEngine) -> int:
    async with engine.begin() as connection:
        if damage := [line async for line in STORE.damage(connection)]:
            raise SystemExit(damage[0])
    return await _count(engine)


async def _rebuild(engine: AsyncEngine) -> int:
    async with engine.begin() as connection:
        await MODELS.rebuild(connection)
    return await _count(engine)


async def _count(engine: AsyncEngine) -> int:
    async with engine.connect() as connection:
        return int(await connection.scalar(text("SELECT count(*) FROM events")) or 0)


async def _deliveries(engine: AsyncEngine) -> AsyncIterator[Delivery]:
    """The log as it comes from one partition of the cleared topic."""
    position = 0
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        driver = await driver_of(connection)
        while events := await STORE.after(driver, position, 1000):
            for event in events:
                position = event.position
                yield _delivery(
                    record(event, published.body(event, False), "schedule", openly=False, epoch=1), position
                )


def _delivery(told: Record, offset: int) -> Delivery:
    headers = tuple((name, value.encode()) for name, value in told.headers)
    return Delivery(topic=told.topic, number=0, offset=offset, key=told.key.encode(), headers=headers, body=told.body)


async def _take(engine: AsyncEngine, deliveries: Sequence[Delivery]) -> int:
    types = [contracts.MESSAGES[name] for name in contracts.MESSAGES]
    taking = Taking(group="bench", apply={versioned(name): do for name, do in apply_of(types).items()})
    async with engine.begin() as connection:
        await connection.execute(text(f"TRUNCATE {PICTURE}"))
    for begin in range(0, len(deliveries), BATCH):
        read = [(one, read_delivery(one)) for one in deliveries[begin : begin + BATCH]]
        async with engine.begin() as connection:
            marks = Marks(connection, TOPIC)
            taken = await taking.deliveries(connection, marks, read, None)
            await marks.save()
        if any(outcome != "applied" for _, outcome in taken):
            raise SystemExit("not all of it could be taken")
    return len(deliveries)


async def _put(engine: AsyncEngine, deliveries: Sequence[Delivery]) -> int:
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE IF NOT EXISTS bare (subject text PRIMARY KEY, document jsonb)"))
        await connection.execute(text("TRUNCATE bare"))
    for begin in range(0, len(deliveries), BATCH):
        messages = [read_delivery(one) for one in deliveries[begin : begin + BATCH]]
        last = {message.subject: json.dumps(message.body) for message in messages}
        async with engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
            driver = await driver_of(connection)
            await driver.execute(
                "INSERT INTO bare SELECT * FROM unnest($1::text[], $2::jsonb[]) "
                "ON CONFLICT (subject) DO UPDATE SET document = excluded.document",
                list(last),
                list(last.values()),
            )
    return len(deliveries)


if __name__ == "__main__":
    sys.exit(main())
