"""What the participants service does with the schedule's messages: it knows which trips there are."""

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.participants.tables import known_trips
from shared import contracts
from shared.consumer import Apply
from shared.messages import Message


async def trip_planned(connection: AsyncConnection, message: Message) -> None:
    """Delegations can be registered from now on."""
    planned = contracts.read(contracts.TripPlanned, message.body)
    row = {"status": planned.status}
    await connection.execute(
        insert(known_trips).values(id=planned.trip, **row).on_conflict_do_update(index_elements=["id"], set_=row)
    )


async def trip_cancelled(connection: AsyncConnection, message: Message) -> None:
    """No delegation is registered for a cancelled trip."""
    cancelled = contracts.read(contracts.TripCancelled, message.body)
    await connection.execute(known_trips.update().where(known_trips.c.id == cancelled.trip).values(status="cancelled"))


async def passed_over(connection: AsyncConnection, message: Message) -> None:
    """Stops, movements and meetings are nothing that rosters need to know."""


APPLY: dict[str, Apply] = {
    **{cls.__name__: passed_over for cls in contracts.SCHEDULE},
    "TripPlanned": trip_planned,
    "TripCancelled": trip_cancelled,
}
