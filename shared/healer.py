"""The healer: what the bus lost on its way is fetched from the producer's own message log.

A jump in a key's numbers is healed at once. A message that was lost as the last of its key shows no jump, so marks are
compared with the producers' heads whenever partitions were assigned and every 30 s; what has been missing for 5 s is
fetched. Healing takes a row lock on the key's mark, so it and the consumer can work at the same time, anywhere. One
key that cannot be healed, or one producer that is away, holds up no other.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import httpx
import structlog
from sqlalchemy import text

from shared.background import News, heed_cancellation
from shared.consumer import Consumer, Outcome
from shared.database import driver_of, is_away
from shared.marks import Marks
from shared.message_log import MessageLog
from shared.messages import Message
from shared.parking import GAP, NOT_APPLIED, park_fetched, wait_again

log = structlog.get_logger()

_WAITING = "SELECT topic, key FROM consumer_marks WHERE waits_for = :gap ORDER BY topic, key"
_TOLD = """
SELECT DISTINCT topic, key FROM parked_messages WHERE slug = :slug AND announced_at IS NOT NULL ORDER BY topic, key
"""
_MARKS = "SELECT key, sequence, waits_for FROM consumer_marks WHERE topic = $1 AND key = ANY($2)"
_HEALED = "DELETE FROM parked_messages WHERE topic = :topic AND key = :key AND slug = :gap AND sequence <= :mark"
_LEFT = "SELECT EXISTS (SELECT FROM parked_messages WHERE topic = :topic AND key = :key AND slug = :gap)"


@dataclass(frozen=True, kw_only=True)
class HealerTimes:
    """In seconds: `compare` from one comparison's start to the next, `missing` until what is not there is fetched."""

    retry: float = 1.0
    compare: float = 30.0
    missing: float = 5.0


class Healer:
    """Heals what one consumer misses. `logs` are the producers' message logs, by topic."""

    def __init__(self, consumer: Consumer, logs: Mapping[str, MessageLog], times: HealerTimes | None = None) -> None:
        self.healed = 0
        self._consumer = consumer
        self._engine = consumer.engine
        self._logs = logs
        self._times = times or HealerTimes()

    async def run(self) -> None:
        """Heal for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._forever(self._heal_gaps, self._consumer.gap_found, self._times.retry))
            tasks.create_task(self._forever(self._compare_heads, self._consumer.assigned_anew, self._times.compare))

    async def lag(self) -> int:
        """How many messages the producers have told that are still to be applied here; parked keys do not count."""
        return sum([head - mark for topic in self._logs async for _, head, mark in self._behind(topic)])

    async def _forever(self, work: Callable[[], Awaitable[None]], woken: asyncio.Event, pause: float) -> None:
        news = News()
        due = time.monotonic() + pause
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await woken.wait()
            woken.clear()
            due = time.monotonic() + pause
            try:
                await work()
                news.over()
            except Exception as error:
                heed_cancellation()
                known = isinstance(error, httpx.HTTPError) or is_away(error)
                if news.is_new(error):
                    log.warning("healer.waits", group=self._consumer.group, error=repr(error), exc_info=not known)
                await asyncio.sleep(self._times.retry)
                due = time.monotonic()

    async def _heal_gaps(self) -> None:
        async with self._engine.connect() as connection:
            waiting = (await connection.execute(text(_WAITING), {"gap": GAP})).all()
        await self._heal_all((topic, key, None) for topic, key in waiting)

    async def _compare_heads(self) -> None:
        await self._try_parked_again()
        missing: list[tuple[str, str, int | None]] = []
        failures: list[Exception] = []
        for topic in self._logs:
            try:
                missing += [(topic, key, mark) async for key, _, mark in self._behind(topic)]
            except Exception as error:
                if is_away(error):
                    raise
                heed_cancellation()
                failures.append(error)
        if missing:
            await asyncio.sleep(self._times.missing)
            # one that has moved meanwhile is only slow; if it stops, the next comparison finds it
            await self._heal_all(missing)
        if failures:
            raise failures[0]

    async def _try_parked_again(self) -> None:
        """A parked key is made one that waits for what the producer's log holds, and healed, or parked again.

        So a message that only the bus had wrong, or that the program could not take before it was mended, holds its
        key no longer than this period.
        """
        async with self._engine.connect() as connection:
            waiting = (await connection.execute(text(_TOLD), {"slug": NOT_APPLIED})).all()
        ours = [(topic, key) for topic, key in waiting if topic in self._logs]
        for topic, key in ours:
            async with self._engine.begin() as connection:
                marks = Marks(connection, topic)
                await marks.lock([key])
                if marks.waits_for(key) == NOT_APPLIED:
                    marks.wait(key, GAP)
                    await marks.save()
                    await wait_again(connection, topic, key)
        await self._heal_all((topic, key, None) for topic, key in ours)

    async def _heal_all(self, keys: Iterable[tuple[str, str, int | None]]) -> None:
        """Heal each key whose mark is still the given one; raises the first failure when the others are done."""
        failures: dict[str, Exception] = {}
        for topic, key, before in keys:
            if topic not in self._logs or isinstance(failures.get(topic), httpx.HTTPError):
                continue  # the producer is away: each further key would only wait for the time-out again
            try:
                mark, _ = (await self._marks(topic, [key])).get(key, (0, None))
                if before in (None, mark):
                    await self._heal(topic, key)
            except Exception as error:
                if is_away(error):
                    raise
                failures[topic] = error
        for failure in failures.values():
            raise failure

    async def _behind(self, topic: str) -> AsyncIterator[tuple[str, int, int]]:
        """The keys that the producer has told more of than was applied here: key, head, mark. Parked ones are not."""
        async for page in self._logs[topic].heads(topic):
            marks = await self._marks(topic, [key for key, _ in page])
            for key, head in page:
                mark, waits_for = marks.get(key, (0, None))
                if head > mark and waits_for in (None, GAP):
                    yield key, head, mark

    async def _marks(self, topic: str, keys: Sequence[str]) -> dict[str, tuple[int, str | None]]:
        async with self._engine.connect() as connection:
            driver = await driver_of(connection)
            rows = await driver.fetch(_MARKS, topic, list(keys))
        return {row["key"]: (row["sequence"], row["waits_for"]) for row in rows}

    async def _heal(self, topic: str, key: str) -> None:
        """Fetch and apply a key's messages behind its mark, page by page, to the end."""
        while True:
            mark, _ = (await self._marks(topic, [key])).get(key, (0, None))
            page = await self._logs[topic].after(topic, key, mark)
            try:
                if not await self._apply(topic, key, page):
                    return
            except _CannotBeTaken:
                for message in page:
                    try:
                        await self._apply(topic, key, [message])
                    except _CannotBeTaken as failed:
                        await self._park(topic, failed)
                        return

    async def _apply(self, topic: str, key: str, messages: Sequence[Message]) -> bool:
        """Apply what follows the mark, all or nothing; returns whether there may be more. Raises `_CannotBeTaken`."""
        taken: list[tuple[Message, Outcome]] = []
        async with self._engine.begin() as connection:
            marks = Marks(connection, topic)
            await marks.lock([key])
            if marks.waits_for(key) not in (None, GAP):
                return False
            for message in messages:
                if message.sequence == marks.sequence(key) + 1:
                    try:
                        taken.append((message, await self._consumer.take(connection, message)))
                    except Exception as error:
                        if is_away(error):
                            raise
                        raise _CannotBeTaken(message, error) from error
                    marks.advance(key, message.sequence)
            values = {"topic": topic, "key": key, "gap": GAP}
            await connection.execute(text(_HEALED), {**values, "mark": marks.sequence(key)})
            marks.wait(key, GAP if await connection.scalar(text(_LEFT), values) else None)
            await marks.save()
        if taken:
            self.healed += len(taken)
            log.info("messages.healed", group=self._consumer.group, topic=topic, key=key, count=len(taken))
            self._consumer.committed(topic, taken)
        return bool(taken)

    async def _park(self, topic: str, failed: "_CannotBeTaken") -> None:
        message = failed.message
        async with self._engine.begin() as connection:
            marks = Marks(connection, topic)
            await marks.lock([message.key])
            if marks.sequence(message.key) != message.sequence - 1 or marks.waits_for(message.key) not in (None, GAP):
                return  # somebody else has got on with it, or parked it
            marks.wait(message.key, NOT_APPLIED)
            await marks.save()
            await park_fetched(connection, topic, message, f"{type(failed.cause).__name__}: {failed.cause}")
        self._consumer.committed(topic, [(message, "parked")])


class _CannotBeTaken(Exception):
    """The message's own handler refuses it."""

    def __init__(self, message: Message, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.message = message
        self.cause = cause
