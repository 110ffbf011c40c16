"""The read models of feed links, and what their rules ask of the picture."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.notifications import feed_link, shapes, tables
from services.notifications.feed_link import Audience, FeedLink
from services.notifications.reactions import PARTICIPANTS, SCHEDULE
from services.notifications.shelf import LINK
from services.notifications.upkeep import RENDER_ALL
from shared.command import Changed, Kind
from shared.database import driver_of
from shared.errors import Invalid, NotYetKnown, WrongState
from shared.event_store import Codec, EventStore
from shared.messages import topic_of
from shared.rebuilding import build_all_anew


def shown(link: FeedLink) -> dict[str, Any]:
    """A link without its secrets' hashes."""
    fields = {name: getattr(link, name) for name in shapes.FeedLink.model_fields}
    return shapes.FeedLink.model_validate(fields).model_dump(mode="json")


FEED_LINK = Kind(name=feed_link.NAME, evolve=feed_link.evolve, show=shown)

STORE = EventStore(Codec(feed_link.EVENTS))

TOLD_ON = {topic_of("schedule", openly=False): SCHEDULE, topic_of("participants", openly=False): PARTICIPANTS}
"""The kinds of things by the topic that tells of them."""

ENDS = ("departs_at", "arrives_at", "ends_at")


async def project(connection: AsyncConnection, changed: Sequence[Changed[Any]]) -> None:
    """Write the rows of links that changed; a link's audience is made with its first link, and its trip marked."""
    for change in changed:
        link: FeedLink = change.state
        row = {
            "id": link.id,
            "trip": link.trip,
            "audience": await _audience(connection, link, change.traceparent),
            "expires_at": link.expires_at,
            "revision": link.revision,
            "thing": shown(link),
            "secrets": json.loads(LINK.dump_json(link)),
        }
        await connection.execute(
            insert(tables.feed_links).values(row).on_conflict_do_update(index_elements=["id"], set_=row)
        )


async def _audience(connection: AsyncConnection, link: FeedLink, traceparent: str | None) -> UUID:
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
    await connection.execute(tables.marks.insert().values(trip=link.trip, traceparent=traceparent))
    return made


async def audience_of(connection: AsyncConnection, trip: UUID, delegation: UUID) -> Audience:
    """For whom a link to a delegation's feed would be. Raises `NotYetKnown`, `Invalid`, `WrongState`."""
    driver = await driver_of(connection)
    rows = await driver.fetch(
        "SELECT kind, trip, document FROM things "
        "WHERE (kind = 'trip' AND id = $1) OR (kind = 'delegation' AND id = $2)",
        trip,
        delegation,
    )
    found = {row["kind"]: row for row in rows}
    if len(found) < 2:
        raise NotYetKnown(f"the delegation {delegation} of the trip {trip} is not known here yet")
    if found["delegation"]["trip"] != trip:
        raise Invalid.field("delegation", f"{delegation} is not a delegation of this trip")
    document = json.loads(found["delegation"]["document"])
    if document.get("status") == "dissolved":
        raise WrongState("The delegation is dissolved.", delegation=str(delegation))
    ends_at = trip_end(json.loads(found["trip"]["document"]), await _last_end(driver, trip))
    return Audience(delegation_kind=document["kind"], trip_ends_at=ends_at)


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


async def rebuild(connection: AsyncConnection) -> int:
    """Let every trip's picture be built anew from the producers' logs by who serves; returns how many links were.

    What is there is replaced trip by trip, and feeds serve their last bodies until then: so each thing's SEQUENCE is
    known when its successor comes, which may be told in fewer messages. Links, revisions and bodies are this service's
    own facts and stay.
    """
    await build_all_anew(connection, {topic: await _trips(connection, kinds) for topic, kinds in TOLD_ON.items()})
    # a trip that no thing and no mark is left of is in the feeds all the same
    await connection.execute(text("LOCK TABLE feed_links IN EXCLUSIVE MODE"))
    await connection.execute(RENDER_ALL)
    links = [state async for state in _links(connection)]
    await project(connection, [Changed(kind=FEED_LINK.name, state=link) for link in links])
    return len(links)


async def _trips(connection: AsyncConnection, kinds: Sequence[str]) -> list[str]:
    query = text("SELECT DISTINCT trip::text FROM things WHERE kind = ANY(:kinds)")
    return list(await connection.scalars(query, {"kinds": list(kinds)}))


async def drift(connection: AsyncConnection) -> AsyncIterator[str]:
    """Names every feed link's row that is not what its stream folds to."""
    rows = (await connection.execute(select(tables.feed_links))).mappings()
    held = {row["id"]: (row["revision"], LINK.validate_json(row["secrets"])) for row in rows}
    async for link in _links(connection):
        if held.pop(link.id, None) != (link.revision, link):
            yield f"feed_link {link.id}: the read model is not what the log folds to"
    for lost in held:
        yield f"feed_link {lost}: the read model has it, the log has not"


async def _links(connection: AsyncConnection) -> AsyncIterator[FeedLink]:
    streams = await connection.scalars(text("SELECT DISTINCT stream FROM events ORDER BY stream"))
    for stream in streams.all():
        state: FeedLink | None = None
        for event in await STORE.load(connection, stream):
            state = FEED_LINK.evolve(state, event)
        if state is not None:
            yield state
