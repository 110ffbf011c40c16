"""The read models of the schedule service, and what its rules ask of them."""

from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.schedule import meeting, movement, shapes, stop, tables, trip
from services.schedule.stay import Engagement, Stay
from services.schedule.trip import TripStatus
from shared.command import Kind
from shared.errors import Invalid, NotFound, NotYetKnown, WrongState
from shared.event_store import Codec, EventStore
from shared.read_models import ReadModel, ReadModels

TRIP = Kind(name=trip.NAME, evolve=trip.evolve, show=shapes.Trip.shown)
STOP = Kind(name=stop.NAME, evolve=stop.evolve, show=shapes.Stop.shown)
MOVEMENT = Kind(name=movement.NAME, evolve=movement.evolve, show=shapes.Movement.shown)
MEETING = Kind(name=meeting.NAME, evolve=meeting.evolve, show=shapes.Meeting.shown)

STORE = EventStore(Codec((*trip.EVENTS, *stop.EVENTS, *movement.EVENTS, *meeting.EVENTS)))

MODELS = ReadModels(
    store=STORE,
    by_kind={
        trip.NAME: ReadModel(kind=TRIP, table=tables.trips, columns=("status", "starts_on")),
        stop.NAME: ReadModel(
            kind=STOP, table=tables.stops, columns=("trip", "status", "zone", "arrives_at", "departs_at")
        ),
        movement.NAME: ReadModel(kind=MOVEMENT, table=tables.movements, columns=("trip", "departs_at")),
        meeting.NAME: ReadModel(
            kind=MEETING, table=tables.meetings, columns=("trip", "stop", "status", "starts_at", "ends_at")
        ),
    },
)


@dataclass(frozen=True, kw_only=True)
class TripFacts:
    """What the rules of a trip's items need to know of the rest of the trip."""

    status: TripStatus
    stays: tuple[Stay, ...]


async def trip_facts(connection: AsyncConnection, of: UUID) -> TripFacts:
    """The trip's status and the stays at its stops, by arrival. Raises `NotFound`."""
    status = await connection.scalar(select(tables.trips.c.status).where(tables.trips.c.id == of))
    if status is None:
        raise NotFound(f"there is no trip {of}")
    columns = tables.stops.c
    rows = await connection.execute(
        select(columns.id, columns.zone, columns.arrives_at, columns.departs_at, columns.status)
        .where(columns.trip == of)
        .order_by(columns.arrives_at, columns.id)
    )
    stays = tuple(
        Stay(
            stop=row.id,
            zone=row.zone,
            arrives_at=row.arrives_at,
            departs_at=row.departs_at,
            live=row.status == "planned",
        )
        for row in rows
    )
    return TripFacts(status=status, stays=stays)


async def engagements(connection: AsyncConnection, at: UUID) -> tuple[Engagement, ...]:
    """The live meetings of a stop, by start."""
    columns = tables.meetings.c
    rows = await connection.execute(
        select(columns.id, columns.starts_at, columns.ends_at)
        .where(columns.stop == at, columns.status != "cancelled")
        .order_by(columns.starts_at, columns.id)
    )
    return tuple(Engagement(meeting=row.id, starts_at=row.starts_at, ends_at=row.ends_at) for row in rows)


async def check_delegations(connection: AsyncConnection, trip: UUID, delegations: Collection[UUID]) -> None:
    """Each can be named as a host or a guest of this trip. Raises `NotYetKnown`, `Invalid`, `WrongState`."""
    if not delegations:
        return
    columns = tables.known_delegations.c
    rows = await connection.execute(select(columns.id, columns.trip, columns.status).where(columns.id.in_(delegations)))
    known = {row.id: row for row in rows}
    for delegation in sorted(delegations):
        if (row := known.get(delegation)) is None:
            raise NotYetKnown(f"there is no delegation {delegation} here yet", delegation=str(delegation))
        if row.trip != trip:
            raise Invalid.field("delegation", f"{delegation} is not a delegation of this trip")
        if row.status == "dissolved":
            raise WrongState("The delegation is dissolved.", delegation=str(delegation))
