"""The consumer: others' messages become rows here, each once, in order per key, whatever the bus does.

Rows, marks and the next offset are written in one transaction, so what was applied and what was read cannot differ.
The numbers on a topic are dense per key: the next one is applied, an old one skipped, a jump makes the key wait until
`shared.healer` has fetched the gap from the producer's message log. A message that cannot be taken parks its key, in
order; the other keys go on. A database that is away stops everything and parks nothing.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.bus import Bus, BusAway, Delivery, Partition, Subscription
from shared.database import driver_of, is_away
from shared.messages import Message, Undecodable, read_delivery

BATCH = 200
FETCH_SECONDS = 0.5
BACKOFF_SECONDS = 0.5
BEHIND_RECORDS = 200
"""From so many unread records on a partition counts as behind: nothing is rendered until it has caught up."""
WATCHDOG_SECONDS = 30.0

OFFSETS_SECONDS = 2.0
_UNKNOWN_END = 2**62

GAP = "gap"
"""What a key waits for when a number is missing; any other value is the slug of the failure that parked it."""
KEY_WAITS = "key-waits"
"""The slug of a message that is parked only because one before it is."""

Apply = Callable[[AsyncConnection, Message], Awaitable[None]]

log = structlog.get_logger()


class Fenced(Exception):
    """Another member has moved the offset: this one no longer owns the partition."""


class Stalled(Exception):
    """No assignment, or a position that stands still before the end."""


@dataclass(kw_only=True)
class ConsumerState:
    """For readiness and metrics."""

    applied: int = 0
    skipped: int = 0
    unknown: int = 0
    parked: int = 0
    restarts: int = 0
    assigned: frozenset[Partition] = frozenset()
    last_error: str | None = None
    progressed_at: float = field(default_factory=time.monotonic)


class Consumer:
    """One service's member of its group. `apply` writes what one message means; `gap_found` wakes the healer."""

    def __init__(
        self,
        *,
        group: str,
        engine: AsyncEngine,
        bus: Bus,
        topics: Sequence[str],
        apply: Mapping[str, Apply],
        applied: Callable[[], None] = lambda: None,
    ) -> None:
        self.state = ConsumerState()
        self.group = group
        self.topics = tuple(topics)
        self.engine = engine
        self.gap_found = asyncio.Event()
        self.assigned_anew = asyncio.Event()
        self._bus = bus
        self._apply = apply
        self._applied = applied
        self._offsets: dict[Partition, int] = {}
        self._targets: dict[Partition, int] = {}
        self._busy = asyncio.Lock()
        self._compared_at = time.monotonic()

    async def run(self) -> None:
        """Consume for ever; whatever fails is begun anew after a pause."""
        while True:
            try:
                await self._session()
            except (BusAway, Fenced, Stalled) as error:
                self._note(error)
            except Exception as error:
                if not is_away(error):
                    log.exception("consumer.failed", group=self.group)
                self._note(error)
            self.state.restarts += 1
            await asyncio.sleep(BACKOFF_SECONDS)

    async def take(self, connection: AsyncConnection, message: Message) -> None:
        """Apply one message that is known to be the next of its key."""
        apply = self._apply.get(message.type)
        if apply is None:
            self.state.unknown += 1
            log.info("message.unknown", group=self.group, type=message.type)
            return
        await apply(connection, message)
        self.state.applied += 1

    def told(self) -> None:
        """Something was applied and committed."""
        self._applied()

    async def _session(self) -> None:
        subscription = await self._bus.subscribe(
            self.group, self.topics, on_assigned=self._on_assigned, on_revoked=self._on_revoked
        )
        self.state.progressed_at = time.monotonic()
        try:
            while True:
                fetched = await subscription.fetch(BATCH, FETCH_SECONDS)
                self.state.assigned = subscription.assigned()
                for partition, deliveries in fetched.items():
                    await self._partition(subscription, partition, deliveries)
                await self._watch(subscription, idle=not fetched)
        finally:
            self.state.assigned = frozenset()
            await subscription.close()

    async def _on_assigned(self, partitions: frozenset[Partition]) -> Mapping[Partition, int]:
        async with self.engine.begin() as connection:
            driver = await driver_of(connection)
            await connection.execute(text("SELECT 1"))
            starts: dict[Partition, int] = {}
            for partition in sorted(partitions):
                starts[partition] = await driver.fetchval(
                    "INSERT INTO consumer_offsets AS o VALUES ($1, $2, 0, false) "
                    "ON CONFLICT (topic, number) DO UPDATE SET next_offset = o.next_offset RETURNING next_offset",
                    partition.topic,
                    partition.number,
                )
        self._offsets.update(starts)
        self._targets.update(dict.fromkeys(partitions, -1))
        self.assigned_anew.set()
        log.info("consumer.assigned", group=self.group, partitions=len(partitions))
        return starts

    async def _on_revoked(self, partitions: frozenset[Partition]) -> None:
        # what is being written is brought to its end, so that the next owner starts behind it
        async with self._busy:
            for partition in partitions:
                self._offsets.pop(partition, None)
                self._targets.pop(partition, None)

    async def _partition(
        self, subscription: Subscription, partition: Partition, deliveries: Sequence[Delivery]
    ) -> None:
        async with self._busy:
            if partition not in self._offsets:
                return
            try:
                await self._batch(partition, deliveries)
            except Exception as error:
                if isinstance(error, Fenced):
                    raise
                if is_away(error):
                    self._note(error)
                    subscription.seek(partition, self._offsets[partition])
                    await asyncio.sleep(BACKOFF_SECONDS)
                    return
                # one of them cannot be taken: go one by one, so that it alone is parked
                for delivery in deliveries:
                    await self._alone(partition, delivery)
            next_offset = self._offsets[partition]
        self.state.progressed_at = time.monotonic()
        self.state.last_error = None
        self.told()
        await subscription.report(partition, next_offset)

    async def _batch(self, partition: Partition, deliveries: Sequence[Delivery]) -> None:
        async with self.engine.begin() as connection:
            await self._fence(connection, partition, deliveries[-1].offset + 1)
            marks = Marks(connection, partition.topic)
            for delivery in deliveries:
                await self._one(connection, marks, delivery)
            await marks.save()
        self._offsets[partition] = deliveries[-1].offset + 1

    async def _alone(self, partition: Partition, delivery: Delivery) -> None:
        try:
            await self._batch(partition, [delivery])
        except Exception as error:
            if isinstance(error, Fenced) or is_away(error):
                raise
            async with self.engine.begin() as connection:
                await self._fence(connection, partition, delivery.offset + 1)
                marks = Marks(connection, partition.topic)
                message = read_delivery(delivery)
                await self._park(connection, delivery, message, "not-applied", f"{type(error).__name__}: {error}")
                await marks.wait(message.key, "not-applied")
                await marks.save()
            self._offsets[partition] = delivery.offset + 1

    async def _fence(self, connection: AsyncConnection, partition: Partition, next_offset: int) -> None:
        before = self._offsets[partition]
        moved = await connection.execute(
            text(
                "UPDATE consumer_offsets SET next_offset = :next, "
                "behind = behind AND CAST(:next AS bigint) < CAST(:target AS bigint) "
                "WHERE topic = :topic AND number = :number AND next_offset = :before"
            ),
            {
                "next": next_offset,
                "before": before,
                "topic": partition.topic,
                "number": partition.number,
                # until the end is known, a partition that is behind stays so
                "target": self._targets[partition] if self._targets[partition] >= 0 else _UNKNOWN_END,
            },
        )
        if moved.rowcount != 1:
            raise Fenced(f"{partition.topic}/{partition.number} is not at {before}")

    async def _one(self, connection: AsyncConnection, marks: "Marks", delivery: Delivery) -> None:
        try:
            message = read_delivery(delivery)
        except Undecodable as error:
            # it has no number that could be trusted, so it holds no place in its key's order: parked alone. If it
            # stood where a message of ours belongs, the next one shows the gap, and the log has the true one.
            await self._park(connection, delivery, None, error.slug, str(error))
            return
        mark, waits_for = await marks.get(message.key)
        if message.sequence <= mark:
            self.state.skipped += 1
        elif waits_for is not None:
            slug = GAP if waits_for == GAP else KEY_WAITS
            await self._park(connection, delivery, message, slug, f"its key waits: {waits_for}")
            self._wake_healer(waits_for)
        elif message.sequence > mark + 1:
            await self._park(connection, delivery, message, GAP, f"expected number {mark + 1}")
            await marks.wait(message.key, GAP)
            self._wake_healer(GAP)
        else:
            await self.take(connection, message)
            await marks.advance(message.key, message.sequence)

    def _wake_healer(self, waits_for: str) -> None:
        if waits_for == GAP:
            self.gap_found.set()

    async def _park(
        self, connection: AsyncConnection, delivery: Delivery, message: Message | None, slug: str, error: str
    ) -> None:
        await connection.execute(
            text(
                'INSERT INTO parked_messages (topic, number, "offset", key, sequence, message_id, headers, body, slug, '
                "error, attempts) VALUES (:topic, :number, :offset, :key, :sequence, :message_id, "
                "CAST(:headers AS jsonb), :body, :slug, :error, :attempts) ON CONFLICT DO NOTHING"
            ),
            {
                "topic": delivery.topic,
                "number": delivery.number,
                "offset": delivery.offset,
                "key": message.key if message else (delivery.key or b"").decode(errors="backslashreplace"),
                "sequence": message.sequence if message else None,
                "message_id": message.id if message else None,
                "headers": json.dumps(
                    [[name, value.decode(errors="backslashreplace")] for name, value in delivery.headers]
                ).replace("\\u0000", ""),
                "body": delivery.body,
                "slug": slug,
                "error": error[:2000].replace("\x00", ""),
                "attempts": 1,
            },
        )
        self.state.parked += 1
        log.warning("message.parked", group=self.group, topic=delivery.topic, offset=delivery.offset, slug=slug)

    async def _watch(self, subscription: Subscription, *, idle: bool) -> None:
        """Learn the ends of newly assigned partitions, and notice when nothing moves though it should."""
        if any(target < 0 for target in self._targets.values()):
            await self._set_targets(await subscription.ends())
        if time.monotonic() - self._compared_at >= OFFSETS_SECONDS:
            await self._compare_offsets()
        if not idle or time.monotonic() - self.state.progressed_at < WATCHDOG_SECONDS:
            return
        ends = await subscription.ends()
        stuck = [partition for partition, end in ends.items() if self._offsets.get(partition, end) < end]
        if stuck:
            raise Stalled(f"{len(stuck)} partitions stand still")
        self.state.progressed_at = time.monotonic()

    async def _compare_offsets(self) -> None:
        """Somebody may have set the offsets back (a rebuild), with nothing new on the bus that would show it."""
        self._compared_at = time.monotonic()
        async with self.engine.connect() as connection:
            rows = await connection.execute(text("SELECT topic, number, next_offset FROM consumer_offsets"))
        for topic, number, next_offset in rows:
            if self._offsets.get(Partition(topic, number), next_offset) != next_offset:
                raise Fenced(f"{topic}/{number} was set to {next_offset}")

    async def _set_targets(self, ends: Mapping[Partition, int]) -> None:
        for partition, end in ends.items():
            if self._targets.get(partition, 0) >= 0:
                continue
            self._targets[partition] = end
            async with self.engine.begin() as connection:
                await connection.execute(
                    text(
                        "UPDATE consumer_offsets SET behind = next_offset < CAST(:end AS bigint) "
                        f"AND (behind OR CAST(:end AS bigint) - next_offset > {BEHIND_RECORDS}) "
                        "WHERE topic = :topic AND number = :number"
                    ),
                    {"end": end, "topic": partition.topic, "number": partition.number},
                )

    def _note(self, error: BaseException) -> None:
        self.state.last_error = f"{type(error).__name__}: {error}"
        log.warning("consumer.stopped", group=self.group, error=self.state.last_error)


class Marks:
    """The high-water marks of one topic inside one transaction; a row is locked when it is first looked at."""

    def __init__(self, connection: AsyncConnection, topic: str) -> None:
        self._connection = connection
        self._topic = topic
        self._marks: dict[str, tuple[int, str | None]] = {}

    async def get(self, key: str) -> tuple[int, str | None]:
        """The last number that was applied of a key (0: none), and what the key waits for."""
        if key not in self._marks:
            driver = await driver_of(self._connection)
            row = await driver.fetchrow(
                "INSERT INTO consumer_marks AS m (topic, key, sequence) VALUES ($1, $2, 0) "
                "ON CONFLICT (topic, key) DO UPDATE SET sequence = m.sequence RETURNING sequence, waits_for",
                self._topic,
                key,
            )
            assert row is not None
            self._marks[key] = (row["sequence"], row["waits_for"])
        return self._marks[key]

    async def advance(self, key: str, sequence: int) -> None:
        """This number was applied."""
        self._marks[key] = (sequence, (await self.get(key))[1])

    async def wait(self, key: str, waits_for: str | None) -> None:
        """The key goes no further until what it waits for has come (None: it goes on)."""
        self._marks[key] = ((await self.get(key))[0], waits_for)

    async def save(self) -> None:
        """Write the marks back."""
        if not self._marks:
            return
        driver = await driver_of(self._connection)
        await driver.executemany(
            "UPDATE consumer_marks SET sequence = $3, waits_for = $4 WHERE topic = $1 AND key = $2",
            [(self._topic, key, sequence, waits) for key, (sequence, waits) in self._marks.items()],
        )
