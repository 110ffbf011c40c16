"""The local bus: one PostgreSQL database of its own in place of a broker, for one machine.

The lock discipline is the event store's: a batch takes one advisory transaction lock as the last thing before its
INSERT, so a reader that saw an offset has seen every offset below it. Records are kept for ever; what a `Topic` says
of replication and retention has no meaning here and is not compared.
"""

import asyncio
import json
import zlib
from collections.abc import Mapping, Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.bus import (
    Assigned,
    BusAway,
    Delivery,
    Partition,
    Place,
    Record,
    Revoked,
    SendStopped,
    Topic,
    TopicDrift,
    tail_of,
)
from shared.bus_holding import Holding
from shared.bus_local_member import FAILED, LISTENING, LocalSubscription, LocalTimes, delivery_of, said
from shared.database import driver_of

_LOCK = (
    "SELECT set_config('lock_timeout', :patience, true), "
    "set_config('idle_in_transaction_session_timeout', :patience, true), pg_advisory_xact_lock(:lock)"
)
_SEND_LOCK = 0x0A77AC4E_0B05
_TOPICS_LOCK = 0x0A77AC4E_0B06

_HEADS = "SELECT number, next_offset FROM heads WHERE topic = $1 ORDER BY number"
_TAIL = """
SELECT "offset", key, headers::text AS headers, body FROM records
WHERE topic = $1 AND number = $2 AND "offset" >= $3 AND "offset" < $4 ORDER BY "offset"
"""
_APPEND = """
WITH incoming AS (
    SELECT * FROM unnest($1::text[], $2::int[], $3::bytea[], $4::text[], $5::bytea[])
        WITH ORDINALITY AS i (topic, number, key, headers, body, place)
), counted AS (
    SELECT topic, number, count(*) AS count FROM incoming GROUP BY topic, number
), moved AS (
    UPDATE heads h SET next_offset = h.next_offset + c.count FROM counted c
    WHERE h.topic = c.topic AND h.number = c.number
    RETURNING h.topic, h.number, h.next_offset - c.count AS first
), written AS (
    INSERT INTO records (topic, number, "offset", key, headers, body)
    SELECT i.topic, i.number, m.first - 1 + row_number() OVER (PARTITION BY i.topic, i.number ORDER BY i.place),
        i.key, i.headers::jsonb, i.body
    FROM incoming i JOIN moved m ON m.topic = i.topic AND m.number = i.number
)
SELECT topic, number, first FROM moved
"""


class LocalBus:
    """The adapter. The engine stays its owner's; each member of a group holds one more connection outside of it."""

    def __init__(self, engine: AsyncEngine, *, times: LocalTimes | None = None) -> None:
        self._engine = engine
        self._times = times or LocalTimes()

    async def ensure_topics(self, topics: Sequence[Topic]) -> None:
        """See `shared.bus.Bus`. The number of partitions alone is compared."""
        try:
            async with asyncio.timeout(self._times.send), self._engine.begin() as connection:
                await _lock(connection, _TOPICS_LOCK, self._times.send)
                differences = [found for topic in topics if (found := await _ensure(connection, topic))]
        except FAILED as error:
            raise BusAway(said(error)) from error
        if differences:
            raise TopicDrift("; ".join(differences))

    async def producer(self) -> "LocalProducer":
        """See `shared.bus.Bus`."""
        producer = LocalProducer(self._engine, self._times.send)
        await producer.start()
        return producer

    async def subscribe(
        self, group: str, topics: Sequence[str], *, on_assigned: Assigned, on_revoked: Revoked
    ) -> LocalSubscription:
        """See `shared.bus.Bus`."""
        holding = Holding(on_assigned, on_revoked, self._times.patience)
        member = LocalSubscription(self._engine, group, topics, holding, self._times)
        await member.join()
        LISTENING.add(member)
        return member

    async def close(self) -> None:
        """Nothing is held here."""


class LocalProducer:
    """See `shared.bus.Producer`. A batch is one transaction: it is there whole or not at all."""

    def __init__(self, engine: AsyncEngine, patience: float) -> None:
        self._engine = engine
        self._patience = patience
        self._partitions: dict[str, int] = {}

    async def start(self) -> None:
        """Find out that the database answers, and which topics it has."""
        try:
            async with asyncio.timeout(self._patience), self._engine.connect() as connection:
                await self._read_topics(connection)
        except FAILED as error:
            raise BusAway(said(error)) from error

    async def send(self, records: Sequence[Record]) -> list[Place]:
        """See `shared.bus.Producer`."""
        if not records:
            return []
        try:
            async with asyncio.timeout(self._patience), self._engine.begin() as connection:
                if any(record.topic not in self._partitions for record in records):
                    await self._read_topics(connection)
                numbers = [self._number(record) for record in records]
                places = await self._append(connection, records, numbers)
        except FAILED as error:
            raise SendStopped(said(error), ()) from error
        for member in list(LISTENING):
            member.wake()
        return places

    async def id_at(self, place: Place) -> str | None:
        """See `shared.bus.Producer`."""
        find = text(
            "SELECT h ->> 1 FROM records, jsonb_array_elements(headers) h "
            "WHERE topic = :topic AND number = :number AND \"offset\" = :offset AND h ->> 0 = 'ce_id'"
        )
        try:
            async with asyncio.timeout(self._patience), self._engine.connect() as connection:
                found: str | None = await connection.scalar(find, place._asdict())
        except FAILED as error:
            raise BusAway(said(error)) from error
        return found

    async def tail(self, topic: str, behind: Mapping[int, int], limit: int) -> list[Delivery]:
        """See `shared.bus.Producer`."""
        found: list[Delivery] = []
        try:
            async with asyncio.timeout(self._patience), self._engine.connect() as connection:
                driver = await driver_of(connection)
                for number, following in await driver.fetch(_HEADS, topic):
                    for first, end in tail_of(0, following, behind.get(number), limit):
                        rows = await driver.fetch(_TAIL, topic, number, first, end)
                        found += [delivery_of(Partition(topic, number), row) for row in rows]
        except FAILED as error:
            raise BusAway(said(error)) from error
        return found

    async def close(self) -> None:
        """Nothing is pending between two sends."""

    async def _append(
        self, connection: AsyncConnection, records: Sequence[Record], numbers: Sequence[int]
    ) -> list[Place]:
        # this statement also opens the transaction: before it, one on the driver's connection would run outside
        await _lock(connection, _SEND_LOCK, self._patience)
        driver = await driver_of(connection)
        rows = await driver.fetch(
            _APPEND,
            [record.topic for record in records],
            numbers,
            [record.key.encode() for record in records],
            [json.dumps(record.headers) for record in records],
            [record.body for record in records],
        )
        following = {(row["topic"], row["number"]): row["first"] for row in rows}
        places = []
        for record, number in zip(records, numbers, strict=True):
            offset = following[record.topic, number]
            following[record.topic, number] = offset + 1
            places.append(Place(record.topic, number, offset))
        return places

    async def _read_topics(self, connection: AsyncConnection) -> None:
        rows = await connection.execute(text("SELECT name, partitions FROM topics"))
        self._partitions = {row.name: row.partitions for row in rows}

    def _number(self, record: Record) -> int:
        if record.topic not in self._partitions:
            raise SendStopped(f"there is no topic {record.topic}", ())
        return zlib.crc32(record.key.encode()) % self._partitions[record.topic]


async def _lock(connection: AsyncConnection, lock: int, patience: float) -> None:
    await connection.execute(text(_LOCK), {"patience": f"{round(patience * 1000)}ms", "lock": lock})


async def _ensure(connection: AsyncConnection, topic: Topic) -> str | None:
    """Make a topic where it lacks; answers the difference where it is another one."""
    values: Mapping[str, object] = {"name": topic.name, "partitions": topic.partitions}
    await connection.execute(
        text("INSERT INTO topics (name, partitions) VALUES (:name, :partitions) ON CONFLICT DO NOTHING"), values
    )
    found = await connection.scalar(text("SELECT partitions FROM topics WHERE name = :name"), values)
    if found != topic.partitions:
        return f"{topic.name}: partitions is {found}, not {topic.partitions}"
    await connection.execute(
        text(
            "INSERT INTO heads (topic, number, next_offset) SELECT :name, number, 0 "
            "FROM generate_series(0, :partitions - 1) number ON CONFLICT DO NOTHING"
        ),
        values,
    )
    return None
