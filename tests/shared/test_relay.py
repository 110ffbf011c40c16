"""The relay: in order, at least once, never with a gap, whatever breaks off."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

import shared.relay
from shared.bus import Bus, BusAway, Delivery, Place, Producer, Record, SendStopped, Topic
from shared.messages import read_delivery
from shared.migrations import head
from shared.relay import Relay
from shared.settings import ROLES, Role

if TYPE_CHECKING:
    from tests.shared.conftest import Publishing

Running = Callable[..., AbstractAsyncContextManager[None]]
Until = Callable[..., Awaitable[None]]
ReadTopic = Callable[[Bus, str, int], Awaitable[list[Delivery]]]

HOLDERS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 2 AND objid = 0 AND granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
THE_RELAYS_CONNECTION = (
    "SELECT state, backend_xid FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name LIKE '%-relay'"
)


@dataclass
class Breaking:
    """A bus whose producers acknowledge so many records of a batch, once for each number, and then stop.

    While `go_on` is not set a batch is held up before anything of it is sent; `singly`, it is for one batch.
    """

    inner: Bus
    acknowledged: list[int]
    sent: list[Record] = field(default_factory=list)
    open: int = 0
    slow: float = 0.0
    away: bool = False
    sending: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    singly: bool = False

    def __post_init__(self) -> None:
        self.go_on.set()

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
            await self.bus.go_on.wait()
            if self.bus.singly:
                self.bus.go_on.clear()
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

    async def tail(self, topic: str, behind: Mapping[int, int], limit: int) -> list[Delivery]:
        return await self.inner.tail(topic, behind, limit)

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


async def test_traces_of_what_is_published_are_named(publishing: "Publishing", running: Running, until: Until) -> None:
    traces = [uuid4().hex for _ in range(250)]
    for trace in (*traces, traces[0]):
        publishing.traceparent = f"00-{trace}-b7ad6b7169203331-01"
        await publishing.note("a", "fact")
    relay = publishing.relay()
    with capture_logs() as lines:
        async with running(relay.run()):
            await until(lambda: _counted(relay, 502))  # which the log's line goes with
    told = [line for line in lines if line["event"] == "relay.published"]
    assert [len(line["trace_ids"]) for line in told] == [200, 50]  # no line is too long to be kept whole
    assert [trace for line in told for trace in line["trace_ids"]] == traces
    assert {(line["service"], line["records"]) for line in told} == {(publishing.name, 502)}


async def test_what_is_noted_while_it_leads_is_published_at_once(
    publishing: "Publishing", running: Running, until: Until, read_topic: ReadTopic
) -> None:
    relay = publishing.relay()
    async with running(relay.run()):
        await until(lambda: _leads(relay))
        await publishing.note("a", "first")
        relay.wake()
        await until(lambda: _published(publishing))
        await publishing.note("a", "second")  # found by the poll
        await until(lambda: _published(publishing))
    assert shared.relay.POLL_SECONDS < 1
    assert await _read(read_topic, publishing, publishing.cleared) == {"a": [(1, "first"), (2, "second")]}


async def test_a_commit_wakes_the_relay_and_does_not_wait_for_its_poll(
    publishing: "Publishing", running: Running, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.relay, "POLL_SECONDS", 3600.0)
    relay = publishing.relay()
    async with running(relay.run()):
        await until(lambda: _leads(relay))
        for number in range(3):
            await publishing.note("a", f"fact {number}")
            relay.wake()
            await until(lambda: _published(publishing))


async def test_acknowledgements_are_awaited_outside_of_any_transaction(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    bus = Breaking(publishing.bus, [])
    bus.go_on.clear()
    await publishing.note("a", "fact")
    async with running(publishing.relay(bus).run()):  # type: ignore[arg-type]
        await until(lambda: _is_sending(bus))
        async with publishing.engine.connect() as connection:
            found = await connection.execute(text(THE_RELAYS_CONNECTION))
            assert found.all() == [("idle", None)]
        bus.go_on.set()
        await until(lambda: _published(publishing))


async def test_a_batch_that_breaks_off_loses_nothing_and_moves_behind_whole_events_alone(
    publishing: "Publishing", running: Running, until: Until, read_topic: ReadTopic
) -> None:
    await publishing.note("a", *(f"fact {number}" for number in range(6)))
    bus = Breaking(publishing.bus, [5, 0])  # two events and a half, then nothing at all
    # it looks back at nothing, which would find a wrong cursor and hide it
    relay = publishing.relay(bus, look=3600.0)  # type: ignore[arg-type]  # the rest of the port is handed on
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
            bus.go_on.clear()  # killed in the middle of a batch
            await publishing.note("a", *(f"fact {number}" for number in range(start, start + 20)))
            await until(lambda bus=bus: _is_sending(bus))
            bus.away, other.away = True, False
            await _kill_leader(publishing)
            bus.go_on.set()
            await until(lambda: _published(publishing))
    assert len(leaders) == 3
    assert leaders[0] is leaders[2] is not leaders[1]
    told = await _read(read_topic, publishing, publishing.cleared)
    assert told == {"a": [(number + 1, f"fact {number}") for number in range(60)]}


async def test_a_leader_that_stands_still_and_keeps_its_connection_leads_no_longer(
    publishing: "Publishing", open_bus: Callable[[], Bus], running: Running, until: Until, read_topic: ReadTopic
) -> None:
    buses = [Breaking(open_bus(), []) for _ in range(2)]
    relays = [publishing.relay(bus, silence=3.0) for bus in buses]  # type: ignore[arg-type]
    async with running(*(relay.run() for relay in relays)):
        await until(lambda: _one_leads(relays))
        leader = relays.index(next(relay for relay in relays if relay.state.leads))
        buses[leader].slow = 3600.0  # as a frozen process is: it says nothing, and its connection stands
        await publishing.note("a", *(f"fact {number}" for number in range(5)))
        await until(lambda: _published(publishing))
    told = await _read(read_topic, publishing, publishing.cleared)
    assert told == {"a": [(number + 1, f"fact {number}") for number in range(5)]}


async def test_a_leader_that_stands_still_inside_a_transaction_loses_its_connection_too(
    publishing: "Publishing",
) -> None:
    begun = False
    async with asyncio.timeout(120):
        while not begun:
            async with publishing.relay(silence=0.5)._leadership() as (driver, lost):
                # one that stood still for so long before it began has lost it already
                with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
                    await driver.execute("BEGIN")
                    begun = True
                await lost.wait()


async def test_a_relay_that_lost_its_lock_while_sending_stops_sending(
    publishing: "Publishing",
    running: Running,
    until: Until,
    kill_backends: Callable[[AsyncEngine, str], Awaitable[int]],
) -> None:
    bus = Breaking(publishing.bus, [])
    bus.go_on.clear()
    relay = publishing.relay(bus)  # type: ignore[arg-type]
    await publishing.note("a", "fact")
    async with running(relay.run()):
        await until(lambda: _is_sending(bus))
        assert await kill_backends(publishing.engine, "%-relay") == 1
        await until(lambda: _stands_down(relay, bus))
        assert bus.sent == []


async def test_a_cursor_that_another_moved_during_a_send_is_not_overwritten(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    bus = Breaking(publishing.bus, [])
    bus.go_on.clear()
    relay = publishing.relay(bus)  # type: ignore[arg-type]

    async def move_during_a_send(position: int, restarts: int) -> None:
        await until(lambda: _is_sending(bus))
        async with publishing.engine.begin() as connection:
            await connection.execute(text("UPDATE relay_cursor SET position = :position"), {"position": position})
        bus.go_on.set()
        await until(lambda: _stands_down(relay, bus))
        bus.go_on.clear()
        assert (relay.state.last_error, relay.state.restarts) == ("LeadershipLost", restarts)
        assert await publishing.cursor() == position

    await publishing.note("a", "first", "second", openly=False)
    async with running(relay.run()):
        await until(lambda: _is_sending(bus))
        await publishing.note("a", "third", openly=False)  # another relay has sent all three
        await move_during_a_send((await publishing.log())[-1].position, 1)
        await publishing.note("a", "fourth", openly=False)
        await move_during_a_send(0, 2)  # everything is to be published again
        bus.go_on.set()
        await until(lambda: _published(publishing))
    assert [read_delivery(_as_read(record)).sequence for record in bus.sent] == [1, 2, 4, 1, 2, 3, 4]


async def test_a_cursor_of_another_epoch_is_not_moved_though_it_stands_where_it_did(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    bus = Breaking(publishing.bus, [])
    bus.go_on.clear()
    relay = publishing.relay(bus, look=3600.0)  # type: ignore[arg-type]
    await publishing.note("a", "first")
    async with running(relay.run()):
        await until(lambda: _is_sending(bus))
        async with publishing.engine.begin() as connection:
            await connection.execute(text("UPDATE relay_cursor SET epoch = 7"))
        bus.go_on.set()
        await until(lambda: _stands_down(relay, bus))
        assert relay.state.last_error == "LeadershipLost"
        await until(lambda: _published(publishing))
    assert [read_delivery(_as_read(record)).epoch for record in bus.sent[::2]] == [1, 7]


async def test_the_producer_is_closed_before_the_lock_is_let_go(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    holders: list[object] = []

    @dataclass
    class Watching(Breaking):
        async def producer(self) -> BreakingProducer:
            producer = await super().producer()
            close = producer.close

            async def closing() -> None:
                await asyncio.sleep(0.2)  # as long as a send may still be under way
                async with publishing.engine.connect() as connection:
                    holders.append(await connection.scalar(text(HOLDERS)))
                await close()

            producer.close = closing  # type: ignore[method-assign]
            return producer

    bus = Watching(publishing.bus, [])
    relay = publishing.relay(bus)  # type: ignore[arg-type]
    async with running(relay.run()):
        await until(lambda: _leads(relay))
        await publishing.note("a", "first")
        await until(lambda: _published(publishing))
    assert holders == [1]
    assert bus.open == 0


async def test_a_service_is_ready_when_all_is_well_and_its_counters_are_for_operators(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    service = publishing.service()
    await publishing.note("a", "first")
    async with service.running():
        expected = {
            "service": publishing.name,
            "ready": True,
            "reasons": {},
            "relay": None,
            "consumer": None,
            "schema": head(service.readiness.migrations),
            "epoch": 1,
            "unpublished": 0,
            "parked": 0,
            "catching_up": 0,
            "clock_behind": None,
            "waiting": 0,
            "unheard": 0,
        }
        await until(lambda: _ready(publishing, **expected))
        assert (await publishing.ask("readyz")).json() == expected
        await until(lambda: _counted(service.relay, 2))
        assert [(await publishing.ask("metrics", token)).status_code for token in ("", publishing.token)] == [401, 403]
        metrics = (await publishing.ask("metrics", publishing.operator)).text.splitlines()
    of = f'{{service="{publishing.name}"}}'
    assert {
        f"attache_relay_leads{of} 1.0",
        f"attache_relay_records_sent_total{of} 2.0",
        f"attache_consumer_assigned_partitions{of} 4.0",
        f"attache_healer_messages_total{of} {float(service.healer.keys.healed)}",  # more where it was too slow
        f"attache_ready{of} 1.0",
    } <= set(metrics)


@pytest.mark.parametrize("role", ROLES)
async def test_a_process_does_only_its_role_and_is_ready_by_it(
    role: Role, publishing: "Publishing", until: Until
) -> None:
    """What is told waits until there is a process that publishes; what is old and waits is red there alone."""
    await publishing.note("a", "first")
    async with publishing.engine.begin() as connection:
        await connection.execute(text("UPDATE events SET recorded_at = recorded_at - interval '1 day'"))
    service = publishing.service(roles=[role])
    async with service.running():
        if role == "api":
            service.readiness.stalled = 0.0  # whatever is judged is red
        await until(lambda: _ready(publishing, unpublished=0 if role == "relay" else 1))
        assert service.relay.state.leads is (role == "relay")
        assert (service.consumer.state.healthy_at > 0) is (role == "consumer")
        assert (await publishing.ask("healthz")).status_code == 200
    app = FastAPI()
    app.include_router(service.router())
    assert any(path.endswith("/messages") for path in app.openapi()["paths"]) is (role == "api")


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
    async with service.running():
        await until(lambda: _ready(publishing, relay="BusAway", unpublished=0))
        await publishing.note("a", "first")
        assert await _ready(publishing, unpublished=1)
        service.readiness.stalled = 1.5
        await until(lambda: _red(publishing, relay="BusAway", unpublished=1))
        bus.away = False
        await until(lambda: _ready(publishing, relay=None, unpublished=0))


async def test_a_service_that_works_off_an_old_backlog_is_ready(publishing: "Publishing", until: Until) -> None:
    await publishing.note("a", *(f"fact {number}" for number in range(1600)), openly=False)
    async with publishing.engine.begin() as connection:
        await connection.execute(text("UPDATE events SET recorded_at = recorded_at - interval '1 day'"))
    bus = Breaking(publishing.bus, [], singly=True)
    bus.go_on.clear()
    service = publishing.service(bus)  # type: ignore[arg-type]
    service.readiness.stalled = 3600.0  # the events are a day old
    left = [1600, 1100, 600, 100]
    async with service.running():
        await until(lambda: _ready(publishing))

        async def is_done() -> bool:
            answer = await publishing.ask("readyz")
            assert answer.status_code == 200, answer.text
            if left and bus.sending and answer.json()["unpublished"] == left[0]:
                left.pop(0)
                bus.go_on.set()
            return await _published(publishing)

        await until(is_done)
    assert left == []


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


async def test_each_partition_is_read_back_and_one_that_forgot_is_enough(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    for number in range(6):
        await publishing.note(f"key {number}", "fact")
    async with running(publishing.relay().run()):
        await until(lambda: _published(publishing))
    async with publishing.engine.connect() as connection:
        places = (await connection.execute(text("SELECT topic, number FROM relay_places"))).all()
    assert len(places) > 2
    for topic, number in places:
        async with publishing.engine.begin() as connection:
            forgotten = 'UPDATE relay_places SET "offset" = "offset" + 1000 WHERE topic = :topic AND number = :number'
            await connection.execute(text(forgotten), {"topic": topic, "number": number})
        bus = Breaking(publishing.bus, [])
        async with running(publishing.relay(bus, look=3600.0).run()):  # type: ignore[arg-type]
            await until(lambda bus=bus: _sent(bus, 12))
            await until(lambda: _published(publishing))


async def test_a_bus_that_forgets_while_nobody_writes_is_given_the_past_again(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    await publishing.note("a", "first", "second")
    bus = Breaking(publishing.bus, [])
    async with running(publishing.relay(bus).run()):  # type: ignore[arg-type]
        await until(lambda: _published(publishing))
        async with publishing.engine.begin() as connection:
            await connection.execute(text('UPDATE relay_places SET "offset" = "offset" + 1000'))
        await until(lambda: _sent(bus, 8))
        await until(lambda: _published(publishing))
    assert [read_delivery(_as_read(record)).sequence for record in bus.sent] == [1, 1, 2, 2] * 2


async def test_a_producer_that_outlived_what_the_bus_had_is_thrown_away(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    await publishing.note("a", "first", "second")
    bus = Breaking(publishing.bus, [])
    async with running(publishing.relay(bus, look=3600.0).run()):  # type: ignore[arg-type]
        await until(lambda: _published(publishing))
        async with publishing.engine.begin() as connection:
            await connection.execute(text('UPDATE relay_places SET "offset" = "offset" + 1000'))
        await publishing.note("a", "third")
        await until(lambda: _sent(bus, 12))
        await until(lambda: _published(publishing))
    sequences = [read_delivery(_as_read(record)).sequence for record in bus.sent]
    assert sequences == [1, 1, 2, 2, *[3, 3], *[1, 1, 2, 2, 3, 3]]


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
    told = answer.json()
    return answer.status_code == 503 and "relay" in told["reasons"] and expected.items() <= told.items()


async def _counted(relay: Relay, count: int) -> bool:
    """Whether the relay has counted so many records: its database shows them sent a moment earlier."""
    return relay.state.sent >= count


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
