"""The read models of the participants service, and what its rules ask of them."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.participants import delegation, member, shapes, tables
from shared.command import Kind
from shared.errors import NotYetKnown, WrongState
from shared.event_store import Codec, EventStore
from shared.read_models import ReadModel, ReadModels

DELEGATION = Kind(name=delegation.NAME, evolve=delegation.evolve, show=shapes.Delegation.shown)
MEMBER = Kind(name=member.NAME, evolve=member.evolve, show=shapes.Member.shown)

STORE = EventStore(Codec((*delegation.EVENTS, *member.EVENTS)))

MODELS = ReadModels(
    store=STORE,
    by_kind={
        delegation.NAME: ReadModel(kind=DELEGATION, table=tables.delegations, columns=("trip", "name")),
        member.NAME: ReadModel(kind=MEMBER, table=tables.members, columns=("trip", "delegation", "function")),
    },
)


async def check_trip(connection: AsyncConnection, trip: UUID) -> None:
    """The trip is known here and not cancelled. Raises `NotYetKnown`, `WrongState`."""
    status = await connection.scalar(select(tables.known_trips.c.status).where(tables.known_trips.c.id == trip))
    if status is None:
        raise NotYetKnown(f"there is no trip {trip} here yet", trip=str(trip))
    if status == "cancelled":
        raise WrongState("The trip is cancelled.", state=status)
