"""The log of one service: events in streams, in one order that a reader can trust.

What stands in `position` order is what readers saw become visible: the lock is the last thing that an append takes
before it inserts, and it is held until the commit. A reader with a cursor therefore misses nothing. The numbers under
which an event is published (dense per topic and key) are given in the same statement, so that no crash can give one
number to two facts or leave a hole.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import TypeAdapter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.database import driver_of

Upcaster = Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]
"""From the data of one stored type and version to the next: `(type, data)`."""

APPEND_LOCK = (1, 0)
"""The advisory lock (two-integer key space) that orders the log of one database."""


class ConcurrentAppend(Exception):
    """A stream has another version than the one that the decision was made on: load again and decide again."""


class NotInTransaction(Exception):
    """An append outside a transaction would be visible at once and could not be taken back."""


class UnknownEventType(Exception):
    """The log holds a type that this program does not know: it is older than its data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An event to be appended. `data` is the event object, `open` whether it is told on the open topic too."""

    id: UUID
    data: object
    open: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """What is to be appended to one stream, and the version that it must have (0: it must be new)."""

    stream: str
    expected_version: int
    events: Sequence[NewEvent]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event as it stands in the log. `open_sequence` is None where the open topic does not carry it."""

    position: int
    id: UUID
    stream: str
    version: int
    type: str
    data: Any
    metadata: Mapping[str, Any]
    key: str
    open_sequence: int | None
    cleared_sequence: int
    recorded_at: datetime


class Codec:
    """Event classes to stored JSON and back. A type is `<class name>.v<version>`; old ones are upcast on read."""

    def __init__(self, classes: Iterable[type], upcasters: Mapping[str, Upcaster] | None = None) -> None:
        self._upcasters = dict(upcasters or {})
        self._adapters: dict[str, TypeAdapter[Any]] = {}
        self._types: dict[type, str] = {}
        for cls in classes:
            stored_type = f"{cls.__name__}.v{getattr(cls, 'VERSION', 1)}"
            self._adapters[stored_type] = TypeAdapter(cls)
            self._types[cls] = stored_type

    @property
    def types(self) -> tuple[str, ...]:
        """The stored types of today."""
        return tuple(self._adapters)

    def encode(self, event: object) -> tuple[str, str]:
        """The stored type and JSON text of an event."""
        stored_type = self._types[type(event)]
        return stored_type, self._adapters[stored_type].dump_json(event).decode()

    def decode(self, stored_type: str, stored: str) -> Any:
        """The event object. Raises `UnknownEventType`."""
        while (upcaster := self._upcasters.get(stored_type)) is not None:
            stored_type, data = upcaster(json.loads(stored))
            stored = json.dumps(data)
        adapter = self._adapters.get(stored_type)
        if adapter is None:
            raise UnknownEventType(f"the log holds {stored_type}, which this program does not know")
        return adapter.validate_json(stored)


_APPEND = """
WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock({lock})),
stale AS MATERIALIZED (
    SELECT FROM unnest($9::text[], $10::int[]) AS expected(stream, version)
    WHERE version <> coalesce((SELECT max(version) FROM events WHERE events.stream = expected.stream), 0)
),
fresh AS MATERIALIZED (
    SELECT new.* FROM locked,
        unnest($1::uuid[], $2::text[], $3::int[], $4::text[], $5::jsonb[], $6::bytea[], $7::bool[])
        WITH ORDINALITY AS new(id, stream, version, type, data, digest, is_open, nth)
    WHERE NOT EXISTS (SELECT FROM stale)
),
head AS (
    INSERT INTO heads AS h (key, open_sequence, cleared_sequence)
    SELECT $8, count(*) FILTER (WHERE is_open), count(*) FROM fresh HAVING count(*) > 0
    ON CONFLICT (key) DO UPDATE SET open_sequence = h.open_sequence + excluded.open_sequence,
        cleared_sequence = h.cleared_sequence + excluded.cleared_sequence
    RETURNING open_sequence, cleared_sequence
)
INSERT INTO events (id, stream, version, type, data, metadata, key, open_sequence, cleared_sequence, digest)
SELECT id, stream, version, type, data, $11::jsonb, $8,
    CASE WHEN is_open THEN head.open_sequence - count(*) FILTER (WHERE is_open) OVER ()
        + count(*) FILTER (WHERE is_open) OVER (ORDER BY nth) END,
    head.cleared_sequence - count(*) OVER () + nth, digest
FROM fresh, head ORDER BY nth
RETURNING position
"""
_COLUMNS = (
    "position, id, stream, version, type, data, metadata, key, open_sequence, cleared_sequence, recorded_at, digest"
)


class EventStore:
    """Appends and reads. Every method works inside the caller's connection; the caller commits."""

    append_statement = _APPEND.format(lock=f"{APPEND_LOCK[0]}, {APPEND_LOCK[1]}")

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    async def append(
        self, connection: AsyncConnection, key: str, metadata: Mapping[str, Any], appends: Sequence[Append]
    ) -> list[int]:
        """Append to one or several streams under one key; returns positions, in order.

        It is the last thing before the commit: from here on every other append waits. Raises `ConcurrentAppend`
        (the transaction is then spoilt) and `NotInTransaction`.
        """
        driver = await driver_of(connection)
        if not driver.is_in_transaction():
            raise NotInTransaction
        rows = [row for append in appends for row in self._rows(append, key, canonical(metadata))]
        try:
            stored = await driver.fetch(
                self.append_statement,
                *(list(column) for column in zip(*rows, strict=True)),
                key,
                [append.stream for append in appends],
                [append.expected_version for append in appends],
                canonical(metadata),
            )
        except asyncpg.UniqueViolationError as error:
            raise ConcurrentAppend(str(error)) from error
        if len(stored) != len(rows):
            raise ConcurrentAppend(f"not as expected: {', '.join(append.stream for append in appends)}")
        return [row["position"] for row in stored]

    async def load(self, connection: AsyncConnection, stream: str) -> list[Any]:
        """The events of one stream, oldest first; the length is its version."""
        driver = await driver_of(connection)
        rows = await driver.fetch("SELECT type, data FROM events WHERE stream = $1 ORDER BY version", stream)
        return [self.codec.decode(row["type"], row["data"]) for row in rows]

    async def after(self, driver: Any, position: int, limit: int) -> list[StoredEvent]:
        """The next events of the whole log behind a position."""
        rows = await driver.fetch(
            f"SELECT {_COLUMNS} FROM events WHERE position > $1 ORDER BY position LIMIT $2", position, limit
        )
        return [self._stored(row) for row in rows]

    async def of_key(self, driver: Any, key: str, *, after: int, openly: bool, limit: int) -> list[StoredEvent]:
        """The events of one key behind a sequence number of the open or the cleared topic."""
        column = "open_sequence" if openly else "cleared_sequence"
        rows = await driver.fetch(
            f"SELECT {_COLUMNS} FROM events WHERE key = $1 AND {column} > $2 ORDER BY {column} LIMIT $3",
            key,
            after,
            limit,
        )
        return [self._stored(row) for row in rows]

    async def damage(self, connection: AsyncConnection) -> AsyncIterator[str]:
        """Reads the whole log and names all that is wrong with it: one line each. In the caller's transaction."""
        # this opens it: before the first statement of Core, one on the driver's connection would run outside
        await connection.execute(text("SELECT 1"))
        driver = await driver_of(connection)
        versions: dict[str, int] = {}
        open_heads: dict[str, int] = {}
        cleared_heads: dict[str, int] = {}
        async for row in driver.cursor(f"SELECT {_COLUMNS} FROM events ORDER BY position", prefetch=1000):
            where = f"position {row['position']} ({row['stream']} {row['version']})"
            if _digest(*(row[name] for name in _DIGESTED)) != row["digest"]:
                yield f"{where}: the event is not what was stored"
            versions[row["stream"]] = _next(versions, row["stream"])
            if row["version"] != versions[row["stream"]]:
                yield f"{where}: version {versions[row['stream']]} is missing"
                versions[row["stream"]] = row["version"]
            for heads, number in ((open_heads, row["open_sequence"]), (cleared_heads, row["cleared_sequence"])):
                if number is not None and number != _next(heads, row["key"]):
                    yield f"{where}: its number {number} on the topic leaves a hole or stands twice"
                if number is not None:
                    heads[row["key"]] = number
        # the last events of a key leave no hole behind them
        for head in await driver.fetch("SELECT key, open_sequence, cleared_sequence FROM heads ORDER BY key"):
            found = open_heads.pop(head["key"], 0), cleared_heads.pop(head["key"], 0)
            if found != (head["open_sequence"], head["cleared_sequence"]):
                yield f"key {head['key']}: its last numbers are {found}, and not those that were given out"
        for key in cleared_heads:
            yield f"key {key}: nothing says which numbers were given out"

    def _rows(self, append: Append, key: str, metadata: str) -> Iterable[tuple[Any, ...]]:
        for version, event in enumerate(append.events, start=append.expected_version + 1):
            stored_type, data = self.codec.encode(event.data)
            digest = _digest(event.id, append.stream, version, stored_type, data, metadata, key)
            yield event.id, append.stream, version, stored_type, data, digest, event.open

    def _stored(self, row: Mapping[str, Any]) -> StoredEvent:
        fields = {name: row[name] for name in StoredEvent.__slots__}
        fields["data"] = self.codec.decode(row["type"], row["data"])
        fields["metadata"] = json.loads(row["metadata"])
        return StoredEvent(**fields)


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces: one text for one content."""
    return _CANONICAL.encode(value)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_DIGESTED = ("id", "stream", "version", "type", "data", "metadata", "key")


def _digest(event: UUID, stream: str, version: int, stored_type: str, data: str, metadata: str, key: str) -> bytes:
    content = canonical([str(event), stream, version, stored_type, _content(data), _content(metadata), key])
    return hashlib.sha256(content.encode()).digest()


def _content(stored: str) -> Any:
    """The JSON value of a text, its numbers as one text each: jsonb gives -0.0 back as 0.0, and 1e22 in 23 digits."""
    return _EXACT.decode(stored)


def _number(digits: str) -> str:
    return str(Decimal(digits).normalize() + 0)


_EXACT = json.JSONDecoder(parse_float=_number, parse_int=_number)


def _next(seen: Mapping[str, int], name: str) -> int:
    return seen.get(name, 0) + 1
