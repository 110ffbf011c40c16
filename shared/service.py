"""What every service runs besides its routes: relay, consumer, healer, announcements, and the probes that tell of them.

`shared.wiring` makes one.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import structlog
from fastapi import APIRouter, FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.background import heed_cancellation
from shared.bus import Bus, Topic
from shared.call import Call, needs
from shared.command import Desk, forget_old_answers
from shared.consumer import Consumer
from shared.database import is_away
from shared.dead_letters import announce_parked
from shared.event_store import EventStore
from shared.healer import Healer
from shared.message_log import BodyOf, message_log_router
from shared.metrics import More, exposition
from shared.openapi import problems
from shared.readiness import Readiness
from shared.relay import Relay
from shared.settings import ROLES, Role
from shared.tally import Requests
from shared.tracing import OFF, Tracing

FORGET_SECONDS = 3600.0
END_SECONDS = 15.0
"""So long a background task may take to end: an adapter of the bus lets go within a few seconds, or is left."""

log = structlog.get_logger()

Background = Callable[[], Coroutine[Any, Any, None]]
Lifespan = Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]


@dataclass(kw_only=True, eq=False)
class Service:
    """One service's plumbing, wired."""

    name: str
    engine: AsyncEngine
    store: EventStore
    desk: Desk
    bus: Bus
    topics: Sequence[Topic]
    """The topics that this service writes to."""
    relay: Relay
    consumer: Consumer
    healer: Healer
    client: httpx.AsyncClient
    body_of: BodyOf
    readiness: Readiness
    tracing: Tracing = OFF
    roles: frozenset[Role] = frozenset(ROLES)
    """What this process does of all that the service does; the rest is done by others of its processes."""
    requests: Requests = field(default_factory=Requests)
    """What was answered: `shared.http.install` counts it."""
    metrics: list[More] = field(default_factory=list)
    """What this service alone has to tell."""
    extra: dict[str, Background] = field(default_factory=dict)
    """A service's own tasks of the consumer: what follows from what was heard."""
    serving: dict[str, Background] = field(default_factory=dict)
    """A service's own tasks of the API: what its answers need."""
    _handed: list["asyncio.Task[None]"] = field(default_factory=list)
    """The tasks that another process takes over."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all background tasks; on the way out each is cancelled and awaited, and connections are closed."""
        of_role: dict[Role, dict[str, Background]] = {
            "api": {"forget": self._forget, **self.serving},
            "relay": {
                "relay": self.relay.run,
                "dead-letters": lambda: announce_parked(self.name, self.engine, self.bus),
            },
            "consumer": {"consumer": self.consumer.run, "healer": self.healer.run, **self.extra},
        }
        handed = {**of_role["relay"], **of_role["consumer"]}
        work = {name: task for role, tasks in of_role.items() if role in self.roles for name, task in tasks.items()}
        work["watch"] = self.readiness.watch
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.resting())
            tasks = {
                name: asyncio.create_task(self._guard(name, task), name=f"{self.name}.{name}")
                for name, task in work.items()
            }
            self._handed = [task for name, task in tasks.items() if name in handed]
            stack.push_async_callback(_end, list(tasks.values()))
            yield

    @contextlib.asynccontextmanager
    async def resting(self) -> AsyncIterator[None]:
        """Connections alone, for a command that works on what the service has; on the way out they are closed."""
        async with contextlib.AsyncExitStack() as stack:
            for close in (self.tracing.close, self.engine.dispose, self.bus.close, self.client.aclose):
                stack.push_async_callback(close)
            yield

    async def hand_over(self) -> None:
        """Not ready from now on; relay and consumer end, so that other processes lead and read at once.

        Requests are served as before: what they store is published by who leads then.
        """
        self.readiness.stopping = True
        log.info("service.stopping", service=self.name)
        await _end(self._handed)

    def router(self) -> APIRouter:
        """The probes and, for the API, the message log; mounted under the service's name."""
        router = APIRouter(prefix=f"/{self.name}")
        if "api" in self.roles:
            router.include_router(message_log_router(self.name, self.engine, self.store, self.body_of))

        @router.get("/healthz", tags=["probes"], summary="Whether the process answers")
        async def healthz() -> dict[str, str]:
            return {"status": "alive"}

        @router.get(
            "/readyz",
            tags=["probes"],
            summary="Whether the service does its work, and how far it is behind",
            responses={503: {"description": "It does not; the report says what stands still."}},
        )
        async def readyz(response: Response) -> dict[str, Any]:
            report = await self.readiness.report()
            response.status_code = 200 if report["ready"] else 503
            return report

        @router.get(
            "/metrics",
            tags=["probes"],
            summary="Prometheus metrics",
            responses=problems("token-missing", "token-unknown", "scope-missing"),
        )
        async def metrics(_: Annotated[Call, needs("operator")]) -> Response:
            told = await exposition(self.readiness, self.requests, self.metrics)
            return Response(told, media_type=CONTENT_TYPE_LATEST)

        return router

    async def _guard(self, name: str, work: Background) -> None:
        while True:
            try:
                await work()
                return
            except Exception:
                heed_cancellation()
                log.exception("task.failed", service=self.name, task=name)
                await asyncio.sleep(1)

    async def _forget(self) -> None:
        while True:
            try:
                await forget_old_answers(self.engine)
            except Exception as error:
                if not is_away(error):
                    raise
            await asyncio.sleep(FORGET_SECONDS)


def lifespan_of(service: Service) -> Lifespan:
    """The lifespan of a service's app: its background tasks live as long as the app serves."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    return lifespan


async def _end(tasks: Sequence["asyncio.Task[None]"]) -> None:
    left = set(tasks)
    until = time.monotonic() + END_SECONDS
    while left and time.monotonic() < until:
        for task in left:
            task.cancel()  # again, where one was lost in a connection's own error
        _, left = await asyncio.wait(left, timeout=2.0)
    for task in left:
        log.error("task.hung", task=task.get_name())
