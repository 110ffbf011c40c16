"""A producer's log that has less than was applied here, at one epoch: its database was put back, and nobody said so.

Most such restores are noticed by the relay, which meets on the bus what its log cannot have published
(`shared.epoch`). Not one whose ghosts the bus never had, or has no longer: they were told over HTTP. Left alone it
heals badly: what is told anew has the numbers of ghosts, and is passed over until it has outgrown them.

What the log has of a key is believed, so such a key is built anew from it. Where it has nothing at all of a key, the
database may be an empty one, or an address may lead to somebody else's: then what is here may be the last copy, and is
only counted, so that an operator hears of it. Nobody's epoch is raised for it: a consumer's word can be a stranger's
record, a wrong address or a fault of the consumer, and would make all that everybody has be told and built anew; the
operator knows what was restored, and says so (`shared.restored`).
"""

from collections.abc import Mapping

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.message_log import MessageLog
from shared.rebuilding import BEFORE_ALL
from shared.taking import Taking

ASKED = 100
"""So many keys are asked for at one comparison, those first that can be built anew: the lost ones stay ahead."""

_AHEAD = """
SELECT m.key, m.sequence, h.key IS NOT NULL AS told
FROM consumer_marks m
    LEFT JOIN unnest(CAST(:keys AS text[]), CAST(:heads AS bigint[])) AS h(key, sequence) ON h.key = m.key
WHERE m.topic = :topic AND m.epoch = :epoch AND m.sequence > coalesce(h.sequence, 0)
ORDER BY told DESC, m.key LIMIT :asked
"""
_STALE = """
UPDATE consumer_marks SET epoch = :before
WHERE topic = :topic AND key = :key AND epoch = :epoch AND sequence = :sequence
"""

log = structlog.get_logger()


class Rewound:
    """Finds the keys of which more was applied than their producer's log has. `logs` go by topic.

    `keys` counts those that were given back to be built anew, and `lost` are those of which the log has nothing, as
    the last comparison found them; both by topic.
    """

    def __init__(self, engine: AsyncEngine, taking: Taking, logs: Mapping[str, MessageLog]) -> None:
        self.keys = dict.fromkeys(logs, 0)
        self.lost = dict.fromkeys(logs, 0)
        self._engine = engine
        self._taking = taking
        self._logs = logs

    async def compare(self, topic: str, epoch: int, heads: Mapping[str, int]) -> None:
        """Given all heads of a topic, and the epoch that they were told under. Raises `httpx.HTTPError`."""
        values = {"topic": topic, "epoch": epoch, "keys": list(heads), "heads": list(heads.values()), "asked": ASKED}
        async with self._engine.connect() as connection:
            ahead = (await connection.execute(text(_AHEAD), values)).all()
        lost = 0
        for key, sequence, told in ahead:
            # the mark was read first, so this answer has its message, unless there is none
            page = await self._logs[topic].after(topic, key, sequence - 1)
            if page.messages or page.epoch != epoch:
                continue
            if told:
                await self._build_anew(topic, key, epoch, sequence)
            else:
                lost += 1
        if lost != self.lost[topic]:
            (log.warning if lost else log.info)("history.lost", group=self._taking.group, topic=topic, keys=lost)
        self.lost[topic] = lost

    async def _build_anew(self, topic: str, key: str, epoch: int, sequence: int) -> None:
        values = {"topic": topic, "key": key, "epoch": epoch, "sequence": sequence, "before": BEFORE_ALL}
        async with self._engine.begin() as connection:
            if (await connection.execute(text(_STALE), values)).rowcount == 0:
                return  # another replica was quicker
        self.keys[topic] += 1
        log.warning("key.rewound", group=self._taking.group, topic=topic, key=key, sequence=sequence, epoch=epoch)
        self._taking.epoch_found.set()
