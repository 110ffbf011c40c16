"""A producer's new epoch: what this service has of it is built anew, key by key, beside what is served meanwhile.

A producer whose database was restored to an earlier point tells everything again under a higher epoch. Its own message
log is what is believed about that, and what a key is built from: the whole history is fetched, and in one transaction,
with the key's mark locked, all that the key had given is forgotten and all of it applied. A key of which the log has
nothing any more is forgotten. No network call is made while the mark is locked: the key comes out as one that waits for
a gap, and what was told in between is healed as any other gap.

An operator's `rebuild` goes the same way, for every key: what was served stays known until its successor stands beside
it, so that nothing falls that may not, whatever the producers have lost meanwhile.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.marks import Mark, Marks
from shared.message_log import MessageLog
from shared.messages import Message
from shared.parking import GAP, NEW_EPOCH, drop_parked, wait_again
from shared.taking import CannotBeTaken, Outcome, Taking

Anew = Callable[[AsyncConnection, str], AbstractAsyncContextManager[None]]
"""Around the messages of one key of one producer, in the transaction that applies them all: on the way in every row
that this key gave is forgotten; on the way out what is to be kept of them (no SEQUENCE may fall) is mended."""

_LEARN = """
INSERT INTO consumer_epochs AS e VALUES (:topic, :epoch)
ON CONFLICT (topic) DO UPDATE SET epoch = excluded.epoch WHERE e.epoch < excluded.epoch
"""
_KNOWN = "SELECT epoch FROM consumer_epochs WHERE topic = :topic"
_STALE = """
SELECT * FROM (
    SELECT m.topic, m.key FROM consumer_epochs e JOIN consumer_marks m ON m.topic = e.topic AND m.epoch < e.epoch
    UNION SELECT topic, key FROM consumer_marks WHERE waits_for = :new_epoch
) found ORDER BY random()
"""
"""In any order, and each is looked at again before it is fetched, so that replicas share the work."""
_STILL = """
SELECT EXISTS (
    SELECT FROM consumer_marks m LEFT JOIN consumer_epochs e USING (topic)
    WHERE m.topic = :topic AND m.key = :key AND (m.epoch < e.epoch OR m.waits_for = :new_epoch)
)
"""

BEFORE_ALL = 0
"""An epoch below every producer's: a mark of it is stale until its key was built anew."""
_TOPICS = "INSERT INTO consumer_epochs SELECT DISTINCT topic, 1 FROM consumer_marks ON CONFLICT DO NOTHING"
_WITHOUT_MARK = """
INSERT INTO consumer_marks (topic, key, sequence) SELECT :topic, unnest(CAST(:keys AS text[])), 0 ON CONFLICT DO NOTHING
"""

log = structlog.get_logger()


async def build_all_anew(connection: AsyncConnection, rows_of: Mapping[str, Sequence[str]]) -> None:
    """Make every key stale, in the caller's transaction: each is built anew from its producer's log by who serves.

    `rows_of` names, by topic, the keys that have given rows: one that has lost its mark is to be looked at too.
    """
    # consumers lock marks in the order of their keys: an update in another order could wait for them, and they for it
    await connection.execute(text("LOCK TABLE consumer_marks IN EXCLUSIVE MODE"))
    for topic, keys in rows_of.items():
        await connection.execute(text(_WITHOUT_MARK), {"topic": topic, "keys": list(keys)})
    await connection.execute(text(_TOPICS))
    await connection.execute(text("UPDATE consumer_marks SET epoch = :before"), {"before": BEFORE_ALL})


class EpochBehind(Exception):
    """A producer's log tells a lower epoch than it once did: it was restored, and nobody has told it so yet."""


class _HistoryChanged(Exception):
    """The log went to another epoch while it was read."""


class Rebuilding:
    """Builds anew what one service has of its producers. `logs` and `anew` go by topic."""

    def __init__(
        self, engine: AsyncEngine, taking: Taking, logs: Mapping[str, MessageLog], anew: Mapping[str, Anew]
    ) -> None:
        self.rebuilt = 0
        self._engine = engine
        self._taking = taking
        self._logs = logs
        self._anew = anew

    async def learn(self, topic: str, epoch: int) -> None:
        """A producer's log has told its epoch. From here on every key with a mark of a lower one is stale.

        Raises `EpochBehind`: all that it tells is taken for a ghost, and somebody has to be told so.
        """
        async with self._engine.begin() as connection:
            known = await connection.scalar(text(_KNOWN), {"topic": topic})
            if known is None or known < epoch:
                await connection.execute(text(_LEARN), {"topic": topic, "epoch": epoch})
        if (known or 1) < epoch:
            log.warning("epoch.risen", group=self._taking.group, topic=topic, epoch=epoch)
            self._taking.epoch_found.set()
        if epoch < (known or 1):
            raise _behind(topic, epoch, known)

    async def stale(self) -> list[tuple[str, str]]:
        """Topic and key of what is to be built anew, or of which the bus has said so."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(text(_STALE), {"new_epoch": NEW_EPOCH})
            return [(topic, key) for topic, key in rows.all()]

    async def rebuild(self, topic: str, key: str) -> None:
        """Build a stale key anew. Raises `EpochBehind`, `httpx.HTTPError`, `Undecodable`, what the database raises.

        A message that cannot be applied ends the key's history for now: healing meets it next, and parks the key.
        """
        if not await self._is_still(topic, key):
            return
        with contextlib.suppress(_HistoryChanged):
            epoch, messages = await self._history(topic, key)
            await self.learn(topic, epoch)
            try:
                await self._replace(topic, key, epoch, messages)
            except CannotBeTaken as failed:
                if failed.alone:
                    await self._replace(topic, key, epoch, messages[: failed.message.sequence - 1])
                else:
                    await self._replace_singly(topic, key, epoch, messages)

    async def _replace_singly(self, topic: str, key: str, epoch: int, messages: Sequence[Message]) -> None:
        """One by one, to know which of them cannot be applied; it is left out, and all that follow it."""
        try:
            await self._replace(topic, key, epoch, messages, singly=True)
        except CannotBeTaken as failed:
            await self._replace(topic, key, epoch, messages[: failed.message.sequence - 1])

    async def _is_still(self, topic: str, key: str) -> bool:
        values = {"topic": topic, "key": key, "new_epoch": NEW_EPOCH}
        async with self._engine.connect() as connection:
            return bool(await connection.scalar(text(_STILL), values))

    async def _history(self, topic: str, key: str) -> tuple[int, list[Message]]:
        """The epoch, and the whole of what the log has of a key."""
        messages: list[Message] = []
        page = await self._logs[topic].after(topic, key, 0)
        epoch = page.epoch
        while page.messages:
            messages += page.messages
            page = await self._logs[topic].after(topic, key, messages[-1].sequence)
            if page.epoch != epoch:
                raise _HistoryChanged
        if [message.sequence for message in messages] != list(range(1, len(messages) + 1)):
            raise ValueError(f"{topic}: the log does not have every number of a key")
        return epoch, messages

    async def _replace(
        self, topic: str, key: str, epoch: int, messages: Sequence[Message], *, singly: bool = False
    ) -> None:
        """One transaction: forget what the key gave, and apply these. Raises `CannotBeTaken`, and nothing is done."""
        taken: list[tuple[Message, Outcome]] = []
        async with self._engine.begin() as connection:
            marks = Marks(connection, topic)
            await marks.lock([key])
            mark = marks.of(key)
            if epoch < marks.epoch:
                raise _behind(topic, epoch, marks.epoch)
            if mark.epoch == epoch:
                if mark.waits_for == NEW_EPOCH:
                    # the log knows nothing of it: a stranger's record. What was deferred meanwhile is healed
                    marks.wait(key, GAP)
                    await wait_again(connection, topic, key)
                    await marks.save()
                    self._taking.gap_found.set()
                return  # or another replica was quicker
            await drop_parked(connection, topic, key)
            async with self._anew[topic](connection, key):
                for some in [[message] for message in messages] if singly else [messages]:
                    taken += await self._taking.messages(connection, marks, some)
            # what was deferred since the history was read is missing from it, and no jump would show it
            marks.put(key, Mark(epoch, len(messages), GAP))
            await marks.save()
        self._taking.gap_found.set()
        self.rebuilt += 1
        log.info("key.rebuilt", group=self._taking.group, topic=topic, key=key, epoch=epoch, count=len(taken))
        self._taking.count([outcome for _, outcome in taken])
        self._taking.applied()


def _behind(topic: str, epoch: int, told: int | None) -> EpochBehind:
    return EpochBehind(f"{topic}: its log is of epoch {epoch}, and {told} was told before: say restored to its service")
