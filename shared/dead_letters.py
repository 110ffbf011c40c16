"""The dead-letter announcements: that a message was parked, where and why; never its key, body or headers.

A parked row is its own intent: it is announced after it was committed, and marked when the bus has acknowledged, so
an announcement can come twice (with the same id) and is never lost.
"""

import asyncio
import json
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.background import News, heed_cancellation
from shared.bus import Bus, BusAway, Record
from shared.database import is_away
from shared.messages import rfc3339
from shared.parking import GAP, KEY_WAITS

POLL_SECONDS = 1.0

log = structlog.get_logger()


def dead_letter_topic(service: str) -> str:
    """Where a service announces what it could not take."""
    return f"attache.{service}.dead-letter"


async def announce_parked(service: str, engine: AsyncEngine, bus: Bus) -> None:
    """Announce what is parked, for ever."""
    news = News()
    while True:
        try:
            while await _announce_some(service, engine, bus):
                pass
            news.over()
        except Exception as error:
            heed_cancellation()
            known = isinstance(error, BusAway) or is_away(error)
            if news.is_new(error):
                log.warning("dead_letters.waited", service=service, error=repr(error), exc_info=not known)
        await asyncio.sleep(POLL_SECONDS)


async def _announce_some(service: str, engine: AsyncEngine, bus: Bus) -> bool:
    async with engine.connect() as connection:
        rows = await connection.execute(
            text(
                'SELECT id, topic, number, "offset", message_id, slug, parked_at FROM parked_messages '
                "WHERE announced_at IS NULL AND slug NOT IN (:gap, :waits) ORDER BY id LIMIT 100"
            ),
            {"gap": GAP, "waits": KEY_WAITS},
        )
        parked = rows.mappings().all()
    if not parked:
        return False
    producer = await bus.producer()
    try:
        await producer.send([_record(service, dict(row)) for row in parked])
    finally:
        await producer.close()
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE parked_messages SET announced_at = clock_timestamp() WHERE id = ANY(:ids)"),
            {"ids": [row["id"] for row in parked]},
        )
    return True


def _record(service: str, row: dict[str, Any]) -> Record:
    place = f"{row['topic']}/{row['number']}/{row['offset']}/{row['message_id']}"
    # one that the producer's log alone had stands nowhere on the bus
    number, offset = (-1 if row[name] is None else row[name] for name in ("number", "offset"))
    body = {
        "topic": row["topic"],
        "partition": number,
        "offset": offset,
        "id": row["message_id"],
        "slug": row["slug"],
    }
    return Record(
        topic=dead_letter_topic(service),
        key=f"{row['topic']}/{number}",
        headers=(
            ("content-type", "application/json"),
            ("ce_specversion", "1.0"),
            ("ce_id", str(uuid5(NAMESPACE_URL, f"attache:parked:{service}:{place}"))),
            ("ce_type", "attache.MessageParked.v1"),
            ("ce_source", f"/attache/{service}"),
            ("ce_time", rfc3339(row["parked_at"])),
            ("ce_dataschema", "urn:attache:schema:MessageParked:v1"),
        ),
        body=json.dumps(body).encode(),
    )
