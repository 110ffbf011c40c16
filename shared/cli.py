"""`python -m services.<name> serve | migrate | rebuild | verify`: what operators do with one service."""

import argparse
import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import structlog
import uvicorn
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.bus import BusAway, Topic, TopicDrift
from shared.bus_choice import make_bus
from shared.database import is_away, make_engine
from shared.event_store import EventStore
from shared.logs import set_up
from shared.migrations import current_and_head, upgrade
from shared.settings import Settings, WrongSetting, load

BUS_MIGRATIONS = "shared/bus_migrations"
GRACE_SECONDS = 20

_REFUSED = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)
"""A wrong password, a role or a database that is not there: a setting is to be mended."""

log = structlog.get_logger()

Extra = Callable[[Any, AsyncEngine], Awaitable[int]]


class CannotServe(Exception):
    """The service cannot start as things are; the text is one readable line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One service, as its command line needs it. `extra` are commands that only this service has, with their help."""

    name: str
    settings: type[Settings]
    create_app: Callable[[Any], FastAPI]
    migrations: str
    store: EventStore
    rebuild: Callable[[AsyncConnection], Awaitable[int]]
    drift: Callable[[AsyncConnection], AsyncIterator[str]]
    extra: Mapping[str, tuple[str, Extra]] = field(default_factory=dict)


def run(program: Program, arguments: list[str] | None = None) -> int:
    """Carry out one command; returns the exit code. What cannot be done is said in one line."""
    parsed = _parser(program).parse_args(arguments)
    try:
        settings = load(program.settings)
        set_up(program.name, log_format=settings.log_format, level=settings.log_level)
        if parsed.command == "serve":
            return _serve(program, settings)
        return asyncio.run(_with_engine(program, settings, parsed.command))
    except (WrongSetting, CannotServe) as error:
        print(f"{program.name}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (refusal := _refusal(error)) is not None:
            print(f"{program.name}: the database refuses: {refusal}", file=sys.stderr)
        elif is_away(error):
            print(f"{program.name}: the database does not answer: {type(error).__name__}", file=sys.stderr)
        else:
            raise
    return 1


def _refusal(error: BaseException) -> BaseException | None:
    """What the driver said, beneath SQLAlchemy's wrapping."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, _REFUSED):
        cause = cause.__cause__
    return cause


def _parser(program: Program) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m services.{program.name}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "serve": "answer requests, publish and consume, until SIGTERM",
        "migrate": "bring the database (and a local bus) to this program's schema",
        "rebuild": "make the read models anew from the log; feeds and their history stay",
        "verify": "read the whole log and compare: exit code 1 if anything is damaged or drifted",
        **{name: text for name, (text, _) in program.extra.items()},
    }.items():
        commands.add_parser(name, help=text)
    return parser


def _serve(program: Program, settings: Settings) -> int:
    listening = _listen(settings)
    asyncio.run(_check_schema(program, settings))
    app = program.create_app(settings)
    asyncio.run(_check_topics(program, settings, app.state.service.topics))
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn ends as these ask, and then sends itself the signal once more: it would end the process by the signal,
    # and what was asked for and done is no failure
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server.run(sockets=[listening])
    # uvicorn logs why a start failed; started is what it sets when it is listening
    return 0 if server.started else 1


def _listen(settings: Settings) -> socket.socket:
    """The port first, before anything is begun. With TCP named, asyncio sends small answers at once (TCP_NODELAY)."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        said = error.strerror or error
        raise CannotServe(f"cannot listen on {settings.host} port {settings.port}: {said}") from error
    return listening


async def _check_schema(program: Program, settings: Settings) -> None:
    engine = make_engine(settings.database_url.get_secret_value(), name=program.name)
    try:
        async with engine.connect() as connection:
            current, head = await current_and_head(program.migrations, connection)
    finally:
        await engine.dispose()
    if current != head:
        raise CannotServe(
            f"the database's schema is {current or 'empty'}, this program's is {head}: "
            f"run python -m services.{program.name} migrate (of the newer version)"
        )


async def _check_topics(program: Program, settings: Settings, topics: Sequence[Topic]) -> None:
    """A broker whose topics are others than this program's is refused; one that is away is waited for later."""
    bus = make_bus(settings, program.name)
    try:
        await bus.ensure_topics(topics)
    except TopicDrift as drift:
        raise CannotServe(f"the topics on the bus are not as they have to be: {drift}") from drift
    except BusAway as error:
        log.warning("bus.away", service=program.name, error=str(error))
    finally:
        await bus.close()


async def _with_engine(program: Program, settings: Settings, command: str) -> int:
    url = settings.database_url.get_secret_value()
    if command == "migrate":
        await upgrade(program.migrations, url)
        if settings.bus == "local" and settings.bus_url is not None:
            await upgrade(BUS_MIGRATIONS, settings.bus_url.get_secret_value())
        return 0
    engine = make_engine(url, name=program.name, command_timeout=None)
    try:
        if command == "rebuild":
            async with engine.begin() as connection:
                print(f"{program.name}: {await program.rebuild(connection)} rows made anew")
            return 0
        if command == "verify":
            return await _verify(program, engine)
        return await program.extra[command][1](settings, engine)
    finally:
        await engine.dispose()


async def _verify(program: Program, engine: AsyncEngine) -> int:
    found = 0
    async with engine.connect() as connection:
        # one snapshot for the log and the read models: commands may go on meanwhile
        await connection.execution_options(isolation_level="REPEATABLE READ")
        async with connection.begin():
            for check in (program.store.damage, program.drift):
                async for line in check(connection):
                    found += 1
                    print(f"{program.name}: {line}")
    print(f"{program.name}: {'nothing wrong' if not found else f'{found} faults'}")
    return 1 if found else 0
