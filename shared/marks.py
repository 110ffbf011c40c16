"""High-water marks: how far each key of a topic has been applied, and what it waits for.

A mark's row is locked for as long as the transaction that applies its key's messages: consumers and healers, in any
process, go one after the other on a key, and side by side on others.
"""

from collections.abc import Iterable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.database import driver_of

_MAKE = """
INSERT INTO consumer_marks (topic, key, sequence) SELECT $1, key, 0 FROM unnest($2::text[]) key
ON CONFLICT (topic, key) DO NOTHING
"""
_LOCK = """
SELECT key, sequence, waits_for FROM consumer_marks WHERE topic = $1 AND key = ANY($2) ORDER BY key FOR UPDATE
"""
_SAVE = "UPDATE consumer_marks SET sequence = $3, waits_for = $4 WHERE topic = $1 AND key = $2"


class Marks:
    """The marks of one topic inside one transaction. A key is to be locked before anything is asked about it."""

    def __init__(self, connection: AsyncConnection, topic: str) -> None:
        self._connection = connection
        self._topic = topic
        self._found: dict[str, tuple[int, str | None]] = {}
        self._marks: dict[str, tuple[int, str | None]] = {}

    async def lock(self, keys: Iterable[str]) -> None:
        """Lock and read these keys' marks, always in one order, so that no two transactions wait for each other."""
        # this opens the transaction: before it, a statement on the driver's connection would run outside
        await self._connection.execute(text("SELECT 1"))
        driver = await driver_of(self._connection)
        ordered = sorted(set(keys))
        await driver.execute(_MAKE, self._topic, ordered)
        rows = await driver.fetch(_LOCK, self._topic, ordered)
        self._found = {row["key"]: (row["sequence"], row["waits_for"]) for row in rows}
        self._marks = dict(self._found)

    def sequence(self, key: str) -> int:
        """The last number that was applied of a key; 0: none."""
        return self._marks[key][0]

    def waits_for(self, key: str) -> str | None:
        """What the key waits for: `shared.parking.GAP`, the slug of a failure, or nothing."""
        return self._marks[key][1]

    def advance(self, key: str, sequence: int) -> None:
        """This number was applied."""
        self._marks[key] = (sequence, self._marks[key][1])

    def wait(self, key: str, waits_for: str | None) -> None:
        """The key goes no further until what it waits for has come (None: it goes on)."""
        self._marks[key] = (self._marks[key][0], waits_for)

    async def save(self) -> None:
        """Write back what has changed."""
        changed = [(self._topic, key, *mark) for key, mark in self._marks.items() if mark != self._found[key]]
        if changed:
            driver = await driver_of(self._connection)
            await driver.executemany(_SAVE, changed)
