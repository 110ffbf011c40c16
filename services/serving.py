"""All three services on one PostgreSQL, in one process, with the demo trip: what `services.up` runs once it may.

Loading this module is most of the work of a start, so whatever can be refused earlier has been.
"""

import asyncio
import contextlib
import json
import logging
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import httpx
import structlog
import uvicorn
from fastapi import FastAPI

from services.data_folder import tokens, write_secret
from services.demo.job import listed
from services.demo.load_file import Loaded, LoadFile, LoadFileWrong
from services.demo.player import LoadStopped, api_client, play
from services.demo.progress import Progress
from services.demo.settled import NotSettled, wait_until_settled
from services.demo.trip_fields import TripFileWrong
from services.demo.trip_file import DEMO, Step, read_trip_file
from services.embedded import CannotStart, EmbeddedPostgres
from services.front import Front
from services.notifications.main import create_app as notifications_app
from services.notifications.settings import NotificationsSettings
from services.page import overview
from services.participants.main import create_app as participants_app
from services.participants.settings import ParticipantsSettings
from services.schedule.main import create_app as schedule_app
from services.schedule.settings import ScheduleSettings
from services.stopping import Signals
from services.surroundings import CannotGoOn, explained, kafka_bootstrap, line_of, say
from shared.logs import set_up
from shared.migrations import BUS_MIGRATIONS, upgrade
from shared.settings import ROLES, Settings, WrongSetting, load
from shared.tokens import WrongToken

MIGRATIONS = {
    "schedule": "services/schedule/migrations",
    "participants": "services/participants/migrations",
    "notifications": "services/notifications/migrations",
    "bus": BUS_MIGRATIONS,
}
SERVICES: Final[Mapping[str, tuple[type[Settings], Callable[[Any], FastAPI]]]] = {
    "schedule": (ScheduleSettings, schedule_app),
    "participants": (ParticipantsSettings, participants_app),
    "notifications": (NotificationsSettings, notifications_app),
}
GRACE_SECONDS = 10
PACE_SECONDS = 1.0
WATCH_SECONDS = 0.5

log = structlog.get_logger()

READABLE = (WrongSetting, WrongToken, LoadStopped, LoadFileWrong, TripFileWrong, NotSettled)
"""What can go wrong with a reason that a person can remove: each one's text is one line."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a start has in hand before any service runs."""

    data: Path
    bus: str
    play: bool
    postgres: EmbeddedPostgres
    listening: socket.socket
    run_file: Path

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    @property
    def token(self) -> str:
        """The demo's bearer token."""
        return tokens(self.data)["demo"]

    @property
    def way(self) -> dict[str, str]:
        """By which bus: the settings that the doctor has to take over."""
        return {"bus": self.bus, "kafka_bootstrap": kafka_bootstrap()}

    def settings(self) -> dict[str, Settings]:
        """Each service's settings: from here, and what is not given here from the environment. Raises WrongSetting."""
        common = {
            "host": "127.0.0.1",
            "port": self.listening.getsockname()[1],
            "roles": ROLES,
            **self.way,
            "bus_url": self.postgres.url("bus"),
            "tokens_file": self.data / "tokens",
            "service_token": tokens(self.data)["services"],
            **{f"{name}_url": self.base for name in ("public", *SERVICES)},
        }
        return {
            name: load(settings, **common, database_url=self.postgres.url(name))
            for name, (settings, _) in SERVICES.items()
        }


def run(start: Start, lines: TextIO, signals: Signals) -> None:
    """Start PostgreSQL and serve until a signal; raises `CannotStart` or `CannotGoOn`. `lines` is the log."""
    set_up("attache", log_format="json", stream=lines)
    logging.raiseExceptions = False  # a line that cannot be logged is no reason to write over the terminal
    with explained(start.data, READABLE), contextlib.ExitStack() as stack:
        level = start.settings()["schedule"].log_level  # what is set wrong is said before anything is started
        set_up("attache", log_format="json", level=level, stream=lines)
        write_secret(start.data / "bus.json", json.dumps(start.way))
        stack.enter_context(start.postgres)
        stack.callback(start.run_file.unlink, missing_ok=True)
        stack.enter_context(asyncio.Runner(loop_factory=_loop_factory())).run(_serve(start, signals))


async def _serve(start: Start, signals: Signals) -> None:
    """Migrate, run the services and present them, until a signal cancels it or a part of it fails."""
    loop, work = asyncio.get_running_loop(), asyncio.current_task()
    assert work is not None
    signals.hand_to(lambda: loop.call_soon_threadsafe(work.cancel))
    try:
        await _migrate(start.postgres)
        settings = start.settings()
        front = Front({name: create_app(settings[name]) for name, (_, create_app) in SERVICES.items()})
        async with front.running(), api_client(start.base, start.token) as client:
            server = _Server(_server_config(front))
            serving = asyncio.create_task(server.serve(sockets=[start.listening]))
            watching = asyncio.create_task(_watch(start.postgres))
            presenting = asyncio.create_task(_present(start, front, client))
            try:
                done, _ = await asyncio.wait({serving, watching, presenting}, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
            finally:
                watching.cancel()
                presenting.cancel()
                server.should_exit = True
                # two signals at once are one cancellation, and still two signals
                server.force_exit = signals.asked > 1
                await asyncio.gather(serving, watching, presenting, return_exceptions=True)
    finally:
        signals.hand_to(lambda: None)  # what is left, the database's stop, is quick and wants to be whole


async def _migrate(postgres: EmbeddedPostgres) -> None:
    for database, scripts in MIGRATIONS.items():
        try:
            await upgrade(scripts, postgres.url(database))
        except Exception as error:
            log.exception("migration.failed", database=database)
            raise CannotStart(f"the database {database} cannot be brought to this version: {line_of(error)}") from error


async def _watch(postgres: EmbeddedPostgres) -> None:
    while postgres.is_running():
        await asyncio.sleep(WATCH_SECONDS)
    raise CannotGoOn(postgres.last_words())


async def _present(start: Start, front: Front, client: httpx.AsyncClient) -> None:
    """Load the demo trip, wait until every feed is up to date, and say where everything is."""
    trip_file = read_trip_file(DEMO)
    progress = Progress(sys.stderr, lines=start.play)
    kept = LoadFile(start.data / "secrets" / "demo.json")

    def watch(done: int, total: int, step: Step) -> None:
        front.state.done, front.state.total = done, total
        progress(done, total, step)

    def show(loaded: Loaded) -> None:
        told = loaded.under(start.base).as_json()
        front.state.feeds = told["feeds"]
        front.look = lambda: overview(client, told["trip"])

    def planned(loaded: Loaded) -> None:
        show(loaded)
        if start.play:
            say(
                "\n".join(
                    ["what was planned is in these feeds; what happened follows, a step a second:", *listed(loaded)]
                )
            )

    pace = PACE_SECONDS if start.play else 0.0
    loaded = (await play(trip_file, client, kept, pace=pace, watch=watch, planned=planned)).under(start.base)
    await wait_until_settled(client, SERVICES)
    await front.shelved()
    show(loaded)
    front.state.ready = True
    told = {"base": start.base, "token": start.token, **loaded.as_json()}
    write_secret(start.run_file, json.dumps(told, indent=2, ensure_ascii=False))
    _print(start.base, loaded)


class _Server(uvicorn.Server):
    """Uvicorn without its handlers of signals: it would put them over ours, and raise each one again at its end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server_config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The fastest event loop that this machine has, as uvicorn would choose it."""
    return _server_config(None).get_loop_factory()


def _print(base: str, loaded: Loaded) -> None:
    lines = [f"\nAttaché is ready at {base}/", "\nFeeds:", *listed(loaded), "\nAPIs:"]
    lines += [f"  {base}/{name}/docs" for name in SERVICES]
    print("\n".join([*lines, "\nStop with Ctrl-C."]), flush=True)
