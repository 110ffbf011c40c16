"""High-water marks: how far each key of a topic has been applied, in which epoch, and what it waits for.

A mark's row is locked for as long as the transaction that applies its key's messages: consumers and healers, in any
process, go one after the other on a key, and side by side on others.
"""

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.database import driver_of
from shared.messages import Message

_MAKE = """
INSERT INTO consumer_marks (topic, key, sequence, epoch)
SELECT $1, key, 0, coalesce((SELECT epoch FROM consumer_epochs WHERE topic = $1), 1) FROM unnest($2::text[]) key
ON CONFLICT (topic, key) DO NOTHING
"""
_LOCK = """
SELECT key, epoch, sequence, waits_for FROM consumer_marks WHERE topic = $1 AND key = ANY($2) ORDER BY key FOR UPDATE
"""
_KNOWN = """
SELECT coalesce((SELECT epoch FROM consumer_epochs WHERE topic = $1), 1) AS epoch,
    EXISTS (SELECT FROM dropped_messages WHERE topic = $1 AND key = ANY($2)) AS dropped
"""
_DROPPED = "SELECT key, sequence, message_id FROM dropped_messages WHERE topic = $1 AND key = ANY($2)"
_SAVE = "UPDATE consumer_marks SET epoch = $3, sequence = $4, waits_for = $5 WHERE topic = $1 AND key = $2"


class Mark(NamedTuple):
    """How far a key has been applied, in one epoch of its producer.

    `sequence` is the last number that was applied, 0 before the first. `waits_for` is `shared.parking.GAP` or
    `NEW_EPOCH`, the slug of a failure, or nothing.
    """

    epoch: int
    sequence: int
    waits_for: str | None


class Marks:
    """The marks of one topic inside one transaction. A key is to be locked before anything is asked about it."""

    def __init__(self, connection: AsyncConnection, topic: str) -> None:
        self.epoch = 1
        """The highest epoch that the producer's log has told, however far the keys are."""
        self._connection = connection
        self._topic = topic
        self._found: dict[str, Mark] = {}
        self._marks: dict[str, Mark] = {}
        self._dropped: frozenset[tuple[str, int, str]] = frozenset()

    async def lock(self, keys: Iterable[str]) -> None:
        """Lock and read these keys' marks, always in one order, so that no two transactions wait for each other."""
        # this opens the transaction: before it, a statement on the driver's connection would run outside
        await self._connection.execute(text("SELECT 1"))
        driver = await driver_of(self._connection)
        ordered = sorted(set(keys))
        await driver.execute(_MAKE, self._topic, ordered)
        rows = await driver.fetch(_LOCK, self._topic, ordered)
        self._found = {row["key"]: Mark(row["epoch"], row["sequence"], row["waits_for"]) for row in rows}
        self._marks = dict(self._found)
        # after the locks: it is never below the epoch of a mark, and what an operator dropped under them is seen
        [known] = await driver.fetch(_KNOWN, self._topic, ordered)
        self.epoch = known["epoch"]
        if known["dropped"]:
            dropped = await driver.fetch(_DROPPED, self._topic, ordered)
            self._dropped = frozenset((row["key"], row["sequence"], row["message_id"]) for row in dropped)

    def of(self, key: str) -> Mark:
        """How far a key is."""
        return self._marks[key]

    def waits_for(self, key: str) -> str | None:
        """What the key waits for, if anything."""
        return self._marks[key].waits_for

    def is_dropped(self, message: Message) -> bool:
        """Whether an operator has dropped this very message: another one under its number is none of that."""
        return (message.key, message.sequence, message.id) in self._dropped

    def advance(self, key: str, sequence: int) -> None:
        """This number was applied."""
        self._marks[key] = self._marks[key]._replace(sequence=sequence)

    def wait(self, key: str, waits_for: str | None) -> None:
        """The key goes no further until what it waits for has come (None: it goes on)."""
        self._marks[key] = self._marks[key]._replace(waits_for=waits_for)

    def put(self, key: str, mark: Mark) -> None:
        """The key was built anew, this far."""
        self._marks[key] = mark

    async def save(self) -> None:
        """Write back what has changed."""
        changed = [(self._topic, key, *mark) for key, mark in self._marks.items() if mark != self._found[key]]
        if changed:
            driver = await driver_of(self._connection)
            await driver.executemany(_SAVE, changed)
