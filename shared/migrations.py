"""Migrations of a service's database when it starts, and the question whether they are all done.

Alembic does the work, in one transaction on one connection; what is added here is a lock, so that two processes that
start together do not race, and that it runs inside an event loop. `shared.migrations_env` is Alembic's side of it.
"""

from functools import lru_cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from shared.database import WrongDatabase, check_server

ROOT = Path(__file__).resolve().parent.parent
BUS_MIGRATIONS = "shared/bus_migrations"
"""Those of the local bus, which is no service's."""
LOCK = 0x0A77AC4E
"""The session advisory lock under which a database is migrated."""


async def upgrade(script_location: str, url: str) -> None:
    """Bring a database to the newest revision; returns when it is there, whoever brought it.

    `script_location` is a folder below the repository's root, such as `services/schedule/migrations`. Either all that
    lacks is done or nothing. Raises `WrongDatabase` for another PostgreSQL, and for a schema that is ahead.
    """
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await check_server(connection)
            # held by the session, so it outlives the commit and ends with the connection, a killed one's too
            await connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
            current, wanted = await current_and_head(script_location, connection)
            await connection.commit()
            if is_ahead(script_location, current):
                raise WrongDatabase(ahead(current, wanted))
            await connection.run_sync(_upgrade, script_location)
    finally:
        await engine.dispose()


async def current_and_head(script_location: str, connection: AsyncConnection) -> tuple[str | None, str | None]:
    """The revision that a database has (None: none yet) and the one that this code was written for."""
    current = await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())
    return current, head(script_location)


def is_ahead(script_location: str, revision: str | None) -> bool:
    """Whether a database's revision is none that this code knows: a newer program has made it."""
    if revision is None:
        return False
    try:
        ScriptDirectory.from_config(_config(script_location)).get_revision(revision)
    except CommandError:
        return True
    return False


def ahead(current: str | None, wanted: str | None) -> str:
    """One line for a schema that a newer program has made."""
    return (
        f"the database's schema is {current}, which is ahead of this program's {wanted}: "
        "run the newer program, or restore the backup that was made before it"
    )


def behind(current: str | None, wanted: str | None, service: str) -> str:
    """One line for a schema that lacks steps."""
    return (
        f"the database's schema is {current or 'empty'}, which is behind this program's {wanted}: "
        f"run python -m services.{service} migrate"
    )


@lru_cache
def head(script_location: str) -> str | None:
    """The newest revision in a folder of migrations, None for an empty one."""
    return ScriptDirectory.from_config(_config(script_location)).get_current_head()


def _upgrade(connection: Connection, script_location: str) -> None:
    config = _config(script_location)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _config(script_location: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(ROOT / script_location).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
