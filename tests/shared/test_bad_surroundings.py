"""A start on what does not fit: one readable line that says what to do, and nothing begun."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from shared.clock import clock_behind
from shared.database import make_engine, wrong_server
from shared.migrations import head
from shared.tokens import add_token

MakeDatabase = Callable[..., Awaitable[str]]
MIGRATIONS = "services/schedule/migrations"
BUS = "shared/bus_migrations"
PATIENCE = 240.0


async def _begin(command: str, **settings: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.schedule", command),
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "LOG_FORMAT": "json", "SCHEDULE_PORT": "0", **settings},
    )


async def _said(command: str, **settings: str) -> tuple[int | None, list[str]]:
    """The exit code, and what was said beside the log; again where the database was too slow to answer."""
    async with asyncio.timeout(PATIENCE):
        while True:
            process = await _begin(command, **settings)
            _, said = await process.communicate()
            if b"does not answer" not in said:
                return process.returncode, [line for line in said.decode().splitlines() if not line.startswith("{")]


@pytest.fixture
async def settings(make_database: MakeDatabase, tmp_path: Path) -> dict[str, str]:
    """What a schedule service needs, on databases that are as they have to be."""
    return {
        "DATABASE_URL": await make_database(MIGRATIONS),
        "BUS_URL": await make_database(BUS),
        "TOKENS_FILE": str(tmp_path / "tokens"),
        "SERVICE_TOKEN": add_token(tmp_path / "tokens", "services", ("service",)),
    }


async def _run(url: str, statement: str, *arguments: object) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()


async def _append(url: str, recorded_at: datetime) -> None:
    """An event that was recorded at an instant."""
    await _run(
        url,
        "INSERT INTO events (id, stream, version, type, data, metadata, key, cleared_sequence, digest, recorded_at) "
        "VALUES (gen_random_uuid(), 'trip/1', 1, 'x', '{}', '{}', 'k', 1, '', $1)",
        recorded_at,
    )


async def test_a_schema_that_is_behind_is_to_be_migrated(settings: dict[str, str], make_database: MakeDatabase) -> None:
    settings["DATABASE_URL"] = await make_database()
    assert await _said("serve", **settings) == (
        1,
        [
            (
                f"schedule: the database's schema is empty, which is behind this program's {head(MIGRATIONS)}: "
                "run python -m services.schedule migrate"
            )
        ],
    )


@pytest.mark.parametrize("command", ["serve", "migrate"])
async def test_a_schema_that_is_ahead_wants_the_newer_program(settings: dict[str, str], command: str) -> None:
    await _run(settings["DATABASE_URL"], "UPDATE alembic_version SET version_num = '9999'")
    assert await _said(command, **settings) == (
        1,
        [
            (
                f"schedule: the database's schema is 9999, which is ahead of this program's {head(MIGRATIONS)}: "
                "run the newer program, or restore the backup that was made before it"
            )
        ],
    )


def test_each_other_server_is_told_what_to_do() -> None:
    assert wrong_server(180004) is None
    assert wrong_server(170010) == (
        "the server is PostgreSQL 17 and this program is for PostgreSQL 18: bring it to 18 with pg_upgrade or a dump"
    )
    assert wrong_server(190001) == (
        "the server is PostgreSQL 19 and this program is for PostgreSQL 18: give this program a server of 18"
    )


@contextlib.asynccontextmanager
async def _older(url: str) -> AsyncIterator[str]:
    """The same server, seen through a proxy that makes its version 17."""
    parts = urlsplit(url)

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(re.sub(rb"(\x00\x00\x00\x06)18(\d{4})", rb"\g<1>17\2", data))
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(parts.hostname, parts.port)
        await asyncio.gather(pipe(reader, inner_writer), pipe(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield url.replace(f":{parts.port}/", f":{port}/").replace(f"@{parts.hostname}:", "@127.0.0.1:")


@pytest.mark.parametrize("command", ["serve", "migrate"])
async def test_another_postgresql_is_refused(settings: dict[str, str], command: str) -> None:
    async with _older(settings["DATABASE_URL"]) as url:
        assert await _said(command, **{**settings, "DATABASE_URL": url}) == (1, [f"schedule: {wrong_server(170000)}"])


async def test_topics_that_differ_are_named_with_what_to_do(settings: dict[str, str]) -> None:
    await _run(settings["BUS_URL"], "INSERT INTO topics (name, partitions) VALUES ('attache.schedule', 3)")
    assert await _said("serve", **settings) == (
        1,
        [
            (
                "schedule: the topics on the bus are not as they have to be: attache.schedule: partitions is 3, not 8 "
                "(alter them on the broker, or set TOPIC_... to what they are)"
            )
        ],
    )


async def test_a_clock_before_the_newest_event_is_said_at_the_start(settings: dict[str, str]) -> None:
    await _append(settings["DATABASE_URL"], datetime.now(UTC) + timedelta(hours=2))
    process = await _begin("serve", **settings)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            while (line := json.loads(await process.stderr.readline()))["event"] != "clock.behind":
                pass
        assert 7000 < line["seconds"] <= 7200
        assert line["said"].startswith("this machine's clock is before the newest recorded event: set it")
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            await process.communicate()


@pytest.mark.parametrize(
    ("ahead", "told"), [(timedelta(minutes=-1), None), (timedelta(seconds=30), None), (timedelta(hours=1), 3600)]
)
async def test_a_clock_counts_as_behind_from_a_minute_on(
    make_database: MakeDatabase, ahead: timedelta, told: int | None
) -> None:
    url = await make_database(MIGRATIONS)
    engine = make_engine(url, name="test")
    async with engine.connect() as connection:
        assert await clock_behind(connection) is None
        await _append(url, datetime.now(UTC) + ahead)
        found = await clock_behind(connection)
    await engine.dispose()
    assert found == pytest.approx(told, abs=60) if told else found is None
