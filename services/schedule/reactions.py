"""What the schedule service does with the participants service's messages: it knows which delegations there are."""

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.schedule.tables import known_delegations
from shared import contracts
from shared.consumer import Apply
from shared.messages import Message


async def delegation_registered(connection: AsyncConnection, message: Message) -> None:
    """A delegation can host and be invited from now on."""
    registered = contracts.read(contracts.DelegationRegistered, message.body)
    row = {"trip": registered.trip, "status": registered.status}
    await connection.execute(
        insert(known_delegations)
        .values(id=registered.delegation, **row)
        .on_conflict_do_update(index_elements=["id"], set_=row)
    )


async def delegation_dissolved(connection: AsyncConnection, message: Message) -> None:
    """A delegation can no longer be invited."""
    dissolved = contracts.read(contracts.DelegationDissolved, message.body)
    await connection.execute(
        known_delegations.update().where(known_delegations.c.id == dissolved.delegation).values(status="dissolved")
    )


async def passed_over(connection: AsyncConnection, message: Message) -> None:
    """Names and people of delegations are nothing that the schedule needs to know."""


APPLY: dict[str, Apply] = {
    **{cls.__name__: passed_over for cls in contracts.PARTICIPANTS},
    "DelegationRegistered": delegation_registered,
    "DelegationDissolved": delegation_dissolved,
}
