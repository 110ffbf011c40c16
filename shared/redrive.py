"""Redrive: parked messages are tried again because an operator says so, each key from its first one on, in order.

Order per key holds, so a type or a time chooses keys: every key of which a parked message matches is tried, from the
message that stands in its way until one cannot be taken. It is done as services do it by themselves, under the same
locks, so it can run beside them and beside another redrive. Each message, or page of them, is a transaction; whoever
is killed leaves a key that waits for a gap, which services go on with, and so does every redrive.

What was parked because nobody could read it holds up no key; it goes when it can be read, and its key is past it.
"""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import httpx
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.bus import Delivery
from shared.database import is_away
from shared.key_healing import KeyHealing
from shared.messages import Message, Undecodable, read_delivery
from shared.parking import GAP, KEY_WAITS, header_values
from shared.rebuilding import EpochBehind

log = structlog.get_logger()

NAMED = """coalesce(message_id, topic || '/' || number || '/' || "offset", 'row/' || id)"""
"""How one parked message is called: by its id, or by the place of what has none, as the dead letter told both."""
TYPED = r"""(
    SELECT substring(header ->> 1 FROM '^attache\.([A-Za-z]+)\.v[0-9]+$')
    FROM jsonb_array_elements(headers) WITH ORDINALITY AS all_of_them(header, place)
    WHERE header ->> 0 = 'ce_type' ORDER BY place DESC LIMIT 1
)"""

# a key that waits for a gap may be one that a redrive was killed over, whatever that one had chosen
_PARKED = f"""
WITH named AS (
    SELECT *, sequence IS NULL AS unread, {NAMED} AS name, {TYPED} AS type FROM parked_messages
    WHERE (CAST(:key AS text) IS NULL OR key = :key) AND (CAST(:topic AS text) IS NULL OR topic = :topic)
)
SELECT topic, key, unread, count(*) AS messages, min(parked_at) AS since,
    (array_agg(name ORDER BY sequence, id))[1] AS name, (array_agg(type ORDER BY sequence, id))[1] AS type,
    (array_agg(slug ORDER BY sequence, id))[1] AS slug, (array_agg(attempts ORDER BY sequence, id))[1] AS attempts,
    (array_agg(announced_at IS NOT NULL ORDER BY sequence, id))[1] AS announced
FROM named GROUP BY topic, key, unread
HAVING bool_or(slug = :gap OR (
    (CAST(:type AS text) IS NULL OR type = :type)
    AND (CAST(:since AS timestamptz) IS NULL OR parked_at >= :since)
    AND (CAST(:until AS timestamptz) IS NULL OR parked_at < :until)
))
ORDER BY min(id)
"""
_UNREAD = """
UPDATE parked_messages SET attempts = attempts + 1
WHERE topic = :topic AND key = :key AND sequence IS NULL AND announced_at IS NOT NULL
RETURNING id, coalesce(number, 0) AS number, coalesce("offset", 0) AS "offset", headers, body
"""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which keys: those of which one parked message fits all that is given. Parked from `since` on, before `until`."""

    key: str | None = None
    topic: str | None = None
    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Parked:
    """What is parked of one key, or what nobody could read under one key's name (`unread`).

    `name`, `type`, `slug` and `attempts` are those of the first message, which stands in the way of the others.
    """

    topic: str
    key: str
    unread: bool
    messages: int
    since: datetime
    name: str
    type: str | None
    slug: str
    attempts: int
    announced: bool


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What became of one: what was parked, what of it still is, and why it could not be tried, if so."""

    was: Parked
    left: Parked | None
    why: str | None = None


async def parked(engine: AsyncEngine, selection: Selection) -> list[Parked]:
    """What is parked and chosen, in the order in which it was; nothing is changed."""
    async with engine.connect() as connection:
        rows = await connection.execute(text(_PARKED), {**vars(selection), "gap": GAP})
        return [Parked(**row) for row in rows.mappings()]


class Redrive:
    """Tries what is parked of one service's database."""

    def __init__(self, engine: AsyncEngine, keys: KeyHealing) -> None:
        self._engine = engine
        self._keys = keys

    async def each(self, chosen: Sequence[Parked]) -> AsyncIterator[Tried]:
        """Try one after the other. A producer that is away holds up its own keys alone; a database raises."""
        away: dict[str, str] = {}
        for one in chosen:
            why = away.get(one.topic) or await self._try(one, away)
            yield Tried(was=one, left=await self._left(one), why=why)

    async def _try(self, one: Parked, away: dict[str, str]) -> str | None:
        """Answers why it could not be tried, if so; `away` takes down the producers that do not answer."""
        began = time.monotonic()
        if one.topic not in self._keys.topics:
            return "this program does not hear its topic"
        if not one.announced and one.slug not in (GAP, KEY_WAITS):
            return "it is not announced on the dead-letter topic yet: the service's relay does that"
        try:
            await (self._read_again(one) if one.unread else self._again(one))
        except httpx.HTTPError as error:
            away[one.topic] = f"its producer's message log does not answer: {_said(error)}"
            return away[one.topic]
        except EpochBehind as error:
            return str(error)
        except Exception as error:
            if is_away(error):
                raise
            log.warning("redrive.failed", topic=one.topic, key=one.key, error=repr(error), exc_info=True)
            return f"it failed: {type(error).__name__}, see the log"
        log.info("key.redriven", topic=one.topic, key=one.key, seconds=round(time.monotonic() - began, 3))
        return None

    async def _again(self, one: Parked) -> None:
        await self._keys.try_again(one.topic, one.key)
        await self._keys.heal(one.topic, one.key)

    async def _read_again(self, one: Parked) -> None:
        """What can be read by now goes, if its key is past it: the producer's log had the true one."""
        async with self._engine.begin() as connection:
            rows = (await connection.execute(text(_UNREAD), {"topic": one.topic, "key": one.key})).mappings().all()
        for row in rows:
            delivery = Delivery(
                topic=one.topic,
                number=row["number"],
                offset=row["offset"],
                key=one.key.encode(),
                headers=header_values(row["headers"]),
                body=row["body"],
            )
            try:
                message = read_delivery(delivery)
            except Undecodable:
                continue
            await self._keys.heal(one.topic, message.key)
            if await self._is_past(one.topic, message):
                async with self._engine.begin() as connection:
                    await connection.execute(text("DELETE FROM parked_messages WHERE id = :id"), {"id": row["id"]})

    async def _is_past(self, topic: str, message: Message) -> bool:
        mark = await self._keys.mark(topic, message.key)
        return (mark.epoch, mark.sequence) >= (message.epoch, message.sequence)

    async def _left(self, one: Parked) -> Parked | None:
        found = await parked(self._engine, Selection(key=one.key, topic=one.topic))
        return next((left for left in found if left.unread == one.unread), None)


def _said(error: httpx.HTTPError) -> str:
    """In words, without an address."""
    return f"{error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
