"""Consumer, healer, dead letters: each message once, in order per key; what cannot be taken holds up no other."""

import asyncio
import dataclasses
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from structlog.testing import capture_logs

from shared.bus import Bus, BusAway, Delivery, Partition, Record, Topic
from shared.consumer import Consumer, ConsumerTimes
from shared.dead_letters import announce_parked, dead_letter_topic
from shared.healer import Healer, HealerTimes
from shared.message_log import TIMEOUT_SECONDS, MessageLog, Page
from shared.messages import Message
from tests.feeds_fixture import SilentSubscription

if TYPE_CHECKING:
    from tests.shared.conftest import Gate, Listening, Publishing

HEALING = HealerTimes(retry=0.1, compare=0.6, missing=0.3)
Running = Callable[..., AbstractAsyncContextManager[None]]
Until = Callable[..., Awaitable[None]]
ReadTopic = Callable[[Bus, str, int], Awaitable[list[Delivery]]]
KillBackends = Callable[[AsyncEngine, str], Awaitable[int]]

CANARY = "canary-5f2a"
EVERYTHING = (
    "SELECT topic, key, sequence, waits_for, xmin::text FROM consumer_marks ORDER BY 1, 2",
    "SELECT *, xmin::text FROM heard ORDER BY 1",
    "SELECT *, xmin::text FROM parked_messages ORDER BY 1",
)


async def test_each_message_is_applied_once_and_in_order(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    keys = [str(uuid4()) for _ in range(6)]
    for number in range(60):
        await publishing.note(keys[number % 6], f"fact {number}")
    consumer = listening.consumer(publishing)
    await publishing.send()
    async with running(consumer.run()):
        await until(lambda: _counted(consumer, 60))
    for start, key in enumerate(keys):
        expected = [(place + 1, f"fact {number}") for place, number in enumerate(range(start, 60, 6))]
        assert await listening.heard(key) == expected
    assert consumer.state.counts == {"applied": 60}
    assert listening.told


async def test_message_is_logged_with_its_trace(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    for number in range(2):
        publishing.traceparent = f"00-{number:031}a-b7ad6b7169203331-01"
        await publishing.note("a", f"fact {number}")
    consumer = listening.consumer(publishing)
    await publishing.send()
    with capture_logs() as lines:
        async with running(consumer.run()):
            await until(lambda: _heard(listening, 2))
            await until(lambda: _counted(consumer, 2))
    told = [(line["sequence"], line["trace_id"]) for line in lines if line["event"] == "message.applied"]
    assert told == [(1, f"{0:031}a"), (2, f"{1:031}a")]


async def test_republishing_the_whole_past_changes_no_row(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    for number in range(40):
        await publishing.note(f"key {number % 4}", f"fact {number}")
    listening.refused = {"fact 13"}  # one key waits, and is brought again as well
    consumer = listening.consumer(publishing)
    await publishing.send()
    async with running(consumer.run()):
        await until(lambda: _counted(consumer, 40))
        before = [await listening.rows(query) for query in EVERYTHING]
        told = len(listening.told)
        await publishing.send()
        await until(lambda: _counted(consumer, 80))
        assert [await listening.rows(query) for query in EVERYTHING] == before
        assert len(listening.told) == told
    assert consumer.state.counts == {"applied": 33, "parked": 14, "skipped": 33}


async def test_a_consumer_that_begins_again_reads_on_from_its_own_offset(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first", "second")
    [first, second] = await publishing.send()
    async with running(listening.consumer(publishing).run()):
        await until(lambda: _heard(listening, 2))
    await publishing.note("a", "third")
    await publishing.send_records([publishing.to_records(event, 1)[0] for event in (await publishing.log())[2:]])
    again = listening.consumer(publishing)
    async with running(again.run()):
        await until(lambda: _counted(again, 1))
        await until(lambda: _heard(listening, 3))
    assert again.state.counts == {"applied": 1}  # the past was not read once more
    assert (first.offset, second.offset) == (0, 1)
    assert await listening.rows("SELECT next_offset FROM consumer_offsets WHERE next_offset > 0") == [(3,)]


async def test_one_to_four_to_one_consumers_keep_the_order_and_apply_nothing_twice(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    keys = [str(uuid4()) for _ in range(16)]
    for number in range(800):
        await publishing.note(keys[number % 16], f"fact {number}")
    listening.pause = 0.004
    members = [listening.consumer(publishing) for _ in range(4)]
    await publishing.send()
    async with running(members[0].run()):
        await until(lambda: _heard(listening, 50))
        async with running(*(member.run() for member in members[1:])):
            await until(lambda: _each_owns_one(members))
            await until(lambda: _heard(listening, 300))
        await until(lambda: _heard(listening, 800))
    for start, key in enumerate(keys):
        expected = [(place + 1, f"fact {number}") for place, number in enumerate(range(start, 800, 16))]
        assert await listening.heard(key) == expected
    assert await listening.parked() == []


async def test_a_message_lost_in_the_middle_of_a_key_holds_up_that_key_alone_and_heals_in_time(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    for number in range(12):
        await publishing.note("ab"[number % 2], f"fact {number}")
    publishing.lost = {"fact 4"}  # the third of key a
    consumer = listening.consumer(publishing)
    await publishing.send()
    async with running(consumer.run()):
        await until(lambda: _counted(consumer, 11))
        assert await listening.heard("a") == [(1, "fact 0"), (2, "fact 2")]
        assert await listening.heard("b") == [(place + 1, f"fact {2 * place + 1}") for place in range(6)]
        assert await listening.parked() == [("a", number, "gap") for number in (4, 5, 6)]
        healer = listening.healer(consumer, publishing, HealerTimes(missing=3600.0))  # not by comparing
        async with running(healer.run()):
            await until(lambda: _heard(listening, 12))
            await until(lambda: _healed(healer, 4))
    assert await listening.heard("a") == [(place + 1, f"fact {2 * place}") for place in range(6)]
    assert await listening.parked() == []
    assert await listening.rows("SELECT key, sequence, waits_for FROM consumer_marks ORDER BY key") == [
        ("a", 6, None),
        ("b", 6, None),
    ]
    assert healer.keys.healed == 4


async def test_a_message_lost_as_the_last_of_its_key_is_healed_by_comparing(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first", "last")
    await publishing.note("b", "only")
    publishing.lost = {"last", "only"}
    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing)
    await publishing.send()
    async with running(consumer.run(), healer.run()):
        await until(lambda: _heard(listening, 3))
        assert await healer.lag() == 0
    assert await listening.heard("a") == [(1, "first"), (2, "last")]
    assert await listening.heard("b") == [(1, "only")]


async def test_what_a_key_misses_is_looked_for_when_its_partition_is_assigned(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first", "last")
    publishing.lost = {"last"}
    await publishing.send()
    async with running(listening.consumer(publishing).run()):
        await until(lambda: _heard(listening, 1))
    consumer = listening.consumer(publishing)
    times = dataclasses.replace(HEALING, compare=3600.0)
    async with running(listening.healer(consumer, publishing, times).run(), consumer.run()):
        await until(lambda: _heard(listening, 2))


def test_the_last_of_a_key_is_healed_within_40_s_with_the_times_that_are_shipped() -> None:
    times = HealerTimes()
    # lost just after a comparison had looked: one whole period, the wait, and the slowest answer
    assert times.compare + times.missing + TIMEOUT_SECONDS <= 40
    assert times.retry + TIMEOUT_SECONDS / 2 < 5


async def test_a_key_that_cannot_be_healed_holds_up_no_other(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    for key in "ab":
        await publishing.note(key, f"{key} first", f"{key} second")
    publishing.lost = {"a first", "b first"}

    class Broken(MessageLog):
        async def after(self, topic: str, key: str, sequence: int) -> Page:
            if key == "a":
                raise ValueError("an answer that nobody can read")
            return await super().after(topic, key, sequence)

    consumer = listening.consumer(publishing)
    log = Broken(
        **{field.name: getattr(publishing.message_log(), field.name) for field in dataclasses.fields(MessageLog)}
    )
    healer = Healer(consumer, {publishing.cleared: log}, {}, HealerTimes(retry=0.1, compare=60, missing=0.1))
    await publishing.send()
    async with running(consumer.run(), healer.run()):
        await until(lambda: _heard(listening, 2))
    assert await listening.heard("b") == [(1, "b first"), (2, "b second")]


@pytest.mark.parametrize("answer", [(503, "not now"), (200, '{"items": [{"key": "a"}], "next": null}')])
async def test_a_producer_that_is_away_or_not_understood_holds_up_no_other_and_is_asked_again(
    make_publishing: Callable[[], Awaitable["Publishing"]],
    listening: "Listening",
    running: Running,
    until: Until,
    answer: tuple[int, str],
) -> None:
    away, there = await make_publishing(), await make_publishing()
    for one in (away, there):
        await one.note(one.name, "first")
        await one.bus.ensure_topics(one.topics)
    refusing = httpx.MockTransport(lambda _: httpx.Response(answer[0], text=answer[1]))
    broken = dataclasses.replace(away.message_log(), client=httpx.AsyncClient(transport=refusing))
    consumer = listening.consumer(there, topics=[away.topics[1], there.topics[1]])
    logs = {away.cleared: broken, there.cleared: there.message_log()}
    times = HealerTimes(retry=0.1, compare=0.3, missing=0.1)
    async with running(consumer.run(), Healer(consumer, logs, {}, times).run()):
        await until(lambda: _heard(listening, 1))
        assert await listening.heard(there.name) == [(1, "first")]
        logs[away.cleared] = away.message_log()
        await until(lambda: _heard(listening, 2))


async def test_what_cannot_be_applied_parks_its_key_in_order_and_is_announced_without_its_content(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until, read_topic: ReadTopic
) -> None:
    for number in range(4):
        await publishing.note(f"{CANARY} a", f"{CANARY} {number}")
        await publishing.note("b", f"fact {number}")
    listening.refused = {f"{CANARY} 1"}
    consumer = listening.consumer(publishing)
    await publishing.send()
    bus = listening.open_bus()
    await bus.ensure_topics([Topic(name=dead_letter_topic(listening.name), partitions=1)])
    announcing = announce_parked(listening.name, listening.engine, bus)
    async with running(consumer.run(), announcing):
        await until(lambda: _counted(consumer, 8))
        [letter] = await read_topic(bus, dead_letter_topic(listening.name), 1)
        await until(lambda: _announced(listening, 1))
    assert await listening.heard("b") == [(number + 1, f"fact {number}") for number in range(4)]
    assert await listening.heard(f"{CANARY} a") == [(1, f"{CANARY} 0")]
    assert await listening.parked() == [
        (f"{CANARY} a", 2, "not-applied"),
        (f"{CANARY} a", 3, "key-waits"),
        (f"{CANARY} a", 4, "key-waits"),
    ]
    [(number, offset, message, error)] = await listening.rows(
        "SELECT number, \"offset\", message_id, error FROM parked_messages WHERE slug = 'not-applied'"
    )
    assert error == f"ValueError: cannot take {CANARY} 1"
    assert json.loads(letter.body or b"") == {
        "topic": publishing.cleared,
        "partition": number,
        "offset": offset,
        "id": message,
        "slug": "not-applied",
    }
    assert CANARY.encode() not in repr(letter).encode()


async def test_a_message_that_only_the_log_had_and_that_cannot_be_applied_parks_its_key_too(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first", "second", "third", "fourth")
    publishing.lost = {"first", "second"}
    listening.refused = {"second"}
    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing)
    await publishing.send()
    async with running(consumer.run(), healer.run()):
        await until(lambda: _waits_for(listening, "not-applied"))
        await until(lambda: _parked(listening, 3))
        assert await healer.lag() == 0
    assert await listening.heard("a") == [(1, "first")]
    assert sorted(await listening.parked()) == [
        ("a", 2, "not-applied"),
        ("a", 3, "key-waits"),
        ("a", 4, "key-waits"),
    ]


async def test_what_is_applied_together_is_parked_alone(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    for number in range(1, 5):
        for key in "ab":
            await publishing.note(key, f"{key} {number}")
    await publishing.send()
    listening.refused = {"a 2"}
    runs: list[tuple[str, ...]] = []

    async def together(connection: AsyncConnection, messages: Sequence[Message]) -> None:
        runs.append(tuple(message.body["what"] for message in messages))
        for message in messages:
            await listening.hear(connection, message)

    consumer = listening.consumer(publishing)
    consumer.taking.apply = {"Noted.v1": together}
    async with running(consumer.run()):
        await until(lambda: _hears(listening, "b", 4))
        await until(lambda: _parked(listening, 3))
    assert await listening.heard("a") == [(1, "a 1")]
    assert await listening.heard("b") == [(number, f"b {number}") for number in range(1, 5)]
    assert max(map(len, runs)) > 1
    assert ("a 2",) in runs
    assert [row[1:] for row in await listening.parked()] == [(2, "not-applied"), (3, "key-waits"), (4, "key-waits")]


async def test_a_parked_key_goes_on_when_its_message_can_be_taken_after_all(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first", "second", "third")
    listening.refused = {"second"}
    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing)
    await publishing.send()
    bus = listening.open_bus()
    await bus.ensure_topics([Topic(name=dead_letter_topic(listening.name), partitions=1)])
    announcing = announce_parked(listening.name, listening.engine, bus)
    async with running(consumer.run(), healer.run(), announcing):
        await until(lambda: _announced(listening, 1))
        assert await listening.heard("a") == [(1, "first")]
        await until(lambda: _attempted(listening, 3))
        listening.refused = set()  # as a mended program would
        await until(lambda: _hears(listening, "a", 3))
    assert await listening.heard("a") == [(1, "first"), (2, "second"), (3, "third")]
    assert await listening.parked() == []


async def test_what_nobody_can_read_is_parked_byte_for_byte_and_announced_and_the_rest_goes_on(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until, read_topic: ReadTopic
) -> None:
    await publishing.note("a", "first", "second")
    first, second = [publishing.to_records(event, 1)[0] for event in await publishing.log()]
    strange = list(_strange(second))
    consumer = listening.consumer(publishing)
    await publishing.send_records([first, *strange, second])
    bus = listening.open_bus()
    await bus.ensure_topics([Topic(name=dead_letter_topic(listening.name), partitions=1)])
    async with running(consumer.run(), announce_parked(listening.name, listening.engine, bus)):
        await until(lambda: _heard(listening, 2))
        await until(lambda: _announced(listening, len(strange)))
        letters = await read_topic(bus, dead_letter_topic(listening.name), len(strange))
    assert await listening.heard("a") == [(1, "first"), (2, "second")]
    assert consumer.state.restarts == 0
    rows = await listening.rows("SELECT headers::text, body, slug FROM parked_messages ORDER BY id")
    sent = sorted((list(map(list, record.headers)), record.body) for record in strange)
    assert sorted((json.loads(headers), body) for headers, body, _ in rows) == sent
    assert {slug for *_, slug in rows} == {"undecodable", "envelope-invalid"}
    assert len(letters) == len(strange)
    assert CANARY.encode() not in repr(letters).encode()


async def test_what_is_parked_is_announced_again_until_the_bus_has_it(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until, read_topic: ReadTopic
) -> None:
    await publishing.note("a", "first")
    listening.refused = {"first"}
    await publishing.send()
    async with running(listening.consumer(publishing).run()):
        await until(lambda: _parked(listening, 1))
    bus = listening.open_bus()
    await bus.ensure_topics([Topic(name=dead_letter_topic(listening.name), partitions=1)])
    refused: list[int] = []

    class Refusing:
        def __getattr__(self, name: str) -> object:
            return getattr(bus, name)

        async def producer(self) -> object:
            producer = await bus.producer()
            if not refused:
                producer.send = self.refuse  # type: ignore[assignment,method-assign]
            return producer

        async def refuse(self, records: Sequence[Record]) -> list[object]:
            refused.append(len(records))
            raise BusAway("not acknowledged")

    async with running(announce_parked(listening.name, listening.engine, Refusing())):  # type: ignore[arg-type]
        [letter] = await read_topic(bus, dead_letter_topic(listening.name), 1)
        await until(lambda: _announced(listening, 1))
    assert refused == [1]
    assert json.loads(letter.body or b"")["slug"] == "not-applied"


async def test_a_type_or_version_that_is_not_known_is_counted_and_passed_over(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first", "second", "third", "fourth")
    records = [publishing.to_records(event, 1)[0] for event in await publishing.log()]
    records[1] = _with(records[1], ce_type="attache.Invented.v1")
    records[2] = _with(records[2], ce_type="attache.Noted.v2")
    consumer = listening.consumer(publishing)
    await publishing.send_records(records)
    async with running(consumer.run()):
        await until(lambda: _counted(consumer, 4))
    assert await listening.heard("a") == [(1, "first"), (4, "fourth")]
    assert consumer.state.counts == {"applied": 2, "unknown": 2}


async def test_a_database_that_is_away_parks_nothing_and_the_group_is_not_left(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until, kill_backends: KillBackends
) -> None:
    for number in range(40):
        await publishing.note("ab"[number % 2], f"fact {number}")
    killed: list[int] = []

    async def hear(connection: AsyncConnection, message: Message) -> None:
        await listening.hear(connection, message)
        if len(killed) < 3 and message.sequence > 5:
            killed.append(await kill_backends(listening.engine, "attache-listening"))

    consumer = listening.consumer(publishing, apply={"Noted.v1": hear})
    await publishing.send()
    async with running(consumer.run()):
        await until(lambda: _heard(listening, 40))
    assert len(killed) == 3
    assert min(killed) > 0
    for key in (0, 1):
        expected = [(place + 1, f"fact {2 * place + key}") for place in range(20)]
        assert await listening.heard("ab"[key]) == expected
    assert await listening.parked() == []
    assert consumer.state.restarts == 0


async def test_a_handler_that_finds_something_away_again_and_again_parks_nothing(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first", "second")
    failures = [ConnectionRefusedError(), TimeoutError(), *(ConnectionResetError() for _ in range(6))]

    async def hear(connection: AsyncConnection, message: Message) -> None:
        if failures:
            raise failures.pop()
        await listening.hear(connection, message)

    await publishing.send()
    async with running(listening.consumer(publishing, apply={"Noted.v1": hear}).run()):
        await until(lambda: _heard(listening, 2))
    assert await listening.parked() == []
    assert await listening.heard("a") == [(1, "first"), (2, "second")]


async def test_what_others_took_over_while_a_member_was_away_is_none_of_its_concern(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    for number in range(16):
        await publishing.note(f"key {number}", "first")
    await publishing.send()
    bus = listening.open_bus()
    unplugged = asyncio.Event()

    class Unplugged:
        def __getattr__(self, name: str) -> object:
            return getattr(bus, name)

        async def ensure_topics(self, topics: Sequence[Topic]) -> None:
            if unplugged.is_set():
                raise BusAway("unplugged")
            await bus.ensure_topics(topics)

    one, other = listening.consumer(publishing, bus=Unplugged()), listening.consumer(publishing)  # type: ignore[arg-type]
    async with running(one.run()):
        await until(lambda: _heard(listening, 16))
        unplugged.set()
        async with listening.watching.begin() as connection:
            await connection.execute(text("UPDATE consumer_offsets SET next_offset = 0"))
        await until(lambda: _restarted(one))
        async with running(other.run()):
            await until(lambda: _owns(other, 4))
            for number in range(16):
                await publishing.note(f"key {number}", "second")
            await publishing.send()
            await until(lambda: _heard(listening, 32))
            unplugged.clear()
            await until(lambda: _owns(one, 2))
            restarts, since = one.state.restarts, time.monotonic()

            async def goes_on_while_all_moves() -> bool:
                for number in range(16):
                    await publishing.note(f"key {number}", "more")
                await publishing.send()
                return one.state.restarts > restarts or one.state.healthy_at >= since + 1.5

            await until(goes_on_while_all_moves)
            assert one.state.restarts == restarts


async def test_a_consumer_whose_database_is_away_at_the_start_waits_for_it_and_stays_in_the_group(
    publishing: "Publishing", listening: "Listening", gate: "Gate", running: Running, until: Until
) -> None:
    await publishing.note("a", "first", "second")
    [first, second] = [publishing.to_records(event, 1)[0] for event in await publishing.log()]
    await publishing.send_records([first])
    consumer = listening.consumer(publishing)
    async with running(consumer.run()):
        await until(lambda: _said(consumer, "ConnectionRefusedError"))
        assert consumer.state.healthy_at == float("-inf")
        await gate.open()
        await until(lambda: _heard(listening, 1))
        await gate.shut()
        await publishing.send_records([second])
        await until(lambda: _said(consumer, "ConnectionRefusedError"))
        await gate.open()
        await until(lambda: _heard(listening, 2))
    assert consumer.state.restarts == 0
    assert await listening.parked() == []


async def test_a_consumer_that_is_stopped_while_its_connection_breaks_ends(
    publishing: "Publishing", listening: "Listening", until: Until, kill_backends: KillBackends
) -> None:
    await publishing.note("a", "first")
    await publishing.send()
    broken = asyncio.Event()

    async def hear(connection: AsyncConnection, message: Message) -> None:
        await listening.hear(connection, message)
        assert await kill_backends(listening.engine, "attache-listening")
        broken.set()
        await asyncio.sleep(60)

    consuming = asyncio.create_task(listening.consumer(publishing, apply={"Noted.v1": hear}).run())
    await broken.wait()
    consuming.cancel()
    await asyncio.wait({consuming}, timeout=60)
    assert consuming.cancelled()


async def test_a_member_whose_offset_was_moved_by_another_is_fenced_and_begins_anew(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first", "second")
    records = [publishing.to_records(event, 1)[0] for event in await publishing.log()]
    consumer = listening.consumer(publishing, times=ConsumerTimes(fetch=0.1, backoff=0.05, look=3600))
    await publishing.send_records(records[:1])
    async with running(consumer.run()):
        await until(lambda: _counted(consumer, 1))
        consumer._times = dataclasses.replace(consumer._times, backoff=3600)  # it does not begin before we have looked
        async with listening.engine.begin() as connection:
            await connection.execute(text("UPDATE consumer_offsets SET next_offset = next_offset + 7"))
        await publishing.send_records(records[1:])
        await until(lambda: _restarted(consumer))
        assert await listening.heard("a") == [(1, "first")]


async def test_offsets_that_were_set_back_are_noticed_without_anything_new_on_the_bus(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first", "second")
    await publishing.send()
    consumer = listening.consumer(publishing)
    async with running(consumer.run()):
        await until(lambda: _heard(listening, 2))
        async with listening.engine.begin() as connection:  # as a rebuild does
            await connection.execute(text("UPDATE consumer_offsets SET next_offset = 0, behind = next_offset > 0"))
            await connection.execute(text("DELETE FROM consumer_marks"))
            await connection.execute(text("DELETE FROM heard"))
        await until(lambda: _heard(listening, 2))
        await until(lambda: _not_behind(listening))


async def test_an_offset_that_is_gone_goes_back_to_the_beginning(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first", "second")
    await publishing.send()
    async with listening.engine.begin() as connection:
        for number in range(4):
            await connection.execute(
                text("INSERT INTO consumer_offsets VALUES (:topic, :number, 1000, false)"),
                {"topic": publishing.cleared, "number": number},
            )
    async with running(listening.consumer(publishing).run()):
        await until(lambda: _heard(listening, 2))


async def test_a_partition_with_much_to_read_is_behind_until_it_has_reached_the_end_that_was_seen(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", *(f"fact {number}" for number in range(900)))
    await publishing.send()
    seen: list[bool] = []

    async def hear(connection: AsyncConnection, message: Message) -> None:
        await listening.hear(connection, message)
        if message.sequence % 200 in (1, 199):
            seen.append((await listening.rows("SELECT bool_or(behind) FROM consumer_offsets"))[0][0])

    async with running(listening.consumer(publishing, apply={"Noted.v1": hear}).run()):
        await until(lambda: _heard(listening, 900))
        await until(lambda: _not_behind(listening))
    assert seen == [True] * 9  # before anything of it is visible


@pytest.mark.parametrize("failure", [BusAway("no ends"), ConnectionRefusedError("our own database")])
async def test_nothing_is_taken_or_lost_while_the_ends_are_not_known(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until, failure: Exception
) -> None:
    await publishing.note("a", *(f"fact {number}" for number in range(300)))
    await publishing.send()
    bus = listening.open_bus()
    failures = [failure] * 2
    brought: list[bool] = []

    class Endless:
        def __getattr__(self, name: str) -> object:
            return getattr(bus, name)

        async def subscribe(self, *arguments: object, **callbacks: object) -> object:
            subscription = await bus.subscribe(*arguments, **callbacks)  # type: ignore[arg-type]
            fetch, ends = subscription.fetch, subscription.ends

            async def noting(limit: int, wait: float) -> Mapping[Partition, Sequence[Delivery]]:
                found = await fetch(limit, wait)
                brought.append(bool(found))
                return found

            async def failing() -> Mapping[Partition, int]:
                if brought[-1] and failures:
                    assert await listening.rows("SELECT 1 FROM heard") == []
                    raise failures.pop()
                return await ends() if not failures else {}

            subscription.fetch, subscription.ends = noting, failing  # type: ignore[method-assign]
            return subscription

    consumer = listening.consumer(publishing, bus=Endless())  # type: ignore[arg-type]
    async with running(consumer.run()):
        await until(lambda: _counted(consumer, 300))
    assert await listening.heard("a") == [(number + 1, f"fact {number}") for number in range(300)]
    assert consumer.state.counts == {"applied": 300}
    assert (failures, consumer.state.restarts) == ([], 0)


async def test_no_order_between_two_topics_is_assumed(
    make_publishing: Callable[[], Awaitable["Publishing"]], listening: "Listening", running: Running, until: Until
) -> None:
    one, other = await make_publishing(), await make_publishing()
    for publishing in (one, other):
        await publishing.note("shared key", f"{publishing.name} 1", f"{publishing.name} 2")
    one.lost = {f"{one.name} 1"}  # this topic's key waits, the same key of the other topic does not
    consumer = listening.consumer(one, topics=[one.topics[1], other.topics[1]])
    await one.send()
    await other.send()
    async with running(consumer.run()):
        await until(lambda: _counted(consumer, 3))
        assert await listening.heard("shared key") == [(1, f"{other.name} 1"), (2, f"{other.name} 2")]
        async with running(listening.healer(consumer, one).run()):
            await until(lambda: _heard(listening, 4))
    assert await listening.heard("shared key") == [
        *((number, f"{other.name} {number}") for number in (1, 2)),
        *((number, f"{one.name} {number}") for number in (1, 2)),
    ]


async def test_a_subscription_that_brings_nothing_is_thrown_away(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first")
    await publishing.send()
    bus = listening.open_bus()
    subscriptions: list[object] = []

    class Deaf:
        def __getattr__(self, name: str) -> object:
            return getattr(bus, name)

        async def subscribe(self, *arguments: object, **callbacks: object) -> object:
            subscription = await bus.subscribe(*arguments, **callbacks)  # type: ignore[arg-type]
            subscriptions.append(subscription)
            if len(subscriptions) == 1:
                heard = subscription.fetch

                async def nothing(limit: int, wait: float) -> Mapping[object, object]:
                    await heard(limit, wait)
                    return {}

                subscription.fetch = nothing  # type: ignore[assignment,method-assign]
            else:  # a slow machine is no reason to throw this one away
                consumer._times = dataclasses.replace(times, watchdog=300)
            return subscription

    times = ConsumerTimes(fetch=0.1, backoff=0.05, look=0.1, watchdog=1.5)
    consumer = listening.consumer(publishing, bus=Deaf(), times=times)  # type: ignore[arg-type]
    async with running(consumer.run()):
        await until(lambda: _heard(listening, 1))
        assert consumer.state.restarts == 1


async def test_a_member_that_is_given_no_partition_begins_anew(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first")
    await publishing.send()
    bus = listening.open_bus()
    left: list[object] = []

    class Forgotten(SilentSubscription):
        """A member that the group knows nothing of."""

        async def close(self) -> None:
            left.append(self)

    class Forgetting:
        def __getattr__(self, name: str) -> object:
            return getattr(bus, name)

        async def subscribe(self, *arguments: object, **callbacks: object) -> object:
            return await bus.subscribe(*arguments, **callbacks) if left else Forgotten()  # type: ignore[arg-type]

    times = ConsumerTimes(fetch=0.1, backoff=0.05, look=0.1, watchdog=1.5)
    consumer = listening.consumer(publishing, bus=Forgetting(), times=times)  # type: ignore[arg-type]
    async with running(consumer.run()):
        await until(lambda: _said(consumer, "Stalled"))
        await until(lambda: _heard(listening, 1))
    assert len(left) == 1


async def test_a_partition_that_stands_still_while_another_moves_is_noticed(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first")
    [place] = await publishing.send()
    bus = listening.open_bus()
    swallowing = asyncio.Event()
    restarts = 0

    class Swallowing:
        def __getattr__(self, name: str) -> object:
            return getattr(bus, name)

        async def subscribe(self, *arguments: object, **callbacks: object) -> object:
            subscription = await bus.subscribe(*arguments, **callbacks)  # type: ignore[arg-type]
            fetch = subscription.fetch

            async def partly(limit: int, wait: float) -> Mapping[Partition, Sequence[Delivery]]:
                found = dict(await fetch(limit, wait))
                if swallowing.is_set() and consumer.state.restarts == restarts:
                    found.pop(Partition(place.topic, place.number), None)
                return found

            subscription.fetch = partly  # type: ignore[method-assign]
            if swallowing.is_set():  # a slow machine is no reason to throw this one away
                consumer._times = dataclasses.replace(times, watchdog=300)
            return subscription

    times = ConsumerTimes(fetch=0.1, backoff=0.05, look=0.1, watchdog=1.5)
    consumer = listening.consumer(publishing, bus=Swallowing(), times=times)  # type: ignore[arg-type]
    async with running(consumer.run()):
        await until(lambda: _heard(listening, 1))
        restarts = consumer.state.restarts
        swallowing.set()
        await publishing.note("a", "second")
        await publishing.send()
        sent, since = 2, time.monotonic()
        await until(lambda: _looked(consumer, since))  # the one before may still have found it at its end
        stood = consumer._got_on_at.get(Partition(place.topic, place.number), time.monotonic())
        healthy: list[float] = []

        async def is_noticed_while_others_move() -> bool:
            nonlocal sent
            for number in range(16):
                await publishing.note(f"key {number}", "more")
            events = (await publishing.log())[sent:]
            await publishing.send_records([publishing.to_records(event, 1)[0] for event in events])
            sent += len(events)
            noticed = consumer.state.restarts > restarts
            healthy.append(consumer.state.healthy_at)
            return noticed

        await until(is_noticed_while_others_move)
        assert max(healthy[:-1], default=stood) <= stood  # what readiness goes by
        await until(lambda: _several_keys(listening))
        await until(lambda: _hears(listening, "a", 2))
        assert consumer.state.restarts == restarts + 1
    assert await listening.heard("a") == [(1, "first"), (2, "second")]


async def test_a_consumer_that_is_stopped_in_the_middle_of_a_batch_leaves_it_to_the_next(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", *(f"fact {number}" for number in range(20)))
    await publishing.send()
    listening.pause = 3600.0
    async with running(listening.consumer(publishing).run()):
        await until(lambda: _is_hearing(listening))
    assert await listening.heard("a") == []
    listening.pause = 0.0
    async with running(listening.consumer(publishing).run()):
        await until(lambda: _heard(listening, 20))
    assert await listening.heard("a") == [(number + 1, f"fact {number}") for number in range(20)]


def _strange(good: Record) -> Sequence[Record]:
    """Records that are no messages of ours, each wrong in another way; all of them hold what may not be announced."""
    deep = b"[" * 100_000
    bodies = (f"{CANARY} no JSON".encode(), b"\xff" + CANARY.encode(), b"", b"[]", deep, b'"\\ud800"')
    wrong = {
        "ce_type": ("attache.Noted", "other.Noted.v1", "attache.Noted.v", ""),
        "ce_sequence": ("", "-1", "0", "two", "9" * 20, "1_0"),
        "ce_epoch": ("", "0", "9999999999"),
        "ce_time": ("yesterday", "2023-11-07T09:25:00"),
        "ce_specversion": ("0.3",),
        "ce_partitionkey": ("another key",),
        "ce_subject": ("",),
        "ce_id": ("", "x" * 300, f"{CANARY}\\u0000"[:0]),
    }
    without = [dataclasses.replace(good, headers=()), dataclasses.replace(good, headers=good.headers[:5])]
    long = dataclasses.replace(_with(good, ce_partitionkey="k" * 3000), key="k" * 3000)
    backslashes = _with(good, ce_id=f"{CANARY} \\u0000 \\\\", ce_type="wrong")
    return [
        *(dataclasses.replace(good, body=body) for body in bodies),
        *(_with(good, **{name: value}) for name, values in wrong.items() for value in values),
        *without,
        long,
        backslashes,
    ]


def _with(record: Record, **headers: str) -> Record:
    changed = tuple((name, headers.get(name, value)) for name, value in record.headers)
    return dataclasses.replace(record, headers=changed)


async def _heard(listening: "Listening", count: int) -> bool:
    return bool((await listening.rows("SELECT count(*) FROM heard"))[0][0] >= count)


async def _hears(listening: "Listening", key: str, count: int) -> bool:
    return len(await listening.heard(key)) >= count


async def _counted(consumer: Consumer, count: int) -> bool:
    return sum(consumer.state.counts.values()) >= count


async def _healed(healer: Healer, count: int) -> bool:
    return healer.keys.healed >= count


async def _looked(consumer: Consumer, since: float) -> bool:
    return consumer._looked_at > since


async def _several_keys(listening: "Listening") -> bool:
    return len(await listening.rows("SELECT DISTINCT key FROM heard")) > 1


async def _parked(listening: "Listening", count: int) -> bool:
    return len(await listening.parked()) == count


async def _attempted(listening: "Listening", count: int) -> bool:
    """Whether the message that is refused was tried so often."""
    rows = await listening.rows("SELECT attempts FROM parked_messages WHERE slug = 'not-applied'")
    return bool(rows and rows[0][0] >= count)


async def _announced(listening: "Listening", count: int) -> bool:
    rows = await listening.rows("SELECT count(*) FROM parked_messages WHERE announced_at IS NOT NULL")
    return bool(rows[0][0] == count)


async def _waits_for(listening: "Listening", what: str) -> bool:
    return bool(await listening.rows(f"SELECT 1 FROM consumer_marks WHERE waits_for = '{what}'"))


async def _is_hearing(listening: "Listening") -> bool:
    """Whether a transaction of the handler's is open."""
    return bool(
        await listening.rows(
            "SELECT 1 FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
            "WHERE c.relname = 'heard' AND l.mode = 'RowExclusiveLock' AND l.granted"
        )
    )


async def _not_behind(listening: "Listening") -> bool:
    return not await listening.rows("SELECT 1 FROM consumer_offsets WHERE behind")


async def _each_owns_one(members: Sequence[Consumer]) -> bool:
    return all(len(member.state.assigned) == 1 for member in members)


async def _owns(member: Consumer, count: int) -> bool:
    return len(member.state.assigned) == count


async def _said(consumer: Consumer, error: str) -> bool:
    return consumer.state.last_error == error


async def _restarted(consumer: Consumer) -> bool:
    return consumer.state.restarts > 0
