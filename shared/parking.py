"""Parked messages: those that could not be taken, those behind them, and those that came before their turn.

A row keeps the message as it came, byte for byte, with the reason. Nothing that a stranger can put into a record may
make parking itself fail: it would hold up its whole partition.
"""

import base64
import json
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.bus import Delivery
from shared.messages import KEY_LENGTH, Message

GAP = "gap"
"""What a key waits for when a number is missing; but for `NEW_EPOCH`, another value is the slug of a failure."""
NEW_EPOCH = "new-epoch"
"""What a key waits for when the bus told of an epoch that its producer's log has not confirmed yet."""
KEY_WAITS = "key-waits"
"""The slug of a message that is parked only because one before it is."""
NOT_APPLIED = "not-applied"
"""The slug of a message that was the next of its key and could not be applied."""

ERROR_LENGTH = 2000

# After a bus has forgotten its records another one can come to stand at the same place: the older row gives way, and
# is not lost.
_GIVE_WAY = """
UPDATE parked_messages SET number = NULL, "offset" = NULL
WHERE topic = :topic AND number = :number AND "offset" = :offset
    AND (message_id IS DISTINCT FROM :message_id OR body IS DISTINCT FROM CAST(:body AS bytea))
"""
# A republication brings a waiting key's messages again, at other places: each is parked once.
_PARK = """
INSERT INTO parked_messages
    (topic, number, "offset", key, sequence, message_id, headers, body, slug, error, attempts)
SELECT :topic, CAST(:number AS integer), CAST(:offset AS bigint), :key, CAST(:sequence AS bigint), :message_id,
    CAST(:headers AS jsonb), CAST(:body AS bytea), :slug, :error, :attempts
WHERE NOT EXISTS (
    SELECT FROM parked_messages WHERE topic = :topic AND key = :key AND sequence = CAST(:sequence AS bigint)
)
ON CONFLICT DO NOTHING
"""
_WAIT_AGAIN = """
UPDATE parked_messages SET slug = :gap WHERE topic = :topic AND key = :key AND slug = ANY(:parked)
"""
_PARK_AGAIN = """
UPDATE parked_messages SET slug = :slug, error = :error, attempts = greatest(attempts, 1)
WHERE topic = :topic AND key = :key AND sequence = :sequence AND message_id = :id
"""
# what the bus brought under this number is not what the producer's log has there: it never was the key's
_NOT_THE_KEYS = """
DELETE FROM parked_messages WHERE topic = :topic AND key = :key AND sequence = :sequence AND message_id <> :id
"""
_COUNT = """
UPDATE parked_messages SET attempts = attempts + 1
WHERE topic = :topic AND key = :key AND sequence = :sequence AND slug = :gap RETURNING attempts
"""


async def park(connection: AsyncConnection, delivery: Delivery, message: Message | None, slug: str, error: str) -> None:
    """Keep a delivery that waits, in the caller's transaction; `message` is None where it is none."""
    values = {
        "topic": delivery.topic,
        "number": delivery.number,
        "offset": delivery.offset,
        "key": message.key if message else _readable(delivery.key or b"")[:KEY_LENGTH],
        "sequence": message.sequence if message else None,
        "message_id": message.id if message else None,
        "headers": json.dumps([[_clean(name), _header(value)] for name, value in delivery.headers]),
        "body": delivery.body,
        "slug": slug,
        "error": _said(error),
        "attempts": 0 if slug in (GAP, KEY_WAITS) else 1,
    }
    await connection.execute(text(_GIVE_WAY), values)
    await connection.execute(text(_PARK), values)


async def wait_again(connection: AsyncConnection, topic: str, key: str) -> None:
    """A parked key's messages wait for the producer's log, in the caller's transaction, with the mark locked."""
    values = {"topic": topic, "key": key, "gap": GAP, "parked": [NOT_APPLIED, KEY_WAITS]}
    await connection.execute(text(_WAIT_AGAIN), values)


async def count_attempt(connection: AsyncConnection, topic: str, key: str, sequence: int) -> int:
    """A message of a key that is being healed is run now: how often that makes, 0 for one that is not parked."""
    values = {"topic": topic, "key": key, "sequence": sequence, "gap": GAP}
    return await connection.scalar(text(_COUNT), values) or 0


async def drop_parked(connection: AsyncConnection, topic: str, key: str) -> None:
    """Drop what is parked of a key that is built anew, in the caller's transaction; what is no message stays."""
    await connection.execute(
        text("DELETE FROM parked_messages WHERE topic = :topic AND key = :key AND sequence IS NOT NULL"),
        {"topic": topic, "key": key},
    )


async def park_fetched(connection: AsyncConnection, topic: str, message: Message, error: str) -> None:
    """Keep a message of the producer's log that could not be applied, and let the parked ones of its key wait for it.

    Its bytes are kept where the bus brought it too; else it has no place, and stands in the producer's log alone: what
    it is called is kept.
    """
    values = {
        "topic": topic,
        "key": message.key,
        "sequence": message.sequence,
        "id": message.id,
        "headers": json.dumps([["ce_type", message.ce_type]]),
        "slug": NOT_APPLIED,
        "error": _said(error),
    }
    await connection.execute(text(_NOT_THE_KEYS), values)
    await connection.execute(
        text("UPDATE parked_messages SET slug = :waits WHERE topic = :topic AND key = :key AND slug = :gap"),
        {"topic": topic, "key": message.key, "waits": KEY_WAITS, "gap": GAP},
    )
    known = await connection.execute(text(_PARK_AGAIN), values)
    if known.rowcount == 0:
        await connection.execute(
            text(
                "INSERT INTO parked_messages (topic, key, sequence, message_id, headers, slug, error, attempts) "
                "VALUES (:topic, :key, :sequence, :id, CAST(:headers AS jsonb), :slug, :error, 1)"
            ),
            values,
        )


def header_values(headers: str) -> tuple[tuple[str, bytes], ...]:
    """The headers of a parked row, which are JSON there, as they came."""
    return tuple((name, _bytes(value)) for name, value in json.loads(headers))


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"])


def _header(value: bytes) -> Any:
    """A header's value as JSON that gives the same bytes back: a text, or `{"base64": ...}` where it is none."""
    try:
        readable = value.decode()
    except UnicodeDecodeError:
        readable = "\0"
    return {"base64": base64.b64encode(value).decode()} if "\0" in readable else readable


def _readable(value: bytes) -> str:
    return _clean(value.decode(errors="backslashreplace"))


def _clean(value: str) -> str:
    """What a column of PostgreSQL can hold: no NUL, and no half of a surrogate pair."""
    return value.encode(errors="backslashreplace").decode().replace("\0", "\\x00")


def _said(error: str) -> str:
    return _clean(error)[:ERROR_LENGTH]
