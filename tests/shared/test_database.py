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


@pytest.mark.parametrize("cancelled", [0, 1, 3])
async def test_a_connection_that_cannot_be_rolled_back_is_closed_and_no_other_is(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch, cancelled: int
) -> None:
    monkeypatch.setattr("shared.database.ROLLBACK_SECONDS", 0.5)
    backends: list[int] = []

    async def fail() -> None:
        async with quick_transaction(engine, "SELECT 1") as connection:
            backends.append((await driver_of(connection)).get_server_pid())
            os.kill(backends[0], signal.SIGSTOP)
            raise ZeroDivisionError

    with EmbeddedPostgres(data_folder) as postgres:
        engine = make_engine(postgres.url("schedule"), name="test")
        async with engine.connect() as other:
            failing = asyncio.create_task(fail())
            while not backends:
                await asyncio.sleep(0)
            for _ in range(cancelled):
                failing.cancel()
                await asyncio.sleep(0)
            try:
                with pytest.raises(asyncio.CancelledError if cancelled else ZeroDivisionError):
                    await failing
            finally:
                os.kill(backends[0], signal.SIGCONT)
            backends.append((await driver_of(other)).get_server_pid())
        async with engine.connect() as one, engine.connect() as another:
            found = {(await driver_of(each)).get_server_pid() for each in (one, another)}
        assert found & set(backends) == {backends[1]}
        await engine.dispose()


async def _backend(engine: AsyncEngine) -> int:
    """The process at the other end of the pool's connection, as soon as the server answers in time."""
    while True:
        with contextlib.suppress(TimeoutError, DBAPIError):
            async with engine.connect() as connection:
                return int(await connection.scalar(text("SELECT pg_backend_pid()")) or 0)


LOCK = "SELECT pg_advisory_xact_lock(7)"
LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND {} "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@pytest.fixture
async def few(make_database: MakeDatabase, patient_locks: None) -> AsyncIterator[AsyncEngine]:
    """An engine of two connections, with a table; at the end both are in no transaction, and nobody holds a lock."""
    engine = make_engine(await make_database(), name="test", pool_size=2, command_timeout=120)
    async with engine.begin() as connection, engine.connect():
        await connection.execute(text("CREATE TABLE facts (fact text)"))
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    async with engine.connect() as one, engine.connect() as other:
        for driver in (await driver_of(one), await driver_of(other)):
            assert (await driver.fetchval("SELECT 1"), driver.is_in_transaction()) == (1, False)
        await _until_locks(one, "granted", 0)
    await engine.dispose()


async def _facts(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list(await connection.scalars(text("SELECT fact FROM facts ORDER BY fact")))


async def _until_locks(connection: AsyncConnection, which: str, count: int) -> None:
    async with asyncio.timeout(120):
        while await connection.scalar(text(LOCKS.format(which))) != count:
            await asyncio.sleep(0.01)


async def test_a_quick_transaction_is_whole_or_not_at_all_by_core_as_by_the_driver(few: AsyncEngine) -> None:
    async def write(suffix: str, divisor: int) -> None:
        async with quick_transaction(few, LOCK) as connection:
            await (await driver_of(connection)).execute("INSERT INTO facts VALUES ('driver' || $1)", suffix)
            await connection.execute(text("INSERT INTO facts VALUES ('core' || :suffix)"), {"suffix": suffix})
            assert await connection.scalar(text(LOCKS.format("granted"))) == 1
            assert 1 // divisor

    await write("", 1)
    with pytest.raises(ZeroDivisionError):
        await write(" again", 0)
    assert await _facts(few) == ["core", "driver"]
    with pytest.raises(asyncpg.UndefinedFunctionError):
        async with quick_transaction(few, "SELECT nothing()"):
            pytest.fail("the first statement failed")


async def test_a_failure_that_was_passed_over_is_not_said_to_be_committed(few: AsyncEngine) -> None:
    async def pass_over() -> None:
        async with quick_transaction(few, LOCK) as connection:
            driver = await driver_of(connection)
            await driver.execute("INSERT INTO facts VALUES ('lost')")
            with contextlib.suppress(asyncpg.PostgresError):
                await driver.execute("SELECT 1 / 0")

    with pytest.raises(NotCommitted, match="COMMIT with ROLLBACK"):
        await pass_over()
    assert await _facts(few) == []


@pytest.mark.parametrize("where", ["first", "within", "rollback", "within, and again"])
async def test_a_quick_transaction_that_is_cancelled_leaves_its_connection_in_none(
    few: AsyncEngine, where: str
) -> None:
    holding = make_engine(few.url.render_as_string(hide_password=False), name="holding", command_timeout=120)
    async with few.connect() as other:
        kept = (await driver_of(other)).get_server_pid()
        async with holding.begin() as holder:
            await holder.execute(text(LOCK))
            entered = asyncio.Event()

            async def act() -> None:
                async with quick_transaction(few, LOCK if where == "first" else "SELECT 1") as connection:
                    await connection.execute(text("INSERT INTO facts VALUES ('half')"))
                    entered.set()
                    assert where != "rollback"
                    await (await driver_of(connection)).execute(LOCK)

            acting = asyncio.create_task(act())
            if where == "rollback":
                await entered.wait()
            else:
                await _until_locks(holder, "NOT granted", 1)
            acting.cancel()
            if where == "within, and again":
                await asyncio.sleep(0)  # to the rollback, which waits for the end of the statement
                acting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await acting
        await holding.dispose()
    assert await _facts(few) == []
    async with few.connect() as one, few.connect() as other:
        assert kept in {(await driver_of(each)).get_server_pid() for each in (one, other)}


async def test_a_connection_that_is_lost_in_a_quick_transaction_is_not_given_out_again(few: AsyncEngine) -> None:
    async def lose() -> None:
        async with quick_transaction(few, LOCK) as connection:
            driver = await driver_of(connection)
            await driver.execute("INSERT INTO facts VALUES ('lost')")
            await driver.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(asyncpg.PostgresError) as lost:
        await lose()
    assert is_away(lost.value)
    assert await _facts(few) == []
