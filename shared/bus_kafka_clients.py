"""What every client of aiokafka needs, whatever it does: to begin, and to end in bounded time."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from aiokafka.conn import collect_hosts, create_conn  # type: ignore[import-untyped]
from aiokafka.errors import KafkaConnectionError, KafkaError  # type: ignore[import-untyped]

from shared.bus import Delivery

BEGIN_SECONDS = 5.0
"""So long a start that is no longer wanted is waited for; a broker that answers at all does so within that."""
CLOSE_SECONDS = 2.0
REASON_MILLISECONDS = 2000
FAILED = (KafkaError, OSError)
"""What a client raises when the broker is not there; a time-out is an OSError."""


async def begun(client: Any, options: Mapping[str, Any]) -> None:
    """Start a client of aiokafka, made with these options. Cancelled in the middle of it, it would lose its first
    connection, open, for good: so it is let come to its end first, for a moment.
    """
    starting = asyncio.ensure_future(client.start())
    try:
        await asyncio.shield(starting)
    except KafkaConnectionError as error:
        if reason := await _refused_by(options):
            raise reason from error
        raise
    except asyncio.CancelledError:
        try:
            await asyncio.wait({starting}, timeout=BEGIN_SECONDS)
        finally:  # it may be cancelled once more
            starting.cancel()
            looked_at(starting)
        raise


async def bounded(work: Coroutine[Any, Any, object], seconds: float) -> bool:
    """Run something that may hang or fail; answers whether it came to its end. `wait_for` may wait for ever."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        ended = task.done()
        task.cancel()
    await asyncio.wait({task}, timeout=1.0)
    if not task.done():
        return False
    return ended and not task.cancelled() and task.exception() is None


def said(error: BaseException) -> str:
    """One line for the log."""
    return f"Kafka: {type(error).__name__}: {error}".splitlines()[0]


def delivery_of(record: Any) -> Delivery:
    """A record as aiokafka gives it."""
    return Delivery(
        topic=record.topic,
        number=record.partition,
        offset=record.offset,
        key=record.key,
        headers=tuple(record.headers),
        body=record.value,
    )


def looked_at(future: "asyncio.Future[Any]") -> None:
    """Look at what came of it: an exception that nobody looked at is logged when it is collected."""
    if future.done() and not future.cancelled():
        future.exception()


async def _refused_by(options: Mapping[str, Any]) -> Exception | None:
    """Why no broker lets us in, where TLS or SASL may be the cause: the clients say only that none did."""
    if options["security_protocol"] == "PLAINTEXT":
        return None
    secured = {name: value for name, value in options.items() if name.startswith(("security", "ssl", "sasl"))}
    for host, port, _ in collect_hosts(options["bootstrap_servers"]):
        try:
            connection = await create_conn(
                host, port, client_id=options["client_id"], request_timeout_ms=REASON_MILLISECONDS, **secured
            )
        except FAILED as error:
            return error
        await asyncio.wait({connection.close()}, timeout=CLOSE_SECONDS)
    return None
