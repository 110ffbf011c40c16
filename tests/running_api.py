"""One service's app, running for a test on databases of its own, and somebody who calls it.

Every answer is held against the app's own OpenAPI document: its status, its media type, its shape, its slug.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import jsonschema
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.participants import published as participants_published
from services.participants.main import create_app as participants_app
from services.participants.settings import ParticipantsSettings
from services.schedule import published as schedule_published
from services.schedule.main import create_app as schedule_app
from services.schedule.settings import ScheduleSettings
from shared.bus import Topic
from shared.bus_local import LocalBus
from shared.bus_local_member import LocalTimes
from shared.command import Desk
from shared.database import make_engine
from shared.event_store import StoredEvent
from shared.messages import record, topic_of
from shared.settings import load
from shared.tokens import add_token
from tests.patience import SECONDS

BUS = "shared/bus_migrations"
NOWHERE = "http://127.0.0.1:9"
"""Nobody listens there: the other services' message logs are away."""


@dataclass(kw_only=True)
class Bus:
    """The other services, as far as this one hears of them: what they would have told."""

    bus: LocalBus
    service: str
    body_of: Callable[[StoredEvent, bool], bytes]
    told: Counter[str] = field(default_factory=Counter)

    async def tell(self, event: Any) -> None:
        """A fact of the other service, on its cleared topic."""
        key = str(event.trip)
        self.told[key] += 1
        stored = StoredEvent(
            position=0,
            id=uuid4(),
            stream=f"thing/{uuid4()}",
            version=1,
            type=f"{type(event).__name__}.v1",
            data=event,
            metadata={"occurred_at": "2023-11-01T00:00:00Z", "correlation_id": str(uuid4())},
            key=key,
            open_sequence=None,
            cleared_sequence=self.told[key],
            recorded_at=datetime.now(UTC),
        )
        producer = await self.bus.producer()
        await producer.send([record(stored, self.body_of(stored, False), self.service, openly=False, epoch=1)])


@dataclass(kw_only=True)
class Api:
    """The app under test, called by a planner unless another token is given."""

    app: FastAPI
    client: httpx.AsyncClient
    bus: Bus
    tokens: Path
    answered: set[tuple[str, str, str]] = field(default_factory=set)
    """Every method, path template and slug (or status) that has been seen."""

    @property
    def desk(self) -> Desk:
        desk: Desk = self.app.state.desk
        return desk

    @property
    def engine(self) -> AsyncEngine:
        return self.desk.engine

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self.call("GET", path, headers=headers)

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        return await self.call("POST", path, json=body, headers=headers)

    async def call(self, method: str, path: str, *, headers: Mapping[str, str] = {}, **kwargs: Any) -> httpx.Response:
        """`If_Match="..."` stands for the header `If-Match`."""
        if kwargs.get("json", 0) is None:
            kwargs.pop("json")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await self.client.request(method, path, headers=named, **kwargs)
        template = check_documented(self.app.openapi(), response)
        problem = response.headers.get("content-type") == "application/problem+json"
        self.answered.add((method, template, response.json()["slug"] if problem else str(response.status_code)))
        return response

    async def done(self, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
        """The thing that a command answers with."""
        response = await self.post(path, body, **headers)
        assert response.status_code in (200, 201), response.text
        thing: dict[str, Any] = response.json()
        return thing

    def token(self, *scopes: str, name: str) -> str:
        """An `Authorization` of somebody else; the file is read again within a second."""
        return f"Bearer {add_token(self.tokens, name, scopes)}"

    async def events(self) -> list[StoredEvent]:
        """The whole log."""
        async with self.engine.connect() as connection:
            raw = await connection.get_raw_connection()
            return await self.desk.store.after(raw.driver_connection, 0, 100_000)

    async def rows(self, statement: str) -> list[tuple[Any, ...]]:
        async with self.engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(text(statement))]

    async def settled(self) -> bool:
        """Whether its relay leads and its consumer has its partitions."""
        service = self.app.state.service
        return bool(service.relay.state.leads and service.consumer.state.assigned)

    async def until(self, happened: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
        """Looks again until it is so."""
        end = time.monotonic() + seconds
        while not await happened():
            assert time.monotonic() < end, "it did not happen in time"
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(
    app: FastAPI, *, bus_url: str, tokens: Path, token: str, heard: str, body_of: Callable[[StoredEvent, bool], bytes]
) -> AsyncIterator[Api]:
    """The app with its lifespan. `heard` is the service whose messages it takes in."""
    engine = make_engine(bus_url, name="test-bus", pool_size=2)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport,
            base_url="http://attache",
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        ) as client,
    ):
        bus = Bus(bus=LocalBus(engine, times=LocalTimes(send=SECONDS)), service=heard, body_of=body_of)
        await bus.bus.ensure_topics([Topic(name=topic_of(heard, openly=False))])
        api = Api(app=app, client=client, bus=bus, tokens=tokens)
        await api.until(api.settled)
        yield api
    await engine.dispose()


@asynccontextmanager
async def running_schedule(make_database: Callable[[str], Awaitable[str]], tokens: Path) -> AsyncIterator[Api]:
    """The schedule service; the participants service is played by `bus.tell`."""
    token, bus_url = add_token(tokens, "planner-1", ("planner",)), await make_database(BUS)
    settings = load(
        ScheduleSettings,
        database_url=await make_database("services/schedule/migrations"),
        bus="local",
        bus_url=bus_url,
        service_token="attache_none",
        tokens_file=tokens,
        participants_url=NOWHERE,
    )
    app, body_of = schedule_app(settings), participants_published.body
    async with running(app, bus_url=bus_url, tokens=tokens, token=token, heard="participants", body_of=body_of) as api:
        yield api


@asynccontextmanager
async def running_participants(make_database: Callable[[str], Awaitable[str]], tokens: Path) -> AsyncIterator[Api]:
    """The participants service; the schedule service is played by `bus.tell`."""
    token, bus_url = add_token(tokens, "planner-1", ("planner",)), await make_database(BUS)
    settings = load(
        ParticipantsSettings,
        database_url=await make_database("services/participants/migrations"),
        bus="local",
        bus_url=bus_url,
        service_token="attache_none",
        tokens_file=tokens,
        schedule_url=NOWHERE,
    )
    app, body_of = participants_app(settings), schedule_published.body
    async with running(app, bus_url=bus_url, tokens=tokens, token=token, heard="schedule", body_of=body_of) as api:
        yield api


def check_documented(openapi: Mapping[str, Any], response: httpx.Response) -> str:
    """Fails unless the answer is as the document says; returns the path's template."""
    method, path = response.request.method.lower(), response.request.url.path
    templates = [one for one in openapi["paths"] if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", one), path)]
    if not templates:
        assert response.status_code == 404
        return path
    template: str = templates[0]
    operation = openapi["paths"][template].get(method)
    if operation is None:
        assert response.status_code == 405
        return template
    described = operation["responses"].get(str(response.status_code))
    assert described is not None or response.status_code == 304, f"{method} {template}: {response.text}"
    if described is not None and response.content:
        media_type = response.headers["content-type"].partition(";")[0]
        content = described["content"][media_type]
        schema = {**content["schema"], "components": openapi["components"]}
        jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(response.json())
        if media_type == "application/problem+json":
            assert response.json()["slug"] in content["examples"], f"{method} {template}: {response.text}"
    return template
