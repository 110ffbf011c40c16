"""What counts as a database that is away, and what is a mistake of ours."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.embedded import EmbeddedPostgres
from shared.database import NotCommitted, driver_of, is_away, make_engine, quick_transaction, why_unusable

MakeDatabase = Callable[[], Awaitable[str]]


async def test_mistakes_of_ours_do_not_say_that_the_database_is_away(make_database: MakeDatabase) -> None:
    engine = make_engine(await make_database(), name="test")
    failures: list[Exception] = []
    for statement, arguments in (
        ("SELECT $1::int", ["not a number"]),
        ("SELECT $1::timestamptz", ["2023-11-07"]),
        ("SELECT $1::int, $2::int", [1]),
        ("SELECT 1 / 0", []),
        ("SELECT * FROM nothing", []),
        ("SELEC", []),
    ):
        async with engine.connect() as connection:
            driver = await driver_of(connection)
            with pytest.raises(Exception) as raised:  # noqa: PT011  all kinds of them
                await driver.fetch(statement, *arguments)
            failures.append(raised.value)
        if not arguments:
            continue
        async with engine.connect() as connection:
            named = statement.replace("$1", "CAST(:a AS int)").replace("$2", ":b").replace("::int", "")
            with pytest.raises(Exception) as raised:  # noqa: PT011
                await connection.execute(text(named), {"a": arguments[0]})
            failures.append(raised.value)
    failures += [FileNotFoundError("no such file"), PermissionError("not yours"), ValueError("connection is closed")]
    assert [repr(failure) for failure in failures if is_away(failure)] == []
    await engine.dispose()


async def test_database_that_does_not_answer_is_away(make_database: MakeDatabase) -> None:
    engine = make_engine("postgresql+asyncpg://somebody:secret@127.0.0.1:9/nothing", name="test")
    with pytest.raises(OSError, match="Connect call failed") as refused:
        async with engine.connect():
            pass
    nowhere = make_engine("postgresql+asyncpg://somebody:secret@nowhere.invalid/nothing", name="test")
    with pytest.raises(OSError, match=r".") as unknown:
        async with nowhere.connect():
            pass
    there = make_engine(await make_database(), name="test")
    async with there.connect() as connection:
        driver = await driver_of(connection)
        await driver.close()
        with pytest.raises(asyncpg.InterfaceError) as closed:
            await driver.fetch("SELECT 1")
        with pytest.raises(Exception, match="connection is closed") as wrapped:
            await connection.execute(text("SELECT 1"))
    assert [is_away(one.value) for one in (refused, unknown, closed, wrapped)] == [True] * 4
    await there.dispose()


@pytest.mark.parametrize(
    ("part", "wrong", "line"),
    [
        ("password", "Kanarienvogel", 'the database refuses: password authentication failed for user "{user}": '),
        ("username", "somebody", 'the database refuses: password authentication failed for user "somebody": '),
        ("database", "elsewhere", 'the database refuses: database "elsewhere" does not exist: make it, or mend '),
        ("host", "nowhere.invalid", "the database does not answer: nobody knows the name nowhere.invalid: mend "),
        ("port", 9, "the database does not answer: ConnectionRefusedError at 127.0.0.1: see whether it is up"),
    ],
)
async def test_a_database_url_that_is_wrong_is_said_in_one_line_with_what_to_do(
    make_database: MakeDatabase, part: str, wrong: str | int, line: str
) -> None:
    right = make_url(await make_database())
    url = right.set(**{part: wrong}).render_as_string(hide_password=False)  # type: ignore[arg-type]  # one of its parts
    engine = make_engine(url, name="test")
    with pytest.raises(Exception) as raised:  # noqa: PT011  all kinds of them
        await engine.connect()
    await engine.dispose()
    said = why_unusable(raised.value, url) or ""
    assert said.startswith(line.format(user=right.username))
    assert "Kanarienvogel" not in said
    assert why_unusable(ValueError(), url) is None


async def test_connections_that_a_restart_has_closed_are_not_given_out_again(make_database: MakeDatabase) -> None:
    engine = make_engine(await make_database(), name="test")
    connections = [await engine.connect() for _ in range(3)]
    drivers = [await driver_of(connection) for connection in connections]
    for connection in connections:
        await connection.execute(text("SELECT 1"))
    for connection in connections:
        await connection.close()
    async with engine.connect() as connection:
        driver = await driver_of(connection)
        mine = driver.get_server_pid()
        await connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'attache-test' AND datname = current_database() AND pid <> :mine"
            ),
            {"mine": mine},
        )
        drivers.remove(driver)
    async with asyncio.timeout(120):
        while not all(driver.is_closed() for driver in drivers):  # what the server said has reached the pool's sockets
            await asyncio.sleep(0.01)
    for _ in range(3):
        async with engine.connect() as one, engine.connect() as other:
            assert await one.scalar(text("SELECT 1")) == await other.scalar(text("SELECT 1")) == 1
    await engine.dispose()


async def test_server_that_is_frozen_is_away_like_one_that_is_gone(data_folder: Path) -> None:
    with EmbeddedPostgres(data_folder) as postgres:
        engine = make_engine(postgres.url("schedule"), name="test", command_timeout=0.5)
        backend = await _backend(engine)
        os.kill(backend, signal.SIGSTOP)
        try:
            with pytest.raises(Exception, match=r".*") as frozen:
                async with asyncio.timeout(60), engine.connect() as connection:
                    await connection.execute(text("SELECT 1"))
        finally:
            os.kill(backend, signal.SIGCONT)
        assert is_away(frozen.value)
        await engine.dispose()


async def _backend(engine: AsyncEngine) -> int:
    """The process at the other end of the pool's connection, as soon as the server answers in time."""
    while True:
        with contextlib.suppress(TimeoutError, DBAPIError):
            async with engine.connect() as connection:
                return int(await connection.scalar(text("SELECT pg_backend_pid()")) or 0)


LOCK = "SELECT pg_advisory_xact_lock(7)"


@pytest.fixture
async def one(make_database: MakeDatabase) -> AsyncIterator[AsyncEngine]:
    """An engine of one connection, with a table; at the end that connection is in no transaction."""
    engine = make_engine(await make_database(), name="test", pool_size=1)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE facts (fact text)"))
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    async with engine.connect() as connection:
        driver = await driver_of(connection)
        assert (await driver.fetchval("SELECT 1"), driver.is_in_transaction()) == (1, False)
        assert await driver.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    await engine.dispose()


async def _facts(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list(await connection.scalars(text("SELECT fact FROM facts ORDER BY fact")))


async def test_a_quick_transaction_is_whole_or_not_at_all_by_core_as_by_the_driver(one: AsyncEngine) -> None:
    async def write(suffix: str, divisor: int) -> None:
        async with quick_transaction(one, LOCK) as connection:
            await (await driver_of(connection)).execute("INSERT INTO facts VALUES ('driver' || $1)", suffix)
            await connection.execute(text("INSERT INTO facts VALUES ('core' || :suffix)"), {"suffix": suffix})
            assert await connection.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")) == 1
            assert 1 // divisor

    await write("", 1)
    with pytest.raises(ZeroDivisionError):
        await write(" again", 0)
    assert await _facts(one) == ["core", "driver"]
    with pytest.raises(asyncpg.UndefinedFunctionError):
        async with quick_transaction(one, "SELECT nothing()"):
            pytest.fail("the first statement failed")


async def test_a_failure_that_was_passed_over_is_not_said_to_be_committed(one: AsyncEngine) -> None:
    async def pass_over() -> None:
        async with quick_transaction(one, LOCK) as connection:
            driver = await driver_of(connection)
            await driver.execute("INSERT INTO facts VALUES ('lost')")
            with contextlib.suppress(asyncpg.PostgresError):
                await driver.execute("SELECT 1 / 0")

    with pytest.raises(NotCommitted, match="COMMIT with ROLLBACK"):
        await pass_over()
    assert await _facts(one) == []


@pytest.mark.parametrize("where", ["first", "within", "rollback", "within, and again"])
async def test_a_quick_transaction_that_is_cancelled_leaves_its_connection_in_none(
    one: AsyncEngine, where: str
) -> None:
    holding = make_engine(one.url.render_as_string(hide_password=False), name="holding")
    async with holding.begin() as holder:
        await holder.execute(text(LOCK))
        entered = asyncio.Event()

        async def act() -> None:
            async with quick_transaction(one, LOCK if where == "first" else "SELECT 1") as connection:
                await connection.execute(text("INSERT INTO facts VALUES ('half')"))
                entered.set()
                assert where != "rollback"
                await (await driver_of(connection)).execute(LOCK)

        acting = asyncio.create_task(act())
        if where == "rollback":
            await entered.wait()
        else:
            await _until_somebody_waits(holder)
        acting.cancel()
        if where == "within, and again":
            await asyncio.sleep(0)  # to the rollback, which waits for the end of the statement
            acting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await acting
    await holding.dispose()
    assert await _facts(one) == []


async def _until_somebody_waits(connection: AsyncConnection) -> None:
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    async with asyncio.timeout(60):
        while not await connection.scalar(waiting):
            await asyncio.sleep(0.01)


async def test_a_connection_that_is_lost_in_a_quick_transaction_is_not_given_out_again(one: AsyncEngine) -> None:
    async def lose() -> None:
        async with quick_transaction(one, LOCK) as connection:
            driver = await driver_of(connection)
            await driver.execute("INSERT INTO facts VALUES ('lost')")
            await driver.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(asyncpg.PostgresError) as lost:
        await lose()
    assert is_away(lost.value)
    assert await _facts(one) == []
