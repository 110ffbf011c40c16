"""Writing to Kafka: aiokafka's idempotent producer, made so that it can always be thrown away.

Seen with 0.14: a broker that stops while a send is pending leaves the producer unable to send for ever (its sequence
number is lost), one that is killed leaves the send waiting for ever, and `stop()` hangs in both. Hence a time-out of
our own and an end by force; the caller builds a new one and goes on behind the last acknowledged record.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaConnectionError, OffsetOutOfRangeError  # type: ignore[import-untyped]

from shared.bus import BusAway, Delivery, Place, Record, SendStopped, tail_of
from shared.bus_kafka_clients import CLOSE_SECONDS, FAILED, begun, bounded, delivery_of, looked_at, said

CALM_SECONDS = 0.25
SETTLE_SECONDS = 0.5

T = TypeVar("T")


class RelayProducer(AIOKafkaProducer):  # type: ignore[misc]  # aiokafka is untyped
    """The only place that touches the producer's inside. `abort` also after a `start` that failed."""

    async def start(self) -> None:
        """As aiokafka's; afterwards a lost broker costs a pause instead of a whole processor."""
        await super().start()
        update = self.client._metadata_update  # noqa: SLF001  there is no setting for it

        async def calm(cluster: Any, topics: Any) -> Any:
            done = await update(cluster, topics)
            if not done:
                await asyncio.sleep(CALM_SECONDS)
            return done

        self.client._metadata_update = calm  # noqa: SLF001

    async def abort(self) -> None:
        """Let go of everything; what is pending fails. Returns within a few seconds, whatever the broker does."""
        if await bounded(self.stop(), CLOSE_SECONDS):
            return
        accumulator = self._message_accumulator
        queued = [batch for queue in accumulator._batches.values() for batch in queue]  # noqa: SLF001
        accumulator._pending_batches.update(queued)  # noqa: SLF001  one that was sent before is looked for there
        accumulator.fail_all(KafkaConnectionError("aborted"))
        for batch in queued:
            looked_at(batch._drain_waiter)  # noqa: SLF001
        await bounded(self._sender.close(), CLOSE_SECONDS)
        await bounded(self.client.close(), CLOSE_SECONDS)


class KafkaProducer:
    """See `shared.bus.Producer`. `options` are those that every client of this bus takes."""

    def __init__(self, options: Mapping[str, Any], patience: float) -> None:
        self._options = options
        self._patience = patience
        self._inner = RelayProducer(
            **options, acks="all", enable_idempotence=True, request_timeout_ms=round(patience * 1000)
        )

    async def start(self) -> None:
        """Connect. Raises `BusAway`, and has let go of everything then."""
        try:
            async with asyncio.timeout(self._patience):
                await begun(self._inner, self._options)
        except BaseException as error:
            await self._inner.abort()
            if isinstance(error, FAILED):
                raise BusAway(said(error)) from error
            raise

    async def send(self, records: Sequence[Record]) -> list[Place]:
        """See `shared.bus.Producer`. All are on their way before the first acknowledgement is awaited."""
        pending: list[asyncio.Future[Any]] = []
        try:
            async with asyncio.timeout(self._patience):
                for record in records:
                    pending.append(await self._begin(record))  # noqa: PERF401  the acknowledged ones outlive an error
                if pending:
                    done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                return [_place(future.result()) for future in pending]
        except FAILED as error:
            if pending:  # what is acknowledged after all need not be sent again
                await asyncio.wait(pending, timeout=SETTLE_SECONDS)
            acked = _acked(pending)
            raise SendStopped(f"{len(acked)} of {len(records)} acknowledged: {said(error)}", acked) from error

    async def id_at(self, place: Place) -> str | None:
        """See `shared.bus.Producer`."""
        try:
            return await self._reading(lambda reader: _read_id(reader, place))
        except OffsetOutOfRangeError:
            return None
        except FAILED as error:
            raise BusAway(said(error)) from error

    async def tail(self, topic: str, behind: Mapping[int, int], limit: int) -> list[Delivery]:
        """See `shared.bus.Producer`."""
        try:
            if topic not in await self._reading(lambda reader: reader.topics()):
                return []
            numbers = await self._inner.partitions_for(topic)
            partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
            return await self._reading(lambda reader: _read_tail(reader, partitions, behind, limit))
        except FAILED as error:
            raise BusAway(said(error)) from error

    async def _reading(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do something with a consumer of no group."""
        reader = AIOKafkaConsumer(
            **self._options, group_id=None, enable_auto_commit=False, auto_offset_reset="none", fetch_max_wait_ms=100
        )
        try:
            async with asyncio.timeout(self._patience):
                await begun(reader, self._options)
                return await work(reader)
        finally:
            await bounded(reader.stop(), CLOSE_SECONDS)

    async def close(self) -> None:
        """See `shared.bus.Producer`."""
        await self._inner.abort()

    async def _begin(self, record: Record) -> "asyncio.Future[Any]":
        headers = [(name, value.encode()) for name, value in record.headers]
        future: asyncio.Future[Any] = await self._inner.send(
            record.topic, value=record.body, key=record.key.encode(), headers=headers
        )
        future.add_done_callback(looked_at)
        return future


async def _read_id(reader: Any, place: Place) -> str | None:
    partition = TopicPartition(place.topic, place.number)
    if place.topic not in await reader.topics():
        return None
    reader.assign([partition])
    first = (await reader.beginning_offsets([partition]))[partition]
    end = (await reader.end_offsets([partition]))[partition]
    if not first <= place.offset < end:
        return None
    reader.seek(partition, place.offset)
    record = await reader.getone(partition)
    if record.offset != place.offset:
        return None
    ids = [value for name, value in record.headers if name == "ce_id"]
    return ids[0].decode(errors="backslashreplace") if ids else None


async def _read_tail(
    reader: Any, partitions: Sequence[TopicPartition], behind: Mapping[int, int], limit: int
) -> list[Delivery]:
    firsts = await reader.beginning_offsets(partitions)
    ends = await reader.end_offsets(partitions)
    spans = {one: tail_of(firsts[one], ends[one], behind.get(one.partition), limit) for one in partitions}
    found = []
    for turn in range(2):
        found += await _read_spans(reader, {one: each[turn] for one, each in spans.items() if len(each) > turn})
    return found


async def _read_spans(reader: Any, spans: Mapping[TopicPartition, tuple[int, int]]) -> list[Delivery]:
    """What stands at these offsets, the end left out; none of them is empty."""
    found: list[Delivery] = []
    left = set(spans)
    if left:
        reader.assign(left)
    for partition in left:
        reader.seek(partition, spans[partition][0])
    while left:
        for partition, records in (await reader.getmany(*left, timeout_ms=100)).items():
            found += [delivery_of(record) for record in records if record.offset < spans[partition][1]]
        left = {one for one in left if await reader.position(one) < spans[one][1]}
    return found


def _place(metadata: Any) -> Place:
    return Place(metadata.topic, metadata.partition, metadata.offset)


def _acked(pending: Sequence["asyncio.Future[Any]"]) -> list[Place]:
    acked = []
    for future in pending:
        if not future.done() or future.cancelled() or future.exception() is not None:
            break
        acked.append(_place(future.result()))
    return acked
