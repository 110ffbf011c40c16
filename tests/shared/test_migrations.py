"""How a database is brought to the newest revision, by one process or by several that start together."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from shared.database import WrongDatabase
from shared.migrations import current_and_head, head, upgrade

ENV = 'from shared.migrations_env import run\n\nrun("none")\n'
REVISION = """
from alembic import op

revision = "{revision}"
down_revision = {after!r}


def upgrade() -> None:
    op.execute("{statement}")
"""


@pytest.fixture
def migrations(tmp_path: Path) -> str:
    """A folder of two revisions; the second waits a moment, so that two starts would meet."""
    folder = tmp_path / "100% migrations"
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text(ENV)
    _revision(folder, "0001", None, "CREATE TABLE seats (number int)")
    _revision(folder, "0002", "0001", "INSERT INTO seats SELECT 4 FROM pg_sleep(0.2)")
    return str(folder)


def _revision(folder: Path, revision: str, after: str | None, statement: str) -> None:
    content = REVISION.format(revision=revision, after=after, statement=statement)
    (folder / "versions" / f"{revision}_step.py").write_text(content)


async def _rows(url: str, query: str) -> list[tuple[object, ...]]:
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        rows = [tuple(row) for row in await connection.execute(text(query))]
    await engine.dispose()
    return rows


async def _revisions(folder: str, url: str) -> tuple[str | None, str | None]:
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        found = await current_and_head(folder, connection)
    await engine.dispose()
    return found


async def test_upgrade_brings_an_empty_database_to_head(
    make_database: Callable[..., Awaitable[str]], migrations: str
) -> None:
    url = await make_database()
    assert await _revisions(migrations, url) == (None, "0002")
    await upgrade(migrations, url)
    assert await _revisions(migrations, url) == ("0002", "0002")
    assert await _rows(url, "SELECT number FROM seats") == [(4,)]


async def test_starts_that_meet_migrate_once(make_database: Callable[..., Awaitable[str]], migrations: str) -> None:
    url = await make_database()
    await asyncio.gather(*(upgrade(migrations, url) for _ in range(4)))
    assert await _rows(url, "SELECT number FROM seats") == [(4,)]


async def test_a_revision_that_fails_leaves_nothing_behind(
    make_database: Callable[..., Awaitable[str]], migrations: str
) -> None:
    _revision(Path(migrations), "0003", "0002", "SELECT 1 / 0")
    url = await make_database()
    with pytest.raises(DBAPIError):
        await upgrade(migrations, url)
    assert await _revisions(migrations, url) == (None, "0003")
    assert await _rows(url, "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'") == []


async def test_a_database_ahead_of_the_code_is_refused(
    make_database: Callable[..., Awaitable[str]], migrations: str
) -> None:
    url = await make_database(migrations=migrations)
    (Path(migrations) / "versions" / "0002_step.py").unlink()
    head.cache_clear()
    with pytest.raises(WrongDatabase) as ahead:
        await upgrade(migrations, url)
    assert str(ahead.value) == (
        "the database's schema is 0002, which is ahead of this program's 0001: "
        "run the newer program, or restore the backup that was made before it"
    )


async def test_databases_of_one_test_are_apart(make_database: Callable[..., Awaitable[str]], migrations: str) -> None:
    one, other = await make_database(migrations=migrations), await make_database(migrations=migrations)
    await _rows(one, "SELECT number FROM seats")
    assert one != other
    assert await _rows(other, "SELECT number FROM seats") == [(4,)]


@pytest.mark.parametrize(
    "folder",
    [
        *(f"services/{name}/migrations" for name in ("schedule", "participants", "notifications")),
        "shared/bus_migrations",
    ],
)
def test_each_database_has_one_line_of_revisions(folder: str) -> None:
    assert head(folder) is not None
