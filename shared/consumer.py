"""The consumer: others' messages become rows here, each once, in order per key, whatever the bus does.

Rows, marks and the next offset are written in one transaction, so what was applied and what was read cannot differ.
What becomes of each message is in `shared.taking`; here is how they are read: the group's partitions, their offsets,
batches and retries, and how far all of it is. A database that is away stops everything and parks nothing.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from shared import offsets
from shared.background import News, heed_cancellation
from shared.bus import Bus, BusAway, Delivery, Partition, Subscription, Topic, TopicDrift
from shared.database import is_away
from shared.lag import Lag
from shared.marks import Marks
from shared.messages import Message, Undecodable, read_delivery
from shared.offsets import Fenced
from shared.parking import GAP
from shared.taking import Apply, CannotBeTaken, Outcome, Taking
from shared.tracing import OFF, Tracing

BATCH = 200
LEARN_SECONDS = 2.0
"""So long the producers are asked for their epochs before what was newly assigned is taken; then it is all the same."""

log = structlog.get_logger()


class Stalled(Exception):
    """For too long there was no assignment, or a position stood still before the end."""


@dataclass(frozen=True, kw_only=True)
class ConsumerTimes:
    """In seconds. After `watchdog` without progress of a partition the subscription is replaced by a new one."""

    fetch: float = 0.5
    backoff: float = 0.5
    look: float = 2.0
    watchdog: float = 30.0


@dataclass(kw_only=True)
class ConsumerState:
    """For readiness and metrics.

    `healthy_at` (monotonic): since then each partition held got on, or was seen to be at its end. It stands while one
    that was newly assigned has done neither.
    """

    counts: dict[Outcome, int] = field(default_factory=dict)
    restarts: int = 0
    assigned: frozenset[Partition] = frozenset()
    last_error: str | None = None
    healthy_at: float = float("-inf")


class Consumer:
    """One service's member of its group. `taking` is what it does with what it reads; `assigned_anew` wakes the healer.

    `learn`, if there is one, asks the producers for their epochs, so that ghosts are known as such from the first on.
    """

    def __init__(
        self,
        *,
        group: str,
        engine: AsyncEngine,
        bus: Bus,
        topics: Sequence[Topic],
        apply: Mapping[str, Apply],
        applied: Callable[[], None] = lambda: None,
        times: ConsumerTimes | None = None,
        tracing: Tracing = OFF,
    ) -> None:
        self.taking = Taking(group=group, apply=apply, applied=applied, tracing=tracing)
        self.state = ConsumerState(counts=self.taking.counts)
        self.lag = Lag()
        self.group = group
        self.engine = engine
        self.assigned_anew = asyncio.Event()
        self.learn: Callable[[], Awaitable[None]] | None = None
        self._bus = bus
        self.topics = tuple(topics)
        self._times = times or ConsumerTimes()
        self._news = News()
        self._offsets: dict[Partition, int] = {}
        self._targets: dict[Partition, int | None] = {}
        self._assigned_at: dict[Partition, float] = {}
        self._got_on_at: dict[Partition, float] = {}
        self._busy = asyncio.Lock()
        self._to_learn = False
        self._begun_at = self._looked_at = 0.0
        self._noted_at = float("-inf")

    async def run(self) -> None:
        """Consume for ever; whatever fails is begun anew after a pause."""
        while True:
            try:
                await self._session()
            except Exception as error:  # noqa: BLE001  all of it is logged, and none of it may end the task
                heed_cancellation()
                self._note(error)
            self.state.restarts += 1
            await asyncio.sleep(self._times.backoff)

    async def _session(self) -> None:
        await self._bus.ensure_topics(self.topics)
        subscription = await self._bus.subscribe(
            self.group,
            [topic.name for topic in self.topics],
            on_assigned=self._on_assigned,
            on_revoked=self._on_revoked,
        )
        self._begun_at = time.monotonic()
        try:
            while True:
                try:
                    await self._round(subscription)
                except Exception as error:
                    if not is_away(error):
                        raise
                    heed_cancellation()
                    # our own database: nothing is wrong with the group, so it is not left
                    self._note(error)
                    # much can have come meanwhile
                    self._targets.update(dict.fromkeys(self._targets))
                    await asyncio.sleep(self._times.backoff)
        finally:
            self.state.assigned = frozenset()
            await subscription.close()
            # who owns them now moves their offsets, and that is none of our concern
            self._forget(frozenset(self._offsets))

    async def _round(self, subscription: Subscription) -> None:
        fetched = await subscription.fetch(BATCH, self._times.fetch)
        self.state.assigned = subscription.assigned()
        if None in self._targets.values():
            # before anything is taken: nothing may be rendered from a picture that only begins to catch up
            try:
                await self._learn()
                await self._look(subscription)
            except Exception:
                for partition in fetched:
                    self._seek_back(subscription, partition)
                raise
        moved = {one[0] for one in fetched.items() if await self._partition(subscription, *one)}
        if sum(map(len, fetched.values())) >= BATCH:
            moved |= self._offsets.keys() - fetched.keys()  # there was no room for these: they await their turn
        self._get_on(moved)
        if _since(self._looked_at) >= self._times.look:
            await self._look(subscription)
        self._watch()

    async def _learn(self) -> None:
        if self.learn is None or not self._to_learn:
            return
        self._to_learn = False
        try:
            async with asyncio.timeout(LEARN_SECONDS):
                await self.learn()
        except Exception as error:  # noqa: BLE001  a producer that is away is no reason not to take what the bus has
            heed_cancellation()
            log.info("epochs.unknown", group=self.group, error=repr(error))

    async def _on_assigned(self, partitions: frozenset[Partition]) -> Mapping[Partition, int]:
        async with self.engine.begin() as connection:
            starts = await offsets.starts(connection, partitions)
        self._offsets.update(starts)
        self._targets.update(dict.fromkeys(partitions))
        self._assigned_at.update(dict.fromkeys(partitions, time.monotonic()))
        self.lag.assigned(partitions)
        self._to_learn = True
        self.assigned_anew.set()
        log.info("consumer.assigned", group=self.group, partitions=len(partitions))
        return starts

    async def _on_revoked(self, partitions: frozenset[Partition]) -> None:
        # what is being written is brought to its end, so that the next owner starts behind it
        try:
            async with self._busy:
                pass
        finally:
            self._forget(partitions)

    def _forget(self, partitions: frozenset[Partition]) -> None:
        for partition in partitions:
            for held in (self._offsets, self._targets, self._assigned_at, self._got_on_at):
                held.pop(partition, None)
            self.lag.forget(partition)

    def _seek_back(self, subscription: Subscription, partition: Partition) -> None:
        if partition in self._offsets:
            subscription.seek(partition, self._offsets[partition])

    async def _partition(
        self, subscription: Subscription, partition: Partition, deliveries: Sequence[Delivery]
    ) -> bool:
        """Take in what was read of one partition; False if nothing of it was, and it is to be read again."""
        async with self._busy:
            if partition not in self._offsets:
                return False
            if self._targets.get(partition) is None:
                self._seek_back(subscription, partition)
                return False
            try:
                await self._batch_or_singly(partition, deliveries)
            except Exception as error:
                if not is_away(error):
                    raise
                heed_cancellation()
                self._note(error)
                self._seek_back(subscription, partition)
                await asyncio.sleep(self._times.backoff)
                return False
            following = self._offsets.get(partition)
        if following is not None:
            await subscription.report(partition, following)
        return True

    async def _batch_or_singly(self, partition: Partition, deliveries: Sequence[Delivery]) -> None:
        with contextlib.suppress(CannotBeTaken):
            await self._batch(partition, deliveries)
            return
        # go one by one, so that the one that cannot be taken is parked, and nothing else
        for delivery in deliveries:
            try:
                await self._batch(partition, [delivery])
            except CannotBeTaken as failed:
                await self._batch(partition, [delivery], failed.cause)

    async def _batch(
        self, partition: Partition, deliveries: Sequence[Delivery], failure: BaseException | None = None
    ) -> None:
        """One transaction. With a `failure` the one delivery is parked for it, if it is still the next of its key."""
        read = [(delivery, _read(delivery)) for delivery in deliveries]
        before, target = self._offsets.get(partition), self._targets.get(partition)
        following = deliveries[-1].offset + 1
        self._stands_at(partition, read[0][1])
        if before is None or target is None:
            raise Fenced(f"{partition.topic}/{partition.number} was taken away")
        async with self.engine.begin() as connection:
            await offsets.move(connection, partition, before, following, target)
            marks = Marks(connection, partition.topic)
            taken = await self.taking.deliveries(connection, marks, read, failure)
            await marks.save()
        if partition in self._offsets:
            self._offsets[partition] = following
            self._stands_at(partition, read[-1][1])
        self.taking.count(["parked"] * (len(read) - len(taken)))
        self.taking.committed(partition.topic, taken)
        if any(outcome == "deferred" for _, outcome in taken):
            self.taking.epoch_found.set()
        if any(marks.waits_for(message.key) == GAP for message, _ in taken):
            self.taking.gap_found.set()

    async def _look(self, subscription: Subscription) -> None:
        """Compare with what the database and the bus say; what newly assigned partitions have to reach is learnt."""
        self._looked_at = time.monotonic()
        async with self.engine.connect() as connection:
            await offsets.compare(connection, self._offsets)
        try:
            ends = await subscription.ends()
        except BusAway as error:
            # it may come back, and the subscription goes on by itself; if it does not, the watchdog acts
            self._note(error)
            await asyncio.sleep(self._times.backoff)
            return
        if fresh := {one: end for one, end in ends.items() if one in self._targets and self._targets[one] is None}:
            async with self.engine.begin() as connection:
                await offsets.aim(connection, fresh)
            self._targets.update(fresh)
        at_end = {one for one, end in ends.items() if one in self._offsets and self._offsets[one] >= end}
        self.lag.at_end(at_end)
        self._get_on(at_end)

    def _stands_at(self, partition: Partition, message: Message | Undecodable) -> None:
        if isinstance(message, Message):
            self.lag.stands_at(partition, message.recorded_at)

    def _get_on(self, partitions: Set[Partition]) -> None:
        """These moved just now, or are at their end. One that does not is shown, however well the others do."""
        self._got_on_at.update(dict.fromkeys(partitions & self._offsets.keys(), time.monotonic()))
        if not self._offsets or self._offsets.keys() - self._got_on_at.keys():
            return
        self.state.healthy_at = min(self._got_on_at.values())
        if self.state.healthy_at > self._noted_at:
            self.state.last_error = None
            self._news.over()

    def _watch(self) -> None:
        """Raises `Stalled`. A partition is given its time from when it was assigned."""
        moments = {one: self._got_on_at.get(one, since) for one, since in self._assigned_at.items()}
        if not moments and _since(max(self.state.healthy_at, self._begun_at)) > self._times.watchdog:
            raise Stalled("no partition is assigned")
        if still := sorted(one for one, moment in moments.items() if _since(moment) > self._times.watchdog):
            raise Stalled(
                f"{len(still)} of {len(moments)} partitions stand still, such as {'/'.join(map(str, still[0]))}"
            )

    def _note(self, error: BaseException) -> None:
        self._noted_at = time.monotonic()
        self.state.last_error = type(error).__name__
        if self._news.is_new(error):
            known = isinstance(error, BusAway | TopicDrift | Fenced | Stalled) or is_away(error)
            log.warning("consumer.stopped", group=self.group, error=repr(error), exc_info=not known)


def _read(delivery: Delivery) -> Message | Undecodable:
    try:
        return read_delivery(delivery)
    except Undecodable as error:
        return error


def _since(moment: float) -> float:
    return time.monotonic() - moment
