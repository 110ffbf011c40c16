"""Housekeeping of the notifications service: fetches are written down in batches, old bodies are let go.

And where this service's own epoch has risen, everything is stamped anew: its database was put back to an earlier point,
and nobody knows any more what calendars have seen since.
"""

import asyncio

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.notifications.feeds import Fetches
from shared.database import driver_of, is_away

WRITE_SECONDS = 5.0
FORGET_SECONDS = 3600.0
FOLLOW_SECONDS = 5.0

RENDER_ALL = text("INSERT INTO marks (trip) SELECT DISTINCT trip FROM audiences")
_FOLLOW = text("""
UPDATE instance SET renderer = split_part(renderer, '/', 1) || '/' || epoch FROM relay_cursor
WHERE split_part(renderer, '/', 2) <> epoch::text
""")

log = structlog.get_logger()


async def write_fetches(engine: AsyncEngine, fetches: Fetches) -> None:
    """Write down who fetched what, every few seconds, for ever; who stops it calls `write_down` once more."""
    while True:
        await asyncio.sleep(WRITE_SECONDS)
        await write_down(engine, fetches)


async def write_down(engine: AsyncEngine, fetches: Fetches) -> None:
    """Write down what was noted so far; while the database is away it is kept."""
    taken = fetches.take()
    if not taken:
        return
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
            driver = await driver_of(connection)
            # in order of their ids, so that two replicas wait and never deadlock
            await driver.executemany(
                "INSERT INTO fetches AS f VALUES ($1, $2, $3, $4, $5) ON CONFLICT (feed_link) DO UPDATE SET "
                "at = greatest(f.at, excluded.at), count = f.count + excluded.count, "
                "client = CASE WHEN f.at <= excluded.at THEN excluded.client ELSE f.client END, "
                "version = CASE WHEN f.at <= excluded.at THEN excluded.version ELSE f.version END",
                [
                    (link, one.at, one.client, one.version, one.count)
                    for link, one in sorted(taken.items(), key=lambda item: item[0])
                ],
            )
    except BaseException as error:
        fetches.give_back(taken)  # also when this is the task's end: what is noted is written once more then
        if not is_away(error):
            raise
        log.warning("fetches.unwritten", links=len(taken))


async def forget_old_bodies(engine: AsyncEngine, days: int) -> None:
    """Drop old bodies every hour, for ever; what could not be dropped while the database is away waits an hour."""
    while True:
        try:
            await drop_old_bodies(engine, days)
        except Exception as error:
            if not is_away(error):
                raise
        await asyncio.sleep(FORGET_SECONDS)


async def drop_old_bodies(engine: AsyncEngine, days: int) -> None:
    """Drop the bodies that ended longer ago than they are kept; the newest of an audience has no end and stays."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "DELETE FROM bodies b USING bodies later WHERE later.audience = b.audience "
                "AND later.version = b.version + 1 "
                "AND later.since < clock_timestamp() - make_interval(days => :days)"
            ),
            {"days": days},
        )


async def follow_epoch(engine: AsyncEngine) -> None:
    """Have everything rendered anew where the epoch has risen, for ever: a relay that runs can be who raises it."""
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        try:
            await stamp_anew(engine)
        except Exception as error:
            if not is_away(error):
                raise


async def stamp_anew(engine: AsyncEngine) -> None:
    """Mark every trip, once for each epoch. Who renders is left as it is: two releases may run side by side."""
    async with engine.begin() as connection:
        if (await connection.execute(_FOLLOW)).rowcount:
            await connection.execute(RENDER_ALL)
