"""The notifications service in a test: its app on a real PostgreSQL, told of the others' things by made-up messages.

`make_notifications` starts an app, `messages` makes what the other services would tell. The bus that an app gets takes
everything and never brings anything, unless another one is given: what it took is in `bus.records`.
"""

# ruff: noqa: ARG002  (a port's methods have its signatures)

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.notifications import reactions
from services.notifications.main import create_app
from services.notifications.settings import NotificationsSettings
from services.notifications.zones import time_zone
from shared.bus import Assigned, Bus, Delivery, Partition, Place, Record, Revoked, Topic
from shared.database import make_engine
from shared.messages import Message
from shared.settings import load
from shared.tokens import add_token

BASE = "http://feeds.example"
MIGRATIONS = "services/notifications/migrations"
DOMAIN = "planning.example"


@dataclass
class SilentBus:
    """Takes every record, brings none."""

    records: list[Record] = field(default_factory=list)

    async def ensure_topics(self, topics: Sequence[Topic]) -> None:
        """All there."""

    async def producer(self) -> "SilentBus":
        return self

    async def send(self, records: Sequence[Record]) -> list[Place]:
        self.records += records
        return [Place(record.topic, 0, number) for number, record in enumerate(records)]

    async def id_at(self, place: Place) -> str | None:
        return None

    async def tail(self, topic: str, behind: Mapping[int, int], limit: int) -> list[Delivery]:
        return []

    async def subscribe(
        self, group: str, topics: Sequence[str], *, on_assigned: Assigned, on_revoked: Revoked
    ) -> "SilentSubscription":
        return SilentSubscription()

    async def close(self) -> None:
        """Nothing is held."""


class SilentSubscription:
    async def fetch(self, limit: int, wait: float) -> Mapping[Partition, Sequence[Delivery]]:
        await asyncio.sleep(wait)
        return {}

    def assigned(self) -> frozenset[Partition]:
        return frozenset()

    async def ends(self) -> Mapping[Partition, int]:
        return {}

    def seek(self, partition: Partition, offset: int) -> None:
        """Nowhere to go."""

    async def report(self, partition: Partition, next_offset: int) -> None:
        """Nobody listens."""

    async def close(self) -> None:
        """Nothing is held."""


@dataclass
class Clock:
    """The clock that tells which links are live: the true one and what a test adds, or one that stands still."""

    ahead: timedelta = timedelta(0)
    fixed: datetime | None = None

    def __call__(self) -> datetime:
        return self.fixed or datetime.now(UTC) + self.ahead


@dataclass(kw_only=True)
class Messages:
    """Tells a notifications database of things, one message a transaction, as the consumer would."""

    engine: AsyncEngine
    trip: UUID = field(default_factory=uuid4)
    traceparent: str | None = None

    async def tell(self, name: str, kind: str, thing: UUID, body: Mapping[str, Any]) -> None:
        """One message; `body` lacks the ids alone."""
        async with self.engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
            await reactions.fold(connection, [self.message(name, kind, thing, body)])

    def message(self, name: str, kind: str, thing: UUID, body: Mapping[str, Any]) -> Message:
        now = datetime.now(UTC)
        ids = {"trip": str(self.trip)} | ({} if kind == "trip" else {kind: str(thing)})
        return Message(
            id=str(uuid4()),
            type=name,
            version=1,
            source="/attache/schedule",
            subject=f"{kind}/{thing}",
            time=now,
            recorded_at=now,
            key=str(self.trip),
            sequence=1,
            epoch=0,
            traceparent=self.traceparent,
            correlation_id=None,
            body=json.loads(json.dumps({**ids, **body}, default=str)),
        )

    async def plan(self) -> None:
        body = {
            "title": "Spring tour",
            "principals": ["Minister"],
            "home": {"place": "Lisbon", "zone": "Europe/Lisbon"},
            "starts_on": "2031-05-05",
            "ends_on": "2031-05-09",
            "status": "planned",
            "reason": None,
        }
        await self.tell("TripPlanned", "trip", self.trip, body)

    async def register(self, name: str, kind: str) -> UUID:
        delegation = uuid4()
        body = {"name": name, "kind": kind, "status": "registered", "head": None, "order": (), "reason": None}
        await self.tell("DelegationRegistered", "delegation", delegation, body)
        return delegation

    async def add_member(self, delegation: UUID, name: str, contact: str | None = None) -> UUID:
        member = uuid4()
        body = {
            "delegation": delegation,
            "person": uuid4(),
            "function": "staff",
            "personal": {"name": name, "title": f"Title of {name}", "contact": contact},
            "status": "on-roster",
            "reason": None,
        }
        await self.tell("MemberAdded", "member", member, body)
        return member

    async def add_stop(self, place: str, zone: str, day: str, host: UUID | None = None) -> UUID:
        stop = uuid4()
        arrives, departs = f"{day}T08:00:00", f"{day}T22:00:00"
        body = {
            "place": place,
            "country": f"Land of {place}",
            "zone": zone,
            "arrives": arrives,
            "departs": departs,
            "arrives_at": _instant(arrives, zone),
            "departs_at": _instant(departs, zone),
            "tz": "2031a",
            "host": host,
            "assumed": False,
            "status": "planned",
            "reason": None,
        }
        await self.tell("StopAdded", "stop", stop, body)
        return stop

    async def schedule(
        self, stop: UUID, title: str, start: str, delegations: Sequence[UUID] = (), **fields: Any
    ) -> UUID:
        meeting = uuid4()
        await self.tell(
            "MeetingScheduled", "meeting", meeting, whole_meeting(stop, title, start, delegations, **fields)
        )
        return meeting

    async def reschedule(self, meeting: UUID, start: str, was: str, zone: str = "Asia/Tokyo") -> None:
        await self.tell("MeetingRescheduled", "meeting", meeting, {**_times(start, zone), "was": _times(was, zone)})

    async def retitle(self, meeting: UUID, title: str, was: str) -> None:
        await self.tell("MeetingRevised", "meeting", meeting, {"title": title, "was": {"title": was}})


def whole_meeting(
    stop: UUID, title: str, start: str, delegations: Sequence[UUID] = (), **fields: Any
) -> dict[str, Any]:
    """The body of a MeetingScheduled but for its ids: in Tokyo, for 45 minutes, unless it is said otherwise."""
    zone = fields.get("zone", "Asia/Tokyo")
    return {
        "stop": stop,
        "title": title,
        "kind": "bilateral",
        "status": "confirmed",
        "zone": zone,
        "duration": "PT45M",
        **_times(start, zone),
        "tz": "2031a",
        "venue": {"name": f"Hall of {title}", "address": None, "geo": [35.5, 139.75], "conference": None},
        "topics": [f"topic of {title}"],
        "notes": f"notes of {title}",
        "press": None,
        "hard": False,
        "assumed": False,
        "delegations": list(delegations),
        "reason": None,
        **fields,
    }


@dataclass(kw_only=True)
class Notifications:
    """A running app. `planner` and `staff` are clients with such a token, `anyone` is one with none."""

    app: FastAPI
    bus: Bus
    engine: AsyncEngine
    clock: Clock
    planner: httpx.AsyncClient
    staff: httpx.AsyncClient
    anyone: httpx.AsyncClient

    async def issue(self, trip: UUID, delegation: UUID, level: str = "delegation", **fields: Any) -> dict[str, Any]:
        """A new link, as it is answered."""
        body = {"delegation": str(delegation), "level": level, "label": f"{level} phones", **fields}
        answer = await self.planner.post(f"/notifications/trips/{trip}/feed-links", json=body)
        assert answer.status_code == 201, answer.text
        issued: dict[str, Any] = answer.json()
        return issued

    async def get_until(self, url: str, held: Callable[[bytes], bool], patience: float = 60.0) -> bytes:
        """The feed, as soon as its body is as wanted."""
        until = time.monotonic() + patience
        while not held(body := (await self.anyone.get(url)).content):
            assert time.monotonic() < until, f"the feed did not become as wanted:\n{body.decode()}"
            await asyncio.sleep(0.02)
        return body


MakeNotifications = Callable[..., Awaitable[Notifications]]
"""`await make_notifications(database_url)`; `bus`, `clock`, `public_url` may be given. Stopped when the test ends."""


@dataclass(kw_only=True)
class Stoppable:
    """What `make_notifications` started, in order; `stop` ends one before the test does."""

    stacks: dict[int, contextlib.AsyncExitStack] = field(default_factory=dict)

    async def stop(self, notifications: Notifications) -> None:
        await self.stacks.pop(id(notifications.app)).aclose()


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[Path, str, str]:
    """A token file, and the secrets of its planner and of its staff."""
    path = tmp_path / "tokens"
    return path, add_token(path, "pat", ["planner", "operator"]), add_token(path, "sam", ["staff"])


@pytest.fixture
async def running_notifications() -> AsyncIterator[Stoppable]:
    started = Stoppable()
    yield started
    for stack in reversed(list(started.stacks.values())):
        await stack.aclose()


@pytest.fixture
async def make_notifications(
    tokens: tuple[Path, str, str], running_notifications: Stoppable, patience: None
) -> MakeNotifications:
    path, planner, staff = tokens

    async def make(
        database_url: str, *, bus: Bus | None = None, clock: Clock | None = None, **settings: Any
    ) -> Notifications:
        bus, clock = bus or SilentBus(), clock or Clock()
        nobody = "http://127.0.0.1:9"
        given = {
            "database_url": database_url,
            "bus_url": "postgresql+asyncpg://nobody@127.0.0.1:9/none",
            "service_token": secrets.token_hex(8),
            "tokens_file": path,
            "public_url": BASE,
            "schedule_url": nobody,
            "participants_url": nobody,
            "domain": DOMAIN,
            **settings,
        }
        app = create_app(load(NotificationsSettings, **given), bus=bus, clock=clock)
        stack = contextlib.AsyncExitStack()
        running_notifications.stacks[id(app)] = stack
        await stack.enter_async_context(app.router.lifespan_context(app))
        engine = make_engine(database_url, name="test")
        stack.push_async_callback(engine.dispose)
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE, headers=headers, timeout=30)
            )
            for headers in ({"Authorization": f"Bearer {planner}"}, {"Authorization": f"Bearer {staff}"}, {})
        ]
        for client in clients:
            client.headers["accept-encoding"] = "identity"
        return Notifications(
            app=app, bus=bus, engine=engine, clock=clock, planner=clients[0], staff=clients[1], anyone=clients[2]
        )

    return make


def _times(start: str, zone: str, minutes: int = 45) -> dict[str, str]:
    ends = (datetime.fromisoformat(_instant(start, zone)) + timedelta(minutes=minutes)).isoformat()
    return {"start": start, "starts_at": _instant(start, zone), "ends_at": ends.replace("+00:00", "Z")}


def _instant(wall: str, zone: str) -> str:
    local = datetime.fromisoformat(wall).replace(tzinfo=time_zone(zone) or UTC)
    return local.astimezone(UTC).isoformat().replace("+00:00", "Z")
