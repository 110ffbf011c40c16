"""`retime`: a newer time zone database puts wall times at other instants; what lies ahead follows, and is told.

Wall times are what people agreed on, so they stay; each item whose instant moved gets an event of its own.
"""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from services.schedule import meeting, movement, published, stop, tables
from services.schedule.projections import MEETING, MODELS, MOVEMENT, STOP, STORE
from services.schedule.settings import ScheduleSettings
from services.schedule.wall_time import pin_time_zones
from shared import trace_context
from shared.call import Call
from shared.command import Answer, Desk, Kind, Transaction
from shared.time_zones import tz_release

RETIMED: dict[Kind[Any, Any], Any] = {STOP: stop.retime, MOVEMENT: movement.retime, MEETING: meeting.retime}


async def retime(_: ScheduleSettings, engine: AsyncEngine) -> int:
    """Go through all trips, one transaction each; prints what moved and returns the exit code."""
    pin_time_zones()
    desk = Desk(engine=engine, store=STORE, project=MODELS.project, openly=published.is_open, committed=lambda: None)
    async with engine.connect() as connection:
        trips = list(await connection.scalars(select(tables.trips.c.id).order_by(tables.trips.c.id)))
    now = datetime.now(UTC)
    moved = 0
    for trip in trips:
        moved += await retime_trip(desk, trip, now)
    print(f"schedule: {moved} items moved under the time zone database {tz_release()}")
    return 0


async def retime_trip(desk: Desk, trip: UUID, now: datetime) -> int:
    """Retime the items of one trip; returns how many moved."""
    moved = 0

    async def act(transaction: Transaction) -> Answer:
        nonlocal moved
        moved = 0
        for kind, decide in RETIMED.items():
            for thing in await MODELS.ids(transaction.connection, kind.name, trip=trip):
                events = decide(await transaction.load(kind, thing), now)
                transaction.record(kind, thing, events)
                moved += len(events)
        return Answer(status=200, etag="", body="{}")

    await desk.execute(_call(now), trip, act, name="retime")
    return moved


def _call(now: datetime) -> Call:
    return Call(
        actor="retime",
        scopes=frozenset(),
        now=now,
        occurred_at=now,
        correlation_id=str(uuid4()),
        traceparent=trace_context.new(),
        idempotency_key=None,
        request_digest=b"",
        if_match=None,
        if_none_match=None,
    )
