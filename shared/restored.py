"""`python -m services.<name> restored`: the word that a service's database was put back to an earlier point.

The epoch rises, so that what the bus still holds from after that point counts for nothing, and everything is published
again. Only who serves nothing can say so: a relay that runs would go on where it is.
"""

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.bus import Bus, BusAway
from shared.database import driver_of
from shared.epoch import Raised, raise_epoch, told
from shared.relay import RELAY_LOCK

_OTHERS = """
SELECT DISTINCT application_name FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE :name || '%' AND pid <> pg_backend_pid() ORDER BY 1
"""


class StillRunning(Exception):
    """Somebody works on the database; the text is one readable line."""


async def restored(service: str, engine: AsyncEngine, bus: Bus, above: int) -> tuple[Raised, str | None]:
    """Raise a service's epoch above every one that was published, and `above` this one.

    Answers it before and after, and why the bus could not be asked, if it could not. Raises `StillRunning`.
    """
    async with engine.connect() as connection:
        running = (await connection.scalars(text(_OTHERS), {"name": f"attache-{service}"})).all()
        driver = await driver_of(connection)
        # held until the end: no relay can begin meanwhile
        if running or not await driver.fetchval("SELECT pg_try_advisory_lock($1, $2)", *RELAY_LOCK):
            names = ", ".join(running) or "its relay"
            raise StillRunning(f"{names} is connected to the database: stop the service, then say restored again")
        await connection.rollback()
        try:
            published, silence = await _published(driver, service, bus)
            return await raise_epoch(driver, max(above, published)), silence
        finally:
            await driver.execute("SELECT pg_advisory_unlock($1, $2)", *RELAY_LOCK)


async def _published(driver: Any, service: str, bus: Bus) -> tuple[int, str | None]:
    """The highest epoch that stands on the bus, and why it does not answer."""
    try:
        producer = await bus.producer()
        try:
            found = await told(driver, producer, service)
        finally:
            await producer.close()
    except BusAway as error:
        return 0, str(error)
    return max((one.epoch for one in found), default=0), None
