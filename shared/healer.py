"""The healer: what the bus lost on its way is fetched from the producer's own message log.

A jump in a key's numbers is healed at once. A message that was lost as the last of its key shows no jump, so marks are
compared with the producers' heads whenever partitions were assigned and every 30 s; what has been missing for 5 s is
fetched. Healing takes a row lock on the key's mark, so it and the consumer can work at the same time, anywhere.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

import httpx
import structlog
from sqlalchemy import text

from shared.consumer import GAP, KEY_WAITS, Consumer, Marks
from shared.database import driver_of, is_away
from shared.message_log import MessageLog
from shared.messages import Message, Undecodable

RETRY_SECONDS = 1.0
COMPARE_SECONDS = 30.0
MISSING_SECONDS = 5.0

log = structlog.get_logger()


class Healer:
    """Heals what one consumer misses. `logs` are the producers' message logs, by topic."""

    def __init__(self, consumer: Consumer, logs: Mapping[str, MessageLog]) -> None:
        self.healed = 0
        self._consumer = consumer
        self._engine = consumer.engine
        self._logs = logs

    async def run(self) -> None:
        """Heal for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._forever(self._heal_gaps, self._consumer.gap_found, RETRY_SECONDS))
            tasks.create_task(self._forever(self._compare_heads, self._consumer.assigned_anew, COMPARE_SECONDS))

    async def lag(self) -> int:
        """How many messages the producers have told that were not applied here yet."""
        missing = 0
        for topic, message_log in self._logs.items():
            async for page in message_log.heads(topic):
                marks = await self._marks(topic, [key for key, _ in page])
                missing += sum(max(0, head - marks.get(key, 0)) for key, head in page)
        return missing

    async def _forever(self, work: object, woken: asyncio.Event, pause: float) -> None:
        assert callable(work)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await woken.wait()
            woken.clear()
            try:
                await work()
            except Exception as error:
                if not isinstance(error, httpx.HTTPError | Undecodable) and not is_away(error):
                    log.exception("healer.failed", group=self._consumer.group)
                log.warning("healer.waits", group=self._consumer.group, error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(RETRY_SECONDS)

    async def _heal_gaps(self) -> None:
        async with self._engine.connect() as connection:
            waiting = await connection.execute(
                text("SELECT topic, key FROM consumer_marks WHERE waits_for = :gap ORDER BY topic, key"), {"gap": GAP}
            )
        for topic, key in waiting.all():
            await self._heal(topic, key)

    async def _compare_heads(self) -> None:
        missing: list[tuple[str, str, int]] = []
        for topic, message_log in self._logs.items():
            async for page in message_log.heads(topic):
                marks = await self._marks(topic, [key for key, _ in page])
                missing += [(topic, key, marks.get(key, 0)) for key, head in page if head > marks.get(key, 0)]
        if not missing:
            return
        await asyncio.sleep(MISSING_SECONDS)
        for topic, key, before in missing:
            # one that has moved meanwhile is only slow; if it stops, the next comparison finds it
            if (await self._marks(topic, [key])).get(key, 0) == before:
                await self._heal(topic, key)

    async def _marks(self, topic: str, keys: Sequence[str]) -> dict[str, int]:
        async with self._engine.connect() as connection:
            driver = await driver_of(connection)
            rows = await driver.fetch(
                "SELECT key, sequence FROM consumer_marks WHERE topic = $1 AND key = ANY($2)", topic, list(keys)
            )
        return {row["key"]: row["sequence"] for row in rows}

    async def _heal(self, topic: str, key: str) -> None:
        """Fetch and apply a key's messages behind its mark, page by page, to the end."""
        message_log = self._logs.get(topic)
        if message_log is None:
            return
        while True:
            mark = (await self._marks(topic, [key])).get(key, 0)
            page = await message_log.after(topic, key, mark)
            try:
                if not await self._apply(topic, key, page):
                    return
            except Exception as error:
                if is_away(error):
                    raise
                await self._apply_singly(topic, key, page)
                return

    async def _apply(self, topic: str, key: str, messages: Sequence[Message]) -> bool:
        """Apply what follows the mark; returns whether there may be more."""
        async with self._engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
            marks = Marks(connection, topic)
            mark, waits_for = await marks.get(key)
            if waits_for not in (None, GAP):
                return False
            applied = 0
            for message in messages:
                if message.sequence == mark + 1:
                    await self._consumer.take(connection, message)
                    mark += 1
                    applied += 1
            await marks.advance(key, mark)
            await connection.execute(
                text(
                    "DELETE FROM parked_messages WHERE topic = :topic AND key = :key AND slug = :gap "
                    "AND sequence <= :mark"
                ),
                {"topic": topic, "key": key, "gap": GAP, "mark": mark},
            )
            left = await connection.scalar(
                text("SELECT count(*) FROM parked_messages WHERE topic = :topic AND key = :key AND slug = :gap"),
                {"topic": topic, "key": key, "gap": GAP},
            )
            await marks.wait(key, GAP if left else None)
            await marks.save()
        if applied:
            self.healed += applied
            log.info("messages.healed", group=self._consumer.group, topic=topic, key=key, count=applied)
            self._consumer.told()
        return applied > 0

    async def _apply_singly(self, topic: str, key: str, messages: Sequence[Message]) -> None:
        for message in messages:
            try:
                await self._apply(topic, key, [message])
            except Exception as error:
                if is_away(error):
                    raise
                await self._park(topic, key, message, f"{type(error).__name__}: {error}")
                return

    async def _park(self, topic: str, key: str, message: Message, error: str) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
            marks = Marks(connection, topic)
            await marks.wait(key, "not-applied")
            await marks.save()
            values = {"topic": topic, "key": key, "sequence": message.sequence, "id": message.id, "error": error[:2000]}
            await connection.execute(
                text("UPDATE parked_messages SET slug = :waits WHERE topic = :topic AND key = :key AND slug = :gap"),
                {"topic": topic, "key": key, "waits": KEY_WAITS, "gap": GAP},
            )
            await connection.execute(
                text(
                    "INSERT INTO parked_messages (topic, key, sequence, message_id, headers, slug, error, attempts) "
                    "VALUES (:topic, :key, :sequence, :id, '[]', 'not-applied', :error, 1)"
                ),
                values,
            )
        log.warning("message.parked", group=self._consumer.group, topic=topic, id=message.id, slug="not-applied")
