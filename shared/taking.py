"""Taking: what becomes of one message, and of each delivery of the bus, inside a transaction of somebody else's.

The numbers on a topic are dense per key: the next one is applied, an old one skipped, a jump makes the key wait until
`shared.healer` has fetched the gap from the producer's message log. A message that cannot be taken parks its key, in
order; the other keys go on.

A message of a lower epoch than its producer's is a ghost: it was told before that producer's database was restored to
an earlier point, and is dropped. One of a higher epoch comes with the whole of its key (`shared.rebuilding`).
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Literal

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.bus import Delivery
from shared.database import is_away
from shared.marks import Marks
from shared.messages import Message, Undecodable
from shared.parking import GAP, KEY_WAITS, NEW_EPOCH, NOT_APPLIED, park
from shared.trace_context import trace_id
from shared.tracing import OFF, Tracing

Apply = Callable[[AsyncConnection, Sequence[Message]], Awaitable[None]]
"""What messages do to the rows: all of those given, each the next of its key, in their order."""
Outcome = Literal["applied", "skipped", "unknown", "parked", "ghost", "deferred", "dropped"]
Read = tuple[Delivery, Message | Undecodable]
"""A delivery, and what stands in it."""

TOGETHER = 200
"""How many messages go to a handler at a time: others have their turn in between."""

log = structlog.get_logger()
_LEVELS: Mapping[Outcome, str] = {"parked": "warning", "dropped": "warning", "applied": "info", "unknown": "info"}


class CannotBeTaken(Exception):
    """A message's own handler refuses it; `cause` is what it raised.

    Of several that were applied together `message` is the first: to know which it is, they are to go one by one. It is
    `alone` where there is no more to know.
    """

    def __init__(self, message: Message, cause: BaseException, *, alone: bool) -> None:
        super().__init__(str(cause))
        self.message = message
        self.cause = cause
        self.alone = alone


@dataclass(kw_only=True, eq=False)
class Taking:
    """What one service does with messages. `apply` says, by `<type>.v<version>`, what messages do to the rows.

    `gap_found` and `epoch_found` wake the healer; `applied` is called after each commit that applied something.
    """

    group: str
    apply: Mapping[str, Apply]
    applied: Callable[[], None] = lambda: None
    tracing: Tracing = OFF
    counts: dict[Outcome, int] = field(default_factory=dict)
    gap_found: asyncio.Event = field(default_factory=asyncio.Event)
    epoch_found: asyncio.Event = field(default_factory=asyncio.Event)

    async def messages(
        self, connection: AsyncConnection, marks: Marks, messages: Sequence[Message]
    ) -> list[tuple[Message, Outcome]]:
        """Apply messages that are known to be the next of their keys; those that an operator dropped are passed over.

        Raises `CannotBeTaken`; what says that something is away passes through.
        """
        taken = [(message, self._outcome(marks, message)) for message in messages]
        await self._apply(connection, [message for message, outcome in taken if outcome == "applied"])
        return taken

    async def deliveries(
        self, connection: AsyncConnection, marks: Marks, read: Sequence[Read], failure: BaseException | None
    ) -> list[tuple[Message, Outcome]]:
        """Take what was read of one partition, in order, and lock the marks that it needs; they are to be saved yet.

        With a `failure` the one delivery is parked for it, if it is still the next of its key. Raises `CannotBeTaken`.
        """
        taken: list[tuple[Message, Outcome]] = []
        await marks.lock(message.key for _, message in read if isinstance(message, Message))
        for delivery, message in read:
            if isinstance(message, Undecodable):
                # it has no number that could be trusted, so it holds no place in its key's order. If it stood
                # where a message of ours belongs, the next one shows the gap, and the log has the true one.
                await park(connection, delivery, None, message.slug, str(message))
                log.warning("message.undecodable", topic=delivery.topic, offset=delivery.offset, slug=message.slug)
            else:
                taken.append((message, await self._one(connection, marks, delivery, message, failure)))
        await self._apply(connection, [message for message, outcome in taken if outcome == "applied"])
        return taken

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Take down what has become of messages, once that is committed."""
        for outcome in outcomes:
            self.counts[outcome] = self.counts.get(outcome, 0) + 1

    def committed(self, topic: str, taken: Sequence[tuple[Message, Outcome]]) -> None:
        """Count and log what was taken, now that it is committed, and tell who waits for it."""
        self.count([outcome for _, outcome in taken])
        for message, outcome in taken:
            told = getattr(log, _LEVELS.get(outcome, "debug"))
            names = {"type": message.type, "id": message.id, "subject": message.subject, "sequence": message.sequence}
            trace = {"trace_id": trace_id(message.traceparent)} if message.traceparent else {}
            told(f"message.{outcome}", topic=topic, correlation_id=message.correlation_id, **names, **trace)
        if any(outcome == "applied" for _, outcome in taken):
            self.applied()

    def _outcome(self, marks: Marks, message: Message) -> Outcome:
        """What becomes of a message that is the next of its key."""
        if _named(message) not in self.apply:
            return "unknown"
        return "dropped" if marks.is_dropped(message) else "applied"

    async def _apply(self, connection: AsyncConnection, messages: Sequence[Message]) -> None:
        """Those that follow each other and have one handler go to it together; where traces are told, each alone."""
        most = 1 if self.tracing.on else TOGETHER
        for apply, run in groupby(messages, lambda message: self.apply[_named(message)]):
            while together := list(islice(run, most)):
                try:
                    await self._handle(connection, apply, together)
                except Exception as error:
                    if is_away(error):
                        raise
                    raise CannotBeTaken(together[0], error, alone=len(together) == 1) from error

    async def _handle(self, connection: AsyncConnection, apply: Apply, messages: Sequence[Message]) -> None:
        if not self.tracing.on:
            await apply(connection, messages)
            return
        [message] = messages
        with self.tracing.taking(message, self.group) as span:
            await apply(connection, [dataclasses.replace(message, traceparent=span.traceparent)])

    async def _one(
        self,
        connection: AsyncConnection,
        marks: Marks,
        delivery: Delivery,
        message: Message,
        failure: BaseException | None,
    ) -> Outcome:
        key, mark = message.key, marks.of(message.key)
        if message.epoch != mark.epoch or mark.waits_for == NEW_EPOCH or mark.epoch < marks.epoch:
            return _of_another_epoch(marks, message)
        expected = mark.sequence + 1
        if message.sequence < expected:
            return "skipped"
        if (waits_for := mark.waits_for) is not None:
            slug = GAP if waits_for == GAP else KEY_WAITS
            await park(connection, delivery, message, slug, f"its key waits: {waits_for}")
        elif message.sequence > expected:
            await park(connection, delivery, message, GAP, f"expected number {expected}")
            marks.wait(key, GAP)
        elif failure is not None:
            await park(connection, delivery, message, NOT_APPLIED, f"{type(failure).__name__}: {failure}")
            marks.wait(key, NOT_APPLIED)
        else:
            marks.advance(key, message.sequence)
            return self._outcome(marks, message)
        return "parked"


def each(handler: Callable[[AsyncConnection, Message], Awaitable[None]]) -> Apply:
    """What one message does to the rows, for every one of several."""

    async def apply(connection: AsyncConnection, messages: Sequence[Message]) -> None:
        for message in messages:
            await handler(connection, message)

    return apply


def _named(message: Message) -> str:
    return f"{message.type}.v{message.version}"


def _of_another_epoch(marks: Marks, message: Message) -> Outcome:
    """What becomes of a message whose key is to be built anew, or that is of a time before that.

    The bus alone is not believed about an epoch: any stranger's record could make the true messages ghosts.
    """
    if message.epoch < marks.epoch:
        return "ghost"
    if message.epoch > marks.epoch:
        marks.wait(message.key, NEW_EPOCH)
    return "deferred"
