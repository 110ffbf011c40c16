"""What every `migrations/env.py` does, so that each of them is one call.

Two ways lead here. A starting service hands its open connection over (`shared.migrations.upgrade`); at the command
line, `alembic -n schedule -x url=postgresql+asyncpg://... revision --autogenerate -m "..."`, one is opened here.
"""

import asyncio
import importlib

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool


def run(tables: str) -> None:
    """Run what Alembic was asked for. `tables` names the module whose `metadata` holds the tables as they should be."""
    connection = context.config.attributes.get("connection")
    if connection is not None:
        _migrate(connection, None)
    else:
        asyncio.run(_connect_and_migrate(_url(), importlib.import_module(tables).metadata))


async def _connect_and_migrate(url: str, metadata: MetaData) -> None:
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_migrate, metadata)
    finally:
        await engine.dispose()


def _migrate(connection: Connection, metadata: MetaData | None) -> None:
    # only a comparison (--autogenerate, check) reads the metadata: a start does without
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


def _url() -> str:
    url = context.get_x_argument(as_dictionary=True).get("url")
    if not isinstance(url, str):
        raise CommandError("which database? Say it with -x url=postgresql+asyncpg://ROLE:PASSWORD@HOST:PORT/NAME")
    return url
