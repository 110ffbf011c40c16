"""Marks become bodies: one trip at a time, at most once a second, and only what really changed.

A trip is locked, its marks are taken, and only then is the picture read: what was committed with a mark is seen. All
audiences of the trip are rendered from that one reading, so that an audience that is new cannot miss a change either.
An item whose block is the same keeps its LAST-MODIFIED; one whose block changed gets the second of this rendering,
which is later than any before. Nothing is rendered while a consumer is catching up.
"""

import asyncio
import contextlib
import gzip
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.notifications.entry import Entry
from services.notifications.feed import Draft, calendar, draft, stamped, zones_of
from services.notifications.picture import Picture, snapshot
from services.notifications.programme import Audience, feed_name, programme
from shared.database import driver_of, is_away

POLL_SECONDS = 0.25
BODIES_LOCK = (3, 0)
"""Bodies become visible in the order of their places, so that a shelf with a cursor misses none."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """What an item's block last was in one audience's feed, and when it became that."""

    digest: bytes
    last_modified: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """One audience's body, and the revisions that are new with it."""

    audience: UUID
    body: bytes
    revised: Mapping[UUID, Revision]


@dataclass(kw_only=True)
class BlockCache:
    """The blocks of one audience's last rendering: an entry that is equal in equal zones is not written again."""

    zones: Mapping[str, bytes | None] = field(default_factory=dict)
    drafts: dict[UUID, tuple[Entry, Draft]] = field(default_factory=dict)

    def of(self, entries: Sequence[Entry], zones: Mapping[str, bytes | None], domain: str) -> list[Draft]:
        """A draft for each entry, in their order; what is no longer there is forgotten."""
        kept = self.drafts if zones == self.zones else {}
        drafts: dict[UUID, tuple[Entry, Draft]] = {}
        for entry in entries:
            before = kept.get(entry.id)
            same = before is not None and before[0] == entry
            drafts[entry.id] = before if same and before else (entry, draft(entry, domain=domain, zones=zones))
        self.zones, self.drafts = zones, drafts
        return [drafted for _, drafted in drafts.values()]


def render(
    picture: Picture,
    audience: UUID,
    reader: Audience,
    *,
    domain: str,
    now: datetime,
    revisions: Mapping[UUID, Revision],
    cache: BlockCache,
) -> Rendering:
    """One audience's body from a picture: pure, but for the cache, which changes nothing but the time it takes."""
    entries = programme(picture, reader)
    zones = zones_of(entries)
    second = now.replace(microsecond=0)
    revised: dict[UUID, Revision] = {}
    blocks = []
    for entry, drafted in zip(entries, cache.of(entries, zones, domain), strict=True):
        known = revisions.get(entry.id)
        if known is None or known.digest != drafted.digest:
            later = second if known is None else max(second, known.last_modified + timedelta(seconds=1))
            known = revised[entry.id] = Revision(digest=drafted.digest, last_modified=later)
        blocks.append(stamped(drafted, known.last_modified))
    used = [zone for zone in zones.values() if zone is not None]
    return Rendering(audience=audience, body=calendar(feed_name(picture, reader), used, blocks), revised=revised)


class Renderer:
    """Renders marked trips. `run` goes on until cancelled; `wake` is called when there may be marks."""

    def __init__(self, *, engine: AsyncEngine, domain: Callable[[], str], rendered: Callable[[], None]) -> None:
        self.bodies = 0
        self._engine = engine
        self._domain = domain
        self._rendered = rendered
        self._woken = asyncio.Event()
        self._caches: dict[UUID, BlockCache] = {}

    def wake(self) -> None:
        """There may be new marks."""
        self._woken.set()

    async def run(self) -> None:
        """Render for ever."""
        while True:
            try:
                pause = await self._round()
            except Exception as error:
                if not is_away(error):
                    log.exception("renderer.failed")
                pause = 1.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()
            self._woken.clear()

    async def waiting(self) -> int:
        """How many trips have marks."""
        async with self._engine.connect() as connection:
            count: int | None = await connection.scalar(text("SELECT count(DISTINCT trip) FROM marks"))
        return count or 0

    async def _round(self) -> float:
        """Render what may be rendered now; returns for how long there is nothing more to do."""
        async with self._engine.connect() as connection:
            if await connection.scalar(text("SELECT EXISTS (SELECT FROM consumer_offsets WHERE behind)")):
                return POLL_SECONDS
            trips = list(await connection.scalars(text("SELECT DISTINCT trip FROM marks LIMIT 1000")))
        too_early = False
        for trip in trips:
            try:
                too_early |= not await self._trip(trip)
            except Exception as error:
                if is_away(error):
                    raise
                # a failure of rendering parks nothing: the marks stand, and the next round tries again
                log.exception("rendering.failed", trip=str(trip))
                too_early = True
        if too_early:
            return max(0.005, 1.0 - time.time() % 1.0)
        return POLL_SECONDS

    async def _trip(self, trip: UUID) -> bool:
        """Render one trip; False if its last rendering was in this very second, or is going on elsewhere."""
        async with self._engine.begin() as connection:
            await connection.execute(
                text("INSERT INTO renderings VALUES (:trip, 0) ON CONFLICT DO NOTHING"), {"trip": trip}
            )
            second = await connection.scalar(
                text("SELECT second FROM renderings WHERE trip = :trip FOR UPDATE SKIP LOCKED"), {"trip": trip}
            )
            now = datetime.now(UTC)
            if second is None or int(now.timestamp()) <= second:
                return False
            taken = await connection.execute(text("DELETE FROM marks WHERE trip = :trip"), {"trip": trip})
            if taken.rowcount == 0:
                return True
            await connection.execute(
                text("UPDATE renderings SET second = :second WHERE trip = :trip"),
                {"trip": trip, "second": int(now.timestamp())},
            )
            written = await self._audiences(connection, trip, now)
        if written:
            self.bodies += written
            self._rendered()
        log.info("trip.rendered", trip=str(trip), bodies=written)
        return True

    async def _audiences(self, connection: AsyncConnection, trip: UUID, now: datetime) -> int:
        """Render every audience of the trip from one reading of the picture; returns how many bodies are new."""
        driver = await driver_of(connection)
        audiences = await driver.fetch(
            "SELECT id, delegation, level, alarm_seconds FROM audiences WHERE trip = $1", trip
        )
        if not audiences:
            return 0
        rows = await driver.fetch("SELECT kind, id, sequence, document FROM things WHERE trip = $1", trip)
        revisions = await self._revisions(driver, [audience["id"] for audience in audiences])
        domain = self._domain()

        def rendered() -> list[Rendering]:
            picture = snapshot((row["kind"], row["id"], row["sequence"], json.loads(row["document"])) for row in rows)
            return [
                render(
                    picture,
                    audience["id"],
                    reader_of(audience),
                    domain=domain,
                    now=now,
                    revisions=revisions.get(audience["id"], {}),
                    cache=self._caches.setdefault(audience["id"], BlockCache()),
                )
                for audience in audiences
            ]

        return await _store(driver, await asyncio.to_thread(rendered), now)

    async def _revisions(self, driver: Any, audiences: Sequence[UUID]) -> dict[UUID, dict[UUID, Revision]]:
        rows = await driver.fetch(
            "SELECT audience, item, digest, last_modified FROM revisions WHERE audience = ANY($1)", audiences
        )
        known: dict[UUID, dict[UUID, Revision]] = {}
        for row in rows:
            revision = Revision(digest=row["digest"], last_modified=row["last_modified"])
            known.setdefault(row["audience"], {})[row["item"]] = revision
        return known


def reader_of(audience: Mapping[str, Any]) -> Audience:
    """An audience's row as the programme wants it."""
    alarm = timedelta(seconds=audience["alarm_seconds"]) if audience["alarm_seconds"] >= 0 else None
    return Audience(delegation=audience["delegation"], level=audience["level"], alarm=alarm)


async def _store(driver: Any, renderings: Iterable[Rendering], now: datetime) -> int:
    """Write revisions, and the bodies that differ from the newest ones; returns how many those were."""
    renderings = list(renderings)
    await driver.executemany(
        "INSERT INTO revisions VALUES ($1, $2, $3, $4) ON CONFLICT (audience, item) "
        "DO UPDATE SET digest = excluded.digest, last_modified = excluded.last_modified",
        [
            (rendering.audience, item, revision.digest, revision.last_modified)
            for rendering in renderings
            for item, revision in rendering.revised.items()
        ],
    )
    newest = {
        row["audience"]: row
        for row in await driver.fetch(
            "SELECT DISTINCT ON (audience) audience, version, etag FROM bodies WHERE audience = ANY($1) "
            "ORDER BY audience, version DESC",
            [rendering.audience for rendering in renderings],
        )
    }
    fresh = []
    for rendering in renderings:
        etag = etag_of(rendering.body)
        before = newest.get(rendering.audience)
        if before is None or before["etag"] != etag:
            version = before["version"] + 1 if before else 1
            # mtime=0: the same bytes on every replica
            fresh.append((rendering.audience, version, now, etag, gzip.compress(rendering.body, 6, mtime=0)))
    if fresh:
        await driver.execute("SELECT pg_advisory_xact_lock($1, $2)", *BODIES_LOCK)
        await driver.executemany(
            "INSERT INTO bodies (audience, version, since, etag, compressed) VALUES ($1, $2, $3, $4, $5)", fresh
        )
    return len(fresh)


def etag_of(body: bytes) -> str:
    """The strong tag of exactly these bytes, without quotes."""
    return hashlib.sha256(body).hexdigest()[:32]
