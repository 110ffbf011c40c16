"""Writing to Kafka: aiokafka's idempotent producer, made so that it can always be thrown away.

Seen with 0.14: a broker that stops while a send is pending leaves the producer unable to send for ever (its sequence
number is lost), one that is killed leaves the send waiting for ever, and `stop()` hangs in both. Hence a time-out of
our own and an end by force; the caller builds a new one and goes on behind the last acknowledged record.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaConnectionError, KafkaError, OffsetOutOfRangeError  # type: ignore[import-untyped]

from shared.bus import BusAway, Place, Record, SendStopped

CLOSE_SECONDS = 2.0
CALM_SECONDS = 0.25
SETTLE_SECONDS = 0.5
QUIET_SECONDS = 10.0

FAILED = (KafkaError, OSError)
"""What a client raises when the broker is not there; a time-out is an OSError."""


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
            _look(batch._drain_waiter)  # noqa: SLF001
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
                await self._inner.start()
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
        reader = AIOKafkaConsumer(
            **self._options, group_id=None, enable_auto_commit=False, auto_offset_reset="none", fetch_max_wait_ms=100
        )
        try:
            async with asyncio.timeout(self._patience):
                await reader.start()
                return await _read_id(reader, place)
        except OffsetOutOfRangeError:
            return None
        except FAILED as error:
            raise BusAway(said(error)) from error
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
        future.add_done_callback(_look)
        return future


class Quiet(logging.Filter):
    """Lets one line of a kind through every so many seconds: without a broker aiokafka writes a hundred a second."""

    def __init__(self, seconds: float = QUIET_SECONDS) -> None:
        super().__init__()
        self._seconds = seconds
        self._last: dict[tuple[str, str], float] = {}
        self._hidden: dict[tuple[str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this line is written; the next that is tells how many were not."""
        kind = (record.name, str(record.msg))
        now = time.monotonic()
        if kind in self._last and now - self._last[kind] < self._seconds:
            self._hidden[kind] = self._hidden.get(kind, 0) + 1
            return False
        self._last[kind] = now
        if hidden := self._hidden.pop(kind, 0):
            record.msg = f"{record.getMessage()} ({hidden} more like it were left out)"
            record.args = ()
        return True


def quieten() -> None:
    """Put the filter on every logger of aiokafka: one on the parent does not see what its children write."""
    quiet = Quiet()
    for name in ["aiokafka", *logging.root.manager.loggerDict]:
        logger = logging.getLogger(name)
        if name.split(".")[0] == "aiokafka" and not any(isinstance(one, Quiet) for one in logger.filters):
            logger.addFilter(quiet)


async def bounded(work: Coroutine[Any, Any, object], seconds: float) -> bool:
    """Run something that may hang or fail; answers whether it came to its end. `wait_for` may wait for ever."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        ended = task.done()
        task.cancel()
    await asyncio.wait({task}, timeout=1.0)
    if not task.done():
        return False
    return ended and not task.cancelled() and task.exception() is None


def said(error: BaseException) -> str:
    """One line for the log."""
    return f"Kafka: {type(error).__name__}: {error}".splitlines()[0]


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


def _place(metadata: Any) -> Place:
    return Place(metadata.topic, metadata.partition, metadata.offset)


def _acked(pending: Sequence["asyncio.Future[Any]"]) -> list[Place]:
    acked = []
    for future in pending:
        if not future.done() or future.cancelled() or future.exception() is not None:
            break
        acked.append(_place(future.result()))
    return acked


def _look(future: "asyncio.Future[Any]") -> None:
    # an exception that nobody looked at is logged when it is collected
    if future.done() and not future.cancelled():
        future.exception()
