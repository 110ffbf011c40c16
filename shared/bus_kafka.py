"""The bus on Apache Kafka, by aiokafka: its groups. `shared.bus_kafka_producer` writes, `..._topics` makes topics.

What Kafka keeps of a group's offsets is a lag signal alone: the caller's own are the true ones, and every assignment
begins with a seek to them. There is no static membership: two members under one id throw each other out for ever.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import (  # type: ignore[import-untyped]
    AIOKafkaConsumer,
    ConsumerRebalanceListener,
    TopicPartition,
)
from aiokafka.errors import IllegalStateError, KafkaError  # type: ignore[import-untyped]

from shared.bus import Assigned, BusAway, Delivery, Partition, Revoked, Topic, TopicDrift
from shared.bus_holding import Holding
from shared.bus_kafka_clients import CLOSE_SECONDS, FAILED, begun, bounded, delivery_of, said
from shared.bus_kafka_producer import KafkaProducer
from shared.bus_kafka_topics import administrator, differences, make_topics, shortcomings
from shared.kafka_security import KafkaSecurity

REPORT_SECONDS = 2.0
METADATA_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class KafkaTimes:
    """In seconds. `patience` is what `on_revoked` gets; a member that does not fetch for `slowest` leaves the group."""

    send: float = 10.0
    heartbeat: float = 1.0
    session: float = 10.0
    patience: float = 10.0
    slowest: float = 600.0


class KafkaBus:
    """The adapter. `bootstrap` is `host:port[,host:port]`; without `security` nothing is encrypted or proved."""

    def __init__(
        self,
        bootstrap: str,
        *,
        client_id: str = "attache",
        times: KafkaTimes | None = None,
        security: KafkaSecurity | None = None,
    ) -> None:
        self._times = times or KafkaTimes()
        self._security = security or KafkaSecurity()
        self._plain_options = {
            "bootstrap_servers": bootstrap,
            "client_id": client_id,
            "metadata_max_age_ms": round(METADATA_SECONDS * 1000),
        }

    async def ensure_topics(self, topics: Sequence[Topic]) -> None:
        """See `shared.bus.Bus`. Nothing is altered: aiokafka's way would reset every setting that it is not told."""
        async with administrator(self._options(), self._times.send) as admin:
            await make_topics(admin, topics)
            different = await differences(admin, topics)
        if different:
            raise TopicDrift("; ".join(different))

    async def differences(self, topics: Sequence[Topic]) -> list[str]:
        """Each difference of these topics, those that lack included; nothing is made. Raises `BusAway`."""
        async with administrator(self._options(), self._times.send) as admin:
            return await shortcomings(admin, topics)

    async def producer(self) -> KafkaProducer:
        """See `shared.bus.Bus`."""
        producer = KafkaProducer(self._options(), self._times.send)
        await producer.start()
        return producer

    async def subscribe(
        self, group: str, topics: Sequence[str], *, on_assigned: Assigned, on_revoked: Revoked
    ) -> "KafkaSubscription":
        """See `shared.bus.Bus`. Does not wait for the assignment."""
        options = self._options()
        consumer = AIOKafkaConsumer(
            **options,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # what is out of range begins anew; the default would lose records
            heartbeat_interval_ms=round(self._times.heartbeat * 1000),
            session_timeout_ms=round(self._times.session * 1000),
            rebalance_timeout_ms=round((self._times.patience + self._times.session) * 1000),
            max_poll_interval_ms=round(self._times.slowest * 1000),
        )
        subscription = KafkaSubscription(consumer, Holding(on_assigned, on_revoked, self._times.patience))
        try:
            async with asyncio.timeout(self._times.send):
                await begun(consumer, options)
        except BaseException as error:
            await subscription.close()
            if isinstance(error, FAILED):
                raise BusAway(said(error)) from error
            raise
        # after the start: else that one waits for the assignment, for as long as the other members take
        consumer.subscribe(list(topics), listener=subscription.listener)
        return subscription

    async def close(self) -> None:
        """Nothing is held here."""

    def _options(self) -> dict[str, Any]:
        """What a new client is given. Raises `BusAway` for a certificate that has become unusable meanwhile."""
        try:
            return {**self._plain_options, **self._security.options()}
        except ValueError as error:
            raise BusAway(str(error)) from error


@dataclass(kw_only=True)
class _Read:
    """A fetch that is under way, and the assignment for which it was begun."""

    task: "asyncio.Task[Any]"
    generation: int


@dataclass
class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """What aiokafka's coordinator calls: it revokes everything before each rebalance, and assigns everything after."""

    holding: Holding
    generation: int = 0
    closing: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    seeks: dict[TopicPartition, int] = field(default_factory=dict)

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:  # noqa: ARG002  it may be an older set
        self.generation += 1
        self.settled.clear()
        self.seeks.clear()
        if not self.closing:
            await self.holding.lose(self.holding.everything())

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self.generation += 1
        self.holding.gain(Partition(*partition) for partition in assigned)
        self.settled.set()


class KafkaSubscription:
    """See `shared.bus.Subscription`.

    aiokafka may read from where the broker thinks we are before `on_assigned` has answered. So a seek is only noted
    and carried out when no read is under way, and what a read brought that was begun before it is dropped.
    """

    def __init__(self, consumer: Any, holding: Holding) -> None:
        self.listener = _Listener(holding)
        self._consumer = consumer
        self._holding = holding
        self._read: _Read | None = None

    async def fetch(self, limit: int, wait: float) -> Mapping[Partition, Sequence[Delivery]]:
        """See `shared.bus.Subscription`."""
        if not await self._settled(wait):
            return {}
        if self._read is None:
            self._read = self._begin(limit, wait)
        # one that meets a rebalance waits for its end, whatever its time-out: it is kept for the next call
        await asyncio.wait({self._read.task}, timeout=wait + 0.1)
        if not self._read.task.done():
            return {}
        read, self._read = self._read, None
        try:
            found = read.task.result()
        except KafkaError as error:
            raise BusAway(said(error)) from error
        if read.generation != self.listener.generation:
            return {}
        return {
            Partition(*partition): [delivery_of(record) for record in records]
            for partition, records in found.items()
            if partition not in self.listener.seeks and Partition(*partition) in self._holding.held()
        }

    def assigned(self) -> frozenset[Partition]:
        """See `shared.bus.Subscription`."""
        return self._holding.held()

    async def ends(self) -> Mapping[Partition, int]:
        """See `shared.bus.Subscription`."""
        held = [TopicPartition(*partition) for partition in self._holding.held()]
        try:
            async with asyncio.timeout(REPORT_SECONDS):
                ends = await self._consumer.end_offsets(held)
        except FAILED as error:
            raise BusAway(said(error)) from error
        return {Partition(*partition): end for partition, end in ends.items()}

    def seek(self, partition: Partition, offset: int) -> None:
        """See `shared.bus.Subscription`. A partition that has gone is left alone."""
        if partition in self._holding.held():
            self.listener.seeks[TopicPartition(*partition)] = offset

    async def report(self, partition: Partition, next_offset: int) -> None:
        """See `shared.bus.Subscription`. One partition at a time: a revoked one would have the whole map refused."""
        with contextlib.suppress(*FAILED, IllegalStateError):
            async with asyncio.timeout(REPORT_SECONDS):
                await self._consumer.commit({TopicPartition(*partition): next_offset})

    async def close(self) -> None:
        """See `shared.bus.Subscription`."""
        self.listener.closing = True
        if self._read is not None:
            self._read.task.cancel()
            await asyncio.wait({self._read.task}, timeout=CLOSE_SECONDS)
            _ = self._read.task.done() and not self._read.task.cancelled() and self._read.task.exception()
        if not await bounded(self._consumer.stop(), CLOSE_SECONDS):
            # the group's part hangs without a broker; what is left holds sockets and tasks
            if self._consumer._fetcher is not None:  # noqa: SLF001  a second stop() closes nothing
                await bounded(self._consumer._fetcher.close(), CLOSE_SECONDS)  # noqa: SLF001
            await bounded(self._consumer._client.close(), CLOSE_SECONDS)  # noqa: SLF001

    async def _settled(self, wait: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self.listener.settled.wait()
        starts = await self._holding.settle()
        self.listener.seeks.update({TopicPartition(*partition): offset for partition, offset in starts.items()})
        return self.listener.settled.is_set()

    def _begin(self, limit: int, wait: float) -> _Read:
        seeks, held = dict(self.listener.seeks), self._holding.held()
        self.listener.seeks.clear()
        for partition, offset in seeks.items():
            if Partition(*partition) in held:
                with contextlib.suppress(IllegalStateError):
                    self._consumer.seek(partition, offset)
        reading = self._consumer.getmany(timeout_ms=round(wait * 1000), max_records=limit)
        return _Read(task=asyncio.ensure_future(reading), generation=self.listener.generation)
