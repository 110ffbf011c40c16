"""Connections to a service's own PostgreSQL: the engine, the raw driver beneath it, and what counts as "away"."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, cast
from urllib.parse import urlsplit

import asyncpg
from sqlalchemy import event, exc, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

CONNECT_TIMEOUT = 5.0
POOL_TIMEOUT = 5.0
"""Seconds for a new connection, and for a free one of the pool."""
LOCK_TIMEOUT = "5s"
"""No command waits longer for a lock: it is refused as `store-away` and may be sent again."""
MAJOR = 18
"""The PostgreSQL that everything is written and tried for."""
IDLE_IN_TRANSACTION_TIMEOUT = "10s"
"""A process that stands still inside a transaction loses it, so that it cannot hold the log's lock for ever."""
COMMAND_TIMEOUT = 10.0
"""Seconds. A server that has stopped answering (frozen, or cut off) is as good as away; no timeout of its own tells."""
ROLLBACK_SECONDS = 5.0
"""A connection that takes longer is closed instead."""


def make_engine(
    url: str, *, name: str, pool_size: int = 10, command_timeout: float | None = COMMAND_TIMEOUT
) -> AsyncEngine:
    """An engine for one service. `name` is shown in `pg_stat_activity`; a tool may wait for ever (None)."""
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=POOL_TIMEOUT,
        # JSON comes as text, from Core as from the driver: most of it is passed on as it is, and events have a codec
        json_deserializer=str,
        connect_args={
            "timeout": CONNECT_TIMEOUT,
            "command_timeout": command_timeout,
            "server_settings": {
                "application_name": f"attache-{name}",
                "timezone": "UTC",
                "lock_timeout": LOCK_TIMEOUT,
                "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT,
                "jit": "off",
            },
        },
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    return engine


def pool_use(engine: AsyncEngine) -> tuple[int, int]:
    """How many connections of an engine of `make_engine` are in use, and how many can be at most."""
    pool = engine.pool
    assert isinstance(pool, AsyncAdaptedQueuePool)
    return pool.checkedout(), 2 * pool.size()


async def driver_of(connection: AsyncConnection) -> "Driver":
    """The asyncpg connection beneath a SQLAlchemy one, for statements that are too hot for Core."""
    held = connection.sync_connection
    if held is not None and not held.closed and not held.invalidated:
        return cast("Driver", held.connection.driver_connection)  # it is there: nothing to wait for
    raw = await connection.get_raw_connection()
    return cast("Driver", raw.driver_connection)


@asynccontextmanager
async def quick_transaction(engine: AsyncEngine, first: str) -> AsyncIterator[AsyncConnection]:
    """As `engine.begin()`, for what is hot: the `first` statement goes with the BEGIN, and Core sends neither.

    `first` has no parameters. What could not be committed is an error, also where a statement's failure was caught
    and forgotten, which PostgreSQL answers with a silent ROLLBACK.
    """
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        driver = await driver_of(connection)
        try:
            await driver.execute(f"BEGIN; {first}")
            yield connection
            if (said := await driver.execute("COMMIT")) != "COMMIT":
                raise NotCommitted(f"the database answered COMMIT with {said}")
        except BaseException:
            await _roll_back(connection, driver)
            raise


async def _roll_back(connection: AsyncConnection, driver: "Driver") -> None:
    """Whatever happens meanwhile, no connection goes back to the pool inside a transaction.

    Where a BEGIN was cancelled on its way, the driver itself does not know whether there is one.
    """
    ending = asyncio.ensure_future(driver.execute("ROLLBACK", timeout=ROLLBACK_SECONDS))
    cancelled = None
    while not ending.done():
        try:
            await asyncio.wait([ending])
        except asyncio.CancelledError as error:  # what cancels a second time waits for this, too
            cancelled = error
    if ending.cancelled() or ending.exception() is not None:
        driver.terminate()  # the server rolls back when it sees that
        await connection.invalidate()  # this one alone: at a closed one the pool would give up all
    if cancelled is not None:
        raise cancelled


class NotCommitted(Exception):
    """A transaction that had failed was to be committed as if it had not."""


class WrongDatabase(Exception):
    """The database is not one that this program can work on; the text is one line that says what to do."""


async def check_server(connection: AsyncConnection) -> None:
    """Raises `WrongDatabase` where the server is another major version than `MAJOR`."""
    number = int(await connection.scalar(text("SHOW server_version_num")) or 0)
    if (wrong := wrong_server(number)) is not None:
        raise WrongDatabase(wrong)


def wrong_server(number: int) -> str | None:
    """What is wrong with a server, by its `server_version_num` (180004 is 18.4)."""
    found = number // 10_000
    if found == MAJOR:
        return None
    cure = "bring it to {} with pg_upgrade or a dump" if found < MAJOR else "give this program a server of {}"
    return f"the server is PostgreSQL {found} and this program is for PostgreSQL {MAJOR}: {cure.format(MAJOR)}"


def is_full(error: BaseException) -> bool:
    """Whether the database had no room left on its disk."""
    inner = _driver_error(error) if isinstance(error, exc.DBAPIError) else error
    return isinstance(inner, asyncpg.DiskFullError)


def is_away(error: BaseException) -> bool:
    """Whether an error says that the database cannot be used just now, and nothing about the statement itself."""
    match error:
        case exc.DataError() | exc.IntegrityError() | exc.ProgrammingError():
            return False
        case exc.DBAPIError():
            return (
                error.connection_invalidated
                or isinstance(error, exc.OperationalError)
                or _driver_away(_driver_error(error))
            )
        case exc.TimeoutError():
            return True
        case _:
            return _driver_away(error)


_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,  # a full disk, too many connections
    asyncpg.PostgresSystemError,  # its disk fails
    asyncpg.OperatorInterventionError,  # shut down, crashed, starting up
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InternalClientError,
    ConnectionError,
    TimeoutError,
    socket.gaierror,
)


def why_unusable(error: BaseException, url: str) -> str | None:
    """Why the database of a `DATABASE_URL` cannot be used as that says, and what to do, in one line; else None."""
    host = urlsplit(url).hostname or "its socket"
    cause = _first(error, (*_REFUSALS, socket.gaierror))
    if isinstance(cause, asyncpg.InvalidCatalogNameError):
        return f"the database refuses: {cause}: make it, or mend the name in DATABASE_URL"
    if isinstance(cause, asyncpg.InvalidAuthorizationSpecificationError):
        cure = "put the role's password into DATABASE_URL, or give the role that one (ALTER ROLE)"
        return f"the database refuses: {cause}: {cure}"
    if isinstance(cause, socket.gaierror):
        return f"the database does not answer: nobody knows the name {host}: mend the host in DATABASE_URL"
    if is_away(error):
        return f"the database does not answer: {type(error).__name__} at {host}: see whether it is up"
    return None


_REFUSALS = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)
"""A wrong password, a role or a database that is not there: a setting is to be mended."""


def _first(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """What lies beneath an error, SQLAlchemy's wrapping above all, and is of these kinds."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__
    return error


def _driver_error(error: exc.DBAPIError) -> BaseException | None:
    """The driver's own error: SQLAlchemy wraps it once or twice."""
    cause: Any = error.orig
    inner: BaseException | None = getattr(cause, "driver_exception", None) or getattr(cause, "__cause__", None)
    return inner or error.orig


def _driver_away(error: BaseException | None) -> bool:
    if type(error) is asyncpg.InterfaceError:
        # the driver uses this one class for its callers' mistakes too
        return "closed" in str(error)
    # a plain OSError is a connection that could not be made; its other kinds are about files
    return isinstance(error, _AWAY) or type(error) is OSError


def _refuse_closed(driver: Any, *_: object) -> None:
    """After a restart of the database the pool's connections are dead, which the driver knows without a round trip."""
    if driver.driver_connection.is_closed():
        raise exc.InvalidatePoolError
