"""Healing one key: what its producer's message log has behind the key's mark is fetched and applied, to the end.

The mark's row is locked while a page is applied, and the page counts only for the mark that it was fetched behind: so
healers, consumers and operators can do it at the same time, anywhere, and nothing is applied twice. No network call
is made under the lock.
"""

from collections.abc import Mapping, Sequence

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.database import driver_of
from shared.marks import Mark, Marks
from shared.message_log import MessageLog, Page
from shared.messages import Message
from shared.parking import GAP, NOT_APPLIED, count_attempt, park_fetched, wait_again
from shared.rebuilding import Rebuilding
from shared.taking import CannotBeTaken, Outcome, Taking

log = structlog.get_logger()

_MARKS = "SELECT key, epoch, sequence, waits_for FROM consumer_marks WHERE topic = $1 AND key = ANY($2)"
_HEALED = "DELETE FROM parked_messages WHERE topic = :topic AND key = :key AND slug = :gap AND sequence <= :mark"
_LEFT = "SELECT EXISTS (SELECT FROM parked_messages WHERE topic = :topic AND key = :key AND slug = :gap)"


class KeyHealing:
    """Heals keys of one service. `logs` are the producers' message logs, by topic."""

    def __init__(
        self, engine: AsyncEngine, taking: Taking, logs: Mapping[str, MessageLog], rebuilding: Rebuilding
    ) -> None:
        self.healed = 0
        self._engine = engine
        self._taking = taking
        self._logs = logs
        self._rebuilding = rebuilding

    @property
    def topics(self) -> frozenset[str]:
        """The topics whose producers can be asked."""
        return frozenset(self._logs)

    async def heal(self, topic: str, key: str) -> None:
        """Fetch and apply a key's messages behind its mark, page by page, to the end; one that cannot be parks it.

        A message that is parked has its attempt counted before it is run, so that one that ends the process is seen:
        what was begun before goes one by one, so that it is that message which is counted.
        Raises `httpx.HTTPError`, `Undecodable`, `EpochBehind`, and what the database raises.
        """
        while True:
            mark = await self.mark(topic, key)
            page = await self.told(topic, key, mark.sequence)
            singly = await self._begin(topic, key, page) > 1
            if not singly:
                try:
                    if not await self._apply(topic, key, page):
                        return
                except CannotBeTaken:
                    singly = True
            if singly and not await self._singly(topic, key, page):
                return

    async def try_again(self, topic: str, key: str) -> None:
        """A parked key is made one that waits for what the producer's log holds."""
        async with self._engine.begin() as connection:
            marks = Marks(connection, topic)
            await marks.lock([key])
            if marks.waits_for(key) == NOT_APPLIED:
                marks.wait(key, GAP)
                await marks.save()
                await wait_again(connection, topic, key)

    async def told(self, topic: str, key: str, after: int) -> Page:
        """What the producer's log has of a key behind a number: one page. Raises as `heal` does."""
        page = await self._logs[topic].after(topic, key, after)
        await self._rebuilding.learn(topic, page.epoch)
        return page

    async def mark(self, topic: str, key: str) -> Mark:
        """How far a key is; the mark of one that is not known is at 0."""
        return (await self.marks(topic, [key])).get(key, Mark(1, 0, None))

    async def marks(self, topic: str, keys: Sequence[str]) -> dict[str, Mark]:
        """The marks of those of these keys that have one."""
        async with self._engine.connect() as connection:
            driver = await driver_of(connection)
            rows = await driver.fetch(_MARKS, topic, list(keys))
        return {row["key"]: Mark(row["epoch"], row["sequence"], row["waits_for"]) for row in rows}

    async def _begin(self, topic: str, key: str, page: Page) -> int:
        """Count the attempt of a page's first message, if it is parked and still the next; how many it has now."""
        if not page.messages:
            return 0
        async with self._engine.begin() as connection:
            marks = Marks(connection, topic)
            await marks.lock([key])
            if marks.of(key) != Mark(page.epoch, page.messages[0].sequence - 1, GAP):
                return 0
            return await count_attempt(connection, topic, key, page.messages[0].sequence)

    async def _singly(self, topic: str, key: str, page: Page) -> bool:
        """Apply a page one by one; False where one cannot be taken, which is parked."""
        for number, message in enumerate(page.messages):
            one = Page(page.epoch, [message])
            try:
                if number:
                    await self._begin(topic, key, one)
                await self._apply(topic, key, one)
            except CannotBeTaken as failed:
                await self._park(topic, failed)
                return False
        return True

    async def _apply(self, topic: str, key: str, page: Page) -> bool:
        """Apply what follows the mark, all or nothing; returns whether there may be more. Raises `CannotBeTaken`.

        A page of another epoch says nothing about what the key waits for: it was built anew since.
        """
        taken: list[tuple[Message, Outcome]] = []
        async with self._engine.begin() as connection:
            marks = Marks(connection, topic)
            await marks.lock([key])
            if marks.waits_for(key) not in (None, GAP) or {marks.of(key).epoch, page.epoch} != {marks.epoch}:
                return False
            following = _following(page.messages, marks.of(key).sequence)
            if following:
                taken = await self._taking.messages(connection, marks, following)
                marks.advance(key, following[-1].sequence)
            values = {"topic": topic, "key": key, "gap": GAP}
            await connection.execute(text(_HEALED), {**values, "mark": marks.of(key).sequence})
            marks.wait(key, GAP if await connection.scalar(text(_LEFT), values) else None)
            await marks.save()
        if taken:
            self.healed += len(taken)
            log.info("messages.healed", group=self._taking.group, topic=topic, key=key, count=len(taken))
            self._taking.committed(topic, taken)
        return bool(taken)

    async def _park(self, topic: str, failed: CannotBeTaken) -> None:
        message = failed.message
        async with self._engine.begin() as connection:
            marks = Marks(connection, topic)
            await marks.lock([message.key])
            if marks.of(message.key) not in {Mark(message.epoch, message.sequence - 1, wait) for wait in (None, GAP)}:
                return  # somebody else has got on with it, or parked it
            marks.wait(message.key, NOT_APPLIED)
            await marks.save()
            await park_fetched(connection, topic, message, f"{type(failed.cause).__name__}: {failed.cause}")
        self._taking.committed(topic, [(message, "parked")])


def _following(messages: Sequence[Message], mark: int) -> list[Message]:
    """Those that come one after the other behind a mark; what it is past, or what a gap is before, is left out."""
    following: list[Message] = []
    for message in messages:
        if message.sequence == mark + len(following) + 1:
            following.append(message)
    return following
