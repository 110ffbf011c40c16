"""The relay: in order, at least once, never with a gap, whatever breaks off."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.bus import Bus, BusAway, Delivery, Place, Producer, Record, SendStopped, Topic
from shared.messages import read_delivery
from shared.migrations import head
from shared.relay import Relay

if TYPE_CHECKING:
    from tests.shared.conftest import Publishing

Running = Callable[..., AbstractAsyncContextManager[None]]
Until = Callable[..., Awaitable[None]]
ReadTopic = Callable[[Bus, str, int], Awaitable[list[Delivery]]]


@dataclass
class Breaking:
    """A bus whose producers acknowledge so many records of a batch, once for each number, and then stop."""

    inner: Bus
    acknowledged: list[int]
    sent: list[Record] = field(default_factory=list)
    open: int = 0
    slow: float = 0.0
    away: bool = False
    sending: int = 0

    async def producer(self) -> "BreakingProducer":
        if self.away:
            raise BusAway("unplugged")
        return BreakingProducer(self, await self.inner.producer())

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


@dataclass
class BreakingProducer:
    """Sends the acknowledged part, and of the rest one record more: sent, but not known to be."""

    bus: Breaking
    inner: Producer

    def __post_init__(self) -> None:
        self.bus.open += 1

    async def send(self, records: Sequence[Record]) -> list[Place]:
        self.bus.sending += 1
        try:
            await asyncio.sleep(self.bus.slow)
        finally:
            self.bus.sending -= 1
        if not self.bus.acknowledged:
            self.bus.sent += records
            return await self.inner.send(records)
        count = self.bus.acknowledged.pop(0)
        self.bus.sent += records[: count + 1]
        places = await self.inner.send(records[: count + 1])
        raise SendStopped("broken off", places[:count])

    async def id_at(self, place: Place) -> str | None:
        return await self.inner.id_at(place)

    async def close(self) -> None:
        self.bus.open -= 1
        await self.inner.close()


async def test_what_is_in_the_log_is_on_both_topics_in_order(
    publishing: "Publishing", running: Running, until: Until, read_topic: ReadTopic
) -> None:
    keys = [str(uuid4()) for _ in range(5)]
    for number in range(30):
        await publishing.note(keys[number % 5], f"fact {number}", openly=number % 3 != 0)
    async with running(publishing.relay().run()):
        await until(lambda: _published(publishing))
    told = {name: await _read(read_topic, publishing, name) for name in (publishing.cleared, publishing.opened)}
    assert told[publishing.cleared] == {
        key: [(place + 1, f"fact {number}") for place, number in enumerate(range(start, 30, 5))]
        for start, key in enumerate(keys)
    }
    assert told[publishing.opened] == {
        key: [
            (place + 1, f"fact {number}")
            for place, number in enumerate(one for one in range(start, 30, 5) if one % 3 != 0)
        ]
        for start, key in enumerate(keys)
    }


async def test_what_is_noted_while_it_leads_is_published_at_once(
    publishing: "Publishing", running: Running, until: Until, read_topic: ReadTopic
) -> None:
    relay = publishing.relay()
    async with running(relay.run()):
        await until(lambda: _leads(relay))
        await publishing.note("a", "first")
        relay.wake()
        await until(lambda: _published(publishing), 2.0)
        await publishing.note("a", "second")  # found by the poll
        await until(lambda: _published(publishing), 2.0)
    assert await _read(read_topic, publishing, publishing.cleared) == {"a": [(1, "first"), (2, "second")]}


async def test_a_batch_that_breaks_off_loses_nothing_and_moves_behind_whole_events_alone(
    publishing: "Publishing", running: Running, until: Until, read_topic: ReadTopic
) -> None:
    await publishing.note("a", *(f"fact {number}" for number in range(6)))
    bus = Breaking(publishing.bus, [5, 0])  # two events and a half, then nothing at all
    relay = publishing.relay(bus)  # type: ignore[arg-type]  # the rest of the port is handed on
    positions = [event.position for event in await publishing.log()]
    cursors: list[int] = []

    async def note_cursor() -> bool:
        cursors.append(await publishing.cursor())
        return cursors[-1] == positions[-1]

    async with running(relay.run()):
        await until(note_cursor)
    assert bus.open == 0
    assert set(cursors) <= {0, positions[1], positions[-1]}
    sent = [(record.topic, read_delivery(_as_read(record)).sequence) for record in bus.sent]
    both = [(topic, number) for number in range(1, 7) for topic in (publishing.cleared, publishing.opened)]
    assert sent == [*both[:6], both[4], *both[4:]]
    assert relay.state.restarts == 2
    told = await _read(read_topic, publishing, publishing.cleared)
    assert told == {"a": [(number + 1, f"fact {number}") for number in range(6)]}


async def test_one_of_two_relays_leads_and_the_other_takes_over_when_its_connection_is_gone(
    publishing: "Publishing", open_bus: Callable[[], Bus], running: Running, until: Until, read_topic: ReadTopic
) -> None:
    buses = [Breaking(open_bus(), []) for _ in range(2)]
    relays = [publishing.relay(bus) for bus in buses]  # type: ignore[arg-type]
    leaders: list[Relay] = []
    async with running(*(relay.run() for relay in relays)):
        for start in range(0, 60, 20):
            await until(lambda: _one_leads(relays))
            leaders += [relay for relay in relays if relay.state.leads]
            bus, other = (buses if leaders[-1] is relays[0] else buses[::-1])[:2]
            bus.slow = 0.2  # killed in the middle of a batch
            await publishing.note("a", *(f"fact {number}" for number in range(start, start + 20)))
            await until(lambda bus=bus: _is_sending(bus))
            bus.away, other.away, other.slow = True, False, 0.0
            await _kill_leader(publishing)
            await until(lambda: _published(publishing))
    assert len(leaders) == 3
    assert leaders[0] is leaders[2] is not leaders[1]
    told = await _read(read_topic, publishing, publishing.cleared)
    assert told == {"a": [(number + 1, f"fact {number}") for number in range(60)]}


async def test_a_relay_that_lost_its_lock_while_sending_stops_sending(
    publishing: "Publishing",
    running: Running,
    until: Until,
    kill_backends: Callable[[AsyncEngine, str], Awaitable[int]],
) -> None:
    bus = Breaking(publishing.bus, [], slow=3.0)
    relay = publishing.relay(bus)  # type: ignore[arg-type]
    await publishing.note("a", "fact")
    async with running(relay.run()):
        await until(lambda: _is_sending(bus))
        assert await kill_backends(publishing.engine, "%-relay") == 1
        await until(lambda: _stands_down(relay, bus), 1.0)
        assert bus.sent == []


async def test_a_cursor_that_another_moved_during_a_send_is_not_overwritten(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    bus = Breaking(publishing.bus, [], slow=0.5)
    relay = publishing.relay(bus)  # type: ignore[arg-type]

    async def move_during_a_send(position: int, restarts: int) -> None:
        await until(lambda: _is_sending(bus))
        async with publishing.engine.begin() as connection:
            await connection.execute(text("UPDATE relay_cursor SET position = :position"), {"position": position})
        await until(lambda: _stands_down(relay, bus))
        assert (relay.state.last_error, relay.state.restarts) == ("LeadershipLost", restarts)
        assert await publishing.cursor() == position

    await publishing.note("a", "first", "second", openly=False)
    async with running(relay.run()):
        await until(lambda: _is_sending(bus))
        await publishing.note("a", "third", openly=False)  # another relay has sent all three
        await move_during_a_send((await publishing.log())[-1].position, 1)
        await publishing.note("a", "fourth", openly=False)
        await move_during_a_send(0, 2)  # everything is to be published again
        await until(lambda: _published(publishing))
    assert [read_delivery(_as_read(record)).sequence for record in bus.sent] == [1, 2, 4, 1, 2, 3, 4]


async def test_a_service_is_ready_when_all_is_well_and_its_counters_are_for_operators(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    service = publishing.service()
    await publishing.note("a", "first")
    async with service.running():
        await until(lambda: _ready(publishing, unpublished=0, unheard=0))
        assert (await publishing.ask("readyz")).json() == {
            "service": publishing.name,
            "ready": True,
            "relay": None,
            "consumer": None,
            "schema": head(service.migrations),
            "unpublished": 0,
            "parked": 0,
            "catching_up": 0,
            "waiting": 0,
            "unheard": 0,
        }
        assert [(await publishing.ask("metrics", token)).status_code for token in ("", publishing.token)] == [401, 403]
        metrics = (await publishing.ask("metrics", publishing.operator)).text.splitlines()
    of = f'{{service="{publishing.name}"}}'
    assert {
        f"attache_relay_leads{of} 1.0",
        f"attache_relay_records_sent_total{of} 2.0",
        f"attache_consumer_assigned_partitions{of} 4.0",
        f"attache_consumer_unknown_total{of} 1.0",
        f"attache_healer_healed_total{of} 0.0",
    } <= set(metrics)


async def test_a_service_of_another_schema_is_not_ready(publishing: "Publishing", until: Until) -> None:
    service = publishing.service()
    async with service.running():
        await until(lambda: _ready(publishing))
        async with publishing.engine.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = 'elsewhere'"))
        answer = await publishing.ask("readyz")
    assert answer.status_code == 503
    assert answer.json()["schema"] == "elsewhere"


async def test_a_service_whose_relay_stands_still_is_not_ready_until_it_goes_on(
    publishing: "Publishing", until: Until
) -> None:
    bus = Breaking(publishing.bus, [], away=True)
    service = publishing.service(bus)  # type: ignore[arg-type]
    service.stalled = 1.5
    async with service.running():
        await until(lambda: _ready(publishing, relay="BusAway", unpublished=0))
        await publishing.note("a", "first")
        assert await _ready(publishing, unpublished=1)
        await until(lambda: _red(publishing, relay="BusAway", unpublished=1))
        bus.away = False
        await until(lambda: _ready(publishing, relay=None, unpublished=0))


async def test_a_service_that_works_off_an_old_backlog_is_ready(publishing: "Publishing", until: Until) -> None:
    await publishing.note("a", *(f"fact {number}" for number in range(1600)), openly=False)
    async with publishing.engine.begin() as connection:
        await connection.execute(text("UPDATE events SET recorded_at = recorded_at - interval '1 day'"))
    service = publishing.service(Breaking(publishing.bus, [], slow=1.0))  # type: ignore[arg-type]
    service.stalled = 2.5
    seen: set[int] = set()
    async with service.running():
        await until(lambda: _ready(publishing))

        async def is_done() -> bool:
            answer = await publishing.ask("readyz")
            assert answer.status_code == 200, answer.text
            seen.add(answer.json()["unpublished"])
            return await _published(publishing)

        await until(is_done)
    assert seen >= {1100, 600, 100}


async def test_what_the_bus_has_forgotten_is_sent_again_from_the_beginning(
    publishing: "Publishing", running: Running, until: Until, read_topic: ReadTopic
) -> None:
    await publishing.note("a", "first", "second")
    async with running(publishing.relay().run()):
        await until(lambda: _published(publishing))
    # the bus is another one now: nothing of what was acknowledged is there
    async with publishing.engine.begin() as connection:
        await connection.execute(text('UPDATE relay_places SET "offset" = "offset" + 1000'))
    await publishing.note("a", "third")
    bus = Breaking(publishing.bus, [])
    async with running(publishing.relay(bus).run()):  # type: ignore[arg-type]
        await until(lambda: _published(publishing))
    assert [read_delivery(_as_read(record)).sequence for record in bus.sent] == [1, 1, 2, 2, 3, 3]


async def test_a_record_of_another_event_at_the_last_place_counts_as_forgotten(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    await publishing.note("a", "first")
    async with running(publishing.relay().run()):
        await until(lambda: _published(publishing))
    async with publishing.engine.begin() as connection:
        await connection.execute(text("UPDATE relay_places SET event = gen_random_uuid()"))
    bus = Breaking(publishing.bus, [])
    async with running(publishing.relay(bus).run()):  # type: ignore[arg-type]
        await until(lambda: _sent(bus, 2))
        await until(lambda: _published(publishing))
    async with publishing.engine.connect() as connection:
        events = await connection.scalars(text("SELECT DISTINCT event FROM relay_places"))
        assert events.all() == [(await publishing.log())[0].id]


async def test_topics_that_the_bus_lost_are_made_again(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    await publishing.note("a", "first")
    made: list[Sequence[Topic]] = []

    @dataclass
    class Counting(Breaking):
        async def ensure_topics(self, topics: Sequence[Topic]) -> None:
            made.append(topics)
            await self.inner.ensure_topics(topics)

    async with running(publishing.relay(Counting(publishing.bus, [0, 0])).run()):  # type: ignore[arg-type]
        await until(lambda: _published(publishing))
    assert made == [tuple(publishing.topics)] * 3  # once for each producer


async def test_a_republication_is_the_same_to_the_byte(
    publishing: "Publishing", running: Running, until: Until, read_topic: ReadTopic
) -> None:
    await publishing.note("a", "first", "second")
    await publishing.note("b", "third", openly=False)
    for _ in range(2):
        async with publishing.engine.begin() as connection:
            await connection.execute(text("UPDATE relay_cursor SET position = 0"))
        async with running(publishing.relay().run()):
            await until(lambda: _published(publishing))
    for topic, count in ((publishing.cleared, 3), (publishing.opened, 2)):
        read = await read_topic(publishing.bus, topic, 2 * count)
        copies: dict[UUID, list[tuple[object, ...]]] = defaultdict(list)
        for one in read:
            copies[UUID(read_delivery(one).id)].append((one.topic, one.number, one.key, one.headers, one.body))
        assert len(copies) == count
        assert all(first == second for first, second in copies.values())


async def test_a_relay_without_its_database_waits_and_goes_on(
    publishing: "Publishing",
    running: Running,
    until: Until,
    kill_backends: Callable[[AsyncEngine, str], Awaitable[int]],
) -> None:
    relay = publishing.relay()
    async with running(relay.run()):
        await until(lambda: _leads(relay))
        await kill_backends(publishing.engine, "attache-%")
        await publishing.note("a", "first")
        await until(lambda: _published(publishing))


async def _read(read_topic: ReadTopic, publishing: "Publishing", topic: str) -> dict[str, list[tuple[int, str]]]:
    """What a reader with marks makes of a topic: number and content by key. A jump would show as a missing number."""
    heads = [event for event in await publishing.log() if topic == publishing.cleared or event.open_sequence]
    told: dict[str, list[tuple[int, str]]] = defaultdict(list)
    ordered = sorted(await read_topic(publishing.bus, topic, len(heads)), key=lambda one: (one.number, one.offset))
    for message in map(read_delivery, ordered):
        if message.sequence == len(told[message.key]) + 1:
            told[message.key].append((message.sequence, message.body["what"]))
        else:
            assert message.sequence <= len(told[message.key]), "a number is missing"
    return dict(told)


def _as_read(record: Record) -> Delivery:
    headers = tuple((name, value.encode()) for name, value in record.headers)
    return Delivery(topic=record.topic, number=0, offset=0, key=record.key.encode(), headers=headers, body=record.body)


async def _published(publishing: "Publishing") -> bool:
    return await publishing.cursor() == (await publishing.log())[-1].position


async def _ready(publishing: "Publishing", **expected: object) -> bool:
    answer = await publishing.ask("readyz")
    return answer.status_code == 200 and expected.items() <= answer.json().items()


async def _red(publishing: "Publishing", **expected: object) -> bool:
    answer = await publishing.ask("readyz")
    return answer.status_code == 503 and expected.items() <= answer.json().items()


async def _leads(relay: Relay) -> bool:
    return relay.state.leads


async def _one_leads(relays: Sequence[Relay]) -> bool:
    return sum(relay.state.leads for relay in relays) == 1


async def _stands_down(relay: Relay, bus: Breaking) -> bool:
    return not relay.state.leads and bus.open == 0


async def _is_sending(bus: Breaking) -> bool:
    return bus.sending > 0


async def _sent(bus: Breaking, count: int) -> bool:
    return len(bus.sent) >= count


async def _kill_leader(publishing: "Publishing") -> None:
    _, options = publishing.engine.dialect.create_connect_args(publishing.engine.url)
    connection = await asyncpg.connect(**options)
    try:
        killed = await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = 2 AND objid = 0 "
            "AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    finally:
        await connection.close()
    assert len(killed) == 1
