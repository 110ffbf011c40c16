"""What the schedule service does with the participants service's messages: it knows which delegations there are."""

import contextlib
from collections.abc import AsyncIterator
from uuid import UUID

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.schedule.tables import known_delegations
from shared.contracts import PARTICIPANTS, bodies
from shared.contracts.delegation import DelegationDissolved, DelegationRegistered
from shared.messages import Message
from shared.taking import Apply, each


async def delegation_registered(connection: AsyncConnection, message: Message) -> None:
    """A delegation can host and be invited from now on."""
    registered = bodies.read(DelegationRegistered, message.body)
    row = {"trip": registered.trip, "status": registered.status}
    await connection.execute(
        insert(known_delegations)
        .values(id=registered.delegation, **row)
        .on_conflict_do_update(index_elements=["id"], set_=row)
    )


async def delegation_dissolved(connection: AsyncConnection, message: Message) -> None:
    """A delegation can no longer be invited."""
    dissolved = bodies.read(DelegationDissolved, message.body)
    await connection.execute(
        known_delegations.update().where(known_delegations.c.id == dissolved.delegation).values(status="dissolved")
    )


@contextlib.asynccontextmanager
async def anew(connection: AsyncConnection, key: str) -> AsyncIterator[None]:
    """The delegations of a trip are forgotten, and heard again."""
    with contextlib.suppress(ValueError):  # a key that is no trip gave nothing
        await connection.execute(delete(known_delegations).where(known_delegations.c.trip == UUID(key)))
    yield


async def passed_over(connection: AsyncConnection, message: Message) -> None:
    """Names and people of delegations are nothing that the schedule needs to know."""


APPLY: dict[str, Apply] = {
    **{cls.__name__: each(passed_over) for cls in PARTICIPANTS},
    "DelegationRegistered": each(delegation_registered),
    "DelegationDissolved": each(delegation_dissolved),
}
