"""The read models of feed links, and what their rules ask of the picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.notifications import feed_link, shapes, tables
from services.notifications.feed_link import Audience, FeedLink
from services.notifications.shelf import LINK
from shared.command import Changed, Kind
from shared.database import driver_of
from shared.event_store import Codec, EventStore


def shown(link: FeedLink) -> dict[str, Any]:
    """A link without its secrets' hashes."""
    fields = {name: getattr(link, name) for name in shapes.FeedLink.model_fields}
    return shapes.FeedLink.model_validate(fields).model_dump(mode="json")


FEED_LINK = Kind(name=feed_link.NAME, evolve=feed_link.evolve, show=shown)

STORE = EventStore(Codec(feed_link.EVENTS))

ENDS = ("departs_at", "arrives_at", "ends_at")


@dataclass(frozen=True, kw_only=True)
class Known:
    """A delegation as the picture has it: its trip, and for whom a link would be."""

    trip: UUID
    audience: Audience


async def project(connection: AsyncConnection, changed: Sequence[Changed[Any]]) -> None:
    """Write the rows of issued, rotated and revoked links; a link's audience is made with its first link, and marked."""
    for change in changed:
        link: FeedLink = change.state
        row = {
            "id": link.id,
            "trip": link.trip,
            "audience": await _audience(connection, link),
            "expires_at": link.expires_at,
            "revision": link.revision,
            "thing": shown(link),
            "secrets": json.loads(LINK.dump_json(link)),
        }
        await connection.execute(
            insert(tables.feed_links).values(row).on_conflict_do_update(index_elements=["id"], set_=row)
        )


async def _audience(connection: AsyncConnection, link: FeedLink) -> UUID:
    values = {
        "trip": link.trip,
        "delegation": link.delegation,
        "level": link.level,
        "alarm_seconds": -1 if link.alarm is None else link.alarm // timedelta(seconds=1),
    }
    found: UUID | None = await connection.scalar(
        text(
            "SELECT id FROM audiences WHERE trip = :trip AND delegation = :delegation AND level = :level "
            "AND alarm_seconds = :alarm_seconds"
        ),
        values,
    )
    if found is not None:
        return found
    made: UUID = await connection.scalar(
        text(
            "INSERT INTO audiences VALUES (gen_random_uuid(), :trip, :delegation, :level, :alarm_seconds) RETURNING id"
        ),
        values,
    )
    await connection.execute(tables.marks.insert().values(trip=link.trip))
    return made


async def known_delegation(connection: AsyncConnection, trip: UUID, delegation: UUID) -> Known | None:
    """A delegation and its trip, when both have been heard of."""
    driver = await driver_of(connection)
    rows = await driver.fetch(
        "SELECT kind, trip, document FROM things WHERE (kind = 'trip' AND id = $1) OR (kind = 'delegation' AND id = $2)",
        trip,
        delegation,
    )
    found = {row["kind"]: row for row in rows}
    if len(found) < 2:
        return None
    ends_at = trip_end(json.loads(found["trip"]["document"]), await _last_end(driver, trip))
    kind = json.loads(found["delegation"]["document"])["kind"]
    return Known(
        trip=found["delegation"]["trip"], audience=Audience(delegation_kind=kind, trip_ends_at=ends_at)
    )


def trip_end(trip: Mapping[str, Any], last_item: datetime | None) -> datetime:
    """When a trip is over: at the end of its last day at home, or with its last item where that is later."""
    try:
        zone: Any = ZoneInfo(trip["home"]["zone"])
    except (ZoneInfoNotFoundError, ValueError):
        zone = UTC
    midnight = datetime.combine(date.fromisoformat(trip["ends_on"]) + timedelta(days=1), time(), zone).astimezone(UTC)
    return midnight if last_item is None else max(midnight, last_item)


async def _last_end(driver: Any, trip: UUID) -> datetime | None:
    fields = ", ".join(f"document ->> '{name}'" for name in ENDS)
    # instants are written in UTC with Z, so their texts sort as they do
    latest = await driver.fetchval(
        f"SELECT max(greatest({fields})) FROM things WHERE trip = $1 AND kind IN ('stop', 'movement', 'meeting')", trip
    )
    return None if latest is None else datetime.fromisoformat(latest)
