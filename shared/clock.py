"""Whether this machine's clock can be right: nothing is ordered by it, but links end by it and people read it."""

import time
from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

BEHIND_SECONDS: Final = 60.0
CLOCK_BEHIND: Final = "this machine's clock is before the newest recorded event: set it (NTP); nothing is ordered by it"
_NEWEST = text("SELECT extract(epoch FROM recorded_at)::float FROM events ORDER BY position DESC LIMIT 1")


async def clock_behind(connection: AsyncConnection) -> int | None:
    """By how many seconds this machine's clock is before the newest recorded event, where that is over a minute."""
    newest = await connection.scalar(_NEWEST)
    behind = newest - time.time() if newest is not None else 0.0
    return round(behind) if behind > BEHIND_SECONDS else None
