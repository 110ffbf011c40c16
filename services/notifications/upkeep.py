"""Housekeeping of the notifications service: fetches are written down in batches, old bodies are let go."""

import asyncio

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.notifications.feeds import Fetches
from shared.database import driver_of, is_away

WRITE_SECONDS = 5.0
FORGET_SECONDS = 3600.0

log = structlog.get_logger()


async def write_fetches(engine: AsyncEngine, fetches: Fetches) -> None:
    """Write down who fetched what, every few seconds, for ever, and once more at the end."""
    try:
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            await _write(engine, fetches)
    finally:
        await asyncio.shield(_write(engine, fetches))


async def forget_old_bodies(engine: AsyncEngine, days: int) -> None:
    """Every hour, drop the bodies that ended longer ago than they are kept; the newest of an audience stays."""
    while True:
        try:
            async with engine.begin() as connection:
                await connection.execute(
                    text(
                        "DELETE FROM bodies b USING bodies later WHERE later.audience = b.audience "
                        "AND later.version = b.version + 1 AND later.since < clock_timestamp() - make_interval(days => :days)"
                    ),
                    {"days": days},
                )
        except Exception as error:
            if not is_away(error):
                raise
        await asyncio.sleep(FORGET_SECONDS)


async def _write(engine: AsyncEngine, fetches: Fetches) -> None:
    taken = fetches.take()
    if not taken:
        return
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
            driver = await driver_of(connection)
            await driver.executemany(
                "INSERT INTO fetches AS f VALUES ($1, $2, $3, $4, $5) ON CONFLICT (feed_link) DO UPDATE SET "
                "at = greatest(f.at, excluded.at), client = excluded.client, version = excluded.version, "
                "count = f.count + excluded.count",
                [(link, one.at, one.client, one.version, one.count) for link, one in sorted(taken.items())],
            )
    except Exception as error:
        if not is_away(error):
            raise
        # who fetched what is worth less than the service: while the database is away it is not remembered
        log.warning("fetches.lost", links=len(taken))
