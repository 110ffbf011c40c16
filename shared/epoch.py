"""A service's own epoch: which of its histories it tells. It rises when the database was restored to an earlier point.

What was told after that point still stands on the bus and counts for nothing: consumers drop what is of a lower epoch,
and take what is republished under the new one whole. So a new epoch has to be above each that was ever told. The log's
own row knows those that it has lived through, the bus those that were published from a later state of it. Neither knows
of one that was told over HTTP alone, or that a bus which is gone had: so it is not below the seconds of the clock
either, and the same backup put back twice does not give one number to two histories.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple
from uuid import UUID

from shared.bus import Delivery, Producer
from shared.messages import Undecodable, read_delivery, topic_of

SECONDS = "least(extract(epoch FROM clock_timestamp())::bigint - 1577836800, 2000000000)::integer"
"""Of the database's clock, since 2020; they fit until 2083, and then the highest known epoch alone counts."""
TAIL = 2000
"""So many of the records of each partition are looked at: the first behind the last acknowledged one, which are ghosts
if there are any, whatever was told again behind them; and the last."""
JUMP = 1000
"""A record of an epoch further above all that can be is a stranger's: believing it could use up all numbers."""


class Told(NamedTuple):
    """A record of ours as the bus has it."""

    id: UUID
    epoch: int


class Raised(NamedTuple):
    """A service's epoch before and after."""

    old: int
    new: int


async def told(
    driver: Any, producer: Producer, service: str, behind: Mapping[tuple[str, int], int] | None = None
) -> list[Told]:
    """What stands on a service's topics behind these offsets (by topic and partition). Raises `BusAway`."""
    found = []
    highest = await driver.fetchval(f"SELECT greatest(epoch, {SECONDS})::bigint + {JUMP} FROM relay_cursor")
    for topic in (topic_of(service, openly=True), topic_of(service, openly=False)):
        offsets = {number: offset for (name, number), offset in (behind or {}).items() if name == topic}
        found += [_ours(delivery, service) for delivery in await producer.tail(topic, offsets, TAIL)]
    return [one for one in found if one is not None and one.epoch <= highest]


async def ghosts(driver: Any, found: Collection[Told], epoch: int) -> list[Told]:
    """Those that this log, at this epoch, cannot have published: it was restored to an earlier point since.

    What is of a lower epoch is past; so each can be found once, and nothing that a stranger writes raises the epoch
    again and again.
    """
    now = [one for one in found if one.epoch == epoch]
    known = await driver.fetch("SELECT id FROM events WHERE id = ANY($1::uuid[])", [one.id for one in now])
    ids = {row["id"] for row in known}
    return [one for one in found if one.epoch > epoch or (one.epoch == epoch and one.id not in ids)]


async def raise_epoch(driver: Any, above: int) -> Raised:
    """Raise the epoch above its own and this one, and let everything be published again. One transaction."""
    async with driver.transaction():
        row = await driver.fetchrow(_RAISE, above)
        await driver.execute("DELETE FROM relay_places")
    return Raised(row["old"], row["new"])


_RAISE = f"""
UPDATE relay_cursor SET position = 0, epoch = greatest(greatest(before.epoch, $1::integer) + 1, {SECONDS})
FROM (SELECT epoch FROM relay_cursor FOR UPDATE) before
RETURNING before.epoch AS old, relay_cursor.epoch AS new
"""


def _ours(delivery: Delivery, service: str) -> Told | None:
    try:
        message = read_delivery(delivery)
        return Told(UUID(message.id), message.epoch) if message.source == f"/attache/{service}" else None
    except (Undecodable, ValueError):
        return None
