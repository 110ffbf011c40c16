"""How far each partition has been taken in, in the consumer's own database: the bus's own count is a lag signal alone.

`behind` is set while a partition has much to catch up with, so that nothing is derived from a picture half as old.
"""

from collections.abc import Iterable, Mapping

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.bus import Partition

BEHIND_RECORDS = 200
"""From so many unread records on a partition counts as behind: nothing is rendered until it has caught up."""

# the row is locked: where its last owner is still writing, the end of that is waited for
_START = text(
    "INSERT INTO consumer_offsets AS o VALUES (:topic, :number, 0, false) "
    "ON CONFLICT (topic, number) DO UPDATE SET next_offset = o.next_offset RETURNING next_offset"
)
_MOVE = text(
    "UPDATE consumer_offsets SET next_offset = :next, "
    "behind = behind AND CAST(:next AS bigint) < CAST(:target AS bigint) "
    "WHERE topic = :topic AND number = :number AND next_offset = :before"
)
_TARGET = text(
    "UPDATE consumer_offsets SET behind = next_offset < CAST(:end AS bigint) "
    f"AND (behind OR CAST(:end AS bigint) - next_offset > {BEHIND_RECORDS}) "
    "WHERE topic = :topic AND number = :number"
)


class Fenced(Exception):
    """Another member has moved the offset: this one no longer owns the partition."""


async def starts(connection: AsyncConnection, partitions: Iterable[Partition]) -> dict[Partition, int]:
    """Where to read on from; a partition that is new begins at 0."""
    return {one: await connection.scalar(_START, one._asdict()) or 0 for one in sorted(partitions)}


async def move(connection: AsyncConnection, partition: Partition, before: int, following: int, target: int) -> None:
    """Move an offset, if it is where its owner left it. From `target` on it is no longer behind. Raises `Fenced`."""
    values = {**partition._asdict(), "before": before, "next": following, "target": target}
    if (await connection.execute(_MOVE, values)).rowcount != 1:
        raise Fenced(f"{partition.topic}/{partition.number} is not at {before}")


async def compare(connection: AsyncConnection, held: Mapping[Partition, int]) -> None:
    """Raises `Fenced` where somebody set one of these offsets (a rebuild): the bus would not show it."""
    rows = await connection.execute(text("SELECT topic, number, next_offset FROM consumer_offsets"))
    for topic, number, following in rows.all():
        if held.get(Partition(topic, number), following) != following:
            raise Fenced(f"{topic}/{number} was set to {following}")


async def aim(connection: AsyncConnection, ends: Mapping[Partition, int]) -> None:
    """Set whether partitions are behind, now that their ends are known: before anything of them is taken."""
    await connection.execute(_TARGET, [{**one._asdict(), "end": end} for one, end in sorted(ends.items())])
