"""The consumer: others' messages become rows here, each once, in order per key, whatever the bus does.

Rows, marks and the next offset are written in one transaction, so what was applied and what was read cannot differ.
The numbers on a topic are dense per key: the next one is applied, an old one skipped, a jump makes the key wait until
`shared.healer` has fetched the gap from the producer's message log. A message that cannot be taken parks its key, in
order; the other keys go on. A database that is away stops everything and parks nothing.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared import offsets
from shared.background import News, heed_cancellation
from shared.bus import Bus, BusAway, Delivery, Partition, Subscription, Topic, TopicDrift
from shared.database import is_away
from shared.marks import Marks
from shared.messages import Message, Undecodable, read_delivery
from shared.offsets import Fenced
from shared.parking import GAP, KEY_WAITS, NOT_APPLIED, park

BATCH = 200

Apply = Callable[[AsyncConnection, Message], Awaitable[None]]
Outcome = Literal["applied", "skipped", "unknown", "parked"]

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

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Take down what has become of messages, once that is committed."""
        for outcome in outcomes:
            self.counts[outcome] = self.counts.get(outcome, 0) + 1


class Consumer:
    """One service's member of its group. `apply` says, by `<type>.v<version>`, what a message does to the rows.

    `gap_found` and `assigned_anew` wake the healer; `applied` is called after each commit that applied something.
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
    ) -> None:
        self.state = ConsumerState()
        self.group = group
        self.engine = engine
        self.gap_found = asyncio.Event()
        self.assigned_anew = asyncio.Event()
        self.applied = applied
        self._bus = bus
        self._topics = tuple(topics)
        self._apply = apply
        self._times = times or ConsumerTimes()
        self._news = News()
        self._offsets: dict[Partition, int] = {}
        self._targets: dict[Partition, int | None] = {}
        self._assigned_at: dict[Partition, float] = {}
        self._got_on_at: dict[Partition, float] = {}
        self._busy = asyncio.Lock()
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

    async def take(self, connection: AsyncConnection, message: Message) -> Outcome:
        """Apply one message that is known to be the next of its key. Raises what its handler raises."""
        apply = self._apply.get(f"{message.type}.v{message.version}")
        if apply is None:
            return "unknown"
        await apply(connection, message)
        return "applied"

    def committed(self, topic: str, taken: Sequence[tuple[Message, Outcome]]) -> None:
        """Count and log what was taken, now that it is committed, and tell who waits for it."""
        self.state.count([outcome for _, outcome in taken])
        for message, outcome in taken:
            told = log.warning if outcome == "parked" else log.debug if outcome == "skipped" else log.info
            names = {"type": message.type, "id": message.id, "subject": message.subject, "sequence": message.sequence}
            told(f"message.{outcome}", topic=topic, correlation_id=message.correlation_id, **names)
        if any(outcome == "applied" for _, outcome in taken):
            self.applied()

    async def _session(self) -> None:
        await self._bus.ensure_topics(self._topics)
        subscription = await self._bus.subscribe(
            self.group,
            [topic.name for topic in self._topics],
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

    async def _on_assigned(self, partitions: frozenset[Partition]) -> Mapping[Partition, int]:
        async with self.engine.begin() as connection:
            starts = await offsets.starts(connection, partitions)
        self._offsets.update(starts)
        self._targets.update(dict.fromkeys(partitions))
        self._assigned_at.update(dict.fromkeys(partitions, time.monotonic()))
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
        with contextlib.suppress(_CannotBeTaken):
            await self._batch(partition, deliveries)
            return
        # go one by one, so that the one that cannot be taken is parked, and nothing else
        for delivery in deliveries:
            try:
                await self._batch(partition, [delivery])
            except _CannotBeTaken as failed:
                await self._batch(partition, [delivery], failed.cause)

    async def _batch(
        self, partition: Partition, deliveries: Sequence[Delivery], failure: BaseException | None = None
    ) -> None:
        """One transaction. With a `failure` the one delivery is parked for it, if it is still the next of its key."""
        read = [(delivery, _read(delivery)) for delivery in deliveries]
        taken: list[tuple[Message, Outcome]] = []
        before, target = self._offsets.get(partition), self._targets.get(partition)
        following = deliveries[-1].offset + 1
        if before is None or target is None:
            raise Fenced(f"{partition.topic}/{partition.number} was taken away")
        async with self.engine.begin() as connection:
            await offsets.move(connection, partition, before, following, target)
            marks = Marks(connection, partition.topic)
            await marks.lock(message.key for _, message in read if isinstance(message, Message))
            for delivery, message in read:
                if isinstance(message, Undecodable):
                    # it has no number that could be trusted, so it holds no place in its key's order. If it stood
                    # where a message of ours belongs, the next one shows the gap, and the log has the true one.
                    await park(connection, delivery, None, message.slug, str(message))
                    log.warning("message.undecodable", topic=delivery.topic, offset=delivery.offset, slug=message.slug)
                else:
                    taken.append((message, await self._one(connection, marks, delivery, message, failure)))
            await marks.save()
        if partition in self._offsets:
            self._offsets[partition] = following
        self.state.count(["parked"] * (len(read) - len(taken)))
        self.committed(partition.topic, taken)
        if any(marks.waits_for(message.key) == GAP for message, _ in taken):
            self.gap_found.set()

    async def _one(
        self,
        connection: AsyncConnection,
        marks: Marks,
        delivery: Delivery,
        message: Message,
        failure: BaseException | None,
    ) -> Outcome:
        key, expected = message.key, marks.sequence(message.key) + 1
        if message.sequence < expected:
            return "skipped"
        if (waits_for := marks.waits_for(key)) is not None:
            slug = GAP if waits_for == GAP else KEY_WAITS
            await park(connection, delivery, message, slug, f"its key waits: {waits_for}")
        elif message.sequence > expected:
            await park(connection, delivery, message, GAP, f"expected number {expected}")
            marks.wait(key, GAP)
        elif failure is not None:
            await park(connection, delivery, message, NOT_APPLIED, f"{type(failure).__name__}: {failure}")
            marks.wait(key, NOT_APPLIED)
        else:
            try:
                outcome = await self.take(connection, message)
            except Exception as error:
                if is_away(error):
                    raise
                raise _CannotBeTaken(error) from error
            marks.advance(key, message.sequence)
            return outcome
        return "parked"

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
        self._get_on({one for one, end in ends.items() if one in self._offsets and self._offsets[one] >= end})

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


class _CannotBeTaken(Exception):
    """The message's own handler refuses it."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _read(delivery: Delivery) -> Message | Undecodable:
    try:
        return read_delivery(delivery)
    except Undecodable as error:
        return error


def _since(moment: float) -> float:
    return time.monotonic() - moment
