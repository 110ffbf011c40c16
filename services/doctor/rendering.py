"""What notifications has still to render, and links that end soon: counts, no addresses."""

import asyncio
from typing import Final

from services.doctor.databases import connected
from services.doctor.findings import Finding, fail, ok, warn

AGAIN_SECONDS: Final = 3.0
_WAITING = """
SELECT (SELECT count(*) FROM audiences WHERE trip IN (SELECT trip FROM marks)) AS audiences,
    (SELECT min(id) FROM marks) AS oldest
"""
_ENDING = """
SELECT count(*) FROM feed_links WHERE expires_at BETWEEN clock_timestamp() AND clock_timestamp() + interval '14 days'
    AND thing ->> 'revoked_at' IS NULL
"""


async def rendering(url: str, again: float = AGAIN_SECONDS) -> list[Finding]:
    """Audiences that wait are well while the marks move on."""
    async with connected(url) as database:
        first = await database.fetchrow(_WAITING)
        if first["oldest"] is None:
            return [ok("rendering", "no audience waits")]
        await asyncio.sleep(again)
        second = await database.fetchrow(_WAITING)
    if second["oldest"] == first["oldest"]:
        found = f"{second['audiences']} audiences wait, and the oldest mark has not moved"
        return [fail("rendering", found, "see the log of notifications (rendering.failed)")]
    return [ok("rendering", f"{second['audiences']} audiences wait, and marks move on")]


async def links(url: str) -> list[Finding]:
    """Links that end within two weeks."""
    async with connected(url) as database:
        count = await database.fetchval(_ENDING)
    if count:
        return [warn("links", f"{count} links end within 14 days", "rotate or issue anew those that are still needed")]
    return [ok("links", "none ends within 14 days")]
