"""Dropping: one parked message is given up for good, by somebody and for a reason, and its key goes on without it."""

import dataclasses
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import text

from shared.consumer import Consumer
from shared.dropping import CannotDrop, Dropped, Dropping
from shared.healer import Healer, HealerTimes
from shared.redrive import Parked, Redrive, Selection, parked

if TYPE_CHECKING:
    from tests.shared.conftest import Listening, Publishing

Running = Callable[..., AbstractAsyncContextManager[None]]
Until = Callable[..., Awaitable[None]]

NEVER = HealerTimes(retry=3600, compare=3600, missing=0.1)
EVERYTHING = ("consumer_marks", "parked_messages", "dropped_messages", "heard")


@pytest.fixture
def bus_name() -> str:
    """What is dropped is in the database alone: one bus is enough."""
    return "local"


async def test_a_dropped_message_is_written_down_and_its_key_goes_on_without_it(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer, healer = await _park(publishing, listening, running, until, refused={"a 2"})
    ids = await _ids(publishing)
    parked_at = (await listening.rows("SELECT parked_at FROM parked_messages WHERE slug = 'not-applied'"))[0][0]
    dropped = await _dropping(listening, consumer, healer).drop(ids["a", 2], None)
    assert dropped == Dropped(topic=publishing.cleared, key="a", sequence=2, type="Noted")
    assert await listening.heard("a") == [(1, "a 1"), (3, "a 3"), (4, "a 4")]
    assert await listening.parked() == []
    assert await listening.rows("SELECT key, sequence, waits_for FROM consumer_marks ORDER BY key") == [
        ("a", 4, None),
        ("b", 2, None),
    ]
    kept = "topic, key, sequence, message_id, type, slug, attempts, parked_at, dropped_by, reason"
    assert await listening.rows(f"SELECT {kept} FROM dropped_messages") == [
        (publishing.cleared, "a", 2, ids["a", 2], "Noted", "not-applied", 1, parked_at, "Ada", "sent by mistake")
    ]
    await publishing.note("a", "a 5")
    await publishing.send()  # the whole past again, and what is new
    again = listening.consumer(publishing)
    async with running(again.run()):
        await until(lambda: _counted(again, 7))
    assert await listening.heard("a") == [(1, "a 1"), (3, "a 3"), (4, "a 4"), (5, "a 5")]


async def test_a_consumer_that_reads_everything_anew_passes_over_what_was_dropped(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer, healer = await _park(publishing, listening, running, until, refused={"a 2"})
    await _dropping(listening, consumer, healer).drop((await _ids(publishing))["a", 2], None)
    async with listening.watching.begin() as connection:
        for statement in (
            "DELETE FROM heard",
            "DELETE FROM consumer_marks",
            "UPDATE consumer_offsets SET next_offset = 0",
        ):
            await connection.execute(text(statement))
    listening.refused = set()
    again = listening.consumer(publishing)
    async with running(again.run()):
        await until(lambda: _counted(again, 6))
    assert again.state.counts == {"applied": 5, "dropped": 1}
    assert await listening.heard("a") == [(1, "a 1"), (3, "a 3"), (4, "a 4")]


async def test_the_key_goes_on_to_the_next_message_that_cannot_be_taken(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer, healer = await _park(publishing, listening, running, until, refused={"a 2", "a 4"})
    ids = await _ids(publishing)
    await _dropping(listening, consumer, healer).drop(ids["a", 2], publishing.cleared)
    [one] = await parked(listening.engine, Selection())
    assert (one.name, one.slug, one.messages) == (ids["a", 4], "not-applied", 1)
    assert await listening.heard("a") == [(1, "a 1"), (3, "a 3")]


@pytest.mark.parametrize(
    ("name", "topic", "said"),
    [
        ("a 3", None, "{a 3} waits for what comes before it in its key; what is parked first there is {a 2}"),
        ("b 1", None, "no parked message is called '{b 1}': --dry-run says what is"),
        ("a 2", "attache.other", "no parked message is called '{a 2}': --dry-run says what is"),
    ],
)
async def test_only_what_stands_in_its_keys_way_can_be_dropped(
    publishing: "Publishing",
    listening: "Listening",
    running: Running,
    until: Until,
    name: str,
    topic: str | None,
    said: str,
) -> None:
    consumer, healer = await _park(publishing, listening, running, until, refused={"a 2"})
    ids = {f"{key} {sequence}": id_ for (key, sequence), id_ in (await _ids(publishing)).items()}
    before = await _everything(listening)
    with pytest.raises(CannotDrop) as refused:
        await _dropping(listening, consumer, healer).drop(ids[name], topic)
    for one, id_ in ids.items():
        said = said.replace(f"{{{one}}}", id_)
    assert str(refused.value) == said
    assert await _everything(listening) == before


async def test_what_is_not_announced_or_whose_producer_is_away_is_not_dropped(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer, healer = await _park(publishing, listening, running, until, refused={"a 2"})
    ids = await _ids(publishing)
    log = healer._logs[publishing.cleared]
    away = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(503)))
    broken = Healer(consumer, {publishing.cleared: dataclasses.replace(log, client=away)}, {}, NEVER)
    before = await _everything(listening)
    with pytest.raises(CannotDrop, match="does not answer"):
        await _dropping(listening, consumer, broken).drop(ids["a", 2], None)
    page = {"epoch": 1, "next": None, "items": [{"specversion": "9"}]}
    strange = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200, json=page)))
    broken = Healer(consumer, {publishing.cleared: dataclasses.replace(log, client=strange)}, {}, NEVER)
    with pytest.raises(CannotDrop, match="cannot be read"):
        await _dropping(listening, consumer, broken).drop(ids["a", 2], None)
    assert await _everything(listening) == before
    async with listening.watching.begin() as connection:
        await connection.execute(text("UPDATE parked_messages SET announced_at = NULL"))
    with pytest.raises(CannotDrop, match="not announced on the dead-letter topic yet"):
        await _dropping(listening, consumer, healer).drop(ids["a", 2], None)


async def test_what_only_the_bus_brought_is_not_dropped_but_taken_from_the_log(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "a 1", "a 2")
    first, second = [publishing.to_records(event, 1)[0] for event in await publishing.log()]
    forged = dataclasses.replace(
        second,
        body=b'{"what": "forged"}',
        headers=tuple((n, "forged" if n == "ce_id" else v) for n, v in second.headers),
    )
    listening.refused = {"forged"}
    consumer = listening.consumer(publishing)
    await publishing.send_records([first, forged, second])
    async with running(consumer.run()):
        await until(lambda: _counted(consumer, 3))
    await _announce(listening)
    healer = listening.healer(consumer, publishing, NEVER)
    with pytest.raises(CannotDrop, match="another message in its place: redrive takes that one"):
        await _dropping(listening, consumer, healer).drop("forged", None)
    assert [one.left async for one in Redrive(listening.engine, healer.keys).each(await _parked(listening))] == [None]
    assert await listening.heard("a") == [(1, "a 1"), (2, "a 2")]


async def test_what_took_the_place_of_a_true_message_that_is_refused_too_gives_way_to_it(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "a 1")
    [true] = [publishing.to_records(event, 1)[0] for event in await publishing.log()]
    headers = tuple((name, "forged" if name == "ce_id" else value) for name, value in true.headers)
    listening.refused = {"forged", "a 1"}
    consumer = listening.consumer(publishing)
    await publishing.send_records([dataclasses.replace(true, body=b'{"what": "forged"}', headers=headers)])
    async with running(consumer.run()):
        await until(lambda: _counted(consumer, 1))
    await _announce(listening)
    healer = listening.healer(consumer, publishing, NEVER)
    assert [one.was.name async for one in Redrive(listening.engine, healer.keys).each(await _parked(listening))]
    ids = await _ids(publishing)
    kept = "SELECT message_id, sequence, slug, announced_at FROM parked_messages"
    assert await listening.rows(kept) == [(ids["a", 1], 1, "not-applied", None)]
    [one] = await _parked(listening)
    assert one.type == "Noted"


async def test_a_key_that_is_built_anew_passes_over_what_was_dropped_and_nothing_else(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer, healer = await _park(publishing, listening, running, until, refused={"a 2"})
    ids = await _ids(publishing)
    await _dropping(listening, consumer, healer).drop(ids["a", 2], None)
    await _set_epoch(publishing, 5)
    await healer.learn()
    for topic, key in await healer.rebuilding.stale():
        await healer.rebuilding.rebuild(topic, key)
        await healer.keys.heal(topic, key)
    assert await listening.heard("a") == [(1, "a 1"), (3, "a 3"), (4, "a 4")]
    assert await listening.rows("SELECT key, epoch, sequence, waits_for FROM consumer_marks ORDER BY key") == [
        ("a", 5, 4, None),
        ("b", 5, 2, None),
    ]
    assert await listening.parked() == []
    # another fact that comes to stand under the number, as after a restore, is taken
    async with publishing.engine.begin() as connection:
        await connection.execute(text("UPDATE events SET id = gen_random_uuid() WHERE key = 'a'"))
    listening.refused = set()
    await _set_epoch(publishing, 6)
    await healer.learn()
    for topic, key in await healer.rebuilding.stale():
        await healer.rebuilding.rebuild(topic, key)
        await healer.keys.heal(topic, key)
    assert await listening.heard("a") == [(number, f"a {number}") for number in range(1, 5)]


async def test_a_message_is_passed_over_under_its_own_key_and_number_alone(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer, healer = await _park(publishing, listening, running, until, refused={"a 2"})
    ids = await _ids(publishing)
    await _dropping(listening, consumer, healer).drop(ids["a", 2], None)
    await publishing.note("a", "a 5")
    await publishing.note("b", "b 3")
    new = [publishing.to_records(event, 1)[0] for event in (await publishing.log())[6:]]
    borrowed = [
        dataclasses.replace(one, headers=tuple((n, ids["a", 2] if n == "ce_id" else v) for n, v in one.headers))
        for one in new
    ]
    again = listening.consumer(publishing)
    await publishing.send_records(borrowed)
    async with running(again.run()):
        await until(lambda: _counted(again, 2))
    assert (await listening.heard("a"))[-1] == (5, "a 5")
    assert (await listening.heard("b"))[-1] == (3, "b 3")


async def test_a_message_that_ends_the_process_that_tries_it_can_be_dropped(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer, healer = await _park(publishing, listening, running, until, refused={"a 2"})
    ids = await _ids(publishing)
    await healer.keys.try_again(publishing.cleared, "a")  # and here it ended: the key waits for a gap
    await _dropping(listening, consumer, healer).drop(ids["a", 2], None)
    assert await listening.heard("a") == [(1, "a 1"), (3, "a 3"), (4, "a 4")]
    assert await listening.rows("SELECT slug FROM dropped_messages") == [("not-applied",)]


async def test_what_nobody_can_read_is_dropped_by_its_place_and_holds_nothing_up(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "a 1", "a 2")
    first, second = [publishing.to_records(event, 1)[0] for event in await publishing.log()]
    consumer = listening.consumer(publishing)
    await publishing.send_records([first, dataclasses.replace(second, body=b"no JSON"), second])
    async with running(consumer.run()):
        await until(lambda: _counted(consumer, 3))
    async with listening.watching.begin() as connection:
        await connection.execute(text("UPDATE parked_messages SET announced_at = now()"))
    [one] = await _parked(listening)
    healer = listening.healer(consumer, publishing, NEVER)
    dropped = await _dropping(listening, consumer, healer).drop(one.name, None)
    assert dropped == Dropped(topic=publishing.cleared, key="a", sequence=None, type="Noted")
    assert await listening.parked() == []
    [(number, offset)] = await listening.rows('SELECT number, "offset" FROM dropped_messages WHERE sequence IS NULL')
    assert one.name == f"{publishing.cleared}/{number}/{offset}"
    assert await listening.heard("a") == [(1, "a 1"), (2, "a 2")]


async def _park(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until, refused: set[str]
) -> tuple[Consumer, Healer]:
    """Four messages of key a and two of b; what is refused is parked and announced. The healer rests."""
    await publishing.note("a", "a 1", "a 2", "a 3", "a 4")
    await publishing.note("b", "b 1", "b 2")
    listening.refused = refused
    consumer = listening.consumer(publishing)
    await publishing.send()
    async with running(consumer.run()):
        await until(lambda: _counted(consumer, 6))
    await _announce(listening)
    return consumer, listening.healer(consumer, publishing, NEVER)


def _dropping(listening: "Listening", consumer: Consumer, healer: Healer) -> Dropping:
    return Dropping(
        engine=listening.engine, taking=consumer.taking, keys=healer.keys, by="Ada", reason="sent by mistake"
    )


async def _announce(listening: "Listening") -> None:
    async with listening.watching.begin() as connection:
        await connection.execute(text("UPDATE parked_messages SET announced_at = now() WHERE slug = 'not-applied'"))


async def _parked(listening: "Listening") -> list[Parked]:
    return await parked(listening.engine, Selection())


async def _ids(publishing: "Publishing") -> dict[tuple[str, int], str]:
    return {(event.key, event.cleared_sequence): str(event.id) for event in await publishing.log()}


async def _set_epoch(publishing: "Publishing", epoch: int) -> None:
    async with publishing.engine.begin() as connection:
        await connection.execute(text("UPDATE relay_cursor SET epoch = :epoch"), {"epoch": epoch})


async def _everything(listening: "Listening") -> list[list[tuple[object, ...]]]:
    return [await listening.rows(f"SELECT *, xmin::text FROM {table} ORDER BY 1, 2") for table in EVERYTHING]


async def _counted(consumer: Consumer, count: int) -> bool:
    return sum(consumer.state.counts.values()) >= count
