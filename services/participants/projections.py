"""The read models of the participants service, and what its rules ask of them."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from services.participants import delegation, member, shapes, tables
from shared.command import Kind
from shared.errors import WrongState
from shared.event_store import Codec, EventStore
from shared.known import until_known
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


async def known_trip(engine: AsyncEngine, trip: UUID) -> None:
    """The trip is known here and not cancelled. Raises NotYetKnown, WrongState."""

    async def look() -> str | None:
        async with engine.connect() as connection:
            return await connection.scalar(select(tables.known_trips.c.status).where(tables.known_trips.c.id == trip))

    if await until_known(look, f"the trip {trip}") == "cancelled":
        raise WrongState("The trip is cancelled.", status="cancelled")
