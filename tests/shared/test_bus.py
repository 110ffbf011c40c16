"""What both adapters of the bus promise. Every promise of `shared.bus` has its test here, and runs on both."""

import asyncio
import contextlib
import dataclasses
import gc
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from aiokafka.structs import RecordMetadata  # type: ignore[import-untyped]
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from deploy.kafka_node import KafkaNode
from shared.bus import Bus, BusAway, Delivery, Partition, Place, Producer, Record, SendStopped, Topic, TopicDrift
from shared.bus_kafka import KafkaBus, KafkaTimes
from shared.bus_kafka_producer import _acked
from shared.bus_local import LocalBus
from shared.bus_local_member import LocalTimes
from tests.kafka_fixture import PATIENCE

MIGRATIONS = "shared/bus_migrations"
LOCAL = LocalTimes(poll=0.05, heartbeat=0.1, expiry=1.0, patience=30.0, send=60.0)
KAFKA = KafkaTimes(heartbeat=0.2, session=30.0, patience=30.0, send=60.0)
BREAKING = KafkaTimes(heartbeat=0.2, session=6.0, patience=3.0, send=2.0)
"""Where the broker is stopped: what is sent then is soon given up."""
T = TypeVar("T")
SendRaw = Callable[[str, bytes | None, bytes | None], Awaitable[None]]


@dataclass(kw_only=True)
class Ground:
    """One adapter to be tried. `fresh` answers another object of it, as another process has one."""

    fresh: Callable[[], Bus]
    send_raw: SendRaw
    topic: Topic = field(default_factory=lambda: Topic(name=f"test.{uuid4().hex}", partitions=4))
    group: str = field(default_factory=lambda: f"readers-{uuid4().hex}")

    @property
    def name(self) -> str:
        return self.topic.name

    @property
    def partitions(self) -> frozenset[Partition]:
        return frozenset(Partition(self.name, number) for number in range(self.topic.partitions))

    def record(self, key: str, body: object) -> Record:
        return Record(topic=self.name, key=key, headers=(("ce_id", f"{key}-{body}"),), body=str(body).encode())


class Fenced(Exception):
    """The offset was moved by another member."""


@dataclass
class Store:
    """A consumer's database: offsets that are moved conditionally, and what was applied together with them."""

    offsets: dict[Partition, int] = field(default_factory=dict)
    applied: list[tuple[str, int]] = field(default_factory=list)

    def apply(self, delivery: Delivery) -> None:
        partition = Partition(delivery.topic, delivery.number)
        if self.offsets.get(partition, 0) != delivery.offset:
            raise Fenced(f"{partition} is at {self.offsets.get(partition, 0)}, not {delivery.offset}")
        self.offsets[partition] = delivery.offset + 1
        assert delivery.key is not None
        assert delivery.body is not None
        self.applied.append((delivery.key.decode(), int(delivery.body)))

    def of_key(self, key: str) -> list[int]:
        return [number for one, number in self.applied if one == key]


class Member:
    """A consumer as the services have one: one task, offsets in a store, an end brought about before it gives up."""

    def __init__(self, bus: Bus, ground: Ground, store: Store, *, slow: float = 0.0) -> None:
        self._bus = bus
        self._ground = ground
        self._store = store
        self._slow = slow
        self._busy = asyncio.Lock()
        self._begun = asyncio.Event()
        self.owned: set[Partition] = set()
        self.owners: list[tuple[float, str, Partition]] = []
        self.fenced = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Member":
        self._task = asyncio.create_task(self._run())
        await asyncio.wait(
            {self._task, begun := asyncio.create_task(self._begun.wait())}, return_when="FIRST_COMPLETED"
        )
        begun.cancel()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        subscription = await self._bus.subscribe(
            self._ground.group, [self._ground.name], on_assigned=self._assigned, on_revoked=self._revoked
        )
        self._begun.set()
        try:
            while True:
                for deliveries in (await subscription.fetch(20, 0.2)).values():
                    await self._batch(deliveries)
        finally:
            await subscription.close()
            self.owners += [(time.monotonic(), "left", partition) for partition in self.owned]

    async def _batch(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            async with self._busy:
                if Partition(delivery.topic, delivery.number) not in self.owned:
                    return
                await asyncio.sleep(self._slow)
                try:
                    self._store.apply(delivery)
                except Fenced:
                    self.fenced += 1
                    return

    async def _assigned(self, partitions: frozenset[Partition]) -> Mapping[Partition, int]:
        self.owned |= partitions
        self.owners += [(time.monotonic(), "got", partition) for partition in partitions]
        return {partition: self._store.offsets.get(partition, 0) for partition in partitions}

    async def _revoked(self, partitions: frozenset[Partition]) -> None:
        async with self._busy:
            self.owned -= partitions
            self.owners += [(time.monotonic(), "left", partition) for partition in partitions]


@pytest.fixture(params=["local", "kafka"])
def kafka(request: pytest.FixtureRequest) -> str | None:
    """The broker's address, None for the local bus."""
    address: str | None = request.getfixturevalue("kafka_address") if request.param == "kafka" else None
    return address


@pytest.fixture
async def local_engine(make_database: Callable[..., Awaitable[str]]) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(await make_database(MIGRATIONS))
    yield engine
    await engine.dispose()


@pytest.fixture
async def make_ground(kafka: str | None, local_engine: AsyncEngine) -> Callable[..., Awaitable[Ground]]:
    """`await make_ground(patience=3.0)`: one with its topic; so many seconds `on_revoked` gets."""

    async def make(patience: float = 30.0) -> Ground:
        made = _kafka_ground(kafka, patience) if kafka else _local_ground(local_engine, patience)
        await made.fresh().ensure_topics([made.topic])
        return made

    return make


@pytest.fixture
async def ground(make_ground: Callable[..., Awaitable[Ground]]) -> Ground:
    return await make_ground()


@pytest.fixture
async def bus(ground: Ground) -> AsyncIterator[Bus]:
    one = ground.fresh()
    yield one
    await one.close()


@pytest.fixture
async def producer(bus: Bus) -> AsyncIterator[Producer]:
    one = await bus.producer()
    yield one
    await one.close()


async def test_a_record_is_read_as_it_was_sent(ground: Ground, bus: Bus, producer: Producer) -> None:
    sent = Record(
        topic=ground.name,
        key="trip-7",
        headers=(("ce_id", "a1"), ("ce_type", "schedule.meeting-confirmed"), ("content-type", "application/json")),
        body=b'{"title": "Gespr\xc3\xa4ch"}',
    )
    [place] = await producer.send([sent])
    [read] = await _read(bus, ground, 1)
    assert read == Delivery(
        topic=place.topic,
        number=place.number,
        offset=0,
        key=b"trip-7",
        headers=(
            ("ce_id", b"a1"),
            ("ce_type", b"schedule.meeting-confirmed"),
            ("content-type", b"application/json"),
        ),
        body=b'{"title": "Gespr\xc3\xa4ch"}',
    )


async def test_records_of_one_key_stand_on_one_partition_in_order(ground: Ground, bus: Bus, producer: Producer) -> None:
    records = [ground.record(f"trip-{number % 7}", number) for number in range(210)]
    places = [*await producer.send(records[:150]), *await producer.send(records[150:])]
    read = {(one.number, one.offset): one for one in await _read(bus, ground, 210)}
    assert [read[place.number, place.offset].body for place in places] == [record.body for record in records]
    for key in range(7):
        mine = places[key::7]
        assert len({place.number for place in mine}) == 1
        assert mine == sorted(mine)


async def test_no_records_are_sent_without_a_word(producer: Producer) -> None:
    assert await producer.send([]) == []


async def test_what_cannot_be_decoded_passes_through(ground: Ground, bus: Bus) -> None:
    strange = [(None, b"\xff\xfe"), (b"\xc3", None), (b"trip-1", b"")]
    for key, body in strange:
        await ground.send_raw(ground.name, key, body)
    read = await _read(bus, ground, 3)
    assert sorted(((one.key, one.body) for one in read), key=repr) == sorted(strange, key=repr)


async def test_a_topic_that_is_not_there_stops_the_send(ground: Ground, bus: Bus, producer: Producer) -> None:
    lost = Record(topic="nobody.made.this", key="trip-1", headers=(), body=b"2")
    producer._patience = 2.0  # type: ignore[attr-defined]  # so long it is looked for
    with pytest.raises(SendStopped) as stopped:
        await producer.send([ground.record("trip-1", 0), ground.record("trip-1", 1), lost, ground.record("trip-1", 3)])
    acked = stopped.value.acked
    read = await _read(bus, ground, len(acked))
    assert [place.offset for place in acked] == list(range(len(acked)))
    # what came without a word of it being acknowledged in time is there too
    assert [one.body for one in read] == [b"0", b"1"][: len(read)]
    assert len(acked) <= len(read)


async def test_what_kafka_acknowledged_behind_a_gap_counts_as_not_sent() -> None:
    futures = [asyncio.get_running_loop().create_future() for _ in range(4)]
    for number in (0, 1, 3):
        futures[number].set_result(RecordMetadata("t", 5, TopicPartition("t", 5), 70 + number, -1, 0, 0))
    futures[2].set_exception(KafkaError())
    assert _acked(futures) == [Place("t", 5, 70), Place("t", 5, 71)]


async def test_id_at_answers_the_id_of_that_one_record(ground: Ground, producer: Producer) -> None:
    places = await producer.send([ground.record("trip-1", number) for number in range(5)])
    last = places[-1]
    assert [await producer.id_at(place) for place in places] == [f"trip-1-{number}" for number in range(5)]
    assert await producer.id_at(last._replace(offset=last.offset + 1)) is None
    assert await producer.id_at(last._replace(offset=last.offset + 1000)) is None
    assert await producer.id_at(Place("nobody.made.this", 0, 0)) is None
    await ground.send_raw(ground.name, b"trip-1", b"no id")
    assert await producer.id_at(last._replace(offset=last.offset + 1)) is None


async def test_the_tail_is_what_stands_behind_the_offsets_and_the_last_of_it(
    ground: Ground, producer: Producer
) -> None:
    places = [*(await producer.send([ground.record("trip-1", number) for number in range(5)]))]
    others = await producer.send([ground.record(f"trip-{number}", "x") for number in range(20, 30)])
    of = places[0].number
    there = [place for place in others if place.number == of]

    async def tail(behind: Mapping[int, int], limit: int, topic: str = ground.name) -> list[tuple[int, int]]:
        return sorted((one.number, one.offset) for one in await producer.tail(topic, behind, limit))

    everything = sorted((place.number, place.offset) for place in (*places, *others))
    assert await tail({}, 100) == everything
    assert await tail({of: places[2].offset}, 100) == [one for one in everything if one[0] != of or one[1] > 2]
    last = dict(everything)  # the last of each partition
    assert await tail({}, 1) == sorted(last.items())
    behind_first = [one for one in everything if one[0] == of and one[1] > places[0].offset]
    assert len(behind_first) >= 4
    named = await tail({of: places[0].offset}, 1)  # what is between the first and the last is passed over
    assert [one for one in named if one[0] == of] == [behind_first[0], behind_first[-1]]
    assert await tail(last, 100) == await tail(dict.fromkeys(range(4), 1000), 100) == []
    assert await tail({}, 100, "nobody.made.this") == []
    [*_, newest] = [one for one in await producer.tail(ground.name, {}, 100) if one.number == of]
    assert (newest.key, dict(newest.headers)["ce_id"]) == (
        (b"trip-1", b"trip-1-4") if not there else (newest.key, (newest.key or b"") + b"-x")
    )


async def test_topics_are_made_once_and_a_difference_is_refused(ground: Ground, bus: Bus, producer: Producer) -> None:
    await producer.send([ground.record("trip-1", 1)])
    other = Topic(name=f"{ground.name}.other", partitions=2)
    await asyncio.gather(*(ground.fresh().ensure_topics([ground.topic, other]) for _ in range(3)))
    with pytest.raises(TopicDrift) as drift:
        await bus.ensure_topics([Topic(name=ground.name, partitions=5), other, Topic(name=other.name, partitions=3)])
    assert str(drift.value).split("; ") == [
        f"{ground.name}: partitions is 4, not 5",
        f"{other.name}: partitions is 2, not 3",
    ]
    assert [one.body for one in await _read(bus, ground, 1)] == [b"1"]


async def test_kafka_tells_each_difference_of_a_topic(kafka: str | None, ground: Ground, bus: Bus) -> None:
    if kafka is None:
        pytest.skip("the local bus keeps everything and has no replicas")
    wanted = Topic(
        name=ground.name, partitions=4, replication=2, min_isr=2, retention_ms=86_400_000, retention_bytes=1 << 30
    )
    with pytest.raises(TopicDrift) as drift:
        await bus.ensure_topics([wanted])
    assert str(drift.value).split("; ") == [
        f"{ground.name}: replication is 1, not 2",
        f"{ground.name}: min.insync.replicas is 1, not 2",
        f"{ground.name}: retention.ms is -1, not 86400000",
        f"{ground.name}: retention.bytes is -1, not 1073741824",
    ]


async def test_another_process_and_another_group_see_every_record(ground: Ground, bus: Bus, producer: Producer) -> None:
    await producer.send([ground.record(f"trip-{number % 3}", number) for number in range(30)])
    first = await _read(bus, ground, 30)
    second = await _read(ground.fresh(), dataclasses.replace(ground, group=f"others-{uuid4().hex}"), 30)
    assert sorted(first, key=repr) == sorted(second, key=repr)


async def test_a_fetch_keeps_to_its_limit_and_its_time(ground: Ground, bus: Bus, producer: Producer) -> None:
    await producer.send([ground.record(f"trip-{number}", number) for number in range(40)])
    async with _subscribed(bus, ground) as fetch:
        counts: list[int] = []
        async with asyncio.timeout(120):
            while sum(counts) < 40:
                counts.append(await fetch(7))
            assert max(counts) == 7
            took = float("inf")
            while took >= 0.8:  # a machine that stood still is given another chance
                begun = time.monotonic()
                assert await fetch(7) == 0
                took = time.monotonic() - begun


async def test_reading_goes_on_from_a_seek_back(ground: Ground, bus: Bus, producer: Producer) -> None:
    places = await producer.send([ground.record("trip-1", number) for number in range(10)])
    partition = Partition(ground.name, places[0].number)
    subscription = await bus.subscribe(ground.group, [ground.name], on_assigned=_from_start, on_revoked=_let_go)
    read: list[int] = []
    try:
        async with asyncio.timeout(120):
            while len(read) < 10:
                read += [one.offset for one in (await subscription.fetch(50, 0.2)).get(partition, ())]
            assert dict(await subscription.ends()) == {one: 10 * (one == partition) for one in ground.partitions}
            subscription.seek(partition, 6)
            while len(read) < 14:
                read += [one.offset for one in (await subscription.fetch(50, 0.2)).get(partition, ())]
            await producer.send([ground.record("trip-1", 10)])
            await subscription.report(partition, 10)
            subscription.seek(partition, 5000)  # as after the loss of the whole topic
            while len(read) < 25:
                read += [one.offset for one in (await subscription.fetch(50, 0.2)).get(partition, ())]
    finally:
        await subscription.close()
    assert read == [*range(10), *range(6, 10), *range(11)]


async def test_an_assignment_is_read_from_where_on_assigned_says(ground: Ground, bus: Bus, producer: Producer) -> None:
    places = await producer.send([ground.record(f"trip-{number % 9}", number) for number in range(90)])
    ends = {one: sum(place.number == one.number for place in places) for one in ground.partitions}
    starts = {one: 1000 if one.number == 0 else ends[one] // 2 for one in ground.partitions}

    async def assigned(partitions: frozenset[Partition]) -> Mapping[Partition, int]:
        await asyncio.sleep(0.3)  # the broker's own idea of the offset must not be read meanwhile
        return {one: starts[one] for one in partitions}

    expected = {one: list(range(0 if one.number == 0 else starts[one], ends[one])) for one in ground.partitions}
    for _ in range(2):  # the second time the broker has other offsets for the group
        read = await _read(bus, ground, sum(map(len, expected.values())), on_assigned=assigned, report=True)
        found = defaultdict(list)
        for one in read:
            found[Partition(one.topic, one.number)].append(one.offset)
        assert found == {one: offsets for one, offsets in expected.items() if offsets}


async def test_an_assignment_that_fails_is_asked_about_again(ground: Ground, bus: Bus, producer: Producer) -> None:
    await producer.send([ground.record("trip-1", number) for number in range(3)])
    asked: list[frozenset[Partition]] = []

    async def assigned(partitions: frozenset[Partition]) -> Mapping[Partition, int]:
        asked.append(partitions)
        if len(asked) < 3:
            raise RuntimeError("the database is away")
        return {}

    subscription = await bus.subscribe(ground.group, [ground.name], on_assigned=assigned, on_revoked=_let_go)
    read: list[bytes | None] = []
    try:
        async with asyncio.timeout(120):
            while len(read) < 3:
                try:
                    fetched = await subscription.fetch(50, 0.2)
                except RuntimeError:
                    assert (subscription.assigned(), read) == (frozenset(), [])
                    continue
                read += [one.body for deliveries in fetched.values() for one in deliveries]
    finally:
        await subscription.close()
    assert (asked, read) == ([ground.partitions] * 3, [b"0", b"1", b"2"])


async def test_a_group_shares_the_partitions(ground: Ground) -> None:
    store = Store()
    async with Member(ground.fresh(), ground, store) as first:
        await _until(lambda: first.owned == ground.partitions)
        async with Member(ground.fresh(), ground, store) as second:
            await _until(lambda: len(first.owned) == len(second.owned) == 2 and not first.owned & second.owned)
        await _until(lambda: first.owned == ground.partitions)


async def test_members_come_and_go_while_handlers_are_slow(ground: Ground, producer: Producer) -> None:
    keys = [f"trip-{number}" for number in range(12)]
    store = Store()
    stop = asyncio.Event()

    async def send() -> int:
        count = 0
        while not stop.is_set():
            await producer.send([ground.record(key, count) for key in keys])
            count += 1
            await asyncio.sleep(0.1)
        return count

    members = [Member(ground.fresh(), ground, store, slow=0.01) for _ in range(4)]
    sending = asyncio.create_task(send())
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(members[0])
        async with contextlib.AsyncExitStack() as others:
            for member in members[1:]:
                await others.enter_async_context(member)
            await _until(lambda: all(len(member.owned) == 1 for member in members))
            before = len(store.applied)
            await _until(lambda: len(store.applied) > before + 50)
        await _until(lambda: members[0].owned == ground.partitions)
        stop.set()
        count = await sending
        await _until(lambda: len(store.applied) >= count * len(keys))
    assert {key: store.of_key(key) for key in keys} == {key: list(range(count)) for key in keys}
    assert [member.fenced for member in members] == [0, 0, 0, 0]
    assert _overlaps(members) == []


async def test_a_handler_that_does_not_end_is_not_waited_for(make_ground: Callable[..., Awaitable[Ground]]) -> None:
    ground, store = await make_ground(patience=3.0), Store()
    producer = await ground.fresh().producer()
    await producer.send([ground.record(f"trip-{number}", 0) for number in range(12)])
    async with Member(ground.fresh(), ground, store, slow=3600.0) as stuck:
        await _until(lambda: stuck.owned == ground.partitions)
        async with Member(ground.fresh(), ground, store) as quick:
            await _until(lambda: len(quick.owned) == 2)
            await _until(lambda: all(store.offsets.get(one, 0) for one in quick.owned))
    await producer.close()
    assert len(store.applied) == len(set(store.applied))


async def test_what_is_seen_of_a_partition_grows_without_a_gap(ground: Ground, bus: Bus) -> None:
    store = Store()  # applies an offset only when it is the next one

    async def send(keys: Sequence[str]) -> None:
        one = await ground.fresh().producer()
        for number in range(40):
            batch = [ground.record(key, number) for key in keys]
            await one.send(batch if number % 2 else batch[::-1])
        await one.close()

    keys = [f"trip-{number}" for number in range(24)]
    async with Member(bus, ground, store) as member:
        await asyncio.gather(*(send(keys[first::8]) for first in range(8)))
        await _until(lambda: len(store.applied) >= 24 * 40)
    assert {key: store.of_key(key) for key in keys} == {key: list(range(40)) for key in keys}
    assert member.fenced == 0


async def test_a_send_in_the_same_process_wakes_a_reader_of_the_local_bus(local_engine: AsyncEngine) -> None:
    ground = _local_ground(local_engine)
    await ground.fresh().ensure_topics([ground.topic])
    reader = LocalBus(local_engine, times=LocalTimes(poll=3600.0))
    subscription = await reader.subscribe(ground.group, [ground.name], on_assigned=_from_start, on_revoked=_let_go)
    fetching = asyncio.create_task(subscription.fetch(50, 3600.0))
    await _until(lambda: subscription.assigned() == ground.partitions)
    await (await ground.fresh().producer()).send([ground.record("trip-1", 1)])
    fetched = await asyncio.wait_for(fetching, 50)
    await subscription.close()
    assert [[one.body for one in deliveries] for deliveries in fetched.values()] == [[b"1"]]


async def test_what_a_dead_member_of_the_local_bus_owned_is_taken_over(local_engine: AsyncEngine) -> None:
    times = LocalTimes(heartbeat=0.1, expiry=3600.0)
    ground, store = _local_ground(local_engine), Store()
    await ground.fresh().ensure_topics([ground.topic])
    dead = await LocalBus(local_engine, times=times).subscribe(
        ground.group, [ground.name], on_assigned=_from_start, on_revoked=_let_go
    )
    await dead.fetch(1, 0.0)
    assert dead.assigned() == ground.partitions
    async with Member(LocalBus(local_engine, times=times), ground, store) as heir:
        await _until(lambda: len(heir.owned) == 2)
        assert dead._keeper is not None
        dead._keeper.cancel()
        dead._cut()  # as when its process was killed: it says nothing, its connection is gone
        await _until(lambda: heir.owned == ground.partitions)
    await dead.close()


async def test_connections_of_the_local_bus_are_cut_and_nothing_is_lost(local_engine: AsyncEngine) -> None:
    ground = _local_ground(local_engine)
    await ground.fresh().ensure_topics([ground.topic])

    async def cut() -> None:
        for _ in range(8):
            await asyncio.sleep(0.2)
            await _execute(
                local_engine,
                # our own alone: an autovacuum worker may be here, and who is no superuser may not end it
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()",
            )

    replaced = await _send_and_read_while(ground, cut)
    assert replaced > 0


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_kafka_goes_and_comes_back_and_nothing_is_lost(breakable_kafka: KafkaNode, how: str) -> None:
    node = breakable_kafka
    ground = _kafka_ground(node.address, times=BREAKING)
    await _kafka_ground(node.address).fresh().ensure_topics([ground.topic])

    async def interrupt() -> None:
        aside = await _begun(ground.fresh().producer)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(node.kill if how == "kill" else node.stop)
        with pytest.raises(SendStopped):
            await aside.send([ground.record("aside", 0)])
        await asyncio.wait_for(aside.close(), 60)  # while nobody answers
        node.start()  # from this thread: the JVM ends with the thread that started it
        await asyncio.to_thread(node.wait_ready, PATIENCE)

    replaced = await _send_and_read_while(ground, interrupt)
    assert replaced > 0


async def test_a_kafka_that_lost_everything_is_read_from_the_beginning(
    breakable_kafka: KafkaNode,
) -> None:
    node = breakable_kafka
    ground = _kafka_ground(node.address)
    bus = ground.fresh()
    await bus.ensure_topics([ground.topic])
    producer = await bus.producer()
    subscription = await bus.subscribe(ground.group, [ground.name], on_assigned=_from_start, on_revoked=_let_go)
    try:
        await producer.send([ground.record("trip-1", number) for number in range(5)])
        read: list[bytes | None] = []
        await _fetch_until(subscription.fetch, read, 5)
        await asyncio.to_thread(node.kill)
        shutil.rmtree(node.folder)
        node.start()
        await asyncio.to_thread(node.wait_ready, PATIENCE)
        assert await _fetched(subscription.fetch) == []  # it does not raise for the topic that is not there
        await producer.close()
        await bus.ensure_topics([ground.topic])
        producer = await bus.producer()
        await producer.send([ground.record("trip-1", f"again {number}") for number in range(3)])
        await _fetch_until(subscription.fetch, read, 8)
    finally:
        await subscription.close()
        await producer.close()
    assert read == [b"0", b"1", b"2", b"3", b"4", b"again 0", b"again 1", b"again 2"]


async def test_a_broker_that_is_away_is_said_to_be_away(kafka: str | None, local_engine: AsyncEngine) -> None:
    away = "127.0.0.1:1"
    engine = create_async_engine(local_engine.url.set(host="127.0.0.1", port=1), poolclass=NullPool)
    never = 3600.0
    bus: Bus = KafkaBus(away, times=KafkaTimes(send=never)) if kafka else LocalBus(engine, times=LocalTimes(send=never))
    async with asyncio.timeout(120):  # it is not waited for
        with pytest.raises(BusAway):
            await bus.ensure_topics([Topic(name="x")])
        with pytest.raises(BusAway):
            await bus.producer()
        with pytest.raises(BusAway):
            await bus.subscribe("nobody", ["x"], on_assigned=_from_start, on_revoked=_let_go)


async def test_a_start_that_is_cancelled_leaves_no_connection_open(kafka_address: str) -> None:
    bus, group = KafkaBus(kafka_address, times=KAFKA), f"readers-{uuid4().hex}"
    for milliseconds in range(0, 40, 2):
        for begin in (
            bus.producer(),
            bus.subscribe(group, ["none"], on_assigned=_from_start, on_revoked=_let_go),
            bus.ensure_topics([]),
        ):
            work: asyncio.Task[Any] = asyncio.ensure_future(begin)
            await asyncio.wait({work}, timeout=milliseconds / 1000)
            work.cancel()
            await asyncio.wait({work})
            if not work.cancelled() and work.result() is not None:
                await work.result().close()
    gc.collect()  # an open one complains where it is collected, and a complaint fails the test


def _kafka_ground(address: str, patience: float | None = None, times: KafkaTimes = KAFKA) -> Ground:
    if patience is not None:
        times = dataclasses.replace(times, patience=patience)

    async def send_raw(topic: str, key: bytes | None, body: bytes | None) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=address)
        await producer.start()
        await producer.send_and_wait(topic, body, key)
        await producer.stop()

    return Ground(fresh=lambda: KafkaBus(address, times=times), send_raw=send_raw)


def _local_ground(engine: AsyncEngine, patience: float = LOCAL.patience) -> Ground:
    times = dataclasses.replace(LOCAL, patience=patience)

    async def send_raw(topic: str, key: bytes | None, body: bytes | None) -> None:
        await _execute(
            engine,
            "WITH moved AS (UPDATE heads SET next_offset = next_offset + 1 WHERE topic = $1 AND number = "
            "(SELECT coalesce(max(number), 0) FROM records WHERE topic = $1) RETURNING number, next_offset - 1) "
            "INSERT INTO records SELECT $1, moved.*, $2, '[]', $3 FROM moved",
            topic,
            key,
            body,
        )

    return Ground(fresh=lambda: LocalBus(engine, times=times), send_raw=send_raw)


async def _execute(engine: AsyncEngine, statement: str, *values: object) -> None:
    connection = await asyncpg.connect(engine.url.set(drivername="postgresql").render_as_string(hide_password=False))
    await connection.execute(statement, *values)
    await connection.close()


async def _until(reached: Callable[[], bool], seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not reached():
            await asyncio.sleep(0.02)


async def _from_start(partitions: frozenset[Partition]) -> Mapping[Partition, int]:
    return dict.fromkeys(partitions, 0)


async def _let_go(partitions: frozenset[Partition]) -> None:
    pass


@contextlib.asynccontextmanager
async def _subscribed(bus: Bus, ground: Ground) -> AsyncIterator[Callable[[int], Awaitable[int]]]:
    subscription = await bus.subscribe(ground.group, [ground.name], on_assigned=_from_start, on_revoked=_let_go)

    async def fetch(limit: int) -> int:
        return sum(map(len, (await subscription.fetch(limit, 0.3)).values()))

    yield fetch
    await subscription.close()


async def _read(
    bus: Bus,
    ground: Ground,
    count: int,
    *,
    on_assigned: Callable[[frozenset[Partition]], Awaitable[Mapping[Partition, int]]] = _from_start,
    report: bool = False,
) -> list[Delivery]:
    """The first `count` records, and whatever comes within a moment after them."""
    read: list[Delivery] = []
    subscription = await bus.subscribe(ground.group, [ground.name], on_assigned=on_assigned, on_revoked=_let_go)
    try:
        async with asyncio.timeout(120):
            while len(read) < count:
                read += await _fetched(subscription.fetch)
            read += await _fetched(subscription.fetch)
        if report:
            for partition in ground.partitions:
                await subscription.report(partition, 1)
    finally:
        await subscription.close()
    return read


Fetch = Callable[[int, float], Awaitable[Mapping[Partition, Sequence[Delivery]]]]


async def _fetched(fetch: Fetch) -> list[Delivery]:
    return [one for deliveries in (await fetch(50, 0.2)).values() for one in deliveries]


async def _fetch_until(fetch: Fetch, read: list[bytes | None], count: int) -> None:
    async with asyncio.timeout(120):
        while len(read) < count:
            read += [one.body for one in await _fetched(fetch)]


async def _begun(begin: Callable[[], Awaitable[T]]) -> T:
    """A client that is soon given up may take several starts."""
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(BusAway):
                return await begin()


async def _send_and_read_while(ground: Ground, trouble: Callable[[], Awaitable[None]]) -> int:
    """Send as the relay does and read as a consumer does, until all has come; answers how many producers were replaced.

    What is read may hold repetitions, as each batch that was not acknowledged is sent again, but never a jump.
    """
    keys = [f"trip-{number}" for number in range(6)]
    marks = dict.fromkeys(keys, -1)
    jumps: list[tuple[str, int, int]] = []
    sent = asyncio.Event()

    async def once_something_was_sent() -> None:
        await sent.wait()
        await trouble()

    troubled = asyncio.create_task(once_something_was_sent())
    sending = asyncio.create_task(_relay(ground, keys, sent, troubled))
    bus = ground.fresh()
    subscription = await _begun(
        lambda: bus.subscribe(ground.group, [ground.name], on_assigned=_from_start, on_revoked=_let_go)
    )
    try:
        async with asyncio.timeout(300):
            while not sending.done() or min(marks.values()) < sending.result()[0]:
                for one in await _fetched(subscription.fetch):
                    key, number = (one.key or b"").decode(), int(one.body or b"")
                    if key not in marks:
                        continue
                    if number > marks[key] + 1:
                        jumps.append((key, marks[key], number))
                    marks[key] = max(marks[key], number)
    finally:
        sending.cancel()
        await subscription.close()
    await troubled
    last, replaced = sending.result()
    assert (marks, jumps) == (dict.fromkeys(keys, last), [])
    return replaced


async def _relay(
    ground: Ground, keys: Sequence[str], sent: asyncio.Event, troubled: "asyncio.Future[None]"
) -> tuple[int, int]:
    bus, producer = ground.fresh(), None
    position = replaced = after = 0
    while after < 20:
        after += troubled.done()
        batch = [ground.record(key, number) for number in range(position, position + 5) for key in keys]
        while batch:
            try:
                producer = producer or await bus.producer()
                batch = batch[len(await producer.send(batch)) :]
            except BusAway as away:
                batch = batch[len(away.acked) :] if isinstance(away, SendStopped) else batch
                if producer is not None:
                    await producer.close()
                    producer, replaced = None, replaced + 1
                await asyncio.sleep(0.1)
        position += 5
        sent.set()
        await asyncio.sleep(0.01)
    if producer is not None:
        await producer.close()
    return position - 1, replaced


def _overlaps(members: Sequence[Member]) -> list[Partition]:
    """The partitions that had two owners at once."""
    owners: dict[Partition, int] = defaultdict(int)
    found = []
    for _, what, partition in sorted((event for member in members for event in member.owners), key=lambda one: one[0]):
        owners[partition] += 1 if what == "got" else -1
        if owners[partition] > 1:
            found.append(partition)
    return found
