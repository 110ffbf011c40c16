"""The relay: what stands in the log goes to the bus, in order, each at least once, never with a gap.

The event table is the outbox. One relay per service leads, by a session lock on a connection of its own; the others
stand by. The leader reads on that very connection, so that losing the lock and going on cannot happen together. It
sends a batch, waits for every acknowledgement outside any transaction, and moves its cursor in a short one that is
conditional on the old value. The broker may forget what it acknowledged, so each new producer first reads
back the last records that were acknowledged and starts over where they are gone; consumers' marks make the past
harmless. What stands behind them is looked at too: where this log cannot have published it, the database was restored
to an earlier point, and everything is published again under a higher epoch (`shared.epoch`).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.background import News, heed_cancellation
from shared.bus import Bus, BusAway, Place, Producer, Record, SendStopped, Topic, TopicDrift
from shared.database import is_away
from shared.epoch import ghosts, raise_epoch, told
from shared.event_store import EventStore, StoredEvent
from shared.trace_context import trace_ids
from shared.tracing import OFF, Tracing

RELAY_LOCK = (2, 0)
BATCH = 500
CONNECT_SECONDS = 5.0
POLL_SECONDS = 0.2
STANDBY_SECONDS = 1.0
PATIENCE_SECONDS = 30.0
SILENCE_SECONDS = 60.0
"""The lock of a leader that says nothing to the database for so long (it is frozen, or its machine is gone, of which
nobody tells the server) is taken from it. One that works asks several times a second, and sends for 10 s at most."""
LOOK_SECONDS = 30.0
"""How often a relay that has nothing to send looks whether the bus still has what it acknowledged."""
BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0)

ToRecords = Callable[[StoredEvent, int], Sequence[Record]]
"""All records of one event, given the epoch: one for the cleared topic, and one for the open topic where it is told."""

log = structlog.get_logger()


class LeadershipLost(Exception):
    """The connection with the lock is gone, or the cursor is not where this relay left it: another one leads."""


class BusForgot(BusAway):
    """The bus has no longer what it acknowledged: the next producer starts over."""


@dataclass(kw_only=True)
class RelayState:
    """For readiness and metrics: whether this process leads, and how far the log has been published (by this one)."""

    leads: bool = False
    position: int = 0
    sent: int = 0
    restarts: int = 0
    last_error: str | None = None


class Relay:
    """One service's relay. `run` goes on until it is cancelled; `wake` is called after each commit.

    `topics` are made, or compared, before each new producer: a broker can have lost them too.
    """

    def __init__(
        self,
        *,
        service: str,
        engine: AsyncEngine,
        store: EventStore,
        bus: Bus,
        topics: Sequence[Topic],
        to_records: ToRecords,
        silence: float = SILENCE_SECONDS,
        tracing: Tracing = OFF,
        look: float = LOOK_SECONDS,
    ) -> None:
        self.state = RelayState()
        self._service = service
        self._engine = engine
        self._store = store
        self._bus = bus
        self._topics = tuple(topics)
        self._to_records = to_records
        self._silence = silence
        self._tracing = tracing
        self._look = look
        self._looked_at = 0.0
        self._looks = 0
        self._woken = asyncio.Event()
        self._news = News()
        self._failures = 0

    def wake(self) -> None:
        """There is something new in the log."""
        self._woken.set()

    async def run(self) -> None:
        """Lead or stand by, for ever; whatever fails is begun anew after a pause."""
        while True:
            try:
                async with self._leadership() as (driver, lost):
                    await _unless(lost, self._lead(driver))
            except Exception as error:  # noqa: BLE001  all of it is logged, and none of it may end the task
                heed_cancellation()
                self._note(error)
            await asyncio.sleep(BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)])
            self._failures += 1

    @contextlib.asynccontextmanager
    async def _leadership(self) -> AsyncIterator[tuple[Any, asyncio.Event]]:
        """The connection that holds the lock, and what is set when it breaks: another relay may lead from then on."""
        # outside the pool: the lock lives as long as this connection, and must not be handed on with it
        _, options = self._engine.dialect.create_connect_args(self._engine.url)
        silence = str(round(self._silence * 1000))
        settings = {
            "application_name": f"attache-{self._service}-relay",
            "timezone": "UTC",
            "idle_session_timeout": silence,
            "idle_in_transaction_session_timeout": silence,
        }
        driver = await asyncpg.connect(
            **{**options, "timeout": CONNECT_SECONDS, "command_timeout": PATIENCE_SECONDS, "server_settings": settings}
        )
        lost = asyncio.Event()
        driver.add_termination_listener(lambda _: lost.set())
        try:
            while not await driver.fetchval("SELECT pg_try_advisory_lock($1, $2)", *RELAY_LOCK):
                await asyncio.sleep(STANDBY_SECONDS)
            self.state.leads = True
            yield driver, lost
        finally:
            self.state.leads = False
            # a close that waits for a dead server would hold up the next attempt
            driver.terminate()

    async def _lead(self, driver: Any) -> None:
        await self._bus.ensure_topics(self._topics)
        producer = await self._bus.producer()
        try:
            cursor, epoch = await self._resume(driver, producer)
            self._looked_at = time.monotonic()  # just now, at all of it
            log.info("relay.led", service=self._service, position=cursor)
            while True:
                self._woken.clear()
                batch = await self._store.after(driver, cursor, BATCH)
                if batch:
                    cursor = await self._publish(driver, producer, cursor, batch, epoch)
                self._well(cursor)
                if not batch:
                    await self._look_back(driver, producer, (cursor, epoch))
                    await self._wait()
        finally:
            # first the producer, then (in the caller) the lock: two relays never send at once
            await producer.close()

    async def _resume(self, driver: Any, producer: Producer) -> tuple[int, int]:
        """Where to go on, and under which epoch."""
        position, epoch = await driver.fetchrow("SELECT position, epoch FROM relay_cursor")
        rows = await driver.fetch('SELECT topic, number, "offset", event FROM relay_places')
        kept, gone = {}, []
        for topic, number, offset, event in rows:
            if await producer.id_at(Place(topic, number, offset)) == str(event):
                kept[topic, number] = offset
            else:
                gone.append((topic, number))
        # before anything is taken back: the places tell where ghosts begin, and a start can end at any moment
        behind = await told(driver, producer, self._service, kept)
        if strange := await ghosts(driver, behind, epoch):
            raised = await raise_epoch(driver, max(one.epoch for one in strange))
            log.warning("relay.restored", service=self._service, ghosts=len(strange), old=raised.old, new=raised.new)
            return 0, raised.new
        if gone:
            log.warning("relay.rewound", service=self._service, topic=gone[0][0], number=gone[0][1])
            async with driver.transaction():
                await driver.execute("UPDATE relay_cursor SET position = 0")
                await driver.execute("DELETE FROM relay_places")
            return 0, epoch
        return position, epoch

    async def _publish(
        self, driver: Any, producer: Producer, cursor: int, batch: Sequence[StoredEvent], epoch: int
    ) -> int:
        per_event = [self._to_records(event, epoch) for event in batch]
        records = [record for records in per_event for record in records]
        began = time.time_ns()
        try:
            places: Sequence[Place] = await producer.send(records)
        except SendStopped as stopped:
            self._tracing.published(records[: len(stopped.acked)], began)
            whole = _whole_events(per_event, len(stopped.acked))
            if whole:
                await self._grows(driver, stopped.acked)
                await self._advance(driver, (cursor, epoch), batch[:whole], per_event[:whole], stopped.acked)
            raise
        await self._grows(driver, places)
        self._tracing.published(records, began)
        return await self._advance(driver, (cursor, epoch), batch, per_event, places)

    async def _grows(self, driver: Any, places: Sequence[Place]) -> None:
        """A producer can outlive its broker's volume and never know. Raises `BusForgot` where an offset went back."""
        rows = await driver.fetch('SELECT topic, number, "offset" FROM relay_places')
        before = {(row["topic"], row["number"]): row["offset"] for row in rows}
        if back := [place for place in places if place.offset <= before.get(place[:2], -1)]:
            raise BusForgot(f"an offset of {back[0].topic}/{back[0].number} went back to {back[0].offset}")

    async def _look_back(self, driver: Any, producer: Producer, held: tuple[int, int]) -> None:
        """Now and then, at the last record of one partition after the other: nobody may write for a long time.

        And at the cursor: where the database was put back under a relay that runs, what comes then is not behind it.
        """
        if time.monotonic() - self._looked_at < self._look:
            return
        self._looked_at = time.monotonic()
        if tuple(await driver.fetchrow("SELECT position, epoch FROM relay_cursor")) != held:
            raise LeadershipLost(f"the cursor is not at {held[0]} in epoch {held[1]}")
        places = await driver.fetch('SELECT topic, number, "offset", event FROM relay_places ORDER BY topic, number')
        if places:
            self._looks += 1
            topic, number, offset, event = places[self._looks % len(places)]
            if await producer.id_at(Place(topic, number, offset)) != str(event):
                raise BusForgot(f"{topic}/{number} has no longer what stood at {offset}")

    async def _advance(
        self,
        driver: Any,
        before: tuple[int, int],
        batch: Sequence[StoredEvent],
        per_event: Sequence[Sequence[Record]],
        places: Sequence[Place],
    ) -> int:
        """Move the cursor behind the batch and keep the last place of each partition, in one transaction.

        `before` is the position and the epoch from which it moves.
        """
        ids = [event.id for event, records in zip(batch, per_event, strict=True) for _ in records]
        last: dict[tuple[str, int], tuple[int, UUID]] = {}
        for place, event in zip(places, ids, strict=False):
            last[place.topic, place.number] = (place.offset, event)
        behind = batch[-1].position
        async with driver.transaction():
            moved = await driver.execute(
                "UPDATE relay_cursor SET position = $1 WHERE position = $2 AND epoch = $3", behind, *before
            )
            if moved != "UPDATE 1":
                raise LeadershipLost(f"the cursor is not at {before[0]} in epoch {before[1]}")
            await driver.executemany(
                'INSERT INTO relay_places (topic, number, "offset", event) VALUES ($1, $2, $3, $4) '
                'ON CONFLICT (topic, number) DO UPDATE SET "offset" = excluded."offset", event = excluded.event',
                [(topic, number, offset, event) for (topic, number), (offset, event) in last.items()],
            )
        self.state.sent += len(ids)
        for traces in trace_ids(event.metadata.get("traceparent") for event in batch):
            log.info("relay.published", service=self._service, position=behind, records=len(ids), trace_ids=traces)
        return behind

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._woken.wait()

    def _well(self, cursor: int) -> None:
        self.state.position = cursor
        self.state.last_error = None
        self._failures = 0
        self._news.over()

    def _note(self, error: Exception) -> None:
        self.state.restarts += 1
        self.state.last_error = type(error).__name__
        if self._news.is_new(error):
            known = isinstance(error, BusAway | TopicDrift | LeadershipLost) or is_away(error)
            log.warning("relay.stopped", service=self._service, error=repr(error), exc_info=not known)


def _whole_events(per_event: Sequence[Sequence[Record]], acked: int) -> int:
    """How many of the first events were acknowledged with all of their records."""
    whole = 0
    for records in per_event:
        acked -= len(records)
        if acked < 0:
            break
        whole += 1
    return whole


async def _unless(lost: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run until it fails or `lost` is set, and do not return before it has come to its end. Raises `LeadershipLost`."""
    leading, losing = asyncio.ensure_future(work), asyncio.ensure_future(lost.wait())
    try:
        await asyncio.wait({leading, losing}, return_when=asyncio.FIRST_COMPLETED)
        if not leading.done():
            raise LeadershipLost("the connection that held the lock is gone")
        leading.result()
    finally:
        leading.cancel()
        losing.cancel()
        await asyncio.gather(leading, losing, return_exceptions=True)
