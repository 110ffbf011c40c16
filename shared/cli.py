"""`python -m services.<name> serve | migrate | rebuild | verify | redrive | restored`: what operators do."""

import argparse
import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import structlog
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.bus import BusAway, Topic, TopicDrift
from shared.bus_choice import make_bus
from shared.clock import CLOCK_BEHIND, clock_behind
from shared.database import WrongDatabase, check_server, make_engine, why_unusable
from shared.draining import DrainingServer
from shared.dropping import CannotDrop
from shared.event_store import EventStore
from shared.logs import set_up
from shared.migrations import BUS_MIGRATIONS, ahead, behind, current_and_head, is_ahead, upgrade
from shared.redrive_command import NOT_DONE, WrongRedrive, add_arguments, redrive
from shared.restored import StillRunning, restored
from shared.service import Service
from shared.settings import Settings, WrongSetting, load

TOPICS_CURE = "alter them on the broker, or set TOPIC_... to what they are"
HIGHEST_EPOCH = 2_000_000_000
"""Room is left above: what a column holds ends at 2**31 - 1."""

log = structlog.get_logger()

Extra = Callable[[Any, AsyncEngine], Awaitable[int]]


class CannotServe(Exception):
    """The service cannot start as things are; the text is one readable line that says what to do."""


class OneLineParser(argparse.ArgumentParser):
    """One that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


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
        # what redrive does is what it says at its end; a line for each message would bury it
        level = "warning" if parsed.command == "redrive" else settings.log_level
        set_up(program.name, log_format=settings.log_format, level=level)
        if parsed.command == "serve":
            return _serve(program, settings)
        return asyncio.run(_with_engine(program, settings, parsed))
    except (WrongSetting, CannotServe, WrongDatabase, StillRunning, WrongRedrive, CannotDrop) as error:
        print(f"{program.name}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (line := why_unusable(error, settings.database_url.get_secret_value())) is None:
            if parsed.command != "redrive":
                raise
            log.exception("redrive.failed")
            line = f"not done: {type(error).__name__}"  # Python's own exit code says that something is still parked
        print(f"{program.name}: {line}", file=sys.stderr)
    return NOT_DONE if parsed.command == "redrive" else 1


def _parser(program: Program) -> argparse.ArgumentParser:
    parser = OneLineParser(prog=f"python -m services.{program.name}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "serve": "answer requests, publish and consume, until SIGTERM",
        "migrate": "bring the database (and a local bus) to this program's schema",
        "rebuild": "make the read models anew from the logs; feeds and their history stay",
        "verify": "read the whole log and compare: exit code 1 if anything is damaged or drifted",
        **{name: text for name, (text, _) in program.extra.items()},
    }.items():
        commands.add_parser(name, help=text)
    add_arguments(commands.add_parser("redrive", help="try parked messages again: 0 all clear, 1 some still parked"))
    add_above(commands.add_parser("restored", help="the database was put back to an earlier point: tell all anew"))
    return parser


def add_above(parser: argparse.ArgumentParser) -> None:
    """What `restored` can be told: the bus may be gone, and with it what was published."""
    parser.add_argument("--above", type=_epoch, default=0, help="an epoch that is known to have been published")


def _epoch(said: str) -> int:
    if not said.isascii() or not said.isdigit() or int(said) >= HIGHEST_EPOCH:
        raise argparse.ArgumentTypeError(f"{said!r} is no epoch: a number below {HIGHEST_EPOCH}")
    return int(said)


def _serve(program: Program, settings: Settings) -> int:
    listening = _listen(settings)
    asyncio.run(_check_database(program, settings))
    app = program.create_app(settings)
    asyncio.run(_check_topics(program, settings, app.state.service.topics))
    server = DrainingServer(app, app.state.service.hand_over)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)  # what was asked for and done is no failure: the end has exit code 0
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


async def _check_database(program: Program, settings: Settings) -> None:
    """Raises `WrongDatabase` for another PostgreSQL or schema; a clock that is behind is only said."""
    engine = make_engine(settings.database_url.get_secret_value(), name=program.name)
    try:
        async with engine.connect() as connection:
            await check_server(connection)
            current, head = await current_and_head(program.migrations, connection)
            if is_ahead(program.migrations, current):
                raise WrongDatabase(ahead(current, head))
            if current != head:
                raise WrongDatabase(behind(current, head, program.name))
            if (seconds := await clock_behind(connection)) is not None:
                log.warning("clock.behind", service=program.name, seconds=seconds, said=CLOCK_BEHIND)
    finally:
        await engine.dispose()


async def _check_topics(program: Program, settings: Settings, topics: Sequence[Topic]) -> None:
    """A broker whose topics are others than this program's is refused; one that is away is waited for later."""
    bus = make_bus(settings, program.name)
    try:
        await bus.ensure_topics(topics)
    except TopicDrift as drift:
        raise CannotServe(f"the topics on the bus are not as they have to be: {drift} ({TOPICS_CURE})") from drift
    except BusAway as error:
        log.warning("bus.away", service=program.name, error=str(error))
    finally:
        await bus.close()


async def _with_engine(program: Program, settings: Settings, parsed: argparse.Namespace) -> int:
    command: str = parsed.command
    url = settings.database_url.get_secret_value()
    if command == "migrate":
        await upgrade(program.migrations, url)
        if settings.bus == "local" and settings.bus_url is not None:
            await upgrade(BUS_MIGRATIONS, settings.bus_url.get_secret_value())
        return 0
    if command == "redrive":
        return await _redrive(program, settings, parsed)
    engine = make_engine(url, name=program.name, command_timeout=None)
    try:
        if command == "rebuild":
            async with engine.begin() as connection:
                print(f"{program.name}: {await program.rebuild(connection)} rows made anew")
            return 0
        if command == "verify":
            return await _verify(program, engine)
        if command == "restored":
            return await _restored(program, settings, engine, parsed.above)
        return await program.extra[command][1](settings, engine)
    finally:
        await engine.dispose()


async def _redrive(program: Program, settings: Settings, parsed: argparse.Namespace) -> int:
    await _check_database(program, settings)
    service: Service = program.create_app(settings).state.service
    async with service.resting():
        return await redrive(service, parsed)


async def _restored(program: Program, settings: Settings, engine: AsyncEngine, above: int) -> int:
    await _check_database(program, settings)
    bus = make_bus(settings, program.name)
    try:
        raised, silence = await restored(program.name, engine, bus, above)
    finally:
        await bus.close()
    print(f"{program.name}: epoch {raised.new} instead of {raised.old}; everything is told anew when it serves")
    if silence is not None:
        print(
            f"{program.name}: the bus was not asked ({silence}): if a higher epoch than {raised.old} was ever told, "
            "say restored again with --above",
            file=sys.stderr,
        )
    return 0


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
