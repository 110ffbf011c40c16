"""The log: what is appended is seen by every reader, whole, in order, once; and all that is wrong with it is found."""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias, cast
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.database import driver_of, is_away, make_engine
from shared.event_store import (
    Append,
    Codec,
    ConcurrentAppend,
    EventStore,
    NewEvent,
    NotInTransaction,
    StoredEvent,
    UnknownEventType,
)

MakeDatabase = Callable[[str], Awaitable[str]]
Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

SCHEDULE = "services/schedule/migrations"
METADATA = {"actor": "planner-1", "correlation_id": "c-1", "traceparent": None}
WAITING = (
    "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory' "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
WRITERS = 32
APPENDS = 500


@dataclass(frozen=True, kw_only=True)
class Noted:
    text: str
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Struck:
    VERSION = 2
    reason: str


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """No codec knows it."""


class LockedByNobody(EventStore):
    """The store with the lock taken out of its one statement."""

    append_statement = EventStore.append_statement.replace("SELECT pg_advisory_xact_lock(1, 0)", "SELECT 1")


CODEC = Codec((Noted, Struck), {"Struck.v1": lambda data: ("Struck.v2", {"reason": data["why"]})})
STORE = EventStore(CODEC)


def noted(*texts: str, openly: bool = True) -> list[NewEvent]:
    return [NewEvent(id=uuid4(), data=Noted(text=one), open=openly) for one in texts]


def one(stream: str, expected: int, events: list[NewEvent]) -> list[Append]:
    return [Append(stream=stream, expected_version=expected, events=events)]


@pytest.fixture
async def engine(patient_locks: None, make_database: MakeDatabase) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(await make_database(SCHEDULE), name="store-test", pool_size=20)
    yield engine
    await engine.dispose()


async def append(engine: AsyncEngine, key: str, *appends: Append, store: EventStore = STORE) -> list[int]:
    async with engine.begin() as connection:
        await connection.execute(text("SELECT 1"))
        return await store.append(connection, key, METADATA, appends)


async def stored(engine: AsyncEngine) -> list[StoredEvent]:
    async with engine.connect() as connection:
        return await STORE.after(await driver_of(connection), 0, 100_000)


async def damage(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection, connection.begin():
        return [line async for line in STORE.damage(connection)]


# -- proof 1 ------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a reader with a cursor saw while others wrote."""

    events: list[StoredEvent]

    def lost(self, there: list[StoredEvent]) -> int:
        return len(there) - len({event.id for event in self.events})

    def inverted(self) -> int:
        """Events of one stream that came after a later one."""
        last: dict[str, int] = defaultdict(int)
        count = 0
        for event in self.events:
            count += event.version < last[event.stream]
            last[event.stream] = max(last[event.stream], event.version)
        return count


async def write_and_read(engine: AsyncEngine, store: EventStore) -> tuple[Seen, list[StoredEvent]]:
    """32 writers, each with a stream of its own, four to a key, and one live reader behind a cursor."""
    written = asyncio.Event()
    seen = Seen([])

    async def write(writer: int, connection: Driver) -> None:
        generator = random.Random(writer)
        version = 0
        while version < APPENDS:
            count = min(generator.choice((1, 1, 2, 5, 12)), APPENDS - version)
            events = [NewEvent(id=uuid4(), data=Noted(text="n"), open=generator.random() < 0.7) for _ in range(count)]
            async with connection.transaction():
                appended = Append(stream=f"note/{writer}", expected_version=version, events=events)
                await store.append(as_core(connection), f"key-{writer % 8}", METADATA, [appended])
                # the lock is held, and must be, until the commit: what a slow network or a loaded machine does here
                await asyncio.sleep(generator.random() * 0.002)
            version += count
            await asyncio.sleep(generator.random() * 0.02)

    async def read(connection: Driver) -> None:
        cursor = 0
        while True:
            # asked before it reads: whatever was written until then must come in this read or an earlier one
            last = written.is_set()
            page = await store.after(connection, cursor, 500)
            seen.events += page
            cursor = page[-1].position if page else cursor
            if not page and last:
                return

    connections = [await raw(engine) for _ in range(WRITERS + 1)]
    try:
        reading = asyncio.create_task(read(connections[0]))
        async with asyncio.TaskGroup() as group:
            for writer, connection in enumerate(connections[1:]):
                group.create_task(write(writer, connection))
        written.set()
        await reading
    finally:
        for connection in connections:
            await connection.close()
    return seen, await stored(engine)


async def test_store_shows_a_live_reader_every_event_in_order(engine: AsyncEngine) -> None:
    seen, there = await write_and_read(engine, STORE)
    assert len(there) == WRITERS * APPENDS
    assert (seen.lost(there), seen.inverted()) == (0, 0)
    assert [event.position for event in seen.events] == sorted(event.position for event in there)
    for writer in range(WRITERS):
        versions = [event.version for event in seen.events if event.stream == f"note/{writer}"]
        assert versions == list(range(1, APPENDS + 1))
    for number in range(8):
        of_key = [event for event in seen.events if event.key == f"key-{number}"]
        told = [event.open_sequence for event in of_key if event.open_sequence is not None]
        assert [event.cleared_sequence for event in of_key] == list(range(1, len(of_key) + 1))
        assert told == list(range(1, len(told) + 1))
        assert 0 < len(told) < len(of_key)
    assert await damage(engine) == []


async def test_store_without_its_lock_loses_events_for_a_live_reader(engine: AsyncEngine) -> None:
    assert LockedByNobody.append_statement != EventStore.append_statement
    seen, there = await write_and_read(engine, LockedByNobody(CODEC))
    assert seen.lost(there) + seen.inverted() > 0


# -- append ---------------------------------------------------------------------------------------------------------


async def test_append_gives_several_streams_one_key_and_dense_numbers(engine: AsyncEngine) -> None:
    first = Append(
        stream="note/a",
        expected_version=0,
        events=[*noted("a1"), *noted("a2", openly=False), *noted("a3")],
    )
    second = Append(stream="note/b", expected_version=0, events=noted("b1", openly=False))
    third = Append(stream="note/a", expected_version=3, events=[*noted("a4", openly=False), *noted("a5")])
    other = Append(stream="note/c", expected_version=0, events=noted("c1", openly=False))
    positions = await append(engine, "trip-1", first, second)
    positions += await append(engine, "trip-2", other)
    positions += await append(engine, "trip-1", third)
    there = await stored(engine)
    assert positions == sorted(positions) == [event.position for event in there]
    assert [
        (event.key, event.stream, event.version, event.data.text, event.open_sequence, event.cleared_sequence)
        for event in there
    ] == [
        ("trip-1", "note/a", 1, "a1", 1, 1),
        ("trip-1", "note/a", 2, "a2", None, 2),
        ("trip-1", "note/a", 3, "a3", 2, 3),
        ("trip-1", "note/b", 1, "b1", None, 4),
        ("trip-2", "note/c", 1, "c1", None, 1),
        ("trip-1", "note/a", 4, "a4", None, 5),
        ("trip-1", "note/a", 5, "a5", 3, 6),
    ]
    assert {event.metadata["actor"] for event in there} == {"planner-1"}
    async with engine.connect() as connection:
        driver = await driver_of(connection)
        cleared = await STORE.of_key(driver, "trip-1", after=4, openly=False, limit=10)
        told = await STORE.of_key(driver, "trip-1", after=1, openly=True, limit=1)
    assert [event.data.text for event in cleared] == ["a4", "a5"]
    assert [event.data.text for event in told] == ["a3"]


@pytest.mark.parametrize("expected", [0, 1, 3])
async def test_append_on_another_version_appends_nothing(engine: AsyncEngine, expected: int) -> None:
    await append(engine, "trip-1", *one("note/a", 0, noted("a1", "a2")))
    fresh = Append(stream="note/b", expected_version=0, events=noted("b1"))
    stale = Append(stream="note/a", expected_version=expected, events=noted("a3"))
    with pytest.raises(ConcurrentAppend):
        await append(engine, "trip-1", fresh, stale)
    assert [event.data.text for event in await stored(engine)] == ["a1", "a2"]
    assert await damage(engine) == []


async def test_append_meets_the_unique_key_where_the_version_was_right_a_moment_ago(engine: AsyncEngine) -> None:
    """The second waits for the lock with a snapshot from before it: its look at versions sees nothing wrong."""
    async with engine.begin() as first, engine.connect() as second:
        await first.execute(text("SELECT 1"))
        await STORE.append(first, "trip-1", METADATA, one("note/a", 0, noted("mine")))
        await second.execute(text("SELECT 1"))
        waiting = asyncio.create_task(STORE.append(second, "trip-1", METADATA, one("note/a", 0, noted("theirs"))))
        await blocked(engine)
        await first.commit()
        with pytest.raises(ConcurrentAppend, match="events_stream_version"):
            await waiting
    assert [event.data.text for event in await stored(engine)] == ["mine"]
    assert await damage(engine) == []


async def test_append_of_one_id_twice_is_refused(engine: AsyncEngine) -> None:
    (event,) = noted("once")
    await append(engine, "trip-1", *one("note/a", 0, [event]))
    with pytest.raises(ConcurrentAppend, match="events_id"):
        await append(engine, "trip-1", *one("note/b", 0, [event]))


async def test_append_that_is_rolled_back_leaves_nothing(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        await STORE.append(connection, "trip-1", METADATA, one("note/a", 0, noted("a1")))
        await connection.rollback()
    assert await stored(engine) == []
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT * FROM heads"))).all() == []
    # neither does a hole stay where its numbers would have been
    await append(engine, "trip-1", *one("note/a", 0, noted("a1 again")))
    assert [(event.open_sequence, event.cleared_sequence) for event in await stored(engine)] == [(1, 1)]


async def test_append_outside_a_transaction_is_refused(engine: AsyncEngine) -> None:
    # begin() alone has begun nothing: before the first statement of Core, the driver's run outside the transaction
    async with engine.begin() as connection:
        with pytest.raises(NotInTransaction):
            await STORE.append(connection, "trip-1", METADATA, one("note/a", 0, noted("a1")))
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with autocommit.connect() as connection:
        await connection.execute(text("SELECT 1"))
        with pytest.raises(NotInTransaction):
            await STORE.append(connection, "trip-1", METADATA, one("note/a", 0, noted("a1")))
    assert await stored(engine) == []


async def test_append_waits_no_longer_for_the_lock_than_is_set(engine: AsyncEngine) -> None:
    async with engine.connect() as holder, engine.connect() as other:
        await holder.execute(text("SELECT 1"))
        await STORE.append(holder, "trip-1", METADATA, one("note/a", 0, noted("a1")))
        await other.execute(text("SET LOCAL lock_timeout = '50ms'"))
        with pytest.raises(asyncpg.LockNotAvailableError) as raised:
            await STORE.append(other, "trip-2", METADATA, one("note/b", 0, noted("b1")))
        assert is_away(raised.value)


async def test_nobody_waits_for_a_lock_or_within_a_transaction_for_ever(as_shipped: None, engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await connection.scalar(text("SHOW lock_timeout")) == "5s"
        assert await connection.scalar(text("SHOW idle_in_transaction_session_timeout")) == "10s"


# -- codec and content ----------------------------------------------------------------------------------------------


async def test_stream_is_folded_from_what_older_programs_stored(engine: AsyncEngine) -> None:
    await append(engine, "trip-1", *one("note/a", 0, noted("a1")))
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO events (id, stream, version, type, data, metadata, key, cleared_sequence, digest) VALUES "
                "(gen_random_uuid(), 'note/a', 2, 'Struck.v1', '{\"why\": \"wrong\"}', '{}', 'trip-1', 2, '')"
            )
        )
    async with engine.connect() as connection:
        assert await STORE.load(connection, "note/a") == [Noted(text="a1"), Struck(reason="wrong")]
    assert CODEC.types == ("Noted.v1", "Struck.v2")
    assert CODEC.encode(Struck(reason="wrong")) == ("Struck.v2", '{"reason":"wrong"}')


async def test_type_that_the_program_does_not_know_is_named(engine: AsyncEngine) -> None:
    foreign = EventStore(Codec((Foreign,)))
    await append(engine, "trip-1", *one("note/a", 0, [NewEvent(id=uuid4(), data=Foreign(), open=True)]), store=foreign)
    async with engine.connect() as connection:
        with pytest.raises(UnknownEventType, match=r"Foreign\.v1"):
            await STORE.load(connection, "note/a")
    with pytest.raises(UnknownEventType, match=r"Foreign\.v1"):
        await stored(engine)


async def test_content_comes_back_as_it_was_and_keeps_its_digest(engine: AsyncEngine) -> None:
    events = [
        Noted(
            text='Zürich \u2028 東京 👩🏽‍✈️ e\u0301 \\u0041 "\\\t\r\n\x7f\x01',
            numbers=(35.0, 139.74, 1e22, 1e-7, 0.1 + 0.2),
        ),
        Noted(text="", numbers=(-0.0, 5e-324, 1.7976931348623157e308, -35.660001)),
    ]
    new = [NewEvent(id=uuid4(), data=event, open=True) for event in events]
    metadata = {"zebra": "ä", "actor": "planner-1", "b": None, "aa": "\u2029"}
    async with engine.begin() as connection:
        await connection.execute(text("SELECT 1"))
        await STORE.append(connection, "trip-ü", metadata, one("note/ü", 0, new))
    there = await stored(engine)
    assert [event.data for event in there] == events
    assert [event.metadata for event in there] == [metadata, metadata]
    assert await damage(engine) == []


# -- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("injected", "found"),
    [
        (
            "UPDATE events SET data = jsonb_set(data, '{text}', '\"a2?\"') WHERE stream = 'note/a' AND version = 2",
            ["position 2 (note/a 2): the event is not what was stored"],
        ),
        (
            "UPDATE events SET data = jsonb_set(data, '{numbers}', '[1]') WHERE stream = 'note/b' AND version = 1",
            ["position 4 (note/b 1): the event is not what was stored"],
        ),
        (
            "UPDATE events SET metadata = jsonb_set(metadata, '{actor}', '\"nobody\"') WHERE position = 1",
            ["position 1 (note/a 1): the event is not what was stored"],
        ),
        (
            "UPDATE events SET type = 'Struck.v2' WHERE position = 3",
            ["position 3 (note/a 3): the event is not what was stored"],
        ),
        (
            "UPDATE events SET id = gen_random_uuid() WHERE position = 3",
            ["position 3 (note/a 3): the event is not what was stored"],
        ),
        (
            "UPDATE events SET key = 'trip-2' WHERE position = 5",
            [
                "position 5 (note/b 2): the event is not what was stored",
                "position 5 (note/b 2): its number 5 on the topic leaves a hole or stands twice",
                "key trip-1: its last numbers are (3, 4), and not those that were given out",
                "key trip-2: nothing says which numbers were given out",
            ],
        ),
        (
            "UPDATE events SET version = 4 WHERE position = 3",
            [
                "position 3 (note/a 4): the event is not what was stored",
                "position 3 (note/a 4): version 3 is missing",
            ],
        ),
        (
            "DELETE FROM events WHERE stream = 'note/a' AND version = 2",
            [
                "position 3 (note/a 3): version 2 is missing",
                "position 3 (note/a 3): its number 3 on the topic leaves a hole or stands twice",
            ],
        ),
        (
            (
                "ALTER TABLE events DROP CONSTRAINT events_cleared; "
                "UPDATE events SET cleared_sequence = 3 WHERE position = 4"
            ),
            [
                "position 4 (note/b 1): its number 3 on the topic leaves a hole or stands twice",
                "position 5 (note/b 2): its number 5 on the topic leaves a hole or stands twice",
            ],
        ),
        (
            "UPDATE events SET open_sequence = NULL WHERE position = 3",
            ["position 4 (note/b 1): its number 3 on the topic leaves a hole or stands twice"],
        ),
        (
            "DELETE FROM events WHERE position = 5",
            ["key trip-1: its last numbers are (3, 4), and not those that were given out"],
        ),
        ("DELETE FROM heads", ["key trip-1: nothing says which numbers were given out"]),
    ],
)
async def test_damage_is_found(engine: AsyncEngine, injected: str, found: list[str]) -> None:
    mixed = [*noted("a1"), *noted("a2", openly=False), *noted("a3")]
    await append(engine, "trip-1", *one("note/a", 0, mixed))
    await append(engine, "trip-1", *one("note/b", 0, [*noted("b1"), *noted("b2", openly=False)]))
    assert await damage(engine) == []
    async with engine.begin() as connection:
        for statement in injected.split("; "):
            await connection.execute(text(statement))
    assert await damage(engine) == found


# -- helpers --------------------------------------------------------------------------------------------------------


async def raw(engine: AsyncEngine) -> Driver:
    """A connection of the driver's own, so that many writers need no pool."""
    url = engine.url
    return await asyncpg.connect(
        host=url.host, port=url.port, user=url.username, password=url.password, database=url.database
    )


def as_core(connection: Driver) -> AsyncConnection:
    """What the store needs of a Core connection: its driver's."""

    class Raw:
        driver_connection = connection

    class Core:
        sync_connection = None

        async def get_raw_connection(self) -> Raw:
            return Raw()

    return cast(AsyncConnection, Core())


async def blocked(engine: AsyncEngine) -> None:
    """Until somebody waits for the log's lock."""
    async with asyncio.timeout(120):
        while True:
            async with engine.connect() as connection:
                if await connection.scalar(text(WAITING)):
                    return
            await asyncio.sleep(0.01)
