"""`python -m bench.append`: what a commit to a log costs beside the barest transaction that keeps the same promise.

The reference is one asyncpg connection a writer and nothing but `BEGIN`, the log's lock and one row in one statement,
`COMMIT`: no log in which position order is visibility order can commit faster on this disk. Beside it, in turn and in
the same run: `EventStore.append` of one event, of ten, and a whole `PlanTrip` through `Desk` (trip locked,
Idempotency-Key, read model), all in this process on an empty database of its own, durable as PostgreSQL has it.
Figures are medians of paired rounds, in commits; nothing is judged.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from services.embedded import EmbeddedPostgres
from services.schedule import trip as trips
from services.schedule.projections import MODELS, STORE, TRIP
from shared.call import Call
from shared.command import Answer, Desk, Transaction, answer_with, lock_of
from shared.database import make_engine, quick_transaction
from shared.event_store import APPEND_LOCK, Append, NewEvent
from shared.migrations import upgrade

MIGRATIONS = "services/schedule/migrations"
WRITERS = (1, 8, 32)
BARE = (
    "WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock({}, {})) "
    "INSERT INTO bare (id, document) SELECT $1, $2::jsonb FROM locked RETURNING position"
).format(*APPEND_LOCK)
HOME = trips.Place(place="Washington", zone="America/New_York")
METADATA = {"actor": "bench", "occurred_at": "2023-11-01T00:00:00.000000Z", "correlation_id": "", "traceparent": ""}

Step = Callable[[int], Awaitable[None]]
"""One commit by the writer of that number."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to commit. `events` is how many each commit appends."""

    name: str
    step: Step
    events: int = 1


def main() -> int:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=2.0, help="of each way in each round")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="attache-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL runs as another user where root starts it
        with EmbeddedPostgres(folder, databases=("schedule",)) as postgres:
            url = postgres.url("schedule")
            asyncio.run(upgrade(MIGRATIONS, url))
            asyncio.run(_measure(url, given.rounds, given.seconds))
    return 0


async def _measure(url: str, rounds: int, seconds: float) -> None:
    print(f"{'writers':>7}  {'way':34}{'commits/s':>10}{'events/s':>10}{'beside the barest':>19}   spread")
    async with AsyncExitStack() as stack:
        engine = make_engine(url, name="bench", pool_size=max(WRITERS))
        stack.push_async_callback(engine.dispose)
        bare = await _bare(stack, url)
        ways = (bare, _append(engine, 1), _append(engine, 10), _command(engine))
        for writers in WRITERS:
            rates: dict[str, list[float]] = {way.name: [] for way in ways}
            for number in range(rounds + 1):
                for way in ways if number % 2 else reversed(ways):
                    rate = await _rate(way.step, writers, seconds if number else 0.5)
                    if number:  # the first one warms up
                        rates[way.name].append(rate)
            for way in ways:
                _show(writers, way, rates[way.name], rates[bare.name])


async def _rate(step: Step, writers: int, seconds: float) -> float:
    """Commits a second of so many writers side by side."""
    end, done = time.monotonic() + seconds, 0

    async def write(number: int) -> None:
        nonlocal done
        while time.monotonic() < end:
            await step(number)
            done += 1

    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(writers):
            group.create_task(write(number))
    return done / (time.monotonic() - began)


def _show(writers: int, way: Way, rates: list[float], others: list[float]) -> None:
    ratios = [mine / other for mine, other in zip(rates, others, strict=True)]
    rate = statistics.median(rates)
    print(
        f"{writers:7}  {way.name:34}{rate:10,.0f}{rate * way.events:10,.0f}{statistics.median(ratios):19.2f}"
        f"   {min(ratios):.2f} to {max(ratios):.2f}",
        flush=True,
    )


async def _bare(stack: AsyncExitStack, url: str) -> Way:
    connections = [await asyncpg.connect(url.replace("+asyncpg", "")) for _ in range(max(WRITERS))]
    for connection in connections:
        stack.push_async_callback(connection.close)
    await connections[0].execute(
        "CREATE TABLE bare (position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id uuid, document jsonb)"
    )
    _, document = STORE.codec.encode(_planned(uuid4()))

    async def step(number: int) -> None:
        async with connections[number].transaction():
            await connections[number].fetch(BARE, uuid4(), document)

    return Way(name="BEGIN, lock + one row, COMMIT", step=step)


def _append(engine: AsyncEngine, events: int) -> Way:
    async def step(_: int) -> None:
        trip = uuid4()
        new = [NewEvent(id=uuid4(), data=_planned(trip), open=True) for _ in range(events)]
        async with quick_transaction(engine, lock_of(trip)) as connection:
            await STORE.append(
                connection, str(trip), METADATA, [Append(stream=f"trip/{trip}", expected_version=0, events=new)]
            )

    return Way(name=f"EventStore.append, events: {events}", step=step, events=events)


def _command(engine: AsyncEngine) -> Way:
    desk = Desk(engine=engine, store=STORE, project=MODELS.project, openly=lambda _: True, committed=lambda: None)

    async def step(_: int) -> None:
        trip = uuid4()

        async def act(transaction: Transaction) -> Answer:
            command = trips.PlanTrip(
                trip=trip,
                title="Tour",
                principals=("A", "B"),
                home=HOME,
                starts_on=date(2023, 11, 2),
                ends_on=date(2023, 11, 10),
            )
            events = trips.decide(command, await transaction.load(TRIP, trip))
            return answer_with(TRIP, transaction.record(TRIP, trip, events), 201)

        await desk.execute(_call(), trip, act)

    return Way(name="PlanTrip through Desk", step=step)


def _planned(trip: UUID) -> trips.TripPlanned:
    whole = trips.TripFields(
        title="Tour",
        principals=("A", "B"),
        home=HOME,
        starts_on=date(2023, 11, 2),
        ends_on=date(2023, 11, 10),
        status="planned",
        reason=None,
    )
    return trips.TripPlanned(trip=trip, whole=whole)


def _call() -> Call:
    now = datetime.now(UTC)
    return Call(
        actor="bench",
        scopes=frozenset({"planner"}),
        now=now,
        occurred_at=now,
        correlation_id="",
        traceparent="",
        idempotency_key=str(uuid4()),
        request_digest=bytes(32),
        if_match=None,
        if_none_match=None,
    )


if __name__ == "__main__":
    sys.exit(main())
