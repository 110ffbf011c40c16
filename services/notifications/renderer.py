"""Marks become bodies: one trip at a time, at most once a second, and only what really changed.

A trip is locked, its marks are taken, and only then is the picture read: what was committed with a mark is seen. All
audiences of the trip are rendered from that one reading, so that an audience that is new cannot miss a change either.
Nothing is rendered while a consumer is catching up, nor a trip that is still to be built anew from the messages of a
restored producer; whether that is so, is asked after the picture was read, so that a rebuild that begins meanwhile
empties no feed. Seconds are the database's, one clock for all replicas.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.notifications.metrics import Progress
from services.notifications.programme import Audience
from services.notifications.rendering import Caches, Rendering, Revision, TripCache, compressed, etag_of, render
from shared.database import driver_of, is_away
from shared.trace_context import trace_ids
from shared.tracing import OFF, Tracing

POLL_SECONDS = 0.25
BUSY_SECONDS = 0.05
FAILED_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)
"""How long a trip that could not be rendered is left alone; a new mark is tried at once."""
BODIES_LOCK = (3, 0)
"""Bodies become visible in the order of their places, so that a shelf with a cursor misses none."""

_STALE = (
    "SELECT FROM consumer_epochs e JOIN consumer_marks m ON m.topic = e.topic AND m.key = {trip}::text "
    "AND m.epoch < e.epoch"
)
_MARKED = f"""
SELECT trip, max(id) AS mark FROM marks WHERE NOT EXISTS (SELECT FROM consumer_offsets WHERE behind)
    AND NOT EXISTS ({_STALE.format(trip="marks.trip")})
GROUP BY trip ORDER BY min(id)
"""

Stored = Mapping[UUID, int]
"""The new bodies of one rendering: the version, by audience."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """What is known of an audience's newest body; version 0 before the first."""

    version: int
    etag: str
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """A trip is left alone until then (monotonic seconds), or, if a mark is named, until there is a newer one."""

    until: float
    mark: int | None = None
    failures: int = 0


class CatchingUp(Exception):
    """The picture is not whole: what was begun is taken back, and the marks stand."""


class Renderer:
    """Renders marked trips. `run` goes on until cancelled; `wake` is called when there may be marks."""

    def __init__(
        self, *, engine: AsyncEngine, domain: Callable[[], str], rendered: Callable[[], None], tracing: Tracing = OFF
    ) -> None:
        self.progress = Progress()
        self._engine = engine
        self._domain = domain
        self._rendered = rendered
        self._tracing = tracing
        self._woken = asyncio.Event()
        self._caches = Caches()
        self._resting: dict[UUID, Rest] = {}

    def wake(self) -> None:
        """There may be new marks."""
        self._woken.set()

    async def run(self) -> None:
        """Render for ever."""
        while True:
            self._woken.clear()
            try:
                pause = await self.round()
            except Exception as error:
                if not is_away(error):
                    log.exception("renderer.failed")
                pause = 1.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()

    async def waiting(self) -> int:
        """How many trips have marks."""
        async with self._engine.connect() as connection:
            row = (await connection.execute(text(_WAITING))).one()
        self.progress.seen(row.oldest, row.trips)
        return int(row.trips)

    async def round(self) -> float:
        """Render what may be rendered now; returns for how long there is nothing more to do, unless one is woken."""
        async with self._engine.connect() as connection:
            marked = await (await driver_of(connection)).fetch(_MARKED)
        self._resting = {row["trip"]: self._resting[row["trip"]] for row in marked if row["trip"] in self._resting}
        for row in marked:
            trip, mark = row["trip"], row["mark"]
            rest = self._resting.get(trip)
            if rest and time.monotonic() < rest.until and (rest.mark is None or mark <= rest.mark):
                continue
            try:
                await self._trip(trip)
            except CatchingUp:
                return POLL_SECONDS
            except Exception as error:
                if is_away(error):
                    raise
                # a failure of rendering parks nothing: the marks stand, and it is tried again
                log.exception("rendering.failed", trip=str(trip))
                self.progress.failures += 1
                self._fail(trip, mark)
        now = time.monotonic()
        return min([POLL_SECONDS, *(max(0.001, rest.until - now) for rest in self._resting.values())])

    async def _trip(self, trip: UUID) -> None:
        """Render one trip, or let it rest if its last rendering was in this very second, or is going on elsewhere."""
        began = time.monotonic()
        async with self._engine.begin() as connection:
            now = await self._begin(connection, trip)
            if now is None:
                return
            driver = await driver_of(connection)
            taken = {row["id"]: row["traceparent"] for row in await driver.fetch(_TAKE_MARKS, trip)}
            if not taken:
                return
            with self._tracing.deriving("render", str(trip), taken.values()):
                stored, failed = await self._audiences(driver, trip, now)
            if failed:
                # the last of each trace
                left = {traceparent: mark for mark, traceparent in sorted(taken.items())}
                await driver.executemany(_PUT_MARK_BACK, [(mark, trip, one) for one, mark in left.items()])
        if stored:
            self.progress.bodies += len(stored)
            self._rendered()
        _tell(trip, stored, failed, taken.values())
        self.progress.took.note(time.monotonic() - began)
        self.progress.failures += failed
        if failed:
            self._fail(trip, max(taken))

    async def _begin(self, connection: AsyncConnection, trip: UUID) -> datetime | None:
        """Lock the trip; returns the instant of the rendering, None if it may not be now.

        A last rendering in the future means that the clock was put back: there is no sense in waiting for it.
        """
        values = {"trip": trip}
        await connection.execute(text(_FIRST_RENDERING), values)
        locked = await connection.scalar(text(_LOCK_TRIP), values)
        if locked is None:
            self._resting[trip] = Rest(until=time.monotonic() + BUSY_SECONDS)
            return None
        now: datetime | None = await connection.scalar(text(_NEXT_SECOND), values)
        if now is None:
            left = 1.0 - locked.microsecond / 1e6
            self._resting[trip] = Rest(until=time.monotonic() + left)
        return now

    async def _audiences(self, driver: Any, trip: UUID, now: datetime) -> tuple[Stored, int]:
        """Render every audience of the trip from one reading; returns which bodies are new, and how many failed."""
        audiences = await driver.fetch(
            "SELECT id, delegation, level, alarm_seconds FROM audiences WHERE trip = $1 ORDER BY id", trip
        )
        if not audiences:
            return {}, 0
        ids = [audience["id"] for audience in audiences]
        rows = [tuple(row) for row in await driver.fetch(_THINGS, trip)]
        revisions = await _revisions(driver, ids)
        newest = await _newest(driver, ids)
        if await driver.fetchval(_NOT_WHOLE, trip):
            raise CatchingUp
        cache = self._caches.take(trip)
        domain = self._domain()

        def rendered() -> list[tuple[UUID, Rendering, bytes | None]]:
            picture = cache.picture(rows)
            cache.keep(ids)
            return [
                (
                    audience["id"],
                    done,
                    None if etag_of(done.body) == newest[audience["id"]].etag else compressed(done.body),
                )
                for audience in audiences
                if (done := _rendered(picture, audience, domain, now, revisions, cache)) is not None
            ]

        renderings = await asyncio.to_thread(rendered)
        self._caches.put(trip, cache)
        return await _store(driver, renderings, newest, now), len(audiences) - len(renderings)

    def _fail(self, trip: UUID, mark: int) -> None:
        before = self._resting.get(trip)
        failures = before.failures if before else 0
        pause = FAILED_SECONDS[min(failures, len(FAILED_SECONDS) - 1)]
        self._resting[trip] = Rest(until=time.monotonic() + pause, mark=mark, failures=failures + 1)


# the conflict alone would wait for whoever renders the trip at this moment, before its lock could be passed over
_FIRST_RENDERING = """
INSERT INTO renderings SELECT CAST(:trip AS uuid), 0 WHERE NOT EXISTS (SELECT FROM renderings WHERE trip = :trip)
ON CONFLICT DO NOTHING
"""
_LOCK_TRIP = "SELECT clock_timestamp() FROM renderings WHERE trip = :trip FOR UPDATE SKIP LOCKED"
_NEXT_SECOND = """
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now)
UPDATE renderings SET second = floor(extract(epoch FROM clock.now)) FROM clock
WHERE trip = :trip AND second <> floor(extract(epoch FROM clock.now)) RETURNING clock.now
"""
_WAITING = "SELECT min(id) AS oldest, count(DISTINCT trip) AS trips FROM marks"
_TAKE_MARKS = "DELETE FROM marks WHERE trip = $1 RETURNING id, traceparent"
_PUT_MARK_BACK = "INSERT INTO marks (id, trip, traceparent) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3)"
"""Under its own number: other replicas, too, try once and then let it rest."""
_NOT_WHOLE = f"SELECT EXISTS (SELECT FROM consumer_offsets WHERE behind) OR EXISTS ({_STALE.format(trip='$1::uuid')})"
_THINGS = """
SELECT kind, id, sequence + (SELECT epoch - 1 FROM relay_cursor), document FROM things WHERE trip = $1 ORDER BY kind, id
"""
"""Where this database was itself put back to an earlier point, nobody knows which SEQUENCEs were seen: all of them go
above that by its epoch, which no earlier history had and which grows by one a second at least (`shared.epoch`)."""


def _tell(trip: UUID, stored: Stored, failed: int, traceparents: Iterable[str | None]) -> None:
    """One line for the trip and one for each new body, with the traces of the changes that they show."""
    for ids in trace_ids(traceparents):
        log.info("trip.rendered", trip=str(trip), bodies=len(stored), failed=failed, trace_ids=ids)
        for audience, version in stored.items():
            log.info("body.stored", trip=str(trip), audience=str(audience), version=version, trace_ids=ids)


def reader_of(audience: Mapping[str, Any]) -> Audience:
    """An audience's row as the programme wants it."""
    alarm = timedelta(seconds=audience["alarm_seconds"]) if audience["alarm_seconds"] >= 0 else None
    return Audience(delegation=audience["delegation"], level=audience["level"], alarm=alarm)


def _rendered(
    picture: Any,
    audience: Mapping[str, Any],
    domain: str,
    now: datetime,
    revisions: Mapping[UUID, Mapping[UUID, Revision]],
    cache: TripCache,
) -> Rendering | None:
    """One audience's rendering; None where it fails: the trip's other audiences do not wait for it."""
    known: UUID = audience["id"]
    try:
        return render(
            picture,
            reader_of(audience),
            domain=domain,
            now=now,
            revisions=revisions.get(known, {}),
            cache=cache.audiences[known],
        )
    except Exception:
        log.exception("audience.failed", audience=str(known))
        return None


async def _revisions(driver: Any, audiences: Sequence[UUID]) -> dict[UUID, dict[UUID, Revision]]:
    rows = await driver.fetch(
        "SELECT audience, item, digest, last_modified FROM revisions WHERE audience = ANY($1)", audiences
    )
    known: dict[UUID, dict[UUID, Revision]] = {}
    for row in rows:
        revision = Revision(digest=row["digest"], last_modified=row["last_modified"])
        known.setdefault(row["audience"], {})[row["item"]] = revision
    return known


async def _newest(driver: Any, audiences: Sequence[UUID]) -> dict[UUID, Newest]:
    """What the newest body of each audience is; one index look-up each, however long its history."""
    rows = await driver.fetch(
        "SELECT audience, newest.* FROM unnest($1::uuid[]) AS audience LEFT JOIN LATERAL (SELECT version, etag, since "
        "FROM bodies WHERE bodies.audience = audience.audience ORDER BY version DESC LIMIT 1) AS newest ON true",
        audiences,
    )
    return {
        row["audience"]: Newest(version=row["version"] or 0, etag=row["etag"] or "", since=row["since"]) for row in rows
    }


async def _store(
    driver: Any,
    renderings: Sequence[tuple[UUID, Rendering, bytes | None]],
    newest: Mapping[UUID, Newest],
    now: datetime,
) -> Stored:
    """Write revisions, and the bodies that differ from the newest ones; returns which those were."""
    await driver.executemany(
        "INSERT INTO revisions VALUES ($1, $2, $3, $4) ON CONFLICT (audience, item) "
        "DO UPDATE SET digest = excluded.digest, last_modified = excluded.last_modified",
        [
            (audience, item, revision.digest, revision.last_modified)
            for audience, rendering, _ in renderings
            for item, revision in rendering.revised.items()
        ],
    )
    fresh = [
        (audience, newest[audience].version + 1, _since(newest[audience], now), etag_of(rendering.body), body)
        for audience, rendering, body in renderings
        if body is not None
    ]
    if fresh:
        await driver.execute("SELECT pg_advisory_xact_lock($1, $2)", *BODIES_LOCK)
        await driver.executemany(
            "INSERT INTO bodies (audience, version, since, etag, compressed) VALUES ($1, $2, $3, $4, $5)", fresh
        )
    return {audience: version for audience, version, *_ in fresh}


def _since(before: Newest, now: datetime) -> datetime:
    """When a new body begins: in a later second than the one before, since HTTP's dates have no fractions."""
    if not before.version:
        return now
    return max(now, before.since.replace(microsecond=0) + timedelta(seconds=1))
