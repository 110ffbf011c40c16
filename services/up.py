"""`python -m services up`: everything on one machine without containers, in one process behind one address.

A real PostgreSQL from a wheel, three services, the demo trip loaded through the public API, and one folder (`DATA`)
that holds all of it: databases, secrets, how far the load came, and `run.json` for scripts while it is ready.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from services.demo.load_file import Loaded, LoadFile
from services.demo.player import api_client, play
from services.demo.progress import Progress
from services.demo.trip_file import DEMO, Step, read_trip_file
from services.embedded import CannotStart, EmbeddedPostgres
from services.front import Front
from services.notifications.main import create_app as notifications_app
from services.notifications.settings import NotificationsSettings
from services.participants.main import create_app as participants_app
from services.participants.settings import ParticipantsSettings
from services.schedule.main import create_app as schedule_app
from services.schedule.settings import ScheduleSettings
from shared.logs import set_up
from shared.migrations import upgrade
from shared.settings import load
from shared.tokens import add_token

MIGRATIONS = {
    "schedule": "services/schedule/migrations",
    "participants": "services/participants/migrations",
    "notifications": "services/notifications/migrations",
    "bus": "shared/bus_migrations",
}
READY_SECONDS = 120.0
GRACE_SECONDS = 10
PACE_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What was asked for on the command line."""

    port: int
    data: Path
    bus: str
    play: bool


def up(wanted: Wanted) -> int:
    """Run until Ctrl-C or SIGTERM; returns the exit code. Raises `CannotStart`, `WrongSetting` with one readable line."""
    listening = _listen(wanted.port)
    if wanted.bus == "kafka":
        _check_kafka()
    postgres = EmbeddedPostgres(wanted.data)
    postgres.claim()
    run_file = wanted.data / "run.json"
    run_file.unlink(missing_ok=True)
    _say(f"data in {wanted.data.resolve()}; the log is {wanted.data / 'services.log'}")
    with (wanted.data / "services.log").open("a", encoding="utf-8") as stream, postgres:
        set_up("attache", log_format="json", stream=stream)
        try:
            return asyncio.run(_serve(wanted, postgres, listening, run_file))
        finally:
            run_file.unlink(missing_ok=True)


async def _serve(wanted: Wanted, postgres: EmbeddedPostgres, listening: socket.socket, run_file: Path) -> int:
    for database, scripts in MIGRATIONS.items():
        await upgrade(scripts, postgres.url(database))
    base = f"http://127.0.0.1:{listening.getsockname()[1]}"
    tokens = _tokens(wanted.data)
    front = Front(_apps(wanted, postgres, base, tokens))
    config = uvicorn.Config(
        front,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )
    server = uvicorn.Server(config)
    async with front.running():
        return await _until_stopped(server, listening, _present(wanted, front, base, tokens["demo"], run_file))


async def _until_stopped(server: uvicorn.Server, listening: socket.socket, presenting: Any) -> int:
    """Serve and present, until a signal comes or one of the two fails."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    with _signals_are_ours(server):
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        presented = asyncio.create_task(presenting)
        waiting = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait({serving, waiting, presented}, return_when=asyncio.FIRST_COMPLETED)
            if presented.done() and not presented.exception():
                await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            _say("stopping")
            for task in (presented, waiting):
                task.cancel()
            server.should_exit = True
            await asyncio.gather(serving, waiting, return_exceptions=True)
    failure = presented.exception() if presented.done() and not presented.cancelled() else None
    if failure is not None:
        raise failure
    return 0


async def _present(wanted: Wanted, front: Front, base: str, token: str, run_file: Path) -> None:
    """Load the demo trip, wait until every feed is up to date, and say where everything is."""
    trip_file = read_trip_file(DEMO)
    progress = Progress(sys.stderr, lines=wanted.play)
    kept = LoadFile(wanted.data / "secrets" / "demo.json")

    def watch(done: int, total: int, step: Step) -> None:
        front.state.status = f"loading the demo trip: step {done} of {total}"
        progress(done, total, step)

    def planned(loaded: Loaded) -> None:
        _show(front, loaded)

    async with api_client(base, token) as client:
        loaded = await play(
            trip_file, client, kept, pace=PACE_SECONDS if wanted.play else 0.0, watch=watch, planned=planned
        )
        await wait_until_settled(client)
    _show(front, loaded)
    front.state.status = "ready"
    _write_secret(run_file, json.dumps({"base": base, "token": token, **loaded.as_json()}, indent=2))
    _print(base, loaded)


async def wait_until_settled(client: httpx.AsyncClient, services: Mapping[str, str] | None = None) -> None:
    """Until nothing is unpublished, unheard or unrendered in any service. Raises `CannotStart` after two minutes."""
    bases = services or dict.fromkeys(("schedule", "participants", "notifications"), "")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READY_SECONDS):
            while not all([await _settled(client, base, name) for name, base in bases.items()]):
                await asyncio.sleep(0.1)
            return
    raise CannotStart("the feeds did not become ready in two minutes; services.log in the data folder says why")


async def _settled(client: httpx.AsyncClient, base: str, service: str) -> bool:
    report = (await client.get(f"{base}/{service}/readyz")).json()
    behind = [report.get(name) for name in ("unpublished", "unheard", "catching_up", "waiting")]
    return bool(report["ready"]) and not any(number is None or number > 0 for number in behind)


def _apps(wanted: Wanted, postgres: EmbeddedPostgres, base: str, tokens: Mapping[str, str]) -> dict[str, Any]:
    common = {
        "bus": wanted.bus,
        "bus_url": postgres.url("bus"),
        "kafka_bootstrap": _kafka_bootstrap(),
        "tokens_file": wanted.data / "tokens",
        "service_token": tokens["services"],
        "public_url": base,
        "schedule_url": base,
        "participants_url": base,
        "notifications_url": base,
    }
    return {
        "schedule": schedule_app(load(ScheduleSettings, **common, database_url=postgres.url("schedule"))),
        "participants": participants_app(
            load(ParticipantsSettings, **common, database_url=postgres.url("participants"))
        ),
        "notifications": notifications_app(
            load(NotificationsSettings, **common, database_url=postgres.url("notifications"))
        ),
    }


def _tokens(data: Path) -> dict[str, str]:
    """The demo's own tokens; the token file holds hashes only, so the secrets are kept beside it."""
    wanted = {"demo": ("planner", "staff", "operator"), "services": ("service",)}
    tokens = {}
    for name, scopes in wanted.items():
        kept = data / "secrets" / f"token-{name}"
        if not kept.exists():
            _write_secret(kept, add_token(data / "tokens", name, scopes))
        tokens[name] = kept.read_text(encoding="utf-8").strip()
    return tokens


def _write_secret(path: Path, content: str) -> None:
    """For its owner alone, and whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content + "\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _listen(port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen(256)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise CannotStart(f"cannot listen on port {port}: {reason}; name another: make run PORT=8090") from error
    return listening


def _kafka_bootstrap() -> str:
    return os.environ.get("KAFKA_BOOTSTRAP", "127.0.0.1:9092")


def _check_kafka() -> None:
    host, _, port = _kafka_bootstrap().split(",")[0].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, ValueError) as error:
        raise CannotStart(
            f"no Kafka answers at {_kafka_bootstrap()}: start one in another terminal: make kafka"
        ) from error


@contextlib.contextmanager
def _signals_are_ours(server: uvicorn.Server) -> Any:
    """Uvicorn would put its own handlers over ours and re-raise the signal when it is done."""
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    yield


def _show(front: Front, loaded: Loaded) -> None:
    told = loaded.as_json()
    front.state.trip, front.state.feeds = told["trip"], told["feeds"]


def _print(base: str, loaded: Loaded) -> None:
    print(f"\nAttaché is ready at {base}/\n\nFeeds:")
    for feed in loaded.feeds:
        print(f"  {feed.delegation} ({feed.level})\n    {feed.url}")
    print("\nAPIs:")
    for name in ("schedule", "participants", "notifications"):
        print(f"  {base}/{name}/docs")
    print("\nStop with Ctrl-C.", flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
