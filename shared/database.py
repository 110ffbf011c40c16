"""Connections to a service's own PostgreSQL: the engine, the raw driver beneath it, and what counts as "away"."""

import socket
from typing import Any, cast

import asyncpg
from sqlalchemy import event, exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

LOCK_TIMEOUT = "5s"
"""No command waits longer for a lock: it is refused as `store-away` and may be sent again."""
IDLE_IN_TRANSACTION_TIMEOUT = "10s"
"""A process that stands still inside a transaction loses it, so that it cannot hold the log's lock for ever."""


COMMAND_TIMEOUT = 10.0
"""Seconds. A server that has stopped answering (frozen, or cut off) is as good as away; no timeout of its own tells."""


def make_engine(
    url: str, *, name: str, pool_size: int = 10, command_timeout: float | None = COMMAND_TIMEOUT
) -> AsyncEngine:
    """An engine for one service. `name` is shown in `pg_stat_activity`; a tool may wait for ever (None)."""
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=5,
        # JSON comes as text, from Core as from the driver: most of it is passed on as it is, and events have a codec
        json_deserializer=str,
        connect_args={
            "timeout": 5,
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


async def driver_of(connection: AsyncConnection) -> "asyncpg.Connection[asyncpg.Record]":
    """The asyncpg connection beneath a SQLAlchemy one, for statements that are too hot for Core."""
    raw = await connection.get_raw_connection()
    return cast("asyncpg.Connection[asyncpg.Record]", raw.driver_connection)


def is_away(error: BaseException) -> bool:
    """Whether an error says that the database cannot be used just now, and nothing about the statement itself."""
    match error:
        case exc.DataError() | exc.IntegrityError() | exc.ProgrammingError():
            return False
        case exc.DBAPIError():
            cause: Any = error.orig
            # SQLAlchemy wraps the driver's error once or twice
            inner = getattr(cause, "driver_exception", None) or getattr(cause, "__cause__", None)
            return (
                error.connection_invalidated or isinstance(error, exc.OperationalError) or _driver_away(inner or cause)
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
