"""The demo trip, loaded once a session through the public API of the three services, all in this process.

What a test gets is data alone: the things as the API lists them and the feeds as they were served, also by a second
replica, after a rebuild from the real message logs and after a restart. The services are gone by then.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.demo.load_file import FeedAddress, LoadFile
from services.demo.player import play
from services.demo.trip_file import DEMO, read_trip_file
from services.front import Front
from services.notifications import projections
from services.notifications.main import create_app as notifications_app
from services.notifications.settings import NotificationsSettings
from services.participants.main import create_app as participants_app
from services.participants.settings import ParticipantsSettings
from services.schedule.main import create_app as schedule_app
from services.schedule.settings import ScheduleSettings
from shared.database import make_engine
from shared.settings import load
from shared.tokens import add_token
from tests.patience import patient

BASE = "http://attache.example"
MIGRATIONS = {
    "schedule": "services/schedule/migrations",
    "participants": "services/participants/migrations",
    "notifications": "services/notifications/migrations",
    "bus": "shared/bus_migrations",
}
HEARD = {"schedule": ("participants", "notifications"), "participants": ("schedule", "notifications")}
"""Who listens to whom."""

Thing = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DemoFeed:
    """One feed of the demo, and the same feed as it was served later or elsewhere."""

    address: FeedAddress
    body: bytes
    on_another_replica: bytes
    after_a_rebuild: bytes
    after_a_restart: bytes


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The loaded trip: its things as the API lists them, by kind and id, and its feeds."""

    trip: Thing
    stops: Mapping[str, Thing]
    movements: Mapping[str, Thing]
    meetings: Mapping[str, Thing]
    delegations: Mapping[str, Thing]
    members: Mapping[str, Thing]
    domain: str
    feeds: tuple[DemoFeed, ...]
    bodies_before_the_rebuild: int
    bodies_after_all: int

    @property
    def items(self) -> Mapping[str, Thing]:
        """Everything that can stand in a feed."""
        return {**self.stops, **self.movements, **self.meetings}


@pytest.fixture(scope="session")
def demo(postgres_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The demo trip in its end state."""
    return asyncio.run(_loaded(postgres_server, tmp_path_factory.mktemp("demo")))


async def _loaded(postgres_server: Any, folder: Path) -> Demo:
    names = {name: await postgres_server.create(scripts) for name, scripts in MIGRATIONS.items()}
    urls = {name: postgres_server.database_url(database) for name, database in names.items()}
    token = add_token(folder / "tokens", "demo", ["planner", "staff", "operator"])
    engines = {name: make_engine(url, name="test") for name, url in urls.items()}
    try:
        return await _played(folder, urls, engines, token)
    finally:
        for engine in engines.values():
            await engine.dispose()
        for database in names.values():
            await postgres_server.drop(database)


async def _played(folder: Path, urls: Mapping[str, str], engines: Mapping[str, AsyncEngine], token: str) -> Demo:
    with patient(), socket.create_server(("127.0.0.1", 0)) as listening:
        return await _played_at(listening, folder, urls, engines, token)


async def _played_at(
    listening: socket.socket, folder: Path, urls: Mapping[str, str], engines: Mapping[str, AsyncEngine], token: str
) -> Demo:
    trip_file, given = read_trip_file(DEMO), _given(folder, urls, listening.getsockname()[1])
    async with _running(apps := _apps(given, urls), token, listening) as client:
        loaded = await play(trip_file, client, LoadFile(folder / "load.json"))
        own = next(feed for feed in loaded.feeds if feed.kind == "own")
        await _settled(engines, apps)
        below = await _issue_below_full(client, loaded.trip, own)
        feeds = (*loaded.feeds, below)
        await client.get(own.url)
        served = [await _served(client, feed) for feed in feeds]
        bodies = await _bodies(engines["notifications"])
        things = await _things(client, loaded.trip)
        async with _running({"notifications": _notifications(given, urls)}, token) as replica:
            elsewhere = [await _served(replica, feed) for feed in feeds]
        async with engines["notifications"].begin() as connection:
            await projections.rebuild(connection)
        await _settled(engines, apps)
        rebuilt = [await _served(client, feed) for feed in feeds]
    async with _running(apps := _apps(given, urls), token, listening) as client:
        await _settled(engines, apps)
        restarted = [await _served(client, feed) for feed in feeds]
    return Demo(
        **things,
        domain="demo.example",
        feeds=tuple(
            DemoFeed(address=feed, body=body, on_another_replica=other, after_a_rebuild=late, after_a_restart=last)
            for feed, body, other, late, last in zip(feeds, served, elsewhere, rebuilt, restarted, strict=True)
        ),
        bodies_before_the_rebuild=bodies,
        bodies_after_all=await _bodies(engines["notifications"]),
    )


def _apps(given: Mapping[str, Any], urls: Mapping[str, str]) -> dict[str, FastAPI]:
    return {
        "schedule": schedule_app(load(ScheduleSettings, **given, database_url=urls["schedule"])),
        "participants": participants_app(load(ParticipantsSettings, **given, database_url=urls["participants"])),
        "notifications": _notifications(given, urls),
    }


def _notifications(given: Mapping[str, Any], urls: Mapping[str, str]) -> FastAPI:
    return notifications_app(
        load(NotificationsSettings, **given, domain="demo.example", database_url=urls["notifications"])
    )


def _given(folder: Path, urls: Mapping[str, str], port: int) -> dict[str, Any]:
    return {
        "bus": "local",
        "bus_url": urls["bus"],
        "tokens_file": folder / "tokens",
        "service_token": add_token(folder / "tokens", "services", ["service"]),
        "public_url": BASE,
        "schedule_url": f"http://127.0.0.1:{port}",
        "participants_url": f"http://127.0.0.1:{port}",
    }


class _Server(uvicorn.Server):
    """Without handlers of signals: those are pytest's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def _running(
    apps: Mapping[str, FastAPI], token: str, listening: socket.socket | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """The apps, and somebody who calls them; at the socket they answer each other."""
    front = Front(apps)
    headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}
    transport = httpx.ASGITransport(front)
    async with (
        front.running(),
        _served_at(front, listening),
        httpx.AsyncClient(transport=transport, base_url=BASE, headers=headers, timeout=30) as client,
    ):
        yield client


@contextlib.asynccontextmanager
async def _served_at(front: Front, listening: socket.socket | None) -> AsyncIterator[None]:
    """The socket itself stays open: until the next ones serve there, nobody else gets its port."""
    if listening is None:
        yield
        return
    server = _Server(uvicorn.Config(front, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve(sockets=[listening.dup()]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


async def _issue_below_full(client: httpx.AsyncClient, trip: str, own: FeedAddress) -> FeedAddress:
    """The own delegation's feed without what is internal: none of the demo's links is one."""
    body = {"delegation": own.delegation_id, "level": "delegation", "label": "Below full"}
    answer = await client.post(f"/notifications/trips/{trip}/feed-links", json=body)
    issued = answer.json()
    return FeedAddress(
        delegation=own.delegation,
        delegation_id=own.delegation_id,
        kind=own.kind,
        level="delegation",
        link=issued["id"],
        url=issued["url"],
    )


async def _served(client: httpx.AsyncClient, feed: FeedAddress) -> bytes:
    until = time.monotonic() + 180
    while "etag" not in (answer := await client.get(feed.url)).headers:  # its first body takes its time
        assert time.monotonic() < until, answer.text
    assert answer.status_code == 200
    return answer.content


async def _things(client: httpx.AsyncClient, trip: str) -> dict[str, Any]:
    schedule, rosters = f"/schedule/trips/{trip}", f"/participants/trips/{trip}/delegations"
    delegations = await _listed(client, rosters)
    members: dict[str, Thing] = {}
    for delegation in delegations:
        members |= await _listed(client, f"/participants/delegations/{delegation}/members")
    return {
        "trip": (await client.get(schedule)).json(),
        **{kind: await _listed(client, f"{schedule}/{kind}") for kind in ("stops", "movements", "meetings")},
        "delegations": delegations,
        "members": members,
    }


async def _listed(client: httpx.AsyncClient, path: str) -> dict[str, Thing]:
    things: dict[str, Thing] = {}
    cursor: str | None = ""
    while cursor is not None:
        answer = await client.get(path, params={"limit": 50} | ({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
        things |= {thing["id"]: thing for thing in answer.json()["items"]}
        cursor = answer.json()["next"]
    return things


async def _settled(engines: Mapping[str, AsyncEngine], apps: Mapping[str, FastAPI]) -> None:
    """Until every message was taken in by all that listen, and nothing is left to be rendered or looked at."""
    until = time.monotonic() + 180
    while not await _is_settled(engines):
        assert time.monotonic() < until, "the demo did not settle"
        await asyncio.sleep(0.1)
    assert await apps["notifications"].state.shelf.look_again(60)


async def _is_settled(engines: Mapping[str, AsyncEngine]) -> bool:
    for producer, consumers in HEARD.items():
        told = await _number(engines[producer], "SELECT coalesce(sum(cleared_sequence), 0) FROM heads")
        for consumer in consumers:
            heard = f"SELECT coalesce(sum(sequence), 0) FROM consumer_marks WHERE topic = 'attache.{producer}.cleared'"
            if await _number(engines[consumer], heard) != told:
                return False
    pending = """
    SELECT (SELECT count(*) FROM marks) + (SELECT count(*) FROM consumer_offsets WHERE behind)
        + (SELECT count(*) FROM consumer_marks WHERE waits_for IS NOT NULL OR epoch = 0)
    """
    return await _number(engines["notifications"], pending) == 0


async def _bodies(engine: AsyncEngine) -> int:
    return await _number(engine, "SELECT count(*) FROM bodies")


async def _number(engine: AsyncEngine, query: str) -> int:
    async with engine.connect() as connection:
        return int(await connection.scalar(text(query)) or 0)
