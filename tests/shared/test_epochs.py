"""A producer whose database was put back to an earlier point: ghosts are dropped, its new history is taken whole."""

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.bus import BusAway
from shared.consumer import Consumer
from shared.epoch import TAIL, Raised
from shared.healer import Healer, HealerTimes
from shared.message_log import MessageLog, Page
from shared.messages import Message
from shared.parking import GAP, NEW_EPOCH
from shared.relay import Relay
from shared.restored import StillRunning, restored
from shared.tracing import Span, Tracing

if TYPE_CHECKING:
    from tests.shared.conftest import Listening, Publishing

Running = Callable[..., AbstractAsyncContextManager[None]]
Until = Callable[..., Awaitable[None]]

NEVER = HealerTimes(retry=0.1, compare=3600, missing=0.1)
"""Heads are compared at the assignment alone: what is lost later is not found by that."""
TABLES = ("events", "heads", "relay_cursor", "relay_places")


@dataclass(kw_only=True)
class Backup:
    """A publishing service's database as it was; `restore` puts it back, as often as one likes."""

    publishing: "Publishing"
    position: int = 0
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)

    @classmethod
    async def of(cls, publishing: "Publishing") -> "Backup":
        backup = cls(publishing=publishing, versions=dict(publishing.versions))
        async with _driver(publishing) as driver:
            backup.position = await driver.fetchval("SELECT coalesce(max(position), 0) FROM events")
            backup.rows = {table: [dict(row) for row in await driver.fetch(f"TABLE {table}")] for table in TABLES}
        return backup

    async def restore(self) -> None:
        async with _driver(self.publishing) as driver, driver.transaction():
            await driver.execute(f"ALTER TABLE events ALTER COLUMN position RESTART WITH {self.position + 1}")
            for table, rows in self.rows.items():
                await driver.execute(f"DELETE FROM {table}")
                for row in rows:
                    names = ", ".join(f'"{name}"' for name in row)
                    places = ", ".join(f"${number + 1}" for number in range(len(row)))
                    insert = f"INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE VALUES ({places})"
                    await driver.execute(insert, *row.values())
        self.publishing.versions = dict(self.versions)


@dataclass(frozen=True, kw_only=True)
class Hooked(MessageLog):
    """A log that does something, once, when it has answered that a key has no more messages in the epoch given."""

    epoch: int
    then: list[Callable[[], Awaitable[None]]]

    async def after(self, topic: str, key: str, sequence: int) -> Page:
        page = await super().after(topic, key, sequence)
        if self.then and not page.messages and page.epoch == self.epoch:
            await self.then.pop()()
        return page


async def test_ghosts_are_dropped_and_the_new_history_stands_whole(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer = listening.consumer(publishing)
    await publishing.note("a", "first", "second")
    await publishing.note("b", "only")
    async with running(consumer.run(), listening.healer(consumer, publishing).run()):
        async with running(publishing.relay().run()):
            await until(lambda: tells(listening, a=["first", "second"], b=["only"]))
        backup = await Backup.of(publishing)
        await publishing.note("a", "ghost 3", "ghost 4", "ghost 5")
        await publishing.note("c", "ghost c")
        async with running(publishing.relay().run()):
            await until(lambda: tells(listening, a=["first", "second", "ghost 3", "ghost 4", "ghost 5"], c=["ghost c"]))
        await backup.restore()
        new = (await say_restored(publishing)).new
        await publishing.note("a", "true 3")
        async with running(publishing.relay().run()):
            await until(lambda: tells(listening, a=["first", "second", "true 3"], b=["only"], c=[]))
            await publishing.note("a", "true 4")  # the number of a ghost
            await until(lambda: tells(listening, a=["first", "second", "true 3", "true 4"]))
            await publishing.send()  # at epoch 1, all of it
            await until(lambda: _counted(consumer, "ghost", 5))
        await until(lambda: settled(listening))
    assert await listening.rows("SELECT key, epoch, sequence FROM consumer_marks ORDER BY key") == [
        ("a", new, 4),
        ("b", new, 1),
        ("c", new, 0),
    ]
    assert await listening.heard("a") == [(1, "first"), (2, "second"), (3, "true 3"), (4, "true 4")]
    assert await listening.parked() == []


async def test_a_restore_that_nobody_told_of_is_noticed_by_the_relay_and_once_only(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer = listening.consumer(publishing)
    await publishing.note("a", "first")
    async with running(consumer.run(), listening.healer(consumer, publishing).run()):
        async with running(publishing.relay().run()):
            await until(lambda: tells(listening, a=["first"]))
        backup = await Backup.of(publishing)
        epochs = [1]
        for time in range(2):  # the second time from the same backup: its row still says epoch 1
            await publishing.note("a", f"ghost {time}", f"ghost {time} too")
            async with running(publishing.relay().run()):
                await until(lambda time=time: tells(listening, a=["first", f"ghost {time}", f"ghost {time} too"]))
                await until(lambda: _published(publishing))  # the listener may have asked the log before
            await backup.restore()
            for relay in (publishing.relay(), publishing.relay()):
                async with running(relay.run()):
                    await until(lambda: tells(listening, a=["first"]))
                    await until(lambda relay=relay: _has_led(relay, backup.position))
                epochs.append(await _epoch(publishing))
    assert epochs[0] < epochs[1] == epochs[2] < epochs[3] == epochs[4]
    assert await listening.rows("SELECT key, epoch, sequence FROM consumer_marks") == [("a", epochs[-1], 1)]


@pytest.mark.parametrize("forgot", [False, True])
async def test_ghosts_are_noticed_behind_whatever_was_told_again_after_them(
    forgot: bool, publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    """A republication that was broken off stands behind them; and the bus may have forgotten another partition."""
    consumer = listening.consumer(publishing)
    async with running(consumer.run(), listening.healer(consumer, publishing).run()):
        async with running(publishing.relay().run()):
            await publishing.note("a", "first")
            await until(lambda: _published(publishing))
            [place] = await _places(publishing)
            others = [f"key {number}" for number in range(10)]
            for key in others:
                await publishing.note(key, "only")
            await until(lambda: _published(publishing))
        backup = await Backup.of(publishing)
        await publishing.note("a", "ghost")
        async with running(publishing.relay().run()):
            await until(lambda: _published(publishing))
            await until(lambda: tells(listening, a=["first", "ghost"]))
        again = publishing.to_records((await publishing.log())[0], 1)
        await backup.restore()
        if forgot:
            async with publishing.engine.begin() as connection:
                changed = "UPDATE relay_places SET event = gen_random_uuid() WHERE number <> :number"
                await connection.execute(text(changed), {"number": place})
        await publishing.send_records([record for record in again for _ in range(2 * TAIL + 1)])
        relay = publishing.relay()
        async with running(relay.run()):
            await until(lambda: _has_led(relay, backup.position))
            assert await _epoch(publishing) > 1
            await until(lambda: tells(listening, a=["first"]))


async def test_a_backup_from_before_an_earlier_restore_gets_an_epoch_above_that(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing)
    await publishing.note("a", "first")
    async with running(publishing.relay().run()):
        await until(lambda: _published(publishing))
    backup = await Backup.of(publishing)
    once = (await say_restored(publishing)).new
    async with running(consumer.run(), healer.run()):
        async with running(publishing.relay().run()):
            await until(lambda: _published(publishing))
            await until(lambda: _marked(listening, ("a", once, 1)))
        await backup.restore()  # every event that the bus has is in this log
        await publishing.note("a", "second")
        async with running(publishing.relay().run()):
            await until(lambda: tells(listening, a=["first", "second"]))
            await until(lambda: settled(listening))
    [(epoch,)] = await listening.rows("SELECT epoch FROM consumer_marks")
    assert once < epoch == await _epoch(publishing)


async def test_what_a_stranger_writes_raises_the_epoch_once_or_not_at_all(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    await publishing.note("a", "first")
    [event] = await publishing.log()

    async def lead() -> int:
        relay = publishing.relay()
        async with running(relay.run()):
            await until(lambda: _has_led(relay, event.position))
        return await _epoch(publishing)

    def forged(event_id: str, epoch: int, source: str = publishing.name) -> Any:
        record = publishing.to_records(event, epoch)[0]
        headers = {**dict(record.headers), "ce_id": event_id, "ce_source": f"/attache/{source}"}
        return dataclasses.replace(record, headers=tuple(headers.items()))

    assert await lead() == 1
    harmless = [forged(str(uuid4()), 1, "stranger"), forged("no uuid", 1), forged(str(uuid4()), 2**31 - 1)]
    await publishing.send_records(harmless)
    assert await lead() == 1
    await publishing.send_records([publishing.to_records(event, 1)[0]])  # one that was never acknowledged
    assert await lead() == 1
    await publishing.send_records([forged(str(uuid4()), 1), forged(str(uuid4()), 7)])
    epochs = [await lead() for _ in range(3)]
    assert 7 < epochs[0] == epochs[1] == epochs[2] < 2_000_000_000


async def test_an_epoch_that_only_the_bus_tells_is_not_believed(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    for key in "ab":
        await publishing.note(key, "first", "second", "third")
    events = await publishing.log()
    forged = publishing.to_records(events[1], 900)[0]
    true = [publishing.to_records(event, 1)[0] for event in events]
    consumer = listening.consumer(publishing)
    await publishing.send_records([true[0], forged, *true[1:]])
    async with running(consumer.run()):
        await until(lambda: _counted(consumer, "deferred", 3))
        assert await listening.heard("a") == [(1, "first")]
        assert await listening.rows(f"SELECT key FROM consumer_marks WHERE waits_for = '{NEW_EPOCH}'") == [("a",)]
        async with running(listening.healer(consumer, publishing, NEVER).run()):
            await until(lambda: tells(listening, a=["first", "second", "third"], b=["first", "second", "third"]))
            await until(lambda: settled(listening))
    assert await listening.rows("SELECT max(epoch) FROM consumer_marks") == [(1,)]


async def test_what_is_told_while_a_key_is_built_anew_is_not_lost(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer = listening.consumer(publishing)
    relay = publishing.relay()
    await publishing.note("a", "first", "second")

    async def meanwhile() -> None:
        await publishing.note("a", "late")
        await until(lambda: _published(publishing))
        await until(lambda: _counted(consumer, "deferred", 3))

    async with running(consumer.run(), relay.run()):
        await until(lambda: tells(listening, a=["first", "second"]))
    new = (await say_restored(publishing)).new
    healer = _hooked(listening, consumer, publishing, new, meanwhile)
    async with running(consumer.run(), healer.run(), publishing.relay().run()):
        await until(lambda: _marked(listening, ("a", new, 3)))
    assert await listening.heard("a") == [(1, "first"), (2, "second"), (3, "late")]


async def test_an_epoch_that_rises_again_during_a_rebuild_is_built_anew_once_more(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer = listening.consumer(publishing)
    await publishing.note("a", "first")
    backup = await Backup.of(publishing)
    await publishing.note("a", "second")
    async with running(consumer.run(), publishing.relay().run()):
        await until(lambda: tells(listening, a=["first", "second"]))
    once = (await say_restored(publishing)).new

    async def restored_again() -> None:
        await _a_second_later()
        await backup.restore()
        assert (await say_restored(publishing)).new > once  # which was told over HTTP alone
        await publishing.note("a", "another second")

    healer = _hooked(listening, consumer, publishing, once, restored_again)
    async with running(consumer.run(), healer.run()):
        await until(lambda: tells(listening, a=["first", "another second"]))
        await until(lambda: settled(listening))
    assert await listening.rows("SELECT epoch, sequence FROM consumer_marks") == [(await _epoch(publishing), 2)]


async def test_readers_see_the_old_whole_until_the_new_whole_stands_also_when_it_is_broken_off(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", *(f"fact {number}" for number in range(5)))
    backup = await Backup.of(publishing)
    await publishing.note("a", "ghost")
    first = listening.consumer(publishing)
    async with running(publishing.relay().run(), first.run()):
        await until(lambda: tells(listening, a=[*_facts(5), "ghost"]))
    await backup.restore()
    await say_restored(publishing)
    await publishing.note("a", "true")
    reached = asyncio.Event()

    async def stuck(connection: AsyncConnection, message: Message) -> None:
        await listening.hear(connection, message)
        if message.sequence == 4:
            reached.set()
            await asyncio.sleep(60)

    seen: set[tuple[str, ...]] = set()

    async def watch() -> bool:
        seen.add(tuple(what for _, what in await listening.heard("a")))
        return (*_facts(5), "true") in seen

    second = listening.consumer(publishing, apply={"Noted.v1": stuck})
    async with running(publishing.relay().run(), second.run(), listening.healer(second, publishing).run()):
        await reached.wait()
        await watch()
    third, fourth = listening.consumer(publishing), listening.consumer(publishing)
    listening.pause = 0.02
    healers = [listening.healer(one, publishing) for one in (third, fourth)]  # two replicas
    async with running(third.run(), fourth.run(), *(healer.run() for healer in healers)):
        await until(watch)
        await until(lambda: settled(listening))
        await until(lambda: _rebuilt(healers))
    assert seen == {(*_facts(5), "ghost"), (*_facts(5), "true")}
    assert sum(healer.rebuilding.rebuilt for healer in healers) == 1


async def test_keys_that_wait_when_the_epoch_rises_come_out_right(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    for key in ("gap", "poison"):
        await publishing.note(key, f"{key} 1", f"{key} 2", f"{key} 3")
    publishing.lost = {"gap 2"}
    listening.refused = {"poison 2"}
    consumer = listening.consumer(publishing)
    await publishing.send()
    async with running(consumer.run()):
        await until(lambda: _counted(consumer, "parked", 3))
        await _raise(publishing, 1)
        await publishing.note("poison", "poison 4")
        healer = listening.healer(consumer, publishing, NEVER)
        async with running(publishing.relay().run(), healer.run()):
            await until(lambda: tells(listening, gap=["gap 1", "gap 2", "gap 3"], poison=["poison 1"]))
            await until(lambda: _marked(listening, ("poison", 2, 1)))
            await until(lambda: _waits(listening, "poison", "not-applied"))
            assert (await listening.parked())[0] == ("poison", 2, "not-applied")
            assert not [row for row in await listening.parked() if row[0] == "gap"]
            listening.refused = set()
            async with listening.engine.begin() as connection:  # as announced: it is tried again
                await connection.execute(text("UPDATE parked_messages SET announced_at = now()"))
            consumer.assigned_anew.set()
            await until(lambda: tells(listening, poison=[f"poison {number}" for number in (1, 2, 3, 4)]))
            await until(lambda: settled(listening))
    assert await listening.parked() == []


@dataclass
class _Spans(Tracing):
    """Takes down the numbers of the messages that became rows."""

    on: bool
    told: list[int] = field(default_factory=list)

    def taking(self, message: Message, group: str) -> Span:
        self.told.append(message.sequence)
        return super().taking(message, group)


@pytest.mark.parametrize("traced", [False, True])
async def test_a_key_that_is_built_anew_stands_as_far_as_its_messages_can_be_applied(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until, traced: bool
) -> None:
    await publishing.note("a", *(f"fact {number}" for number in (1, 2, 3, 4)))
    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing, NEVER)
    async with running(consumer.run(), publishing.relay().run()):
        await until(lambda: _marked(listening, ("a", 1, 4)))
    await _raise(publishing, 1)
    await healer.rebuilding.learn(publishing.cleared, 2)
    listening.refused = {"fact 3"}
    consumer.taking.tracing = spans = _Spans(on=traced)
    await healer.rebuilding.rebuild(publishing.cleared, "a")
    assert await listening.heard("a") == [(1, "fact 1"), (2, "fact 2")]
    assert await listening.rows("SELECT epoch, sequence, waits_for FROM consumer_marks") == [(2, 2, GAP)]
    assert spans.told == ([1, 2, 3, 1, 2] if traced else [])


async def test_a_long_key_is_built_anew_a_part_after_the_other(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = [f"fact {number}" for number in range(1, 6)]
    await publishing.note("a", *facts)
    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing, NEVER)
    async with running(consumer.run(), publishing.relay().run()):
        await until(lambda: _marked(listening, ("a", 1, 5)))
    await _raise(publishing, 1)
    await healer.rebuilding.learn(publishing.cleared, 2)
    monkeypatch.setattr("shared.taking.TOGETHER", 2)
    parts: list[int] = []

    async def together(connection: AsyncConnection, messages: Sequence[Message]) -> None:
        parts.append(len(messages))
        for message in messages:
            await listening.hear(connection, message)

    consumer.taking.apply = {"Noted.v1": together}
    await healer.rebuilding.rebuild(publishing.cleared, "a")
    assert parts == [2, 2, 1]
    assert await tells(listening, a=facts)


async def test_ghosts_are_known_as_such_before_the_first_is_taken(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first")
    backup = await Backup.of(publishing)
    await publishing.note("a", "ghost")
    await publishing.note("b", "ghost b")
    async with running(publishing.relay().run()):
        await until(lambda: _published(publishing))
    await backup.restore()
    await say_restored(publishing)
    told: list[str] = []

    async def hear(connection: AsyncConnection, message: Message) -> None:
        told.append(message.body["what"])
        await listening.hear(connection, message)

    consumer = listening.consumer(publishing, apply={"Noted.v1": hear})
    consumer.learn = listening.healer(consumer, publishing).learn
    async with running(publishing.relay().run(), consumer.run()):
        await until(lambda: tells(listening, a=["first"]))
        await until(lambda: _counted(consumer, "ghost", 3))
    assert told == ["first"]


async def test_a_log_that_is_behind_what_it_told_is_waited_for(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first")
    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing)
    async with running(consumer.run(), healer.run(), publishing.relay().run()):
        await until(lambda: tells(listening, a=["first"]))
        await healer.rebuilding.learn(publishing.cleared, 5)  # it was there once
        await until(lambda: _lags(healer))
        assert await listening.heard("a") == [(1, "first")]
        await _raise(publishing, 5)
        await until(lambda: _marked(listening, ("a", 6, 1)))
        await until(lambda: settled(listening))
        assert await healer.lag() == 0


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_the_interleaving_what_was_heard_is_the_log(
    seed: int,
    publishing: "Publishing",
    listening: "Listening",
    running: Running,
    until: Until,
    kill_backends: Callable[[AsyncEngine, str], Awaitable[int]],
) -> None:
    """Two replicas listen all the time, slowly at times, and lose their connections in the middle of it."""
    randomly = random.Random(seed)
    keys = ("a", "b", "c")
    backups = [await Backup.of(publishing)]
    consumers = [listening.consumer(publishing) for _ in range(2)]
    healers = [listening.healer(consumer, publishing) for consumer in consumers]
    async with running(*(one.run() for one in consumers), *(one.run() for one in healers)):
        for number in range(12):
            listening.pause = randomly.choice((0.0, 0.0, 0.01))
            relay = publishing.relay()
            async with running(relay.run()):
                await until(lambda relay=relay: _leads(relay))
                for _ in range(randomly.randrange(4)):
                    await publishing.note(randomly.choice(keys), f"{number} {uuid4()}")
                    await asyncio.sleep(randomly.choice((0.0, 0.02, 0.1)))
            match randomly.randrange(5):
                case 0:
                    backups.append(await Backup.of(publishing))
                case 1 | 2:
                    # ghosts that were heard over HTTP and never reached the bus are not to be known as such
                    silently = randomly.random() < 0.5 and await _published(publishing)
                    await randomly.choice(backups).restore()
                    if not silently:
                        await say_restored(publishing)
                case 3:
                    await kill_backends(listening.engine, "attache-listening")
        listening.pause = 0.0
        await publishing.note("a", "the last")
        log = await publishing.log()
        expected = {key: [event.data.what for event in log if event.key == key] for key in keys}
        async with running(publishing.relay().run()):
            await until(lambda: tells(listening, **expected))
            await until(lambda: settled(listening))
    for key in keys:
        assert [number for number, _ in await listening.heard(key)] == list(range(1, len(expected[key]) + 1))


async def test_restored_is_refused_while_the_service_runs_and_says_when_the_bus_was_not_asked(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    await publishing.note("a", "first")
    relay = publishing.relay()
    async with running(relay.run()):
        await until(lambda: _published(publishing))
        with pytest.raises(StillRunning, match="relay is connected"):
            await restored(publishing.name, publishing.engine, publishing.bus, 0)
    assert await _epoch(publishing) == 1

    class Away:
        async def producer(self) -> Any:
            raise BusAway("nobody answers")

    await publishing.engine.dispose()
    await until(lambda: is_left_alone(publishing))
    raised, silence = await restored(publishing.name, publishing.engine, Away(), 41)  # type: ignore[arg-type]
    assert (raised.old, silence) == (1, "nobody answers")
    assert raised.new > 41
    assert await publishing.cursor() == 0


async def _a_second_later() -> None:
    """Epochs of two histories differ if they began in two seconds, whatever is known of the first."""
    await asyncio.sleep(1.1)


async def say_restored(publishing: "Publishing") -> Raised:
    """What the command does, while the service is stopped: nobody answers, and its own connections are ended."""
    publishing.stopped = True
    try:
        while True:
            await _end_connections(publishing)
            with contextlib.suppress(StillRunning):  # its message log may just have been asked
                raised, silence = await restored(publishing.name, publishing.engine, publishing.bus, 0)
                assert silence is None
                return raised
            await asyncio.sleep(0.05)
    finally:
        publishing.stopped = False


async def _end_connections(publishing: "Publishing") -> None:
    """From the server's side: a pool that is disposed of keeps those that are lent just then, and for good."""
    url = publishing.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name LIKE $1 || '%' AND pid <> pg_backend_pid()",
            f"attache-{publishing.name}",
        )
    finally:
        await connection.close()


async def is_left_alone(publishing: "Publishing") -> bool:
    """Whether nobody is connected to its database: at the server a connection outlives its client for a moment."""
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE $1 || '%'"
    )
    async with _driver(publishing) as driver:
        return bool(await driver.fetchval(others, f"attache-{publishing.name}") == 0)


async def _raise(publishing: "Publishing", above: int) -> None:
    async with publishing.engine.begin() as connection:
        await connection.execute(text("UPDATE relay_cursor SET position = 0, epoch = :new"), {"new": above + 1})


def _hooked(
    listening: "Listening",
    consumer: Consumer,
    publishing: "Publishing",
    epoch: int,
    then: Callable[[], Awaitable[None]],
) -> Healer:
    log = publishing.message_log()
    fields = {one.name: getattr(log, one.name) for one in dataclasses.fields(MessageLog)}
    hooked = Hooked(**fields, epoch=epoch, then=[then])
    return Healer(consumer, {publishing.cleared: hooked}, {publishing.cleared: listening.anew}, NEVER)


@contextlib.asynccontextmanager
async def _driver(publishing: "Publishing") -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """As one who restores: no connection of the service's."""
    _, options = publishing.engine.dialect.create_connect_args(publishing.engine.url)
    options.pop("server_settings", None)
    connection = await asyncpg.connect(**options)
    try:
        yield connection
    finally:
        await connection.close()


def _facts(count: int) -> list[str]:
    return [f"fact {number}" for number in range(count)]


async def tells(listening: "Listening", **expected: list[str]) -> bool:
    told = {key: [what for _, what in await listening.heard(key)] for key in expected}
    return told == expected


async def settled(listening: "Listening") -> bool:
    """Nothing waits, and every mark is of the highest epoch."""
    return not await listening.rows(
        "SELECT 1 FROM consumer_marks m LEFT JOIN consumer_epochs e USING (topic) "
        "WHERE waits_for IS NOT NULL OR m.epoch <> coalesce(e.epoch, 1)"
    )


async def _marked(listening: "Listening", mark: tuple[str, int, int]) -> bool:
    return mark in await listening.rows("SELECT key, epoch, sequence FROM consumer_marks WHERE waits_for IS NULL") or (
        mark in await listening.rows("SELECT key, epoch, sequence FROM consumer_marks WHERE waits_for = 'not-applied'")
    )


async def _rebuilt(healers: Sequence[Healer]) -> bool:
    return any(healer.rebuilding.rebuilt for healer in healers)


async def _waits(listening: "Listening", key: str, what: str) -> bool:
    return bool(await listening.rows(f"SELECT 1 FROM consumer_marks WHERE key = '{key}' AND waits_for = '{what}'"))


async def _counted(consumer: Consumer, outcome: Any, count: int) -> bool:
    return consumer.state.counts.get(outcome, 0) >= count


async def _leads(relay: Relay) -> bool:
    return relay.state.leads


async def _has_led(relay: Relay, position: int) -> bool:
    return relay.state.position == position


async def _lags(healer: Healer) -> bool:
    return await healer.lag() > 0


async def _places(publishing: "Publishing") -> list[int]:
    """The numbers of the partitions that were written to."""
    async with publishing.engine.connect() as connection:
        return list(await connection.scalars(text("SELECT DISTINCT number FROM relay_places")))


async def _epoch(publishing: "Publishing") -> int:
    async with publishing.engine.connect() as connection:
        return int(await connection.scalar(text("SELECT epoch FROM relay_cursor")) or 0)


async def _published(publishing: "Publishing") -> bool:
    return await publishing.cursor() == max((event.position for event in await publishing.log()), default=0)
