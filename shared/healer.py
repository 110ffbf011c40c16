"""The healer: what the bus lost on its way is fetched from the producer's own message log.

A jump in a key's numbers is healed at once. A message that was lost as the last of its key shows no jump, so marks are
compared with the producers' heads whenever partitions were assigned and every 30 s; what has been missing for 5 s is
fetched. The heads tell the producer's epoch too, and keys of a lower one are built anew (`shared.rebuilding`); so are
those of which the producer has less than is here (`shared.rewound`). Here is when that is done, in
`shared.key_healing` how. One key that cannot be healed, or one producer that is away, holds up
no other.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import httpx
import structlog
from sqlalchemy import text

from shared.background import News, heed_cancellation
from shared.consumer import Consumer
from shared.database import is_away
from shared.key_healing import KeyHealing
from shared.marks import Mark
from shared.message_log import Heads, MessageLog
from shared.parking import GAP, NOT_APPLIED
from shared.rebuilding import Anew, EpochBehind, Rebuilding
from shared.rewound import Rewound

log = structlog.get_logger()

_WAITING = "SELECT topic, key FROM consumer_marks WHERE waits_for = :gap ORDER BY topic, key"
_TOLD = """
SELECT DISTINCT topic, key FROM parked_messages WHERE slug = :slug AND announced_at IS NOT NULL ORDER BY topic, key
"""


@dataclass(frozen=True, kw_only=True)
class HealerTimes:
    """In seconds: `compare` from one comparison's start to the next, `missing` until what is not there is fetched."""

    retry: float = 1.0
    compare: float = 30.0
    missing: float = 5.0


class Healer:
    """Heals what one consumer misses. `logs` are the producers' message logs, by topic; so goes `anew`."""

    def __init__(
        self,
        consumer: Consumer,
        logs: Mapping[str, MessageLog],
        anew: Mapping[str, Anew],
        times: HealerTimes | None = None,
    ) -> None:
        self.rebuilding = Rebuilding(consumer.engine, consumer.taking, logs, anew)
        self.keys = KeyHealing(consumer.engine, consumer.taking, logs, self.rebuilding)
        self.rewound = Rewound(consumer.engine, consumer.taking, logs)
        self._consumer = consumer
        self._engine = consumer.engine
        self._logs = logs
        self._times = times or HealerTimes()

    async def run(self) -> None:
        """Heal for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._forever(self._heal_gaps, self._consumer.taking.gap_found, self._times.retry))
            tasks.create_task(self._forever(self._build_anew, self._consumer.taking.epoch_found, self._times.retry))
            tasks.create_task(self._forever(self._compare_heads, self._consumer.assigned_anew, self._times.compare))

    async def lag(self) -> int:
        """How many messages the producers have told that are still to be applied here; parked keys do not count.

        A key that is to be built anew counts as one.
        """
        missing = [
            head - mark
            for topic in self._logs
            async for page in self._logs[topic].heads(topic)
            for _, head, mark in await self._behind(topic, page)
        ]
        return sum(missing) + len(await self.rebuilding.stale())

    async def learn(self) -> None:
        """Ask every producer for its epoch. Raises the first failure when all were asked."""
        answers = await asyncio.gather(*map(self._learn, self._logs), return_exceptions=True)
        for failure in answers:
            if failure is not None:
                raise failure

    async def _learn(self, topic: str) -> None:
        async for page in self._logs[topic].heads(topic):
            await self.rebuilding.learn(topic, page.epoch)
            return

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
                known = isinstance(error, httpx.HTTPError | EpochBehind) or is_away(error)
                if news.is_new(error):
                    log.warning("healer.waits", group=self._consumer.group, error=repr(error), exc_info=not known)
                await asyncio.sleep(self._times.retry)
                if not isinstance(error, EpochBehind):  # that one ends when an operator has done something
                    due = time.monotonic()

    async def _build_anew(self) -> None:
        """Beside the gaps: thousands of keys take minutes, and what is missing elsewhere cannot wait for that."""
        _raise_first(await self._each(await self.rebuilding.stale(), self.rebuilding.rebuild))

    async def _heal_gaps(self) -> None:
        async with self._engine.connect() as connection:
            waiting = (await connection.execute(text(_WAITING), {"gap": GAP})).all()
        _raise_first(await self._each([(topic, key) for topic, key in waiting], self.keys.heal))

    async def _compare_heads(self) -> None:
        await self._try_parked_again()
        missing: list[tuple[str, str, int]] = []
        failures: list[Exception] = []
        for topic in self._logs:
            try:
                missing += await self._compare(topic)
            except Exception as error:
                if is_away(error):
                    raise
                heed_cancellation()
                failures.append(error)
        if missing:
            await asyncio.sleep(self._times.missing)
            # one that has moved meanwhile is only slow; if it stops, the next comparison finds it
            still = [
                (topic, key) for topic, key, mark in missing if (await self.keys.mark(topic, key)).sequence == mark
            ]
            failures += await self._each(still, self.keys.heal)
        _raise_first(failures)

    async def _compare(self, topic: str) -> list[tuple[str, str, int]]:
        """Topic, key and mark of what is missing here; what is missing there is dealt with at once."""
        missing: list[tuple[str, str, int]] = []
        heads: dict[str, int] = {}
        epochs = set()
        async for page in self._logs[topic].heads(topic):
            await self.rebuilding.learn(topic, page.epoch)
            missing += [(topic, key, mark) for key, _, mark in await self._behind(topic, page)]
            heads |= dict(page.heads)
            epochs.add(page.epoch)
        if len(epochs) == 1:
            await self.rewound.compare(topic, epochs.pop(), heads)
        return missing

    async def _try_parked_again(self) -> None:
        """A parked key is made one that waits for what the producer's log holds, and healed, or parked again.

        So a message that only the bus had wrong, or that the program could not take before it was mended, holds its
        key no longer than this period.
        """
        async with self._engine.connect() as connection:
            waiting = (await connection.execute(text(_TOLD), {"slug": NOT_APPLIED})).all()
        ours = [(topic, key) for topic, key in waiting if topic in self._logs]
        for topic, key in ours:
            await self.keys.try_again(topic, key)
        _raise_first(await self._each(ours, self.keys.heal))

    async def _each(
        self, keys: Iterable[tuple[str, str]], work: Callable[[str, str], Awaitable[None]]
    ) -> list[Exception]:
        """Do it for each key; answers the last failure of each topic when the others are done."""
        failures: dict[str, Exception] = {}
        for topic, key in keys:
            if topic not in self._logs or isinstance(failures.get(topic), httpx.HTTPError):
                continue  # the producer is away: each further key would only wait for the time-out again
            try:
                await work(topic, key)
            except Exception as error:
                if is_away(error):
                    raise
                heed_cancellation()
                failures[topic] = error
        return list(failures.values())

    async def _behind(self, topic: str, page: Heads) -> list[tuple[str, int, int]]:
        """The keys that the producer has told more of than was applied here: key, head, mark.

        Parked ones are not, nor are those of another epoch.
        """
        marks = await self.keys.marks(topic, [key for key, _ in page.heads])
        new = Mark(page.epoch, 0, None)
        found = [(key, head, marks.get(key, new)) for key, head in page.heads]
        return [
            (key, head, mark.sequence)
            for key, head, mark in found
            if head > mark.sequence and mark.waits_for in (None, GAP) and mark.epoch == page.epoch
        ]


def _raise_first(failures: Sequence[Exception]) -> None:
    if failures:
        raise failures[0]
