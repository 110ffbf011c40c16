"""What the participants service does with the schedule's messages: it knows which trips there are."""

import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.participants.tables import known_trips
from shared.contracts import SCHEDULE, bodies
from shared.contracts.trip import TripCancelled, TripPlanned
from shared.messages import Message
from shared.taking import Apply, each


async def trip_planned(connection: AsyncConnection, message: Message) -> None:
    """Delegations can be registered from now on."""
    planned = bodies.read(TripPlanned, message.body)
    row = {"status": planned.status}
    await connection.execute(
        insert(known_trips).values(id=planned.trip, **row).on_conflict_do_update(index_elements=["id"], set_=row)
    )


async def trip_cancelled(connection: AsyncConnection, message: Message) -> None:
    """No delegation is registered for a cancelled trip."""
    cancelled = bodies.read(TripCancelled, message.body)
    await connection.execute(known_trips.update().where(known_trips.c.id == cancelled.trip).values(status="cancelled"))


@contextlib.asynccontextmanager
async def anew(connection: AsyncConnection, key: str) -> AsyncIterator[None]:
    """A trip is forgotten, and heard again."""
    with contextlib.suppress(ValueError):  # a key that is no trip gave nothing
        await connection.execute(delete(known_trips).where(known_trips.c.id == UUID(key)))
    yield


async def passed_over(connection: AsyncConnection, message: Message) -> None:
    """Stops, movements and meetings are nothing that rosters need to know."""


APPLY: dict[str, Apply] = {
    **{cls.__name__: each(passed_over) for cls in SCHEDULE},
    "TripPlanned": each(trip_planned),
    "TripCancelled": each(trip_cancelled),
}
